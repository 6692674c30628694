"""The trade-off's figures and its sentence, against points whose winner is known."""

import numpy as np
import pytest

from karipap_core.figures import axes
from karipap_core.figures import runs as figures_runs
from pages.parts import winner
from tests.helpers.made_up import task
from tests.helpers.points import point


@pytest.fixture
def points() -> list[dict]:
    return [
        point("net-3", "network", "lowrank", 0.3, 0.5, predicted={"rise": 0.45}),
        point("net-6", "network", "lowrank", 0.6, 0.1, predicted={"rise": 0.12}),
        point("net-9", "network", "lowrank", 0.9, -0.0004, predicted={"rise": 0.001}),
        point("mpo-6", "network", "mpo", 0.6, 0.3),
        point("int4", "baseline", "gptq", 0.4, 0.2),
        point("int8", "baseline", "rtn", 0.8, 0.05),
    ]


def lines(figure) -> dict:
    return {trace.name: trace for trace in figure.data}


def test_every_point_is_drawn_once_in_its_series(points):
    figure = figures_runs.tradeoff(points)
    drawn = [name for trace in figure.data for name in (trace.customdata if trace.customdata is not None else [])]
    assert sorted(drawn) == sorted(p["id"] for p in points)
    assert set(lines(figure)) >= {"lowrank, calibrated", "mpo, calibrated", "integers, GPTQ", "integers, rounded"}


def test_cores_in_few_bits_are_a_line_of_their_own_and_a_mix_is_one(points):
    few = {"rule": "calibrated", "quantize": "int4"}
    more = [point("q-3", "network", "lowrank", 0.3, 0.01), point("q-6", "network", "lowrank", 0.6, 0.002)]
    mixed = [point(f"mix-{k}", "network", "lowrank+qlr", 0.2 * k, 0.1 / k) for k in (1, 2)]
    mixed[0]["settings"], mixed[1]["settings"] = few | {"quantize": "int3, int4"}, few
    drawn = lines(figures_runs.tradeoff([*points, *(one | {"settings": few} for one in more), *mixed]))
    assert sorted(drawn["lowrank in int4, calibrated"].customdata) == ["q-3", "q-6"]
    assert sorted(drawn["lowrank+qlr, calibrated"].customdata) == ["mix-1", "mix-2"]
    assert sorted(drawn["lowrank, calibrated"].customdata) == ["net-3", "net-6", "net-9"]


def test_the_front_holds_exactly_the_points_that_nothing_beats(points):
    front = lines(figures_runs.tradeoff(points, log=False))["Pareto front"]
    assert front.x.tolist() == pytest.approx([0.3, 0.4, 0.6, 0.8, 0.9])
    assert front.y.tolist() == pytest.approx([0.5, 0.2, 0.1, 0.05, -0.0004])
    agreement = lines(figures_runs.tradeoff(points, y="top1_agreement"))["Pareto front"]  # here more is better
    assert agreement.y.tolist() == sorted(agreement.y.tolist())


def test_a_rise_below_the_floor_is_drawn_on_it_and_told_truly(points):
    trace = lines(figures_runs.tradeoff(points))["lowrank, calibrated"]
    assert trace.y[-1] == pytest.approx(1e-4) and "-0.0004" in trace.hovertext[-1]
    assert lines(figures_runs.tradeoff(points, log=False))["lowrank, calibrated"].y[-1] < 0


def test_where_nothing_rose_the_axis_is_linear_and_a_logarithmic_one_spans_decades():
    fell = [point("a", "network", "lowrank", 0.8, -0.6)]
    figure = figures_runs.tradeoff(fell)
    assert figure.layout.yaxis.type == "linear" and figure.data[-1].y[0] == pytest.approx(-0.6)
    forced = figures_runs.tradeoff(fell, log=True).layout.yaxis
    assert forced.type == "log" and forced.range[1] - forced.range[0] > 3


def test_points_without_the_number_are_left_out(points):
    points.append(point("gone", "baseline", "svd", 0.5, float("nan")))
    points.append({**point("odd", "network", "lowrank", 0.5, 1.0), "bytes_kept": None})
    drawn = str([trace.customdata for trace in figures_runs.tradeoff(points).data])
    assert "gone" not in drawn and "odd" not in drawn


def test_the_dense_model_is_marked_where_it_has_the_number(points):
    figure = figures_runs.tradeoff(points, y="loss")
    assert any(shape.y0 == 2.0 for shape in figure.layout.shapes)


def test_the_dense_model_is_a_point_at_all_of_its_bytes(points):
    assert (*lines(figures_runs.tradeoff(points, log=False))["Dense model"].x, 0.0) == (1.0, 0.0)
    assert lines(figures_runs.tradeoff(points, log=False))["Dense model"].y[0] == 0.0
    assert lines(figures_runs.tradeoff(points))["Dense model"].y[0] == pytest.approx(1e-4), "0 is drawn on the floor"
    assert lines(figures_runs.tradeoff(points, y="loss"))["Dense model"].y[0] == 2.0
    assert lines(figures_runs.tradeoff(points, y="top1_agreement"))["Dense model"].y[0] == 1.0
    for one in points:
        one.pop("dense")
    assert "Dense model" not in lines(figures_runs.tradeoff(points, y="loss")), "nobody knows where"


def test_ones_own_runs_are_a_series_and_the_one_in_view_is_ringed_and_named(points):
    points[1]["label"], points[1]["created"] = "mine <b>", 9
    figure = figures_runs.tradeoff(points, selected="net-6", own={"net-6", "mpo-6"})
    mine = lines(figure)[figures_runs.YOURS]
    assert sorted(mine.customdata) == ["mpo-6", "net-6"] and mine.marker.symbol == "star"
    assert list(lines(figure)["lowrank, calibrated"].customdata) == ["net-3", "net-9"]
    ring = figure.data[-1]
    assert (ring.x[0], ring.y[0]) == pytest.approx((0.6, 0.1)) and "open" in ring.marker.symbol
    note = figure.layout.annotations[0]
    assert note.text == "<b>mine &lt;b&gt;</b>" and (note.x, note.y) == pytest.approx((0.6, -1.0))
    assert figures_runs.YOURS not in lines(figures_runs.tradeoff(points))


def test_names_do_not_cover_each_other_and_the_newest_have_theirs():
    mine = [point(f"m{k}", "network", "lowrank", 0.5 + k / 1000, 0.1, created=k) for k in range(5)]
    mine += [point("far", "network", "lowrank", 0.99, 0.001, created=-1)]
    figure = figures_runs.tradeoff(mine, own={each["id"] for each in mine})
    assert [note.text for note in figure.layout.annotations if note.showarrow] == ["m4", "far"]


def test_the_legend_hides_groups_and_stands_below_the_chart(points):
    points.append(point("int2", "baseline", "gptq", 0.2, 1.5))
    figure = figures_runs.tradeoff(points)
    groups = {trace.name: trace.legendgroup for trace in figure.data}
    assert groups["integers, GPTQ"] == groups["integers, rounded"] != groups["lowrank, calibrated"]
    legend = figure.layout.legend
    assert (legend.orientation, legend.yref, legend.y, legend.groupclick) == ("h", "container", 0, "togglegroup")


def test_nothing_measured_is_still_a_figure():
    assert figures_runs.tradeoff([]).to_json()


# ---- intervals and tasks ----------------------------------------------------------------------------------------


def with_interval(found: dict, low: float, high: float) -> dict:
    return found | {"rise_low": low, "rise_high": high, "documents": 12}


def test_bars_are_the_paired_interval_and_older_points_have_none(points):
    points[0] = with_interval(points[0], 0.4, 0.7)
    trace = lines(figures_runs.tradeoff(points))["lowrank, calibrated"]
    assert trace.error_y.array.tolist() == pytest.approx([0.2, np.nan, np.nan], nan_ok=True)
    assert trace.error_y.arrayminus.tolist() == pytest.approx([0.1, np.nan, np.nan], nan_ok=True)
    assert lines(figures_runs.tradeoff(points))["mpo, calibrated"].error_y.array is None
    assert "0.4000 to +0.7000" in trace.hovertext[0] and "± 0.001" in trace.hovertext[1]


def test_an_interval_that_holds_0_stops_at_the_floor_and_is_said(points):
    points[2] = with_interval(points[2], -0.002, 0.001)
    trace = lines(figures_runs.tradeoff(points))["lowrank, calibrated"]
    assert trace.y[-1] == pytest.approx(1e-4) and trace.error_y.arrayminus[-1] == 0
    assert trace.error_y.array[-1] == pytest.approx(0.001 - 1e-4)
    assert "no measurable difference" in trace.hovertext[-1]
    assert axes.measurable(points[2], "perplexity") is False and axes.measurable(points[2], "kl") is None


def test_what_follows_from_the_loss_has_the_interval_of_the_rise():
    found = with_interval(point("a", "network", "lowrank", 0.5, 0.1), 0.05, 0.2)
    found["dense"] = {"loss": 2.0, "perplexity": float(np.exp(2.0)), "bits_per_byte": 0.9}
    assert axes.interval(found, "loss") == pytest.approx((2.05, 2.2))
    assert axes.interval(found, "perplexity") == pytest.approx((np.exp(2.05), np.exp(2.2)))
    assert axes.interval(found, "bits_per_byte") == pytest.approx((0.9 * 2.05 / 2, 0.9 * 2.2 / 2))
    assert axes.interval(found, "kl") is None


def test_a_task_is_an_axis_with_chance_the_dense_level_bars_and_a_front(points):
    for index, found in enumerate(points):
        found["tasks"] = {"t": task(0.6 - found["rise"] / 2, seed=index)}
        found["dense"] = found["dense"] | {"tasks": {"t": task(0.62, seed=9)}}
    points[1]["tasks"]["t"]["task_hash"] = "other"
    figure = figures_runs.tradeoff(points, y="t: acc")
    drawn = [name for trace in figure.data for name in (trace.customdata if trace.customdata is not None else [])]
    assert len(drawn) == 5 and "net-6" not in drawn, "scored on other items"
    said = {note.text: note.y for note in figure.layout.annotations}
    assert said["chance 25.0%"] == 0.25 and said["dense 62.0%"] == pytest.approx(0.62)
    front = lines(figure)["Pareto front"]
    assert front.y.tolist() == sorted(front.y.tolist()), "more is better"
    assert np.isfinite(lines(figure)["lowrank, calibrated"].error_y.array).all()


def test_what_each_weight_lost_is_at_its_place():
    weights = [
        {"name": f"{layer}.{role}", "layer": layer, "role": role, "shape": (4, 4)} for layer in (0, 1) for role in "qk"
    ]
    rows = [{"name": "0.q", "functional_error": 0.01}, {"name": "1.k", "functional_error": 0.1}]
    heat = figures_runs.lost(weights, rows).data[0]
    assert heat.z[0][0] == pytest.approx(-2) and heat.z[1][1] == pytest.approx(-1)
    assert np.isnan([heat.z[0][1], heat.z[1][0]]).all()


# ---- the sentence -----------------------------------------------------------------------------------------------


def test_what_holds_at_most_sizes_is_said_first(points):
    said = winner.verdict(points)
    assert said.startswith(
        "By rise in loss, a baseline is better at 1 of 2 sizes (int4: 0.2000; between net-3 and net-6"
    )
    assert "A network is better at 80.0% bytes kept (between net-6 and net-9: 0.0331; int8: 0.0500)." in said
    assert "Losing at most 0.01 nats, the smallest network takes 90.0% (net-9), the smallest baseline no size" in said
    assert said.endswith("Below 40.0% no baseline was measured.")


def test_it_says_when_a_baseline_wins_everywhere(points):
    points.append(point("int2", "baseline", "gptq", 0.2, -0.5))
    said = winner.verdict(points)
    assert "a baseline is better at every size where both were measured (bytes kept 30.0% to 90.0%)" in said
    assert "network is better" not in said and "the smallest baseline 20.0% (int2)" in said


def test_differences_within_the_error_are_a_tie():
    pair = [point("a", "network", "lowrank", 0.5, 0.1), point("b", "baseline", "svd", 0.5, 0.1012)]
    assert "no difference between the two can be measured" in winner.verdict(pair)
    pair[1]["rise"] = 0.11
    assert "a network is better" in winner.verdict(pair)


def test_more_is_better_where_it_is(points):
    assert "network is better at 80.0% bytes kept (between net-6 and net-9: 99" in winner.verdict(
        points, y="top1_agreement"
    )


def test_what_was_measured_at_other_sizes_alone_is_no_rival():
    """A smaller baseline that loses more says nothing; one that loses less is better at the larger size too."""
    pair = [point("a", "network", "lowrank", 0.5, 0.1), point("b", "baseline", "gptq", 0.3, 0.2)]
    assert "neither can be held against the other" in winner.verdict(pair)
    pair[1]["rise"] = 0.05
    assert "a baseline is better at every size" in winner.verdict(pair)


def test_without_one_side_there_is_no_winner(points):
    networks = [p for p in points if p["kind"] == "network"]
    assert "No baseline" in winner.verdict(networks)
    assert "No network" in winner.verdict([p for p in points if p["kind"] == "baseline"])
    apart = [point("a", "network", "lowrank", 0.5, 0.1), {**point("b", "baseline", "svd", 0.5, 0.1), "rise": None}]
    assert "No baseline" in winner.verdict(apart)
