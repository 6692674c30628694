"""The measured damage curve and the fit through whole plans, against the formulas they stand for."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.plan.calibration import Calibration, group_of, predicted_rise
from karipap_core.plan.foretold import BEHIND_DENSE, ITSELF, words


def calibration(rows, plans=()):
    return Calibration("loss", "kl", {}, 2.0, {"w": rows}, list(plans))


def test_a_power_law_comes_back_exactly_between_and_beyond_the_measured_levels():
    errors = np.array([0.01, 0.1, 0.5, 2.0])
    found = calibration([[c, e, 3 * e**1.4] for c, e in enumerate(errors)])
    at = np.array([0.001, 0.01, 0.03, 0.7, 2.0, 9.0])
    assert found.damage("w", at) == pytest.approx(3 * at**1.4, rel=1e-9)
    assert found.damage("w", [0.0]).tolist() == [0.0]


def test_slopes_are_clamped_to_what_is_not_noise():
    found = calibration([[1, 1.0, 1.0], [2, 0.1, 1e-9]])  # a slope of 9: the lower point is noise
    assert found.damage("w", 0.1) == pytest.approx(1e-3)  # 3 at most, anchored at the strong truncation
    flat = calibration([[1, 1.0, 1.0], [2, 0.1, 1.0]])
    assert flat.damage("w", 0.1) == pytest.approx(10**-0.3)


@given(st.lists(st.tuples(st.floats(1e-6, 10), st.floats(1e-9, 5)), min_size=1, max_size=6))
def test_damage_never_falls_with_the_error(rows):
    found = calibration([[0, e, d] for e, d in rows])
    values = found.damage("w", np.geomspace(1e-8, 100, 200))
    assert np.isfinite(values).all() and (np.diff(values) >= -1e-12 * values[1:]).all()


def test_prediction_runs_through_the_measured_plans_and_is_a_power_law_between_two():
    a, b = 1.58, 0.81
    points = [(s, a * s**b) for s in (0.006, 0.534)]
    for s in (0.006, 0.024, 0.072, 0.252, 0.534):
        assert predicted_rise(points, s) == pytest.approx(a * s**b, rel=1e-9)
    assert predicted_rise([], 0.3) == 0.3 and predicted_rise(points, 0.0) == 0.0
    assert predicted_rise([(0.1, 0.2)], 0.3) == pytest.approx(0.6)


def test_error_is_that_of_leaving_a_measured_plan_out():
    plans = [{"sum": s, "rise": r} for s, r in [(0.1, 0.1), (1.0, 1.3), (10.0, 10.0)]]
    found = calibration([[1, 1.0, 1.0]], plans)
    assert found.error == pytest.approx(1 / 1.3 - 1, abs=1e-9) or found.error == pytest.approx(1 - 1 / 1.3)
    assert calibration([[1, 1.0, 1.0]], plans[:2]).error is None


def test_error_counts_what_evaluated_plans_were_predicted_to_cost():
    plans = [{"sum": s, "rise": r} for s, r in [(0.1, 0.1), (1.0, 1.0), (10.0, 10.0)]]
    found = calibration([[1, 1.0, 1.0]], plans)
    assert found.error == pytest.approx(0, abs=1e-9)
    for _ in range(2):
        found.check(0.3, 0.4, "held out")
    found.check(0.001, 0.009, "too small to tell")
    assert len(found.checks) == 2 and found.error == pytest.approx(0.25)


def test_plans_that_contradict_each_other_leave_a_rising_curve():
    plans = [{"sum": s, "rise": r} for s, r in [(1.0, 1.0), (1.01, 0.5), (2.0, 0.9), (3.0, 2.0), (0.5, -0.1)]]
    assert calibration([[1, 1.0, 1.0]], plans).points == [(1.0, 1.0), (3.0, 2.0)]


def test_round_trip():
    found = calibration([[1, 1.0, 1.0]], [{"sum": 1.0, "rise": 1.0}])
    assert Calibration.from_json(found.to_json()) == found


def test_files_of_version_1_are_read_and_newer_ones_refused():
    old = {
        "format": "karipap-calibration",
        "version": 1,
        "metric": "loss",
        "measure": "kl",
        "text": {"text": "t"},
        "dense_loss": 2.0,
        "levels": {"w": [[1, 1.0, 1.0]]},
        "plans": [],
        "tokens": 3,
        "checks": [{"predicted": 0.3, "measured": 0.4, "text": "held out"}],
    }
    found = Calibration.from_json(old)
    assert found.version == 1 and found.history == [] and found.error == pytest.approx(0.25)
    with pytest.raises(InputError, match="newer Karipap"):
        Calibration.from_json(old | {"version": 9})


def test_every_change_of_the_fit_is_a_version_and_the_last_are_kept():
    found = calibration([[1, 1.0, 1.0]], [{"sum": 1.0, "rise": 1.0}])
    assert found.version == 1
    for number in range(25):
        found.note(f"change {number}")
    assert found.version == 26 and len(found.history) == 20 and found.history[-1]["what"] == "change 24"
    assert found.history[-1]["date"].endswith("Z") and found.history[-1]["plans"] == 1


def test_a_check_counts_once_and_gains_what_was_not_said_of_it():
    found = calibration([[1, 1.0, 1.0]])
    assert found.check(0.3, 0.4, "held out") and not found.check(0.3, 0.4, "held out")
    assert found.check(0.3, 0.4, "held out", id="a", sum=0.2, network="mpo", error=None)
    assert found.checks == [
        {"predicted": 0.3, "measured": 0.4, "text": "held out", "id": "a", "sum": 0.2, "network": "mpo"}
    ]
    assert not found.check(0.9, 0.4, "held out", id="a"), "the same run, predicted anew"


def test_how_a_prediction_is_put_in_words():
    found = calibration([[1, 1.0, 1.0]], [{"sum": s, "rise": s} for s in (0.1, 1.0, 10.0)])
    found.check(0.3, 0.4, "held out")
    found.note("checked")
    said = words(found.fit("lowrank").predicted(0.5))
    assert said == "predicted with calibration v2 (1 plan checked), usually within ±25%"
    assert words({"rise": 0.1, "error": 0.2}) == "predicted, usually within ±20%"
    made = {"rise": 0.1, "fit": 1, "checked": 0, "error": 0.04}
    assert words(made) == (
        "predicted with calibration v1, within ±4% on the plans that were measured for it (no run has checked it yet)"
    )
    assert words({"source": ITSELF}) == "measured on calibration text with this very plan"
    assert words({"source": BEHIND_DENSE}).endswith("with this very plan, its weights fitted behind the dense model")


def test_kinds_of_plans():
    assert group_of(["lowrank", "dense"], False, False, None) == "lowrank"
    assert group_of(["lowrank", "mpo"], False, False, None) == "mixed" == group_of(["dense"], False, False, None)
    assert group_of(["mpo"], True, False, None) == "mixed" == group_of(["mpo"], False, True, None)
    assert group_of(["mpo"], False, False, "aligned") == "mpo, aligned"
    assert group_of(["mpo"], True, False, "aligned") == "mixed, aligned"
