"""Several networks or formats behind one slider: the core's own option tables, from what the workspace holds.

`Measured` is as much of a study (plan/study.py) as those tables need, and measures nothing. `Choices` turns them into
rows of the board: one list of options a weight, or a group of weights that share cores.
"""

from functools import cached_property
from pathlib import Path

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.allocate import Options
from karipap_core.plan.choice import Choice
from karipap_core.plan.curves import build_curves, load_curves
from karipap_core.plan.document import DENSE, Entry
from karipap_core.plan.kind import WHOLE, Kind
from karipap_core.plan.options import OptionTables, Pick

SHORT = {"lowrank": "rank", "disentangled": "dis", "tt_embedding": "tt"}


class Measured:
    """files: {(label of the kind, metric, whether of tables): curves}. Raises InputError where one is asked for that is
    not there."""

    def __init__(
        self, checkpoint, weights, tables, files: dict[tuple, Path | None], profile, calibration, seen
    ) -> None:
        self.checkpoint, self.weights, self.tables, self.seen = checkpoint, weights, tables, seen
        self.files, self.profile, self.found = files, profile, calibration
        self.read: dict[tuple, object] = {}

    def curves(self, kind: Kind, metric: str, weights=None):
        key = (kind.label, metric, weights is not None)
        if key not in self.read:
            file = self.files.get(key)
            if file is not None and (found := load_curves(file)) is not None:
                self.read[key] = found
            elif kind == Kind("lowrank") and weights is None and self.profile is not None:
                self.read[key] = build_curves(self.weights, kind, metric, self.profile, None)
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
    """What every weight can be under a rule, from the core's option tables; options of a weight count from 1, 0 is
    dense. calibrated: whether damages are nats as measured, else the metric's error."""

    def __init__(self, options: OptionTables, calibrated: bool) -> None:
        self.options, self.candidates = options, options.candidates
        self.damage = self.candidates.damage("calibrated" if calibrated else "loss")
        self.picks: dict[str, list[Pick]] = {}  # of each weight, option by option
        self.rows = [row for table in options.tables for row in self._of(table)]
        order = {weight.name: place for place, weight in enumerate(self.candidates.weights)}
        self.rows.sort(key=lambda row: order[row["name"]])

    def add_shares(self) -> None:
        """Gives rows the share of cost that the rule `entropy` scales (see karipap_core.plan.allocate.by_entropy)."""
        tables = self.options.tables
        entropies, shares = self.options.entropies(tables), {}
        for table in tables:
            members = self.options.members(table)
            share = float(np.exp(entropies[table.name]) * table.cost[0] / max(1, table.chi[0]))
            shares |= dict.fromkeys(members, share / len(members))
        for row in self.rows:
            row["share"] = shares[row["name"]]

    def why(self, weights: dict[str, dict]) -> None:
        """Gives the entries of a mixed plan their `why`, as the command line's have."""
        if self.candidates.mixed:
            self.options.add_reasons(weights)

    def entry(self, name: str, option: int) -> Entry:
        """The plan entry of an option."""
        return self.candidates.entry(name, self.picks[name][option - 1]) if option else Entry.made(None)

    def of_entry(self, name: str, entry: dict) -> set[int]:
        """The options of a weight that are this entry: several where others of its group differ between them."""
        wanted, found = _bare(entry), {0} if _bare(entry) == DENSE else set()
        for number, pick in enumerate(self.picks[name], 1):
            same = pick.kind.network == wanted["network"]
            if pick.level is None:
                same = same and pick.chi == max(wanted.get("chi") or [0])
            if same and _bare(self.entry(name, number)) == wanted:
                found.add(number)
        return found

    def _of(self, table: Options) -> list[dict]:
        """The rows of one table: one weight, or all of a group, who pay for shared cores in equal parts."""
        options, rule = self.options, self.options.rule
        picks, names = options.picks(table), options.members(table)
        cost, objective, no_dense = table.cost, table.damage, True
        if all(pick.kind == WHOLE for pick in picks[-1].values()):
            picks, cost, objective, no_dense = picks[:-1], cost[:-1], objective[:-1], False
        rows = []
        for name in names:
            self.picks[name] = [pick[name] for pick in picks]
            weight = self.candidates.checkpoint.weight(name)
            itemsize = weight.bytes // weight.parameters
            rows.append(
                {
                    "name": name,
                    "layer": weight.layer,
                    "tower": weight.tower,
                    "role": weight.role,
                    "expert": weight.expert,
                    "shape": tuple(weight.shape),
                    "parameters_dense": weight.parameters,
                    "bytes_per_parameter": itemsize,
                    "labels": [self._label(name, pick) for pick in self.picks[name]],
                    "chi": np.arange(1, len(picks) + 1),
                    "steps": cost / len(names) / (itemsize if options.unit == "bytes" else 1),
                }
                | self.candidates.figures(name, self.picks[name], self.damage)
            )
            rows[-1] |= {"group": table.name} if options.is_group(table) else {}
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

    def _label(self, name: str, pick: Pick) -> str:
        """A word for an option: "int4", "int3 + 4", "peps 6", or the χ alone where there is but one network."""
        if pick.level is not None:
            return label(self.candidates.entry(name, pick), self.candidates.choice)
        kind = {"network": pick.kind.network, "quantize": pick.kind.quantize, **dict(pick.kind.options)}
        return label(kind | {"chi": [pick.chi]}, self.candidates.choice)


def label(entry: dict, choice: Choice) -> str:
    """A word for a plan entry among what a plan may choose from."""
    network, form, chi = entry["network"], entry.get("quantize"), max(entry.get("chi") or [0])
    if network == "dense":
        return form or "dense"
    if "bits" in entry:
        return f"{entry['bits']} + {chi}"
    words = [] if choice.network == network else [SHORT.get(network, network)]
    words.append(str(chi))
    if form and choice.quantize == "auto":
        words.append(form)
    return " ".join(words)


def _bare(entry: dict) -> dict:
    """An entry without what says who chose it and why."""
    return {key: value for key, value in entry.items() if key not in ("locked", "by", "why") and value is not None}
