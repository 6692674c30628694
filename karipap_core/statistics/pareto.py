"""The Pareto front of measured points; needs nothing but the numbers."""

import math
from collections.abc import Iterable, Sequence


def known(point: dict, key: str) -> bool:
    """Whether a point has a finite number under `key`."""
    value = point.get(key)
    return isinstance(value, int | float) and math.isfinite(value)


def pareto(points: Iterable[dict], x="bytes_kept", y="loss", maximize: Sequence[str] = ()) -> list[dict]:
    """The points that no other beats: none is as good in both x and y and better in one. Sorted from the best x on.

    Less is better, but for the keys in `maximize`. Points without both numbers are passed over; equal points stay.
    """
    signs = {key: -1.0 if key in maximize else 1.0 for key in (x, y)}
    ranked = sorted(
        ((signs[x] * p[x], signs[y] * p[y], i, p) for i, p in enumerate(points) if known(p, x) and known(p, y)),
        key=lambda item: item[:3],
    )
    front, best, best_x = [], math.inf, None
    for at_x, at_y, _, point in ranked:
        if at_y < best or (at_y == best and at_x == best_x):
            front.append(point)
            best, best_x = at_y, at_x
    return front
