"""What the χ board looks up: option tables of one model in one network under one metric, from what was measured.

Read from the workspace with NumPy alone; nothing here decomposes or imports torch, except the count of multiply-adds
of networks other than `lowrank`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import streamlit as st

from karipap_core import schemas
from karipap_core.checkpoint.reach import know
from karipap_core.errors import InputError
from karipap_core.networks.listed import NAMES
from karipap_core.plan import allocate, kind
from karipap_core.plan.budget import SCOPES
from karipap_core.plan.calibration import ALL, Calibration, group_of
from karipap_core.plan.curves import WeightCurve, build_curves, load_curves
from karipap_core.plan.kind import Kind, curves_name
from karipap_core.plan.places import seen_file
from karipap_core.plan.seen import Seen
from karipap_core.profiles import apart
from karipap_core.spectra.spectrum import METRICS
from karipap_core.workspace import Workspace
from pages.parts import chi_board, measured, profiles

FORMATS = ("none", "int8", "int4", "int3", "int2", "fp8", "auto")
EMBEDDINGS = tuple(kind.EMBEDDINGS)
PROPORTIONAL = ("uniform", "entropy")  # rules that scale every weight by one factor


def networks() -> tuple[str, ...]:
    """The networks that can be asked for, and the mix of all of them."""
    return *NAMES, "auto"


@dataclass(frozen=True)
class What:
    """What plans are made of: network, metric, the format of cores (None: as stored), what tables of tokens may be."""

    network: str
    metric: str
    quantize: str | None = None
    embedding: str = "dense"

    @property
    def listed(self) -> bool:
        """Whether a slider runs through several kinds (or groups of weights), which the core's option tables list."""
        return not self._alone or self.embedding != "dense"

    @property
    def _alone(self) -> bool:
        return self.quantize is None and kind.alone_or_whole(self.network)

    @property
    def packed(self) -> bool:
        """Whether a weight of a block may come to be stored in a format."""
        return any(each.quantize for each in self.kinds)

    def behind(self, prefix: str, runs: Callable[[], bool]) -> str | None:
        """What weights are fitted behind, as far as what they may become tells it (`kind.prefix_of`)."""
        return kind.prefix_of(
            prefix, {each.label: {"quantize": each.quantize, **dict(each.options)} for each in self.kinds}, runs
        )

    @property
    def kinds(self) -> list[Kind]:
        """Kinds of network that must have been measured for the weights of the blocks."""
        if self._alone:
            return [Kind(self.network)]
        return [each for each in kind.kinds_of(self.network, self.quantize) if each != kind.WHOLE]

    @property
    def table_kinds(self) -> list[Kind]:
        """The same for the tables of tokens."""
        if self.embedding == "dense":
            return []
        return [each for each in kind.table_kinds_of(self.embedding, self.quantize) if each != kind.WHOLE]


@dataclass(frozen=True)
class Tables:
    """rows and model as chi_board.py documents them; `table` their packed form; rules that can be looked up here;
    choices where a slider runs through several kinds."""

    what: What
    rule: str
    rules: tuple[str, ...]
    rows: list[dict]
    model: dict
    table: dict
    calibration: Calibration | None
    choices: "measured.Choices | None" = None
    notes: tuple[str, ...] = ()  # of weights that stay dense and have no row here

    @property
    def network(self) -> str:
        return self.what.network

    @property
    def metric(self) -> str:
        return self.what.metric

    @property
    def kind(self) -> str:
        return "proportional" if self.rule in PROPORTIONAL else "lagrangian"

    @property
    def names(self) -> list[str]:
        return [row["name"] for row in self.rows]


@dataclass(frozen=True)
class Sources:
    """The files behind the tables: curves by (kind's label, metric, whether of tables); None where nothing was
    measured."""

    curves: dict[tuple, Path | None]
    calibration: Path | None
    profile: Path | None
    reach: bool  # whether it is known what a plan can reach
    seen: Path | None

    @property
    def stamp(self) -> tuple:
        files = (*self.curves.values(), self.calibration, self.profile, self.seen)
        stamps = tuple((str(path), path.stat().st_mtime_ns) for path in files if path is not None)
        return (*stamps, self.reach)

    def measured(self, what: What) -> bool:
        """Whether all curves under this metric are here (low rank needs but the profile)."""
        wanted = [(each, False) for each in what.kinds] + [(each, True) for each in what.table_kinds]
        return all(
            self.curves[each.label, what.metric, table]
            or (each == Kind("lowrank") and not table and self.profile is not None)
            for each, table in wanted
        )


def home(view) -> Path:
    """The model's folder in the workspace."""
    return Workspace().model_dir(view.checkpoint.key)


def _profile(folder: Path):
    return profiles.loaded(str(folder), (folder / "profile.json").stat().st_mtime_ns)


def _newest(folder: Path, pattern: str) -> Path | None:
    found = [path for path in folder.glob(pattern) if not path.name.endswith(".partial.json")]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def sources(view, what: What) -> Sources:
    """What the workspace has of this, all of one calibration text where there is one."""
    folder, metric = home(view), what.metric
    calibration = _newest(folder / "calibration", f"{metric}-*.json")
    key = calibration.stem.removeprefix(f"{metric}-").removesuffix(ALL) if calibration else "*"

    def curves(one: Kind, of: str, table: bool) -> Path | None:
        return _newest(folder / "curves", curves_name(one, of, key, which="-tables" if table else ""))

    wanted = [(each, False) for each in what.kinds] + [(each, True) for each in what.table_kinds]
    found = {(k.label, of, table): curves(k, of, table) for k, table in wanted for of in {metric, "functional"}}
    kept = [path for path in profiles.folders(view) if metric in _profile(path).settings["metrics"]]
    profile = max(kept, key=lambda path: (path / "profile.json").stat().st_mtime, default=None)

    measured = profile and profile / "profile.json"
    seen = seen_file(folder, key)
    return Sources(found, calibration, measured, know(view.checkpoint), _newest(seen.parent, seen.name))


def available(view, what: What) -> bool:
    """Whether the board can be drawn with this."""
    return tables(view, what, None, {}) is not None


def metrics(view, network: str) -> list[str]:
    """Metrics that the board can be drawn under in this network, nothing quantized."""
    found = [What(network, metric) for metric in METRICS]
    return [what.metric for what in found if sources(view, what).measured(what)]


def tables(
    view,
    what: What,
    rule: str | None,
    special: dict[str, dict],
    unit: str = "parameters",
    scope: str = "model",
    prefix: str = kind.PREFIXES[0],
) -> Tables | None:
    """The tables for a rule (the best that was measured for None or an unknown one); None where nothing was measured.

    special: {weight: {"entry", "chi", "parameters", "bytes", "multiply_adds"}} of entries that are none of the options;
    such a weight has that one option. unit: what the budget counts, by which several kinds are held against each other.
    scope: a tower's name: the weights of that tower alone. prefix: as a draft's, which predictions go by.
    """
    found = sources(view, what)
    if not found.measured(what):
        return None
    sizes = ("chi", "parameters", "bytes", "multiply_adds")
    pinned = tuple(sorted((name, *(e.get(key) for key in sizes), str(e.get("entry"))) for name, e in special.items()))
    behind = what.behind(prefix, lambda: apart.may_run(view.checkpoint))
    if what.listed:
        return _listed(view.checkpoint.key, what, rule, unit, scope, behind, found.stamp, pinned, view, found, special)
    return _tables(view.checkpoint.key, what, rule, scope, behind, found.stamp, pinned, view, found)


def of(view, now) -> Tables | None:
    """The tables of a draft."""
    return tables(view, now.what, now.rule, now.special, now.unit, now.scope, now.prefix)


def _weights(view) -> list:
    """The weights of the blocks that a plan can compress, as far as that is known."""
    return [weight for weight in view.checkpoint.weights if weight.compressible]


def _tokens(view) -> list:
    """The tables of tokens that a plan can compress."""
    return [weight for weight in view.checkpoint.weights if weight.name in view.checkpoint.reachable_tables]


def _calibration(found: Sources, weights, seen: Seen) -> Calibration | None:
    """The calibration, if it knows all of these weights that its text reaches."""
    calibration = Calibration.load(found.calibration) if found.calibration else None
    known = calibration and all(w.name in calibration.levels for w in weights if w.name not in seen.unseen)
    return calibration if known else None


def _seen(found: Sources) -> Seen:
    """What weights saw of the calibration text; of a model measured before that was looked at, all of them did."""
    return Seen.from_json(schemas.read(found.seen, "seen")) if found.seen else Seen()


def _held(view, weights, seen: Seen, metric: str, rule: str, scope: str) -> frozenset[str]:
    """The weights that stay dense under a rule and in a budget's scope (see `Planner.held`)."""
    outside = {weight.name for weight in weights if scope not in SCOPES and weight.tower != scope}
    return seen.held(metric, rule) | outside


def _notes(view, seen: Seen, held: frozenset[str], calibration: Calibration | None) -> tuple[str, ...]:
    images = calibration is not None and "images" in calibration.text
    return tuple(seen.notes(view.checkpoint, {}, held, images))


def _rules(what: What, calibration, functional: bool, profile) -> tuple[str, ...]:
    rules = ["calibrated"] if calibration else []
    rules += ["loss"] if what.metric == "loss" else []
    rules += ["functional"] if functional else []
    rules += ["entropy"] if profile else []
    return (*rules, "uniform")


@st.cache_resource(max_entries=16, show_spinner="Reading what was measured …")
def _tables(model_key, what, rule, scope, behind, stamp, pinned, _view, _found: Sources) -> Tables | None:
    network, metric = what.network, what.metric
    profile = _profile(_found.profile.parent) if _found.profile else None
    weights = _weights(_view)
    curves = _curves(_view, weights, network, metric, _found.curves[network, metric, False], profile)
    if not curves or not weights:
        return None
    seen = _seen(_found)
    calibration = _calibration(_found, weights, seen)
    file = _found.curves[network, "functional", False]
    functional = curves if metric == "functional" else file and load_curves(file)
    rules = _rules(what, calibration, bool(functional), profile)
    used = rule if rule in rules else rules[0]
    held = _held(_view, weights, seen, metric, used, scope)
    weights = [weight for weight in weights if weight.name not in held]
    if not weights:
        return None
    special = {name: (chi, parameters, adds) for name, chi, parameters, _, adds, _ in pinned}
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
    model = _model(_view.checkpoint, weights, calibration, used, what, scope, behind)
    notes = _notes(_view, seen, held, calibration)
    packed = chi_board.board_data(rows, model, network)
    return Tables(what, used, rules, rows, model, packed, calibration, notes=notes)


@st.cache_resource(max_entries=16, show_spinner="Reading what was measured …")
def _listed(
    model_key, what, rule, unit, scope, behind, stamp, pinned, _view, _found: Sources, _special
) -> Tables | None:
    """The tables of several kinds, as the core lists them."""
    from karipap_core.plan.choice import Choice
    from karipap_core.plan.options import Candidates, OptionTables

    profile = _profile(_found.profile.parent) if _found.profile else None
    weights = _weights(_view)
    tokens = _tokens(_view) if what.embedding != "dense" else []
    if not weights or (what.embedding != "dense" and not _found.reach):
        return None
    seen = _seen(_found)
    calibration = _calibration(_found, weights, seen)
    network = kind.EMBEDDINGS[what.embedding]
    if calibration and not all(calibration.key(table.name, network) in calibration.levels for table in tokens):
        return None  # what the tables of tokens are worth has to be measured first
    functional = what.metric == "functional" or all(
        file for (_, metric, _), file in _found.curves.items() if metric == "functional"
    )
    rules = _rules(what, calibration, functional, profile)
    used = rule if rule in rules else rules[0]
    study = measured.Measured(_view.checkpoint, weights, tokens, _found.curves, profile, calibration, seen)
    candidates = Candidates(study, Choice(what.network, what.quantize, what.embedding), what.metric)
    held = _held(_view, weights, seen, what.metric, used, scope)
    if scope not in SCOPES:
        held |= {table.name for table in tokens}
    if held.issuperset(weight.name for weight in weights):
        return None
    choices = measured.Choices(OptionTables(candidates, used, unit, _special, None, held), calibration is not None)
    if used == "entropy":
        choices.add_shares()
    for row in choices.rows:
        if special := _special.get(row["name"]):
            _pin_listed(row, special, measured.label(special["entry"], candidates.choice))
    weights = [weight for weight in candidates.weights if weight.name not in held]
    model = _model(_view.checkpoint, weights, calibration, used, what, scope, behind)
    packed = chi_board.board_data(choices.rows, model, what.network)
    notes = _notes(_view, seen, held, calibration)
    return Tables(what, used, rules, choices.rows, model, packed, calibration, choices, notes)


def _curves(view, weights, network, metric, file: Path | None, profile) -> dict[str, WeightCurve] | None:
    curves = load_curves(file) if file else None
    if curves is None and network == "lowrank" and profile:
        curves = build_curves(weights, Kind(network), metric, profile, None)
    return curves if curves and all(weight.name in curves for weight in weights) else None


def _row(weight, curve: WeightCurve, network: str, calibration: Calibration | None) -> dict:
    damage = calibration.damage(weight.name, curve.error) if calibration else 0.5 * curve.error
    return {
        "name": weight.name,
        "layer": weight.layer,
        "tower": weight.tower,
        "role": weight.role,
        "expert": weight.expert,
        "shape": tuple(weight.shape),
        "parameters_dense": weight.parameters,
        "bytes_per_parameter": weight.bytes // weight.parameters,
        "chi": curve.chi,
        "parameters": curve.parameters,
        "damage": damage,
        "multiply_adds": multiply_adds(network, tuple(weight.shape), curve.chi),
    }


def _pin(row: dict, chi: int, parameters: int, adds: int) -> None:
    """Leave a weight the one option that its special entry is; its damage is read at that size."""
    at = np.interp(parameters, row["parameters"], np.arange(len(row["chi"])))
    damage = float(np.interp(at, np.arange(len(row["chi"])), row["damage"]))
    single = {"chi": [chi], "parameters": [parameters], "damage": [damage], "multiply_adds": [adds]}
    row.update({key: np.asarray(value) for key, value in single.items()})
    if "objective" in row:
        row["objective"] = row["damage"]


def _pin_listed(row: dict, special: dict, word: str) -> None:
    """The same where options are listed: the special entry is option 1."""
    size = special["bytes"] / row["bytes_per_parameter"]
    at = np.interp(size, row["steps"], np.arange(len(row["chi"])))
    damage = float(np.interp(at, np.arange(len(row["chi"])), row["damage"]))
    single = {"chi": [1], "parameters": [special["parameters"]], "bytes": [special["bytes"]], "damage": [damage]}
    row.update({key: np.asarray(value) for key, value in single.items()})
    row.update(steps=np.array([size]), labels=[word], no_dense=False)
    if "objective" in row:
        row["objective"] = row["damage"]


def multiply_adds(network: str, shape: tuple[int, int], chis) -> np.ndarray:
    """Multiply-adds a token of a weight of this shape at each χ (dense: out·in)."""
    if network == "lowrank":
        return np.asarray(chis) * sum(shape)
    return _multiply_adds(network, shape, tuple(int(chi) for chi in chis))


@lru_cache(maxsize=20000)
def adds_of(entry: str) -> int:
    """Multiply-adds a token of a plan entry (as JSON)."""
    from karipap_core.networks import spec_from_json

    return spec_from_json(json.loads(entry)).multiply_adds(1)


@st.cache_resource(max_entries=64, show_spinner="Counting multiply-adds …")
def _multiply_adds(network: str, shape: tuple[int, int], chis: tuple[int, ...]) -> np.ndarray:
    from karipap_core import networks

    spec = networks.NETWORKS[network].for_shape(*shape, 1)
    return np.array([spec.with_chi(chi).multiply_adds(1) for chi in chis])


def _model(
    checkpoint, weights, calibration: Calibration | None, rule: str, what: What, scope: str, behind: str | None
) -> dict:
    """What no χ changes, and what predictions run through: the curve of calibrated plans, whose error is theirs."""
    causal = calibration is not None and calibration.measure == "kl"
    group = group_of([what.network], what.packed, what.embedding != "dense", behind)
    fit = calibration.fit(group) if calibration else None
    inside = [w for w in checkpoint.weights if w.compressible and (scope in SCOPES or w.tower == scope)]
    shown = {weight.name for weight in weights}
    return {
        "held_parameters": sum(weight.parameters for weight in inside if weight.name not in shown),
        "held_bytes": sum(weight.bytes for weight in inside if weight.name not in shown),
        "other_parameters": checkpoint.parameters - sum(weight.parameters for weight in weights),
        "other_bytes": checkpoint.bytes - sum(weight.bytes for weight in weights),
        "dense_loss": fit.dense_loss if causal else None,
        "vocabulary": checkpoint.vocabulary if causal else None,
        "points": fit.points if fit else None,
        "error": fit.error if fit and rule == "calibrated" else None,
        "checked": fit.checked if fit else None,
        "fit": fit,
        "measure": calibration.measure if calibration else "kl",
    }


def choose(
    found: Tables, budget: float, unit: str, scope: str, chi: dict[str, int], held: tuple[str, ...]
) -> dict[str, int]:
    """χ of every weight by the tables' rule at a budget (a kept fraction), those `held` (locked or set by hand) as they
    are.

    The same choice as the board's slider makes. Raises InputError where the budget cannot be met.
    """
    part = "other" if scope == "model" else "held"
    other = found.model.get(f"{part}_{'bytes' if unit == 'bytes' else 'parameters'}") or 0
    dense = sum(_dense(row, unit) for row in found.rows)
    limit = budget * (dense + other) - other
    options, shares, mates = [], {}, {}
    for group in _groups(found.rows):
        first = group[0]["name"]
        if any(row["name"] in held for row in group):
            limit -= sum(_cost(row, chi.get(row["name"], 0), unit) for row in group)
            continue
        options.append(_options(first, group, unit))
        shares[first] = sum(row.get("share") or row["parameters_dense"] for row in group)
        mates[first] = [row["name"] for row in group]
    if not options:
        return dict(chi)
    if limit < allocate.smallest(options):
        around = " around what is locked or set by hand: release or unlock some" if held else ""
        least = (allocate.smallest(options) - limit) / (dense + other) + budget
        raise InputError(f"At least {least:.1%} must be kept with this network{around}.")
    if found.rule == "uniform":
        picked = allocate.uniform(options, limit)
    elif found.rule == "entropy":
        logs = {name: float(np.log(share)) for name, share in shares.items()}
        per_chi = {table.name: float(table.cost[0] / max(1, table.chi[0])) for table in options}
        entropies = {name: logs[name] - float(np.log(per_chi[name])) for name in logs}
        picked = allocate.by_entropy(options, limit, entropies)
    else:
        picked = allocate.allocate(options, limit)
    return dict(chi) | {name: int(table.chi[picked[table.name]]) for table in options for name in mates[table.name]}


def _groups(rows: list[dict]) -> list[list[dict]]:
    """Rows that are chosen for as one."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(row.get("group") or row["name"], []).append(row)
    return list(groups.values())


def _dense(row: dict, unit: str) -> float:
    return row["parameters_dense"] * (row["bytes_per_parameter"] if unit == "bytes" else 1)


def _costs(row: dict, unit: str) -> np.ndarray:
    if unit == "bytes" and row.get("bytes") is not None:
        return np.asarray(row["bytes"])
    return np.asarray(row["parameters"]) * (row["bytes_per_parameter"] if unit == "bytes" else 1)


def _cost(row: dict, chi: int, unit: str) -> float:
    if unit == "bytes":
        return chi_board.bytes_at(row, chi)
    return float(np.interp(chi, row["chi"], row["parameters"])) if chi else float(row["parameters_dense"])


def _options(name: str, group: list[dict], unit: str) -> allocate.Options:
    """The option table of a weight, or of weights that move together."""
    cost = sum(_costs(row, unit) for row in group)
    value = sum(np.asarray(row["damage"] if row.get("objective") is None else row["objective"]) for row in group)
    table = allocate.options(name, group[0]["chi"], cost, value, sum(_dense(row, unit) for row in group))
    if not group[0].get("no_dense") or len(table.chi) == 1:
        return table
    return allocate.Options(name, table.chi[:-1], table.cost[:-1], table.damage[:-1])
