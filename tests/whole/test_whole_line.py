"""The whole line, profile to sweep, on a small random checkpoint of every architecture and in every network."""

import pytest

from karipap_core.compressed.compress import compress
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.networks import NETWORKS
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.tradeoffs.sweep import Grid, sweep
from tests.helpers.architectures import ARCHITECTURES, ENCODERS
from tests.helpers.studies import squares, study_of

pytestmark = pytest.mark.usefixtures("quick_fits")
HELD_OUT = squares(100)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_profile_plan_compress_evaluate(architecture, tmp_path):
    network = list(NETWORKS)[ARCHITECTURES.index(architecture) % len(NETWORKS)]
    study = study_of(architecture, tmp_path)
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
    measured = evaluate_folder(
        tmp_path / "compressed", study.checkpoint.path, HELD_OUT, Scoring(max_tokens=512), speed=False
    )
    if architecture in ENCODERS:
        assert 0 < measured["fidelity"]["relative_error"] < 1
    else:
        assert 0 < measured["kl"] < 1 and measured["loss"] != measured["dense"]["loss"]


@pytest.mark.parametrize(("architecture", "kept"), [("llama", [0.8, 0.5]), ("bert", [0.5])])
def test_sweep_puts_every_network_beside_the_baselines(architecture, kept, tmp_path):
    study = study_of(architecture, tmp_path, num_hidden_layers=1)
    networks = [*NETWORKS, "auto"]
    document = sweep(study, HELD_OUT, ["all"], Grid(kept, ["calibrated"], scope="blocks"), out=tmp_path / "sweep")
    assert [run["method"] for run in document["runs"]] == [network for network in networks for _ in kept]
    methods = {point["method"] for point in document["baselines"]}
    assert methods >= {"svd", "svd-llm", "rtn", "gptq", "magnitude"}
    points = {point["id"]: point for point in [*document["runs"], *document["baselines"]]}
    quality = document["quality"]
    for name in document["pareto"]:
        front = points[name]
        better = [p for p in points.values() if p["bytes_kept"] < front["bytes_kept"] and p[quality] < front[quality]]
        assert not better
