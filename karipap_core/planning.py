"""A budget and a rule → a plan for a whole model (METHODS.md, "Allocation").

`uniform`, `entropy`, `functional` and `loss` need spectra alone, `calibrated` the measured sensitivity of each weight,
`refined` measures again at the plan itself what weights do to one another, and `best` tries them all on text that was
not calibrated on.
"""

from dataclasses import dataclass

import numpy as np

from karipap_core.allocate import allocate, by_entropy, uniform
from karipap_core.curves import option_table
from karipap_core.errors import InputError
from karipap_core.plan import DENSE, RULES, Plan, model_entry
from karipap_core.progress import Progress, silent
from karipap_core.sensitivity import apply_plan, marginals, whole_plan
from karipap_core.spectrum import METRICS

REFINE_ROUNDS = 5
# A network without nested components is fitted anew for every plan, so `best` tries those that differ most.
RULES_WHEN_FITTED = ("uniform", "loss", "calibrated")


@dataclass(frozen=True)
class Budget:
    """kept: fraction of parameters, of the whole model (scope `model`) or of the compressible weights (`blocks`);
    kept_bytes: fraction of the whole model's bytes instead."""

    kept: float | None = None
    kept_bytes: float | None = None
    scope: str = "model"

    def limit(self, checkpoint) -> tuple[float, str]:
        """(what the compressible weights may cost, its unit). InputError where the rest alone exceeds the budget."""
        if (self.kept is None) == (self.kept_bytes is None):
            raise InputError("Give one budget: a fraction of parameters (--budget) or of bytes (--budget-bytes).")
        value = self.kept if self.kept is not None else self.kept_bytes
        if not 0 < value <= 1:
            raise InputError(f"Budget {value} is not a fraction: it must be above 0 and at most 1.")
        if self.scope not in ("model", "blocks"):
            raise InputError(f"Scope {self.scope!r} is not `model` or `blocks`.")
        blocks, whole, unit = checkpoint.block_parameters, checkpoint.parameters, "parameters"
        if self.kept is None:
            blocks = sum(weight.bytes for weight in checkpoint.weights if weight.compressible)
            whole, unit = checkpoint.bytes, "bytes"
        elif self.scope == "blocks":
            return value * blocks, unit
        limit = value * whole - (whole - blocks)
        if limit <= 0:
            raise InputError(
                f"A budget of {value:g} leaves nothing for the {blocks:,} {unit} that can be compressed: the rest "
                f"(embeddings, head, norms) alone is {(whole - blocks) / whole:.3f} of the model. Raise the budget, or "
                "count the blocks alone with --scope blocks."
            )
        return limit, unit


class Planner:
    """Makes plans of one study (study.py) in one network under one metric. locks: {weight: plan entry} pinned."""

    def __init__(self, study, network: str, metric: str, locks: dict[str, dict] | None = None, progress=silent) -> None:
        from karipap_core.networks import NETWORKS

        if network not in NETWORKS:
            raise InputError(f"Network {network!r} is not one of {', '.join(NETWORKS)}.")
        if metric not in METRICS:
            raise InputError(f"Metric {metric!r} is not one of {', '.join(METRICS)}.")
        self.study, self.network, self.metric, self.progress = study, network, metric, progress
        self.checkpoint = study.checkpoint
        if not study.weights:
            raise InputError(f"{self.checkpoint.name} has no weight that can be compressed.")
        self.curves = study.curves(network, metric)
        self.locks = {name: entry | {"locked": True} for name, entry in (locks or {}).items()}
        for name in self.locks:
            self.checkpoint.weight(name)
        self.scale = {weight.name: 1.0 for weight in self.checkpoint.weights}

    # One plan.

    def make(self, budget: Budget, rule: str = "best", progress: Progress | None = None) -> Plan:
        """The plan of a rule at a budget, with what it is predicted to do."""
        self.progress = progress or self.progress
        if rule not in RULES:
            raise InputError(f"Rule {rule!r} is not one of {', '.join(RULES)}.")
        limit, unit = budget.limit(self.checkpoint)
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

    def _tables(self, rule: str, unit: str) -> list:
        if rule in ("calibrated", "refined"):
            calibration = self.study.calibration(self.metric)

            def damage(name, curve):
                return calibration.damage(name, curve.error) * self.scale[name]
        elif rule == "functional":
            functional = self.curves if self.metric == "functional" else self.study.curves(self.network, "functional")

            def damage(name, curve):
                return functional[name].error / max(functional[name].total, np.finfo(float).tiny)
        else:

            def damage(name, curve):
                return 0.5 * curve.error

        return option_table(self.study.weights, self.curves, damage, unit)

    def _allocated(self, rule: str, limit: float, unit: str) -> dict[str, dict]:
        if rule == "loss" and self.metric != "loss":
            raise InputError(f"Rule `loss` sorts by the loss metric; this plan's metric is `{self.metric}`.")
        tables = self._tables(rule, unit)
        fixed_cost = 0.0
        free = []
        for table in tables:
            if table.name in self.locks:
                spec = self._spec(self.locks[table.name])
                cost = table.cost[-1]
                if spec is not None:
                    factor = table.cost[-1] / self.checkpoint.weight(table.name).parameters
                    cost = spec.parameters * factor
                fixed_cost += cost
            else:
                free.append(table)
        room = limit - fixed_cost
        if room < 0:
            raise InputError(f"The locked weights alone cost {fixed_cost:,.0f} {unit}, the budget allows {limit:,.0f}.")
        if rule == "uniform":
            chosen = uniform(free, room)
        elif rule == "entropy":
            chosen = by_entropy(free, room, self.study.entropies(self.metric))
        else:
            chosen = allocate(free, room)
        chis = {table.name: int(table.chi[chosen[table.name]]) for table in free}
        return {name: self.entry(name, chi) for name, chi in chis.items()} | self.locks

    def entry(self, name: str, chi: int) -> dict:
        """A plan entry: χ in this network's default factorization, dense for 0."""
        if chi == 0:
            return dict(DENSE)
        from karipap_core.networks import NETWORKS

        return NETWORKS[self.network].for_shape(*self.checkpoint.weight(name).shape, chi).to_json() | {"quantize": None}

    def _spec(self, entry: dict):
        from karipap_core.networks import spec_from_json

        return None if entry["network"] == "dense" else spec_from_json(entry)

    def _specs(self, weights: dict[str, dict]) -> dict:
        return {name: self._spec(entry) for name, entry in weights.items()}

    # Rules that measure.

    def measure(self, weights: dict[str, dict], learn: bool = False) -> dict[str, float]:
        """Divergence and rise in loss of a whole plan on the check windows, and its sum of predicted damages. With
        `learn` the study's calibration is fitted through it: only for `calibrated` plans, since other rules relate sum
        and rise differently."""
        found = whole_plan(self.study.check, self.study.decompositions(self.metric), self._specs(weights))
        self.study.check.restore()
        found |= {"kept_blocks": self.plan_kept(weights), "network": self.network}
        if self.study.has_calibration(self.metric):
            found["sum"] = self.damage_sum(weights)
        if learn:
            self.study.learn(self.metric, found)
        return found

    def _refined(self, limit: float, unit: str, tried: list[dict]) -> tuple[dict[str, dict], dict]:
        """Calibrated, then: measure every weight's marginal at the plan, scale its curve by √(measured / predicted)
        (clamped to 0.2–5), allocate again; the plan with the least divergence on the check windows wins."""
        calibration = self.study.calibration(self.metric)
        decompositions, probe = self.study.decompositions(self.metric), self.study.probe
        best = weights = self._allocated("calibrated", limit, unit)
        best_found = self.measure(weights, learn=True)
        tried.append({"rule": "calibrated"} | best_found)
        for round_ in range(1, REFINE_ROUNDS + 1):
            specs = self._specs(weights)
            apply_plan(probe, decompositions, specs)
            found = marginals(probe, decompositions, self.study.weights, specs, self.progress)
            probe.restore()
            for name, (spec, change) in found.items():
                error = self._error(name, spec)
                predicted = float(calibration.damage(name, error)) * self.scale[name]
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
        differ by less than 0.002 nats, which is noise); the winner is kept."""
        candidates, tried = [], []
        rules = RULES[:-1] if self.network == "lowrank" else RULES_WHEN_FITTED
        rules = [rule for rule in rules if not (rule == "loss" and self.metric != "loss")]
        for number, rule in enumerate(rules):
            self.progress("rules", number, len(rules), rule)
            if rule == "refined":
                weights, found = self._refined(limit, unit, [])
            else:
                weights = self._allocated(rule, limit, unit)
                found = self.measure(weights)
            tried.append({"rule": rule} | found)
            candidates.append((round(found["rise"] / 0.002), found["divergence"], number, weights))
        self.progress("rules", len(rules), len(rules))
        _, _, winner, weights = min(candidates, key=lambda candidate: candidate[:3])
        plan = self.plan(weights, "best", budget, tried, tried[winner])
        plan.chosen_rule = rules[winner]
        return plan

    # What a plan costs and is predicted to do.

    def _error(self, name: str, spec) -> float:
        """Metric error of a spec, read from its curve (of `lowrank` for a spec of another network than the plan's)."""
        same = spec.network == self.network
        curve = self.curves[name] if same else self.study.curves(spec.network, self.metric)[name]
        chi = max(spec.chi)
        if chi >= curve.chi[-1]:
            known = np.append(curve.chi, spec.max_chi)
            return float(np.interp(chi, known, np.append(curve.error, 0.0)))
        return float(np.exp(np.interp(chi, curve.chi, np.log(np.maximum(curve.error, 1e-300)))))

    def damage_sum(self, weights: dict[str, dict]) -> float:
        """Σ over weights of the calibrated damage of its entry alone."""
        calibration = self.study.calibration(self.metric)
        specs = self._specs(weights)
        return sum(float(calibration.damage(n, self._error(n, s))) for n, s in specs.items() if s is not None)

    def plan_kept(self, weights: dict[str, dict]) -> float:
        return Plan(model_entry(self.checkpoint), self.metric, weights).ledger(self.checkpoint).kept_blocks

    def plan(self, weights: dict[str, dict], rule: str, budget: Budget | None = None, tried=(), measured=None) -> Plan:
        """The plan of these entries, its size counted and its rise in loss predicted (where a calibration exists);
        `measured` is what `measure` found of this very plan, if it did."""
        order = [weight.name for weight in self.checkpoint.weights if weight.name in weights]
        plan = Plan(
            model=model_entry(self.checkpoint), metric=self.metric, weights={name: weights[name] for name in order},
            rule=rule, scope=budget.scope if budget else "model", budget=budget.kept if budget else None,
            budget_bytes=budget.kept_bytes if budget else None, calibration=self.study.calibration_entry(),
            tried=list(tried),
        )  # fmt: skip
        plan.predicted = self.predict(plan, measured)
        return plan

    def predict(self, plan: Plan, measured: dict | None = None) -> dict:
        """Size (exact) and, where this model has been calibrated, the predicted rise in loss: from the curve through
        measured plans, with its error so far, or where this very plan was measured on calibration text, from that."""
        predicted = dict(plan.ledger(self.checkpoint).__dict__)
        calibration = None
        if self.study.has_calibration(self.metric):
            calibration = self.study.calibration(self.metric)
            predicted["sum"] = self.damage_sum(plan.weights)
        if measured is not None:
            causal = self.checkpoint.kind == "causal"
            dense = self.study.check.dense.loss if causal else 0.0
            predicted |= {
                "measure": "kl" if causal else "output error", "rise": measured["rise"], "dense_loss": dense,
                "loss": dense + measured["rise"], "source": "this plan on calibration text", "error": None,
            }  # fmt: skip
        elif calibration is not None:
            rise = calibration.rise(predicted["sum"])
            predicted |= {
                "measure": calibration.measure, "rise": rise, "dense_loss": calibration.dense_loss,
                "loss": calibration.dense_loss + rise, "source": "curve", "error": calibration.error,
                "fitted_plans": len(calibration.points),
            }  # fmt: skip
        return predicted
