"""A budget and a rule → a plan for a whole model (docs/methods.md, "Allocation").

`uniform`, `entropy`, `functional` and `loss` need spectra alone, `calibrated` the measured sensitivity of each weight,
`refined` measures again at the plan itself what weights do to one another, and `best` tries them all on text that was
not calibrated on.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError, unknown
from karipap_core.plan import effort
from karipap_core.plan.allocate import Options, allocate, by_entropy, smallest, uniform
from karipap_core.plan.budget import SCOPES, Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.damage import apply_plan, marginals, marginals_from_gradients, whole_plans
from karipap_core.plan.document import RULES, Entry, Plan, model_entry, rounding_of
from karipap_core.plan.foretold import BEHIND_DENSE, ITSELF
from karipap_core.plan.kind import PREFIXES, check_prefix
from karipap_core.plan.options import Candidates, Measurements, OptionTables
from karipap_core.plan.predict import damage_sum, predicted, sizes_of, spec_error
from karipap_core.plan.seen import RULES_OF_SPECTRA
from karipap_core.progress import Progress, costs, silent

if TYPE_CHECKING:  # torch: seconds
    from karipap_core.networks import Spec
    from karipap_core.plan.decompositions import Decompositions
    from karipap_core.plan.on_text import Which
    from karipap_core.plan.probe import Probe
    from karipap_core.plan.streamed_probe import StreamedProbe

SINGLES_CHECKED = 2
FIT_AT = (0.03, 0.3, 1.5)  # predicted sums of damage at which whole plans are measured
FIT_KEPT = (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.07, 0.05)
# A network without nested components is fitted anew for every plan, so `best` tries those that differ most.
RULES_WHEN_FITTED = ("uniform", "loss", "calibrated")
RULES_OF_TABLES = ("uniform", "calibrated", "refined")  # spectra alone do not say what a table of tokens is worth

Entries = dict[str, dict[str, Any]]  # {weight: plan entry}


class Measuring(Measurements, Protocol):
    """What rules that measure ask of a study (study.py) besides."""

    @property
    def probe(self) -> "Probe": ...
    def gauge(self, windows: "Which") -> "Probe | StreamedProbe": ...
    @property
    def apart(self) -> bool: ...
    @property
    def refines(self) -> bool: ...
    @property
    def dense_loss(self) -> float: ...
    def decompositions(self, metric: str) -> "Decompositions": ...
    def calibration_entry(self) -> dict[str, Any]: ...
    @property
    def why_not_run(self) -> str | None: ...
    @property
    def measure(self) -> str: ...
    @property
    def rounding(self) -> str: ...
    def expect(self, choices: Iterable[Choice], metric: str) -> None: ...
    def prefix_of(self, wanted: str, weights: Mapping[str, Mapping[str, Any]]) -> str | None: ...
    def learn(self, metric: str, measured: dict[str, Any]) -> None: ...


class Planner:
    """Makes plans of one study (study.py) in one network, or in a mix of them, under one metric.

    choice : a `Choice`, or the name of a network.  locks : {weight: plan entry} pinned.  prefix : one of `PREFIXES`,
    what the weights of a plan are fitted behind.  Raises InputError for a choice, a metric or a prefix that is not
    known, and for a lock on a weight that the model has not.
    """

    def __init__(
        self,
        study: Measuring,
        choice: Choice | str,
        metric: str,
        locks: Entries | None = None,
        progress: Progress = silent,
        prefix: str = PREFIXES[0],
    ) -> None:
        check_prefix(prefix)
        self.prefix = prefix
        self.choice = choice = Choice.of(choice)
        study.expect([choice], metric)
        self.candidates = Candidates(study, choice, metric)
        self.study, self.metric, self.progress = study, metric, progress
        self.checkpoint = study.checkpoint
        self.locks = {name: Entry.of(entry).marked(locked=True) for name, entry in (locks or {}).items()}
        for name in self.locks:
            self.checkpoint.weight(name)
        self.scope = "model"  # a tower's name: all other weights stay dense
        self.scale: dict[str, float] = {}  # of the damage of each weight, as `refined` found it

    @property
    def tables(self) -> list[Weight]:
        """The tables of tokens that plans may change."""
        return self.candidates.tables

    # One plan.

    def make(self, budget: Budget, rule: str = "best", progress: Progress | None = None) -> Plan:
        """The plan of a rule at a budget, with what it is predicted to do."""
        self.progress = progress or self.progress
        if rule not in RULES:
            raise unknown("Rule", rule, RULES)
        limit, unit = self._limit(budget)
        if rule == "best":
            return self._best(budget, limit, unit)
        if rule == "refined":
            tried: list[dict] = []
            weights, measured = self._refined(limit, unit, tried)
            return self.plan(weights, rule, budget, tried, measured)
        weights = self.allocated(rule, limit, unit)
        if rule == "calibrated":
            return self.plan(weights, rule, budget)
        if self.metric == "weight" and rule in RULES_OF_SPECTRA and (why := self.study.why_not_run) is not None:
            plan = self.plan(weights, rule, budget)
            plan.predicted, plan.calibration = {**(plan.predicted or {}), "not_predicted": why}, None
            return plan
        # The curve of predictions is that of calibrated plans; any other is measured: one pass over the check windows.
        return self.plan(weights, rule, budget, measured=self.measure(weights))

    def _limit(self, budget: Budget) -> tuple[float, str]:
        self.scope = budget.scope
        return budget.limit(self.checkpoint, self.tables)

    def _rules(self) -> list[str]:
        """The rules that `best` compares, for one network; not `refined`, which holds the model in memory, of a large
        one."""
        nested = self.candidates.kinds[0].cls.nested and self.choice.quantize is None
        rules = [rule for rule in (RULES[:-1] if nested else RULES_WHEN_FITTED) if self._applies(rule)]
        return [rule for rule in rules if rule != "refined" or self.study.refines]

    def options(self, rule: str, unit: str) -> OptionTables:
        """What every weight can be under a rule; unit: of cost, "parameters" or "bytes"."""
        return OptionTables(self.candidates, rule, unit, self.locks, self.scale, self.held(rule))

    def held(self, rule: str) -> frozenset[str]:
        """The weights that stay dense under a rule, or since the budget is another tower's, but for those that are
        pinned to something else."""
        held = self.study.seen.held(self.metric, rule) & {weight.name for weight in self.study.weights}
        if self.scope not in SCOPES:
            held |= {weight.name for weight in self.candidates.weights if weight.tower != self.scope}
        return held - self.locks.keys()

    def allocated(self, rule: str, limit: float, unit: str) -> Entries:
        """The entry of every weight by a rule that measures nothing anew, at a cost of `limit` or less.

        Raises InputError where that cannot be, and for the rule `loss` under another metric.
        """
        if rule == "loss" and self.metric != "loss":
            raise InputError(f"Rule `loss` sorts by the loss metric; this plan's metric is `{self.metric}`.")
        options = self.options(rule, unit)
        free = [table for table in options.tables if table.name not in self.locks]
        locked = [table.name for table in options.tables if table.name in self.locks]
        fixed_cost = sum(self.candidates.entry_cost(name, self.locks[name], unit) for name in locked)
        held = self.held(rule)
        held_cost = self.candidates.dense_cost(held, unit)
        room = limit - fixed_cost - held_cost
        if fixed_cost > limit:
            raise InputError(f"The locked weights alone cost {fixed_cost:,.0f} {unit}, the budget allows {limit:,.0f}.")
        self._check_room(room, free, held, unit)
        if rule == "uniform":
            chosen = uniform(free, room)
        elif rule == "entropy":
            chosen = by_entropy(free, room, options.entropies(free))
        else:
            chosen = allocate(free, room)
        weights: Entries = {}
        for table in free:
            weights |= options.entries(table, chosen[table.name])
        if self.candidates.mixed:
            options.add_reasons(weights)
        return weights | {name: Entry.made(None) for name in held} | self.locks

    def _check_room(self, room: float, free: Sequence[Options], held: Collection[str], unit: str) -> None:
        """Raises InputError where weights that stay dense leave too little for all others."""
        if held and room < (least := smallest(list(free))):
            cost = self.candidates.dense_cost(held, unit)
            raise InputError(
                f"{len(held):,} weights ({cost:,.0f} {unit}) stay dense, since the calibration text does not reach "
                f"them or the budget is not theirs: it leaves {room:,.0f} for all others, the least they can have is "
                f"{least:,.0f}. Raise the budget, or cut by the weights alone (--metric weight --rule uniform)."
            )

    def plans_to_fit(self, weights: Sequence[Weight]) -> list[Entries]:
        """Calibrated plans whose sums of damage are nearest to `FIT_AT`: where this model's curve bends, wherever that
        is. weights : those that the text reaches, of which parts are kept."""
        sums = {}
        blocks, free = self.checkpoint.block_parameters, sum(weight.parameters for weight in weights)
        for kept in FIT_KEPT:
            try:
                entries = self.allocated("calibrated", blocks - free + kept * free, "parameters")
            except InputError:
                continue  # below the smallest plan of this model
            sums[self.damage_sum(entries)] = entries
        chosen = {min(sums, key=lambda s: abs(math.log(max(s, 1e-12) / target))) for target in FIT_AT if sums}
        return [sums[total] for total in sorted(chosen)]

    # Rules that measure.

    def measure(self, weights: Entries, learn: bool = False) -> dict[str, Any]:
        """Divergence and rise in loss of a whole plan on the check windows, and its sum of predicted damages. With
        `learn` the study's calibration is fitted through it: only for `calibrated` plans, since other rules relate sum
        and rise differently."""
        return self.measure_each([weights], learn)[0]

    def measure_each(self, plans: Sequence[Entries], learn: bool = False) -> list[dict[str, Any]]:
        """The same of several plans, in one go where the model is read block by block."""
        study, rows = self.study, []
        specs = [_specs(weights) for weights in plans]
        for weights, found in zip(
            plans, whole_plans(study.gauge("check"), study.decompositions(self.metric), specs), strict=True
        ):
            kept = Plan(model_entry(self.checkpoint), self.metric, weights).ledger(self.checkpoint).kept_blocks
            row: dict[str, Any] = found | {"kept_blocks": kept, "network": self.choice.network}
            if study.has_calibration(self.metric):
                row["sum"] = self.damage_sum(weights)
            if learn:
                study.learn(self.metric, row)
            rows.append(row)
        return rows

    def _refined(self, limit: float, unit: str, tried: list[dict]) -> tuple[Entries, dict[str, Any]]:
        """Calibrated, then: measure every weight's marginal at the plan, scale its curve by √(measured / predicted)
        (clamped to 0.2–5), allocate again; the plan with the least divergence on the check windows wins."""
        calibration = self.candidates.calibration()
        decompositions, probe = self.study.decompositions(self.metric), self.study.probe
        best = weights = self.allocated("calibrated", limit, unit)
        best_found = self.measure(weights, learn=True)
        costs(self.progress, "rounds", effort.ROUNDS)
        tried.append({"rule": "calibrated"} | best_found)
        for round_ in range(1, effort.REFINE_ROUNDS + 1):
            self.progress("rounds", round_ - 1, effort.REFINE_ROUNDS)
            specs = _specs(weights)
            apply_plan(probe, decompositions, specs)
            unseen = self.study.seen.unseen
            weights_seen = [weight for weight in self.candidates.weights if weight.name not in unseen]
            way = marginals if self.study.measure == "all" else marginals_from_gradients
            found = way(probe, decompositions, weights_seen, specs, self.progress)
            probe.restore()
            for name, (spec, change) in found.items():
                scale = self.scale.get(name, 1.0)
                error = spec_error(self.candidates, name, spec)
                foretold = float(calibration.damage(name, error, spec.network)) * scale
                if foretold > 0:
                    self.scale[name] = scale * float(np.clip(np.sqrt(max(change, 0.0) / foretold), 0.2, 5.0))
            weights = self.allocated("refined", limit, unit)
            measured = self.measure(weights)
            tried.append({"rule": f"refined, round {round_}"} | measured)
            if measured["divergence"] < best_found["divergence"]:
                best, best_found = weights, measured
            elif round_ >= 2 and measured["divergence"] > 1.02 * best_found["divergence"]:
                break
        self.progress("rounds", effort.REFINE_ROUNDS, effort.REFINE_ROUNDS)
        self.scale = {}
        return best, best_found

    def _best(self, budget: Budget, limit: float, unit: str) -> Plan:
        """Every rule at this budget by its measured rise in loss on the check windows (by divergence for rises that
        differ by less than 0.002 nats, which is noise); the winner is kept. For `auto` the mix is held against the
        single networks that are predicted best, by the calibrated rule."""
        candidates: list[tuple[int, float, int, Entries]] = []
        tried: list[dict] = []
        rows: Iterable[tuple[str, Entries, dict[str, Any] | None]] = self._candidates(limit, unit)
        if self.study.apart:
            rows = self._together(list(rows))
        for rule, weights, measured in rows:
            found = self.measure(weights) if measured is None else measured
            tried.append({"rule": rule} | found)
            candidates.append((round(found["rise"] / 0.002), found["divergence"], len(candidates), weights))
        _, _, winner, weights = min(candidates, key=lambda candidate: candidate[:3])
        plan = self.plan(weights, "best", budget, tried, tried[winner])
        plan.chosen_rule = tried[winner]["rule"]
        if not self.study.refines and not self.candidates.mixed:
            plan.notes.append(
                "The rule refined was not tried: it holds the whole model in memory, and this one is read block by "
                "block. --rule refined tries it all the same."
            )
        return plan

    def _together(self, rows: list[tuple[str, Entries, dict[str, Any] | None]]) -> Iterable[tuple]:
        """Rows of `_candidates` with all measured, in one pass of the model."""
        plans = [weights for _, weights, measured in rows if measured is None]
        found = iter(self.measure_each(plans))
        return [(rule, weights, measured or next(found)) for rule, weights, measured in rows]

    def _candidates(self, limit: float, unit: str) -> Iterator[tuple[str, Entries, dict[str, Any] | None]]:
        """(rule, entries, what was measured of them if anything) of all that `best` compares."""
        if self.candidates.mixed:
            yield "calibrated", self.allocated("calibrated", limit, unit), None
            for alone in self._singles(limit, unit):
                rule = f"calibrated, {alone.choice.network} alone"
                yield rule, alone.allocated("calibrated", limit, unit), None
            return
        rules = self._rules()
        costs(self.progress, "rules", [effort.item(self.study, self.choice, rule) for rule in rules])
        for number, rule in enumerate(rules):
            self.progress("rules", number, len(rules), rule)
            if rule == "refined":
                yield rule, *self._refined(limit, unit, [])
            else:
                yield rule, self.allocated(rule, limit, unit), None
        self.progress("rules", len(rules), len(rules))

    def _applies(self, rule: str) -> bool:
        if self.tables and rule not in RULES_OF_TABLES:
            return False
        return rule != "loss" or self.metric == "loss"

    def _singles(self, limit: float, unit: str) -> list["Planner"]:
        """Planners of the `SINGLES_CHECKED` networks whose plan alone is predicted to lose least at this budget."""
        found = []
        for network in dict.fromkeys(kind.network for kind in self.candidates.kinds):
            if network != "dense":
                alone = Planner(
                    self.study, self.choice.alone(network), self.metric, dict(self.locks), self.progress, self.prefix
                )
                alone.scope = self.scope
                try:
                    found.append((alone.damage_sum(alone.allocated("calibrated", limit, unit)), network, alone))
                except InputError:
                    continue  # this network alone cannot be as small as the budget asks
        return [alone for _, _, alone in sorted(found, key=lambda row: row[:2])[:SINGLES_CHECKED]]

    def prefix_of(self, weights: Entries) -> str | None:
        """The field `prefix` of a plan of these entries."""
        return self.study.prefix_of(self.prefix, weights)

    # What a plan is predicted to do.

    def damage_sum(self, weights: Mapping[str, dict[str, Any]]) -> float:
        """Σ over weights of the calibrated damage of its entry alone, nats a token."""
        return damage_sum(self.candidates, weights)

    def plan(
        self,
        weights: Entries,
        rule: str,
        budget: Budget | None = None,
        tried: Sequence[dict] = (),
        measured: dict[str, Any] | None = None,
    ) -> Plan:
        """The plan of these entries, its size counted and its rise in loss predicted (where a calibration exists);
        `measured` is what `measure` found of this very plan, if it did."""
        plan = self._document(weights, rule, budget)
        plan.tried = list(tried)
        plan.predicted = self.predict(plan, measured)
        images = "images" in (plan.calibration or {})
        plan.notes = self.study.seen.notes(self.checkpoint, plan.weights, self.held(rule), images)
        return plan

    def unpredicted(self, budget: Budget, rule: str) -> Plan:
        """The plan at a budget of a rule that measures nothing anew, as `make` gives it, with its sizes alone: what it
        does only a measurement tells, of rules but `calibrated`."""
        plan = self._document(self.allocated(rule, *self._limit(budget)), rule, budget)
        plan.predicted = sizes_of(plan, self.checkpoint)
        return plan

    def _document(self, weights: Entries, rule: str, budget: Budget | None) -> Plan:
        return Plan(
            model=model_entry(self.checkpoint),
            metric=self.metric,
            weights={weight.name: weights[weight.name] for weight in self.checkpoint.weights if weight.name in weights},
            rule=rule,
            scope=budget.scope if budget else "model",
            budget=budget.kept if budget else None,
            budget_bytes=budget.kept_bytes if budget else None,
            calibration=self.study.calibration_entry(),
            embedding={"kind": self.choice.embedding, "tied": "contract"} if self.tables else None,
            rounding=rounding_of(self.metric, weights, self.study.rounding),
            prefix=self.prefix_of(weights),
        )

    def predict(self, plan: Plan, measured: dict[str, Any] | None = None) -> dict[str, Any]:
        """Size (exact) and, where this model has been calibrated, the predicted rise in loss: from the curve through
        measured plans, with its error so far, or where this very plan was measured on calibration text, from that."""
        if measured is None:
            return predicted(self.candidates, plan)
        dense = self.study.dense_loss
        found = {
            "measure": "kl" if self.checkpoint.predicts else "output error",
            "rise": measured["rise"],
            "dense_loss": dense,
            "loss": dense + measured["rise"],
            "source": BEHIND_DENSE if plan.prefix else ITSELF,
            "error": None,
        }
        return predicted(self.candidates, plan, found)


def _specs(weights: Entries) -> "dict[str, Spec | None]":
    return {name: Entry.of(entry).spec for name, entry in weights.items()}
