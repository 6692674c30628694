"""Quantized checkpoints opened: every weight as its published layout says, written by hand (tests/helpers/quantized.py)
without the readers."""

import json

import pytest
import torch
from safetensors.torch import save_file

from karipap_core import InputError
from karipap_core.checkpoint.open import open_checkpoint
from tests.helpers import quantized as by_hand

PLAIN = {"model.norm.weight": torch.ones(8, dtype=torch.bfloat16)}
Q, K = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"


def folder(path, stored: dict, settings: dict, dtype: str = "bfloat16", **config):
    path.mkdir(exist_ok=True)
    save_file(stored | PLAIN, path / "model.safetensors", metadata={"format": "pt"})
    fields = {"model_type": "llama", "dtype": dtype, "quantization_config": settings} | config
    (path / "config.json").write_text(json.dumps(fields))
    return path


def holds(checkpoint, dense: dict, dtype: torch.dtype = torch.bfloat16) -> None:
    """The checkpoint has these weights to the last bit, besides what was plain, and nothing else."""
    assert checkpoint.tensors.keys() == dense.keys() | PLAIN.keys()
    for name, expected in dense.items():
        found = checkpoint.read_tensor(name)
        assert found.dtype == dtype and found.shape == expected.shape == checkpoint.tensors[name].shape
        # Two roundings (to float32, then to dtype) may differ from one by the last bit of float32 at most.
        torch.testing.assert_close(found, expected.float().to(dtype), rtol=0, atol=0)
    assert torch.equal(checkpoint.read_tensor("model.norm.weight"), PLAIN["model.norm.weight"])
    assert checkpoint.parameters == sum(tensor.numel() for tensor in (dense | PLAIN).values())
    assert checkpoint.bytes == sum(tensor.numel() for tensor in dense.values()) * dtype.itemsize + 16
    assert "quantization_config" not in checkpoint.config


FP8 = {"quant_method": "fp8"}
LAYOUTS = {  # name → (quantization_config, writer of one weight, words)
    "fp8 blocks": (FP8, lambda name: by_hand.fp8_blocks(name, 150, 130, (128, 128)), "fp8 (128 × 128 blocks)"),
    "fp8 small blocks": (
        FP8 | {"weight_block_size": [16, 24]},
        lambda name: by_hand.fp8_blocks(name, 40, 60, (16, 24)),
        "fp8 (16 × 24 blocks)",
    ),
    "mxfp8": (
        {"quant_method": "mxfp8"},
        lambda name: by_hand.fp8_blocks(name, 6, 64, (1, 32)),
        "fp8 (1 × 32 blocks)",
    ),
    "fp8 per row": (
        {"quant_method": "fbgemm_fp8"},
        lambda name: by_hand.fp8_scaled(name, 6, 10, (6, 1)),
        "fp8 (per channel)",
    ),
    "fp8 per tensor": (
        FP8 | {"weight_block_size": None},
        lambda name: by_hand.fp8_scaled(name, 6, 10, ()),
        "fp8 (per tensor)",
    ),
    "gptq": (
        {"quant_method": "gptq", "bits": 4, "group_size": 16},
        lambda name: by_hand.gptq(name, 24, 64, 4, 16),
        "int4 (GPTQ, g16)",
    ),
    "gptq 3 bits": (
        {"quant_method": "gptq", "bits": 3, "group_size": 32, "desc_act": True},
        lambda name: by_hand.gptq(name, 32, 64, 3, 32, shuffled=True),
        "int3 (GPTQ, g32)",
    ),
    "gptq 2 bits, second version": (
        {"quant_method": "gptq", "bits": 2, "group_size": -1, "checkpoint_format": "gptq_v2"},
        lambda name: by_hand.gptq(name, 16, 48, 2, -1, version=2),
        "int2 (GPTQ, per channel)",
    ),
    "gptq 8 bits, a part of a group": (
        {"quant_method": "gptq", "bits": 8, "group_size": 32},
        lambda name: by_hand.gptq(name, 8, 40, 8, 32),
        "int8 (GPTQ, g32)",
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_opens_to_the_weights_that_it_stands_for(tmp_path, layout):
    settings, write, words = LAYOUTS[layout]
    stored, dense = zip(*(write(name) for name in (Q, K)), strict=True)
    model = folder(tmp_path / "m", stored[0] | stored[1], settings, "float32")
    checkpoint = open_checkpoint(model)
    holds(checkpoint, {f"{Q}.weight": dense[0], f"{K}.weight": dense[1]}, torch.float32)
    assert checkpoint.form.words == words
    assert checkpoint.stored_bytes == sum(t.nbytes for t in (stored[0] | stored[1] | PLAIN).values())


def test_experts_in_mxfp4_open_in_the_order_that_the_model_computes_in_whole_or_one_at_a_time(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, dense = by_hand.mxfp4(name, 3, 8, 64)
    checkpoint = open_checkpoint(
        folder(tmp_path / "m", stored, {"quant_method": "mxfp4"}, model_type="gpt_oss", hidden_size=64)
    )
    holds(checkpoint, {name: dense})
    for expert in range(3):
        assert torch.equal(checkpoint.read(f"{name}.{expert}").double(), dense[expert].T)


def test_weights_of_fp8_that_are_stacked_have_scales_of_their_own(tmp_path):
    name = "model.layers.0.mlp.experts.down_proj"
    parts = [by_hand.fp8_blocks("w", 40, 24, (16, 16), seed) for seed in range(3)]
    stored = {
        name: torch.stack([stored["w.weight"].view(torch.uint8) for stored, _ in parts]).view(torch.float8_e4m3fn),
        f"{name}_scale_inv": torch.stack([stored["w.weight_scale_inv"] for stored, _ in parts]),
    }
    model = folder(tmp_path / "m", stored, FP8 | {"weight_block_size": [16, 16]}, "float32", hidden_size=40)
    checkpoint = open_checkpoint(model)
    holds(checkpoint, {name: torch.stack([dense for _, dense in parts])}, torch.float32)
    assert torch.equal(checkpoint.read(f"{name}.2"), parts[2][1].float())


def test_what_is_left_of_the_form_is_gone_and_what_was_never_packed_stays(tmp_path):
    stored, dense = by_hand.fp8_blocks(Q, 32, 32, (16, 16))
    plain = {f"{K}.weight": torch.ones(4, 8), f"{K}.bias": torch.ones(4)}
    gone = {f"{Q}.input_scale": torch.ones(1), "model.layers.0.self_attn.k_scale": torch.ones(1)}
    model = folder(tmp_path / "m", stored | plain | gone, FP8 | {"weight_block_size": [16, 16]})
    checkpoint = open_checkpoint(model)
    assert checkpoint.tensors.keys() == plain.keys() | PLAIN.keys() | {f"{Q}.weight"}
    assert checkpoint.read_tensor(f"{K}.weight").dtype == torch.float32
    torch.testing.assert_close(checkpoint.read_tensor(f"{Q}.weight"), dense.bfloat16(), rtol=0, atol=0)


def test_the_fingerprint_is_of_the_codes_and_of_what_decides_how_they_are_read(tmp_path):
    stored, _ = by_hand.gptq(Q, 16, 32, 4, 16)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    prints = {
        open_checkpoint(folder(tmp_path / str(number), stored, settings | extra, dtype)).fingerprint
        for number, (extra, dtype) in enumerate(
            [({}, "bfloat16"), ({"checkpoint_format": "gptq_v2"}, "bfloat16"), ({}, "float32")]
        )
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (lambda t: t.pop(f"{Q}.scales"), {}, "holds .*qweight without .*scales"),
        (lambda t: t.pop(f"{Q}.qweight"), {}, "without the codes"),
        (lambda t: t.update({f"{Q}.weight": torch.ones(2, 2)}), {}, "both packed .* and as it is"),
        (lambda t: t.update({f"{Q}.scales": torch.ones(3, 16)}), {}, "scales is 3 × 16 where 2 × 16 belongs"),
        (lambda t: t.update({f"{Q}.qweight": torch.ones(4, 16)}), {}, "qweight is stored as F32, not as I32"),
        (lambda t: None, {"bits": 5}, r"quantization_config.bits is 5, not one of 2, 3, 4, 8"),
        (lambda t: None, {"checkpoint_format": "marlin"}, "checkpoint_format is marlin, not one of gptq"),
        (lambda t: None, {"group_size": 0}, "group_size is 0, not a whole number above 0"),
        (lambda t: t.clear(), {}, "and no tensor of it is: take quantization_config out"),
    ],
)
def test_parts_that_do_not_fit_are_one_sentence(tmp_path, change, settings, sentence):
    stored, _ = by_hand.gptq(Q, 16, 32, 4, 16)
    change(stored)
    model = folder(tmp_path / "m", stored, {"quant_method": "gptq", "bits": 4, "group_size": 16} | settings)
    with pytest.raises(InputError, match=sentence):
        open_checkpoint(model)


def test_a_group_that_there_is_not_is_said_when_the_weight_is_read(tmp_path):
    stored, _ = by_hand.gptq(Q, 16, 32, 4, 16)
    stored[f"{Q}.g_idx"][3] = 7
    checkpoint = open_checkpoint(folder(tmp_path / "m", stored, {"quant_method": "gptq", "group_size": 16}))
    with pytest.raises(InputError, match="g_idx names group 7 of 2"):
        checkpoint.read(Q)
