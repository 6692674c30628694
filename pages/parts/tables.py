"""What the χ board looks up: option tables of one model in one network under one metric, from what was measured.

Read from the workspace with NumPy alone; nothing here decomposes or imports torch, except the count of multiply-adds
of networks other than `lowrank`.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import streamlit as st

from karipap_core import allocate
from karipap_core.calibrate import Calibration
from karipap_core.curves import Kind, WeightCurve, build_curves, load_curves
from karipap_core.errors import InputError
from karipap_core.spectrum import METRICS
from karipap_core.workspace import Workspace, read_json
from pages.parts import chi_board, profiles

NETWORKS = ("lowrank", "mpo")
PROPORTIONAL = ("uniform", "entropy")  # rules that scale every weight by one factor
LIVE = ("calibrated", "loss", "functional", "entropy", "uniform")  # rules that only look up, the best first


@dataclass(frozen=True)
class Tables:
    """rows and model as chi_board.py documents them; `table` their packed form; rules that can be looked up here."""

    network: str
    metric: str
    rule: str
    rules: tuple[str, ...]
    rows: list[dict]
    model: dict
    table: dict
    calibration: Calibration | None

    @property
    def kind(self) -> str:
        return "proportional" if self.rule in PROPORTIONAL else "lagrangian"

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in self.rows]


@dataclass(frozen=True)
class Sources:
    """The files behind the tables of one (network, metric); None where nothing was measured."""

    curves: Path | None
    functional: Path | None
    calibration: Path | None
    profile: Path | None
    reachable: Path | None

    @property
    def stamp(self) -> tuple:
        return tuple((str(path), path.stat().st_mtime_ns) for path in vars(self).values() if path is not None)


def home(view) -> Path:
    """The model's folder in the workspace."""
    return Workspace().profile_dir(view.checkpoint.fingerprint, "any").parents[1]


def _profile(folder: Path):
    return profiles.loaded(str(folder), (folder / "profile.json").stat().st_mtime_ns)


def _newest(folder: Path, pattern: str) -> Path | None:
    found = [path for path in folder.glob(pattern) if not path.name.endswith(".partial.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def sources(view, network: str, metric: str) -> Sources:
    """What the workspace has for this network under this metric, all of one calibration text where there is one."""
    folder = home(view)
    calibration = _newest(folder / "calibration", f"{metric}-*.json")
    key = calibration.stem.removeprefix(f"{metric}-") if calibration else "*"

    def curves(of: str) -> Path | None:
        return _newest(folder / "curves", f"{network}-{of}-{'none' if of == 'weight' else key}.safetensors")

    kept = [path for path in profiles.folders(view) if metric in _profile(path).settings["metrics"]]
    profile = max(kept, key=lambda path: (path / "profile.json").stat().st_mtime, default=None)
    reachable = folder / "reachable.json"
    return Sources(
        curves(metric), curves("functional"), calibration, profile and profile / "profile.json",
        reachable if reachable.is_file() else None,
    )  # fmt: skip


def available(view, network: str, metric: str) -> bool:
    """Whether the board can be drawn in this network under this metric."""
    found = sources(view, network, metric)
    return bool(found.curves or (network == "lowrank" and found.profile))


def metrics(view, network: str) -> list[str]:
    """Metrics that the board can be drawn under in this network."""
    return [metric for metric in METRICS if available(view, network, metric)]


def tables(view, network: str, metric: str, rule: str | None, special: dict[str, dict]) -> Tables | None:
    """The tables for a rule (the best that was measured for None or an unknown one); None where nothing was measured.

    special: {weight: {"chi", "parameters", "multiply_adds"}} of entries that are not this network's own; such a weight
    has that one option.
    """
    found = sources(view, network, metric)
    pinned = tuple(sorted((name, e["chi"], e["parameters"], e["multiply_adds"]) for name, e in special.items()))
    return _tables(view.checkpoint.fingerprint, network, metric, rule, found.stamp, pinned, view, found)


@st.cache_resource(max_entries=16, show_spinner="Reading what was measured …")
def _tables(fingerprint, network, metric, rule, stamp, pinned, _view, _found: Sources) -> Tables | None:
    profile = _profile(_found.profile.parent) if _found.profile else None
    names = set(read_json(_found.reachable)["weights"]) if _found.reachable else None
    weights = [w for w in _view.checkpoint.weights if w.compressible and (names is None or w.name in names)]
    curves = _curves(_view, weights, network, metric, _found.curves, profile)
    if not curves or not weights:
        return None
    calibration = Calibration.from_json(read_json(_found.calibration)) if _found.calibration else None
    if calibration and not all(weight.name in calibration.levels for weight in weights):
        calibration = None
    functional = curves if metric == "functional" else _found.functional and load_curves(_found.functional)
    rules = ["calibrated"] if calibration else []
    rules += ["loss"] if metric == "loss" else []
    rules += ["functional"] if functional else []
    rules += ["entropy"] if profile else []
    rules = (*rules, "uniform")
    used = rule if rule in rules else rules[0]
    special = {name: sizes for name, *sizes in pinned}
    rows = []
    for weight in weights:
        curve = curves[weight.name]
        row = _row(weight, curve, network, calibration)
        if used == "functional":
            of = functional[weight.name]
            row["objective"] = np.interp(curve.chi, of.chi, of.error / max(of.total, np.finfo(float).tiny))
        elif used == "loss":
            row["objective"] = 0.5 * curve.error
        elif used == "entropy":
            spectra = profile.weight(weight.name)["spectra"]
            row["share"] = float(np.exp(spectra[metric]["entropy"])) * float(curve.parameters[0] / curve.chi[0])
        if weight.name in special:
            _pin(row, *special[weight.name])
        rows.append(row)
    model = _model(_view.checkpoint, weights, calibration, used)
    return Tables(network, metric, used, rules, rows, model, chi_board.board_data(rows, model, network), calibration)


def _curves(view, weights, network, metric, file: Path | None, profile) -> dict[str, WeightCurve] | None:
    curves = load_curves(file) if file else None
    if curves is None and network == "lowrank" and profile:
        curves = build_curves(view.checkpoint, weights, Kind(network), metric, profile, None)
    return curves if curves and all(weight.name in curves for weight in weights) else None


def _row(weight, curve: WeightCurve, network: str, calibration: Calibration | None) -> dict:
    damage = calibration.damage(weight.name, curve.error) if calibration else 0.5 * curve.error
    return {
        "name": weight.name, "layer": weight.layer, "role": weight.role, "expert": weight.expert,
        "shape": tuple(weight.shape), "parameters_dense": weight.parameters,
        "bytes_per_parameter": weight.bytes // weight.parameters,
        "chi": curve.chi, "parameters": curve.parameters, "damage": damage,
        "multiply_adds": multiply_adds(network, tuple(weight.shape), curve.chi),
    }  # fmt: skip


def _pin(row: dict, chi: int, parameters: int, adds: int) -> None:
    """Leave a weight the one option that its special entry is; its damage is read at that size."""
    at = np.interp(parameters, row["parameters"], np.arange(len(row["chi"])))
    damage = float(np.interp(at, np.arange(len(row["chi"])), row["damage"]))
    single = {"chi": [chi], "parameters": [parameters], "damage": [damage], "multiply_adds": [adds]}
    row.update({key: np.asarray(value) for key, value in single.items()})
    if "objective" in row:
        row["objective"] = row["damage"]


def multiply_adds(network: str, shape: tuple[int, int], chis) -> np.ndarray:
    """Multiply-adds a token of a weight of this shape at each χ (dense: out·in)."""
    if network == "lowrank":
        return np.asarray(chis) * sum(shape)
    return _multiply_adds(network, shape, tuple(int(chi) for chi in chis))


@st.cache_resource(max_entries=64, show_spinner="Counting multiply-adds …")
def _multiply_adds(network: str, shape: tuple[int, int], chis: tuple[int, ...]) -> np.ndarray:
    from karipap_core import networks

    spec = networks.NETWORKS[network].for_shape(*shape, 1)
    return np.array([spec.with_chi(chi).multiply_adds(1) for chi in chis])


def _model(checkpoint, weights, calibration: Calibration | None, rule: str) -> dict:
    """What no χ changes, and what predictions run through: the curve of calibrated plans, whose error is theirs."""
    causal = calibration is not None and calibration.measure == "kl"
    return {
        "other_parameters": checkpoint.parameters - sum(weight.parameters for weight in weights),
        "other_bytes": checkpoint.bytes - sum(weight.bytes for weight in weights),
        "dense_loss": calibration.dense_loss if causal else None,
        "points": calibration.points if calibration else None,
        "error": calibration.error if calibration and rule == "calibrated" else None,
        "measure": calibration.measure if calibration else "kl",
    }


def choose(
    found: Tables, budget: float, unit: str, scope: str, chi: dict[str, int], locked: tuple[str, ...]
) -> dict[str, int]:
    """χ of every weight by the tables' rule at a budget (a kept fraction), locked weights as they are.

    The same choice as the board's slider makes. Raises InputError where the budget cannot be met.
    """
    size = {row["name"]: row["bytes_per_parameter"] if unit == "bytes" else 1 for row in found.rows}
    other = 0 if scope == "blocks" else found.model["other_bytes" if unit == "bytes" else "other_parameters"]
    dense = sum(row["parameters_dense"] * size[row["name"]] for row in found.rows)
    limit = budget * (dense + other) - other
    options, shares = [], {}
    for row in found.rows:
        factor, name = size[row["name"]], row["name"]
        if name in locked:
            at = chi.get(name, 0)
            kept = float(np.interp(at, row["chi"], row["parameters"])) if at else row["parameters_dense"]
            limit -= factor * kept
            continue
        value = row["objective"] if row.get("objective") is not None else row["damage"]
        cost, whole = np.asarray(row["parameters"]) * factor, row["parameters_dense"] * factor
        options.append(allocate.options(name, row["chi"], cost, value, whole))
        shares[name] = row.get("share", row["parameters_dense"])
    if not options:
        return dict(chi)
    if limit < allocate.smallest(options):
        least = (allocate.smallest(options) - limit) / (dense + other) + budget
        raise InputError(f"At least {least:.1%} must be kept with this network and these locks.")
    if found.rule == "uniform":
        picked = allocate.uniform(options, limit)
    elif found.rule == "entropy":
        logs = {name: float(np.log(share)) for name, share in shares.items()}
        per_chi = {table.name: float(table.cost[0] / max(1, table.chi[0])) for table in options}
        entropies = {name: logs[name] - float(np.log(per_chi[name])) for name in logs}
        picked = allocate.by_entropy(options, limit, entropies)
    else:
        picked = allocate.allocate(options, limit)
    return dict(chi) | {table.name: int(table.chi[picked[table.name]]) for table in options}
