"""The table of equal bytes: the nearest point below each size, places, level winners, the sentence."""

import math
import random

import numpy as np
import pytest

from karipap_core.tradeoffs.equal import SAME, between, curves, level, method_of
from karipap_core.tradeoffs.ranking import SIZE, SIZES, rank, sentence


def point(method, size, rise, kind="network", error=1e-5, **settings):
    return {
        "kind": kind,
        "method": method,
        "label": f"{method} {size}",
        "settings": settings,
        "rise": rise,
        "rise_error": error,
        "bytes_kept_blocks": size,
    }


def gptq(bits, size, rise, **more):
    return point("gptq", size, rise, "baseline", bits=bits, **more)


def test_a_cell_is_read_off_its_methods_curve_and_not_beyond():
    points = [point("tree", size, rise) for size, rise in ((0.95, 0.001), (0.705, 0.01), (0.305, 0.16))]
    assert [at and at["rise"] for at in rank(points, (0.9, 0.7055, 0.505, 0.2)).rows[0].points] == [
        pytest.approx(0.001 * 10 ** (0.05 / 0.245)),
        0.01,  # as good as there
        pytest.approx(0.04),  # half way: the geometric mean
        None,
    ]


def test_of_points_at_one_size_the_best_counts():
    points = [point("mpo", 0.5, 0.3), point("mpo", 0.499, 0.1), point("mpo", 0.4, 0.2)]
    assert rank(points).rows[0].points[2]["rise"] == 0.1


def test_rows_are_ordered_by_places_and_what_is_missing_comes_last():
    points = [point("tree", 0.2, 0.1), point("tree", 0.5, 0.01), point("mpo", 0.2, 0.2), point("peps", 0.5, 0.005)]
    ranked = rank(points, (0.5, 0.2))
    assert [row.method for row in ranked.rows] == ["tree", "peps", "mpo"], "sums of places: 1, 2, 3"
    assert [ranked.rows[winners[0]].method for winners in ranked.winners] == ["peps", "tree"]


def test_what_differs_by_less_than_its_error_is_level():
    ranked = rank(
        [
            point("tree", 0.2, 0.100, error=0.01),
            point("mpo", 0.2, 0.105, error=0.01),
            point("peps", 0.2, 0.2, error=0.01),
        ]
    )
    assert [len(winners) for winners in ranked.winners] == [0, 0, 0, 0, 2]
    assert sentence(ranked).startswith("In the same bytes of the blocks mpo and tree, level, lose least at 20%") or (
        sentence(ranked).startswith("In the same bytes of the blocks tree and mpo, level, lose least at 20%")
    )


def test_methods_by_name():
    assert method_of(gptq(4, 0.26, 0.1)) == "GPTQ int4"
    assert method_of(point("rtn", 0.5, 0.1, "baseline", bits=8)) == "rounded int8"
    assert method_of(point("tree", 0.5, 0.1, quantize="int4", embedding="tt")) == "tree in int4, embedding tt"
    assert method_of(point("auto", 0.5, 0.1, quantize="int4, int8")) == "auto"
    assert method_of(point("svd-llm", 0.5, 0.1, "baseline")) == "SVD-LLM"


def test_the_sentence_says_who_wins_whoever_it_is():
    rival = [gptq(4, 0.31, 0.004), gptq(3, 0.2, 0.02)]
    weak = [point("tree", size, 0.5 - size / 10) for size in SIZES]
    assert sentence(rank(weak + rival)) == (
        "In the same bytes of the blocks GPTQ loses least at 30% and 20%; at 90%, 70% and 50% GPTQ, measured no "
        "further than 31%, loses less there than all others. No tensor network wins where both sides were measured."
    )
    strong = [point("auto", size, 0.0015 - size / 1000) for size in SIZES]
    assert sentence(rank(strong + rival)).endswith(
        "20%. A tensor network is best at every size where both sides were measured."
    )
    some = [point("auto", 0.3, 0.0001), point("auto", 0.2, 0.3)]
    assert sentence(rank(some + rival)).endswith("At 20% no tensor network wins.")
    assert sentence(rank(rival)).endswith("No tensor network has been measured yet.")
    assert sentence(rank(weak)).endswith("No rival has been measured yet.")
    apart = [point("auto", 0.9, 0.0001), gptq(3, 0.2, 0.02)]
    assert sentence(rank(apart)).endswith("No tensor network and no rival were measured at the same of these sizes.")
    assert sentence(rank([])) == "Nothing has been measured at these sizes yet."


def test_three_bits_are_not_held_against_a_model_of_two_and_a_half():
    """What was said once: "GPTQ int3 loses least at 20 %", 0.197 of the bytes against 0.160 of a mixed plan."""
    points = [gptq(3, 0.197, 0.0144), gptq(2, 0.16, 0.07)]
    points += [point("lowrank+qlr", 0.16, 0.0247), point("lowrank+qlr", 0.206, 0.0076)]
    ranked = rank(points)
    assert [ranked.rows[index].method for index in ranked.winners[-1]] == ["lowrank+qlr"]
    assert ranked.rows[ranked.winners[-1][0]].points[-1]["rise"] == pytest.approx(0.0088, abs=2e-4)


def test_a_plan_of_a_quarter_of_the_bytes_is_not_held_against_one_of_a_half():
    """What was said once: "no tensor network wins at 90 %", 0.281 of the bytes against 0.51 of rounded int8."""
    points = [point("rtn", 0.51, 0.0001, "baseline", bits=8), gptq(4, 0.27, 0.0027)]
    points += [point("lowrank+qlr", 0.281, 0.0016), point("lowrank+qlr", 0.16, 0.0247)]
    ranked = rank(points, (0.9, 0.281))
    assert ranked.winners[0] == () and ranked.ahead[0] is None
    assert ranked.rows[ranked.winners[1][0]].method == "lowrank+qlr"
    assert "at 90%" not in sentence(ranked, (0.9, 0.281))


def test_encoders_are_compared_by_output_error():
    points = [point("tree", 0.5, None) | {"relative_error": 0.2}, point("mpo", 0.5, None) | {"relative_error": 0.1}]
    ranked = rank(points)
    assert ranked.quality == "relative_error" and ranked.rows[ranked.winners[2][0]].method == "mpo"


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_points_without_a_number_are_left_out(bad):
    assert rank([point("tree", 0.5, bad)]).rows == []


def exponential(name, kind, start, fall, sizes):
    """Points of a method that loses start · exp(−fall · size): what lies between them is known."""
    return [point(name, size, start * math.exp(-fall * size), kind) for size in sizes]


@pytest.mark.parametrize("seed", range(20))
def test_who_wins_is_who_wins_on_curves_that_are_known(seed):
    chance = random.Random(seed)
    known, points = {}, []
    for number in range(chance.randint(2, 5)):
        name, kind = f"m{number}", chance.choice(["network", "baseline"])
        start, fall = chance.uniform(0.3, 3), chance.uniform(2, 9)
        grid = sorted(chance.uniform(0.1, 1) for _ in range(chance.randint(1, 6)))
        known[name] = start, fall, grid[0], grid[-1]
        points += exponential(name, kind, start, fall, grid)
    chance.shuffle(points)
    sizes = tuple(round(0.15 + 0.05 * k, 2) for k in range(16))
    ranked = rank(points, sizes)
    for column, size in enumerate(sizes):
        lost = {n: s * math.exp(-f * size) for n, (s, f, low, high) in known.items() if low <= size <= high}
        smaller = {n: s * math.exp(-f * high) for n, (s, f, _, high) in known.items() if high < size}
        # Near to a measured point, and where two are nearly level, the rule has a breadth that this does not know.
        ends = any(abs(size - at["bytes_kept_blocks"]) <= 0.006 for at in points)
        values = sorted([*lost.values(), *smaller.values()])
        if ends or any(b - a < 3 * SAME for a, b in zip(values, values[1:], strict=False)):
            continue
        said = [ranked.rows[index].method for index in ranked.winners[column]]
        first = min(lost | smaller, key=(lost | smaller).get, default=None)
        if not lost:
            assert not said and ranked.ahead[column] is None
        elif first in smaller:
            assert not said and ranked.ahead[column][0] == first
        else:
            assert said == [first] and ranked.ahead[column] is None
            assert ranked.rows[ranked.winners[column][0]].points[column]["rise"] == pytest.approx(lost[first])


def test_a_point_in_between_has_the_interval_of_both():
    """Document by document: of two curves that are noisy together the difference is sure, each alone is not."""
    generator = np.random.default_rng(0)
    noise, tokens = generator.normal(0, 3, 40), [100] * 40

    def measured(name, size, rise):
        units = {"over": "documents", "ids": list(range(40)), "tokens": tokens}
        sums = 100 * rise + noise - noise.mean()
        same = {"text": {"sha256": "s"}, "window": 8, "stride": 4, "units": units | {"rise": sums.tolist()}}
        return point(name, size, rise, error=0.005) | same

    a = [measured("tree", size, rise) for size, rise in ((0.1, 0.104), (0.3, 0.096))]
    middle = between(*a, 0.2, SIZE, "rise")
    assert middle["rise"] == pytest.approx(math.sqrt(0.104 * 0.096))
    assert sum(middle["units"]["rise"]) / sum(tokens) == pytest.approx(middle["rise"])
    assert not level(middle, measured("mpo", 0.2, 0.11), "rise"), "the documents' noise is common to both"
    assert level({**middle, "units": None}, measured("mpo", 0.2, 0.103), "rise")
    assert middle["rise_error"] == pytest.approx(0.005 * math.hypot(0.5, 0.5), rel=0.1)


def test_integers_of_all_widths_are_one_curve_and_eight_bits_are_on_both():
    points = [gptq(4, 0.27, 0.01), gptq(3, 0.2, 0.03), point("rtn", 0.5, 0.001, "baseline", bits=8)]
    found = {curve.method: [at["bytes_kept_blocks"] for at in curve.points] for curve in curves(points)}
    assert found == {"GPTQ": [0.2, 0.27, 0.5], "rounded": [0.5]}


def test_a_rise_below_nothing_is_interpolated_as_it_is():
    a, b = point("tree", 0.2, 0.01), point("tree", 0.4, -0.002)
    assert between(a, b, 0.3, SIZE, "rise")["rise"] == pytest.approx(0.004)
