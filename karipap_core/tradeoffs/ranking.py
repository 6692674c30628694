"""Every network and every rival in the same bytes: a table of rises in loss, ranked, and the sentence it supports.

Sizes are bytes kept of the blocks, 16 bits for every number that is not quantized (baselines.py). What a method loses
at a size is read off its own curve (equal.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from karipap_core.statistics.pareto import known
from karipap_core.tradeoffs.equal import best, curves, level

SIZE = "bytes_kept_blocks"
SIZES = (0.9, 0.7, 0.5, 0.3, 0.2)


@dataclass(frozen=True)
class Row:
    """A method and, for each of `SIZES`, its point there (`equal.Curve.at`; None where it was not measured around)."""

    method: str
    network: bool
    points: tuple[dict | None, ...]


@dataclass(frozen=True)
class Ranking:
    """rows: best first.  winners[size]: the row that loses least there, and those level with it (`level`); empty where
    nothing was measured, or where a method that was measured only below that size is better there already, which is
    ahead[size] then: (method, size).  quality: the key of what is compared."""

    rows: list[Row]
    winners: tuple[tuple[int, ...], ...]
    ahead: tuple[tuple[str, float] | None, ...]
    quality: str


def rank(points: Sequence[dict], sizes: Sequence[float] = SIZES) -> Ranking:
    """The table of equal bytes. Points must be of one model on one text."""
    quality = "rise" if any(known(point, "rise") for point in points) else "relative_error"
    found = curves(points, SIZE, quality)
    rows = [Row(curve.method, curve.network, tuple(curve.at(size) for size in sizes)) for curve in found]
    rows = [row for row in rows if any(row.points)]
    places: dict[str, list[int]] = {row.method: [] for row in rows}
    for column in range(len(sizes)):
        there = _there(rows, column)
        best_first = sorted(there, key=lambda index: there[index][quality])
        for index, row in enumerate(rows):  # what was not measured there comes behind all that was
            places[row.method].append(best_first.index(index) if index in there else len(there))
    rows.sort(key=lambda row: (sum(places[row.method]), row.method))
    ahead = tuple(_ahead(found, rows, column, size, quality) for column, size in enumerate(sizes))
    winners = (() if ahead[column] else _winners(rows, column, quality) for column in range(len(sizes)))
    return Ranking(rows, tuple(winners), ahead, quality)


def _ahead(found, rows: list[Row], column: int, size: float, quality: str) -> tuple[str, float] | None:
    """The method and the size of a smaller model that loses less than all that was measured around a size."""
    there, first = _there(rows, column), best(found, size, quality)
    if not there or first is None or first[2]:
        return None
    method, point, _ = first
    return None if any(level(point, other, quality) for other in there.values()) else (method, point[SIZE])


def _winners(rows: list[Row], column: int, quality: str) -> tuple[int, ...]:
    """The best first, then those level with it."""
    there = _there(rows, column)
    if not there:
        return ()
    least = min(there, key=lambda index: there[index][quality])
    return least, *(index for index in there if index != least and level(there[least], there[index], quality))


def _there(rows: list[Row], column: int) -> dict[int, dict]:
    """The points of a column by the numbers of their rows, without those that have none there."""
    return {index: point for index, row in enumerate(rows) if (point := row.points[column]) is not None}


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
    ahead: dict[tuple[str, float], list[int]] = {}
    for column, smaller in enumerate(ranking.ahead):
        if smaller:
            ahead.setdefault(smaller, []).append(column)
    if not wins and not ahead:
        return "Nothing has been measured at these sizes yet."
    parts = []
    for said, columns in wins.items():
        verb = "lose" if "level," in said else "loses"
        parts.append(f"{said} {verb} least at {_listed(columns, sizes)}")
    for (method, at), columns in ahead.items():
        where = _listed(columns, sizes)
        parts.append(f"at {where} {method}, measured no further than {at:.0%}, loses less there than all others")
    return f"In the same bytes of the blocks {'; '.join(parts)}. {_about_networks(ranking, sizes)}".strip()


def _about_networks(ranking: Ranking, sizes: Sequence[float]) -> str:
    """Whether a tensor network wins, of the sizes where both sides were measured; "" where some do and none is lost."""
    if not any(row.network for row in ranking.rows):
        return "No tensor network has been measured yet."
    if not any(not row.network for row in ranking.rows):
        return "No rival has been measured yet."
    told = [(size, winners) for size, winners in zip(sizes, ranking.winners, strict=True) if winners]
    contested = [(size, winners) for size, winners in told if _both_sides(ranking, sizes.index(size))]
    if not contested:
        return "No tensor network and no rival were measured at the same of these sizes."
    lost = [size for size, winners in contested if not any(ranking.rows[index].network for index in winners)]
    if not lost and all(ranking.rows[winners[0]].network for _, winners in contested):
        return "A tensor network is best at every size where both sides were measured."
    if len(lost) == len(contested):
        return "No tensor network wins where both sides were measured."
    return f"At {', '.join(f'{size:.0%}' for size in lost)} no tensor network wins." if lost else ""


def _both_sides(ranking: Ranking, column: int) -> bool:
    """Whether a network and a rival were measured around a size."""
    return len({row.network for row in ranking.rows if row.points[column] is not None}) == 2


def _listed(columns: Sequence[int], sizes: Sequence[float]) -> str:
    at = [f"{sizes[column]:.0%}" for column in columns]
    return at[0] if len(at) == 1 else f"{', '.join(at[:-1])} and {at[-1]}"
