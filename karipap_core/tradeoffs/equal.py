"""What each method loses at the same size: read off its own measured curve, and not beyond it.

A point is here the document of a run.json (see `point.Point`). Methods are measured at sizes of their own: integers
come in whole bits, plans end somewhat below their budgets. To hold the nearest points against each other would compare
unlike sizes; so a method's figure at a size in between is interpolated, and outside of what was measured there is none.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from karipap_core.evaluation import scores
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known, pareto

SAME_SIZE = 0.001  # a point so near to a size is its point
SLACK = 0.005  # beyond the ends of a curve: plans end that much beside their budgets, in rounding
SAME = 0.001  # nats: of points without units, differences below are noise, whatever their errors say
SMOOTH = (*scores.LOSSES, "kl", "relative_error", "top1_agreement")  # scores of tasks are not: too few items
LOGARITHMIC = ("rise", "kl", "relative_error")
ALSO_GPTQ = 8  # bits at which there is nothing left for calibration to win: rounding is GPTQ's point too


@dataclass(frozen=True)
class Curve:
    """The points of one method that none of its others beats, smallest first. network: or a rival."""

    method: str
    network: bool
    points: tuple[dict, ...]
    x: str
    y: str

    def at(self, size: float) -> dict | None:
        """The point at a size: the measured one, else one interpolated between its two neighbours (`between`); None
        beyond the smallest and the largest that were measured."""
        near = min(self.points, key=lambda point: abs(point[self.x] - size))
        below = [point for point in self.points if point[self.x] < size]
        above = [point for point in self.points if point[self.x] > size]
        inside = below and above and self.y in SMOOTH
        if abs(near[self.x] - size) <= (SAME_SIZE if inside else SLACK):
            return near
        return between(below[-1], above[0], size, self.x, self.y) if inside else None

    def before(self, size: float) -> dict | None:
        """Its largest point where that is below a size: who has more room can take it all the same."""
        largest = self.points[-1]
        return largest if largest[self.x] < size - SLACK else None


def curves(points: Iterable[dict], x: str = "bytes_kept_blocks", y: str = "rise", more: bool = False) -> list[Curve]:
    """The curve of every method among points of one model on one text. more: whether more of y is better."""
    of: dict[tuple[str, bool], list[dict]] = {}
    for point in points:
        if known(point, x) and known(point, y):
            for name in _names(point):
                of.setdefault((name, point["kind"] == "network"), []).append(point)
    most = (y,) if more else ()
    return [Curve(name, network, tuple(pareto(mine, x, y, most)), x, y) for (name, network), mine in of.items()]


def between(below: dict, above: dict, size: float, x: str, y: str) -> dict:
    """The point of one method at a size between two of its points: a document with what is needed to compare it.

    Losses and divergences fall by a factor for each step in size, so log y is linear in x; where one of the two is not
    above 0, and for any other figure, y itself. Its standard error and what it loses unit by unit ("units") come from
    those of both, to first order: so its difference to a point on the same units has a paired interval too.
    """
    part = (size - below[x]) / (above[x] - below[x])
    a, b = below[y], above[y]
    if y in LOGARITHMIC and a > 0 and b > 0:
        value = math.exp((1 - part) * math.log(a) + part * math.log(b))
        weights = (1 - part) * value / a, part * value / b
    else:
        value, weights = (1 - part) * a + part * b, (1 - part, part)
    found = {key: below.get(key) for key in ("kind", "method", "settings", "text", "window", "stride")}
    found |= {x: size, y: value, "between": (below, above), "label": f"between {below['label']} and {above['label']}"}
    error, their_error = below.get("rise_error"), above.get("rise_error")
    if error is not None and their_error is not None:
        found["rise_error"] = math.hypot(weights[0] * error, weights[1] * their_error)
    units, theirs = below.get("units"), above.get("units")
    if units and theirs and all(units[key] == theirs[key] for key in ("over", "ids", "tokens")):
        rises = zip(units["rise"], theirs["rise"], strict=True)
        found["units"] = units | {"rise": [weights[0] * one + weights[1] * two for one, two in rises]}
    return found


def best(found: Sequence[Curve], size: float, y: str, more: bool = False) -> tuple[str, dict, bool] | None:
    """(method, its point, whether it was measured around the size) of what is best at a size: of all measured around
    it, and of those that were measured only below it and are better there already. None where neither is."""
    there = [(curve.method, point, True) for curve in found if (point := curve.at(size)) is not None]
    below = [(curve.method, point, False) for curve in found if (point := curve.before(size)) is not None]
    pick = max if more else min
    return pick(there + below, key=lambda each: each[1][y], default=None)


def level(a: dict, b: dict, quality: str) -> bool:
    """Whether two points are level by a figure: no difference between them can be measured.

    Where both kept what they lost by document, the paired 95 % interval of their difference
    (`bootstrap.difference`) holds 0; of tasks that of their items (`scores.difference`). Points that were measured
    before units were kept are level within both standard errors of the rise, or within `SAME` nats. Other figures have
    no error: equal numbers alone are level.
    """
    if quality in scores.LOSSES:
        if (found := uncertainty.difference(a, b)) is not None:
            return not found.measurable
        if quality in ("rise", "loss"):
            noise = math.hypot(a.get("rise_error") or 0.0, b.get("rise_error") or 0.0)
            return abs(a[quality] - b[quality]) <= max(noise, SAME)
    elif (found := scores.difference(a, b, quality)) is not None:
        return not found.measurable
    return a[quality] == b[quality]


def method_of(point: dict) -> str:
    """What a point is, without its budget and rule: "tree", "lowrank in int4" (in few bits: in several formats), "qlr,
    aligned", "GPTQ int4", "plain SVD"."""
    settings = point.get("settings") or {}
    if point["kind"] == "network":
        words, forms = point["method"], settings.get("quantize")
        if forms and words != "auto" and "+" not in words:  # a mix has any of them
            words += " in few bits" if "," in forms else f" in {forms}"
        words += f", {settings['prefix']}" if settings.get("prefix") else ""
        return words + (f", embedding {settings['embedding']}" if settings.get("embedding") else "")
    names = {"gptq": "GPTQ", "rtn": "rounded", "svd": "plain SVD", "svd-llm": "SVD-LLM"}
    name = {**names, "magnitude": "magnitude pruning"}.get(point["method"], point["method"])
    return f"{name} int{settings['bits']}" if settings.get("bits") else name


def _names(point: dict) -> list[str]:
    """The curves that a point is on: integers of all widths are one."""
    bits = (point.get("settings") or {}).get("bits")
    if point["kind"] == "network" or not bits:
        return [method_of(point)]
    name = method_of(point).removesuffix(f" int{bits}")
    return [name, "GPTQ"] if point["method"] == "rtn" and bits == ALSO_GPTQ else [name]
