"""What every weight of a study can become, and what each possibility costs and damages.

`Candidates` are the kinds of network that a choice allows, with their curves under one metric. `OptionTables` holds
them against each other under a rule: for every weight, or group of weights that share cores, a table of options of
which none costs more and damages no less than another. The planner chooses from these tables, the dashboard's board
shows them. Nothing here imports torch before a network is made.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.reach import coverage, in_words
from karipap_core.errors import InputError, unknown
from karipap_core.plan.allocate import Options, merged, together
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.choice import Choice
from karipap_core.plan.curves import Curves, GroupCurve, WeightCurve
from karipap_core.plan.document import Entry
from karipap_core.plan.kind import EMBEDDINGS, WHOLE, Kind, kinds_of, networks_in, table_kinds_of
from karipap_core.plan.seen import Seen
from karipap_core.spectra.spectrum import METRICS

# f(kind, name of a weight, parameters, error, total) → what each of these errors damages; see `Candidates.damage`.
Damage = Callable[[Kind, str, np.ndarray, np.ndarray, float], np.ndarray]


class Measurements(Protocol):
    """As much of a study (study.py) as options need; the dashboard has one that reads what is on disk and no more."""

    @property
    def checkpoint(self) -> Checkpoint: ...
    @property
    def weights(self) -> list[Weight]: ...
    @property
    def tables(self) -> list[Weight]: ...
    def curves(self, kind: Kind, metric: str, weights: list[Weight] | None = None) -> Curves: ...
    def calibration(self, metric: str, tables: Sequence[Weight] = (), kind: Kind | None = None) -> Calibration: ...
    def has_calibration(self, metric: str) -> bool: ...
    def entropies(self, metric: str) -> dict[str, float]: ...
    @property
    def seen(self) -> Seen: ...


@dataclass(frozen=True)
class Pick:
    """What one weight is under an option: a kind at χ (0: the weight whole), or its part of a group's size `level`."""

    kind: Kind
    chi: int
    level: int | None = None


class Candidates:
    """The kinds of network that the weights of a study can become under a choice, and their curves under a metric.

    kinds : of a weight in a block, the network itself first.  table_kinds : of a table of tokens.  tables : the tables
    that may change.  weights : all weights that may, those of the blocks first.  Raises InputError for a metric,
    network, format, structure or embedding that is not known, and where the model has nothing to compress.
    """

    def __init__(self, study: Measurements, choice: Choice, metric: str) -> None:
        if metric not in METRICS:
            raise unknown("Metric", metric, METRICS)
        if choice.embedding not in EMBEDDINGS:
            raise unknown("Embedding", choice.embedding, EMBEDDINGS)
        self.study, self.choice, self.metric, self.checkpoint = study, choice, metric, study.checkpoint
        self.kinds = kinds_of(choice.network, choice.quantize, choice.structure)
        self.mixed = len(networks_in(choice.network)) > 1
        self.table_kinds = table_kinds_of(choice.embedding, choice.quantize)
        self.tables = study.tables if choice.embedding != "dense" else []
        self.weights = [*study.weights, *self.tables]
        self._tables = {weight.name for weight in self.tables}
        if not study.weights:
            said = in_words(coverage(self.checkpoint))
            raise InputError(f"{self.checkpoint.name} has no weight that can be compressed: a plan {said}.")
        for kind in self.kinds:
            self.curves(kind)
        for kind in self.table_kinds:
            self.curves(kind, tables=True)

    def kinds_for(self, name: str) -> list[Kind]:
        """The kinds that this weight can become; `Options.kind` counts them."""
        return self.table_kinds if name in self._tables else self.kinds

    @property
    def grouped(self) -> Kind | None:
        """The kind whose options are those of whole groups of weights, where there is one."""
        return next((kind for kind in self.kinds if kind.grouped), None)

    # Curves.

    def curves(self, kind: Kind, metric: str | None = None, tables: bool = False) -> Curves:
        """The curves of a kind, of the blocks' weights or of the tables, under this metric or another one: a list of
        `GroupCurve` where weights share cores, {} for the weight as it is."""
        if kind == WHOLE:
            return {}
        return self.study.curves(kind, metric or self.metric, *([self.tables] if tables else []))

    def curve(self, kind: Kind, name: str, metric: str | None = None) -> "CurveOf":
        """The curve of one weight in a kind that is not the weight as it is."""
        curves = self.curves(kind, metric, name in self._tables)
        if isinstance(curves, dict):
            one = curves[name]
            return CurveOf(one, one.parameters, one.error, one.total)
        group = next(curve for curve in curves if name in curve.members)
        column = group.members.index(name)
        return CurveOf(group, group.parameters, group.error[:, column], float(group.total[column]))

    # Damage and cost.

    def calibration(self) -> Calibration:
        """What an error damages, as measured on this model, its tables of tokens included."""
        return self.study.calibration(self.metric, self.tables, self.table_kinds[0] if self.tables else None)

    def damage(self, rule: str, scale: Mapping[str, float] | None = None) -> Damage:
        """What a rule calls the damage of an error of one weight, never below 0.

        `calibrated` and `refined`: nats a token, as measured, times the weight's `scale` (default 1); `functional`: the
        error of the weight's outputs relative to them; any other rule: half the metric's error.
        """
        if rule in ("calibrated", "refined"):
            calibration, factors = self.calibration(), scale or {}
            return lambda kind, name, parameters, error, total: (
                calibration.damage(name, error, kind.network) * factors.get(name, 1.0)
            )
        if rule == "functional":
            return self._functional
        return lambda kind, name, parameters, error, total: 0.5 * error

    def _functional(self, kind: Kind, name: str, parameters: np.ndarray, error: np.ndarray, total: float) -> np.ndarray:
        if self.metric != "functional":
            curve = self.curve(kind, name, "functional")
            error, total = np.interp(parameters, curve.parameters, curve.error), curve.total
        return error / max(total, float(np.finfo(float).tiny))

    def cost(self, curve: WeightCurve | GroupCurve, weight: Weight, unit: str) -> np.ndarray:
        """In bytes as stored, or in numbers of 16 bits: a quantized number counts as its bits / 16."""
        if unit == "bytes":
            return curve.bytes(weight.bytes // weight.parameters)
        return curve.bytes(2) / 2

    def entry_cost(self, name: str, entry: dict, unit: str) -> float:
        """The cost of a plan's entry; see `cost`. Where weights share cores, what is stored with this one."""
        weight, spec = self.checkpoint.weight(name), Entry.of(entry).spec
        itemsize = weight.bytes // weight.parameters if unit == "bytes" else 2
        size = weight.parameters * itemsize if spec is None else spec.bytes(itemsize)
        return size if unit == "bytes" else size / 2

    def dense_cost(self, names: Iterable[str], unit: str) -> float:
        """What these weights cost as they are."""
        weights = [self.checkpoint.weight(name) for name in names]
        return float(sum(weight.bytes if unit == "bytes" else weight.parameters for weight in weights))

    # What a pick stands for.

    def entry(self, name: str, pick: Pick) -> Entry:
        """The plan's entry of a pick."""
        if pick.kind == WHOLE:
            return Entry.made(None)
        if pick.level is None:
            return Entry.made(pick.kind.spec(self.checkpoint.weight(name).shape, pick.chi))
        group = self.curve(pick.kind, name).of
        assert isinstance(group, GroupCurve)
        return Entry(group.entries[pick.level][name])

    def figures(self, name: str, picks: Sequence[Pick], damage: Damage) -> dict[str, np.ndarray]:
        """Of each pick of a weight: "parameters" (numbers of 16 bits), "bytes" as stored, "damage". Weights that share
        cores pay for them in equal parts."""
        weight = self.checkpoint.weight(name)
        itemsize = weight.bytes // weight.parameters
        found = {key: np.zeros(len(picks)) for key in ("parameters", "bytes", "damage")}
        places: dict[Kind, list[int]] = {}
        for place, pick in enumerate(picks):
            places.setdefault(pick.kind, []).append(place)
        for kind, at in places.items():
            if kind == WHOLE:
                found["parameters"][at], found["bytes"][at] = weight.parameters, weight.bytes
                continue
            curve = self.curve(kind, name)
            if isinstance(curve.of, GroupCurve):
                share, levels = len(curve.of.members), np.array([picks[place].level for place in at])
            else:
                share, levels = 1, np.searchsorted(curve.of.chi, [picks[place].chi for place in at])
            found["parameters"][at] = curve.of.bytes(2)[levels] / 2 / share
            found["bytes"][at] = curve.of.bytes(itemsize)[levels] / share
            lost = damage(kind, name, curve.parameters[levels], curve.error[levels], curve.total)
            found["damage"][at] = np.maximum(lost, 0)
        return found


@dataclass(frozen=True)
class CurveOf:
    """One weight's part of a curve: error and total are the weight's, parameters those of all that share its cores."""

    of: WeightCurve | GroupCurve
    parameters: np.ndarray
    error: np.ndarray
    total: float


class OptionTables:
    """The option table of every weight, or of every group of weights where a kind shares cores, under one rule.

    rule : says what an option damages, see `Candidates.damage`.  unit : of cost, "parameters" or "bytes".  locked :
    names of weights that are pinned: their groups are not formed.  scale : see `Candidates.damage`.  without : weights
    that have no options here.  tables : each sorted by rising cost, a group's name its members' joined by "+".
    """

    def __init__(
        self,
        candidates: Candidates,
        rule: str,
        unit: str,
        locked: Collection[str] = (),
        scale: Mapping[str, float] | None = None,
        without: Collection[str] = (),
    ) -> None:
        self.candidates, self.rule, self.unit = candidates, rule, unit
        self._damage = candidates.damage(rule, scale)
        self._groups: dict[str, list[dict[str, Pick]]] = {}  # what the members are under each option of a group
        self._alone: dict[Kind, dict[str, Options]] = {}  # the table of each weight or group in one kind alone
        singles = {w.name: self._single(w) for w in candidates.weights if w.name not in without}
        self.tables: list[Options] = []
        if (kind := candidates.grouped) is not None:
            for group in candidates.curves(kind):
                assert isinstance(group, GroupCurve)
                mine = [singles.pop(name) for name in group.members if name in singles]
                free = not any(name in locked or name in without for name in group.members)
                self.tables += [self._group(group, kind, mine)] if free else mine
        self.tables += singles.values()

    def picks(self, table: Options) -> list[dict[str, Pick]]:
        """What each member of a table is, option by option: {weight: pick}."""
        if table.name in self._groups:
            return self._groups[table.name]
        kinds = self.candidates.kinds_for(table.name)
        return [
            {table.name: Pick(kinds[kind], chi)} for kind, chi in zip(_kinds(table), table.chi.tolist(), strict=True)
        ]

    def members(self, table: Options) -> list[str]:
        """The weights of a table: one, or those of a group."""
        return list(self._groups[table.name][0]) if table.name in self._groups else [table.name]

    def is_group(self, table: Options) -> bool:
        """Whether a table's options are those of a group."""
        return table.name in self._groups

    def entries(self, table: Options, index: int) -> dict[str, Entry]:
        """The plan's entries of an option of a table."""
        if table.name in self._groups:
            picks = self._groups[table.name][index]
        else:
            kinds = self.candidates.kinds_for(table.name)
            picks = {table.name: Pick(kinds[_kinds(table)[index]], int(table.chi[index]))}
        return {name: self.candidates.entry(name, pick) for name, pick in picks.items()}

    def entropies(self, tables: Iterable[Options]) -> dict[str, float]:
        """The entropy (nats) of every table's weight; of a group that of its weights' effective ranks together."""
        known = self.candidates.study.entropies(self.candidates.metric)
        return {table.name: float(np.log(sum(np.exp(known[n]) for n in self.members(table)))) for table in tables}

    def add_reasons(self, weights: dict[str, dict]) -> None:
        """Gives each entry of a mixed plan its `why`: the least damage of every kind at no more than its size."""
        for name, entry in weights.items():
            members = entry.get("members") or [name]
            dense = self.candidates.dense_cost(members, self.unit)
            share = sum(self.candidates.entry_cost(m, weights[m], self.unit) for m in members) / dense
            rivals = []
            for kind, tables in self._alone.items():
                names = ["+".join(members)] if kind.grouped else members
                if all(one in tables for one in names):
                    least = sum(_least(tables[one], share * dense / len(names)) for one in names)
                    rivals.append((least, kind.label))
            said = ", ".join(f"{label} {lost:.3g}" for lost, label in sorted(rivals) if np.isfinite(lost))
            why = f"Predicted damage in nats at {share:.1%} of its size or less: {said}."
            weights[name] = Entry.of(entry).marked(why=why)

    def _single(self, weight: Weight) -> Options:
        """The options of one weight over all its kinds."""
        whole, tables = self.candidates.dense_cost([weight.name], self.unit), []
        for index, kind in enumerate(self.candidates.kinds_for(weight.name)):
            if kind == WHOLE:
                table = Options(weight.name, np.zeros(1, np.int64), np.array([whole]), np.zeros(1))
            elif kind.grouped:  # its options are those of a whole group
                table = Options(weight.name, np.empty(0, np.int64), np.empty(0), np.empty(0))
            else:
                table = self._of_kind(weight, kind, whole)
            self._alone.setdefault(kind, {})[weight.name] = table
            tables.append(replace(table, kind=np.full(len(table.chi), index)))
        return merged(weight.name, tables)

    def _of_kind(self, weight: Weight, kind: Kind, whole: float) -> Options:
        curve = self.candidates.curve(kind, weight.name)
        assert isinstance(curve.of, WeightCurve)
        cost = self.candidates.cost(curve.of, weight, self.unit).astype(float)
        lost = np.maximum(self._damage(kind, weight.name, curve.parameters, curve.error, curve.total), 0)
        cheaper = cost < whole
        return Options(weight.name, curve.of.chi[cheaper], cost[cheaper], lost[cheaper])

    def _group(self, group: GroupCurve, kind: Kind, singles: list[Options]) -> Options:
        """The sizes of a group that shares cores, beside what its weights can be one by one."""
        name = "+".join(group.members)
        cost = self.candidates.cost(group, self.candidates.checkpoint.weight(group.members[0]), self.unit)
        lost = sum(
            (
                self._damage(kind, member, group.parameters, group.error[:, column], group.total[column])
                for column, member in enumerate(group.members)
            ),
            np.zeros(len(group.entries)),
        )
        shared = Options(name, np.arange(len(group.entries)), cost.astype(float), lost)
        self._alone.setdefault(kind, {})[name] = shared
        apart, indices = together(name, singles)
        table = merged(name, [shared, apart])
        options = {single.name: self.picks(single) for single in singles}
        picks = []
        for at, which in zip(table.chi.tolist(), _kinds(table), strict=True):
            if which == 0:
                picks.append({member: Pick(kind, 0, at) for member in group.members})
            else:
                picks.append({one: options[one][index][one] for one, index in indices[at].items()})
        self._groups[name] = picks
        return table


def _kinds(table: Options) -> list[int]:
    return [] if table.kind is None else table.kind.tolist()


def _least(table: Options, room: float) -> float:
    return float(min(table.damage[table.cost <= room * (1 + 1e-9)], default=np.inf))
