"""The front against its definition, by brute force."""

import math

from hypothesis import given
from hypothesis import strategies as st

from karipap_core.statistics.pareto import pareto

numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=True, allow_infinity=True), st.none())


def dominates(p, q, signs) -> bool:
    pairs = [(sign * a, sign * b) for sign, a, b in zip(signs, p, q, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


@given(st.lists(st.tuples(numbers, numbers), max_size=12), st.booleans())
def test_the_front_is_what_nothing_dominates(values, more):
    points = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(values)]
    signs = (1, -1) if more else (1, 1)
    finite = [p for p in points if all(isinstance(p[k], float) and math.isfinite(p[k]) for k in "xy")]
    wanted = {p["id"] for p in finite if not any(dominates((q["x"], q["y"]), (p["x"], p["y"]), signs) for q in finite)}
    front = pareto(points, "x", "y", maximize=("y",) if more else ())
    assert {p["id"] for p in front} == wanted and len(front) == len(wanted)
    assert [p["x"] for p in front] == sorted(p["x"] for p in front)
