import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core import InputError
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.roles import NOT_COMPRESSIBLE, place, role_of
from karipap_core.checkpoint.tensorfile import HEADER_CAP, copied, read_header, write_file, write_model
from tests.helpers.architectures import ARCHITECTURES, ENCODERS, make
from tests.helpers.paths import REPOSITORY

BLOCK_ROLES = {
    "gpt2": ["qkv", "o", "fc1", "fc2"],
    "gpt2_bare": ["qkv", "o", "fc1", "fc2"],
    "gpt_neox": ["qkv", "o", "fc1", "fc2"],
    "falcon": ["qkv", "o", "fc1", "fc2"],
    "phi3": ["qkv", "o", "gate_up", "down"],
    "opt": ["q", "k", "v", "o", "fc1", "fc2"],
    "bert": ["q", "k", "v", "o", "fc1", "fc2"],
    "bert_masked": ["q", "k", "v", "o", "fc1", "fc2"],
    "mixtral": ["q", "k", "v", "o", "router"] + ["gate", "up", "down"] * 3,
    "gpt_oss": ["q", "k", "v", "o", "router"] + ["gate_up", "down"] * 3,
}
LLAMA_ROLES = ["q", "k", "v", "o", "gate", "up", "down"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_its_roles_layers_and_shapes(made, name):
    checkpoint = open_checkpoint(made(name))
    assert checkpoint.kind == ("encoder" if name in ENCODERS else "causal")
    for layer in (0, 1):
        roles = [weight.role for weight in checkpoint.weights if weight.layer == layer]
        expected = BLOCK_ROLES.get(name, LLAMA_ROLES)
        if name == "qwen3_moe" and layer == 1:
            expected = ["q", "k", "v", "o", "router"] + ["gate", "up", "down"] * 4
        assert sorted(roles) == sorted(expected)
    assert not any(weight.role == "other" and weight.layer is not None for weight in checkpoint.weights)
    for weight in checkpoint.weights:
        if weight.role in ("q", "k", "v", "qkv", "gate", "up", "gate_up", "fc1"):
            assert weight.shape[1] == 48, weight  # reads the hidden state
        elif weight.role in ("o", "down", "fc2"):
            assert weight.shape[0] == 48, weight  # writes the hidden state
        assert tuple(checkpoint.read(weight.name).shape) == weight.shape
        assert weight.compressible == (weight.role not in NOT_COMPRESSIBLE)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != "bert_masked"])
def test_parameters_are_those_that_transformers_counts(made, name):
    from transformers import AutoModel, AutoModelForCausalLM

    auto = AutoModel if name in ENCODERS else AutoModelForCausalLM
    model = auto.from_pretrained(made(name))
    checkpoint = open_checkpoint(made(name))
    assert checkpoint.parameters == model.num_parameters()
    assert checkpoint.bytes == sum(p.numel() * p.element_size() for p in model.parameters())


def test_tied_head_is_listed_once_and_an_untied_one_is_a_weight(made, tmp_path):
    tied, untied = open_checkpoint(made("llama")), open_checkpoint(made("llama_untied"))
    assert [weight.role for weight in tied.weights if weight.layer is None] == ["embed"]
    assert [weight.role for weight in untied.weights if weight.layer is None] == ["embed", "head"]
    # The head written out although it is tied, as older files have it; and one that the config wrongly calls tied.
    shutil.copytree(made("llama"), tmp_path / "doubled")
    tensors = load_file(tmp_path / "doubled" / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "doubled" / "model.safetensors")
    doubled = open_checkpoint(tmp_path / "doubled")
    assert doubled.parameters == tied.parameters and doubled.bytes == tied.bytes
    assert {"name": "lm_head.weight", "why": "tied to model.embed_tokens.weight, counted once"} in doubled.skipped
    tensors["lm_head.weight"][-1, -1] += 1
    save_file(tensors, tmp_path / "doubled" / "model.safetensors")
    assert open_checkpoint(tmp_path / "doubled").parameters == tied.parameters + 263 * 48


def test_conv1d_is_turned_once(made):
    stored = load_file(made("gpt2") / "model.safetensors")["transformer.h.0.mlp.c_fc.weight"]
    checkpoint = open_checkpoint(made("gpt2"))
    weight = checkpoint.weight("transformer.h.0.mlp.c_fc")
    assert tuple(stored.shape) == (48, 86) and weight.shape == (86, 48) and weight.transposed
    assert torch.equal(checkpoint.read(weight.name), stored.T)
    assert not checkpoint.weight("transformer.wte").transposed


def test_stacked_experts_are_slices_with_their_orientation(made):
    stored = load_file(made("gpt_oss") / "model.safetensors")["model.layers.1.mlp.experts.down_proj"]
    checkpoint = open_checkpoint(made("gpt_oss"))
    weight = checkpoint.weight("model.layers.1.mlp.experts.down_proj.2")
    assert tuple(stored.shape) == (3, 40, 48)  # (experts, in, out)
    assert (weight.shape, weight.index, weight.expert, weight.layer) == ((48, 40), 2, 2, 1)
    assert torch.equal(checkpoint.read(weight.name), stored[2].T)


def test_weights_are_listed_in_reading_order_however_they_are_stored(made, tmp_path):
    names = [weight.name for weight in open_checkpoint(made("mixtral")).weights]
    assert names[0] == "model.embed_tokens" and names[-1] == "lm_head"
    assert names[1:6] == [f"model.layers.0.self_attn.{role}_proj" for role in "qkvo"] + [
        "model.layers.0.block_sparse_moe.gate"
    ]
    assert names[6:9] == [f"model.layers.0.block_sparse_moe.experts.0.{part}" for part in ("w1", "w3", "w2")]
    sharded = open_checkpoint(make("mixtral", tmp_path / "sharded", max_shard="30KB"))
    assert [weight.name for weight in sharded.weights] == names


def test_fingerprint_is_blind_to_sharding_and_sees_every_byte(tmp_path, workspace_folder):
    whole = open_checkpoint(make("llama", tmp_path / "whole"))
    sharded = open_checkpoint(make("llama", tmp_path / "sharded", max_shard="30KB"))
    assert len({info.file for info in sharded.tensors.values()}) > 2
    assert whole.fingerprint == sharded.fingerprint and len(whole.fingerprint) == 64
    tensors = load_file(tmp_path / "whole" / "model.safetensors")
    tensors["model.norm.weight"][5] += 1e-3
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    changed = open_checkpoint(tmp_path / "whole")
    assert changed.fingerprint != whole.fingerprint
    tensors["model.norm2.weight"] = tensors.pop("model.norm.weight")
    save_file(tensors, tmp_path / "whole" / "model.safetensors")
    assert open_checkpoint(tmp_path / "whole").fingerprint not in (whole.fingerprint, changed.fingerprint)
    assert len(list((workspace_folder / "cache" / "fingerprints").iterdir())) == 4


def test_fingerprint_is_kept_and_survives_a_workspace_that_cannot_be_written(made, monkeypatch, tmp_path):
    known = open_checkpoint(made("llama")).fingerprint
    monkeypatch.setattr("karipap_core.checkpoint.model.chunks", lambda info: pytest.fail("hashed twice"))
    assert open_checkpoint(made("llama")).fingerprint == known
    monkeypatch.undo()
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(tmp_path / "file"))
    assert open_checkpoint(made("llama")).fingerprint == known


def test_opening_imports_no_torch(made, run_python):
    assert (
        run_python(
            "import sys; from karipap_core import open_checkpoint;"
            f"checkpoint = open_checkpoint({str(made('llama'))!r}); checkpoint.fingerprint;"
            "print(len(checkpoint.weights), 'torch' in sys.modules, 'transformers' in sys.modules)"
        )
        == "15 False False"
    )


@pytest.fixture
def run_python(tmp_path):
    """Runs a line of Python in a fresh interpreter and returns what it prints."""
    import os
    import subprocess
    import sys

    def run(code: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_one_file_and_no_config(made, tmp_path):
    file = made("gpt2_bare") / "model.safetensors"
    assert open_checkpoint(file).kind == "causal"
    shutil.copy(file, tmp_path / "weights.safetensors")
    alone = open_checkpoint(tmp_path / "weights.safetensors")
    assert alone.name == "weights" and alone.kind is None and alone.config == {}
    # Without a config the shapes tell that the linear maps are stored (in, out).
    assert alone.weight("h.1.attn.c_attn").shape == (144, 48)
    assert alone.weight("h.1.mlp.c_proj").shape == (48, 86)


def test_nan_and_infinity_name_the_weight(tmp_path):
    folder = make("llama", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    for value in (float("nan"), float("inf")):
        tensors["model.layers.1.mlp.up_proj.weight"][3, 3] = value
        save_file(tensors, folder / "model.safetensors")
        checkpoint = open_checkpoint(folder)
        checkpoint.read("model.layers.0.mlp.up_proj")
        with pytest.raises(InputError, match=r"model\.layers\.1\.mlp\.up_proj .*NaN"):
            checkpoint.read("model.layers.1.mlp.up_proj")


def test_what_is_no_weight_is_skipped_with_a_reason(tmp_path):
    tensors = {
        "model.layers.0.mlp.up_proj.weight": torch.ones(4, 4).to(torch.float8_e4m3fn),
        "model.layers.0.mlp.gate_proj.qweight": torch.ones(4, 4, dtype=torch.int32),
        "model.layers.0.conv.weight": torch.ones(4, 4, 3),
        "model.layers.0.norm.weight": torch.ones(4),
        "model.layers.0.mlp.down_proj.bias": torch.ones(4),
        "model.layers.0.empty.weight": torch.ones(0, 4),
        "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4),
        "model.rotary_emb.inv_freq": torch.ones(2),
        "strange.thing.weight": torch.ones(3, 5),
        "model.layers.7.strange.weight": torch.ones(3, 5),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    found = [(weight.name, weight.layer, weight.role, weight.compressible) for weight in checkpoint.weights]
    assert found == [("model.layers.7.strange", 7, "other", True), ("strange.thing", None, "other", True)]
    why = {entry["name"]: entry["why"] for entry in checkpoint.skipped}
    assert set(why) == set(tensors) - {"strange.thing.weight", "model.layers.7.strange.weight"}
    assert (
        "F8_E4M3" in why["model.layers.0.mlp.up_proj.weight"] and "I32" in why["model.layers.0.mlp.gate_proj.qweight"]
    )
    assert "3-dimensional" in why["model.layers.0.conv.weight"] and "buffer" in why["model.layers.0.attn.bias"]
    assert all(why.values())


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("transformer.layer.3.ffn.lin1", 3, "fc1"),
        ("transformer.layer.3.attention.out_lin", 3, "o"),
        ("model.layers.12.self_attn.kv_a_proj_with_mqa", 12, "kv_a"),
        ("model.layers.12.self_attn.q_b_proj", 12, "q_b"),
        ("model.layers.12.mlp.shared_experts.down_proj", 12, "shared_down"),
        ("model.layers.2.mlp.shared_expert_gate", 2, "router"),
        ("encoder.block.1.layer.0.SelfAttention.q", 1, "q"),
        ("encoder.block.1.layer.0.SelfAttention.relative_attention_bias", 1, "position"),
        ("deberta.encoder.rel_embeddings", None, "position"),
        ("perceiver.encoder.self_attends.3.mlp.dense1", 3, "fc1"),
        ("transformer.h.5.attn.attention.out_proj", 5, "o"),
        ("transformer.h.5.mlp.fc_in", 5, "fc1"),
        ("model.layers.4.mlp.c_proj", 4, "fc2"),
        ("layers.3.attn.Wqkv", 3, "qkv"),
        ("layers.3.mlp.Wo", 3, "fc2"),
        ("model.layers.0.self_attn.dense", 0, "o"),
        ("bert.encoder.layer.0.attention.output.dense", 0, "o"),
        ("bert.encoder.layer.0.output.dense", 0, "fc2"),
        ("bert.embeddings.token_type_embeddings", None, "token_type"),
        ("classifier", None, "classifier"),
        ("output", None, "head"),
    ],
)
def test_names_of_other_families(name, layer, role):
    assert (place(name)[0], role_of(name, mixture=True)) == (layer, role)


def test_a_gate_is_a_router_only_in_a_mixture():
    assert role_of("model.layers.0.mlp.gate", mixture=True) == "router"
    assert role_of("model.layers.0.mlp.gate", mixture=False) == "gate"


def test_refuses_what_it_must_not_read(made, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x02}")
    with pytest.raises(InputError, match="pickled weights"):
        open_checkpoint(tmp_path)
    with pytest.raises(InputError, match="pickle, which can execute code"):
        open_checkpoint(tmp_path / "pytorch_model.bin")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"model\.gguf is cut short"):
        open_checkpoint(tmp_path / "model.gguf")
    shutil.copytree(made("llama"), tmp_path / "compressed")
    config = json.loads((tmp_path / "compressed" / "config.json").read_text())
    (tmp_path / "compressed" / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "karipap"}})
    )
    with pytest.raises(InputError, match="compressed by Karipap"):
        open_checkpoint(tmp_path / "compressed")
    (tmp_path / "compressed" / "config.json").write_text("[1")
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        open_checkpoint(tmp_path / "compressed")


def test_refuses_indexes_that_lie(tmp_path):
    folder = make("llama", tmp_path / "model", max_shard="30KB")
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    first = sorted(document["weight_map"])[0]
    for file, complaint in (
        ("../model.safetensors", "no .safetensors file beside it"),
        ("absent.safetensors", "lacks absent"),
    ):
        changed = {"weight_map": document["weight_map"] | {first: file}}
        index.write_text(json.dumps(changed))
        with pytest.raises(InputError, match=complaint):
            open_checkpoint(folder)
    index.write_text(
        json.dumps({"weight_map": document["weight_map"] | {"ghost.weight": document["weight_map"][first]}})
    )
    with pytest.raises(InputError, match=r"lacks tensor ghost\.weight"):
        open_checkpoint(folder)


def header_file(path: Path, header: dict | bytes, data: bytes = b"", length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "complaint"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"1234", "accounts for"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}}, b"1" * 12, "gap"),
        (
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
            b"1" * 12,
            "overlap",
        ),
        ({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}}, b"1" * 8, "not what F32"),
        ({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}}, b"1" * 8, "malformed"),
        ({"a": {"dtype": "F32", "shape": "2", "data_offsets": [0, 8]}}, b"1" * 8, "malformed"),
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, b"1" * 8, "malformed"),
        ({"a": {"dtype": "F32", "shape": [2]}}, b"1" * 8, "no dtype, shape and data_offsets"),
        ({"a": 7}, b"", "no dtype, shape and data_offsets"),
        (b"[]", b"", "not a table"),
        (b"{" * 9, b"", "header of .* is not valid JSON"),
        (b"\xff\xfe", b"", "no readable"),
    ],
)
def test_headers_are_distrusted(tmp_path, header, data, complaint):
    with pytest.raises(InputError, match=complaint):
        read_header(header_file(tmp_path / "model.safetensors", header, data))


def test_headers_that_claim_too_much(tmp_path):
    with pytest.raises(InputError, match="cut short"):
        read_header(header_file(tmp_path / "a.safetensors", {}, length=1 << 40))
    (tmp_path / "b.safetensors").write_bytes(b"123")
    with pytest.raises(InputError, match="cut short"):
        read_header(tmp_path / "b.safetensors")
    huge = header_file(tmp_path / "c.safetensors", {}, length=HEADER_CAP + 1)
    with huge.open("r+b") as file:
        file.truncate(HEADER_CAP + 100)  # sparse: takes no room on disk
    with pytest.raises(InputError, match="header of"):
        read_header(huge)


def test_written_files_are_what_the_library_reads(tmp_path):
    tensors = {"a": torch.randn(3, 5), "b.c": torch.arange(7), "d": torch.ones(2, 2).bfloat16(), "e": torch.ones(())}
    save_file(tensors, tmp_path / "source.safetensors")
    header = read_header(tmp_path / "source.safetensors")
    pieces = [copied(name, info) for name, info in header.items()]
    write_file(tmp_path / "copy.safetensors", pieces)
    back = load_file(tmp_path / "copy.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)
    write_file(tmp_path / "again.safetensors", pieces[::-1])
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "copy.safetensors").read_bytes()
    write_model(tmp_path, pieces, shard_bytes=60)
    sharded = open_checkpoint(tmp_path)
    assert len({info.file for info in sharded.tensors.values()}) > 1
    assert all(torch.equal(sharded.read_tensor(name), tensors[name]) for name in tensors)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub cache, and no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_hub_models_come_from_the_cache_when_offline(made, hub):
    with pytest.raises(InputError, match="someone/tiny is neither a path here nor in the hub's cache"):
        open_checkpoint("someone/tiny")
    repository, commit = hub / "models--someone--tiny", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(made("qwen3"), repository / "snapshots" / commit)
    checkpoint = open_checkpoint("someone/tiny")
    assert checkpoint.name == "someone/tiny" and len(checkpoint.weights) == 15
    assert checkpoint.fingerprint == open_checkpoint(made("qwen3")).fingerprint


def test_hub_download_takes_no_pickles_and_no_copies():
    from karipap_core.checkpoint import hub

    files = ["model.safetensors", "config.json", "tokenizer.model", "pytorch_model.bin", "onnx/model.safetensors"]
    files += ["consolidated.00.safetensors", "original/params.json", "modeling.py"]
    assert hub.wanted(dict.fromkeys(files, 1)) == ["model.safetensors", "config.json", "tokenizer.model"]


def test_a_real_model(stories):
    checkpoint = open_checkpoint(stories)
    assert (checkpoint.parameters, checkpoint.block_parameters, checkpoint.kind) == (260032, 226560, "causal")
    assert checkpoint.fingerprint == "89d99544342e2571b81588a9845b69d35e35e87f9be3b025672f4f418c295cee"
