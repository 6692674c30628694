"""Points of a trade-off, measured in memory or as folders and kept as run.json."""

import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.progress import Progress, silent
from karipap_core.text import Text
from karipap_core.tradeoffs.baselines import baselines, measure_baseline, plan_sizes
from karipap_core.workspace.files import read_json, settings_key, write_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION, environment, read_runs

if TYPE_CHECKING:
    from karipap_core.evaluation.tasks.suite import Suite

SAME_LOSS = 0.005  # nats: what other versions and machines make of the same weights on the same tokens


class Points:
    """Measures and keeps the points of one model on one text. A point is a flat dictionary:

    "kind" ("network" or "baseline"), "method" (the network or the baseline's), "label", "settings", "model", "plan" (or
    None), the sizes of `baselines.sizes`, the figures of `fidelity.measure` or `fidelity.output_fidelity`, "predicted",
    "text", "window", "stride", "seconds" {"plan", "measure"}, and format, version, id, created and environment as every
    run of the workspace has. With a suite of benchmark tasks also "tasks" and "dense"."tasks" (see `tasks.Suite`).
    """

    def __init__(
        self,
        study: Study,
        text: Text,
        out: Path,
        scoring: Scoring,
        suite: "Suite | None" = None,
        progress: Progress = silent,
    ) -> None:
        self.study, self.text, self.scoring, self.suite = study, text, scoring, suite
        self.folder, self.progress = out / "runs", progress
        self.conditions = {"fingerprint": study.checkpoint.fingerprint, "sha256": text.sha256, **scoring.to_json()}
        self.known = {run["measurement"]: run for run in read_runs(self.folder) if "measurement" in run}

    @cached_property
    def bench(self) -> InPlace:
        self.study.release()
        model, tokenizer = self.study.model
        return InPlace(model, tokenizer, self.study.checkpoint, self.text, self.scoring, self.suite, self.progress)

    def of_plan(self, plan: Plan, network: str, seconds: float = 0.0) -> dict:
        """The point of a plan, measured unless a plan with the same entries was."""
        cores = {"weights": plan.weights, "metric": plan.metric, "calibration": plan.calibration}
        settings = {
            "network": network,
            "rule": plan.rule,
            "chosen_rule": plan.chosen_rule,
            "metric": plan.metric,
            "budget": plan.budget,
            "scope": plan.scope,
        }
        formats = sorted({entry.get("quantize") or "" for entry in plan.weights.values()} - {""})
        settings |= {"quantize": ", ".join(formats)} if formats and network not in ("qlr", "auto") else {}
        settings |= {"embedding": plan.embedding["kind"]} if plan.embedding else {}
        around = sorted(
            {word for entry in plan.weights.values() for word in entry.get("structure", {}) if entry["structure"][word]}
        )
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
            "baseline",
            baseline.method,
            baseline.label,
            baseline.settings,
            plan,
            identity,
            lambda: measure_baseline(baseline, self.bench, self.study.checkpoint, self.progress),
        )

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
            "format": RUN_FORMAT,
            "version": RUN_VERSION,
            "id": name,
            "created": round(time.time(), 3),
            "kind": kind,
            "method": method,
            "label": label,
            "settings": settings,
            "model": model_entry(self.study.checkpoint),
            "plan": plan and plan.to_json(),
            "predicted": plan and plan.predicted,
            **measured,
            "measurement": measurement,
            "environment": environment(),
            "seconds": {"plan": round(seconds, 3), "measure": round(time.monotonic() - began, 3)},
        }
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
