"""`run`: compress and evaluate in one go, its point of the trade-off, and going on where it stopped."""

import json
from pathlib import Path

import pytest

from karipap_core import story as pipeline
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import Cancelled, InputError, NotVerified
from karipap_core.evaluation import folder as evaluate
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.document import Plan, model_entry
from karipap_core.text import Text
from karipap_core.tradeoffs.run import run
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import read_runs
from tests.helpers import architectures

TEXT = Text("words", tuple(f"document {i}: " + "a small text of several words. " * 20 for i in range(6)))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return architectures.make("llama", tmp_path_factory.mktemp("model"))


@pytest.fixture
def plan(model) -> Plan:
    checkpoint = open_checkpoint(model)
    weights = {}
    for weight in checkpoint.weights:
        if weight.compressible:
            cut = {
                "network": "lowrank",
                "out": [weight.shape[0]],
                "in": [weight.shape[1]],
                "chi": [6],
                "quantize": None,
            }
            weights[weight.name] = cut if weight.role in ("up", "down") else {"network": "dense"}
    return Plan(model_entry(checkpoint), "weight", weights, rule="uniform", predicted={"rise": 0.1})


def measured(model, plan, **more) -> dict:
    return run(model, plan, TEXT, Scoring(64, max_tokens=512), device="cpu", **more)


def test_a_run_is_what_its_folder_measures_and_a_point_of_the_workspace(model, plan):
    found = measured(model, plan)
    again = evaluate.evaluate_folder(
        found["folder"], model, TEXT, Scoring(64, max_tokens=512), device="cpu", speed=False
    )
    assert found["loss"] == pytest.approx(again["loss"], rel=1e-6)
    assert found["rise"] == pytest.approx(found["loss"] - again["dense"]["loss"], abs=1e-6)
    checkpoint = open_checkpoint(model)
    touched = [weight for weight in checkpoint.weights if weight.role in ("up", "down")]
    blocks = checkpoint.block_parameters - sum(w.parameters - 6 * sum(w.shape) for w in touched)
    assert found["kept_blocks"] == pytest.approx(blocks / checkpoint.block_parameters)
    assert found["parameters"] == plan.ledger(checkpoint).parameters
    assert {row["name"] for row in found["weights"]} == {weight.name for weight in touched}
    assert found["kind"] == "network" and found["method"] == "lowrank" and found["predicted"] == {"rise": 0.1}
    assert {"speed", "memory", "environment", "seconds", "text", "window", "stride"} <= found.keys()
    (kept,) = Workspace().runs
    assert kept == json.loads(json.dumps(found)) | {"path": kept["path"]}


def test_a_damaged_model_or_point_of_a_run_is_made_again(model, plan):
    found = measured(model, plan)
    folder, file = Path(found["folder"]), Path(found["folder"]).parent / "run.json"
    tensors, point = (folder / "model.safetensors").read_bytes(), file.read_bytes()
    (folder / "model.safetensors").write_bytes(tensors[: len(tensors) // 2])
    assert measured(model, plan) == json.loads(json.dumps(found))
    assert (folder / "model.safetensors").read_bytes() == tensors and file.read_bytes() == point
    file.write_bytes(point.replace(b'"loss": ', b'"loss": 1', 1))
    assert measured(model, plan)["loss"] == found["loss"] and read_runs(file.parents[1])[0]["loss"] == found["loss"]


def test_a_finished_run_is_not_done_again(model, plan, monkeypatch):
    found = measured(model, plan)
    monkeypatch.setattr(pipeline, "compress", lambda *args, **more: pytest.fail("compressed again"))
    assert measured(model, plan) == json.loads(json.dumps(found))


def test_another_question_is_another_run(model, plan):
    first = measured(model, plan)
    second = run(model, plan, TEXT, Scoring(64, max_tokens=256), device="cpu")
    assert first["id"] != second["id"] and first["tokens"] > second["tokens"] and len(Workspace().runs) == 2


def test_a_run_that_was_stopped_goes_on_with_the_weights_it_has(model, plan, tmp_path, monkeypatch):
    def stop(stage, done, total, item="", message=""):
        if stage == "evaluate":
            raise Cancelled

    with pytest.raises(Cancelled):
        measured(model, plan, out=tmp_path, progress=stop)
    assert (tmp_path / "model" / "model.safetensors").is_file() and not (tmp_path / "run.json").exists()
    stages = []
    found = measured(model, plan, out=tmp_path, progress=lambda stage, *rest, **more: stages.append(stage))
    assert "compress" not in stages
    assert read_runs(tmp_path.parent)[-1]["id"] == found["id"]


def test_a_folder_that_is_not_verified_is_not_measured(model, plan, tmp_path, monkeypatch):
    no = {"ok": False, "checks": [{"name": "logits", "ok": False, "detail": "relative error 2"}]}
    monkeypatch.setattr("karipap_core.compressed.compress.verify", lambda *args, **more: no)
    monkeypatch.setattr(pipeline, "evaluate", lambda *args, **more: pytest.fail("measured"))
    for _ in range(2):  # the second time the folder is found finished
        with pytest.raises(NotVerified, match=r"model is NOT verified: logits \(relative error 2\)\. It stays"):
            measured(model, plan, out=tmp_path)
    assert not (tmp_path / "run.json").exists() and (tmp_path / "model" / "config.json").is_file()


def test_a_plan_for_another_model_is_refused_before_anything_is_written(model, plan, tmp_path):
    plan.model = dict(plan.model, fingerprint="0" * 64)
    with pytest.raises(InputError, match="fingerprint"):
        measured(model, plan, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
