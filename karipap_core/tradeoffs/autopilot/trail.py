"""The calibrated plans of one network, and a plan of them that was measured."""

import math
from dataclasses import dataclass, field

from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.calibration import Calibration, Fit, group_of_weights
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import DENSE, Plan
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.search import largest
from karipap_core.tradeoffs.autopilot.aim import Criterion
from karipap_core.tradeoffs.point import Point

THOUSAND = 1000  # sizes are asked for in thousandths


@dataclass
class Trail:
    """The calibrated plans of one network, one for each size, with `ends` blocks at each end kept dense.

    curve: the calibration that all its predictions come from, frozen when the search began.
    """

    planner: Planner
    ends: int
    scope: str
    curve: Calibration
    rises: dict[int, float] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)

    @property
    def network(self) -> str:
        return self.planner.choice.network

    @property
    def name(self) -> str:
        dense = f", first and last {self.ends if self.ends > 1 else 'block'} dense" if self.ends else ""
        form = self.planner.choice.quantize
        return f"{self.network}{f' in {form}' if form else ''}{dense}"

    def allocated(self, size: int) -> dict[str, dict]:
        """The entries of the calibrated plan at a size (thousandths). InputError where the network cannot be so
        small."""
        limit, unit = Budget(size / THOUSAND, scope=self.scope).limit(self.planner.checkpoint, self.planner.tables)
        return self.planner.allocated("calibrated", limit, unit)

    def predicted(self, size: int) -> float:
        """The predicted rise at this size (thousandths), infinite where the network cannot be so small."""
        if size not in self.rises:
            try:
                self.rises[size] = self.foretold(self.allocated(size))["rise"]
            except InputError:
                self.rises[size] = math.inf
        return self.rises[size]

    def foretold(self, weights: dict[str, dict]) -> dict:
        """A plan's `predicted` fields for these weights, from the frozen calibration."""
        group = group_of_weights(weights, bool(self.planner.tables), self.planner.prefix_of(weights))
        if group not in self.fits:
            self.fits[group] = self.curve.fit(group)
        return self.fits[group].predicted(self.planner.damage_sum(weights), self.planner.checkpoint.vocabulary)

    def size_for(self, rise: float) -> int | None:
        """The smallest size that is predicted to lose no more than `rise`, None where even the largest does."""
        if self.predicted(THOUSAND) > rise:
            return None
        return largest(lambda size: self.predicted(size) > rise, 0, THOUSAND) + 1

    def plan(self, size: int, rule: str = "calibrated", weights: dict[str, dict] | None = None) -> Plan:
        """The plan at a size, or one of these weights by another rule, its prediction from the frozen curve."""
        plan = self.planner.plan(weights or self.allocated(size), rule, Budget(size / THOUSAND, scope=self.scope))
        found = {key: value for key, value in (plan.predicted or {}).items() if key != "beyond"}  # the live one's word
        plan.predicted = found | self.foretold(plan.weights)
        if rule == "hand":
            plan.chosen_rule = "autopilot"
        return plan


@dataclass(frozen=True)
class Trails:
    """Makes the trail of each network that may be asked for, all in one scope and from one frozen calibration."""

    study: Study
    choices: dict[str, Choice]  # by the network's name
    scope: str
    curve: Calibration
    progress: Progress

    @property
    def layers(self) -> list[int]:
        """The numbers of the blocks that have a weight to compress."""
        return sorted({weight.layer for weight in self.study.weights if weight.layer is not None})

    def of(self, network: str, ends: int) -> Trail:
        """The trail of a network with `ends` blocks at each end kept dense. InputError where no block is left."""
        layers = self.layers
        if ends and 2 * ends >= len(layers):
            name = self.study.checkpoint.name
            raise InputError(f"--keep-ends {ends}: {name} has {len(layers)} blocks, so none is left.")
        kept = {*layers[:ends], *layers[len(layers) - ends :]} if ends else set()
        locks = {weight.name: dict(DENSE) for weight in self.study.weights if weight.layer in kept}
        planner = Planner(self.study, self.choices[network], "loss", locks, self.progress)
        return Trail(planner, ends, self.scope, self.curve)


@dataclass(frozen=True)
class Tried:
    """A measured plan: its point, the trail that it is of, and its size in thousandths as it was asked for."""

    plan: Plan
    point: Point
    trail: Trail
    asked: int

    @property
    def predicted(self) -> float:
        """The rise that was predicted of the plan."""
        return (self.plan.predicted or {})["rise"]

    def times_predicted(self, criterion: Criterion) -> float:
        """How many times the prediction was exceeded, at least 0.2: a rise below that is noise."""
        return max(criterion.value(self.point) / max(self.predicted, 1e-9), 0.2)
