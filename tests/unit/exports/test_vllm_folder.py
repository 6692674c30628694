"""What vLLM gets: 4 bits alone, layers that it fuses in one scheme, sides that 32 divides."""

import json

import pytest
import torch
from safetensors.torch import load_file

from karipap_core.compressed.densify import DenseForm
from karipap_core.exports import vllm_folder
from karipap_core.exports.export import export, plan_of
from karipap_core.exports.exporter import Wanted, exporter_named
from karipap_core.exports.safetensors_folder import Form
from karipap_core.exports.source import Source
from karipap_core.exports.vllm_folder import largest_rank
from tests.helpers.architectures import make
from tests.helpers.plans import in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")
SIDES = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make("llama_untied", tmp_path_factory.mktemp("vllm") / "model", **SIDES)


def stored(folder) -> dict[str, dict]:
    return {line["weight"]: line for line in plan_of(folder, "vllm", "out")["weights"]}


def test_codes_of_fewer_bits_are_the_same_values_in_four(model, tmp_path):
    folder = in_turn(model, tmp_path / "folder", "int3g32", "int2", "int4g32")
    document = export(folder, "vllm", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert {group["weights"]["num_bits"] for group in config["config_groups"].values()} == {4}
    tensors, form = load_file(tmp_path / "out" / "model.safetensors"), DenseForm(folder)
    assert len(document["weights"]) == 14
    for line in document["weights"]:
        name = line["weight"]
        words, scales = tensors[f"{name}.weight_packed"], tensors[f"{name}.weight_scale"]
        zeros = tensors[f"{name}.weight_zero_point"]
        codes = torch.stack([words >> 4 * place & 15 for place in range(8)], -1).flatten(1)
        zeros = torch.stack([zeros >> 4 * place & 15 for place in range(8)], 1).flatten(0, 1)
        width = codes.shape[1] // scales.shape[1]
        values = (codes - zeros.repeat_interleave(width, 1)) * scales.double().repeat_interleave(width, 1)
        assert torch.equal(values, form.exact(name)) and line["exact"]
        assert ("the same values in 4" in line["why"]) == (not line["says"].endswith("int4g32"))


def test_what_is_fused_is_in_one_scheme_or_dense(model, tmp_path):
    lines = stored(in_turn(model, tmp_path / "a", "int4g32", "int4g64", "int4"))
    for block in ("model.layers.0", "model.layers.1"):
        for members in (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")):
            assert len({lines[f"{block}.{name}"]["stored"] for name in members}) == 1
    lines = stored(
        in_turn(model, tmp_path / "b", "int8", "int4g32", "int4g32", "int4g32", "int4g32", "int4g32", "int4g32")
    )
    first = {name: line for name, line in lines.items() if "layers.0" in name}
    dense = {name.rpartition(".")[2] for name, line in first.items() if line["stored"].startswith("dense")}
    assert dense in ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"o_proj"}, {"down_proj"})
    assert {line["why"] for line in first.values()} <= {
        "",
        "its kernels for processors hold 4 bits, not 8",
        "vLLM fuses q, k and v, and not all of them fit",
        "vLLM fuses gate and up, and not all of them fit",
    }


def test_a_dense_weight_of_the_plan_makes_its_fellows_dense(model, tmp_path):
    lines = stored(in_turn(model, tmp_path / "a", "-", *["int4g32"] * 6))
    kept = {name for name in lines if lines[name]["stored"].startswith("dense")}
    assert kept and all("vLLM fuses" in lines[name]["why"] for name in kept)


def test_sides_that_32_does_not_divide_stay_dense(tmp_path):
    folder = in_turn(make("llama_untied", tmp_path / "model"), tmp_path / "a", "int4g16")  # 48 wide
    assert {line["stored"] for line in stored(folder).values()} == {"dense, float32"}
    assert "32 divides" in stored(folder)["model.layers.0.self_attn.q_proj"]["why"]


def test_the_dtype_keeps_scales_where_the_engine_takes_it(model, tmp_path):
    """vLLM refuses float16 for Gemma 2: scales are rounded to bfloat16 there, and that is said."""
    folder = in_turn(model, tmp_path / "a", "int4g32")
    document, exporter = plan_of(folder, "vllm", "out"), exporter_named("vllm")
    assert exporter.dtype(Source(folder), Wanted()) == "float16" and "--dtype float16" in document["commands"]
    assert all(line["error"] < 1e-6 for line in document["weights"])
    assert exporter.dtype(Source(folder, plain=True), Wanted()) == "float32"
    assert "--dtype" not in plan_of(folder, "vllm", "out", plain=True)["commands"]
    sides = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
    gemma = in_turn(make("gemma2", tmp_path / "gemma", **sides), tmp_path / "b", "int4g32")
    document = plan_of(gemma, "vllm", "out")
    assert exporter.dtype(Source(gemma), Wanted()) == "bfloat16" and "--dtype bfloat16" in document["commands"]
    packed = [line["error"] for line in document["weights"] if line["stored"].startswith("4-bit")]
    assert packed and all(1e-4 < error < 4e-3 for error in packed)
    assert any("bfloat16 alone" in note for note in document["notes"])


def test_what_vllm_does_not_list_is_said_before_anything_is_written(model, tmp_path, monkeypatch):
    folder = in_turn(model, tmp_path / "a", "int8")
    assert not any("does not list" in note for note in plan_of(folder, "vllm", "out")["notes"])
    monkeypatch.setattr(vllm_folder, "served", lambda: {"source": "vLLM 0.1, a file", "architectures": ["Another"]})
    said = "vLLM 0.1 does not list LlamaForCausalLM among the models that it serves."
    assert said in plan_of(folder, "vllm", "out")["notes"]


def test_adapters_and_the_rank_that_the_command_names(model, tmp_path):
    assert [largest_rank({"a": Form(rank=rank)}) for rank in (0, 1, 8, 9, 300, 512)] == [0, 8, 8, 16, 320, 512]
    folder = in_turn(model, tmp_path / "folder", "qlr int3 3", "qlr int4 9")
    document = export(folder, "vllm", tmp_path / "out")
    assert "--max-lora-rank 16 --lora-modules karipap=out/adapter" in document["commands"]
    assert "VLLM_CPU_INT4_W4A8=0" in document["commands"] and str(tmp_path) not in document["commands"]
    assert "--dtype float16" in document["commands"]
    document = export(folder, "vllm", tmp_path / "padded", Wanted(one_rank=True))
    tensors = load_file(tmp_path / "padded" / "adapter" / "adapter_model.safetensors")
    assert {16} == {each.shape[0] for name, each in tensors.items() if "lora_A" in name}
    config = json.loads((tmp_path / "padded" / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 16 and not config["rank_pattern"]
    plain = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    for name, each in plain.items():
        padded = tensors[name]
        assert torch.equal(padded[tuple(slice(size) for size in each.shape)], each)
        assert padded.count_nonzero() == each.count_nonzero()
