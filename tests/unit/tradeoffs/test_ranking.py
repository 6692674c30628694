"""The table of equal bytes: the nearest point below each size, places, level winners, the sentence."""

import pytest

from karipap_core.tradeoffs.ranking import SIZES, method_of, rank, sentence


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


def test_each_cell_is_the_nearest_point_that_is_not_above_its_size():
    points = [point("tree", size, rise) for size, rise in ((0.95, 0.001), (0.7, 0.01), (0.45, 0.05), (0.21, 0.4))]
    row = rank(points).rows[0]
    assert [at and at["bytes_kept_blocks"] for at in row.points] == [0.7, 0.7, 0.45, 0.21, None]


def test_of_points_at_one_size_the_best_counts():
    points = [point("mpo", 0.5, 0.3), point("mpo", 0.495, 0.1), point("mpo", 0.4, 0.01)]
    assert rank(points).rows[0].points[2]["rise"] == 0.1, "0.4 is another size"


def test_rows_are_ordered_by_places_and_what_is_missing_comes_last():
    points = [point("tree", 0.2, 0.1), point("mpo", 0.2, 0.2), point("peps", 0.5, 0.001)]
    ranked = rank(points)
    assert [row.method for row in ranked.rows] == ["tree", "peps", "mpo"], "sums of places: 3, 4, 8"
    assert [winners and ranked.rows[winners[0]].method for winners in ranked.winners] == [
        "peps",
        "peps",
        "peps",
        "tree",
        "tree",
    ]


def test_what_differs_by_less_than_its_error_is_level():
    ranked = rank(
        [
            point("tree", 0.2, 0.100, error=0.01),
            point("mpo", 0.2, 0.105, error=0.01),
            point("peps", 0.2, 0.2, error=0.01),
        ]
    )
    assert [len(winners) for winners in ranked.winners] == [2] * 5
    assert sentence(ranked).startswith("In the same bytes of the blocks tree and mpo, level, lose least at 90%, 70%")


def test_methods_by_name():
    assert method_of(gptq(4, 0.26, 0.1)) == "GPTQ int4"
    assert method_of(point("rtn", 0.5, 0.1, "baseline", bits=8)) == "rounded int8"
    assert method_of(point("tree", 0.5, 0.1, quantize="int4", embedding="tt")) == "tree in int4, embedding tt"
    assert method_of(point("auto", 0.5, 0.1, quantize="int4, int8")) == "auto"
    assert method_of(point("svd-llm", 0.5, 0.1, "baseline")) == "SVD-LLM"


def test_the_sentence_says_who_wins_whoever_it_is():
    rival = [gptq(4, 0.26, 0.004), gptq(3, 0.2, 0.02)]
    weak = [point("tree", size, 0.5) for size in SIZES]
    assert sentence(rank(weak + rival)) == (
        "In the same bytes of the blocks GPTQ int4 loses least at 90%, 70%, 50% and 30%; GPTQ int3 loses least at 20%. "
        "No tensor network wins at any of these sizes."
    )
    strong = [point("auto", size, 0.0005) for size in SIZES]
    assert sentence(rank(strong + rival)).endswith("20%. A tensor network is best at every size measured.")
    some = [point("auto", 0.9, 0.0001), point("auto", 0.3, 0.3)]
    assert sentence(rank(some + rival)).endswith("At 70%, 50%, 30%, 20% no tensor network wins.")
    assert sentence(rank(rival)).endswith("No tensor network has been measured yet.")
    assert sentence(rank(weak)).endswith("No rival has been measured yet.")
    assert sentence(rank([])) == "Nothing has been measured at these sizes yet."


def test_encoders_are_compared_by_output_error():
    points = [point("tree", 0.5, None) | {"relative_error": 0.2}, point("mpo", 0.5, None) | {"relative_error": 0.1}]
    ranked = rank(points)
    assert ranked.quality == "relative_error" and ranked.rows[ranked.winners[2][0]].method == "mpo"


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_points_without_a_number_are_left_out(bad):
    assert rank([point("tree", 0.5, bad)]).rows == []
