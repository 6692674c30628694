"""Points of a trade-off, measured in memory or as folders and kept as run.json."""

import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.document import Plan, is_of, measured_model
from karipap_core.plan.study import Study
from karipap_core.progress import Progress, silent
from karipap_core.text import Text
from karipap_core.tradeoffs.baselines import Baseline, baselines, measure_baseline, plan_sizes
from karipap_core.tradeoffs.point import Point, plan_settings
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.runs import environment, read_runs

if TYPE_CHECKING:
    from karipap_core.evaluation.tasks.suite import Suite

NO_NAME = re.compile(r"[^A-Za-z0-9._+-]+")  # what a method may have in its words and an id may not
SAME_LOSS = 0.005  # nats: what other versions and machines make of the same weights on the same tokens


class Points:
    """Measures and keeps the points of one model on one text.

    text : what is measured on, cut by `scoring`. out : the points are in `<out>/runs`, each in a folder of its own.
    suite : benchmark tasks that every point has besides, "tasks" and "dense"."tasks" among its figures.
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
        self.conditions = {"model": study.checkpoint.identity, "sha256": text.sha256, **scoring.to_json()}
        found = (Point.from_json(run) for run in read_runs(self.folder))
        self.known = {point.measurement: point for point in found if point.measurement is not None}

    def release(self) -> None:
        """Let go of the dense model's outputs on the text; where they are needed again they are measured anew."""
        self.__dict__.pop("bench", None)

    @cached_property
    def bench(self) -> InPlace:
        self.study.release()
        model, tokenizer = self.study.model
        return InPlace(model, tokenizer, self.study.checkpoint, self.text, self.scoring, self.suite, self.progress)

    def of_plan(self, plan: Plan, network: str, seconds: float = 0.0) -> Point:
        """The point of a plan, measured unless a plan with the same entries was. seconds: what making it took."""
        cores = {"weights": plan.weights, "metric": plan.metric, "calibration": plan.calibration}
        cores |= {"rounding": plan.rounding} if plan.rounding else {}
        cores |= {"prefix": plan.prefix} if plan.prefix else {}
        settings = plan_settings(plan, network)
        formats = sorted({entry.get("quantize") or "" for entry in plan.weights.values()} - {""})
        settings |= {"quantize": ", ".join(formats)} if formats and network not in ("qlr", "auto") else {}
        settings |= {"embedding": plan.embedding["kind"]} if plan.embedding else {}
        around = sorted(
            {word for entry in plan.weights.values() for word in entry.get("structure", {}) if entry["structure"][word]}
        )
        settings |= {"structure": ", ".join(around)} if around else {}
        words = [network, *(f"+ {word}" for word in around), "quantized" if "quantize" in settings else "", plan.prefix]
        label = f"{' '.join(filter(None, words))}, {plan.rule}, kept {plan.budget:g}"
        draft = self._draft("network", network, label, settings, plan)
        point = self._point(draft, cores, lambda: self._figures(plan), seconds)
        self.study.check_prediction(plan, point.to_json(), self.text.name)
        return point

    def _figures(self, plan: Plan) -> dict:
        if plan.prefix:
            from karipap_core.plan.aligned import aligned_matrices

            matrices = iter(aligned_matrices(self.study, plan, self.progress).items())
        else:
            source = self.study.decompositions_of(plan)
            specs = {name: spec for name in plan.weights if (spec := plan.spec(name)) is not None}
            source.make(specs.items(), self.progress)
            matrices = ((name, source.matrix(name, spec)) for name, spec in specs.items())
        size = plan_sizes(self.study.checkpoint, plan.ledger(self.study.checkpoint))
        return size | self.bench.measure(matrices, self.progress)

    def of_baseline(self, baseline: Baseline) -> Point:
        """The point of a baseline, measured unless it was."""
        plan = baseline.plan
        calibrated = baseline.method in ("svd-llm", "gptq")
        identity = {"method": baseline.method, **baseline.settings, "weights": plan and plan.weights}
        identity["calibration"] = self.study.calibration_entry() if calibrated else None
        draft = self._draft("baseline", baseline.method, baseline.label, baseline.settings, plan)
        return self._point(draft, identity, lambda: self._baseline_figures(baseline), baseline.seconds)

    def _draft(
        self, kind: Literal["network", "baseline"], method: str, label: str, settings: dict, plan: Plan | None
    ) -> Point:
        """A point that nothing was measured of yet."""
        predicted = plan.predicted if plan else None
        model, entries = measured_model(self.study.checkpoint), plan.to_json() if plan else None
        return Point("", round(time.time(), 3), kind, method, label, settings, model, entries, predicted, {})

    def _point(self, draft: Point, identity: dict, figures: Callable[[], dict], seconds: float = 0.0) -> Point:
        """The finished point of a draft: from its file, with the figures of an equal measurement, or measured.

        identity : what tells the weights that are measured from others. figures : measures them.
        """
        measurement = settings_key(self.conditions | {"what": identity})
        key = settings_key({"label": draft.label, "settings": draft.settings, "measurement": measurement})
        name = f"{NO_NAME.sub('-', draft.method)}-{key}"
        file = self.folder / name / "run.json"
        if (known := kept_json(file, "run")) is not None:
            return self._with_all(Point.from_json(known), figures)
        began = time.monotonic()
        equal = self.known.get(measurement)
        measured = dict(equal.figures) if equal and not self.lacks(equal) else figures() | self.bench.settings
        point = replace(
            draft,
            id=name,
            created=round(time.time(), 3),
            figures=measured,
            measurement=measurement,
            environment=environment(),
            seconds={"plan": round(seconds, 3), "measure": round(time.monotonic() - began, 3)},
        )
        return self._kept(point)

    def _kept(self, point: Point) -> Point:
        keep_json(self.folder / point.id / "run.json", point.to_json())
        if point.measurement is not None:
            self.known[point.measurement] = point
        return point

    def lacks(self, point: Point) -> bool:
        """Whether a point has to be measured anew because tasks are asked for: it has them not, or has no interval of
        its rise (written before there were any)."""
        if self.suite is None:
            return False
        return self.suite.missing(point.figures) or not {"rise_low", "units"} <= point.figures.keys()

    def _with_all(self, point: Point, figures: Callable[[], dict]) -> Point:
        """A finished point, measured anew where it lacks something: its file is rewritten whole, its id stays."""
        if not self.lacks(point):
            return point
        began = time.monotonic()
        measured = point.figures | figures() | self.bench.settings
        # Weights that are not the ones that were measured then would silently make another point of it.
        if abs(measured["loss"] - point.figures["loss"]) > SAME_LOSS:
            raise InputError(
                f"{point.id} has a loss of {measured['loss']:.4f} now and {point.figures['loss']:.4f} in its run.json: "
                "other weights, text or windows than it was measured with. Delete its folder to measure it again."
            )
        seconds = point.seconds | {"measure": round(time.monotonic() - began, 3)}
        return self._kept(replace(point, figures=measured, environment=environment(), seconds=seconds))

    def complete(self, point: Point) -> Point:
        """A point of this folder with the tasks and intervals that it lacks, measured anew from its own plan or
        baseline: no plan is made. Raises InputError where it was measured on another model, text or cut, calibrated on
        another text, or is of a baseline that is not here."""
        what = f"{point.id} was"
        if not is_of(point.model, self.study.checkpoint):
            raise InputError(f"{what} measured on another model than {self.study.checkpoint.name}.")
        if point.figures["text"]["sha256"] != self.text.sha256:
            raise InputError(f"{what} measured on another text than {self.text.name} is here.")
        plan = Plan.from_json(point.plan) if point.plan else None
        used = (plan and plan.calibration) or {}
        if plan and plan.metric != "weight" and used.get("sha256") != self.study.text.sha256:
            raise InputError(f"{what} calibrated on another text than {self.study.text.name} is here.")
        if not self.lacks(point):
            return point
        if plan is not None:
            return self._with_all(point, lambda: self._figures(plan))
        there = [one for one in baselines(self.study, (), "model") if _is_of(one, point)]
        if not there:
            raise InputError(f"{what} made by {point.method}, which is not installed here.")
        return self._with_all(point, lambda: self._baseline_figures(there[0]))

    def _baseline_figures(self, baseline: Baseline) -> dict:
        notes = {"notes": list(baseline.notes)} if baseline.notes else {}
        return measure_baseline(baseline, self.bench, self.study.checkpoint, self.progress) | notes


def _is_of(baseline: Baseline, point: Point) -> bool:
    return (baseline.method, baseline.settings) == (point.method, point.settings)
