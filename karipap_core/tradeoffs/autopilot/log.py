"""The log of a search: steps hold the facts, sentences and the rows of the document are made from them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from karipap_core.statistics.bootstrap import Interval
from karipap_core.tradeoffs.autopilot.aim import Criterion, figure
from karipap_core.tradeoffs.autopilot.trail import Tried
from karipap_core.tradeoffs.point import Point
from karipap_core.workspace.kept import keep_json

StepKind = Literal["screened", "network chosen", "ends left", "measured", "looked up", "stopped", "judged", "rival"]

_DID: dict[StepKind, str] = {
    "screened": "Screened",
    "network chosen": "Chose a network",
    "ends left": "Left the ends alone",
    "measured": "Measured {}",
    "looked up": "Looked up {}",
    "stopped": "Stopped",
    "judged": "Judged {}",
    "rival": "Measured a rival: {}",
}


@dataclass(frozen=True)
class Rival:
    """What the plan found is held against: its point, and the interval of its loss minus the plan's (None where the
    two have no documents to pair)."""

    label: str
    point: Point
    difference: Interval | None

    def row(self, quality: str) -> dict:
        """The row of the document's "rivals"."""
        row: dict = {"label": self.label, "method": self.point.method, "id": self.point.id}
        row |= {
            key: self.point.figures.get(key) for key in ("bytes_kept", "bytes_kept_blocks", "rise_low", "rise_high")
        }
        found = self.difference
        interval = found and {"mean": found.mean, "low": found.low, "high": found.high}
        return row | {"rise": self.point.figures[quality], "difference": interval}


@dataclass
class Step:
    """One step of a search.

    kind : what was done.
    why : for what reason, a sentence.
    decision : what follows from it, a sentence; empty until it is taken.
    accepted : whether the plan that was measured was taken, None where there was nothing to take.
    tried : the plan, where one was measured on the searching half, looked up, or judged on the verdict's half.
    rival : what was measured, where that was a rival.
    predicted : the rise of a plan that was not measured.
    """

    kind: StepKind
    why: str
    decision: str = ""
    accepted: bool | None = None
    tried: Tried | None = None
    rival: Rival | None = None
    predicted: float | None = None

    @property
    def point(self) -> Point | None:
        """What was measured in this step, None where nothing was."""
        measured = self.tried or self.rival
        return measured.point if measured else None

    def label(self, criterion: Criterion) -> str:
        """The name of what was measured: a rival's, or a plan's with its size; empty where nothing was."""
        if self.tried:
            return f"{self.tried.trail.name} at {criterion.size(self.tried.point):.1%} of the bytes"
        return self.rival.label if self.rival else ""

    def row(self, number: int, criterion: Criterion) -> dict:
        """The row of the document's "log"."""
        did = _DID[self.kind].format(self.label(criterion))
        predicted = self.tried.predicted if self.tried else self.predicted
        measured = criterion.measured(self.point) if self.point else None
        return {
            "step": number,
            "did": did,
            "why": self.why,
            "id": self.tried.point.id if self.tried else None,
            "predicted": predicted,
            "measured": measured,
            "bytes_kept": criterion.size(self.point) if self.point else None,
            "decision": self.decision,
            "accepted": self.accepted,
            "says": self._sentences(did, predicted, measured, criterion),
        }

    def _sentences(self, did: str, predicted: float | None, measured: dict | None, criterion: Criterion) -> str:
        said = [f"{did}.", self.why]
        if measured:
            was = f", predicted {figure(predicted)}" if predicted is not None else ""
            span = ""
            if measured["low"] is not None:
                span = f" (95 % interval {measured['low']:+z.4f} to {measured['high']:+z.4f})"
            said.append(f"{'Rise' if criterion.causal else 'Output error'} {measured['rise']:+z.4f}{span}{was}.")
        return " ".join(filter(None, [*said, self.decision]))


class Log:
    """The steps of one search, kept on disk after each: `file` always holds the whole document as it is so far.

    head: the fields of the document that stay as they are from the beginning.
    """

    def __init__(self, criterion: Criterion, file: Path, head: dict) -> None:
        self.criterion, self.file, self.head = criterion, file, head
        self.steps: list[Step] = []

    def add(self, step: Step) -> None:
        self.steps.append(step)
        self.write("running")

    def decide(self, decision: str, accepted: bool) -> None:
        """What follows from the last step."""
        self.steps[-1].decision, self.steps[-1].accepted = decision, accepted
        self.write("running")

    @property
    def tried(self) -> list[Tried]:
        """The plans that were measured on the searching half, or looked up, in this order."""
        return [step.tried for step in self.steps if step.tried and step.kind in ("measured", "looked up")]

    @property
    def rivals(self) -> list[Rival]:
        return [step.rival for step in self.steps if step.rival]

    @property
    def evaluations(self) -> int:
        """How many plans were measured on the searching half."""
        return sum(step.kind == "measured" for step in self.steps)

    @property
    def steps_back(self) -> int:
        """How many plans the verdict gave up for a larger one."""
        return max(sum(step.kind == "judged" for step in self.steps) - 1, 0)

    @property
    def seconds(self) -> float:
        """What measuring took, in this run or in the ones before it."""
        fresh = (step.point for step in self.steps if step.point and step.kind != "looked up")
        return sum(point.seconds["measure"] for point in fresh)

    def write(self, state: str, found: dict | None = None) -> dict:
        """Writes the document and returns it; `found`: what the verdict adds to it in the end."""
        rows = [step.row(number, self.criterion) for number, step in enumerate(self.steps, 1)]
        document = self.head | {
            "state": state,
            "evaluations": self.evaluations,
            "tried": self._tried_rows(),
            "rivals": [rival.row(self.criterion.quality) for rival in self.rivals],
            "log": rows,
        }
        if found is not None:
            document |= found | {"seconds": round(self.seconds, 3)}
        keep_json(self.file, document)
        return document

    def _tried_rows(self) -> list[dict]:
        """A row for each time that a plan was measured, looked up or judged; `accepted` as it was decided last."""
        of_plans = [(step, step.tried) for step in self.steps if step.tried]
        accepted = {tried.point.id: step.accepted for step, tried in of_plans}
        return [
            {
                "id": tried.point.id,
                "label": step.label(self.criterion),
                "bytes_kept": self.criterion.size(tried.point),
                "predicted": tried.predicted,
                **self.criterion.measured(tried.point),
                "accepted": accepted[tried.point.id],
                "text": "verdict" if step.kind == "judged" else "search",
            }
            for step, tried in of_plans
        ]
