"""What each χ of each weight costs and loses in one network under one metric: the tables that sliders look up.

Kept in the workspace as safetensors (NumPy), so that the dashboard reads them without torch. The error is the absolute
metric error ‖A(W−Ŵ)B‖² (see networks/base.py); for `lowrank` it is the tail of the profile's spectrum, exactly.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from karipap_core.checkpoint.model import Weight
from karipap_core.plan.kind import Kind
from karipap_core.profiles.document import Profile
from karipap_core.progress import Progress, silent
from karipap_core.workspace.kept import keep_tensors, kept_tensors

if TYPE_CHECKING:  # torch: seconds, and whoever reads curves that were measured needs none
    import torch

    from karipap_core.networks import Spec
    from karipap_core.plan.decompositions import Decompositions
    from karipap_core.spectra.metric import Metric

MOST_LEVELS = 256  # options of one weight: finer steps change no plan by more than 0.4 % of a weight
BETWEEN = 6  # sizes of a group put between two that were fitted
FITTED_LEVELS = (0.25, 0.5, 0.75, 1.0)  # of the break-even χ: where quantized or structured cores are really made


class Stored:
    """Bytes of every size of a curve: `plain` numbers in the weight's own dtype and `packed` bytes of all else, which
    are quantized cores and indices; None for both where all `parameters` are in its own dtype."""

    parameters: np.ndarray
    plain: np.ndarray | None
    packed: np.ndarray | None

    def bytes(self, itemsize: int) -> np.ndarray:
        """itemsize: bytes of a number of the weight's own dtype."""
        if self.plain is None or self.packed is None:
            return self.parameters * itemsize
        return self.plain * itemsize + self.packed


@dataclass(frozen=True)
class WeightCurve(Stored):
    """chi ascending, `parameters` of the network and `error` at each; total: the error of dropping the weight. plain,
    packed: see `Stored`."""

    chi: np.ndarray
    parameters: np.ndarray
    error: np.ndarray
    total: float
    plain: np.ndarray | None = None
    packed: np.ndarray | None = None

    def at(self, chi: float) -> float:
        """The error at χ, its logarithm linear between neighbours, that of the ends beyond them. At 0: that of the
        weight whole in a format, which is all that such a curve holds."""
        return _read_at(chi, self.chi, self.error) if chi else float(self.error[0])


@dataclass(frozen=True)
class GroupCurve(Stored):
    """A group of weights that share cores: entries[k][member] at ascending `parameters`, error[k, member] absolute,
    total[member]. plain, packed: see `Stored`."""

    members: tuple[str, ...]
    entries: list[dict[str, dict]]
    parameters: np.ndarray
    error: np.ndarray
    total: np.ndarray
    plain: np.ndarray | None = None
    packed: np.ndarray | None = None

    def at(self, parameters: float, member: str) -> float:
        """The error of a member where the group holds so many numbers, as `WeightCurve.at`."""
        return _read_at(parameters, self.parameters, self.error[:, self.members.index(member)])


def _read_at(point: float, points: np.ndarray, errors: np.ndarray) -> float:
    return float(np.exp(np.interp(point, points, np.log(np.maximum(errors, 1e-300)))))


Curves = dict[str, WeightCurve] | list[GroupCurve]  # of weights by name, or of groups that share cores


def build_curves(
    weights: Sequence[Weight],
    kind: Kind,
    metric: str,
    profile: Profile | None,
    decompositions: "Decompositions | None",
    progress: Progress = silent,
) -> dict[str, WeightCurve]:
    """{weight name: WeightCurve} of `weights`. `profile` gives the spectra (plain `lowrank` needs no more); other
    networks are decomposed at a few χ each, errors in between interpolated: that needs `decompositions`."""
    if kind == Kind("lowrank") and profile is not None:
        return {weight.name: _from_spectrum(weight, profile.sigma(weight.name, metric)) for weight in weights}
    assert decompositions is not None
    curves = {}
    found = decompositions.each(_measured, (([weight.name], [weight, kind]) for weight in weights))
    for index, weight in enumerate(weights):
        progress(f"curves of {kind.label}", index, len(weights), weight.name)
        curves[weight.name] = next(found)
    progress(f"curves of {kind.label}", len(weights), len(weights))
    return curves


def _measured(decompositions: "Decompositions", weight: Weight, kind: Kind) -> WeightCurve:
    """The curve of one weight in any network, from a few decompositions."""
    from karipap_core.networks.curve import Curve

    W, metric = decompositions.checkpoint.read(weight.name), decompositions.metric_of(weight.name)
    if kind.network == "dense":
        spec = kind.spec(weight.shape, 0)
        return _listed([0], [spec], [_error(weight, spec, W, metric, decompositions)], metric.absolute(W.double()))
    top = kind.break_even(weight.shape)
    if kind.structure is None and (kind.quantize is None or kind.cls.curve_of_stored):
        options: dict[str, Any] = dict(kind.options)
        curve = kind.cls.curve(W, metric, quantize=kind.quantize, **options)
        top = max(1, min(int(curve.chi[-1]), top))
    else:
        chis = sorted({max(1, round(top * level)) for level in FITTED_LEVELS})
        specs = [kind.spec(weight.shape, chi) for chi in chis]
        errors = [_error(weight, spec, W, metric, decompositions) for spec in specs]
        total = metric.absolute(W.double())
        parameters = np.array([spec.parameters for spec in specs])
        curve = Curve(np.array(chis), parameters, np.minimum.accumulate(errors), total, exact=False)
    chi = _levels(1, top)
    return _listed(chi, [kind.spec(weight.shape, int(c)) for c in chi], [curve.at(int(c)) for c in chi], curve.total)


def _error(
    weight: Weight, spec: "Spec", W: "torch.Tensor", metric: "Metric", decompositions: "Decompositions"
) -> float:
    return metric.absolute(W.double() - decompositions.matrix(weight.name, spec).double().to(W.device))


def _listed(chi, specs: "Sequence[Spec]", errors: Sequence[float], total: float) -> WeightCurve:
    parameters = np.array([spec.parameters for spec in specs])
    stored = _stored([spec.stored for spec in specs])
    return WeightCurve(np.array(chi, dtype=np.int64), parameters, np.array(errors), float(total), *stored)


def _stored(rows: Sequence) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
    """`plain` and `packed` of (numbers, bytes) a size."""
    plain, packed = np.array(rows, dtype=np.int64).T
    return (plain, packed) if packed.any() else (None, None)


def build_group_curves(
    weights: Sequence[Weight],
    kind: Kind,
    decompositions: "Decompositions",
    progress: Progress = silent,
) -> list[GroupCurve]:
    """One curve for each group of weights that share cores, quantized where the kind says so."""
    groups, curves = kind.cls.groups(weights), []
    found = decompositions.each(_group_measured, ((members, [members, kind]) for members in groups))
    for index, members in enumerate(groups):
        progress(f"curves of {kind.label}", index, len(groups), ", ".join(members))
        curves.append(next(found))
    progress(f"curves of {kind.label}", len(groups), len(groups))
    return curves


def _group_measured(decompositions: "Decompositions", members: Sequence[str], kind: Kind) -> GroupCurve:
    """The curve of one group of weights that share cores."""
    matrices = [decompositions.checkpoint.read(name) for name in members]
    metrics = [decompositions.metric_of(name) for name in members]
    levels, errors, total = kind.cls.group_levels(members, matrices, metrics)
    if kind.quantize is not None:
        levels = [[replace(spec, quantize=kind.quantize) for spec in specs] for specs in levels]
        errors = np.array([_member_errors(members, s, matrices, metrics, decompositions) for s in levels])
    return _between(members, levels, errors, np.asarray(total, dtype=float))


def _member_errors(
    members: Sequence[str],
    specs: "Sequence[Spec]",
    matrices: "Sequence[torch.Tensor]",
    metrics: "Sequence[Metric]",
    decompositions: "Decompositions",
) -> list[float]:
    return [
        metric.absolute(W.double() - decompositions.matrix(name, spec).double())
        for name, spec, W, metric in zip(members, specs, matrices, metrics, strict=True)
    ]


def _between(
    members: Sequence[str], levels: "Sequence[Sequence[Spec]]", level_errors: np.ndarray, total: np.ndarray
) -> GroupCurve:
    """The fitted sizes of a group and some between them: bonds in between, log error linear in parameters."""
    entries: list[dict[str, dict]] = []
    sizes: list[int] = []
    errors, stored = [], []
    floor = 1e-12 * total
    fitted = [sum(spec.parameters for spec in specs) for specs in levels]
    for k, specs in enumerate(levels):
        for step in range(BETWEEN if k + 1 < len(levels) else 1):
            share, chi = step / BETWEEN, np.array(specs[0].chi, dtype=float)
            if step:
                chi = np.round((1 - share) * chi + share * np.array(levels[k + 1][0].chi, dtype=float))
            made = [replace(spec, chi=tuple(int(c) for c in chi)) for spec in specs]
            size = sum(spec.parameters for spec in made)
            if sizes and size <= sizes[-1]:
                continue
            low = np.log(np.maximum(level_errors[k], floor))
            if step:
                part = (size - fitted[k]) / max(1, fitted[k + 1] - fitted[k])
                low = low + np.clip(part, 0, 1) * (np.log(np.maximum(level_errors[k + 1], floor)) - low)
            entries.append({name: spec.to_json() for name, spec in zip(members, made, strict=True)})
            sizes.append(size)
            stored.append(np.sum([spec.stored for spec in made], axis=0))
            errors.append(np.exp(low))
    return GroupCurve(tuple(members), entries, np.array(sizes), np.array(errors), total, *_stored(stored))


def _levels(first: int, last: int) -> np.ndarray:
    return np.unique(np.linspace(first, last, min(MOST_LEVELS, last - first + 1)).round().astype(np.int64))


def _from_spectrum(weight: Weight, sigma: np.ndarray) -> WeightCurve:
    out, n_in = weight.shape
    chi = _levels(1, max(1, min(len(sigma), (out * n_in - 1) // (out + n_in))))
    squares = np.asarray(sigma, dtype=np.float64) ** 2
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # from the smallest up, so that none is lost
    return WeightCurve(chi, chi * (out + n_in), tail[chi], float(tail[0]))


def save_curves(file: Path, curves: Curves) -> None:
    """Writes curves whole or not at all, for `load_curves`."""
    arrays, note = {}, None
    if isinstance(curves, list):
        note = {"groups": json.dumps([[group.members, group.entries] for group in curves])}
        for index, group in enumerate(curves):
            arrays[f"{index}|parameters"] = group.parameters.astype(np.int64)
            arrays[f"{index}|error"] = np.vstack([group.error, group.total])
            arrays |= _stored_arrays(str(index), group)
    else:
        for name, curve in curves.items():
            arrays[f"{name}|chi"] = curve.chi.astype(np.int64)
            arrays[f"{name}|parameters"] = curve.parameters.astype(np.int64)
            arrays[f"{name}|error"] = np.append(curve.error, curve.total)
            arrays |= _stored_arrays(name, curve)
    keep_tensors(file, arrays, note)


def _stored_arrays(name: str, curve: Stored) -> dict[str, np.ndarray]:
    if curve.plain is None or curve.packed is None:
        return {}
    return {f"{name}|stored": np.stack([curve.plain, curve.packed]).astype(np.int64)}


def load_curves(file: Path) -> Curves | None:
    """The curves of a file that `save_curves` wrote; None where there is none or it is damaged."""
    found = kept_tensors(file, "numpy")
    if found is None:
        return None
    arrays, note = found
    groups = json.loads(note.get("groups", "null"))
    if groups is not None:
        return [
            GroupCurve(
                tuple(members),
                entries,
                arrays[f"{index}|parameters"],
                arrays[f"{index}|error"][:-1],
                arrays[f"{index}|error"][-1],
                *arrays.get(f"{index}|stored", (None, None)),
            )
            for index, (members, entries) in enumerate(groups)
        ]
    names = [key.removesuffix("|chi") for key in arrays if key.endswith("|chi")]
    return {
        name: WeightCurve(
            arrays[f"{name}|chi"],
            arrays[f"{name}|parameters"],
            arrays[f"{name}|error"][:-1],
            float(arrays[f"{name}|error"][-1]),
            *arrays.get(f"{name}|stored", (None, None)),
        )
        for name in names
    }
