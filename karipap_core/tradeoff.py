"""Many plans and baselines on one model and one text → points of size and quality, and their Pareto front.

A point is a `run.json` of its own under `<out>/runs`, finished or not there at all: the same command goes on where it
stopped. `bytes_kept` counts 16 bits for each number that is not quantized (baselines.py).
"""

import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path

from karipap_core.baselines import baselines, measure_baseline, plan_sizes
from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.options import UNSTRUCTURED
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.progress import Progress, silent
from karipap_core.statistics.pareto import pareto
from karipap_core.text import Text, divide, read_text, standard_library
from karipap_core.workspace.files import read_json, settings_key, write_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION, environment, read_runs

SWEEP_FORMAT, SWEEP_VERSION = "karipap-sweep", 1
MAX_TOKENS = 16384
SAME_LOSS = 0.005  # nats: what other versions and machines make of the same weights on the same tokens
AUTO_RISES = (0.01, 0.03, 0.1, 0.3, 1.0, 2.5)  # predicted rises in loss around which `auto` puts budgets
AUTO_KEPT = (0.97, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.15, 0.1)
AUTO_KEPT += (0.07, 0.05, 0.03)


def sweep(
    model,
    networks: Sequence[str] = ("lowrank",),
    budgets: Sequence[float] | str = "auto",
    rules: Sequence[str] = ("best",),
    out: str | Path | None = None,
    text: str | Path | Text | None = None,
    metric: str = "loss",
    scope: str = "model",
    calibration: str | Path | Text | None = None,
    max_tokens: int | None = MAX_TOKENS,
    window: int | None = None,
    stride: int | None = None,
    device: str = "auto",
    with_baselines: bool = True,
    write: bool = False,
    quantize: str | None = None,
    embedding: str = "dense",
    structure: str | None = None,
    progress: Progress = silent,
    tasks=None,
) -> dict:
    """Networks × budgets × rules → plans → measured points, beside the baselines at the same budgets.

    model: folder, file, hub id, or a Study. networks: by name as `Planner` takes them, and `all`: each alone and
    `auto`; quantize, embedding and structure as in `Planner`. budgets: fractions of parameters kept (of `scope`; a
    quantized number counts as its bits / 16), or "auto": where this model's predicted rise in loss goes from 0.01 to
    2.5 nats. text: what is measured on (default: the standard library's held-out modules); plans are calibrated on
    `calibration` (default: the standard library's calibration modules, or a quarter of `text`, which is then not
    measured on). out: a folder (default: the workspace). With `write` every plan's model is also written to
    `<out>/models/<id>`. Models are measured in memory (InPlace). tasks: benchmark tasks (`tasks.Suite`) that every
    point has besides; points that were finished without them are measured anew.

    Returns, and writes to `<out>/sweep.json`, {"format", "version", "model", "text", "quality", "runs", "baselines",
    "pareto", "notes"}; see `Points` for a point. "pareto" holds the ids on the front of runs and baselines together,
    bytes_kept against "quality": "loss", or "relative_error" for an encoder. Raises InputError for what does not fit.
    """
    study, text = study_and_text(model, text, calibration, device, progress)
    out = Path(out) if out is not None else study.workspace.root
    notes = [f"Measured on {text.name}; plans calibrated on {study.text.name}."]
    points = Points(study, text, out, window, stride, max_tokens, progress, tasks)
    planners = {
        network: Planner(
            study,
            network,
            metric,
            progress=progress,
            quantize=quantize,
            embedding=embedding,
            structure=structure if network not in UNSTRUCTURED else None,
        )
        for network in every(networks)
    }
    if budgets == "auto":
        budgets = auto_budgets(next(iter(planners.values())), scope)
        notes.append(f"Budgets found on this model's predicted curve: {', '.join(f'{b:g}' for b in budgets)}.")
    todo = [(network, budget, rule) for network in planners for rule in dict.fromkeys(rules) for budget in budgets]
    runs = []
    for number, (network, budget, rule) in enumerate(todo):
        progress("sweep", number, len(todo), f"{network}, {rule}, kept {budget:g}")
        try:
            plan, seconds = _plan(study, planners[network], Budget(budget, scope=scope), rule, out, progress)
        except InputError as error:
            notes.append(f"{network}, {rule}, kept {budget:g}: left out. {error}")
            continue
        runs.append(points.of_plan(plan, network, seconds))
        if write:
            _write_folder(study, plan, out / "models" / runs[-1]["id"], progress)
    if not runs:
        raise InputError(f"No budget can be met. {notes[-1]}")
    rivals = baselines(study, budgets, scope) if with_baselines else []
    compared = []
    for number, rival in enumerate(rivals):
        progress("baselines", number, len(rivals), rival.label)
        compared.append(points.of_baseline(rival))
    quality = "loss" if study.checkpoint.kind == "causal" else "relative_error"
    document = {
        "format": SWEEP_FORMAT, "version": SWEEP_VERSION, "model": model_entry(study.checkpoint),
        "text": {"name": text.name, "sha256": text.sha256}, "quality": quality, "runs": runs, "baselines": compared,
        "pareto": [point["id"] for point in pareto([*runs, *compared], "bytes_kept", quality)], "notes": notes,
    }  # fmt: skip
    write_json(out / "sweep.json", document)
    progress("sweep", len(todo), len(todo))
    return document


def every(networks: Sequence[str]) -> list[str]:
    """These networks, each once; `all` stands for each that there is, and the mix."""
    from karipap_core.networks import NETWORKS

    return list(dict.fromkeys(name for one in networks for name in ([*NETWORKS, "auto"] if one == "all" else [one])))


def auto_budgets(planner: Planner, scope: str) -> list[float]:
    """Fractions to keep at which the predicted rise in loss is nearest to each of `AUTO_RISES`: they lie close where
    this model's curve bends. Largest first; the model is calibrated if it was not yet."""
    planner.study.calibration(planner.metric)
    rises = {}
    for kept in AUTO_KEPT:
        try:
            rises[kept] = planner.make(Budget(kept, scope=scope), "calibrated").predicted["rise"]
        except InputError:
            continue  # too small for what this model must keep
    if not rises:
        raise InputError(f"{planner.checkpoint.name} leaves no budget to try with --scope {scope}: try --scope blocks.")
    nearest = {min(rises, key=lambda kept: abs(math.log(max(rises[kept], 1e-9) / wanted))) for wanted in AUTO_RISES}
    return sorted(nearest, reverse=True)


class Points:
    """Measures and keeps the points of one model on one text. A point is a flat dictionary:

    "kind" ("network" or "baseline"), "method" (the network or the baseline's), "label", "settings", "model", "plan" (or
    None), the sizes of `baselines.sizes`, the figures of `fidelity.measure` or `fidelity.output_fidelity`, "predicted",
    "text", "window", "stride", "seconds" {"plan", "measure"}, and format, version, id, created and environment as every
    run of the workspace has. With a suite of benchmark tasks also "tasks" and "dense"."tasks" (see `tasks.Suite`).
    """

    def __init__(
        self, study: Study, text: Text, out: Path, window, stride, max_tokens, progress: Progress, suite=None
    ) -> None:
        self.study, self.text, self.folder, self.progress, self.suite = study, text, out / "runs", progress, suite
        self.cut = {"window": window, "stride": stride, "max_tokens": max_tokens}
        self.conditions = {"fingerprint": study.checkpoint.fingerprint, "sha256": text.sha256, **self.cut}
        self.known = {run["measurement"]: run for run in read_runs(self.folder) if "measurement" in run}

    @cached_property
    def bench(self) -> InPlace:
        for probe in ("probe", "check"):
            if probe in self.study.__dict__:
                getattr(self.study, probe).restore()
        model, tokenizer = self.study.model
        more = {"progress": self.progress, "suite": self.suite}
        return InPlace(model, tokenizer, self.study.checkpoint, self.text, **self.cut, **more)

    def of_plan(self, plan: Plan, network: str, seconds: float = 0.0) -> dict:
        """The point of a plan, measured unless a plan with the same entries was."""
        cores = {"weights": plan.weights, "metric": plan.metric, "calibration": plan.calibration}
        settings = {
            "network": network, "rule": plan.rule, "chosen_rule": plan.chosen_rule, "metric": plan.metric,
            "budget": plan.budget, "scope": plan.scope,
        }  # fmt: skip
        formats = sorted({entry.get("quantize") or "" for entry in plan.weights.values()} - {""})
        settings |= {"quantize": ", ".join(formats)} if formats and network not in ("qlr", "auto") else {}
        settings |= {"embedding": plan.embedding["kind"]} if plan.embedding else {}
        around = sorted({word for entry in plan.weights.values() for word in entry.get("structure", {})
                         if entry["structure"][word]})  # fmt: skip
        settings |= {"structure": ", ".join(around)} if around else {}
        words = [network, *(f"+ {word}" for word in around), "quantized" if "quantize" in settings else ""]
        label = f"{' '.join(filter(None, words))}, {plan.rule}, kept {plan.budget:g}"
        point = self._point("network", network, label, settings, plan, cores, lambda: self._figures(plan), seconds)
        self.study.check_prediction(plan, point, self.text.name)
        return point

    def _figures(self, plan: Plan) -> dict:
        source = self.study.decompositions(plan.metric)
        specs = {name: spec for name in plan.weights if (spec := plan.spec(name)) is not None}
        matrices = ((name, source.matrix(name, spec)) for name, spec in specs.items())
        size = plan_sizes(self.study.checkpoint, plan.ledger(self.study.checkpoint))
        return size | self.bench.measure(matrices, self.progress)

    def of_baseline(self, baseline) -> dict:
        """The point of a baseline (baselines.py)."""
        plan = baseline.plan
        calibrated = baseline.method in ("svd-llm", "gptq")
        identity = {"method": baseline.method, **baseline.settings, "weights": plan and plan.weights}
        identity["calibration"] = self.study.calibration_entry() if calibrated else None
        return self._point(
            "baseline", baseline.method, baseline.label, baseline.settings, plan, identity,
            lambda: measure_baseline(baseline, self.bench, self.study.checkpoint, self.progress),
        )  # fmt: skip

    def _point(self, kind, method, label, settings, plan, identity, figures, seconds=0.0) -> dict:
        measurement = settings_key(self.conditions | {"what": identity})
        name = f"{method}-{settings_key({'label': label, 'settings': settings, 'measurement': measurement})}"
        file = self.folder / name / "run.json"
        if file.exists():
            return self._with_all(read_json(file), figures)
        began = time.monotonic()
        known = self.known.get(measurement)
        fresh = known is None or self.lacks(known)
        measured = figures() | self.bench.settings if fresh else _figures_of(known)
        point = {
            "format": RUN_FORMAT, "version": RUN_VERSION, "id": name, "created": round(time.time(), 3), "kind": kind,
            "method": method, "label": label, "settings": settings, "model": model_entry(self.study.checkpoint),
            "plan": plan and plan.to_json(), "predicted": plan and plan.predicted, **measured,
            "measurement": measurement, "environment": environment(),
            "seconds": {"plan": round(seconds, 3), "measure": round(time.monotonic() - began, 3)},
        }  # fmt: skip
        write_json(file, point)
        self.known[measurement] = point
        return point

    def lacks(self, point: dict) -> bool:
        """Whether a point has to be measured anew because tasks are asked for: it has them not, or has no interval of
        its rise (written before there were any)."""
        if self.suite is None:
            return False
        return self.suite.missing(point) or "rise_low" not in point or "units" not in point

    def _with_all(self, point: dict, figures: Callable[[], dict]) -> dict:
        """A finished point, measured anew where it lacks something: its file is rewritten whole, its id stays."""
        if not self.lacks(point):
            return point
        point = {key: value for key, value in point.items() if key != "path"}
        before, began = dict(point), time.monotonic()
        point |= figures() | self.bench.settings
        # Weights that are not the ones that were measured then would silently make another point of it.
        if abs(point["loss"] - before["loss"]) > SAME_LOSS:
            raise InputError(
                f"{before['id']} has a loss of {point['loss']:.4f} now and {before['loss']:.4f} in its run.json: other "
                "weights, text or windows than it was measured with. Delete its folder to measure it again."
            )
        point["environment"] = environment()
        point["seconds"] = point["seconds"] | {"measure": round(time.monotonic() - began, 3)}
        write_json(self.folder / point["id"] / "run.json", point)
        self.known[point["measurement"]] = point
        return point

    def complete(self, point: dict) -> dict:
        """A point of this folder with the tasks and intervals that it lacks, measured anew from its own plan or
        baseline: no plan is made. Raises InputError where it was measured on another model, text or cut, calibrated on
        another text, or is of a baseline that is not here."""
        what = f"{point['id']} was"
        if point["model"]["fingerprint"] != self.study.checkpoint.fingerprint:
            raise InputError(f"{what} measured on another model than {self.study.checkpoint.name}.")
        if point["text"]["sha256"] != self.text.sha256:
            raise InputError(f"{what} measured on another text than {self.text.name} is here.")
        plan = Plan.from_json(point["plan"]) if point["plan"] else None
        used = (plan and plan.calibration) or {}
        if plan and plan.metric != "weight" and used.get("sha256") != self.study.text.sha256:
            raise InputError(f"{what} calibrated on another text than {self.study.text.name} is here.")
        if not self.lacks(point):
            return point
        if plan is not None:
            return self._with_all(point, lambda: self._figures(plan))
        there = [one for one in baselines(self.study, (), "model") if _is_of(one, point)]
        if not there:
            raise InputError(f"{what} made by {point['method']}, which is not installed here.")
        figures = partial(measure_baseline, there[0], self.bench, self.study.checkpoint, self.progress)
        return self._with_all(point, figures)


def _is_of(baseline, point: dict) -> bool:
    return (baseline.method, baseline.settings) == (point["method"], point["settings"])


_NOT_FIGURES = {"format", "version", "id", "created", "kind", "method", "label", "settings", "model", "plan", "path"}
_NOT_FIGURES |= {"predicted", "measurement", "environment", "seconds"}


def _figures_of(point: dict) -> dict:
    return {key: value for key, value in point.items() if key not in _NOT_FIGURES}


def _plan(study: Study, planner: Planner, budget: Budget, rule: str, out: Path, progress) -> tuple[Plan, float]:
    """The plan of a rule at a budget, kept in `<out>/plans` (the measuring rules take long), and its seconds."""
    wanted = {"network": planner.network, "metric": planner.metric, "rule": rule, "kept": budget.kept}
    wanted |= {"scope": budget.scope, "fingerprint": study.checkpoint.fingerprint, "study": study.key}
    if planner.quantize or planner.tables:
        wanted |= {"quantize": planner.quantize, "embedding": planner.embedding}
    wanted |= {"structure": planner.structure} if planner.structure else {}
    file = out / "plans" / f"{planner.network}-{rule}-{settings_key(wanted)}.json"
    if file.exists():
        return Plan.load(file), 0.0
    began = time.monotonic()
    plan = planner.make(budget, rule, progress)
    plan.save(file)
    return plan, time.monotonic() - began


def study_and_text(model, text, calibration, device, progress) -> tuple[Study, Text]:
    """The study of the model, and the text to measure on: never the one that is calibrated on."""
    if isinstance(text, str | Path):
        text = read_text(text)
    if isinstance(model, Study):
        study = model
        text = text or standard_library("heldout")
    else:
        if text is not None and calibration is None:
            calibration, text = divide(text)
        text = text or standard_library("heldout")
        study = Study(model, calibration, device=device, progress=progress)
    if study.text.sha256 == text.sha256:
        raise InputError(f"{text.name} is calibrated on and measured on: give another text for one of the two.")
    return study, text


def _write_folder(study: Study, plan: Plan, folder: Path, progress: Progress) -> None:
    from karipap_core.compressed.compress import compress

    compress(study, plan, folder, progress=progress)
