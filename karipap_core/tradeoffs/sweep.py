"""Many plans and baselines on one model and one text → points of size and quality, and their Pareto front.

A point is a `run.json` of its own under `<out>/runs`, finished or not there at all: the same command goes on where it
stopped. `bytes_kept` counts 16 bits for each number that is not quantized (baselines.py).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.wrong_text import warnings_of
from karipap_core.plan import effort
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan, measured_model
from karipap_core.plan.kind import FORMATS, PREFIXES, ROUNDINGS, check_prefix, counting
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Measure, Study
from karipap_core.progress import Progress, announce, costs, silent
from karipap_core.statistics.pareto import pareto
from karipap_core.text import Text, divide, read_text, standard_library
from karipap_core.tradeoffs.baselines import baselines
from karipap_core.tradeoffs.effort import AUTO_RISES, models
from karipap_core.tradeoffs.point import Point
from karipap_core.tradeoffs.points import Points
from karipap_core.workspace.files import settings_key, write_json
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:
    from karipap_core.evaluation.tasks.suite import Suite

SWEEP_FORMAT, SWEEP_VERSION = "karipap-sweep", 1
MAX_TOKENS = 16384
DEFAULT_SCORING = Scoring(max_tokens=MAX_TOKENS)
AUTO_KEPT: tuple[float, ...] = (
    0.97,
    0.95,
    0.9,
    0.85,
    0.8,
    0.75,
    0.7,
    0.65,
    0.6,
    0.55,
    0.5,
    0.45,
    0.4,
    0.35,
    0.3,
    0.25,
    0.2,
    0.15,
    0.1,
)
AUTO_KEPT += (0.07, 0.05, 0.03)


@dataclass(frozen=True)
class Grid:
    """The plans of a sweep: each network at each budget by each rule, and whether baselines stand beside them.

    budgets : fractions of parameters kept, a quantized number counting as its bits / 16; or "auto": where this model's
        predicted rise in loss goes from 0.01 to 2.5 nats.
    rules : as `Planner.make` takes them.
    metric : what the cores are fitted to.
    scope : what budgets are fractions of: "model" or "blocks".
    prefix : what weights are fitted behind, as for `story.make_plan`.
    """

    budgets: Sequence[float] | Literal["auto"] = "auto"
    rules: Sequence[str] = ("best",)
    metric: str = "loss"
    scope: str = "model"
    baselines: bool = True
    prefix: str = PREFIXES[0]


GRID = Grid()


def sweep(
    study: Study,
    text: Text,
    choices: Sequence[Choice | str] = ("lowrank",),
    grid: Grid = GRID,
    scoring: Scoring = DEFAULT_SCORING,
    suite: "Suite | None" = None,
    out: str | Path | None = None,
    write: bool = False,
    progress: Progress = silent,
) -> dict:
    """Networks × budgets × rules → plans → measured points, beside the baselines at the same budgets.

    text : what is measured on, not the one that the study calibrates on; see `study_and_text`.
    choices : the networks, by name or with their format and more; `all`: each network alone, and `auto`. Models are
        measured in memory (InPlace).
    suite : benchmark tasks that every point has besides; points that were finished without them are measured anew.
    out : a folder (default: the workspace).
    write : write every plan's model to `<out>/models/<id>` too.

    Returns, and writes to `<out>/sweep.json`, {"format", "version", "model", "text", "quality", "runs", "baselines",
    "pareto", "notes"}; see `Points` for a point. "pareto" holds the ids on the front of runs and baselines together,
    bytes_kept against "quality": "loss", or "relative_error" for an encoder. Raises InputError for what does not fit.
    """
    check_prefix(grid.prefix)
    check_held_out(study, text)
    out = Path(out) if out is not None else study.workspace.root
    with only_writer(out / "sweep.json", "sweep"):
        return _swept(study, text, choices, grid, scoring, suite, out, write, progress)


def _swept(  # noqa: PLR0913 (those of `sweep`)
    study: Study,
    text: Text,
    choices: Sequence[Choice | str],
    grid: Grid,
    scoring: Scoring,
    suite: "Suite | None",
    out: Path,
    write: bool,
    progress: Progress,
) -> dict:
    notes = [f"Measured on {text.name}; plans calibrated on {study.text.name}."]
    points = Points(study, text, out, scoring, suite, progress)
    for choice in every(choices):
        announce(progress, effort.once(study, grid.metric, choice))
    study.expect(every(choices), grid.metric)
    planners = [Planner(study, choice, grid.metric, progress=progress, prefix=grid.prefix) for choice in every(choices)]
    budgets = grid.budgets
    if isinstance(budgets, str):
        budgets = auto_budgets(planners[0], grid.scope)
        notes.append(f"Budgets found on this model's predicted curve: {', '.join(f'{b:g}' for b in budgets)}.")
    rules = dict.fromkeys(grid.rules)
    todo = [(planner, budget, rule) for planner in planners for rule in rules for budget in budgets]
    item_costs = [effort.item(study, p.choice, rule) + effort.EVALUATION for p, _, rule in todo]
    costs(progress, "sweep", item_costs)
    rivals = models((), 0, len(budgets))[1] if grid.baselines else 0
    announce(progress, {"sweep": sum(item_costs), "baselines": rivals * effort.EVALUATION})
    runs: list[Point] = []
    for number, (planner, budget, rule) in enumerate(todo):
        network = planner.choice.network
        progress("sweep", number, len(todo), f"{network}, {rule}, kept {budget:g}")
        try:
            plan, seconds = _plan(study, planner, grid, Budget(budget, scope=grid.scope), rule, out, progress)
        except InputError as error:
            notes.append(f"{network}, {rule}, kept {budget:g}: left out. {error}")
            continue
        runs.append(points.of_plan(plan, network, seconds))
        if write:
            notes += _write_folder(study, plan, out / "models" / runs[-1].id, progress)
    progress("sweep", len(todo), len(todo))
    if not runs:
        raise InputError(f"No budget can be met. {notes[-1]}")
    others = baselines(study, budgets, grid.scope) if grid.baselines else []
    compared = []
    for number, rival in enumerate(others):
        progress("baselines", number, len(others), rival.label)
        compared.append(points.of_baseline(rival))
    progress("baselines", len(others), len(others))
    quality = "loss" if study.checkpoint.predicts else "relative_error"
    notes[:0] = warnings_of(point.figures | {"label": point.label} for point in (*runs, *compared))
    rows = [point.figures | {"id": point.id} for point in (*runs, *compared)]
    document = {
        "format": SWEEP_FORMAT,
        "version": SWEEP_VERSION,
        "model": measured_model(study.checkpoint),
        "text": {"name": text.name, "sha256": text.sha256},
        "quality": quality,
        "runs": [point.to_json() for point in runs],
        "baselines": [point.to_json() for point in compared],
        "pareto": [row["id"] for row in pareto(rows, "bytes_kept", quality)],
        "notes": notes,
    }
    write_json(out / "sweep.json", document)
    return document


def every(choices: Sequence[Choice | str]) -> list[Choice]:
    """These choices, each once; the network `all` stands for each that there is, and the mix. No structure goes around
    a network that takes none."""
    from karipap_core.networks import NETWORKS

    found = []
    for choice in map(Choice.of, choices):
        networks = [*NETWORKS, "auto"] if choice.network == "all" else [choice.network]
        found += [choice.alone(network) for network in networks]
    return list(dict.fromkeys(found))


def auto_budgets(planner: Planner, scope: str) -> list[float]:
    """Fractions to keep at which the predicted rise in loss is nearest to each of `AUTO_RISES`: they lie close where
    this model's curve bends. Largest first; the model is calibrated if it was not yet."""
    planner.study.calibration(planner.metric)
    rises = {}
    for kept in AUTO_KEPT:
        try:
            plan = planner.make(Budget(kept, scope=scope), "calibrated")
        except InputError:
            continue  # too small for what this model must keep
        rises[kept] = (plan.predicted or {})["rise"]
    if not rises:
        raise InputError(f"{planner.checkpoint.name} leaves no budget to try with --scope {scope}: try --scope blocks.")
    nearest = {min(rises, key=lambda kept: abs(math.log(max(rises[kept], 1e-9) / wanted))) for wanted in AUTO_RISES}
    return sorted(nearest, reverse=True)


def _plan(
    study: Study, planner: Planner, grid: Grid, budget: Budget, rule: str, out: Path, progress: Progress
) -> tuple[Plan, float]:
    """The plan of a rule at a budget, kept (measuring takes long) and written to `<out>/plans`; its seconds."""
    wanted = {"network": planner.choice.network, "metric": planner.metric, "rule": rule, "kept": budget.kept}
    wanted |= {"scope": budget.scope, "model": study.checkpoint.identity, "study": study.key}
    if planner.choice.quantize or planner.tables:
        wanted |= {"quantize": planner.choice.quantize, "embedding": planner.choice.embedding}
    wanted |= {"formats": " ".join(FORMATS)} if planner.choice.quantize == "auto" else {}
    wanted |= {"structure": planner.choice.structure} if planner.choice.structure else {}
    wanted |= {"measure": "all"} if study.measure == "all" else {}
    if told := counting(study.rounding, planner.metric, planner.choice.rounds):
        wanted["rounding"] = told
    if grid.prefix == "aligned" or (grid.prefix == "auto" and planner.choice.rounds):
        wanted["prefix"] = grid.prefix
    file = out / "plans" / f"{planner.choice.network}-{rule}-{settings_key(wanted)}.json"
    ours = study.folder / "plans" / file.name  # with its sum: the other one is for people, who may change it
    began = time.monotonic()
    if (found := kept_json(ours)) is not None:
        plan = Plan.from_json(found["plan"], str(ours))
    elif file.exists() and not ours.exists():  # of before there were sums
        plan = Plan.load(file)
    else:
        plan = planner.make(budget, rule, progress)
    if found is None:
        keep_json(ours, {"plan": plan.to_json()})
        plan.save(file)
    elif not file.exists():
        plan.save(file)
    return plan, time.monotonic() - began if found is None else 0.0


def study_and_text(
    model,
    text: str | Path | Text | None = None,
    calibration: str | Path | Text | None = None,
    device: str = "auto",
    progress: Progress = silent,
    measure: Measure = "gradients",
    rounding: str = ROUNDINGS[0],
) -> tuple[Study, Text]:
    """The study of a model (folder, file, hub id, Checkpoint, or a Study, which is returned as it is), and the text to
    measure on: never the one that is calibrated on.

    text : default the standard library's held-out modules.
    calibration : default a quarter of `text`, which is then not measured on; without one the standard library's
        calibration modules.
    measure, rounding : see `Study`.
    """
    if isinstance(text, str | Path):
        text = read_text(text)
    if isinstance(model, Study):
        study = model
        text = text or standard_library("heldout")
    else:
        if text is not None and calibration is None:
            calibration, text = divide(text)
        text = text or standard_library("heldout")
        study = Study(model, calibration, device=device, progress=progress, measure=measure, rounding=rounding)
    check_held_out(study, text)
    return study, text


def check_held_out(study: Study, text: Text) -> None:
    """InputError where the text to measure on is the one that the study calibrates on."""
    if study.text.sha256 == text.sha256:
        raise InputError(f"{text.name} is calibrated on and measured on: give another text for one of the two.")


def _write_folder(study: Study, plan: Plan, folder: Path, progress: Progress) -> list[str]:
    """Writes a plan's model; what there is to say of it."""
    from karipap_core.compressed.compress import compress
    from karipap_core.compressed.verify import not_verified

    verdict = compress(study, plan, folder, progress=progress)["verify"]
    return [] if verdict["ok"] else [not_verified(folder, verdict)]
