"""The final judgement of a plan: on the half of the text that no decision was made on, and beside its rivals."""

import math
from collections.abc import Callable
from functools import partial

from karipap_core.errors import InputError
from karipap_core.evaluation.wrong_text import warnings_of
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.quantization.formats import Format
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.tradeoffs.autopilot.aim import Criterion, figure
from karipap_core.tradeoffs.autopilot.log import Log, Rival, Step
from karipap_core.tradeoffs.autopilot.trail import THOUSAND, Trail, Tried
from karipap_core.tradeoffs.baselines import integers, plan_sizes, sizes, svd_baselines
from karipap_core.tradeoffs.effort import QUANTIZED
from karipap_core.tradeoffs.point import Point
from karipap_core.tradeoffs.points import Points

MOST_STEPS_BACK = 3
INSIDE = 0.97  # of the line: what a step back aims at
SAME_SIZE = 0.002  # of the model: a rival may be that much larger and is still at equal bytes
PLAIN_QUANTIZATION = ("gptq", "rtn")
EQUAL = 0.02  # of the model: how much larger a uniform plan may be for want of one between


class Verdict:
    """Judges the plan that a search found. points : measures on the verdict's half of the text."""

    def __init__(self, study: Study, points: Points, criterion: Criterion, log: Log, progress: Progress) -> None:
        self.study, self.points, self.criterion, self.log, self.progress = study, points, criterion, log, progress
        self.checkpoint = study.checkpoint

    def judge(self, found: Tried) -> Tried:
        """The plan measured on the verdict's half, and a larger one while that is over the line, `MOST_STEPS_BACK`
        times at most; then its rivals. Everything is in the log."""
        why = "On the half of the text that no decision was made on."
        final = self._measured(found.plan, found.trail, found.asked, why)
        line = self.criterion.line
        for _ in range(MOST_STEPS_BACK):
            if line is None or self.criterion.holds(final.point):
                break
            wanted = INSIDE * line / final.times_predicted(self.criterion)
            size = max(found.trail.size_for(wanted) or 0, final.asked + 2)
            if size > THOUSAND:
                break
            self.log.decide("Its upper end is over the line: one step back to a larger plan.", False)
            plan = found.trail.plan(size)
            final = self._measured(plan, found.trail, size, "By what this half of the text showed, the line is here.")
        decision = "The plan." if line is None else f"{self.criterion.against(final.point)}."
        self.log.decide(decision, self.criterion.holds(final.point))
        self.progress("verdict", 1, 1, final.trail.name)
        self._measure_rivals(final)
        return final

    def _measured(self, plan: Plan, trail: Trail, asked: int, why: str) -> Tried:
        self.progress("verdict", 0, 1, trail.name)
        judged = Tried(plan, self.points.of_plan(plan, trail.network), trail, asked)
        self.log.add(Step("judged", why, tried=judged))
        return judged

    # Rivals in the same bytes.

    def _measure_rivals(self, final: Tried) -> None:
        rivals = self._rivals(final)
        for number, (label, measure) in enumerate(rivals):
            self.progress("rivals", number, len(rivals), label)
            point = measure()
            rival = Rival(label, point, uncertainty.difference(final.point.figures, point.figures))
            why = f"At {self.criterion.size(point):.1%} of the bytes."
            self.log.add(Step("rival", why, beside(final.point, rival, self.criterion), rival=rival))
        self.progress("rivals", len(rivals), len(rivals))

    def _rivals(self, final: Tried) -> list[tuple[str, Callable[[], Point]]]:
        """A uniform plan of the same network and format, SVD-LLM's, and plain integers: (its label, what measures
        it)."""
        size, choice = self.criterion.size(final.point), final.trail.planner.choice
        same = "lowrank" if choice.network == "auto" else choice.network
        rivals: list[tuple[str, Callable[[], Point]]] = []
        if (plan := self._uniform(Planner(self.study, choice.alone(same), "loss"), size)) is not None:
            rivals.append((f"uniform, {same}", partial(self.points.of_plan, plan, same)))
        plan = self._uniform(Planner(self.study, "lowrank", "functional"), size)
        if plan is not None and plan.budget is not None:
            svd = svd_baselines(self.study, "svd-llm", "functional", plan.budget, self.criterion.aim.scope)
            rivals += [(each.label, partial(self.points.of_baseline, each)) for each in svd]
        for bits, group in self._formats(size):
            plain = integers(self.study, "gptq" if bits < 8 else "rtn", bits, group)
            rivals.append((plain.label, partial(self.points.of_baseline, plain)))
        return rivals

    def _uniform(self, planner: Planner, size: float) -> Plan | None:
        """The uniform plan of a size or just above it; where bond dimensions are too coarse for that, the nearest."""
        found: list[tuple[float, Plan]] = []
        for more in range(int(THOUSAND * EQUAL)):
            kept = min(1.0, round(size + more / THOUSAND, 4))
            budget = Budget(kept, scope=self.criterion.aim.scope)
            try:
                plan = planner.unpredicted(budget, "uniform")
            except InputError:
                continue
            gap = plan_sizes(self.checkpoint, plan.ledger(self.checkpoint))[self.criterion.size_key] - size
            found.append((gap, plan))
            if gap >= 0 or kept == 1:
                break
        if (near := next((plan for gap, plan in found if 0 <= gap <= EQUAL), None)) is not None:
            return near
        return min(found, key=lambda row: abs(row[0]))[1] if found else None

    def _formats(self, size: float) -> list[tuple[int, int | None]]:
        """(bits, group) of the two formats of plain integers that are largest without being larger than a size; of the
        smallest there is where all are."""
        blocks = [weight for weight in self.checkpoint.weights if weight.compressible]
        rows = []
        for bits, group in QUANTIZED:
            form = Format.parse(f"int{bits}g{group}" if group else f"int{bits}")
            n_bytes = sum(form.bytes(*weight.shape) for weight in blocks)
            kept = sizes(self.checkpoint, n_bytes, self.checkpoint.block_parameters)[self.criterion.size_key]
            rows.append((kept, (bits, group)))
        below = sorted(row for row in rows if row[0] <= size + SAME_SIZE)[-2:]
        return [form for _, form in below] or [min(rows)[1]]

    # What is said in the end.

    def document(self, final: Tried, plan_file: str) -> dict:
        """What the finished document has besides: the plan, its figures, whether the aim is met, the verdict."""
        point, criterion = final.point, self.criterion
        interval = uncertainty.rise_of(point.figures)
        found: dict = {"plan": final.plan.to_json(), "plan_file": plan_file, "id": point.id}
        found |= {key: point.figures[key] for key in ("bytes_kept", "bytes_kept_blocks", "kept", "kept_blocks")}
        found |= {"network": final.trail.network, "keep_ends": final.trail.ends, "rise": criterion.lost(point)}
        found |= {"rise_low": interval and interval.low, "rise_high": interval and interval.high}
        if criterion.causal:
            found |= {"perplexity": point.figures["perplexity"], "perplexity_rise": math.expm1(point.figures["rise"])}
        sure = criterion.holds(point) if interval and criterion.line else None
        found |= {"met": criterion.met(point), "outside_uncertainty": sure}
        return found | {"verdict": self._sentences(final)}

    def _sentences(self, final: Tried) -> list[str]:
        """The verdict in words: that the text is wrong for the model comes first, then what is better than the plan."""
        criterion, point = self.criterion, final.point
        plain = [rival for rival in self.log.rivals if rival.point.method in PLAIN_QUANTIZATION]
        others = [rival for rival in self.log.rivals if rival.point.method not in PLAIN_QUANTIZATION]
        measured = (point, *(rival.point for rival in self.log.rivals))
        said = warnings_of(each.figures | {"label": each.label} for each in measured)
        said += [self._better(point, rival) for rival in plain if self._is_better(rival, point)]
        said.append(self._about_the_aim(final))
        for rival in others:
            size, lost = criterion.size(rival.point), criterion.lost(rival.point)
            between = beside(point, rival, criterion)
            said.append(f"{rival.label} at {size:.1%}: {criterion.quality_words} {lost:+z.4f}. {between}")
        searched = next((tried for tried in self.log.tried if tried.plan.weights == final.plan.weights), None)
        if searched is not None:
            seen = criterion.lost(searched.point)
            said.append(f"The search saw {seen:+z.4f} for this plan on its own half of the text.")
        if backs := self.log.steps_back:
            said.append(
                f"{backs} smaller {'plan was' if backs == 1 else 'plans were'} given up on the verdict's own text, so "
                "it was looked at more than once."
            )
        return said

    def _better(self, point: Point, rival: Rival) -> str:
        """That plain quantization is better than the plan."""
        criterion = self.criterion
        size, lost = criterion.size(rival.point), criterion.lost(rival.point)
        how = "smaller" if size < criterion.size(point) - SAME_SIZE else "as small"
        how += " and meets the line too" if self._under(rival) else ""
        return (
            f"Plain quantization does better here: {rival.label} is {how}, with {size:.1%} of the bytes and a "
            f"{criterion.quality_words} of {lost:+z.4f}. {beside(point, rival, criterion)}"
        )

    def _about_the_aim(self, final: Tried) -> str:
        """Whether the line is met, and how surely; or what the best plan of the size loses."""
        criterion, point = self.criterion, final.point
        interval, value = uncertainty.rise_of(point.figures), criterion.lost(point)
        span = "" if interval is None else f" (95 % interval {interval.low:+z.4f} to {interval.high:+z.4f})"
        lost = f"{criterion.quality_words} {value:+z.4f}{span}"
        lost += f", perplexity {math.expm1(value):+z.1%}" if criterion.causal else ""
        of = " of the blocks" if criterion.aim.scope == "blocks" else ""
        kept = f"{criterion.size(point):.1%} of the bytes{of}"
        if criterion.line is None:
            return f"At {kept} the best plan measured is {final.trail.name}: {lost}."
        verb = "is met" if criterion.met(point) else "is not met"
        if criterion.met(point) and interval is not None:
            inside = ", but only inside the uncertainty: the interval reaches over it"
            verb += ", outside the uncertainty" if criterion.holds(point) else inside
        return f"The line of {figure(criterion.line)} {verb}: {final.trail.name} keeps {kept}, {lost}."

    def _is_better(self, rival: Rival, ours: Point) -> bool:
        """A rival that is no larger and loses measurably less, or is smaller and loses not measurably more or meets the
        line too."""
        size, other = self.criterion.size(ours), self.criterion.size(rival.point)
        between = rival.difference
        if other > size + SAME_SIZE:
            return False
        if between.high < 0 if between else self.criterion.lost(rival.point) < self.criterion.lost(ours):
            return True
        return other < size - SAME_SIZE and (self._under(rival) or (between is not None and between.low <= 0))

    def _under(self, rival: Rival) -> bool:
        """Whether a rival meets the line too, by the upper end of its interval where it has one."""
        upper = rival.point.figures.get("rise_high")
        upper = upper if upper is not None else self.criterion.lost(rival.point)
        return self.criterion.line is not None and upper <= self.criterion.line


def beside(ours: Point, rival: Rival, criterion: Criterion) -> str:
    """Whether a rival loses more or less than our point, in words."""
    between = rival.difference
    if between is None:
        gap = criterion.lost(rival.point) - criterion.lost(ours)
        return f"It loses {abs(gap):.4f} {'more' if gap > 0 else 'less'}; no interval."
    span = f"{abs(between.mean):.4f} (95 % interval of the difference {between.low:+z.4f} to {between.high:+z.4f})"
    if not between.measurable:
        return f"No measurable difference: {span}."
    return f"It loses {'more' if between.mean > 0 else 'less'}, by {span}."
