"""Models that somebody quantized in part, through the whole line: they are the dense models of their opened weights."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.tables import plan as plan_table
from karipap_core.compressed.densify import densify
from karipap_core.deployment.decide import deploy
from karipap_core.deployment.request import Load, Machine
from karipap_core.models.load import load_model
from karipap_core.story import compress, make_plan
from tests.helpers import quantized as by_hand
from tests.helpers.architectures import make

IDS = torch.arange(24).reshape(2, 12) * 7 % 256
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 24], "modules_to_not_convert": ["lm_head"]}
INT4 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}},
}
MODELS = {  # name → (architecture, quantization_config, what of it is packed, writer)
    "llama": ("llama", INT4, ("0.self_attn.k_proj", "1.mlp.down_proj"), lambda *of: by_hand.packed_ints(*of, 4, 16)),
    "mixtral": ("mixtral", FP8, ("experts.1.w1", "1.self_attn.q_proj"), lambda *of: by_hand.fp8_blocks(*of, (16, 24))),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """(quantized folder, dense folder of the same weights) of a model, in bfloat16."""

    def both(name: str):
        root = tmp_path_factory.mktemp(name)
        architecture, settings, packed, write = MODELS[name]
        dense = make(architecture, root / "dense")
        stored = {key: tensor.bfloat16() for key, tensor in load_file(dense / "model.safetensors").items()}
        config = json.loads((dense / "config.json").read_text()) | {"dtype": "bfloat16"}
        opened, count = dict(stored), 0
        for key in list(stored):
            if key.removesuffix(".weight").endswith(packed):
                parts, weight = write(key.removesuffix(".weight"), *stored.pop(key).shape)
                stored, count = stored | parts, count + 1
                opened[key] = weight.bfloat16()
        assert count > 1
        (root / "quantized").mkdir()
        quantized = (root / "quantized", stored, {"quantization_config": settings})
        for folder, tensors, more in ((dense, opened, {}), quantized):
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            (folder / "config.json").write_text(json.dumps(config | more))
        return root / "quantized", dense

    return both


@pytest.mark.parametrize("name", MODELS)
def test_a_model_quantized_in_part_runs_as_the_dense_model_of_its_opened_weights(pair, name):
    quantized, dense = pair(name)
    live, _ = load_model(quantized)
    expected = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32).eval()
    assert {parameter.dtype for parameter in live.parameters()} == {torch.float32}  # the plain remainder too
    with torch.no_grad():
        assert torch.equal(live(IDS).logits, expected(IDS).logits)
    one, other = open_checkpoint(quantized), open_checkpoint(dense)
    assert (one.parameters, one.bytes) == (other.parameters, other.bytes) and one.stored_bytes < one.bytes


def test_its_compressed_folder_is_that_of_the_dense_model_and_says_how_the_files_stored_it(pair, tmp_path):
    quantized, dense = pair("llama")
    (quantized / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')  # of these tensors alone
    found, plans = {}, {}
    for folder in (quantized, dense):
        plans[folder] = make_plan(folder, 0.7, metric="weight", rule="uniform")
        result = compress(folder, plans[folder], tmp_path / folder.name)
        assert result.verified
        config = json.loads((tmp_path / folder.name / "config.json").read_text())
        assert config.pop("quantization_config")["quant_method"] == "karipap"
        densify(tmp_path / folder.name, tmp_path / f"{folder.name} again")
        found[folder] = [
            config,
            load_file(tmp_path / folder.name / "model.safetensors"),
            load_file(tmp_path / f"{folder.name} again" / "model.safetensors"),
        ]
        assert "quantization_config" not in json.loads((tmp_path / f"{folder.name} again" / "config.json").read_text())
    assert not list(tmp_path.glob("*/hf_quant_config.json"))
    one, other = found[quantized], found[dense]
    assert one[0] == other[0]
    for mine, theirs in zip(one[1:], other[1:], strict=True):
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    live = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized", dtype=torch.float32).eval()
    with torch.no_grad():
        assert live(IDS).logits.isfinite().all()
    stored, said = open_checkpoint(quantized).stored_bytes, plans[quantized]
    assert said.model["stored"] == {"form": "int4 (compressed-tensors, g16), opened to bf16", "bytes": stored}
    text = plan_table.table(said.to_json())
    assert "kept is of the opened model" in text and f"{said.predicted['bytes'] / stored:.0%} of the" in text


def test_deploy_leaves_a_model_as_it_is_where_its_files_fit(pair):
    quantized, dense = pair("llama")
    found = deploy(str(quantized), Load(64, 1), Machine(gpu="H100"))
    assert found["answer"] == "as it is" and "Leave it as it is: stored as int4" in found["verdict"]
    assert found["stored"]["bytes"] == open_checkpoint(quantized).stored_bytes
    assert deploy(str(dense), Load(64, 1), Machine(gpu="H100"))["answer"] == "dense"


def test_transformers_own_rules_make_the_same_numbers(tmp_path):
    """fp8 whose blocks divide its shape, MXFP4, Metal's affine form: to the last bit."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    from transformers.integrations.metal_quantization import _affine_dequantize_tensor
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    stored, _ = by_hand.fp8_blocks("model.layers.0.mlp.up_proj", 32, 48, (16, 24))
    packed, _ = by_hand.mxfp4("model.layers.0.mlp.experts.down_proj", 2, 8, 64)
    affine, _ = by_hand.mlx("model.layers.0.mlp.up_proj", 8, 64, 4, 32)
    found = {}
    for name, tensors, settings in (
        ("fp8", stored, FP8),
        ("mxfp4", packed, {"quant_method": "mxfp4"}),
        ("metal", affine, {"quant_method": "metal", "bits": 4, "group_size": 32}),
    ):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
        config = {"model_type": "llama", "dtype": "bfloat16", "quantization_config": settings}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        checkpoint = open_checkpoint(tmp_path / name)
        (found[name],) = (checkpoint.read_tensor(tensor) for tensor in checkpoint.tensors)
    theirs = Fp8Dequantize(None)._dequantize_one(*stored.values(), torch.bfloat16)
    assert torch.equal(found["fp8"], theirs)
    assert torch.equal(found["mxfp4"], convert_moe_packed_tensors(*packed.values(), dtype=torch.bfloat16))
    words, factors, offsets = affine.values()
    theirs = _affine_dequantize_tensor(words.view(torch.int32), factors, offsets, 32, 4)
    assert torch.equal(found["metal"], theirs.bfloat16())


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Float8WeightOnlyConfig"])
def test_a_folder_that_torchao_quantized_opens_to_what_torchao_makes_of_it(pair, tmp_path, kind):
    from torchao import quantization
    from transformers import TorchAoConfig

    _, dense = pair("llama")
    how = TorchAoConfig(getattr(quantization, kind)(**({"version": 2} if kind.startswith("Int8") else {})))
    live = AutoModelForCausalLM.from_pretrained(dense, quantization_config=how, dtype=torch.bfloat16, device_map="cpu")
    live.save_pretrained(tmp_path / "quantized")
    checkpoint = open_checkpoint(tmp_path / "quantized")
    for weight in checkpoint.weights:
        if weight.compressible:
            assert torch.equal(checkpoint.read(weight.name), live.get_submodule(weight.name).weight.dequantize())
    assert checkpoint.parameters == open_checkpoint(dense).parameters
