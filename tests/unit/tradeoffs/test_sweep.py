import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import Cancelled, InputError
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan
from karipap_core.plan.planner import Planner
from karipap_core.reading import read_json
from karipap_core.statistics.pareto import pareto
from karipap_core.text import Text
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.sweep import AUTO_RISES, Grid, auto_budgets, study_and_text, sweep
from karipap_core.workspace.runs import read_runs
from tests.helpers.studies import CALIBRATION, squares, study_of

HELD_OUT = squares(60)
CUT = Scoring(32, 32, 512)


@pytest.fixture
def no_measuring(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("measured again")

    monkeypatch.setattr(InPlace, "measure", refuse)
    monkeypatch.setattr(Planner, "make", refuse)


NUMBERS = st.sampled_from([0.0, 1.0, 2.0, 3.0, 0.5]) | st.floats(-10, 10)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.booleans(), st.booleans())
def test_pareto_against_every_pair(values, more_x, more_y):
    points = [{"x": x, "y": y, "number": i} for i, (x, y) in enumerate(values)]
    signs = (-1 if more_x else 1), (-1 if more_y else 1)

    def beats(p, q):
        gains = [sign * (q[key] - p[key]) for sign, key in zip(signs, "xy", strict=True)]
        return min(gains) >= 0 and max(gains) > 0

    expected = [p["number"] for p in points if not any(beats(q, p) for q in points)]
    front = pareto(points, "x", "y", maximize=["x"] * more_x + ["y"] * more_y)
    assert sorted(p["number"] for p in front) == expected
    assert all(signs[0] * a["x"] <= signs[0] * b["x"] for a, b in itertools.pairwise(front))


def test_pareto_passes_over_points_without_numbers():
    points = [{"x": 1, "y": None}, {"x": 2}, {"x": 3, "y": 5.0}, {"x": math.nan, "y": 0.0}, {"x": 4, "y": math.inf}]
    assert pareto(points, "x", "y") == [points[2]]
    assert pareto([], "x", "y") == []


def test_sweep_writes_points_that_can_be_read_and_reproduced(study, tmp_path):
    found = sweep(
        study, HELD_OUT, ["lowrank"], Grid([0.8, 0.5], ["uniform", "calibrated"], scope="blocks"), CUT, out=tmp_path
    )
    assert read_json(tmp_path / "sweep.json") == found
    assert [(p["settings"]["rule"], p["settings"]["budget"]) for p in found["runs"]] == [
        ("uniform", 0.8),
        ("uniform", 0.5),
        ("calibrated", 0.8),
        ("calibrated", 0.5),
    ]
    points = [*found["runs"], *found["baselines"]]
    assert all(sizes_agree(point, study.checkpoint.parameters) for point in points)
    on_disk = {run["id"]: run for run in read_runs(tmp_path / "runs")}
    assert on_disk.keys() == {point["id"] for point in points}
    assert found["pareto"] == [point["id"] for point in pareto(points)]
    for point in found["runs"]:
        assert 0.4 < point["bytes_kept_blocks"] == point["kept_blocks"] <= point["settings"]["budget"]
        assert point["rise"] == pytest.approx(point["loss"] - point["dense"]["loss"], abs=1e-12)
        assert point["text"]["sha256"] == HELD_OUT.sha256 and (point["window"], point["stride"]) == (32, 32)
        Plan.from_json(point["plan"]).check(study.checkpoint)
    by_budget = {p["settings"]["budget"]: p["kl"] for p in found["runs"] if p["settings"]["rule"] == "calibrated"}
    assert 0 < by_budget[0.8] < by_budget[0.5]


def sizes_agree(point: dict, parameters: int) -> bool:
    return point["bytes"] == pytest.approx(2 * parameters * point["bytes_kept"]) and point["tokens"] <= 512


@pytest.mark.usefixtures("quick_fits")
def test_a_point_in_memory_equals_its_folder_on_disk(study, tmp_path):
    grid = Grid([0.6], ["calibrated"], scope="blocks", baselines=False)
    found = sweep(study, HELD_OUT, ["mpo"], grid, CUT, out=tmp_path, write=True)
    point = found["runs"][0]
    folder = tmp_path / "models" / point["id"]
    again = evaluate_folder(folder, study.checkpoint.path, HELD_OUT, CUT, device="cpu", speed=False)
    for key in ("loss", "kl", "bits_per_byte"):
        assert point[key] == pytest.approx(again[key], rel=1e-4)
    assert point["top1_agreement"] == pytest.approx(again["top1_agreement"], abs=0.005)


def test_a_finished_sweep_measures_nothing_again(study, tmp_path, request):
    grid = Grid([0.7], ["calibrated"], scope="blocks", baselines=False)
    first = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    request.getfixturevalue("no_measuring")
    again = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    assert again["runs"] == first["runs"]


def test_a_cancelled_sweep_goes_on_where_it_stopped(study, tmp_path, monkeypatch):
    measured = []
    original = InPlace.measure

    def counting(self, matrices, progress):
        if len(measured) == 2:
            raise Cancelled
        measured.append(1)
        return original(self, matrices, progress)

    grid = Grid([0.8, 0.6, 0.4], ["uniform"], scope="blocks", baselines=False)
    monkeypatch.setattr(InPlace, "measure", counting)
    with pytest.raises(Cancelled):
        sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    assert len(read_runs(tmp_path / "runs")) == 2 and not (tmp_path / "sweep.json").exists()
    monkeypatch.setattr(InPlace, "measure", original)
    kept = {run["id"]: run["created"] for run in read_runs(tmp_path / "runs")}
    found = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    assert len(found["runs"]) == 3
    assert kept.items() <= {run["id"]: run["created"] for run in found["runs"]}.items()


def test_a_damaged_plan_or_point_of_a_sweep_is_made_again(study, tmp_path):
    """A plan with another digit would be a valid plan too; the copy in `plans` is for people, and is not read."""
    grid = Grid([0.6], ["uniform"], scope="blocks", baselines=False)
    first = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    (shown,), (point,) = (tmp_path / "plans").glob("*.json"), (tmp_path / "runs").glob("*/run.json")
    kept = study.folder / "plans" / shown.name
    whole = {file: file.read_text() for file in (kept, shown, point)}
    for file in (kept, point):
        changed = whole[file].replace('"kept"', '"kept "', 1) if file == point else whole[file].replace("0.6", "0.7")
        file.write_text(changed)
        assert changed != whole[file]
        again = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
        assert (
            again["runs"][0]["plan"] == first["runs"][0]["plan"]
            and again["runs"][0]["loss"] == first["runs"][0]["loss"]
        )
        assert kept.read_text() == whole[kept] and shown.read_text() == whole[shown]
    shown.unlink()
    sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    assert shown.read_text() == whole[shown]


def test_the_same_plan_under_another_name_is_measured_once(study, tmp_path, request):
    points = Points(study, HELD_OUT, tmp_path, CUT)
    plan = Planner(study, "lowrank", "loss").make(Budget(0.6, scope="blocks"), "uniform")
    first = points.of_plan(plan, "lowrank")
    plan.rule = "hand"
    request.getfixturevalue("no_measuring")
    second = points.of_plan(plan, "lowrank")
    assert second.id != first.id and second.figures["loss"] == first.figures["loss"]
    other = Points(study, CALIBRATION, tmp_path, CUT)
    with pytest.raises(AssertionError, match="measured again"):
        other.of_plan(plan, "lowrank")  # another text is another measurement


def test_auto_budgets_lie_where_the_predicted_rise_does(study):
    planner = Planner(study, "lowrank", "loss")
    budgets = auto_budgets(planner, "blocks")
    assert budgets == sorted(budgets, reverse=True) and 2 <= len(budgets) <= len(AUTO_RISES)
    rises = [planner.make(Budget(kept, scope="blocks"), "calibrated").predicted["rise"] for kept in budgets]
    assert rises == sorted(rises) and rises[0] < 0.5 * rises[-1]


def test_budgets_that_cannot_be_met_are_said_and_left_out(study, tmp_path):
    grid = Grid([0.5, 1e-4], ["uniform"], scope="blocks", baselines=False)
    found = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)
    assert len(found["runs"]) == 1 and "kept 0.0001: left out" in found["notes"][-1]
    assert found["notes"][0] == found["runs"][0]["text_warning"]  # an untrained model does worse than guessing blindly
    with pytest.raises(InputError, match="No budget can be met"):
        sweep(study, HELD_OUT, ["lowrank"], replace(grid, budgets=[1e-4]), CUT, out=tmp_path / "other")


def test_a_word_that_is_no_prefix_is_refused_before_anything_is_measured(study, tmp_path):
    with pytest.raises(InputError, match="Prefix 'tall' is not one of auto, dense, aligned"):
        sweep(study, HELD_OUT, grid=Grid(prefix="tall"), out=tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_nothing_is_measured_on_the_text_that_was_calibrated_on(study, tmp_path):
    with pytest.raises(InputError, match="calibrated on and measured on"):
        sweep(study, CALIBRATION, out=tmp_path)
    with pytest.raises(InputError, match="calibrated on and measured on"):
        study_and_text(study, CALIBRATION)
    both = Text("one text for both", CALIBRATION.documents * 6)
    other, text = study_and_text(study.checkpoint.path, both, device="cpu")
    grid = Grid([0.6], ["uniform"], "weight", "blocks", baselines=False)
    found = sweep(other, text, ["lowrank"], grid, CUT, out=tmp_path)
    assert found["text"]["name"] == "one text for both, three quarters"


def test_an_encoder_is_measured_by_its_output(tmp_path):
    study = study_of("bert", tmp_path)
    grid, cut = Grid([0.8, 0.4], ["uniform"], "weight", "blocks", baselines=False), Scoring(34, max_tokens=256)
    found = sweep(study, HELD_OUT, ["lowrank"], grid, cut, out=tmp_path / "out")
    assert found["quality"] == "relative_error"
    light, strong = found["runs"]
    assert 0 < light["relative_error"] < strong["relative_error"] and len(found["pareto"]) == 2
