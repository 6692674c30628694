"""Several networks or formats behind one slider: the core's own option tables, from what the workspace holds.

`Measured` is as much of a study (plan/study.py) as a `Planner`'s tables need, and measures nothing. `listed`
turns those tables into rows of the board: one list of options a weight, or a group of weights that share cores.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.curves import build_curves, load_curves
from karipap_core.plan.document import DENSE
from karipap_core.plan.kind import Kind

SHORT = {"lowrank": "rank", "disentangled": "dis", "tt_embedding": "tt"}


class Measured:
    """files: {(label of the kind, metric, whether of tables): curves}. Raises InputError where one is asked for that is
    not there."""

    def __init__(self, checkpoint, weights, tables, files: dict[tuple, Path | None], profile, calibration) -> None:
        self.checkpoint, self.weights, self.tables = checkpoint, weights, tables
        self.files, self.profile, self.found = files, profile, calibration
        self.read: dict[tuple, object] = {}

    def curves(self, kind: Kind, metric: str, weights=None):
        key = (kind.label, metric, weights is not None)
        if key not in self.read:
            file = self.files.get(key)
            if file is not None:
                self.read[key] = load_curves(file)
            elif kind == Kind("lowrank") and weights is None and self.profile is not None:
                self.read[key] = build_curves(self.checkpoint, self.weights, kind, metric, self.profile, None)
            else:
                raise InputError(f"The curves of {kind.label} under the metric {metric} were not measured yet.")
        return self.read[key]

    def calibration(self, metric: str, tables=(), kind: Kind | None = None):
        return self.found

    def has_calibration(self, metric: str) -> bool:
        return self.found is not None

    @cached_property
    def _rows(self) -> dict[str, dict]:
        return {row["name"]: row["spectra"] for row in self.profile.weights}

    def entropies(self, metric: str) -> dict[str, float]:
        return {
            name: spectra.get(metric, spectra.get("weight"))["entropy"]
            for name, spectra in self._rows.items()
            if metric in spectra or "weight" in spectra
        }


class Choices:
    """What every weight can be, by a Planner's tables under a rule; options of a weight count from 1, 0 is dense."""

    def __init__(self, planner, rule: str, unit: str, calibrated: bool) -> None:
        self.planner, self.unit = planner, unit
        self.damage = planner._damage("calibrated" if calibrated else "loss")
        self.kinds = {False: planner.kinds, True: planner.table_kinds}
        self.picks: dict[str, list] = {}  # weight → for each option its entry, or (number of its kind, χ)
        self.tables = planner._options(rule, unit)
        self.rows = [row for table in self.tables for row in self._of(table, rule)]
        order = {weight.name: place for place, weight in enumerate(planner.weights)}
        self.rows.sort(key=lambda row: order[row["name"]])

    def add_shares(self) -> None:
        """Gives rows the share of cost that the rule `entropy` scales (see karipap_core.plan.allocate.by_entropy)."""
        entropies, shares = self.planner._entropies(self.tables), {}
        for table in self.tables:
            members = list(self.planner._picks[table.name][0]) if table.name in self.planner._picks else [table.name]
            share = float(np.exp(entropies[table.name]) * table.cost[0] / max(1, table.chi[0]))
            shares |= dict.fromkeys(members, share / len(members))
        for row in self.rows:
            row["share"] = shares[row["name"]]

    def why(self, weights: dict[str, dict]) -> None:
        """Gives the entries of a mixed plan their `why`, as the command line's have."""
        if self.planner.choice.network == "auto":
            self.planner._say_why(weights, self.unit)

    def entry(self, name: str, option: int) -> dict:
        """The plan entry of an option."""
        if option == 0:
            return dict(DENSE)
        pick = self.picks[name][option - 1]
        return dict(pick) if isinstance(pick, dict) else self.planner._made(name, *pick)

    def options(self, name: str, entry: dict) -> set[int]:
        """The options of a weight that are this entry: several where others of its group differ between them."""
        wanted, found = _bare(entry), {0} if _bare(entry) == DENSE else set()
        for number, pick in enumerate(self.picks[name], 1):
            if isinstance(pick, dict):
                same = _bare(pick) == wanted
            else:
                kind, chi = self._kind(name, pick[0]), pick[1]
                same = kind.network == wanted["network"] and chi == max(wanted.get("chi") or [0])
                same = same and _bare(self.entry(name, number)) == wanted
            if same:
                found.add(number)
        return found

    def _kind(self, name: str, index: int) -> Kind:
        return self.kinds[self.planner._is_table(name)][index]

    def _of(self, table, rule: str) -> list[dict]:
        """The rows of one table: one weight, or all of a group, who pay for shared cores in equal parts."""
        planner = self.planner
        picks = planner._picks.get(table.name)
        grouped = picks is not None
        if not grouped:
            numbers = zip(table.kind.tolist(), table.chi.tolist(), strict=True)
            picks = [{table.name: pick} for pick in numbers]
        cost, objective, no_dense = table.cost, table.damage, True
        if all(not isinstance(p, dict) and self._kind(n, p[0]) == Kind("dense") for n, p in picks[-1].items()):
            picks, cost, objective, no_dense = picks[:-1], cost[:-1], objective[:-1], False
        names = list(planner._picks[table.name][0]) if grouped else [table.name]
        rows = []
        for name in names:
            self.picks[name] = [pick[name] for pick in picks]
            weight = planner.checkpoint.weight(name)
            itemsize = weight.bytes // weight.parameters
            rows.append(
                {
                    "name": name,
                    "layer": weight.layer,
                    "role": weight.role,
                    "expert": weight.expert,
                    "shape": tuple(weight.shape),
                    "parameters_dense": weight.parameters,
                    "bytes_per_parameter": itemsize,
                    "labels": [self._label(name, pick[name]) for pick in picks],
                    "chi": np.arange(1, len(picks) + 1),
                    "steps": cost / len(names) / (itemsize if self.unit == "bytes" else 1),
                }
                | self._figures(name, weight, itemsize)
            )
            rows[-1] |= {"group": table.name} if grouped else {}
            rows[-1] |= {"no_dense": True} if no_dense else {}
            rows[-1] |= {"share": float(table.cost[-1]) / len(names)} if rule == "uniform" else {}
            if rule not in ("calibrated", "refined"):
                rows[-1]["objective"] = objective / len(names)
        for row in rows if not picks else ():  # nothing is cheaper than the weight itself
            row |= {"chi": np.array([1]), "labels": ["dense"], "damage": np.zeros(1)}
            row |= {
                "parameters": np.array([float(row["parameters_dense"])]),
                "steps": row["parameters_dense"] * np.ones(1),
            }
            row |= {"bytes": row["parameters"] * row["bytes_per_parameter"]}
            row |= {"objective": np.zeros(1)} if "objective" in row else {}
        return rows

    def _figures(self, name: str, weight, itemsize: int) -> dict[str, np.ndarray]:
        """16-bit numbers, bytes and damage of every option of a weight."""
        picks = self.picks[name]
        found = {key: np.zeros(len(picks)) for key in ("parameters", "bytes", "damage")}
        of_kind: dict[int, list[int]] = {}
        for at, pick in enumerate(picks):
            of_kind.setdefault(-1 if isinstance(pick, dict) else pick[0], []).append(at)
        for index, places in of_kind.items():
            at = np.array(places)
            if index < 0:
                kind, curve, column, k = self._level(name, [picks[place] for place in places])
                parameters, error, total = curve.parameters[k], curve.error[k, column], curve.total[column]
                share = len(curve.members)
            elif (kind := self._kind(name, index)) == Kind("dense"):
                found["parameters"][at], found["bytes"][at] = weight.parameters, weight.bytes
                continue
            else:
                curve = self.planner._curves(kind, tables=self.planner._is_table(name))[name]
                k = np.searchsorted(curve.chi, [picks[place][1] for place in places])
                parameters, error, total, share = curve.parameters[k], curve.error[k], curve.total, 1
            found["parameters"][at] = curve.bytes(2)[k] / 2 / share
            found["bytes"][at] = curve.bytes(itemsize)[k] / share
            found["damage"][at] = np.maximum(self.damage(kind, name, parameters, error, total), 0)
        return found

    def _level(self, name: str, entries: list[dict]):
        """(kind, curve, this weight's column, levels) of entries of a group that shares cores."""
        kind = next(kind for kind in self.planner.kinds if kind.network == "tree")
        curve = next(curve for curve in self.planner._curves(kind) if name in curve.members)
        place = {id(entry[name]): level for level, entry in enumerate(curve.entries)}
        return kind, curve, curve.members.index(name), np.array([place[id(entry)] for entry in entries])

    def _label(self, name: str, pick) -> str:
        """A word for an option: "int4", "int3 + 4", "peps 6", or the χ alone where there is but one network."""
        if isinstance(pick, dict):
            return label(pick, self.planner)
        kind, chi = self._kind(name, pick[0]), pick[1]
        return label(
            {"network": kind.network, "quantize": kind.quantize, "chi": [chi], **dict(kind.options)}, self.planner
        )


def label(entry: dict, planner) -> str:
    """A word for a plan entry among what a planner can choose from."""
    network, form, chi = entry["network"], entry.get("quantize"), max(entry.get("chi") or [0])
    if network == "dense":
        return form or "dense"
    if network == "qlr":
        return f"{entry['bits']} + {chi}"
    words = [] if planner.choice.network == network else [SHORT.get(network, network)]
    words.append(str(chi))
    if form and planner.choice.quantize == "auto":
        words.append(form)
    return " ".join(words)


def _bare(entry: dict) -> dict:
    """An entry without what says who chose it and why."""
    return {key: value for key, value in entry.items() if key not in ("locked", "by", "why") and value is not None}
