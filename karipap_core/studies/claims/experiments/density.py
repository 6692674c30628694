"""TensorLM (a post): entanglement density, entropy over its largest value, against the size of the model."""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.spectra.null import null_entropy
from karipap_core.statistics.spearman import spearman_by_permutation
from karipap_core.studies.claims.experiments.bench import Bench, correlation, grid, lines
from karipap_core.studies.claims.experiments.registry import experiment

SURE = 0.05  # the chance of an order that says nothing
Point = dict[str, Any]  # {"name", "family", "parameters", "density", "noise", "weights"}


def fewest(sure: float = SURE) -> int:
    """Sizes that a family needs: with n of them, a perfect order has a two-sided chance of 2 / n! without any link.

    >>> fewest(), fewest(0.1)
    (5, 4)
    """
    return next(n for n in count(3) if 2 / math.factorial(n) <= sure)


@experiment("density")
def density(study: Study, progress: Progress, beside: Sequence[str] = ()) -> dict:
    """The mean of S / ln rank over the weights of this model and of others, against their sizes."""
    bench = Bench(study, progress)
    points = [point_of(study)]
    for number, source in enumerate(beside):
        progress("models", number, len(beside), source)
        other = Study(open_checkpoint(source, progress=progress), workspace=study.workspace, device=study.device_name)
        points.append(point_of(other))
    progress("models", len(beside), len(beside))
    points = _once(points)
    families = {point["family"]: [p for p in points if p["family"] == point["family"]] for point in points}
    family = max(families, key=lambda name: len(families[name]))
    members = sorted(families[family], key=lambda point: point["parameters"])
    sizes = [point["parameters"] for point in members]
    of_size = spearman_by_permutation(sizes, [point["density"] for point in members])
    of_excess = spearman_by_permutation(sizes, [point["noise"] - point["density"] for point in members])
    layers = by_layer(points[0]["weights"])
    of_depth = spearman_by_permutation(list(layers), list(layers.values()))
    here = points[0]
    told = {key: _told(pair, len(members)) for key, pair in (("size", of_size), ("excess", of_excess))}
    return bench.document(
        verdict(family, members, of_size),
        {
            "here": f"{here['density']:.4f}; noise of the same shapes {here['noise']:.4f}",
            **told,
            "depth": correlation(of_depth, len(layers)),
            "needed": f"{fewest()}; {len(members)} of {family} at hand",
        },
        {
            "models": [{key: value for key, value in point.items() if key != "weights"} for point in points],
            "family": family,
            "rho_size": of_size,
            "rho_excess": of_excess,
            "rho_depth": of_depth,
            "layers": {str(layer): value for layer, value in layers.items()},
        },
        grid(
            ["model", "family", "parameters", "weights", "S / ln rank", "of noise", "noise less it"],
            [
                [p["name"], p["family"], p["parameters"], len(p["weights"]), p["density"], p["noise"]]
                + [p["noise"] - p["density"]]
                for p in sorted(points, key=lambda point: (point["family"], point["parameters"]))
            ],
        ),
        _charts(families, layers, here["weights"]),
        [
            "Models of one architecture count as a family here; where they were trained on different text, more than "
            "their size differs."
        ],
    )


def point_of(study: Study) -> Point:
    """One model: the mean of S / ln rank, and of noise of the same shapes, over its weights, by their parameters.

    Raises InputError for a model without weights to look at.
    """
    checkpoint = study.checkpoint
    rows: list[dict[str, Any]] = []
    profile = study.profile(("weight",))
    for weight in study.weights:
        most = math.log(min(weight.shape)) if min(weight.shape) > 1 else 0.0
        numbers = profile.weight(weight.name)["spectra"]["weight"]
        if most and numbers["rank"]:
            row = {"layer": weight.layer, "role": weight.role, "parameters": weight.parameters}
            null = null_entropy(*weight.shape)
            rows.append(row | {"density": numbers["entropy"] / most, "noise": null / most})
    if not rows:
        raise InputError(f"{checkpoint.name} has no weight whose entropy says anything.")
    sizes = [row["parameters"] for row in rows]
    mean = {key: float(np.average([row[key] for row in rows], weights=sizes)) for key in ("density", "noise")}
    family = str(checkpoint.config.get("model_type") or "no model_type")
    return {
        "name": checkpoint.name,
        "fingerprint": checkpoint.fingerprint,
        "family": family,
        "parameters": checkpoint.parameters,
        "weights": rows,
    } | mean


def by_layer(rows: Sequence[Mapping]) -> dict[int, float]:
    """Layer → the mean density of its weights, by their parameters."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    return {
        layer: float(
            np.average(
                [row["density"] for row in rows if row["layer"] == layer],
                weights=[row["parameters"] for row in rows if row["layer"] == layer],
            )
        )
        for layer in layers
    }


def _once(points: Sequence[Point]) -> list[Point]:
    """Each model once, by its fingerprint, where it comes first."""
    found: dict[str, Point] = {}
    for point in points:
        found.setdefault(point["fingerprint"], point)
    return list(found.values())


def _told(pair: tuple[float | None, float | None], n: int) -> str:
    words = correlation(pair, n)
    return words if n >= fewest() or pair[0] is None else f"{words}: too few models to say"


def verdict(family: str, members: Sequence[Mapping], pair: tuple[float | None, float | None]) -> str:
    """In words: what the sizes of one family (smallest first) say, and whether there are enough of them."""
    if len(members) < fewest():
        order = " → ".join(f"{point['density']:.3f} ({_size(point['parameters'])})" for point in members)
        only = "one model" if len(members) == 1 else f"{len(members)} models"
        return (
            f"Nothing can be said from {only} of a family ({family}: {order}): {fewest()} sizes are needed before an "
            f"order means anything. Give other sizes beside this one."
        )
    if pair[0] is None or pair[1] is None:
        return f"The {len(members)} models of {family} do not differ enough to be put in order."
    link = f"ρ = {pair[0]:+z.2f}, p = {pair[1]:.2g}, {len(members)} models of {family}"
    if pair[1] > SURE:
        return f"Density does not go with size here ({link})."
    says = "Seen here: larger models have lower density" if pair[0] < 0 else "The opposite: larger models have more"
    return f"{says} ({link})."


def _size(parameters: int) -> str:
    return f"{parameters / 1e6:,.3g} M" if parameters < 1e9 else f"{parameters / 1e9:,.3g} B"


def _charts(families: Mapping[str, Sequence[Mapping]], layers: Mapping[int, float], rows: Sequence[Mapping]) -> list:
    series = []
    for family, points in families.items():
        ordered = sorted(points, key=lambda point: point["parameters"])
        sizes = [point["parameters"] / 1e6 for point in ordered]
        series.append((family, sizes, [point["density"] for point in ordered]))
        series.append((f"{family}, noise", sizes, [point["noise"] for point in ordered]))
    charts = [lines("Density by size", "Million parameters", "S / ln rank", series, points=True)]
    if layers:
        of_role = []
        for role in dict.fromkeys(row["role"] for row in rows):
            mine = [row for row in rows if row["role"] == role and row["layer"] is not None]
            if mine:
                found = by_layer(mine)
                of_role.append((role, list(found), list(found.values())))
        charts.append(lines("Density by layer of this model", "Layer", "S / ln rank", of_role))
    return charts
