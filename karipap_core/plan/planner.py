"""A budget and a rule → a plan for a whole model (docs/methods.md, "Allocation").

`uniform`, `entropy`, `functional` and `loss` need spectra alone, `calibrated` the measured sensitivity of each weight,
`refined` measures again at the plan itself what weights do to one another, and `best` tries them all on text that was
not calibrated on.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.allocate import Options, allocate, by_entropy, merged, together, uniform
from karipap_core.plan.budget import Budget
from karipap_core.plan.calibration import group_of_plan
from karipap_core.plan.choice import Choice
from karipap_core.plan.damage import apply_plan, marginals, whole_plan
from karipap_core.plan.document import DENSE, RULES, Plan, model_entry
from karipap_core.plan.kind import Kind
from karipap_core.plan.options import (
    EMBEDDINGS,
    UNSTRUCTURED,
    WHOLE,
    is_of,
    kinds_of,
    networks_in,
    own_options,
    table_kinds_of,
)
from karipap_core.progress import Progress, silent
from karipap_core.spectra.spectrum import METRICS

REFINE_ROUNDS = 5
SINGLES_CHECKED = 2
COUNTED = ("parameters", "bytes", "kept", "bytes_kept", "block_parameters", "kept_blocks")
# A network without nested components is fitted anew for every plan, so `best` tries those that differ most.
RULES_WHEN_FITTED = ("uniform", "loss", "calibrated")


class Planner:
    """Makes plans of one study (study.py) in one network, or in a mix of them, under one metric.

    choice: a `Choice`, or the name of a network.  locks: {weight: plan entry} pinned.
    """

    def __init__(
        self,
        study,
        choice: Choice | str,
        metric: str,
        locks: dict[str, dict] | None = None,
        progress=silent,
    ) -> None:
        self.choice = choice = Choice.of(choice)
        if metric not in METRICS:
            raise InputError(f"Metric {metric!r} is not one of {', '.join(METRICS)}.")
        if choice.embedding not in EMBEDDINGS:
            raise InputError(f"Embedding {choice.embedding!r} is not one of {', '.join(EMBEDDINGS)}.")
        self.study, self.metric, self.progress = study, metric, progress
        self.checkpoint = study.checkpoint
        self.kinds = kinds_of(choice.network, choice.quantize, choice.structure)
        self.mixed = len(networks_in(choice.network)) > 1
        self.table_kinds = table_kinds_of(choice.embedding, choice.quantize)
        self.tables = study.tables if choice.embedding != "dense" else []
        self.weights = [*study.weights, *self.tables]
        if not study.weights:
            raise InputError(f"{self.checkpoint.name} has no weight that can be compressed.")
        self.locks = {name: entry | {"locked": True} for name, entry in (locks or {}).items()}
        for name in self.locks:
            self.checkpoint.weight(name)
        self.scale = {weight.name: 1.0 for weight in self.checkpoint.weights}
        for kind in self.kinds:
            self._curves(kind)
        for kind in self.table_kinds:
            self._curves(kind, tables=True)

    # One plan.

    def make(self, budget: Budget, rule: str = "best", progress: Progress | None = None) -> Plan:
        """The plan of a rule at a budget, with what it is predicted to do."""
        self.progress = progress or self.progress
        if rule not in RULES:
            raise InputError(f"Rule {rule!r} is not one of {', '.join(RULES)}.")
        limit, unit = budget.limit(self.checkpoint, self.tables)
        if rule == "best":
            return self._best(budget, limit, unit)
        tried: list[dict] = []
        if rule == "refined":
            weights, measured = self._refined(limit, unit, tried)
            return self.plan(weights, rule, budget, tried, measured)
        weights = self._allocated(rule, limit, unit)
        if rule == "calibrated" or self.checkpoint.kind is None:
            return self.plan(weights, rule, budget)
        # The curve of predictions is that of calibrated plans; any other is measured: one pass over the check windows.
        return self.plan(weights, rule, budget, measured=self.measure(weights))

    def _curves(self, kind: Kind, metric: str | None = None, tables: bool = False):
        """The curves of a kind, of the blocks' weights or of the tables: {name: WeightCurve}, a list of GroupCurve for
        `tree`, {} for the weight as it is."""
        if kind == WHOLE:
            return {}
        return self.study.curves(kind, metric or self.metric, *([self.tables] if tables else []))

    def _is_table(self, name: str) -> bool:
        return any(weight.name == name for weight in self.tables)

    def _damage(self, rule: str) -> Callable[[Kind, str, np.ndarray, np.ndarray, float], np.ndarray]:
        """The damage of errors of one weight in a kind: f(kind, name, parameters, error, total)."""
        if rule in ("calibrated", "refined"):
            calibration = self._calibration()
            return lambda kind, name, parameters, error, total: (
                calibration.damage(name, error, kind.network) * self.scale[name]
            )
        if rule == "functional":
            return self._functional
        return lambda kind, name, parameters, error, total: 0.5 * error

    def _functional(self, kind, name, parameters, error, total) -> np.ndarray:
        """The relative functional error at these sizes."""
        if self.metric != "functional":
            sizes, error, total = _one_curve(self._curves(kind, "functional", self._is_table(name)), name)
            error = np.interp(parameters, sizes, error)
        return error / max(total, np.finfo(float).tiny)

    def _options(self, rule: str, unit: str) -> list[Options]:
        """The table of every weight, or of every group of weights where `tree` is among the kinds; `_picks` says what
        an option of a group is."""
        damage = self._damage(rule)
        self._picks: dict[str, list[dict[str, tuple[int, int] | dict]]] = {}
        self._alone: dict[str, dict[str, Options]] = {}  # by kind: the table of each weight or group, for `_say_why`
        singles = {weight.name: self._single(weight, damage, unit) for weight in self.weights}
        tree = next((index for index, kind in enumerate(self.kinds) if kind.network == "tree"), None)
        if tree is None:
            return list(singles.values())
        tables = []
        for group in self._curves(self.kinds[tree]):
            mine = [singles.pop(name) for name in group.members]
            if any(name in self.locks for name in group.members):
                tables += mine
            else:
                tables.append(self._group(group, self.kinds[tree], mine, damage, unit))
        return [*tables, *singles.values()]

    def _cost(self, curve, weight, unit: str) -> np.ndarray:
        """In bytes as stored, or in numbers of 16 bits: a quantized number counts as its bits / 16."""
        if unit == "bytes":
            return curve.bytes(weight.bytes // weight.parameters)
        return curve.bytes(2) / 2

    def _single(self, weight, damage, unit: str) -> Options:
        kinds = self.table_kinds if weight in self.tables else self.kinds
        whole = weight.bytes if unit == "bytes" else weight.parameters
        tables = []
        for index, kind in enumerate(kinds):
            if kind == WHOLE:
                tables.append(Options(weight.name, np.zeros(1, np.int64), np.array([float(whole)]), np.zeros(1)))
            elif kind.network == "tree":  # its options are those of a whole group
                tables.append(Options(weight.name, *(np.empty(0) for _ in range(3))))
                continue
            else:
                curve = self._curves(kind, tables=weight in self.tables)[weight.name]
                cost, chi = self._cost(curve, weight, unit).astype(float), curve.chi
                lost = damage(kind, weight.name, curve.parameters, curve.error, curve.total)
                cheaper = cost < whole
                tables.append(Options(weight.name, chi[cheaper], cost[cheaper], np.maximum(lost, 0)[cheaper]))
            self._alone.setdefault(kind.label, {})[weight.name] = tables[index]
            tables[index] = replace(tables[index], kind=np.full(len(tables[index].chi), index))
        return merged(weight.name, tables)

    def _group(self, group, kind: Kind, singles: list[Options], damage, unit: str) -> Options:
        """The sizes of a group's tree, beside what its weights can be one by one."""
        name = "+".join(group.members)
        first = self.checkpoint.weight(group.members[0])
        lost = sum(
            damage(kind, member, group.parameters, group.error[:, column], group.total[column])
            for column, member in enumerate(group.members)
        )
        tree = Options(name, np.arange(len(group.entries)), self._cost(group, first, unit).astype(float), lost)
        self._alone.setdefault(kind.label, {})[name] = tree
        alone, picks = together(name, singles)
        table = merged(name, [tree, alone])
        resolved = [
            {
                single.name: (int(single.kind[pick[single.name]]), int(single.chi[pick[single.name]]))
                for single in singles
            }
            for pick in picks
        ]
        self._picks[name] = [
            group.entries[at] if which == 0 else resolved[at]
            for at, which in zip(table.chi.tolist(), table.kind.tolist(), strict=True)
        ]
        return table

    def _allocated(self, rule: str, limit: float, unit: str) -> dict[str, dict]:
        if rule == "loss" and self.metric != "loss":
            raise InputError(f"Rule `loss` sorts by the loss metric; this plan's metric is `{self.metric}`.")
        fixed_cost, free = 0.0, []
        for table in self._options(rule, unit):
            if table.name in self.locks:
                fixed_cost += self._entry_cost(table.name, self.locks[table.name], unit)
            else:
                free.append(table)
        room = limit - fixed_cost
        if room < 0:
            raise InputError(f"The locked weights alone cost {fixed_cost:,.0f} {unit}, the budget allows {limit:,.0f}.")
        if rule == "uniform":
            chosen = uniform(free, room)
        elif rule == "entropy":
            chosen = by_entropy(free, room, self._entropies(free))
        else:
            chosen = allocate(free, room)
        weights = {}
        for table in free:
            index = chosen[table.name]
            pick = {table.name: (int(table.kind[index]), int(table.chi[index]))}
            if table.name in self._picks:
                pick = self._picks[table.name][index]
            for name, made in pick.items():
                weights[name] = made if isinstance(made, dict) else self._made(name, *made)
        if self.mixed:
            self._say_why(weights, unit)
        return weights | self.locks

    def _entry_cost(self, name: str, entry: dict, unit: str) -> float:
        weight, spec = self.checkpoint.weight(name), self._spec(entry)
        itemsize = weight.bytes // weight.parameters if unit == "bytes" else 2
        size = weight.parameters * itemsize if spec is None else spec.bytes(itemsize)
        return size if unit == "bytes" else size / 2

    def _entropies(self, tables: list[Options]) -> dict[str, float]:
        """The entropy of every table's weight; of a group that of its weights' effective ranks together."""
        known, found = self.study.entropies(self.metric), {}
        for table in tables:
            members = list(self._picks[table.name][0]) if table.name in self._picks else [table.name]
            found[table.name] = float(np.log(sum(np.exp(known[name]) for name in members)))
        return found

    def _made(self, name: str, kind: int, chi: int) -> dict:
        weight = self.checkpoint.weight(name)
        spec = (self.table_kinds if weight in self.tables else self.kinds)[kind].spec(weight.shape, chi)
        return dict(DENSE) if spec is None else spec.to_json()

    def entry(self, name: str, chi: int) -> dict:
        """A plan entry: χ in this network's default factorization, dense for 0."""
        spec = self.kinds[0].spec(self.checkpoint.weight(name).shape, chi) if chi else None
        return dict(DENSE) if spec is None else spec.to_json()

    def _say_why(self, weights: dict[str, dict], unit: str) -> None:
        """Gives each entry of a mixed plan its `why`: the least damage of every kind at no more than its size."""
        for name, entry in weights.items():
            members = entry.get("members") or [name]
            share = sum(self._entry_cost(m, weights[m], unit) for m in members) / self._dense_cost(members, unit)
            rivals = []
            for label, tables in self._alone.items():
                names = ["+".join(members)] if label.startswith("tree") else members
                if all(one in tables for one in names):
                    least = sum(
                        self._least(tables[one], share * self._dense_cost(members, unit) / len(names)) for one in names
                    )
                    rivals.append((least, label))
            told = ", ".join(f"{label} {lost:.3g}" for lost, label in sorted(rivals) if np.isfinite(lost))
            weights[name] = entry | {"why": f"Predicted damage in nats at {share:.1%} of its size or less: {told}."}

    @staticmethod
    def _least(table: Options, room: float) -> float:
        return float(min(table.damage[table.cost <= room * (1 + 1e-9)], default=np.inf))

    def _dense_cost(self, members: list[str], unit: str) -> float:
        weights = [self.checkpoint.weight(name) for name in members]
        return float(sum(weight.bytes if unit == "bytes" else weight.parameters for weight in weights))

    def _spec(self, entry: dict):
        from karipap_core.networks import spec_from_json

        dense = entry["network"] == "dense" and not entry.get("quantize")
        return None if dense else spec_from_json(entry)

    def _specs(self, weights: dict[str, dict]) -> dict:
        return {name: self._spec(entry) for name, entry in weights.items()}

    # Rules that measure.

    def measure(self, weights: dict[str, dict], learn: bool = False) -> dict[str, float]:
        """Divergence and rise in loss of a whole plan on the check windows, and its sum of predicted damages. With
        `learn` the study's calibration is fitted through it: only for `calibrated` plans, since other rules relate sum
        and rise differently."""
        found = whole_plan(self.study.check, self.study.decompositions(self.metric), self._specs(weights))
        self.study.check.restore()
        found |= {"kept_blocks": self.plan_kept(weights), "network": self.choice.network}
        if self.study.has_calibration(self.metric):
            found["sum"] = self.damage_sum(weights)
        if learn:
            self.study.learn(self.metric, found)
        return found

    def _refined(self, limit: float, unit: str, tried: list[dict]) -> tuple[dict[str, dict], dict]:
        """Calibrated, then: measure every weight's marginal at the plan, scale its curve by √(measured / predicted)
        (clamped to 0.2–5), allocate again; the plan with the least divergence on the check windows wins."""
        calibration = self._calibration()
        decompositions, probe = self.study.decompositions(self.metric), self.study.probe
        best = weights = self._allocated("calibrated", limit, unit)
        best_found = self.measure(weights, learn=True)
        tried.append({"rule": "calibrated"} | best_found)
        for round_ in range(1, REFINE_ROUNDS + 1):
            specs = self._specs(weights)
            apply_plan(probe, decompositions, specs)
            found = marginals(probe, decompositions, self.weights, specs, self.progress)
            probe.restore()
            for name, (spec, change) in found.items():
                error = self._error(name, spec)
                predicted = float(calibration.damage(name, error, spec.network)) * self.scale[name]
                if predicted > 0:
                    self.scale[name] *= float(np.clip(np.sqrt(max(change, 0.0) / predicted), 0.2, 5.0))
            weights = self._allocated("refined", limit, unit)
            measured = self.measure(weights)
            tried.append({"rule": f"refined, round {round_}"} | measured)
            if measured["divergence"] < best_found["divergence"]:
                best, best_found = weights, measured
            elif round_ >= 2 and measured["divergence"] > 1.02 * best_found["divergence"]:
                break
        self.scale = {name: 1.0 for name in self.scale}
        return best, best_found

    def _best(self, budget: Budget, limit: float, unit: str) -> Plan:
        """Every rule at this budget by its measured rise in loss on the check windows (by divergence for rises that
        differ by less than 0.002 nats, which is noise); the winner is kept. For `auto` the mix is held against the
        single networks that are predicted best, by the calibrated rule."""
        candidates, tried = [], []
        for label, weights in self._candidates(limit, unit):
            weights, found = weights if isinstance(weights, tuple) else (weights, self.measure(weights))
            tried.append(label | found)
            candidates.append((round(found["rise"] / 0.002), found["divergence"], len(candidates), weights))
        _, _, winner, weights = min(candidates, key=lambda candidate: candidate[:3])
        plan = self.plan(weights, "best", budget, tried, tried[winner])
        plan.chosen_rule = tried[winner]["rule"]
        return plan

    def _candidates(self, limit: float, unit: str) -> Iterator[tuple[dict, dict | tuple[dict, dict]]]:
        """({"rule", …}, weights or (weights, what was measured of them)) of all that `best` compares."""
        if self.mixed:
            yield {"rule": "calibrated"}, self._allocated("calibrated", limit, unit)
            for planner in self._singles(limit, unit):
                yield (
                    {"rule": f"calibrated, {planner.choice.network} alone"},
                    planner._allocated("calibrated", limit, unit),
                )
            return
        rules = RULES[:-1] if self.choice.network == "lowrank" and self.choice.quantize is None else RULES_WHEN_FITTED
        rules = [rule for rule in rules if not (rule == "loss" and self.metric != "loss")]
        if self.tables:  # rules of spectra alone do not say what a table of tokens is worth
            rules = [rule for rule in rules if rule in ("uniform", "calibrated", "refined")]
        for number, rule in enumerate(rules):
            self.progress("rules", number, len(rules), rule)
            if rule == "refined":
                yield {"rule": rule}, self._refined(limit, unit, [])
            else:
                yield {"rule": rule}, self._allocated(rule, limit, unit)
        self.progress("rules", len(rules), len(rules))

    def _singles(self, limit: float, unit: str) -> list["Planner"]:
        """Planners of the `SINGLES_CHECKED` networks whose plan alone is predicted to lose least at this budget."""
        found = []
        for network in dict.fromkeys(kind.network for kind in self.kinds):
            if network != "dense":
                choice = self.choice.alone(network, structured=network not in UNSTRUCTURED)
                alone = Planner(self.study, choice, self.metric, self.locks, self.progress)
                try:
                    found.append((alone.damage_sum(alone._allocated("calibrated", limit, unit)), network, alone))
                except InputError:
                    continue  # this network alone cannot be as small as the budget asks
        return [alone for _, _, alone in sorted(found, key=lambda row: row[:2])[:SINGLES_CHECKED]]

    # What a plan costs and is predicted to do.

    def _error(self, name: str, spec) -> float:
        """Metric error of a spec, read from the curve of its kind."""
        kinds = [*self.kinds, *self.table_kinds, Kind(spec.network, spec.quantize, own_options(spec))]
        kind = next(kind for kind in kinds if is_of(spec, kind))
        curves = self._curves(kind, tables=self._is_table(name))
        if isinstance(curves, list):
            members = set(spec.members or (name,))
            group = next((group for group in curves if set(group.members) == members), None)
            if group is None:
                raise InputError(f"Plan, weight {name}: its group of {len(members)} is none of this model's groups.")
            column = group.members.index(name)
            size = sum(replace(spec, at=index).parameters for index in range(len(members)))
            return _read_at(size, group.parameters, group.error[:, column])
        curve = curves[name]
        if not spec.chi:
            return float(curve.error[0])
        chi = max(spec.chi)
        if chi > curve.chi[-1] and curve.packed is None:
            known = np.append(curve.chi, max(spec.max_chi, chi))
            return float(np.interp(chi, known, np.append(curve.error, 0.0)))
        return _read_at(chi, curve.chi, curve.error)

    def damage_sum(self, weights: dict[str, dict]) -> float:
        """Σ over weights of the calibrated damage of its entry alone."""
        calibration = self._calibration()
        known = {name: spec for name, spec in self._specs(weights).items() if spec is not None}
        return sum(float(calibration.damage(n, self._error(n, s), s.network)) for n, s in known.items())

    def _calibration(self):
        return self.study.calibration(self.metric, *([self.tables, self.table_kinds[0]] if self.tables else []))

    def plan_kept(self, weights: dict[str, dict]) -> float:
        return Plan(model_entry(self.checkpoint), self.metric, weights).ledger(self.checkpoint).kept_blocks

    def plan(self, weights: dict[str, dict], rule: str, budget: Budget | None = None, tried=(), measured=None) -> Plan:
        """The plan of these entries, its size counted and its rise in loss predicted (where a calibration exists);
        `measured` is what `measure` found of this very plan, if it did."""
        order = [weight.name for weight in self.checkpoint.weights if weight.name in weights]
        plan = Plan(
            model=model_entry(self.checkpoint),
            metric=self.metric,
            weights={name: weights[name] for name in order},
            rule=rule,
            scope=budget.scope if budget else "model",
            budget=budget.kept if budget else None,
            budget_bytes=budget.kept_bytes if budget else None,
            calibration=self.study.calibration_entry(),
            tried=list(tried),
            embedding={"kind": self.choice.embedding, "tied": "contract"} if self.tables else None,
        )
        plan.predicted = self.predict(plan, measured)
        return plan

    def predict(self, plan: Plan, measured: dict | None = None) -> dict:
        """Size (exact) and, where this model has been calibrated, the predicted rise in loss: from the curve through
        measured plans, with its error so far, or where this very plan was measured on calibration text, from that."""
        ledger = plan.ledger(self.checkpoint)
        predicted = {key: getattr(ledger, key) for key in COUNTED}
        if ledger.bytes_kept_blocks != ledger.kept_blocks:
            predicted["bytes_kept_blocks"] = ledger.bytes_kept_blocks
        calibration = None
        if self.study.has_calibration(self.metric):
            calibration = self.study.calibration(self.metric)
            predicted["sum"] = self.damage_sum(plan.weights)
        if measured is not None:
            causal = self.checkpoint.kind == "causal"
            dense = self.study.check.dense.loss if causal else 0.0
            predicted |= {
                "measure": "kl" if causal else "output error",
                "rise": measured["rise"],
                "dense_loss": dense,
                "loss": dense + measured["rise"],
                "source": "this plan on calibration text",
                "error": None,
            }
        elif calibration is not None:
            predicted |= calibration.fit(group_of_plan(plan)).predicted(predicted["sum"])
        return predicted


def _read_at(point: float, points: np.ndarray, errors: np.ndarray) -> float:
    return float(np.exp(np.interp(point, points, np.log(np.maximum(errors, 1e-300)))))


def _one_curve(curves, name: str):
    """(parameters, error, total) of one weight in the curves of a kind."""
    if isinstance(curves, dict):
        return curves[name].parameters, curves[name].error, curves[name].total
    group = next(group for group in curves if name in group.members)
    column = group.members.index(name)
    return group.parameters, group.error[:, column], group.total[column]
