"""KARIPAP (arXiv:2510.21844): redundancy by depth, and its headline on one attention."""

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.statistics.spearman import spearman_by_permutation
from karipap_core.studies.claims.experiments.bench import (
    Bench,
    bars,
    correlation,
    factor,
    fitting,
    grid,
    kept_chi,
    layers_of,
    lines,
    matrix_of,
    middle,
    published_mpo,
)
from karipap_core.studies.claims.experiments.registry import experiment


@experiment("depth")
def depth(study: Study, progress: Progress) -> dict:
    """Excess, and damage at half the parameters, of every weight alone; by layer against depth."""
    bench, weights = Bench(study, progress), [weight for weight in study.measurable if weight.layer is not None]
    if not weights:
        raise InputError(f"{study.checkpoint.name} has no layers to compare.")
    profile = study.profile(("weight",))
    decompositions = study.decompositions("weight")
    rows = []
    for number, weight in enumerate(weights):
        progress("weights, each alone at half", number, len(weights), weight.name)
        numbers = profile.weight(weight.name)["spectra"]["weight"]
        spec = LowRank.for_shape(*weight.shape, kept_chi(weight.shape, 0.5))
        harm = bench.cut([(weight.name, decompositions.matrix(weight.name, spec))])
        rows.append(
            {
                "name": weight.name,
                "layer": weight.layer,
                "role": weight.role,
                "parameters": weight.parameters,
                "entropy": numbers["entropy"],
                "normalized_entropy": numbers["normalized_entropy"],
                "excess": numbers["excess"],
            }
            | harm
        )
    progress("weights, each alone at half", len(weights), len(weights))
    layers = layers_of(study)
    by_layer = {layer: [row for row in rows if row["layer"] == layer] for layer in layers}
    excess = [np.average([r["excess"] for r in of], weights=[r["parameters"] for r in of]) for of in by_layer.values()]
    damage = [sum(r["damage"] for r in of) for of in by_layer.values()]
    half = len(layers) // 2
    early, late = sum(damage[:half]), sum(damage[len(layers) - half :])
    found = {
        "layers": spearman_by_permutation(layers, damage),
        "excess": spearman_by_permutation(layers, excess),
        "weights": spearman_by_permutation([r["normalized_entropy"] for r in rows], [r["damage"] for r in rows]),
    }
    sizes = {"layers": len(layers), "excess": len(layers), "weights": len(rows)}
    measured = {key: correlation(pair, sizes[key]) for key, pair in found.items()}
    measured["deepest"] = factor(late, early) if half else "one layer only"
    return bench.document(
        _depth_verdict(found["layers"], found["excess"], late, early),
        measured,
        {"layers": layers, "excess": [float(v) for v in excess], "damage": damage, "weights": rows}
        | {f"rho_{key}": pair for key, pair in found.items()},
        grid(
            ["weight", "layer", "role", "excess, nats", "entropy / ln rank", bench.unit],
            [[r["name"], r["layer"], r["role"], r["excess"], r["normalized_entropy"], r["damage"]] for r in rows],
        ),
        [
            lines("Damage of half the parameters, by layer", "Layer", bench.unit, _by_role(rows, "damage"), log=True),
            lines("Excess over noise, by layer", "Layer", "Excess, nats", _by_role(rows, "excess")),
        ],
    )


def _by_role(rows: list[dict], key: str) -> list[tuple[str, list, list]]:
    """A line a role; experts of one layer and role are summed (damage) or averaged."""
    series = []
    for role in dict.fromkeys(row["role"] for row in rows):
        mine = [row for row in rows if row["role"] == role]
        layers = sorted({row["layer"] for row in mine})
        merge = sum if key == "damage" else np.mean
        series.append((role, layers, [merge([r[key] for r in mine if r["layer"] == layer]) for layer in layers]))
    return series


def _depth_verdict(damage: tuple, excess: tuple, late: float, early: float) -> str:
    if damage[0] is None or early <= 0:
        return "This model has too few layers to speak of depth."
    link = f"ρ = {damage[0]:+z.2f}, p = {damage[1]:.2g}"
    if damage[1] > 0.05:
        says = f"Damage does not go with depth layer by layer ({link})"
    elif damage[0] < 0:
        says = f"Seen here: deeper layers lose less ({link})"
    else:
        says = f"The opposite is seen here: deeper layers lose more ({link})"
    spectra = (
        ""
        if excess[0] is None
        else f" Excess over noise against depth has ρ = {excess[0]:+z.2f} (p = {excess[1]:.2g})."
    )
    return f"{says}; the deeper half of the layers loses {factor(late, early)} what the first half does.{spectra}"


@experiment("headline")
def headline(study: Study, progress: Progress) -> dict:
    """One layer's attention at 30 % of its parameters in four forms, not healed."""
    bench, weights, kept = Bench(study, progress), middle(study), 0.3

    def limit(weight) -> float:
        return kept * weight.parameters

    def parameters(spec: Spec) -> int:
        return spec.parameters

    def peps(weight):
        spec = fitting(NETWORKS["peps"].for_shape(*weight.shape, 1), limit(weight), parameters)
        return spec.dense([core.double() for core in spec.decompose(matrix_of(study, weight.name))])

    def svd(metric: str):
        spec_of = {w.name: LowRank.for_shape(*w.shape, kept_chi(w.shape, kept)) for w in weights}
        return lambda weight: study.decompositions(metric).matrix(weight.name, spec_of[weight.name])

    forms = {
        "accuracy": ("2×2 PEPS", peps),
        "mpo": ("MPO", lambda weight: published_mpo(matrix_of(study, weight.name), limit(weight), parameters)),
        "svd": ("SVD", svd("weight")),
        "whitened": ("whitened SVD", svd("functional")),
    }
    rows: dict[str, dict] = {}
    total = len(forms) * len(weights)
    for key, (label, make) in forms.items():
        matrices: list[tuple[str, torch.Tensor]] = []
        error: list[float] = []
        for weight in weights:
            progress("networks at 30 %", len(rows) * len(weights) + len(matrices), total, f"{label}: {weight.name}")
            W = matrix_of(study, weight.name)
            matrices.append((weight.name, make(weight)))
            error.append(float((W - matrices[-1][1]).square().sum() / W.square().sum()))
        rows[key] = {"label": label, "error": float(np.mean(error))} | bench.cut(matrices)
    progress("networks at 30 %", total, total)
    best = min(rows, key=lambda key: rows[key]["damage"])
    share = sum(weight.parameters for weight in weights) / study.checkpoint.block_parameters
    verdict = (
        f"Without healing, the least damage at 30 % comes from: {rows[best]['label']} "
        f"({bench.unit.split(',')[0]} {rows[best]['damage']:.3g}). Only {share:.1%} of the block parameters were cut."
    )
    measured = {key: f"{bench.words(row)}; {row['error']:.1%} of ‖W‖² lost" for key, row in rows.items()}
    names = [row["label"] for row in rows.values()]
    return bench.document(
        verdict,
        measured,
        {"rows": rows, "weights": [weight.name for weight in weights], "share": share},
        grid(
            ["network", "squared error of W", bench.unit, "rise in loss"],
            [[r["label"], r["error"], r["damage"], r["rise"]] for r in rows.values()],
        ),
        [
            bars("Damage, 30 % kept", bench.unit, names, [r["damage"] for r in rows.values()]),
            bars("Error of the weights", "Part of ‖W‖² lost", names, [r["error"] for r in rows.values()]),
        ],
    )
