"""GGUF files: opened as the checkpoints that they were made from, and as transformers opens them."""

import shutil

import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from karipap_core.checkpoint.gguf.header import read_header
from karipap_core.checkpoint.gguf.values import dtype_of, read_values
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import TensorInfo
from karipap_core.cli.frame import main
from karipap_core.errors import InputError
from karipap_core.models.empty import quiet
from karipap_core.models.load import load_model
from tests.helpers import gguf_files


@pytest.mark.parametrize("name", gguf_files.MADE)
def test_a_file_opens_as_the_checkpoint_that_it_was_made_from(tmp_path, name):
    folder = gguf_files.make(name, tmp_path / "made")
    dense = open_checkpoint(folder)
    opened = open_checkpoint(gguf_files.write(folder, tmp_path / "made.gguf"))
    assert opened.form.words == "F32 (GGUF)" and opened.parameters == dense.parameters
    assert opened.tensors.keys() == dense.tensors.keys()
    for tensor, info in dense.tensors.items():
        value = opened.read_tensor(tensor)
        assert value.shape == info.shape == opened.tensors[tensor].shape
        assert torch.allclose(value, dense.read_tensor(tensor), rtol=0, atol=2e-7), tensor
    for weight in dense.weights[:: max(len(dense.weights) // 4, 1)]:  # among them slices of stacks
        assert torch.equal(opened.read(weight.name), dense.read(weight.name))
    ids = torch.arange(40)[None]
    (live, tokenizer), (truth, reference) = load_model(opened), load_model(dense)
    with torch.no_grad():
        assert torch.allclose(live(ids).logits, truth(ids).logits, atol=2e-5)
    assert tokenizer("Héllo 1<s>").input_ids == reference("Héllo 1<s>").input_ids
    if name in gguf_files.AS_TRANSFORMERS:
        with quiet():
            auto = transformers.AutoModelForCausalLM
            theirs = auto.from_pretrained(tmp_path, gguf_file="made.gguf", dtype=torch.float32).state_dict()
        assert all(torch.allclose(value, theirs[tensor], 1e-6, 0) for tensor, value in live.state_dict().items())


KINDS = [word for word in GGMLQuantizationType if word.name.startswith(("Q", "IQ", "TQ", "MX", "NV"))]
NOT_UNPACKED = {"Q8_1", "Q8_K", "Q1_0"}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_blocks_of_every_type_are_unpacked_as_transformers_unpacks_them(tmp_path, kind):
    block, size = GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (48, size), np.uint8)
    (tmp_path / "blocks").write_bytes(b"before" + blocks.tobytes())
    info = TensorInfo(tmp_path / "blocks", kind.name, (16, 3 * block), 6, blocks.size)
    if kind.name in NOT_UNPACKED:
        with pytest.raises(InputError, match=f"type {kind.name}, which the gguf package does not unpack"):
            dtype_of(info)
        return
    values = read_values(info)
    assert dtype_of(info) == "BF16" and values.shape == info.shape and values.dtype == torch.bfloat16
    dequant = pytest.importorskip("transformers.integrations.gguf.dequant")  # not in the lowest version
    if kind in dequant.GGML_BLOCK:
        theirs = dequant.dequantize(torch.from_numpy(blocks).flatten(), kind).to(torch.bfloat16).reshape(info.shape)
        assert torch.allclose(values, theirs, rtol=2**-8, atol=0, equal_nan=True)  # sums in another order


def test_a_quantized_file_has_the_sizes_of_both_forms(tmp_path):
    folder = gguf_files.make("llama", tmp_path / "made")
    file = gguf_files.write(folder, tmp_path / "made-q8.gguf", "Q8_0", {"general.file_type": 7})
    opened, dense = open_checkpoint(file), open_checkpoint(folder)
    assert (opened.name, opened.form.words, opened.config["dtype"]) == ("made-q8", "Q8_0 (GGUF)", "bfloat16")
    assert opened.parameters == dense.parameters
    assert opened.stored_bytes == sum(info.size for info in read_header(file).tensors.values()) < dense.bytes / 3
    assert {opened.tensors[weight.tensor].dtype for weight in opened.weights} == {"BF16"}
    for weight in opened.weights:
        error = (opened.read(weight.name).float() - dense.read(weight.name)).abs().max()
        assert 0 < error < 0.01 * dense.read(weight.name).abs().max()


def test_a_file_is_planned_and_compressed_into_an_ordinary_folder(tmp_path, capsys):
    folder = gguf_files.make("llama", tmp_path / "made")
    file = gguf_files.write(folder, tmp_path / "made.gguf", "Q8_0")
    plan, out = tmp_path / "plan.json", tmp_path / "compressed"
    asked = ["--metric", "weight", "--rule", "uniform", "--budget", "0.8", "--out", str(plan)]
    assert main(["plan", str(file), *asked]) == 0
    assert main(["compress", str(file), "--plan", str(plan), "--out", str(out)]) == 0, capsys.readouterr()
    assert main(["verify", str(out)]) == 0
    assert sorted(out.glob("*.gguf")) == [] and (out / "tokenizer.json").is_file()
    live = transformers.AutoModelForCausalLM.from_pretrained(out)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert live.config.rope_parameters == config.rope_parameters and live(torch.arange(9)[None]).logits.isfinite().all()


def test_a_file_is_the_same_model_elsewhere_and_in_parts(tmp_path, monkeypatch):
    folder = gguf_files.make("llama", tmp_path / "made")
    file = gguf_files.write(folder, tmp_path / "one" / "made.gguf")
    known = open_checkpoint(file)
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(tmp_path / "other"))
    shutil.copytree(file.parent, tmp_path / "two")
    moved = open_checkpoint(tmp_path / "two")
    shutil.copy(file, tmp_path / "sha256-0123")  # as Ollama keeps it
    assert open_checkpoint(tmp_path / "sha256-0123").identity == known.identity
    assert (moved.name, moved.identity) == ("two", known.identity)
    parts = gguf_files.write(folder, tmp_path / "parts" / "made.gguf", split=9).parent
    assert len(list(parts.iterdir())) == 3
    split = open_checkpoint(parts / "made-00002-of-00003.gguf")
    assert split.key == open_checkpoint(parts).key == known.key
    (parts / "made-00001-of-00003.gguf").unlink()
    with pytest.raises(InputError, match=r"lacks made-00001-of-00003\.gguf: fetch it again"):
        open_checkpoint(parts)


def test_what_beside_the_tensors_decides_tells_files_apart(tmp_path):
    folder = gguf_files.make("llama", tmp_path / "made")
    known = open_checkpoint(gguf_files.write(folder, tmp_path / "one.gguf"))
    turned = open_checkpoint(gguf_files.write(folder, tmp_path / "two.gguf", entries={"llama.rope.freq_base": 1e4}))
    heads = open_checkpoint(gguf_files.write(folder, tmp_path / "three.gguf", entries=FEWER_HEADS))
    assert known.fingerprint == turned.fingerprint != heads.fingerprint  # rows in another order are other weights
    assert known.identity != turned.identity


FEWER_HEADS = {"llama.attention.head_count": 2, "llama.attention.head_count_kv": 1}
FEWER_HEADS |= dict.fromkeys(
    ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"), 32
)
TOLD = {  # other words for the same
    "no experts": {"llama.expert_count": 0, "llama.expert_used_count": 0},
    "no scaling": {"llama.rope.scale_linear": 1.0},
    "no rule": {"llama.rope.scaling.type": "none"},
}


@pytest.mark.parametrize("name", TOLD)
def test_what_says_nothing_changes_nothing(tmp_path, name):
    folder = gguf_files.make("llama", tmp_path / "made")
    opened = open_checkpoint(gguf_files.write(folder, tmp_path / "made.gguf", entries=TOLD[name]))
    scaling = opened.config.pop("rope_scaling", {"factor": 1.0})
    assert scaling["factor"] == 1.0
    assert opened.config == open_checkpoint(gguf_files.write(folder, tmp_path / "plain.gguf")).config


REFUSED = {
    "qwen35x": ({"general.architecture": "qwen35x"}, "is of the architecture qwen35x, which is not opened from GGUF"),
    "a projector": ({"general.type": "mmproj"}, r"is a GGUF file of another kind \(mmproj\), not a model"),
    "an adapter": ({"general.type": "adapter"}, r"is a GGUF file of another kind \(adapter\), not a model"),
    "an unknown entry": ({"llama.attention.new": 3}, r"has the entry llama\.attention\.new \(3\), which is not known"),
    "an unknown rule": ({"llama.rope.scaling.type": "own"}, "scales rotary frequencies by the rule own"),
    "layers that differ": ({"llama.attention.head_count_kv": [2, 4]}, "head_count_kv differs from layer to layer"),
    "too many heads": ({"llama.attention.head_count": 5}, "does not fit its head counts"),
    "no heads": ({"llama.attention.head_count": 0}, r"says 0 for llama\.attention\.head_count, a whole number above 0"),
    "other values": ({"llama.attention.value_length": 8}, "has heads of 16 with values of 8, of which 16 are rotated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_lost_is_refused(tmp_path, name):
    entries, said = REFUSED[name]
    folder = gguf_files.make("llama", tmp_path / "made")
    with pytest.raises(InputError, match=said):
        open_checkpoint(gguf_files.write(folder, tmp_path / "made.gguf", entries=entries))


def test_of_several_files_one_has_to_be_named(tmp_path):
    file = gguf_files.write(gguf_files.make("llama", tmp_path / "made"), tmp_path / "files" / "a.gguf")
    (file.parent / "mmproj-a.gguf").write_bytes(b"no part of it")
    assert open_checkpoint(file.parent).parameters
    shutil.copy(file, file.with_name("b.gguf"))
    with pytest.raises(InputError, match=r"files holds 2 GGUF models \(a\.gguf, b\.gguf\): name one of them"):
        open_checkpoint(file.parent)
