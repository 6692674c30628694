"""Predicted against measured: pairs, their figures against NumPy, the refit and its versions."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from karipap_core.figures import predictions as figures_predictions
from karipap_core.plan import predictions
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.checks import above_noise
from karipap_core.plan.document import Plan
from karipap_core.plan.foretold import ITSELF
from karipap_core.plan.predictions import Pair, as_predicted, figures, left_out, refit, unchecked
from karipap_core.reading import read_json
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key, write_json
from karipap_core.workspace.runs import read_runs
from tests.helpers.paths import REPOSITORY

MODEL = {"name": "m", "fingerprint": "ab" * 32, "parameters": 10, "block_parameters": 8, "bytes": 20}
SHA = "c" * 64
SETTINGS = {"tokens": 9, "window": 8, "seed": 0}
ENTRY = {"network": "lowrank", "out": [4], "in": [4], "chi": [2]}
PLANS = [
    {"sum": s, "rise": 1.6 * s**0.8, "kept_blocks": 0.5, "divergence": 1.0, "network": "lowrank"}
    for s in (0.01, 0.1, 1.0)
]


def plan(network="lowrank", total=0.1, rise=None, source="curve") -> Plan:
    predicted = {"rise": 1.6 * total**0.8 if rise is None else rise, "sum": total, "source": source, "error": 0.1}
    calibration = {"text": "c", "path": None, "sha256": SHA} | SETTINGS
    return Plan(MODEL, "loss", {"w": ENTRY | {"network": network}}, calibration=calibration, predicted=predicted)


def run(name, made: Plan, measured: float, error=1e-4) -> dict:
    return {
        "id": name,
        "label": f"run {name}",
        "kind": "network",
        "method": made.weights["w"]["network"],
        "plan": made.to_json(),
        "predicted": made.predicted,
        "rise": measured,
        "rise_error": error,
        "text": {"name": "held out", "sha256": "hh"},
        "dense": {"loss": 2.2},
    }


def calibration(**more) -> Calibration:
    return Calibration("loss", "kl", {"text": "c"}, 2.7, {"w": [[1, 1.0, 1.0]]}, list(PLANS), **more)


def test_how_damages_were_found_is_said_with_how_far_to_trust_it():
    assert "measured by forward passes on c (0 tokens), each weight cut alone" in predictions.how_found(calibration())
    fit = {"scale": 1.05, "bend": 0.0, "scatter": float(np.log(1.2)), "pairs": [[0.1, 0.1], [0.2, 0.21]]}
    said = predictions.how_found(calibration(gradients=fit))
    assert "estimated from gradients" in said and "2 of them were measured" in said and "× 1.05" in said
    assert "20% from the estimates" in said
    assert "sets their scale" in predictions.how_found(calibration(gradients=fit | {"scatter": None, "pairs": []}))


def test_a_plan_that_was_measured_weight_by_weight_belongs_to_that_calibration(monkeypatch):
    kept = {"text": SHA, "settings": SETTINGS}
    key = f"{'ab' * 16}-{'cd' * 8}"
    monkeypatch.setattr(Workspace, "key_of", lambda self, model: key)
    one, other = (Workspace().calibration_file(key, f"loss-{settings_key(kept)}{end}") for end in ("", "-all"))
    for file in (one, other):
        write_json(file, {})
    made = plan()
    assert predictions.calibration_file(made) == one
    made.calibration |= {"measure": "all"}
    assert predictions.calibration_file(made) == other
    other.unlink()
    assert predictions.calibration_file(made) == one, "a calibration of all weights serves both ways"


@pytest.fixture
def runs() -> list[dict]:
    """Five plans of lowrank that cost 1.2 times the curve on held-out text, five of mpo that cost 0.8 times."""
    found = []
    for network, factor in (("lowrank", 1.2), ("mpo", 0.8)):
        for number, total in enumerate(np.geomspace(0.02, 0.9, 5)):
            made = plan(network, total)
            found.append(run(f"{network}-{number}", made, made.predicted["rise"] * factor))
    return found


@pytest.fixture
def file() -> object:
    key = settings_key({"text": SHA, "settings": SETTINGS})
    path = Workspace().calibration_file(f"{MODEL['fingerprint'][:32]}-{'1' * 16}", f"loss-{key}")
    write_json(
        path,
        {"format": "karipap-calibration", "version": 1}
        | {key: value for key, value in calibration().__dict__.items() if key != "history"},
    )
    return path


def test_figures_are_those_of_numpy():
    generator = np.random.default_rng(0)
    measured = generator.uniform(0.05, 2, 40)
    predicted = measured * generator.lognormal(0.1, 0.3, 40)
    stated = np.where(np.arange(40) < 30, 0.25, np.nan)
    pairs = [
        Pair(None, "", "mpo", p, m, 1e-3, None if np.isnan(s) else s, "curve", "t")
        for p, m, s in zip(predicted, measured, stated, strict=True)
    ]
    pairs.append(Pair(None, "", "mpo", 5.0, 0.002, 1e-3, 0.25, "curve", "t"))  # within its own noise: not counted
    found = figures(pairs)
    off = abs(predicted / measured - 1)
    assert found["plans"] == 40 and found["below"] == 1 and found["stated"] == 30
    assert found["median"] == pytest.approx(np.median(off)) and found["largest"] == pytest.approx(off.max())
    assert found["bias"] == pytest.approx(np.exp(np.log(predicted / measured).mean()) - 1)
    assert found["inside"] == pytest.approx((off[:30] <= 0.25).mean())
    assert figures(pairs[-1:]) is None


def test_pairs_are_what_plans_were_told(runs):
    runs.append(run("itself", plan(rise=0.3, source=ITSELF), 0.33))
    runs.append({"id": "svd", "label": "svd", "method": "svd", "predicted": None, "rise": 1.0})
    pairs = as_predicted(runs)
    assert len(pairs) == 11 and pairs[0].stated == 0.1 and pairs[0].text == "held out"
    assert figures(pairs[:10])["median"] == pytest.approx((abs(1 / 1.2 - 1) + abs(1 / 0.8 - 1)) / 2)
    assert pairs[10].source == ITSELF


def test_a_refit_finds_the_factor_of_each_network_and_says_so_with_a_new_version(runs, file):
    old = Calibration.from_json(read_json(file))
    assert old.version == 1 and old.factors == {} and len(unchecked(old, runs)) == 10
    assert list(predictions.calibrations(runs)) == [file]
    new = refit(file, runs)
    assert read_json(file)["version"] == 2 and new.version == 2 and len(new.checks) == 10
    assert new.history[-1]["what"] == "refitted from 10 measured runs" and new.history[-1]["checks"] == 10
    everyone = np.log([1.2, 0.8]).mean()
    assert new.factors["lowrank"] == pytest.approx(np.exp((5 * np.log(1.2) + everyone) / 6))
    assert new.factors["mpo"] == pytest.approx(np.exp((5 * np.log(0.8) + everyone) / 6))
    fit = new.fit("lowrank")
    assert fit.text == "held out" and fit.dense_loss == 2.2 and fit.version == 2
    assert fit.rise(0.1) == pytest.approx(1.6 * 0.1**0.8 * new.factors["lowrank"])
    assert fit.predicted(0.1)["fit"] == 2 and fit.predicted(0.1)["checked"] == 10
    # Left out, a plan's own measurement is not in the factor that predicts it.
    without = np.exp((4 * np.log(1.2) + (4 * np.log(1.2) + 5 * np.log(0.8)) / 9) / 5)
    row = next(pair for pair in left_out(new, runs) if pair.id == "lowrank-2")
    assert row.predicted / row.measured == pytest.approx(without / 1.2)
    assert figures(left_out(new, runs))["median"] < 0.6 * figures(as_predicted(runs))["median"]
    assert unchecked(new, runs) == [] and refit(file, runs).version == 2, "nothing new, no new version"


def test_no_factor_where_leaving_one_out_shows_that_it_does_not_help(file):
    generator = np.random.default_rng(1)
    noise = generator.permutation([0.7, 0.75, 1.35, 1.4, 1.0, 1.0])
    made = [plan("lowrank", total) for total in np.geomspace(0.02, 0.9, 6)]
    runs = [run(str(i), p, p.predicted["rise"] * f) for i, (p, f) in enumerate(zip(made, noise, strict=True))]
    found = refit(file, runs)
    assert found.factors == {} and found.fit("lowrank").text == "c" and found.fit("lowrank").dense_loss == 2.7
    assert found.fit("lowrank").error == pytest.approx(found.error) and found.error > 0.25


def test_plans_of_a_kind_that_was_off_say_so(runs, file):
    odd = plan("peps", 0.3)
    runs.append(run("odd", odd, odd.predicted["rise"] / 3))
    found = refit(file, runs)
    assert found.fit("peps").error > 0.8 and found.fit("lowrank").error < 0.2
    assert found.fit("tree").error < 0.3, "never measured: the error of all"


def test_what_lies_in_its_own_noise_moves_nothing(runs, file):
    before = refit(file, runs).factors
    small = plan("lowrank", 0.0001)
    after = refit(file, [*runs, run("small", small, small.predicted["rise"] * 2, error=1e-3)])
    assert after.factors == pytest.approx(before) and len(after.checks) == 11


def test_what_is_fitted_behind_a_compressed_prefix_has_a_factor_of_its_own(runs, file):
    before = refit(file, runs)
    assert before.fit("lowrank, aligned").factor == before.fit("lowrank").factor, "until one of them was measured"
    assert before.fit("other, aligned").factor == before.fit("other").factor
    for number, total in enumerate((0.05, 0.1, 0.2, 0.4)):
        aligned = plan("lowrank", total)
        aligned.prefix = "aligned"
        runs.append(run(f"aligned {number}", aligned, aligned.predicted["rise"] / 2))
    after = refit(file, runs)
    assert after.fit("lowrank, aligned").factor == pytest.approx(0.5, rel=0.15)
    assert after.fit("lowrank").factor == pytest.approx(before.fit("lowrank").factor, rel=0.15)


def test_what_ships_with_the_demo_model_is_predicted_better_with_factors_than_without(tmp_path):
    """The runs that ship, each predicted without itself: by the calibration's curve alone, and with its factors."""
    shipped = REPOSITORY / "assets" / "demo_model" / "karipap"
    file = shutil.copy(next((shipped / "calibration").glob("loss-*.json")), tmp_path / "calibration.json")
    runs = [each for each in read_runs(shipped / "runs") if predictions.checkable(each)]
    found = refit(Path(file), runs)
    assert len(found.checks) >= 30 and set(found.factors) >= {"lowrank", "mpo", "peps", "tree"}
    medians = []
    for factors in (False, True):
        rows = [row for row in found.left_out(factors) if above_noise(row["measured"], row["error"]) and row["text"]]
        medians.append(np.median([abs(row["predicted"] / row["measured"] - 1) for row in rows]))
    assert medians[1] < 0.6 * medians[0]
    pairs = figures(left_out(found, runs))
    assert pairs["inside"] >= 0.8, "the stated error holds for four of five"


def test_the_scatter_shows_each_pair_with_its_network_and_its_text(runs):
    pairs = [*as_predicted(runs), *as_predicted([run("itself", plan(rise=0.3, source=ITSELF), 0.33)])]
    pairs.append(Pair(None, "whole plan", "lowrank", 0.2, 0.21, None, None, "curve", None))
    figure = figures_predictions.scatter(pairs, 0.25, "mpo-3")
    named = {trace.name: trace for trace in figure.data if trace.name}
    assert {"lowrank", "mpo", "lowrank, measured itself before", "lowrank, on calibration text"} == set(named)
    assert named["mpo"].x.tolist() == pytest.approx([pair.predicted for pair in pairs if pair.method == "mpo"])
    assert named["mpo"].y.tolist() == pytest.approx([pair.measured for pair in pairs if pair.method == "mpo"])
    assert named["mpo"].marker.color != named["lowrank"].marker.color
    assert len({trace.marker.symbol for trace in named.values()}) == 3
    below, above = figure.data[0], figure.data[1]
    assert below.y[0] / below.x[0] == pytest.approx(1 / 1.25, rel=1e-5)
    assert above.y[0] / above.x[0] == pytest.approx(1 / 0.75, rel=1e-5)
    assert figure.data[-1].marker.size == 20 and figure.to_json()
    assert figures_predictions.scatter([]).to_json()


def test_calibrations_of_other_models_are_not_found(runs, file):
    other = [dict(each, plan=each["plan"] | {"calibration": {"sha256": "d" * 64}}) for each in runs]
    assert predictions.calibrations(other) == {}
    assert json.loads(file.read_text())["version"] == 1
