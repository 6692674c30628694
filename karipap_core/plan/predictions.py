"""What was predicted beside what was measured, for every run of a model so far; and the refit that follows from it.

There are two predictions of a run: the one that was made with its plan (kept in the run, and never changed since), and
the one that today's calibration makes when that very run is left out of its fit (`Calibration.left_out`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.calibration import ALL, Calibration, group_of_weights
from karipap_core.plan.checks import above_noise, off_by
from karipap_core.plan.document import Plan
from karipap_core.plan.foretold import CURVE
from karipap_core.statistics.pareto import known
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json


@dataclass(frozen=True)
class Pair:
    """A prediction and what came: rises in loss, nats a token. error: standard error of `measured`; stated: the
    relative error that was stated with the prediction; source: of foretold.py; text: measured on, None for the
    calibration text; fit: version that predicted it."""

    id: str | None
    label: str
    method: str
    predicted: float
    measured: float
    error: float | None
    stated: float | None
    source: str
    text: str | None
    fit: int | None = None

    @property
    def above_noise(self) -> bool:
        """Whether the measured rise is so far above its standard error that the ratio means anything."""
        return self.predicted > 0 and above_noise(self.measured, self.error)


def as_predicted(points: Iterable[dict]) -> list[Pair]:
    """Every run with a prediction and a measured rise: the prediction that was made with its plan."""
    found = []
    for point in points:
        predicted = point.get("predicted") or {}
        if not known(point, "rise") or not known(predicted, "rise"):
            continue
        text = point["text"].get("name") if isinstance(point.get("text"), dict) else "an unnamed text"
        found.append(
            Pair(
                point["id"],
                point["label"],
                point["method"],
                predicted["rise"],
                point["rise"],
                point.get("rise_error"),
                predicted.get("error"),
                predicted.get("source", CURVE),
                text,
                predicted.get("fit"),
            )
        )
    return found


def left_out(calibration: Calibration, points: Iterable[dict]) -> list[Pair]:
    """What today's calibration says of every plan that it has measured or checked, each left out of its own
    prediction. `points` give the checks their names."""
    runs = {point["id"]: point for point in points}
    stated = {each: calibration.fit(each).error for each in {check.get("network") for check in calibration.checks}}
    found = []
    for row in calibration.left_out():
        run = runs.get(row["id"]) or {}
        inner = row["text"] is None
        label = run.get("label") or ("a whole plan of the calibration" if inner else "a plan checked earlier")
        network = row["network"]
        method = run.get("method") or network or "earlier checks"
        found.append(
            Pair(
                row["id"],
                label,
                method,
                row["predicted"],
                row["measured"],
                row["error"],
                stated.get(network, calibration.error),
                CURVE,
                row["text"],
                calibration.version,
            )
        )
    return found


def figures(pairs: Sequence[Pair]) -> dict | None:
    """How far predictions were off, over the pairs above their noise (`Pair.above_noise`); None where there are none.

    {"plans": their number n, "below": pairs within their own noise, left out, "median" and "largest" of
    |predicted / measured − 1|, "bias": exp(mean of ln(predicted / measured)) − 1, "stated": pairs whose error was
    stated, "inside": the share of those that were off by no more than it}.
    """
    telling = [pair for pair in pairs if pair.above_noise]
    if not telling:
        return None
    ratios = np.array([pair.predicted / pair.measured for pair in telling])
    stated = [(pair, pair.stated) for pair in telling if pair.stated is not None]
    inside = [off_by(pair.predicted, pair.measured) <= error for pair, error in stated]
    return {
        "plans": len(telling),
        "below": len(pairs) - len(telling),
        "median": float(np.median(abs(ratios - 1))),
        "largest": float(abs(ratios - 1).max()),
        "bias": float(np.exp(np.log(ratios).mean()) - 1),
        "stated": len(stated),
        "inside": float(np.mean(inside)) if inside else None,
    }


def how_found(calibration: Calibration) -> str:
    """How a calibration's damages were found, in a sentence that tells what was measured from what was estimated."""
    text = calibration.text.get("name") or calibration.text.get("text") or "calibration text"
    on = f"on {text} ({calibration.tokens:,} tokens)"
    if calibration.gradients is None:
        return f"Damages were measured by forward passes {on}, each weight cut alone."
    fit = calibration.gradients
    if fit["scatter"] is None:
        return f"Damages were estimated from gradients {on}; none that was measured sets their scale."
    return (
        f"Damages were estimated from gradients {on}. {len(fit['pairs'])} of them were measured by forward passes too: "
        f"these set the scale (× {fit['scale']:.2f}), and lie {np.expm1(fit['scatter']):.0%} from the estimates "
        "(standard deviation)."
    )


# The calibration that runs belong to, and the refit.


def calibration_file(plan: Plan, model: dict | None = None) -> Path | None:
    """Where the workspace keeps the calibration of a plan's model, metric and calibration text; None where it has
    none. model: the `model` field of a run, which tells models of the same tensors apart (default: the plan's)."""
    entry, workspace = plan.calibration or {}, Workspace()
    model_key = workspace.key_of(model or plan.model)
    if "sha256" not in entry or model_key is None:
        return None
    settings = {key: value for key, value in entry.items() if key not in ("text", "path", "sha256", "measure")}
    key = settings_key({"text": entry["sha256"], "settings": settings})
    try:
        names = [f"{plan.metric}-{key}{end}" for end in ((ALL, "") if entry.get("measure") == "all" else ("",))]
        files = [workspace.calibration_file(model_key, name) for name in names]
    except InputError:
        return None
    return next((file for file in files if file.is_file()), None)


def calibrations(points: Iterable[dict]) -> dict[Path, list[dict]]:
    """The calibration files that predicted these runs by their curves, each with its runs; most runs first."""
    found: dict[Path, list[dict]] = {}
    for point in points:
        if not checkable(point):
            continue
        file = calibration_file(_plan(point), point.get("model"))
        if file is not None:
            found.setdefault(file, []).append(point)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def checkable(point: dict) -> bool:
    """Whether a run holds a prediction of a curve against a measured rise."""
    predicted = point.get("predicted") or {}
    return (
        bool(point.get("plan"))
        and predicted.get("source") == CURVE
        and known(point, "rise")
        and bool(known(predicted, "rise") and isinstance(point.get("text"), dict))
    )


def _plan(point: dict) -> Plan:
    """A run's plan as it stands there: what is read of it here needs no check against the schema, which takes long."""
    document = point["plan"]
    return Plan(
        document.get("model") or {},
        document.get("metric") or "",
        document.get("weights") or {},
        calibration=document.get("calibration"),
        predicted=point.get("predicted"),
        embedding=document.get("embedding"),
        prefix=document.get("prefix"),
    )


def add_check(calibration: Calibration, plan: Plan, point: dict, text: str) -> bool:
    """Give a calibration the check that a measured plan is, if the curve predicted it (see `checkable`); returns
    whether it was new."""
    predicted = plan.predicted or {}
    if predicted.get("source") != CURVE or not known(point, "rise") or not known(predicted, "rise"):
        return False
    return calibration.check(
        predicted["rise"],
        point["rise"],
        text,
        id=point.get("id"),
        sum=predicted.get("sum"),
        network=group_of_weights(plan.weights, bool(plan.embedding), plan.prefix),
        error=point.get("rise_error"),
        fit=predicted.get("fit"),
        dense_loss=(point.get("dense") or {}).get("loss"),
    )


def refit(file: Path, points: Sequence[dict]) -> Calibration:
    """Add these measured runs to the checks of a calibration and write it, its fit with a new version where there was
    anything new. Returns the calibration."""
    if (measured := kept_json(file, "calibration")) is None:
        raise InputError(f"There is no calibration in {file} that can be read: make a plan of this model first.")
    calibration = Calibration.from_json(measured)
    if new := unchecked(calibration, points):
        for point in new:
            add_check(calibration, _plan(point), point, point["text"]["name"])
        calibration.note(f"refitted from {len(new)} measured {'run' if len(new) == 1 else 'runs'}")
        keep_json(file, calibration.to_json())
    return calibration


def unchecked(calibration: Calibration, points: Iterable[dict]) -> list[dict]:
    """The runs that a calibration does not know yet. The same figures count once, whatever the run is called."""
    ids = {check.get("id") for check in calibration.checks}
    seen = {
        (check["predicted"], check["measured"], check["text"]) for check in calibration.checks if check.get("network")
    }
    return [
        point
        for point in points
        if checkable(point)
        and point["id"] not in ids
        and (point["predicted"]["rise"], point["rise"], point["text"]["name"]) not in seen
    ]
