"""A model that reads no text goes through the whole line by its weights alone, and says what was not measured."""

import pytest
import torch
import transformers

from karipap_core import story
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.tradeoffs.run import run

SIDES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.fixture
def vit(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**SIDES, image_size=8, patch_size=4))
    model.save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_planned_compressed_verified_and_not_measured(vit, tmp_path):
    study = Study(vit)
    plan = Planner(study, "lowrank", "weight").make(Budget(0.7, scope="blocks"), "uniform")
    assert "rise" not in plan.predicted and "reads no text but pixel_values" in plan.predicted["not_predicted"]
    assert study.checkpoint.not_run == plan.predicted["not_predicted"]
    assert open_checkpoint(vit).not_run == study.checkpoint.not_run, "known when it is opened again"
    plan.save(tmp_path / "plan.json")
    point = run(vit, tmp_path / "plan.json", out=tmp_path / "run")
    assert point["loss"] is None and point["rise"] is None and "Neither quality nor speed" in point["notes"][0]
    assert 0.6 < point["kept_blocks"] <= 0.7
    verdict = story.verify(tmp_path / "run/model").to_json()
    assert verdict["ok"] and "13 layers that these tokens do not reach" in verdict["checks"][-1]["detail"]
    found = evaluate_folder(tmp_path / "run/model")
    assert found["fidelity"] is None and found["speed"] is None and found["memory"]["dense"]["weights_bytes"] > 0


def test_what_looks_at_activations_is_refused_by_a_sentence(vit):
    with pytest.raises(InputError, match="A ViTModel reads no text but pixel_values: it is not run here"):
        story.profile(vit, metrics=("loss",))
    with pytest.raises(InputError, match="A ViTModel reads no text but pixel_values: it is not run here"):
        story.make_plan(vit, Budget(0.7, scope="blocks"), rule="loss", metric="loss")
