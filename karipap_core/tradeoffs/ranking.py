"""Every network and every rival in the same bytes: a table of rises in loss, ranked, and the sentence it supports.

A point is here the document of a run.json (see `point.Point`), as `read_runs` gives it. Sizes are bytes kept of the
blocks, 16 bits for every number that is not quantized (baselines.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from karipap_core.evaluation import scores
from karipap_core.statistics import bootstrap as uncertainty

SIZES = (0.9, 0.7, 0.5, 0.3, 0.2)
SLACK = 0.005  # a plan may end that much above its budget, in rounding
BESIDE = 0.02  # points of one method this close in size are at the same size: the best of them counts
SAME = 0.001  # nats: of points without units, differences below are noise, whatever their errors say


@dataclass(frozen=True)
class Row:
    """A method and, for each of `SIZES`, its measured point that is nearest to the size and not above it (None where
    there is none)."""

    method: str
    network: bool
    points: tuple[dict | None, ...]


@dataclass(frozen=True)
class Ranking:
    """rows: best first.  winners[size]: the row that loses least there, and those level with it (`level`); empty where
    nothing was measured.  quality: the key of what is compared."""

    rows: list[Row]
    winners: tuple[tuple[int, ...], ...]
    quality: str


def method_of(point: dict) -> str:
    """What a point is, without its budget and rule: "tree", "lowrank in int4" (in few bits: in several formats),
    "GPTQ int4", "plain SVD"."""
    settings = point.get("settings") or {}
    if point["kind"] == "network":
        words, forms = point["method"], settings.get("quantize")
        if forms and words != "auto" and "+" not in words:  # a mix has any of them
            words += " in few bits" if "," in forms else f" in {forms}"
        return words + (f", embedding {settings['embedding']}" if settings.get("embedding") else "")
    if settings.get("bits"):
        name = {"gptq": "GPTQ", "rtn": "rounded"}.get(point["method"], point["method"])
        return f"{name} int{settings['bits']}"
    return {"svd": "plain SVD", "svd-llm": "SVD-LLM", "magnitude": "magnitude pruning"}.get(
        point["method"], point["method"]
    )


def rank(points: Sequence[dict], sizes: Sequence[float] = SIZES) -> Ranking:
    """The table of equal bytes. Points must be of one model on one text."""
    quality = "rise" if any(_known(point, "rise") for point in points) else "relative_error"
    of: dict[tuple[str, bool], list[dict]] = {}
    for point in points:
        if _known(point, quality) and _known(point, "bytes_kept_blocks"):
            of.setdefault((method_of(point), point["kind"] == "network"), []).append(point)
    rows = [
        Row(method, network, tuple(_at(mine, size, quality) for size in sizes))
        for (method, network), mine in of.items()
    ]
    rows = [row for row in rows if any(row.points)]
    places: dict[str, list[int]] = {row.method: [] for row in rows}
    for column in range(len(sizes)):
        there = _there(rows, column)
        best_first = sorted(there, key=lambda index: there[index][quality])
        for index, row in enumerate(rows):  # what cannot be so small comes behind all that can
            places[row.method].append(best_first.index(index) if index in there else len(there))
    rows.sort(key=lambda row: (sum(places[row.method]), row.method))
    return Ranking(rows, tuple(_winners(rows, column, quality) for column in range(len(sizes))), quality)


def _known(point: dict, key: str) -> bool:
    return isinstance(point.get(key), int | float) and math.isfinite(point[key])


def _at(points: list[dict], size: float, quality: str) -> dict | None:
    below = [point for point in points if point["bytes_kept_blocks"] <= size + SLACK]
    if not below:
        return None
    nearest = max(point["bytes_kept_blocks"] for point in below)
    return min((p for p in below if p["bytes_kept_blocks"] >= nearest - BESIDE), key=lambda point: point[quality])


def _winners(rows: list[Row], column: int, quality: str) -> tuple[int, ...]:
    """The best first, then those level with it."""
    there = _there(rows, column)
    if not there:
        return ()
    best = min(there, key=lambda index: there[index][quality])
    return best, *(index for index in there if index != best and level(there[best], there[index], quality))


def _there(rows: list[Row], column: int) -> dict[int, dict]:
    """The points of a column by the numbers of their rows, without those that have none there."""
    return {index: point for index, row in enumerate(rows) if (point := row.points[column]) is not None}


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


def sentence(ranking: Ranking, sizes: Sequence[float] = SIZES) -> str:
    """Who loses least at which size, as the numbers have it, and whether that is a tensor network."""
    wins: dict[str, list[int]] = {}
    for column, winners in enumerate(ranking.winners):
        if winners:
            # The best number names the cell, but what is level within the error is said as well.
            names = [ranking.rows[index].method for index in winners[:3]]
            more = f" and {len(winners) - 3} more" if len(winners) > 3 else ""
            said = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}{more}, level,"
            wins.setdefault(said, []).append(column)
    if not wins:
        return "Nothing has been measured at these sizes yet."
    parts = []
    for said, columns in wins.items():
        at = [f"{sizes[column]:.0%}" for column in columns]
        where = at[0] if len(at) == 1 else f"{', '.join(at[:-1])} and {at[-1]}"
        verb = "lose" if "level," in said else "loses"
        parts.append(f"{said} {verb} least at {where}")
    words = f"In the same bytes of the blocks {'; '.join(parts)}."
    clear = [ranking.rows[winners[0]].network for winners in ranking.winners if winners]
    shared = [any(ranking.rows[i].network for i in winners) for winners in ranking.winners if winners]
    rivals = any(not row.network for row in ranking.rows)
    if not any(row.network for row in ranking.rows):
        return f"{words} No tensor network has been measured yet."
    if not rivals:
        return f"{words} No rival has been measured yet."
    if not any(shared):
        return f"{words} No tensor network wins at any of these sizes."
    if all(clear):
        return f"{words} A tensor network is best at every size measured."
    lost = [
        f"{size:.0%}"
        for size, winners in zip(sizes, ranking.winners, strict=True)
        if winners and not any(ranking.rows[i].network for i in winners)
    ]
    return f"{words} At {', '.join(lost)} no tensor network wins." if lost else words
