"""Scores of tasks: which compare, their intervals and differences, against plain NumPy."""

import numpy as np
import pytest

from karipap_core.evaluation import scores
from karipap_core.statistics import bootstrap as uncertainty
from pages.parts import winner
from tests.helpers.made_up import task


def point(name, result, dense=None, kind="network", bytes_kept=0.5):
    return {
        "id": name,
        "label": name,
        "kind": kind,
        "method": "lowrank" if kind == "network" else "gptq",
        "tasks": {"t": result},
        "bytes_kept": bytes_kept,
        "dense": {"tasks": {"t": dense}} if dense else {},
    }


def test_axes_are_the_scores_and_main_metrics_come_first():
    other = {
        "word_perplexity": 9.0,
        "word_perplexity_stderr": 1.0,
        "metric": "word_perplexity",
        "higher_is_better": False,
        "items": 3,
        "alias": "w",
    }
    strict = {"exact_match,strict-match": 0.1, "exact_match_stderr,strict-match": 0.02}
    strict["metric"] = "exact_match,strict-match"
    found = scores.keys([point("a", task(0.5)), {"tasks": {"w": other, "g": strict}}, {"tasks": None}, {}])
    assert list(found.items()) == [
        ("t: acc", True),
        ("g: exact_match,strict-match", True),
        ("w: word_perplexity", False),
        ("t: acc_norm", True),
    ]
    assert scores.error_of(strict, "exact_match,strict-match") == 0.02
    assert scores.error_of({"acc_stderr": "N/A"}, "acc") is None


def test_only_scores_of_the_same_items_compare():
    same, shots = [point(str(i), task(0.5)) for i in range(2)], point("s", task(0.9, shots=5))
    points = [*same, shots, point("l", task(0.9, limit=10)), point("h", task(0.9, task_hash="x")), {"id": "none"}]
    assert scores.comparable(points, "t: acc") == same
    flat = scores.with_score(points, "t: acc")
    assert [each.get("t: acc") for each in flat] == [0.5, 0.5, None, None, None, None] and "t: acc" not in points[0]
    assert scores.comparable([same[0], shots], "t: acc") == [shots], "of equally many the latest"
    assert scores.difference(same[0], shots, "t: acc") is None


def test_intervals_are_paired_with_the_dense_model_where_items_were_kept():
    dense, ours = task(0.62, seed=1), task(0.5, seed=2)
    between = uncertainty.paired_bootstrap(np.subtract(ours["correct"], dense["correct"]))
    ours["difference"] = {"mean": between.mean, "low": between.low, "high": between.high, "items": 200}
    found = point("a", ours, dense)
    assert scores.interval(found, "t: acc") == pytest.approx((0.62 + between.low, 0.62 + between.high))
    assert scores.to_dense(found, "t: acc") == between and scores.chance([found], "t: acc") == 0.25
    alone = scores.interval(found, "t: acc_norm")
    assert alone == pytest.approx((0.51 - 1.959964 * ours["acc_stderr"], 0.51 + 1.959964 * ours["acc_stderr"]))
    assert scores.interval(point("b", {"acc": 0.5}), "t: acc") is None


def test_a_difference_of_two_is_that_of_their_items():
    one, two = point("a", task(0.6, seed=1)), point("b", task(0.4, seed=2))
    expected = uncertainty.paired_bootstrap(np.subtract(two["tasks"]["t"]["correct"], one["tasks"]["t"]["correct"]))
    assert scores.difference(one, two, "t: acc") == expected and expected.mean == pytest.approx(-0.2)
    for each in (one, two):
        del each["tasks"]["t"]["correct"]
    apart = scores.difference(one, two, "t: acc")
    reach = 1.959964 * np.hypot(one["tasks"]["t"]["acc_stderr"], two["tasks"]["t"]["acc_stderr"])
    assert (apart.low, apart.high) == pytest.approx((-0.2 - reach, -0.2 + reach))


def test_the_sentence_goes_by_the_items():
    """Two items of 200 right or wrong are no difference that can be measured; sixty are."""
    base = task(0.6, seed=3)
    near = base | {"correct": list(base["correct"]), "acc": base["acc"] + 0.005}
    near["correct"][base["correct"].index(0)] = 1
    pair = [point("net", near), point("int4", base, kind="baseline")]
    assert "no difference between the two can be measured" in winner.verdict(pair, y="t: acc")
    pair[0] = point("net", task(0.9, seed=3))
    assert winner.verdict(pair, y="t: acc").startswith("By t: acc, a network is better at every size")
