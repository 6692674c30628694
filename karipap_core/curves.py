"""What each χ of each weight costs and loses in one network under one metric: the tables that sliders look up.

Kept in the workspace as safetensors (NumPy), so that the dashboard reads them without torch. The error is the absolute
metric error ‖A(W−Ŵ)B‖² (see networks/base.py); for `lowrank` it is the tail of the profile's spectrum, exactly.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from karipap_core.allocate import Options, options
from karipap_core.progress import Progress, silent

MOST_LEVELS = 256  # options of one weight: finer steps change no plan by more than 0.4 % of a weight


@dataclass(frozen=True)
class WeightCurve:
    """chi ascending, `parameters` of the network and `error` at each; total: the error of dropping the weight."""

    chi: np.ndarray
    parameters: np.ndarray
    error: np.ndarray
    total: float


def build_curves(checkpoint, weights, network: str, metric: str, profile, moments, progress: Progress = silent):
    """{weight name: WeightCurve} of `weights`. `profile` gives the spectra (`lowrank` needs no more);
    other networks are decomposed at a few χ each, errors in between interpolated."""
    if network == "lowrank":
        return {weight.name: _from_spectrum(weight, profile.sigma(weight.name, metric)) for weight in weights}
    from karipap_core.networks import NETWORKS
    from karipap_core.networks.base import Metric

    curves = {}
    for index, weight in enumerate(weights):
        progress(f"curves of {network}", index, len(weights), weight.name)
        measure = Metric("weight") if metric == "weight" else moments.metric(weight.name, metric)
        kind = NETWORKS[network]
        curve = kind.curve(checkpoint.read(weight.name), measure)
        spec = kind.for_shape(*weight.shape, 1)
        chi = _levels(1, max(1, min(int(curve.chi[-1]), spec.break_even_chi)))
        curves[weight.name] = WeightCurve(
            chi,
            np.array([spec.with_chi(int(c)).parameters for c in chi]),
            np.array([curve.at(int(c)) for c in chi]),
            curve.total,
        )
    progress(f"curves of {network}", len(weights), len(weights))
    return curves


def _levels(first: int, last: int) -> np.ndarray:
    return np.unique(np.linspace(first, last, min(MOST_LEVELS, last - first + 1)).round().astype(np.int64))


def _from_spectrum(weight, sigma: np.ndarray) -> WeightCurve:
    out, n_in = weight.shape
    chi = _levels(1, max(1, min(len(sigma), (out * n_in - 1) // (out + n_in))))
    squares = np.asarray(sigma, dtype=np.float64) ** 2
    tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # from the smallest up, so that none is lost
    return WeightCurve(chi, chi * (out + n_in), tail[chi], float(tail[0]))


def save_curves(file: Path, curves: dict[str, WeightCurve]) -> None:
    from safetensors.numpy import save_file

    from karipap_core.workspace import whole_file

    arrays = {}
    for name, curve in curves.items():
        arrays[f"{name}|chi"] = curve.chi.astype(np.int64)
        arrays[f"{name}|parameters"] = curve.parameters.astype(np.int64)
        arrays[f"{name}|error"] = np.append(curve.error, curve.total)
    with whole_file(file) as temporary:
        save_file(arrays, temporary)


def load_curves(file: Path) -> dict[str, WeightCurve]:
    from safetensors.numpy import load_file

    arrays = load_file(file)
    names = [key.removesuffix("|chi") for key in arrays if key.endswith("|chi")]
    return {
        name: WeightCurve(
            arrays[f"{name}|chi"], arrays[f"{name}|parameters"], arrays[f"{name}|error"][:-1],
            float(arrays[f"{name}|error"][-1]),
        )
        for name in names
    }  # fmt: skip


def option_table(weights, curves: dict[str, WeightCurve], damage, unit: str = "parameters") -> list[Options]:
    """Option tables for `allocate`: `damage(name, curve)` gives the damage at each χ; cost in parameters or in bytes
    of the weights' stored dtype."""
    tables = []
    for weight in weights:
        curve = curves[weight.name]
        factor = weight.bytes // weight.parameters if unit == "bytes" else 1
        cost, dense = curve.parameters * factor, weight.parameters * factor
        tables.append(options(weight.name, curve.chi, cost, damage(weight.name, curve), dense))
    return tables
