"""What stands above the story, as functions that return values: a trade-off, the autopilot, healing.

The core's own functions of these names return JSON documents, which programs pass on; these are for people.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan
from karipap_core.plan.kind import PREFIXES, ROUNDINGS
from karipap_core.plan.study import Measure
from karipap_core.progress import Progress, silent
from karipap_core.story import Folder, Model
from karipap_core.terminal import value
from karipap_core.text import Text
from karipap_core.values import Compressed, Value, html_table


@dataclass(frozen=True, repr=False)
class Tradeoff(Value):
    """Plans and baselines of one model as measured points of size and quality, and their Pareto front.

    A point is a dictionary as in its run.json: id, label, kind (network or baseline), settings, bytes_kept (16 bits for
    each number that is not quantized, over the same of the dense model), kept, loss, rise, kl, plan and more. Sizes are
    counted, quality is measured; what a plan predicted is under `predicted`. `karipap_core.figures.tradeoff` draws the
    points.
    """

    @property
    def points(self) -> list[dict[str, Any]]:
        """All points, smallest first."""
        return sorted([*self.document["runs"], *self.document["baselines"]], key=lambda point: point["bytes_kept"])

    @property
    def pareto(self) -> list[dict[str, Any]]:
        """The points that no other beats in both bytes and quality, smallest first."""
        front = set(self.document["pareto"])
        return [point for point in self.points if point["id"] in front]

    @property
    def quality(self) -> str:
        """What quality is here: loss (nats a token), or relative_error of an encoder's outputs."""
        return self.document["quality"]

    @property
    def notes(self) -> list[str]:
        return self.document["notes"]

    def __repr__(self) -> str:
        return (
            f"<Tradeoff of {self.document['model']['name']}: {len(self.document['runs'])} plans and "
            f"{len(self.document['baselines'])} baselines measured on {self.document['text']['name']}, "
            f"{len(self.pareto)} of them on the Pareto front>"
        )

    def _repr_html_(self) -> str:
        front = set(self.document["pareto"])
        head = ("on the front", "what", "bytes kept", "parameters kept", f"{self.quality}, measured", "rise, measured")
        keys = ("label", "bytes_kept", "kept", self.quality, "rise")
        rows = (["*" if point["id"] in front else "", *(point.get(key) for key in keys)] for point in self.points)
        return html_table(" ".join([f"{repr(self)[1:-1]}.", *self.notes]), head, rows)


def tradeoff(  # noqa: PLR0913 (what a person types; inside they are one Choice and one Scoring)
    model: Model,
    networks: Sequence[str] = ("lowrank",),
    budgets: Sequence[float] | Literal["auto"] = "auto",
    rules: Sequence[str] = ("best",),
    out: str | Path | None = None,
    text: str | Path | Text | None = None,
    calibration: str | Path | Text | None = None,
    metric: str = "loss",
    scope: str = "model",
    quantize: str | None = None,
    embedding: str = "dense",
    structure: str | None = None,
    baselines: bool = True,
    max_tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
    measure: Measure = "gradients",
    rounding: str = ROUNDINGS[0],
    prefix: str = PREFIXES[0],
) -> Tradeoff:
    """Networks × budgets × rules → plans → measured points, beside the baselines at the same budgets.

    networks : names as for `make_plan`; "all" stands for each alone and their mix.
    budgets : fractions of the parameters to keep (of the model, or with scope="blocks" of the weights that can be
        compressed), or "auto": around where this model's predicted curve bends.
    text : what is measured on (default: the standard library's held-out modules), never what is calibrated on.
    calibration : what plans are calibrated on (default: a quarter of `text`, which is then not measured on; without
        `text` the standard library's calibration modules).
    baselines : measure plain SVD, quantization and what else is installed too.
    out : a folder for the points (default: the workspace); the same call goes on where it stopped.

    Everything else as for `make_plan` and `evaluate`. Raises InputError where no budget can be met.
    """
    from karipap_core.tradeoffs.sweep import MAX_TOKENS, Grid, study_and_text, sweep

    study, text = study_and_text(model, text, calibration, device, progress, measure, rounding)
    choices = [Choice(network, quantize, embedding, structure) for network in networks]
    grid = Grid(budgets, rules, metric, scope, baselines, prefix)
    scoring = Scoring(window, stride, MAX_TOKENS if max_tokens is None else max_tokens)
    return Tradeoff(sweep(study, text, choices, grid, scoring, out=out, progress=progress))


@dataclass(frozen=True, repr=False)
class AutopilotResult(Value):
    """What the autopilot found: the plan, its size (counted) and its rise (measured on text that decided nothing)."""

    @property
    def plan(self) -> Plan:
        return Plan.from_json(self.document["plan"])

    @property
    def met(self) -> bool | None:
        """Whether the upper end of the 95 % interval of the rise meets the line; None where a size was asked for."""
        return self.document["met"]

    @property
    def bytes_kept(self) -> float:
        """Bytes of the model under the plan / of the dense one, 16 bits for each number that is not quantized."""
        return self.document["bytes_kept"]

    @property
    def rise(self) -> float:
        """Rise in loss over the dense model, nats a token (of an encoder: relative squared error of its outputs)."""
        return self.document["rise"]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of `rise`."""
        low, high = self.document["rise_low"], self.document["rise_high"]
        return None if low is None or high is None else (low, high)

    @property
    def verdict(self) -> list[str]:
        """What was found, in sentences."""
        return self.document["verdict"]

    def rows(self) -> list[dict[str, Any]]:
        """One row a plan that was measured: label, text, bytes_kept, predicted, rise, low, high, accepted."""
        return self.document["tried"]

    def __repr__(self) -> str:
        return f"<AutopilotResult for {self.document['model']['name']}: {' '.join(self.verdict)}>"

    def _repr_html_(self) -> str:
        head = ("plan", "on", "bytes kept", "rise, predicted", "rise, measured", "low", "high")
        keys = ("label", "text", "bytes_kept", "predicted", "rise", "low", "high")
        return html_table(" ".join(self.verdict), head, ([row[key] for key in keys] for row in self.rows()))


def autopilot(  # noqa: PLR0913 (what a person types; inside they are one Choice and one Scoring)
    model: Model,
    max_rise: float | None = None,
    bytes_kept: float | None = None,
    networks: Sequence[str] = ("lowrank",),
    out: str | Path | None = None,
    text: str | Path | Text | None = None,
    calibration: str | Path | Text | None = None,
    quantize: str | None = None,
    embedding: str = "dense",
    scope: str = "model",
    keep_ends: int | Literal["auto"] = "auto",
    max_evaluations: int | None = None,
    max_tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    progress: Progress = silent,
    measure: Measure = "gradients",
) -> AutopilotResult:
    """The plan with the fewest bytes that meets a quality line, or with the least rise at a size; every plan measured.

    max_rise : the line: nats a token by which the loss may rise (0.03 is 3 % of perplexity), met by the upper end of
        the 95 % interval; or
    bytes_kept : the size: the fraction of the bytes to keep, 16 bits for each number that is not quantized.
    keep_ends : blocks at each end that stay dense, or "auto": found by measurement.
    max_evaluations : plans that the search may measure (default: 12); the verdict measures its plan and the rivals
        besides.

    Everything else as for `tradeoff`. Raises InputError where neither or both of line and size are given.
    """
    from karipap_core.tradeoffs.autopilot import autopilot as search
    from karipap_core.tradeoffs.autopilot.aim import Aim
    from karipap_core.tradeoffs.autopilot.search import MAX_EVALUATIONS, Limits
    from karipap_core.tradeoffs.sweep import MAX_TOKENS, study_and_text

    aim = Aim(max_rise, bytes_kept, scope)
    limits = Limits(keep_ends, MAX_EVALUATIONS if max_evaluations is None else max_evaluations)
    study, text = study_and_text(model, text, calibration, device, progress, measure)
    choices = [Choice(network, quantize, embedding) for network in networks]
    scoring = Scoring(window, stride, MAX_TOKENS if max_tokens is None else max_tokens)
    return AutopilotResult(search(study, text, aim, choices, limits, scoring, out, progress))


@dataclass(frozen=True, repr=False)
class Healed(Value):
    """A healed folder. Losses are nats a token, measured on the validation part of the text that was learnt from."""

    @property
    def folder(self) -> Path:
        return Path(self.document["folder"])

    @property
    def loss_before(self) -> float:
        return self.document["loss_before"]

    @property
    def loss_after(self) -> float:
        return self.document["loss_after"]

    @property
    def dense_loss(self) -> float | None:
        """The dense model's loss on the same text; None where that model is not here."""
        return self.document["dense_loss"]

    @property
    def improved(self) -> bool:
        """Whether the loss fell; where it did not, the folder holds the incoming model."""
        return self.document["improved"]

    @property
    def curve(self) -> list[dict[str, Any]]:
        """One row a step: step, loss, rate and, at every look, validation."""
        return self.document["curve"]

    @property
    def blocks(self) -> list[dict[str, Any]]:
        """Where scales were healed, one row a block: block, before and after (its error on the validation text), rate,
        trained, steps; else empty."""
        return self.document.get("blocks", [])

    @property
    def notes(self) -> list[str]:
        return self.document["notes"]

    def __repr__(self) -> str:
        dense = "" if self.dense_loss is None else f", dense {self.dense_loss:.4f}"
        return (
            f"<Healed {self.folder}: loss {self.loss_before:.4f} → {self.loss_after:.4f}{dense} nats a token on "
            f"{self.document['validation']['name']}, measured; {self.document['steps']} steps>"
        )

    def _repr_html_(self) -> str:
        said = " ".join([f"{repr(self)[1:-1]}.", *self.notes])
        if self.blocks:
            errors = ([row["block"], row["before"], row["after"]] for row in self.blocks)
            return html_table(said, ("block", "error of its outputs before", "after"), errors)
        looks = [row for row in self.curve if row.get("validation") is not None]
        rows = ([row["step"], value(row["loss"]), row["validation"]] for row in looks)
        return html_table(said, ("step", "loss of the objective", "loss on the validation text"), rows)


def heal(
    folder: Folder,
    out: str | Path,
    steps: int | None = None,
    text: str | Path | Text | None = None,
    distill: str | Path | None = None,
    device: str = "auto",
    compare_dense: bool = False,
    progress: Progress = silent,
    scales: bool = False,
    **settings,
) -> Healed:
    """A short fine-tune of a compressed folder's cores, written to `out`; never a worse model than came in.

    steps : of the optimizer; none where scales are healed.
    text : what is learnt from (default: the standard library's train modules); an eighth of it is kept aside for
        validation.
    distill : the dense model to learn from (default: the one that the folder was made from).
    compare_dense : give the dense model the same training, beside.
    scales : keep the codes of numbers in few bits, and train their scales and the cores that are floats block by block.
    settings : objective, rate, norms, requantize, tokens, window, accumulate, mixed_precision, gradient_checkpointing,
        every, patience, seed: see `karipap_core.healing.settings.Settings`; of scales windows, passes, rate, window,
        seed: see `ScaleSettings` there.

    Raises InputError for encoders, dense folders, texts that are too short, and where nothing can be trained.
    """
    from karipap_core.healing.heal import heal as train
    from karipap_core.healing.settings import settings_of

    path = folder.folder if isinstance(folder, Compressed) else folder
    chosen = settings_of(scales, {"steps": steps} | settings)
    return Healed(train(path, out, chosen, text, distill, device, compare_dense, progress))
