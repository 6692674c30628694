"""The whole line, profile to sweep, on a small random checkpoint of every architecture and in every network."""

import pytest

from karipap_core.compressed.compress import compress
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.networks import NETWORKS
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.text import Text
from karipap_core.tradeoffs.sweep import Grid, sweep
from karipap_core.workspace import Workspace
from tests.helpers.architectures import ARCHITECTURES, ENCODERS, make

SETTINGS = CalibrationSettings(tokens=1024, window=32, probe_windows=4, check_windows=4)
CALIBRATION = Text("cubes", tuple(f"the cube of {n} is {n**3}\n" for n in range(400)))
HELD_OUT = Text("squares", tuple(f"the square of {n} is {n * n}\n" for n in range(100)))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_profile_plan_compress_evaluate(architecture, tmp_path):
    network = list(NETWORKS)[ARCHITECTURES.index(architecture) % len(NETWORKS)]
    model = make(architecture, tmp_path / "model")
    study = Study(model, CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    profile = study.profile()
    assert {row["name"] for row in profile.weights} == {weight.name for weight in study.checkpoint.weights}
    assert all(
        set(row["spectra"]) == {"weight", "functional", "loss"} for row in profile.weights if row["compressible"]
    )
    plan = Planner(study, network, "loss").make(Budget(kept=0.7, scope="blocks"), "calibrated")
    assert 0.5 < plan.ledger(study.checkpoint).bytes_kept_blocks <= 0.7 and plan.predicted["rise"] > 0
    result = compress(study, plan, tmp_path / "compressed")
    assert result["kept_blocks"] == plan.predicted["kept_blocks"]
    assert {row["network"] for row in result["weights"] if row["quantize"] is None} <= {network}
    assert network in {row["network"] for row in result["weights"]}
    measured = evaluate_folder(tmp_path / "compressed", model, HELD_OUT, Scoring(max_tokens=512), speed=False)
    if architecture in ENCODERS:
        assert 0 < measured["fidelity"]["relative_error"] < 1
    else:
        assert 0 < measured["kl"] < 1 and measured["loss"] != measured["dense"]["loss"]


@pytest.mark.parametrize("architecture", ["llama", "bert"])
def test_sweep_puts_every_network_beside_the_baselines(architecture, tmp_path):
    model = make(architecture, tmp_path / "model")
    study = Study(model, CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    networks = [*NETWORKS, "auto"]
    document = sweep(study, HELD_OUT, ["all"], Grid([0.8, 0.5], ["calibrated"], scope="blocks"), out=tmp_path / "sweep")
    assert [run["method"] for run in document["runs"]] == [network for network in networks for _ in range(2)]
    methods = {point["method"] for point in document["baselines"]}
    assert methods >= {"svd", "svd-llm", "rtn", "gptq", "magnitude"}
    points = {point["id"]: point for point in [*document["runs"], *document["baselines"]]}
    quality = document["quality"]
    for name in document["pareto"]:
        front = points[name]
        better = [p for p in points.values() if p["bytes_kept"] < front["bytes_kept"] and p[quality] < front[quality]]
        assert not better
