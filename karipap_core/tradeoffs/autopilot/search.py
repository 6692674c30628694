"""A quality line or a size → the plan: screened by prediction, then measured step by step until it holds.

The line is met by the upper end of the 95 % interval, not by the mean. The search looks at one half of the documents;
what is said in the end comes from the other half, which no decision but a step back was made on. Every plan tried is a
point of the trade-off (`tradeoff.Points`). All decisions follow from measured points and from a calibration that is
frozen when the search begins, so a search that was killed goes on by the same command to the same end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.calibration import Calibration, Fit, group_of
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import DENSE, Plan, model_entry
from karipap_core.plan.planner import Planner
from karipap_core.progress import Progress, silent
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.text import Text
from karipap_core.tradeoffs.baselines import QUANTIZED, integers, plan_sizes, sizes, svd_baselines
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.sweep import MAX_TOKENS, every, study_and_text
from karipap_core.workspace.files import read_json, settings_key, write_json

FORMAT, VERSION = "karipap-autopilot", 1
MAX_EVALUATIONS = 12
CONTESTANTS = 3  # networks that are measured before one is chosen
FAR = 1.25  # a network predicted that much larger than the best is not measured
NEAR = 0.01  # sizes that close, relative, are near enough: batches of weights take it from there
WIDE = 0.05  # relative: with sizes that far apart no evaluation is kept back for the batches
STRAIGHT = 10.0  # times the line, or parts of it, between which ln rise runs straight enough over size
FILLED = 0.93  # of the line: a plan this close below it is near enough too
BATCH_EVALUATIONS = 4  # kept back for the batches
DEEPER = 3.0  # batches lead towards the plan that is predicted to lose this many times more
BACK = 3  # steps back after the verdict, at most
INSIDE = 0.97  # of the line: what a step back aims at
ENDS_FROM = 4  # blocks a model must have before its ends are tried apart
ENDS_WORTH = 1.5  # times the predicted rise at which dense ends are not worth a measurement
SAME_SIZE = 0.002  # of the model: a rival may be that much larger and is still at equal bytes
EQUAL = 0.02  # of the model: how much larger a uniform plan may be for want of one between
THOUSAND = 1000  # sizes are asked for in thousandths


@dataclass
class Trail:
    """The calibrated plans of one network, one for each size, with `ends` blocks at each end kept dense."""

    planner: Planner
    ends: int
    scope: str
    curve: Calibration
    rises: dict[int, float] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)

    @property
    def name(self) -> str:
        dense = f", first and last {self.ends if self.ends > 1 else 'block'} dense" if self.ends else ""
        choice = self.planner.choice
        return f"{choice.network}{f' in {choice.quantize}' if choice.quantize else ''}{dense}"

    def allocated(self, size: int) -> dict[str, dict]:
        limit, unit = Budget(size / THOUSAND, scope=self.scope).limit(self.planner.checkpoint, self.planner.tables)
        return self.planner._allocated("calibrated", limit, unit)

    def predicted(self, size: int) -> float:
        """The predicted rise at this size (thousandths), infinite where the network cannot be so small."""
        if size not in self.rises:
            try:
                self.rises[size] = self.foretold(self.allocated(size))["rise"]
            except InputError:
                self.rises[size] = math.inf
        return self.rises[size]

    def foretold(self, weights: dict[str, dict]) -> dict:
        """A plan's `predicted` fields for these weights, from the frozen calibration."""
        formats = any(entry.get("quantize") for entry in weights.values())
        group = group_of({entry["network"] for entry in weights.values()}, formats, bool(self.planner.tables))
        if group not in self.fits:
            self.fits[group] = self.curve.fit(group)
        return self.fits[group].predicted(self.planner.damage_sum(weights))

    def size_for(self, rise: float) -> int | None:
        """The smallest size that is predicted to lose no more than `rise`, None where even the largest does."""
        low, high = 0, THOUSAND
        if self.predicted(high) > rise:
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.predicted(middle) <= rise else (middle, high)
        return high

    def plan(self, size: int, rule: str = "calibrated", weights: dict[str, dict] | None = None) -> Plan:
        """The plan at a size, or one of these weights by another rule, its prediction from the frozen curve."""
        plan = self.planner.plan(weights or self.allocated(size), rule, Budget(size / THOUSAND, scope=self.scope))
        plan.predicted |= self.foretold(plan.weights)
        if rule == "hand":
            plan.chosen_rule = "autopilot"
        return plan


@dataclass(frozen=True)
class Tried:
    """A measured plan: its point, what it was predicted to lose, and its size in thousandths as it was asked for."""

    plan: Plan
    point: dict
    trail: Trail
    asked: int
    predicted: float


def autopilot(
    model,
    max_rise: float | None = None,
    budget: float | None = None,
    networks: Sequence[str] = ("lowrank",),
    out: str | Path | None = None,
    text: str | Path | Text | None = None,
    calibration: str | Path | Text | None = None,
    quantize: str | None = None,
    embedding: str = "dense",
    scope: str = "model",
    keep_ends: int | str = "auto",
    max_evaluations: int = MAX_EVALUATIONS,
    max_tokens: int | None = MAX_TOKENS,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict:
    """The plan with the fewest bytes that meets a line, or with the least rise at a size.

    model: folder, file, hub id, or a Study. max_rise: nats a token of rise in loss over the dense model (for an encoder
    the relative squared error of its outputs); or budget: fraction of the bytes of `scope` (`model`, or `blocks`), 16
    bits for every number that is not quantized, as on the trade-off. networks: as for a sweep; quantize and embedding
    as in `Planner`. text: held out, dealt by documents to search and verdict (default: the standard library's held-out
    modules); calibration as in `sweep`. keep_ends: blocks at each end that stay dense, or `auto`: measured. A search
    measures at most `max_evaluations` plans, the verdict the plan again, up to 3 steps back, and its rivals. out: a
    folder for points, plan.json and autopilot.json (default: the workspace, and a folder of its own in it).

    Returns, and writes after each step to autopilot.json, {"plan", "bytes_kept", "rise", "rise_low", "rise_high",
    "met", "outside_uncertainty", "tried": [...], "rivals": [...], "verdict": [sentences], "log": [{"step", "did",
    "why", "predicted", "measured", "bytes_kept", "decision", "says"}], "line", "evaluations", "seconds", …}. Raises
    InputError for what does not fit.
    """
    if (max_rise is None) == (budget is None):
        raise InputError("Give one aim: a line (--max-rise or --max-perplexity) or a size (--budget-bytes).")
    if max_rise is not None and not 0 < max_rise < math.inf:
        raise InputError(f"A line of {max_rise} cannot be met or missed: give a rise above 0, such as 0.03.")
    if max_evaluations < 1:
        raise InputError(f"max_evaluations is {max_evaluations}: give at least 1.")
    study, text = study_and_text(model, text, calibration, device, progress)
    cut = {"window": window, "stride": stride, "max_tokens": max_tokens}
    asked = {"networks": every(networks), "quantize": quantize, "embedding": embedding, "scope": scope}
    asked |= {"keep_ends": keep_ends, "max_evaluations": max_evaluations, **cut}
    aim = {"max_rise": max_rise} if max_rise is not None else {"budget": budget}
    identity = {"study": study.key, "fingerprint": study.checkpoint.fingerprint, "sha256": text.sha256, "version": 1}
    key = settings_key(asked | aim | identity)
    home = Path(out) if out is not None else study.workspace.root / "autopilot" / key
    known = read_json(home / "autopilot.json") if (home / "autopilot.json").is_file() else {}
    if known.get("key") == key and known.get("state") == "done":
        return known
    points_in = Path(out) if out is not None else study.workspace.root
    return Search(study, text, aim, asked, cut, key, home, points_in, progress).run()


def halves(text: Text) -> tuple[Text, Text]:
    """(to search on, for the verdict): whole documents, dealt so that both sides are about as long. A document that is
    longer than all others together is cut in two."""
    documents = list(text.documents)
    largest = max(range(len(documents)), key=lambda index: len(documents[index]))
    if 2 * len(documents[largest]) > sum(map(len, documents)):
        whole = documents[largest]
        documents[largest : largest + 1] = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
    sides: tuple[list[int], list[int]] = ([], [])
    for index in sorted(range(len(documents)), key=lambda index: (-len(documents[index]), index)):
        min(sides, key=lambda side: sum(len(documents[each]) for each in side)).append(index)
    first, second = (tuple(documents[index] for index in sorted(side)) for side in sides)
    return (
        Text(f"{text.name}, half to search on", first, text.path),
        Text(f"{text.name}, half for the verdict", second, text.path),
    )


class Search:
    """One run of the autopilot; see `autopilot`."""

    def __init__(self, study, text, aim, asked, cut, key, home: Path, points_in: Path, progress) -> None:
        self.study, self.aim, self.asked, self.key, self.home, self.progress = study, aim, asked, key, home, progress
        self.checkpoint, self.line = study.checkpoint, aim.get("max_rise")
        self.causal = self.checkpoint.kind == "causal"
        self.quality = "rise" if self.causal else "relative_error"
        self.size_key = "bytes_kept" if asked["scope"] == "model" else "bytes_kept_blocks"
        self.texts = halves(text)
        self.searching, self.judging = (
            Points(study, each, points_in, cut["window"], cut["stride"], cut["max_tokens"], progress)
            for each in self.texts
        )
        self.log, self.tried, self.rivals, self.evaluations = [], [], [], 0
        self.spent, self.backs = 0.0, 0
        self.curve = self._frozen_calibration()

    def _frozen_calibration(self) -> Calibration:
        """What plans were predicted from when this search began: predictions learn from every point that is measured,
        and a search that goes on must decide as it did before."""
        file = self.home / "calibration.json"
        kept = read_json(file) if file.is_file() else {}
        if kept.get("key") != self.key:
            kept = {"key": self.key, "calibration": self.study.calibration("loss").to_json()}
            write_json(file, kept)
        return Calibration.from_json(kept["calibration"])

    def run(self) -> dict:
        self._write("running")
        found = self._meet_line() if self.line is not None else self._fill_budget()
        self.searching.__dict__.pop("bench", None)  # its logits of the dense model make room for the verdict's
        return self._verdict(found)

    # The steps of a search.

    def _meet_line(self) -> Tried:
        trails = self._screen()
        best = self._contest(trails)
        best = self._ends(best)
        best = self._close_in(best)
        return self._batches(self._refined(best)) if self._holds(best) else best

    def _fill_budget(self) -> Tried:
        """The networks that are predicted best at the size, then dense ends, then the refined rule: whichever is
        measured to lose least."""
        size = math.floor(self.aim["budget"] * THOUSAND + 1e-9)
        trails, rows = [], []
        for network in self.asked["networks"]:
            trail = self._trail(network, self._fixed_ends())
            rise = trail.predicted(size) if size else math.inf
            rows.append(f"{trail.name} {_figure(rise)}" if rise < math.inf else f"{trail.name} cannot be so small")
            if rise < math.inf:
                trails.append((rise, trail))
        trails = [trail for _, trail in sorted(trails, key=lambda row: row[0])][:CONTESTANTS]
        if not trails:
            raise InputError(
                f"A budget of {self.aim['budget']:g} cannot be met by {', '.join(self.asked['networks'])}."
            )
        self._say(
            "Screened",
            f"Predicted rise at {size / THOUSAND:.1%} of the bytes: {'; '.join(rows)}.",
            f"Measure {', '.join(trail.name for trail in trails)}.",
        )
        best = None
        for trail in trails:
            if (found := self._measure(trail, size, "Among those predicted to lose least at this size.")) is None:
                break
            better = best is None or self._value(found) < self._value(best)
            self._decide("The best so far." if better else f"Loses more than {best.trail.name}.", better)
            best = found if better else best
        best = self._ends(best)
        return self._refined(best)

    def _screen(self) -> list[Trail]:
        """The networks whose predicted size at the line is smallest, smallest first."""
        found, rows = [], []
        for network in self.asked["networks"]:
            trail = self._trail(network, self._fixed_ends())
            size = trail.size_for(self.line)
            rows.append(f"{trail.name} {size / THOUSAND:.1%}" if size else f"{trail.name} does not meet it at any size")
            found.append((size or THOUSAND * 2, trail.predicted(THOUSAND), trail))
        found.sort(key=lambda row: row[:2])
        near = [trail for size, _, trail in found if size <= FAR * found[0][0]][:CONTESTANTS]
        self._say(
            "Screened",
            f"Smallest size that is predicted to meet the line: {'; '.join(rows)}.",
            f"Measure {', '.join(trail.name for trail in near)}."
            + (f" The others are predicted at least {FAR - 1:.0%} larger." if len(near) < len(found) else ""),
        )
        return near

    def _contest(self, trails: list[Trail]) -> Tried:
        """Each at its predicted size, the one that will be smallest by what was measured wins."""
        rows = []
        for trail in trails:
            size = trail.size_for(self.line) or THOUSAND
            why = "Predicted to be at the line." if trail.predicted(size) <= self.line else "The largest there is."
            if (found := self._measure(trail, size, why)) is None:
                break
            corrected = trail.size_for(self.line / self._ratio(found)) or THOUSAND * 2
            rows.append((corrected, self._value(found), len(rows), found))
            expected = f"by that the line is at {corrected / THOUSAND:.1%}" if corrected <= THOUSAND else "out of reach"
            self._decide(f"{self._against(found)}; {expected}.", self._holds(found))
        best = min(rows, key=lambda row: row[:3])[3]
        if len(rows) > 1:
            self._say("Chose a network", "Smallest at the line by what was measured.", f"Go on with {best.trail.name}.")
        return best

    def _ends(self, best: Tried) -> Tried:
        """Whether the first and last blocks dense do better at the same size."""
        layers = self._layers()
        if self.asked["keep_ends"] != "auto":
            return best
        if len(layers) < ENDS_FROM or self.evaluations >= self.asked["max_evaluations"]:
            self._say("Left the ends alone", f"The model has {len(layers)} blocks.", "Every block may be compressed.")
            return best
        trail = self._trail(best.trail.planner.choice.network, 1)
        rise = trail.predicted(best.asked)
        if rise > ENDS_WORTH * best.predicted:
            told = "is not possible" if rise == math.inf else f"is predicted to lose {_figure(rise)}"
            self._say(
                "Left the ends alone",
                f"With the first and last block dense a plan of {best.asked / THOUSAND:.1%} {told}, with none dense "
                f"{_figure(best.predicted)}.",
                "Not worth a measurement: every block may be compressed.",
                predicted=None if rise == math.inf else rise,
            )
            return best
        found = self._measure(trail, best.asked, "Whether the first and last block are worth keeping dense.")
        better = uncertainty.difference(found.point, best.point)
        wins = better.low > 0 if better else self._value(found) < self._value(best)
        told = f"Every block compressed loses {uncertainty.in_words(better)} more." if better else ""
        self._decide(f"{told} {'The ends stay dense.' if wins else 'Every block may be compressed.'}".strip(), wins)
        return found if wins else best

    def _close_in(self, best: Tried) -> Tried:
        """Sizes between the smallest plan that meets the line and the largest that does not, by what was measured."""
        trail = best.trail
        while True:
            mine = [tried for tried in self.tried if tried.trail is trail]
            holds = min((tried for tried in mine if self._holds(tried)), key=lambda tried: tried.asked, default=None)
            fails = max(
                (t for t in mine if not self._holds(t) and (holds is None or t.asked < holds.asked)),
                key=lambda tried: tried.asked,
                default=None,
            )
            if holds and (self._value(holds) >= FILLED * self.line):
                return holds
            wide = holds is None or (fails is not None and holds.asked - fails.asked > WIDE * holds.asked)
            if not wide and self.evaluations >= self.asked["max_evaluations"] - BATCH_EVALUATIONS:
                break
            size = self._next_size(trail, holds, fails)
            if size is None or (found := self._measure(trail, size, self._why(holds, fails))) is None:
                break
            self._decide(self._against(found) + ".", self._holds(found))
        return min(self._holding(trail), key=lambda t: t.asked, default=None) or min(
            (tried for tried in self.tried), key=self._value
        )

    def _next_size(self, trail: Trail, holds: Tried | None, fails: Tried | None) -> int | None:
        """Where the line is expected: between the two by ln rise, linear in size (in the middle where one is far from
        the line); beyond them by the predicted curve and how far it was off. None where they are near enough."""
        if holds and fails:
            gap = holds.asked - fails.asked
            if gap <= max(1, NEAR * holds.asked):
                return None
            above, below = self._value(fails) / self.line, self._value(holds) / self.line
            share = 0.5 if below < 1 / STRAIGHT or above > STRAIGHT else math.log(above) / math.log(above / below)
            at = fails.asked + gap * share
            inside = max(1, gap // 8)
            return min(max(math.ceil(at), fails.asked + inside), holds.asked - inside)
        one = holds or fails
        size = trail.size_for(self.line / self._ratio(one))
        if fails:
            size = max(size or THOUSAND, fails.asked + max(1, (THOUSAND - fails.asked) // 8))
            return size if fails.asked < THOUSAND else None
        size = min(size or THOUSAND, holds.asked)
        return size if holds.asked - size > NEAR * holds.asked and trail.predicted(size) < math.inf else None

    def _why(self, holds: Tried | None, fails: Tried | None) -> str:
        if holds and fails:
            return f"Between {fails.asked / THOUSAND:.1%}, over the line, and {holds.asked / THOUSAND:.1%}, under it."
        ratio = self._ratio(holds or fails)
        return f"The upper end was {ratio:.2f} times what was predicted: corrected by that, the line is here."

    def _batches(self, best: Tried) -> Tried:
        """Batches of weights from the plan found towards a smaller one, those that save most bytes for the damage
        first, the whole plan measured after each. A batch that breaks the line is halved; a weight that does so alone
        stays as it is."""
        trail, planner = best.trail, best.trail.planner
        queue, target, half, spared, led = [], {}, False, set(), None
        while self.evaluations < self.asked["max_evaluations"]:
            if not half:
                queue = [unit for unit in queue if self._fitting(best, [unit], target)]
                if not queue and led is not best and (deep := trail.size_for(DEEPER * best.predicted)):
                    led, target = best, trail.allocated(deep)  # a target is left behind once, then a deeper one leads
                    queue = [u for u in self._units(planner, best.plan.weights, target) if not spared & set(u)]
                    queue = [unit for unit in queue if self._fitting(best, [unit], target)]
                if not queue:
                    self._say(
                        "Stopped", "No other weight is predicted to stay under the line if made smaller.", "Done."
                    )
                    break
                count = self._fitting(best, queue, target)
            batch = queue[:count]
            weights = best.plan.weights | {name: target[name] for unit in batch for name in unit}
            ledger = Plan(model_entry(self.checkpoint), "loss", weights).ledger(self.checkpoint)
            size = math.ceil(plan_sizes(self.checkpoint, ledger)[self.size_key] * THOUSAND)
            what = f"{batch[0][0]}" + (f" and {len(sum(batch, ())) - 1} more" if len(sum(batch, ())) > 1 else "")
            why = (
                f"{'Half of that batch' if half else 'The next batch'}, most bytes saved for the damage first: {what}."
            )
            order = {name: weights[name] for name in best.plan.weights}
            if (found := self._measure(trail, size, why, "hand", order)) is None:
                break
            if self._holds(found):
                self._decide(f"{self._against(found)}; the batch stays.", True)
                best, queue, half = found, queue[count:], False
            elif count > 1:
                self._decide(f"{self._against(found)}; the batch is halved.", False)
                queue, count, half = queue[: count // 2] + queue[count:] + queue[count // 2 : count], count // 2, True
            else:
                self._decide(f"{self._against(found)}; {what} stays as it was.", False)
                queue, half = queue[1:], False
                spared |= set(batch[0])
        return best

    def _units(self, planner: Planner, now: dict, then: dict) -> list[tuple[str, ...]]:
        """The weights that `then` makes smaller, by damage per number saved; those that share cores together."""
        units = {}
        for name in now:
            members = set(now[name].get("members") or (name,)) | set(then[name].get("members") or (name,))
            for member in list(members):
                members |= set(units.get(member, ()))
            for member in members:
                units[member] = tuple(each for each in now if each in members)
        rows = []
        for unit in dict.fromkeys(units.values()):
            saved = sum(planner._entry_cost(name, now[name], "parameters") for name in unit)
            saved -= sum(planner._entry_cost(name, then[name], "parameters") for name in unit)
            if saved > 0:
                lost = planner.damage_sum({name: then[name] for name in unit})
                lost -= planner.damage_sum({name: now[name] for name in unit})
                rows.append((lost / saved, unit))
        return [unit for _, unit in sorted(rows)]

    def _fitting(self, best: Tried, queue: list, target: dict) -> int:
        """So many units of the queue as are predicted to stay under the line."""
        ratio, weights = self._ratio(best), dict(best.plan.weights)
        for count, unit in enumerate(queue):
            weights |= {name: target[name] for name in unit}
            if ratio * best.trail.foretold(weights)["rise"] > self.line:
                return count
        return len(queue)

    def _refined(self, best: Tried) -> Tried:
        """The rule that measures weights at the plan itself, at the same size and with the same ends."""
        if self.evaluations >= self.asked["max_evaluations"]:
            return best
        file = self.home / "plans" / f"refined-{self.key}.json"
        if file.is_file():
            weights = Plan.load(file).weights
        else:
            budget = Budget(best.asked / THOUSAND, scope=self.asked["scope"])
            plan = best.trail.planner.make(budget, "refined", self.progress)
            plan.save(file)
            weights = plan.weights
        found = self._measure(best.trail, best.asked, "Each weight measured at the plan itself.", "refined", weights)
        wins = self._value(found) < self._value(best)
        self._decide("Loses less: taken." if wins else "Loses no less: the calibrated plan stays.", wins)
        return found if wins else best

    # The verdict.

    def _verdict(self, found: Tried) -> dict:
        final = self._judge(found, "On the half of the text that no decision was made on.")
        for _ in range(BACK):
            if self.line is None or self._holds(final):
                break
            size = max(found.trail.size_for(INSIDE * self.line / self._ratio(final)) or 0, final.asked + 2)
            if size > THOUSAND:
                break
            self._decide("Its upper end is over the line: one step back to a larger plan.", False)
            self.backs += 1
            plan = found.trail.plan(size)
            step = Tried(plan, found.point, found.trail, size, plan.predicted["rise"])
            final = self._judge(step, "By what this half of the text showed, the line is here.")
        self._decide(self._against(final) + "." if self.line else "The plan.", self.line is None or self._holds(final))
        self._rivals(final)
        return self._write("done", final)

    def _judge(self, found: Tried, why: str) -> Tried:
        self.progress("verdict", 0, 1, found.trail.name)
        point = self.judging.of_plan(found.plan, found.trail.planner.choice.network)
        self.spent += point["seconds"]["measure"]
        judged = Tried(found.plan, point, found.trail, found.asked, found.predicted)
        self._say(f"Judged {self._named(judged)}", why, "", judged)
        return judged

    def _rivals(self, final: Tried) -> None:
        """A uniform plan of the same network and format, SVD-LLM's, and plain integers, in the same bytes."""
        size, planner = final.point[self.size_key], final.trail.planner
        same = "lowrank" if planner.choice.network == "auto" else planner.choice.network
        todo = []
        uniform = Planner(self.study, planner.choice.alone(same), "loss")
        if (plan := self._uniform(uniform, size)) is not None:
            todo.append((f"uniform, {same}", lambda plan=plan: self.judging.of_plan(plan, same)))
        if (plan := self._uniform(Planner(self.study, "lowrank", "functional"), size)) is not None:
            for each in svd_baselines(self.study, "svd-llm", "functional", plan.budget, self.asked["scope"]):
                todo.append((each.label, lambda each=each: self.judging.of_baseline(each)))
        for bits, group in self._formats(size):
            each = integers(self.study, "gptq" if bits < 8 else "rtn", bits, group)
            todo.append((each.label, lambda each=each: self.judging.of_baseline(each)))
        for number, (label, measure) in enumerate(todo):
            self.progress("rivals", number, len(todo), label)
            point = measure()
            self.spent += point["seconds"]["measure"]
            between = uncertainty.difference(final.point, point)
            row = {"label": label if label.startswith("uniform") else point["label"], "method": point["method"]}
            row |= {key: point.get(key) for key in ("id", "bytes_kept", "bytes_kept_blocks", "rise_low", "rise_high")}
            row |= {"rise": point[self.quality]}
            row["difference"] = between and {"mean": between.mean, "low": between.low, "high": between.high}
            self.rivals.append(row)
            self._say(
                f"Measured a rival: {row['label']}",
                f"At {row[self.size_key]:.1%} of the bytes.",
                self._beside(final.point, row),
                measured=_measured(point, self.quality),
                kept=row[self.size_key],
            )

    def _uniform(self, planner: Planner, size: float) -> Plan | None:
        """The uniform plan of a size or just above it; where bond dimensions are too coarse for that, the nearest."""
        found = []
        for more in range(int(THOUSAND * EQUAL)):
            budget = Budget(min(1.0, round(size + more / THOUSAND, 4)), scope=self.asked["scope"])
            try:
                limit, unit = budget.limit(self.checkpoint, planner.tables)
                weights = planner._allocated("uniform", limit, unit)
            except InputError:
                continue
            plan = Plan(
                model_entry(self.checkpoint),
                planner.metric,
                weights,
                "uniform",
                self.asked["scope"],
                budget.kept,
                calibration=self.study.calibration_entry(),
                embedding={"kind": planner.choice.embedding, "tied": "contract"} if planner.tables else None,
            )
            found.append((plan_sizes(self.checkpoint, plan.ledger(self.checkpoint))[self.size_key] - size, plan))
            if found[-1][0] >= 0 or budget.kept == 1:
                break
        near = next((plan for gap, plan in found if 0 <= gap <= EQUAL), None)
        return near or min(found, key=lambda row: abs(row[0]), default=(0, None))[1]

    def _formats(self, size: float) -> list[tuple[int, int | None]]:
        """The two formats of plain integers that are largest without being larger than a size; the smallest there is
        where all are."""
        from karipap_core.quantization.formats import Format

        blocks = [weight for weight in self.checkpoint.weights if weight.compressible]
        rows = []
        for bits, group in QUANTIZED:
            form = Format.parse(f"int{bits}g{group}" if group else f"int{bits}")
            n_bytes = sum(form.bytes(*weight.shape) for weight in blocks)
            kept = sizes(self.checkpoint, n_bytes, self.checkpoint.block_parameters)[self.size_key]
            rows.append((kept, (bits, group)))
        below = sorted(row for row in rows if row[0] <= size + SAME_SIZE)[-2:]
        return [form for _, form in below] or [min(rows)[1]]

    # What a point says.

    def _value(self, tried: Tried) -> float:
        """What is held against the line: the upper end of the interval, or where there is none the figure itself. At a
        size the figure itself counts."""
        interval = uncertainty.rise_of(tried.point) if self.line is not None else None
        return interval.high if interval else tried.point[self.quality]

    def _holds(self, tried: Tried) -> bool:
        return self.line is None or self._value(tried) <= self.line

    def _holding(self, trail: Trail) -> list[Tried]:
        return [tried for tried in self.tried if tried.trail is trail and self._holds(tried)]

    def _ratio(self, tried: Tried) -> float:
        """How many times the prediction was exceeded, at least 0.2: a rise below that is noise."""
        return max(self._value(tried) / max(tried.predicted, 1e-9), 0.2)

    def _against(self, tried: Tried) -> str:
        return f"{'Under' if self._holds(tried) else 'Over'} the line of {_figure(self.line)}"

    def _beside(self, ours: dict, row: dict) -> str:
        between = row["difference"]
        if between is None:
            gap = row["rise"] - ours[self.quality]
            return f"It loses {abs(gap):.4f} {'more' if gap > 0 else 'less'}; no interval."
        span = f"{abs(between['mean']):.4f} (95 % interval of the difference {between['low']:+.4f} to "
        span += f"{between['high']:+.4f})"
        if between["low"] <= 0 <= between["high"]:
            return f"No measurable difference: {span}."
        return f"It loses {'more' if between['mean'] > 0 else 'less'}, by {span}."

    # Plans, measured.

    def _layers(self) -> list[int]:
        return sorted({weight.layer for weight in self.study.weights if weight.layer is not None})

    def _fixed_ends(self) -> int:
        return 0 if self.asked["keep_ends"] == "auto" else self.asked["keep_ends"]

    def _trail(self, network: str, ends: int) -> Trail:
        layers = self._layers()
        if ends and 2 * ends >= len(layers):
            raise InputError(f"--keep-ends {ends}: {self.checkpoint.name} has {len(layers)} blocks, so none is left.")
        kept = {*layers[:ends], *layers[len(layers) - ends :]} if ends else set()
        locks = {weight.name: dict(DENSE) for weight in self.study.weights if weight.layer in kept}
        choice = Choice(network, self.asked["quantize"], self.asked["embedding"])
        planner = Planner(self.study, choice, "loss", locks, self.progress)
        return Trail(planner, ends, self.asked["scope"], self.curve)

    def _measure(
        self, trail: Trail, size: int, why: str, rule: str = "calibrated", weights: dict | None = None
    ) -> Tried | None:
        """A plan on the searching half, in the log; None where all evaluations are used."""
        limit = self.asked["max_evaluations"]
        plan = trail.plan(size, rule, weights)
        if known := next((tried for tried in self.tried if tried.plan.weights == plan.weights), None):
            tried = replace(known, trail=trail, asked=size)
            self.tried.append(tried)
            self._say(f"Looked up {self._named(tried)}", f"{why} The same plan was measured before.", "", tried)
            return tried
        if self.evaluations >= limit:
            self._say("Stopped", f"All {limit} evaluations are used (--max-evaluations).", "The best plan so far.")
            return None
        self.progress("search", self.evaluations, limit, f"{trail.name} at {size / THOUSAND:.1%}")
        point = self.searching.of_plan(plan, trail.planner.choice.network)
        self.spent += point["seconds"]["measure"]
        self.evaluations += 1
        tried = Tried(plan, point, trail, size, plan.predicted["rise"])
        self.tried.append(tried)
        self._say(f"Measured {self._named(tried)}", why, "", tried)
        return tried

    def _named(self, tried: Tried) -> str:
        return f"{tried.trail.name} at {tried.point[self.size_key]:.1%} of the bytes"

    # The log.

    def _say(
        self,
        did: str,
        why: str,
        decision: str,
        tried: Tried | None = None,
        predicted: float | None = None,
        measured: dict | None = None,
        kept: float | None = None,
    ) -> None:
        """One step of the log, kept on disk at once."""
        self.log.append(
            {
                "step": len(self.log) + 1,
                "did": did,
                "why": why,
                "id": tried and tried.point["id"],
                "predicted": tried.predicted if tried else predicted,
                "measured": _measured(tried.point, self.quality) if tried else measured,
                "bytes_kept": tried.point[self.size_key] if tried else kept,
                "decision": decision,
                "accepted": None,
            }
        )
        self._retell()

    def _decide(self, decision: str, accepted: bool) -> None:
        """What follows from the step said last."""
        self.log[-1] |= {"decision": decision, "accepted": accepted}
        self._retell()

    def _retell(self) -> None:
        step = self.log[-1]
        told = [f"{step['did']}.", step["why"]]
        if found := step["measured"]:
            was = f", predicted {_figure(step['predicted'])}" if step["predicted"] is not None else ""
            span = f" (95 % interval {found['low']:+.4f} to {found['high']:+.4f})" if found["low"] is not None else ""
            told.append(f"{'Rise' if self.causal else 'Output error'} {found['rise']:+.4f}{span}{was}.")
        step["says"] = " ".join(filter(None, [*told, step["decision"]]))
        self._write("running")

    def _write(self, state: str, final: Tried | None = None) -> dict:
        document = {
            "format": FORMAT,
            "version": VERSION,
            "key": self.key,
            "state": state,
            "model": model_entry(self.checkpoint),
            "line": self._line_entry(),
            "settings": self.asked,
            "quality": self.quality,
            "criterion": self._criterion(),
            "texts": {
                role: {"name": text.name, "sha256": text.sha256, "documents": len(text.documents)}
                for role, text in zip(("search", "verdict", "calibration"), (*self.texts, self.study.text), strict=True)
            },
            "evaluations": self.evaluations,
            "tried": self._tried_rows(),
            "rivals": self.rivals,
            "log": self.log,
        }
        if final is not None:
            document |= self._found(final)
            document["seconds"] = round(self.spent, 3)
            final.plan.save(self.home / "plan.json")
        write_json(self.home / "autopilot.json", document)
        return document

    def _tried_rows(self) -> list[dict]:
        decided = {step["id"]: step["accepted"] for step in self.log if step["id"]}
        rows = []
        for step in self.log:
            if step["id"]:
                rows.append(
                    {
                        "id": step["id"],
                        "label": step["did"].split(" ", 1)[1],
                        "bytes_kept": step["bytes_kept"],
                        "predicted": step["predicted"],
                        **step["measured"],
                        "accepted": decided[step["id"]],
                        "text": "verdict" if step["did"].startswith("Judged") else "search",
                    }
                )
        return rows

    def _line_entry(self) -> dict:
        if self.line is None:
            return {"bytes_kept": self.aim["budget"], "scope": self.asked["scope"]}
        more = {"max_perplexity": math.expm1(self.line)} if self.causal else {}
        return {"max_rise": self.line, **more, "of": "loss, nats a token" if self.causal else "relative output error"}

    def _criterion(self) -> str:
        if self.line is None:
            return "Least measured rise at the size." if self.causal else "Least measured output error at the size."
        if self.causal:
            return "The upper end of the 95 % interval of the rise in loss (nats a token) is at or under the line."
        return "The relative output error is at or under the line; an encoder's has no interval."

    def _found(self, final: Tried) -> dict:
        point = final.point
        interval = uncertainty.rise_of(point)
        value = point[self.quality]
        size = point[self.size_key]
        met = value <= self.line if self.line is not None else size <= self.aim["budget"] + 1e-9
        found = {"plan": final.plan.to_json(), "plan_file": str(self.home / "plan.json"), "id": point["id"]}
        found |= {key: point[key] for key in ("bytes_kept", "bytes_kept_blocks", "kept", "kept_blocks")}
        found |= {"network": final.trail.planner.choice.network, "keep_ends": final.trail.ends, "rise": value}
        found |= {"rise_low": interval and interval.low, "rise_high": interval and interval.high}
        if self.causal:
            found |= {"perplexity": point["perplexity"], "perplexity_rise": math.expm1(point["rise"])}
        found |= {"met": met, "outside_uncertainty": self._holds(final) if interval and self.line else None}
        return found | {"verdict": self._sentences(final, met)}

    def _sentences(self, final: Tried, met: bool) -> list[str]:
        """The verdict in words: what is better than the plan comes first."""
        point, said = final.point, []
        size, value = point[self.size_key], point[self.quality]
        for row in self.rivals:
            if row["method"] in ("gptq", "rtn") and self._is_better(row, point):
                how = "smaller" if row[self.size_key] < size - SAME_SIZE else "as small"
                how += " and meets the line too" if self._under(row) else ""
                said.append(
                    f"Plain quantization does better here: {row['label']} is {how}, with {row[self.size_key]:.1%} of "
                    f"the bytes and a {self._word()} of {row['rise']:+.4f}. {self._beside(point, row)}"
                )
        span = ""
        if (interval := uncertainty.rise_of(point)) is not None:
            span = f" (95 % interval {interval.low:+.4f} to {interval.high:+.4f})"
        figure = f"{self._word()} {value:+.4f}{span}" + (
            f", perplexity {math.expm1(value):+.1%}" if self.causal else ""
        )
        kept = f"{size:.1%} of the bytes{' of the blocks' if self.asked['scope'] == 'blocks' else ''}"
        if self.line is None:
            said.append(f"At {kept} the best plan measured is {final.trail.name}: {figure}.")
        else:
            sure = (
                ""
                if interval is None
                else ", outside the uncertainty"
                if self._holds(final)
                else (", but only inside the uncertainty: the interval reaches over it")
            )
            verb = f"is met{sure}" if met else "is not met"
            said.append(f"The line of {_figure(self.line)} {verb}: {final.trail.name} keeps {kept}, {figure}.")
        for row in self.rivals:
            if row["method"] not in ("gptq", "rtn"):
                said.append(
                    f"{row['label']} at {row[self.size_key]:.1%}: {self._word()} {row['rise']:+.4f}. "
                    f"{self._beside(point, row)}"
                )
        searched = next((t for t in self.tried if t.plan.weights == final.plan.weights), None)
        if searched is not None:
            said.append(
                f"The search saw {searched.point[self.quality]:+.4f} for this plan on its own half of the text."
            )
        if self.backs:
            said.append(
                f"{self.backs} smaller {'plan was' if self.backs == 1 else 'plans were'} given up on the verdict's own "
                "text, so it was looked at more than once."
            )
        return said

    def _word(self) -> str:
        return "rise in loss" if self.causal else "output error"

    def _is_better(self, row: dict, ours: dict) -> bool:
        """A rival that is no larger and loses measurably less, or is smaller and loses not measurably more or meets the
        line too."""
        size, other, between = ours[self.size_key], row[self.size_key], row["difference"]
        if other > size + SAME_SIZE:
            return False
        if between["high"] < 0 if between else row["rise"] < ours[self.quality]:
            return True
        return other < size - SAME_SIZE and (self._under(row) or (between is not None and between["low"] <= 0))

    def _under(self, row: dict) -> bool:
        upper = row["rise_high"] if row["rise_high"] is not None else row["rise"]
        return self.line is not None and upper <= self.line


def _measured(point: dict, quality: str) -> dict:
    interval = uncertainty.rise_of(point)
    return {"rise": point[quality], "low": interval and interval.low, "high": interval and interval.high}


def _figure(rise: float) -> str:
    return f"{rise:.4f}" if rise >= 1e-4 or rise == 0 else f"{rise:.1e}"
