"""What lies beside a model goes with it into the compressed, dense and packed folder; what does not is named."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.compressed import archive
from karipap_core.compressed.densify import densify
from karipap_core.compressed.folder import side_files
from karipap_core.compressed.records import other_files, report_of
from karipap_core.compressed.verify import verify
from karipap_core.errors import InputError
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of, plan_for

MODULES = [
    {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
    for number, (path, kind) in enumerate(
        [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"), ("3_Gone", "Dense")]
    )
]
COME = {
    "1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}',
    "image/processor/preprocessor_config.json": b"{}",
    "LICENSE-MIT": b"free",
    "prompts/query.txt": b"query: ",
    "source.spm": b"Marian's",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = make("llama", tmp_path_factory.mktemp("side") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    tokenizer.save_pretrained(folder)
    for name, data in COME.items():
        put(folder / name, data)
    put(folder / "modules.json", json.dumps(MODULES).encode())
    (folder / "2_Dense").mkdir()
    save_file({"linear.weight": torch.eye(3)}, folder / "2_Dense" / "model.safetensors")
    put(folder / "2_Dense" / "pytorch_model.bin", b"the same as pickle")
    save_file({"v_head": torch.eye(2)}, folder / "value_head.safetensors")
    save_file({"model.norm.weight": torch.ones(48)}, folder / "model.fp16.safetensors")  # the model's own again
    return folder


def put(file: Path, data: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)


def below(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_they_come_along_everywhere_and_verify_counts_them(model, tmp_path):
    out = folder_of(model, tmp_path / "out")
    wanted = {name: data for name, data in below(model).items() if name.count("/") and not name.endswith(".bin")}
    wanted |= {
        "value_head.safetensors": (model / "value_head.safetensors").read_bytes(),
        "LICENSE-MIT": b"free",
        "source.spm": b"Marian's",
    }
    assert wanted.keys() > COME.keys() | {"2_Dense/model.safetensors", "additional_chat_templates/tool_use.jinja"}
    assert wanted.items() <= below(out).items() and "model.fp16.safetensors" not in below(out)
    assert AutoTokenizer.from_pretrained(out).chat_template == {"default": "a", "tool_use": "b"}
    assert report_of(out)["result"]["left_out"] == [
        {"name": "3_Gone/", "why": "modules.json names it, and it is not here: fetch the model again"}
    ]
    densify(out, tmp_path / "dense")
    assert wanted.items() <= below(tmp_path / "dense").items()
    packed = {member.name.decode() for member in archive.members(out, "x")}
    assert packed == {f"x/{name}" for name in below(out)}
    assert verify(out)["ok"]
    put(out / "1_Pooling" / "config.json", b"{}")
    put(out / "2_Dense" / "model.safetensors", b"")
    (wrong,) = [check for check in verify(out)["checks"] if not check["ok"]]
    assert wrong["name"] == "unchanged" and wrong["detail"].startswith("1_Pooling/config.json, 2_Dense/model.safetens")
    again = folder_of(model, out)  # is mended, without a trace of what was wrong
    assert wanted.items() <= below(again).items() and verify(again)["ok"]


def test_what_is_no_part_of_the_model_stays_behind_and_is_named(tmp_path, monkeypatch):
    model = make("llama", tmp_path / "model")
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(model / "space"))
    put(model / "space" / "cache" / "a.json", b"{}")
    put(model / "3_Strange" / os.fsdecode(b"no text \xff.json"), b"{}")
    put(tmp_path / "secret.json", b"{}")
    put(model / "1_Pooling" / "own.json", b"{}")
    os.symlink(tmp_path / "secret.json", model / "1_Pooling" / "config.json")
    os.symlink("own.json", model / "1_Pooling" / "inside.json")
    os.symlink(tmp_path / "secret.json", model / "notes.json")
    os.symlink(tmp_path, model / "linked")
    make("llama", model / "checkpoint-5")
    put(model / "onnx" / "config.json", b"{}")
    put(model / "2_Dense" / "pytorch_model.bin", b"pickle")
    put(model / "2_Dense" / "run.py", b"code")
    put(model / "modeling_own.py", b"code")
    put(model / "work" / "plans" / "a.json", b'{"format": "karipap-plan"}')
    put(model / "karipap" / "measured.json", b"{}")
    put(model / ".hidden" / "a.json", b"{}")
    put(model / "deep" / "a" / "b" / "c" / "d.json", b"{}")
    for number in range(101):
        put(model / "many" / f"{number}.txt", b"x")
    put(model / "eval" / "results.csv", b"1")
    put(model / "3_Strange" / "a.xyz", b"1")
    found = side_files(open_checkpoint(model))
    out = "a link that leads out of the folder"
    code = "it could execute code when it is loaded, and is never taken along"
    many = "more than 100 files, or folders more than 3 deep"
    assert found.left_out == {
        "1_Pooling/config.json": out,
        "notes.json": out,
        "linked/": "a link to a folder",
        "checkpoint-5/": "a model of its own",
        "onnx/": "the model in another form",
        "2_Dense/pytorch_model.bin": code,
        "2_Dense/run.py": code,
        "modeling_own.py": code,
        "work/": "work of Karipap's",
        "space/": "work of Karipap's",
        "deep/": many,
        "many/": many,
        "3_Strange/a.xyz": "neither text, JSON nor safetensors",
    }
    assert {name for name in found.files if "/" in name} == {"1_Pooling/own.json", "1_Pooling/inside.json"}
    one = side_files(open_checkpoint(model / "model.safetensors"))  # nobody says that the rest of the folder is its own
    assert not [name for name in (*one.files, *one.left_out) if "/" in name]


def test_a_model_with_an_adapter_from_elsewhere_brings_what_lies_beside_the_model(model, tmp_path):
    opened = open_checkpoint(model)
    merged = Checkpoint("both", tmp_path / "a+b", opened.config, opened.tensors, home=model)
    assert side_files(merged).files == side_files(opened).files


def test_links_into_the_cache_of_the_hub_are_followed(tmp_path):
    real, cache = make("llama", tmp_path / "real"), tmp_path / "models--a--b"
    put(real / "1_Pooling" / "config.json", b"{}")
    (cache / "blobs").mkdir(parents=True)
    for number, (name, data) in enumerate(below(real).items()):
        put(cache / "blobs" / str(number), data)
        link = cache / "snapshots" / "c" / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cache / "blobs" / str(number))
    found = side_files(open_checkpoint(cache / "snapshots" / "c"))
    assert {"1_Pooling/config.json", "tokenizer.json"} <= found.files.keys() and not found.left_out


def test_files_that_are_put_into_a_compressed_folder_later_are_none_of_it(model, tmp_path):
    out = folder_of(model, tmp_path / "out")
    before = other_files(out)
    make("llama", out / "checkpoint-5")  # what a Trainer leaves there
    assert other_files(out) == before and verify(out)["ok"]


def test_the_verb_says_what_stays_behind(model, tmp_path, capsys):
    plan_for(model).save(tmp_path / "plan.json")
    command = ["compress", str(model), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--progress", "off"]) == 0
    assert "Not taken along: 3_Gone/ (modules.json names it" in capsys.readouterr().out


def test_an_adapter_beside_a_model_is_refused_by_everything(tmp_path, capsys):
    model = make("llama", tmp_path / "model")
    plan_for(model).save(tmp_path / "plan.json")
    out = folder_of(model, tmp_path / "out")
    matrix = load_file(model / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    for folder in (model, out):
        save_file({"a.lora_A.weight": matrix[:2].clone()}, folder / "adapter_model.safetensors")
        assert open_checkpoint(folder, compressed=True)  # nobody would put that on the model
        put(folder / "adapter_config.json", b'{"peft_type": "LORA"}')
    for opened in (model, model / "model.safetensors"):
        with pytest.raises(InputError, match=r"an adapter \(adapter_config.json\).*take the adapter's files.*or move"):
            open_checkpoint(opened)
    command = ["compress", str(model), "--plan", str(tmp_path / "plan.json"), "--out", str(tmp_path / "new")]
    assert cli.main([*command, "--progress", "off"]) == 2 and not (tmp_path / "new").exists()
    assert "adapter" in capsys.readouterr().err
    assert next(check["detail"] for check in verify(out)["checks"] if check["ok"] is False).startswith(f"{out} holds a")


def test_a_folder_whose_model_lies_below_says_where(tmp_path):
    make("llama", tmp_path / "0_Transformer")
    with pytest.raises(InputError, match=r"name the folder in it that has a model \(0_Transformer\)"):
        open_checkpoint(tmp_path)
