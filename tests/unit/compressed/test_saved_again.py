"""Compressed folders that transformers saved again: in another dtype, under other names."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from karipap_core.compressed.densify import densify
from karipap_core.compressed.verify import verify
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.healing.heal import heal
from karipap_core.healing.settings import Settings
from karipap_core.progress import silent
from karipap_core.text import Text
from tests.helpers.architectures import make, write_tokenizer
from tests.helpers.folders import NETWORK, folder_of, plan_for

PLAIN = {"fc1": ("lowrank", None), "fc2": ("lowrank", None), "down": ("lowrank", None)}
PACKED = {"fc1": ("lowrank", "int4"), "down": ("lowrank", "int8")}
IDS = torch.arange(12)[None]


def red(verdict: dict) -> dict[str, str]:
    return {check["name"]: check["detail"] for check in verdict["checks"] if check["ok"] is not True}


@pytest.mark.parametrize(
    ("name", "roles", "dtype"),
    [
        ("llama", NETWORK, torch.bfloat16),
        ("llama_bf16", PLAIN, torch.float32),
        ("llama", PACKED, torch.float16),
        ("gpt2_bare", PLAIN, torch.bfloat16),
        ("gpt2_bare", PACKED, torch.float32),  # under other names alone
        ("mixtral", PLAIN, torch.bfloat16),
        ("bert", PLAIN, torch.bfloat16),
    ],
)
def test_the_dense_folder_is_in_the_new_dtype_and_verify_blames_the_saving_alone(tmp_path, name, roles, dtype):
    model = make(name, tmp_path / "model")
    folder = folder_of(model, tmp_path / "out", plan_for(model, roles))
    auto = AutoModel if name == "bert" else AutoModelForCausalLM
    auto.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path / "saved")
    densify(tmp_path / "saved", tmp_path / "dense")
    word = str(dtype).removeprefix("torch.")
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    assert {value.dtype for value in dense.values()} == {dtype}
    assert json.loads((tmp_path / "dense" / "config.json").read_text())["dtype"] == word
    ours = auto.from_pretrained(tmp_path / "saved", dtype=torch.float32)(IDS)[0]
    theirs = auto.from_pretrained(tmp_path / "dense", dtype=torch.float32)(IDS)[0]
    assert (ours - theirs).norm() / theirs.norm() < (1e-5 if dtype == torch.float32 else 2e-2)
    for against in (None, model):
        (said,) = red(verify(tmp_path / "saved", against)).items()
        assert said[0] == "unchanged" and said[1].startswith("not the folder that was written: another program saved")
    text = Text("words", tuple(f"document {i}: " + "a small text of several words. " * 9 for i in range(4)))
    found = evaluate_folder(tmp_path / "saved", model, text, Scoring(64, max_tokens=128), device="cpu", speed=False)
    assert found["tokens"]


def test_each_weight_is_the_product_of_the_saved_cores(tmp_path):
    folder = folder_of(make("llama", tmp_path / "model"), tmp_path / "out", plan_for(tmp_path / "model", PLAIN))
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    densify(tmp_path / "saved", tmp_path / "dense")
    cores, dense = (load_file(tmp_path / each / "model.safetensors") for each in ("saved", "dense"))
    name = "model.layers.1.mlp.down_proj"
    a, b = (cores[f"{name}.cores.{k}"].double().numpy() for k in range(2))
    product = a @ b if a.shape[1] == b.shape[0] and a.shape[0] == 48 else b @ a
    assert torch.equal(dense[f"{name}.weight"], torch.from_numpy(product).bfloat16())


def test_a_damaged_core_is_still_found_and_an_unsaved_folder_is_not_taken_for_one(tmp_path):
    model = make("llama", tmp_path / "model")
    folder = folder_of(model, tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    assert "tensors" in red(verify(tmp_path / "saved"))  # its cores are not what its config says
    live = AutoModelForCausalLM.from_pretrained(folder)
    live.model.norm.weight.data *= 1.5  # as a fine-tune does: no fault of the folder
    live.save_pretrained(tmp_path / "trained")
    assert list(red(verify(tmp_path / "trained", model))) == ["unchanged"]
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare" / "karipap.json").unlink()
    assert list(red(verify(tmp_path / "bare", model)).values()) == [
        "karipap.json, which holds the SHA-256 of what was written, is missing: write the folder again"
    ]


def test_it_is_healed_in_the_new_dtype_and_that_folder_is_verified(tmp_path):
    model = make("llama", tmp_path / "model")
    folder = folder_of(model, tmp_path / "out", plan_for(model, PLAIN))
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "saved")
    write_tokenizer(tmp_path / "saved")
    text = Text("words", ("a small text of several words. " * 300,))
    settings = Settings(steps=2, rate=1e-3, tokens=128, window=64)
    found = [
        heal(tmp_path / "saved", tmp_path / "healed", settings, text, model, "cpu", progress=progress)
        for progress in (silent, lambda stage, *rest: pytest.fail(stage) if stage == "heal" else None)  # found again
    ]
    assert found[0]["verify"]["ok"] and found[0]["improved"] and found[1] == found[0]
    assert load_file(tmp_path / "healed" / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
