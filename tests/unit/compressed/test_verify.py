"""Verify: a folder as it was written passes; every kind of damage turns the check red that names it, and that alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.cli.tables.verify import table
from karipap_core.compressed.loader import loader
from karipap_core.compressed.verify import ORDER, verify
from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan
from karipap_core.reading import read_json
from karipap_core.workspace.kept import keep_json
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of, plan_for


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("verify")
    model = make("llama_bf16", root / "model")
    return model, folder_of(model, root / "out")


@pytest.fixture
def folder(world, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(world[1], tmp_path / "copy"))


def red(verdict: dict) -> list[str]:
    assert verdict["ok"] is all(check["ok"] is True for check in verdict["checks"])
    assert [check["name"] for check in verdict["checks"]] == list(ORDER)
    return [check["name"] for check in verdict["checks"] if check["ok"] is False]


def detail(verdict: dict, name: str) -> str:
    return next(check["detail"] for check in verdict["checks"] if check["name"] == name)


def test_compress_verifies_what_it_wrote_and_keeps_the_verdict_in_the_folder(world):
    model, folder = world
    kept = read_json(folder / "verify.json")
    report = read_json(folder / "karipap.json")
    assert kept["result"]["ok"] and kept["result"] == report["result"]["verify"]
    assert kept["of"]["dense"] == open_checkpoint(model).fingerprint
    assert kept["of"]["tensors"] == open_checkpoint(folder, compressed=True).fingerprint
    assert set(report["sums"]["tensors"]) == set(open_checkpoint(folder, compressed=True).tensors)
    before = (folder / "verify.json").read_bytes()
    verdict = verify(folder)
    assert verdict["ok"] and not red(verdict) and "below 1e-" in detail(verdict, "logits")
    # Computed cores and those read back are the same, so the record is the same too.
    assert (folder / "verify.json").read_bytes() == before


def test_a_model_of_zeros_agrees_with_itself(tmp_path):
    model = make("llama_bf16", tmp_path / "model")
    file = model / "model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(file).items()}, tmp_path / "zeros", {"format": "pt"})
    (tmp_path / "zeros").replace(file)
    verdict = verify(folder_of(model, tmp_path / "out"))
    assert verdict["ok"] and "below 1e-9" in detail(verdict, "logits")


def test_without_the_dense_model_the_formed_weights_stand_in_for_it(folder, monkeypatch):
    report = read_json(folder / "karipap.json")
    keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    verdict = verify(folder)
    assert verdict["ok"] and "its own weights, formed" in detail(verdict, "logits")
    assert "not here" in detail(verdict, "fingerprint")


def test_a_flipped_bit_is_found_whatever_it_is_worth(folder):
    file = folder / "model.safetensors"
    info = next(i for n, i in open_checkpoint(folder, compressed=True).tensors.items() if n.endswith("q_proj.cores.0"))
    data = bytearray(file.read_bytes())
    data[info.start + 10] ^= 1  # the last bit of a bfloat16
    file.write_bytes(data)
    verdict = verify(folder)
    assert red(verdict) == ["unchanged"] and "q_proj.cores.0" in detail(verdict, "unchanged")
    assert not read_json(folder / "verify.json")["result"]["ok"]


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.q_proj.cores.1", "model.norm.weight", "model.layers.1.mlp.up_proj.cores.0.scales"],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_are_found_in_any_tensor(folder, name, value):
    rewrite(folder, lambda tensors: tensors[name].view(-1)[:1].fill_(value))
    verdict = verify(folder)
    assert red(verdict) == ["finite"] and name in detail(verdict, "finite")


@pytest.mark.parametrize("name", ["model.layers.0.mlp.down_proj.cores.1.codes", "model.norm.weight"])
@pytest.mark.parametrize("here", [True, False])
def test_a_missing_tensor_is_named(world, folder, name, here):
    if not here:
        report = read_json(folder / "karipap.json")
        keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    rewrite(folder, lambda tensors: tensors.pop(name))
    verdict = verify(folder)
    assert red(verdict) == ["tensors"] and f"{name} is missing" in detail(verdict, "tensors")


def test_a_tensor_of_another_shape_or_type_and_one_too_many(folder):
    name = "model.layers.0.self_attn.o_proj.cores.0"
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].float()}))
    verdict = verify(folder)
    assert red(verdict) == ["tensors"] and "F32" in detail(verdict, "tensors")
    rewrite(folder, lambda tensors: tensors.update({name: tensors[name].bfloat16()[..., :1].contiguous()}))
    assert red(verify(folder)) == ["tensors"]


def test_one_tensor_too_many(folder):
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.extra": torch.zeros(3)}))
    verdict = verify(folder)
    assert red(verdict) == ["tensors"] and "is in the folder, but" in detail(verdict, "tensors")


def test_a_file_that_can_execute_code_is_named(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    verdict = verify(folder)
    assert red(verdict) == ["safetensors only"] and "pytorch_model.bin" in detail(verdict, "safetensors only")


@pytest.mark.parametrize("name", ["WEIGHTS.BIN", "sub/deeper/model.pt", "tokenization_own.py"])
def test_code_is_found_in_any_folder_and_in_any_letters(folder, name):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    verdict = verify(folder)
    assert "safetensors only" in red(verdict) and name in detail(verdict, "safetensors only")


def test_a_tensor_of_the_dense_model_in_another_type_of_the_same_bytes(folder):
    name = "model.layers.1.input_layernorm.weight"
    rewrite(
        folder, lambda tensors: tensors.update({name: tensors[name].view(torch.float16)})
    )  # its SHA-256 is the same
    verdict = verify(folder)
    assert red(verdict) == ["tensors"] and f"{name} is F16 [48], unlike the dense model's" in detail(verdict, "tensors")


def test_bytes_on_disk_that_are_not_the_plans_figures(folder, monkeypatch):
    """Of a weight, and of the whole: beside the dense model by the plan's ledger, without it by the report."""
    from dataclasses import replace

    from karipap_core.networks.lowrank import LowRank

    with monkeypatch.context() as patched:
        real = LowRank.bytes
        patched.setattr(LowRank, "bytes", lambda self, itemsize: real(self, itemsize) - 1)
        verdict = verify(folder)
        assert red(verdict) == ["tensors"] and "bytes on disk, the plan says" in detail(verdict, "tensors")
        assert "up_proj" in detail(verdict, "tensors")
    with monkeypatch.context() as patched:
        ledger = Plan.ledger
        patched.setattr(Plan, "ledger", lambda self, of: replace(ledger(self, of), bytes=ledger(self, of).bytes + 1))
        verdict = verify(folder)
        assert red(verdict) == ["tensors"] and "the plan says" in detail(verdict, "tensors")
    report = read_json(folder / "karipap.json") | {"source": "/nowhere/at/all"}
    keep_json(folder / "karipap.json", report)
    assert verify(folder)["ok"]
    report["result"]["bytes"] += 2
    keep_json(folder / "karipap.json", report)
    verdict = verify(folder)
    assert red(verdict) == ["tensors"] and f"the plan says {report['result']['bytes']:,}" in detail(verdict, "tensors")


@pytest.mark.parametrize("wrong", ["", "abc", None])
def test_a_plan_that_pins_no_fingerprint(folder, wrong):
    """Whatever the report says, without the dense model too."""
    report = read_json(folder / "karipap.json")
    keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    change_plan(folder, lambda plan: plan["model"].update(fingerprint=wrong, name="/nowhere/at/all"))
    verdict = verify(folder)
    assert "fingerprint" in red(verdict) and "pins no fingerprint" in detail(verdict, "fingerprint")


def change_plan(folder: Path, change) -> None:
    config = read_json(folder / "config.json")
    change(config["quantization_config"]["plan"])
    (folder / "config.json").write_text(json.dumps(config))


def test_another_plan_than_the_folders_own(folder):
    change_plan(folder, lambda plan: plan.update(metric="loss"))
    verdict = verify(folder)
    assert red(verdict) == ["plan"] and "not the one" in detail(verdict, "plan")
    change_plan(
        folder, lambda plan: plan["weights"].update(x={"network": "no such", "out": [2], "in": [2], "chi": [1]})
    )
    assert red(verify(folder)) == ["plan"]


def test_a_changed_setting_or_tokenizer(folder):
    config = read_json(folder / "config.json") | {"rms_norm_eps": 0.5}
    (folder / "config.json").write_text(json.dumps(config))
    verdict = verify(folder)
    assert "unchanged" in red(verdict) and "config.json" in detail(verdict, "unchanged")


def test_a_changed_word_beside_the_plan(folder):
    """The plan has an identity of its own; all else in quantization_config counts to the file."""
    config = read_json(folder / "config.json")
    config["quantization_config"]["runtime"] = "another"
    (folder / "config.json").write_text(json.dumps(config))
    verdict = verify(folder)
    assert red(verdict) == ["unchanged"] and "config.json" in detail(verdict, "unchanged")


def test_a_changed_tokenizer(folder):
    (folder / "tokenizer.json").write_text((folder / "tokenizer.json").read_text() + " ")
    verdict = verify(folder)
    assert red(verdict) == ["unchanged"] and "tokenizer.json" in detail(verdict, "unchanged")


def test_another_dense_model(folder, tmp_path):
    other = make("llama_bf16", tmp_path / "other", seed=1)
    verdict = verify(folder, other)
    assert red(verdict) == ["fingerprint"]
    assert read_json(folder / "verify.json")["of"]["dense"] is None


def test_a_plan_that_was_forced_on_another_model_says_so(world, tmp_path):
    other = make("llama_bf16", tmp_path / "other", seed=1)
    verdict = verify(folder_of(other, tmp_path / "forced", plan_for(world[0]), force=True))
    assert red(verdict) == ["fingerprint"]


def test_a_damaged_header_is_a_red_check_and_no_failure(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-5])
    assert red(verify(folder)) == ["tensors"]
    assert not (folder / "verify.json").exists()


def test_what_transformers_would_load_into_the_wrong_place(folder, monkeypatch):
    """The logits are compared with a model that the folder's own loading has no part in."""
    from karipap_core.layers import linear

    right = linear.TensorNetworkLinear.forward
    monkeypatch.setattr(linear.TensorNetworkLinear, "forward", lambda self, x: 1.01 * right(self, x))
    assert red(verify(folder)) == ["logits"]


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "bert", "qwen3_moe"])
def test_other_architectures(made, tmp_path, name):
    roles = {role: ("lowrank", None) for role in ("qkv", "fc1", "fc2", "q", "up", "down")}
    verdict = verify(folder_of(made(name), tmp_path / "out", plan_for(made(name), roles)))
    assert verdict["ok"], verdict


@pytest.mark.parametrize("tied", ["contract", "untie"])
def test_embeddings(made, tmp_path, tied):
    plan = plan_for(made("llama"), embedding={"tied": tied})
    table_weight = next(w for w in open_checkpoint(made("llama")).weights if w.role == "embed")
    plan.weights[table_weight.name] = NETWORKS["lowrank"].for_shape(*table_weight.shape, 20).to_json()
    verdict = verify(folder_of(made("llama"), tmp_path / "out", plan))
    assert verdict["ok"], verdict
    beside = "the dense model" if tied == "contract" else "its own weights"
    assert beside in detail(verdict, "logits")


def test_the_loader_works_when_it_is_pasted(world):
    text = loader(world[1])
    assert len(text.splitlines()) == 10
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and len(done.stdout) > 10, done.stderr


def test_the_loader_of_a_model_that_reads_no_text_ends_where_it_is_loaded(tmp_path, capsys):
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16)
    ViTForImageClassification(config).save_pretrained(tmp_path)
    exec(loader(tmp_path), {})
    dense = sum(each.numel() for each in load_file(tmp_path / "model.safetensors").values())
    assert capsys.readouterr().out == f"pixel_values {dense:,} parameters\n"


def test_the_verb_prints_the_checks_and_the_loader(world, capsys):
    assert cli.main(["verify", str(world[1]), "--against", str(world[0]), "--progress", "off"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ORDER) and loader(world[1]) in out
    assert cli.main(["verify", str(world[1]), "--json", "--progress", "off"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] and {"name", "ok", "detail"} == document["checks"][0].keys()
    assert "NOT verified" in table(document | {"ok": False})


def test_compress_that_is_not_verified_ends_with_status_1_every_time(world, tmp_path, capsys, monkeypatch):
    plan_for(world[0]).save(tmp_path / "plan.json")
    no = {"ok": False, "checks": [{"name": "logits", "ok": False, "detail": "relative error 2"}]}
    monkeypatch.setattr("karipap_core.compressed.compress.verify", lambda *args, **more: no)
    command = ["compress", str(world[0]), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out")]
    for _ in range(2):  # the second time it is found finished
        assert cli.main([*command, "--json", "--progress", "off"]) == 1
        out, err = capsys.readouterr()
        assert json.loads(out)["verify"] == no
        assert "error: " in err and "out is NOT verified: logits (relative error 2)." in err


def test_a_folder_that_is_none_of_ours(made, capsys):
    with pytest.raises(InputError, match="not a model compressed"):
        verify(made("llama"))
    assert cli.main(["verify", str(made("llama")), "--progress", "off"]) == 2
