"""The search for a plan: screened by prediction, then measured step by step on one half of the text.

A line is met by the upper end of the 95 % interval, not by the mean. All decisions follow from measured points and from
a calibration that is frozen when the search begins, so a search that was killed goes on by the same command to the same
end.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.planner import Planner
from karipap_core.progress import Progress
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.tradeoffs.autopilot.aim import Criterion, figure
from karipap_core.tradeoffs.autopilot.log import Log, Step
from karipap_core.tradeoffs.autopilot.trail import THOUSAND, Trail, Trails, Tried
from karipap_core.tradeoffs.baselines import plan_sizes
from karipap_core.tradeoffs.points import Points
from karipap_core.workspace.kept import keep_json, kept_json

MAX_EVALUATIONS = 12
CONTESTANTS = 3  # networks that are measured before one is chosen
FAR = 1.25  # a network predicted that much larger than the best is not measured
NEAR = 0.01  # sizes that close, relative, are near enough: batches of weights take it from there
WIDE = 0.05  # relative: with sizes that far apart no evaluation is kept back for the batches
STRAIGHT = 10.0  # times the line, or parts of it, between which ln rise runs straight enough over size
FILLED = 0.93  # of the line: a plan this close below it is near enough too
BATCH_EVALUATIONS = 4  # kept back for the batches
DEEPER = 3.0  # batches lead towards the plan that is predicted to lose this many times more
ENDS_FROM = 4  # blocks a model must have before its ends are tried apart
ENDS_WORTH = 1.5  # times the predicted rise at which dense ends are not worth a measurement


@dataclass(frozen=True)
class Limits:
    """How far a search may go.

    keep_ends : blocks at each end that stay dense, or "auto": none or one, by measurement.
    max_evaluations : plans that the search may measure, at least 1.
    """

    keep_ends: int | Literal["auto"] = "auto"
    max_evaluations: int = MAX_EVALUATIONS

    def __post_init__(self) -> None:
        if self.max_evaluations < 1:
            raise InputError(f"max_evaluations is {self.max_evaluations}: give at least 1.")


class Search:
    """One search on the searching half of a text.

    trails : the networks, all of which are tried. points : measures plans on the searching half.
    refined_file : where the plan of the refined rule is kept, which takes long to make.
    """

    def __init__(
        self,
        trails: Trails,
        points: Points,
        criterion: Criterion,
        limits: Limits,
        log: Log,
        refined_file: Path,
        progress: Progress,
    ) -> None:
        self.trails, self.points, self.criterion, self.limits = trails, points, criterion, limits
        self.log, self.refined_file, self.progress = log, refined_file, progress
        self.checkpoint, self.aim = trails.study.checkpoint, criterion.aim

    def run(self) -> Tried:
        """The best plan by what was measured on the searching half. InputError where no network can be so small."""
        return self._meet_line() if self.criterion.line is not None else self._fill_budget()

    @property
    def line(self) -> float:
        assert self.criterion.line is not None, "only a search for a line asks for it"
        return self.criterion.line

    @property
    def may_measure(self) -> bool:
        return self.log.evaluations < self.limits.max_evaluations

    def _meet_line(self) -> Tried:
        trails = self._screen()
        best = self._contest(trails)
        best = self._ends(best)
        best = self._close_in(best)
        return self._batches(self._refined(best)) if self._holds(best) else best

    def _fill_budget(self) -> Tried:
        """The networks that are predicted best at the size, then dense ends, then the refined rule: whichever is
        measured to lose least."""
        budget = self.aim.budget or 0.0
        size = math.floor(budget * THOUSAND + 1e-9)
        possible: list[tuple[float, Trail]] = []
        rows = []
        for network in self.trails.choices:
            trail = self.trails.of(network, self._fixed_ends())
            rise = trail.predicted(size) if size else math.inf
            rows.append(f"{trail.name} {figure(rise)}" if rise < math.inf else f"{trail.name} cannot be so small")
            if rise < math.inf:
                possible.append((rise, trail))
        trails = [trail for _, trail in sorted(possible, key=lambda row: row[0])][:CONTESTANTS]
        if not trails:
            raise InputError(f"A budget of {budget:g} cannot be met by {', '.join(self.trails.choices)}.")
        why = f"Predicted rise at {size / THOUSAND:.1%} of the bytes: {'; '.join(rows)}."
        self.log.add(Step("screened", why, f"Measure {', '.join(trail.name for trail in trails)}."))
        best: Tried | None = None
        for trail in trails:
            if (found := self._measure(trail, size, "Among those predicted to lose least at this size.")) is None:
                break
            if best is None or self._value(found) < self._value(best):
                self.log.decide("The best so far.", True)
                best = found
            else:
                self.log.decide(f"Loses more than {best.trail.name}.", False)
        assert best is not None, "every search may measure one plan at least"
        return self._refined(self._ends(best))

    def _screen(self) -> list[Trail]:
        """The networks whose predicted size at the line is smallest, smallest first."""
        found, rows = [], []
        for network in self.trails.choices:
            trail = self.trails.of(network, self._fixed_ends())
            size = trail.size_for(self.line)
            rows.append(f"{trail.name} {size / THOUSAND:.1%}" if size else f"{trail.name} does not meet it at any size")
            found.append((size or THOUSAND * 2, trail.predicted(THOUSAND), trail))
        found.sort(key=lambda row: row[:2])
        near = [trail for size, _, trail in found if size <= FAR * found[0][0]][:CONTESTANTS]
        decision = f"Measure {', '.join(trail.name for trail in near)}."
        if len(near) < len(found):
            decision += f" The others are predicted at least {FAR - 1:.0%} larger."
        why = f"Smallest size that is predicted to meet the line: {'; '.join(rows)}."
        self.log.add(Step("screened", why, decision))
        return near

    def _contest(self, trails: list[Trail]) -> Tried:
        """Each at its predicted size, the one that will be smallest by what was measured wins."""
        rows: list[tuple[int, float, int, Tried]] = []
        for trail in trails:
            size = trail.size_for(self.line) or THOUSAND
            why = "Predicted to be at the line." if trail.predicted(size) <= self.line else "The largest there is."
            if (found := self._measure(trail, size, why)) is None:
                break
            corrected = trail.size_for(self.line / found.times_predicted(self.criterion)) or THOUSAND * 2
            rows.append((corrected, self._value(found), len(rows), found))
            expected = f"by that the line is at {corrected / THOUSAND:.1%}" if corrected <= THOUSAND else "out of reach"
            self.log.decide(f"{self._against(found)}; {expected}.", self._holds(found))
        best = min(rows, key=lambda row: row[:3])[3]
        if len(rows) > 1:
            why = "Smallest at the line by what was measured."
            self.log.add(Step("network chosen", why, f"Go on with {best.trail.name}."))
        return best

    def _ends(self, best: Tried) -> Tried:
        """Whether the first and last blocks dense do better at the same size."""
        blocks = len(self.trails.layers)
        if self.limits.keep_ends != "auto":
            return best
        if blocks < ENDS_FROM or not self.may_measure:
            why, decision = f"The model has {blocks} blocks.", "Every block may be compressed."
            self.log.add(Step("ends left", why, decision))
            return best
        trail = self.trails.of(best.trail.network, 1)
        rise = trail.predicted(best.asked)
        if rise > ENDS_WORTH * best.predicted:
            impossible = rise == math.inf
            ends_dense = "is not possible" if impossible else f"is predicted to lose {figure(rise)}"
            why = f"With the first and last block dense a plan of {best.asked / THOUSAND:.1%} {ends_dense}, with none "
            why += f"dense {figure(best.predicted)}."
            decision = "Not worth a measurement: every block may be compressed."
            self.log.add(Step("ends left", why, decision, predicted=None if impossible else rise))
            return best
        found = self._measure(trail, best.asked, "Whether the first and last block are worth keeping dense.")
        if found is None:
            return best
        better = uncertainty.difference(found.point.figures, best.point.figures)
        wins = better.low > 0 if better else self._value(found) < self._value(best)
        decision = "The ends stay dense." if wins else "Every block may be compressed."
        if better:
            decision = f"Every block compressed loses {uncertainty.in_words(better)} more. {decision}"
        self.log.decide(decision, wins)
        return found if wins else best

    def _close_in(self, best: Tried) -> Tried:
        """Sizes between the smallest plan that meets the line and the largest that does not, by what was measured."""
        trail = best.trail
        while True:
            mine = [tried for tried in self.log.tried if tried.trail is trail]
            holds = min((tried for tried in mine if self._holds(tried)), key=lambda tried: tried.asked, default=None)
            fails = max(
                (t for t in mine if not self._holds(t) and (holds is None or t.asked < holds.asked)),
                key=lambda tried: tried.asked,
                default=None,
            )
            if holds and (self._value(holds) >= FILLED * self.line):
                return holds
            wide = holds is None or (fails is not None and holds.asked - fails.asked > WIDE * holds.asked)
            if not wide and self.log.evaluations >= self.limits.max_evaluations - BATCH_EVALUATIONS:
                break
            size = self._next_size(trail, holds, fails)
            if size is None or (found := self._measure(trail, size, self._why(holds, fails))) is None:
                break
            self.log.decide(self._against(found) + ".", self._holds(found))
        return min(self._holding(trail), key=lambda t: t.asked, default=None) or min(
            (tried for tried in self.log.tried), key=self._value
        )

    def _next_size(self, trail: Trail, holds: Tried | None, fails: Tried | None) -> int | None:
        """Where the line is expected: between the two by ln rise, linear in size (in the middle where one is far from
        the line); beyond them by the predicted curve and how far it was off. None where they are near enough."""
        if holds and fails:
            gap = holds.asked - fails.asked
            if gap <= max(1, NEAR * holds.asked):
                return None
            above, below = self._value(fails) / self.line, self._value(holds) / self.line
            share = 0.5 if below < 1 / STRAIGHT or above > STRAIGHT else math.log(above) / math.log(above / below)
            at = fails.asked + gap * share
            inside = max(1, gap // 8)
            return min(max(math.ceil(at), fails.asked + inside), holds.asked - inside)
        if (one := holds or fails) is None:
            return None
        size = trail.size_for(self.line / one.times_predicted(self.criterion))
        if fails:
            size = max(size or THOUSAND, fails.asked + max(1, (THOUSAND - fails.asked) // 8))
            return size if fails.asked < THOUSAND else None
        size = min(size or THOUSAND, one.asked)
        return size if one.asked - size > NEAR * one.asked and trail.predicted(size) < math.inf else None

    def _why(self, holds: Tried | None, fails: Tried | None) -> str:
        if holds and fails:
            return f"Between {fails.asked / THOUSAND:.1%}, over the line, and {holds.asked / THOUSAND:.1%}, under it."
        one = holds or fails
        times = one.times_predicted(self.criterion) if one else 1.0
        return f"The upper end was {times:.2f} times what was predicted: corrected by that, the line is here."

    def _batches(self, best: Tried) -> Tried:
        """Batches of weights from the plan found towards a smaller one, those that save most bytes for the damage
        first, the whole plan measured after each. A batch that breaks the line is halved; a weight that does so alone
        stays as it is."""
        trail, planner = best.trail, best.trail.planner
        queue: list[tuple[str, ...]] = []  # units of weights that `target` makes smaller
        target: dict[str, dict] = {}
        spared: set[str] = set()
        half, led = False, None
        while self.may_measure:
            if not half:
                queue = [unit for unit in queue if self._fitting(best, [unit], target)]
                if not queue and led is not best and (deep := trail.size_for(DEEPER * best.predicted)):
                    led, target = best, trail.allocated(deep)  # a target is left behind once, then a deeper one leads
                    queue = [u for u in self._units(planner, best.plan.weights, target) if not spared & set(u)]
                    queue = [unit for unit in queue if self._fitting(best, [unit], target)]
                if not queue:
                    why = "No other weight is predicted to stay under the line if made smaller."
                    self.log.add(Step("stopped", why, "Done."))
                    break
                count = self._fitting(best, queue, target)
            batch = queue[:count]
            weights = best.plan.weights | {name: target[name] for unit in batch for name in unit}
            ledger = Plan(model_entry(self.checkpoint), "loss", weights).ledger(self.checkpoint)
            size = math.ceil(plan_sizes(self.checkpoint, ledger)[self.criterion.size_key] * THOUSAND)
            what = f"{batch[0][0]}" + (f" and {len(sum(batch, ())) - 1} more" if len(sum(batch, ())) > 1 else "")
            why = (
                f"{'Half of that batch' if half else 'The next batch'}, most bytes saved for the damage first: {what}."
            )
            order = {name: weights[name] for name in best.plan.weights}
            if (found := self._measure(trail, size, why, "hand", order)) is None:
                break
            if self._holds(found):
                self.log.decide(f"{self._against(found)}; the batch stays.", True)
                best, queue, half = found, queue[count:], False
            elif count > 1:
                self.log.decide(f"{self._against(found)}; the batch is halved.", False)
                queue, count, half = queue[: count // 2] + queue[count:] + queue[count // 2 : count], count // 2, True
            else:
                self.log.decide(f"{self._against(found)}; {what} stays as it was.", False)
                queue, half = queue[1:], False
                spared |= set(batch[0])
        return best

    def _units(self, planner: Planner, now: dict, then: dict) -> list[tuple[str, ...]]:
        """The weights that `then` makes smaller, by damage per number saved; those that share cores together."""
        units: dict[str, tuple[str, ...]] = {}
        for name in now:
            members = set(now[name].get("members") or (name,)) | set(then[name].get("members") or (name,))
            for member in list(members):
                members |= set(units.get(member, ()))
            for member in members:
                units[member] = tuple(each for each in now if each in members)
        rows = []
        for unit in dict.fromkeys(units.values()):
            saved = sum(planner.candidates.entry_cost(name, now[name], "parameters") for name in unit)
            saved -= sum(planner.candidates.entry_cost(name, then[name], "parameters") for name in unit)
            if saved > 0:
                lost = planner.damage_sum({name: then[name] for name in unit})
                lost -= planner.damage_sum({name: now[name] for name in unit})
                rows.append((lost / saved, unit))
        return [unit for _, unit in sorted(rows)]

    def _fitting(self, best: Tried, queue: list, target: dict) -> int:
        """So many units of the queue as are predicted to stay under the line."""
        ratio, weights = best.times_predicted(self.criterion), dict(best.plan.weights)
        for count, unit in enumerate(queue):
            weights |= {name: target[name] for name in unit}
            if ratio * best.trail.foretold(weights)["rise"] > self.line:
                return count
        return len(queue)

    def _refined(self, best: Tried) -> Tried:
        """The rule that measures weights at the plan itself, at the same size and with the same ends."""
        if not self.may_measure:
            return best
        file = self.refined_file
        if (known := kept_json(file)) is not None:
            weights = Plan.from_json(known, str(file)).weights
        else:
            budget = Budget(best.asked / THOUSAND, scope=self.aim.scope)
            plan = best.trail.planner.make(budget, "refined", self.progress)
            keep_json(file, plan.to_json())
            weights = plan.weights
        found = self._measure(best.trail, best.asked, "Each weight measured at the plan itself.", "refined", weights)
        if found is None:
            return best
        wins = self._value(found) < self._value(best)
        self.log.decide("Loses less: taken." if wins else "Loses no less: the calibrated plan stays.", wins)
        return found if wins else best

    # What a point says.

    def _value(self, tried: Tried) -> float:
        return self.criterion.value(tried.point)

    def _holds(self, tried: Tried) -> bool:
        return self.criterion.holds(tried.point)

    def _holding(self, trail: Trail) -> list[Tried]:
        return [tried for tried in self.log.tried if tried.trail is trail and self._holds(tried)]

    def _against(self, tried: Tried) -> str:
        return self.criterion.against(tried.point)

    # Plans, measured.

    def _measure(
        self, trail: Trail, size: int, why: str, rule: str = "calibrated", weights: dict | None = None
    ) -> Tried | None:
        """A plan on the searching half, in the log; None where all evaluations are used."""
        plan = trail.plan(size, rule, weights)
        if known := next((tried for tried in self.log.tried if tried.plan.weights == plan.weights), None):
            tried = replace(known, trail=trail, asked=size)
            self.log.add(Step("looked up", f"{why} The same plan was measured before.", tried=tried))
            return tried
        limit = self.limits.max_evaluations
        if not self.may_measure:
            why = f"All {limit} evaluations are used (--max-evaluations)."
            self.log.add(Step("stopped", why, "The best plan so far."))
            return None
        self.progress("search", self.log.evaluations, limit, f"{trail.name} at {size / THOUSAND:.1%}")
        point = self.points.of_plan(plan, trail.network)
        tried = Tried(plan, point, trail, size)
        self.log.add(Step("measured", why, tried=tried))
        return tried

    def _fixed_ends(self) -> int:
        return 0 if self.limits.keep_ends == "auto" else self.limits.keep_ends
