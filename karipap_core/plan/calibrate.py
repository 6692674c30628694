"""The damage of truncating each weight, from gradients, with the scale set by a handful of measured ones."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from karipap_core.checkpoint.model import Weight
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.damage import KeptOnDisk, measure_levels
from karipap_core.plan.onepass import one_pass
from karipap_core.profiles.document import profile_settings
from karipap_core.spectra.spectrum import METRICS

PICKED = 6  # weights that are measured by forward passes
LARGE = 0.1  # nats a token: above, what is estimated to second order saturates
LEAST = 1e-6  # nats a token: damages below are lost in the rounding of a forward pass
BENDS = (-0.8, 0.3)  # of ln(measured / estimated) against ln(estimated) above `LARGE`


def levels_measured(study: Any, metric: str, file: Path) -> Calibration:
    """The calibration of a study (study.py) under a metric that is kept in `file`, without whole plans: the damages of
    every weight that a gradient comes back to, or (`study.measure` "all") of every weight by forward passes."""
    causal, scaling = study.checkpoint.predicts, None
    if study.measure == "all":
        kept = KeptOnDisk(file.with_suffix(".partial.json"))
        levels = measure_levels(
            study.gauge("probe"), study.decompositions(metric), study.measurable, kept, study.progress
        )
    else:
        levels, scaling = _estimated(study, metric)
    return Calibration(
        metric=metric,
        measure="kl" if causal else "output error",
        text=study.calibration_entry(),
        dense_loss=study.dense_loss,
        levels=levels,
        tokens=study.windows.probe.numel(),
        gradients=scaling,
    )


def _estimated(study: Any, metric: str) -> tuple[dict[str, list[list[float]]], dict[str, Any]]:
    """(rows [χ, absolute metric error, damage] of every weight, how its damages were scaled) from gradients."""
    found = one_pass(study, profile_settings(METRICS, None, study.text, study.settings), metric)
    weights = [each for each in study.measurable if each.name in found.touched and each.name in found.levels]
    levels = {weight.name: found.levels[weight.name] for weight in weights}
    scaling = fitted(_measured(study, metric, weights, levels))
    for rows in levels.values():
        rows[:] = [[chi, error, scaled(damage, scaling)] for chi, error, damage in rows]
    return levels, scaling


def picked(weights: Sequence[Weight], estimated: dict[str, list]) -> list[Weight]:
    """The weights that are measured: spread evenly over the damage of their strongest truncation, with its largest."""
    order = sorted(weights, key=lambda weight: (max(row[2] for row in estimated[weight.name]), weight.name))
    places = np.linspace(0, len(order) - 1, min(PICKED, len(order))).round().astype(int).tolist()
    return [order[place] for place in sorted(set(places))]


def _measured(study: Any, metric: str, weights: Sequence[Weight], estimated: dict[str, list]) -> list[list[float]]:
    """[estimated, measured] damages of a few truncations."""
    from karipap_core.networks.lowrank import LowRank

    decompositions, changes, foretold = study.decompositions(metric), [], []
    for weight in picked(weights, estimated):
        rows = sorted(estimated[weight.name])
        for chi, _, damage in {row[0]: row for row in (rows[0], rows[len(rows) // 2])}.values():
            spec = LowRank.for_shape(*weight.shape, int(chi))
            changes.append({weight.name: partial(decompositions.matrix, weight.name, spec)})
            foretold.append(damage)
    study.progress("sensitivity", 0, len(changes))
    found = study.gauge("few").measured(changes)
    study.progress("sensitivity", len(changes), len(changes))
    return [[damage, each.divergence] for damage, each in zip(foretold, found, strict=True)]


def fitted(pairs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """{"scale", "bend", "scatter", "pairs"} of [estimated, measured] damages: measured ≈ scale · d up to `LARGE`, and
    scale · d · (d / LARGE)^bend above; scatter is the standard deviation of ln(measured / fitted)."""
    told = np.array([pair for pair in pairs if min(pair) > LEAST], dtype=float).reshape(-1, 2)
    scale, bend = 0.0, 0.0
    logs = np.log(told[:, 1] / told[:, 0])
    large = told[:, 0] > LARGE
    if len(told):
        scale = float(np.median(logs[~large])) if (~large).any() else 0.0
        depth = np.log(told[large, 0] / LARGE)
        if depth.any():
            bend = float(np.clip((depth * (logs[large] - scale)).sum() / (depth**2).sum(), *BENDS))
    fit: dict[str, Any] = {"scale": float(np.exp(scale)), "bend": bend}
    off = [np.log(measured / scaled(estimate, fit)) for estimate, measured in told]
    return fit | {"scatter": float(np.std(off)) if len(off) else None, "pairs": [list(pair) for pair in pairs]}


def scaled(damage: float, fit: dict[str, Any]) -> float:
    """A damage as it would be measured; see `fitted`."""
    return float(fit["scale"] * damage * max(1.0, damage / LARGE) ** fit["bend"])
