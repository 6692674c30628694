"""Quantized checkpoints opened: every weight as its published layout says, written by hand (tests/helpers/quantized.py)
without the readers."""

import json

import pytest
import torch
from safetensors.torch import save_file

from karipap_core import InputError
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import chunks, copied, read_header, write_file
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


def packed(bits: int, group: int | None, form: str = "pack-quantized") -> dict:
    """The quantization_config of compressed-tensors."""
    weights = {"num_bits": bits, "group_size": group, "type": "int"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups, "ignore": ["lm_head"]}


def ct(kind: str, size: str) -> str:
    return f"{kind} (compressed-tensors, {size})"


FP8 = {"quant_method": "fp8"}
LAYOUTS = {  # name → (quantization_config, writer of one weight, words)
    "fp8 blocks": (FP8, lambda name: by_hand.fp8_blocks(name, 130, 6, (128, 128)), "fp8 (128 × 128 blocks)"),
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
    "awq": (
        {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm", "zero_point": True},
        lambda name: by_hand.awq_gemm(name, 16, 48, 16),
        "int4 (AWQ, g16)",
    ),
    "awq, gemv": (
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemv", "zero_point": True},
        lambda name: by_hand.awq_gemv(name, 6, 64, 32, words=4),
        "int4 (AWQ, g32)",
    ),
    "auto-round": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 16, "packing_format": "auto_round:auto_gptq"},
        lambda name: by_hand.gptq(name, 24, 64, 4, 16),
        "int4 (GPTQ, g16)",
    ),
    "auto-round of 0.3": (
        {"quant_method": "intel/auto-round", "bits": 4, "group_size": 16, "backend": "auto_round:gptq:exllamav2"},
        lambda name: by_hand.gptq(name, 24, 64, 4, 16),
        "int4 (GPTQ, g16)",
    ),
    "auto-round of 0.3, zeros as they are": (
        {"quant_method": "intel/auto-round", "bits": 4, "group_size": 16, "backend": "auto_round:exllamav2"},
        lambda name: by_hand.gptq(name, 24, 64, 4, 16, version=2),
        "int4 (GPTQ, g16)",
    ),
    "auto-round, zeros as they are": (
        {"quant_method": "auto-round", "bits": 2, "group_size": 32, "packing_format": "auto_round"},
        lambda name: by_hand.gptq(name, 16, 64, 2, 32, version=2),
        "int2 (GPTQ, g32)",
    ),
    "torchao": (
        {"quant_method": "torchao"},
        lambda name: by_hand.torchao8(name, 6, 10),
        "int8 (torchao, per channel)",
    ),
    "quanto": ({"quant_method": "quanto"}, lambda name: by_hand.quanto8(name, 6, 10), "fp8 (quanto, per channel)"),
    "modelopt": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"},
        lambda name: by_hand.modelopt_nvfp4(name, 6, 32),
        "NVFP4 (Model Optimizer)",
    ),
    "mlx": ({"group_size": 32, "bits": 4}, lambda name: by_hand.mlx(name, 6, 64, 4, 32), "int4 (MLX, g32)"),
    "mlx 3 bits": ({"group_size": 64, "bits": 3}, lambda name: by_hand.mlx(name, 6, 64, 3, 64), "int3 (MLX, g64)"),
    "bitnet": ({"quant_method": "bitnet"}, lambda name: by_hand.bitnet(name, 8, 10), "ternary (BitNet)"),
    "compressed-tensors": (packed(4, 16), lambda name: by_hand.packed_ints(name, 6, 40, 4, 16), ct("int4", "g16")),
    "compressed-tensors, 3 bits with zeros": (
        packed(3, 32),
        lambda name: by_hand.packed_ints(name, 11, 64, 3, 32, zeros=True),
        ct("int3", "g32"),
    ),
    "compressed-tensors, 3 bits with gaps": (
        packed(3, 32),
        lambda name: by_hand.packed_ints(name, 11, 64, 3, 32, zeros=True, gaps=True),
        ct("int3", "g32"),
    ),
    "compressed-tensors nvfp4": (
        packed(4, 16, "nvfp4-pack-quantized"),
        lambda name: by_hand.nvfp4(name, 6, 32),
        ct("nvfp4", "g16"),
    ),
    "compressed-tensors int8": (
        packed(8, None, "int-quantized"),
        lambda name: by_hand.int8_rows(name, 6, 10),
        ct("int8", "per channel"),
    ),
    "compressed-tensors fp8": (
        packed(8, None, "float-quantized"),
        lambda name: by_hand.fp8_scaled(name, 6, 10, (6, 1)),
        ct("fp8", "per channel"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_opens_to_the_weights_that_it_stands_for(tmp_path, layout):
    settings, write, words = LAYOUTS[layout]
    stored, dense = zip(*(write(name) for name in (Q, K)), strict=True)
    also = {} if "quant_method" in settings else {"quantization": settings}  # as MLX writes it
    model = folder(tmp_path / "m", stored[0] | stored[1], settings, "float32", **also)
    checkpoint = open_checkpoint(model)
    holds(checkpoint, {f"{Q}.weight": dense[0], f"{K}.weight": dense[1]}, torch.float32)
    assert checkpoint.form.words == words
    assert checkpoint.stored_bytes == sum(t.nbytes for t in (stored[0] | stored[1] | PLAIN).values())


BITSANDBYTES = {
    "nf4": by_hand.bitsandbytes4(Q, 12, 16, 16),
    "nf4 whose scales are bytes": by_hand.bitsandbytes4(Q, 12, 16, 16, nested=True),
    "int8": by_hand.bitsandbytes8(Q, 6, 10),
}


@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_weights_of_bitsandbytes_open_to_float32_in_the_order_that_the_library_multiplies(tmp_path, kind):
    stored, dense = BITSANDBYTES[kind]
    checkpoint = open_checkpoint(folder(tmp_path / "m", stored, {"quant_method": "bitsandbytes"}, "float32"))
    assert checkpoint.tensors.keys() == {f"{Q}.weight"} | PLAIN.keys()
    assert checkpoint.form.words == f"{kind.split()[0]} (bitsandbytes)"
    torch.testing.assert_close(checkpoint.read(Q), dense.float(), rtol=3e-7, atol=0)


def test_experts_in_mxfp4_open_in_the_order_that_the_model_computes_in_whole_or_one_at_a_time(tmp_path):
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stored, dense = by_hand.mxfp4(name, 3, 8, 64)
    checkpoint = open_checkpoint(
        folder(tmp_path / "m", stored, {"quant_method": "mxfp4"}, model_type="gpt_oss", hidden_size=64)
    )
    holds(checkpoint, {name: dense})
    for expert in range(3):
        assert torch.equal(checkpoint.read(f"{name}.{expert}").double(), dense[expert].T)


def test_a_linear_map_of_gpt2_is_packed_as_out_by_in_and_opens_as_in_by_out(tmp_path):
    name = "transformer.h.0.attn.c_attn"
    stored, dense = by_hand.gptq(name, 24, 16, 4, 16)
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 16}
    checkpoint = open_checkpoint(folder(tmp_path / "m", stored, settings, "float32", model_type="gpt2"))
    holds(checkpoint, {f"{name}.weight": dense.T}, torch.float32)
    assert torch.equal(checkpoint.read(name), dense.float())


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


DAMAGES = {
    "left out": lambda tensor: None,
    "a row short": lambda tensor: tensor[:-1].clone() if tensor.dim() else tensor[None],
    "flat": lambda tensor: tensor.flatten(),
    "one number": lambda tensor: tensor.flatten()[0].clone(),
    "empty": lambda tensor: tensor.flatten()[:0].clone(),
    "of another dtype": lambda tensor: torch.zeros(tensor.shape, dtype=torch.float64),
    "bytes": lambda tensor: torch.full(tensor.shape, 255, dtype=torch.uint8),
    "deeper": lambda tensor: tensor[None, None, None],
}
SETTINGS: dict = {
    **dict.fromkeys(("bits", "group_size", "weight_block_size", "config_groups", "format", "version"), "4"),
    "checkpoint_format": [],
    "quant_algo": {},
    "mode": 1,
    "linear_class": None,
    "sparsity_config": [],
}


@pytest.mark.parametrize("layout", [*LAYOUTS, *BITSANDBYTES])
def test_no_damage_to_a_part_or_setting_ends_in_anything_but_a_sentence(tmp_path, layout):
    """Each part of a weight spoiled in each way, and each setting: opened to numbers, or one sentence."""
    if layout in LAYOUTS:
        settings, write, _ = LAYOUTS[layout]
        stored, _ = write(Q)
    else:
        settings, (stored, _) = {"quant_method": "bitsandbytes"}, BITSANDBYTES[layout]
    also = {} if "quant_method" in settings else {"quantization": settings}
    tries = [(settings, stored | {name: damage(stored[name])}) for name in stored for damage in DAMAGES.values()]
    tries += [(settings | {field: value}, stored) for field, value in SETTINGS.items() if field in settings]
    refused = 0
    for number, (how, tensors) in enumerate(tries):
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        model = folder(tmp_path / str(number), kept, how, "float32", **also)
        try:
            checkpoint = open_checkpoint(model)
            found = checkpoint.read_tensor(f"{Q}.weight")
        except InputError as error:
            refused += 1
            assert str(error).endswith((".", "whole.")) and "\n" not in str(error)
        else:
            assert tuple(found.shape) == checkpoint.tensors[f"{Q}.weight"].shape
    assert refused > len(tries) / 2


def test_an_older_export_of_model_optimizer_says_so_beside_its_config(tmp_path):
    stored, dense = by_hand.modelopt_nvfp4(Q, 6, 32)
    model = folder(tmp_path / "m", stored, {}, "float32")
    config = json.loads((model / "config.json").read_text())
    del config["quantization_config"]
    (model / "config.json").write_text(json.dumps(config))
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4", "group_size": 16}}))
    holds(open_checkpoint(model), {f"{Q}.weight": dense}, torch.float32)


def test_quanto_says_nothing_in_config_json_and_its_packed_weights_are_refused(tmp_path):
    stored, dense = by_hand.quanto8(Q, 6, 10)
    model = folder(tmp_path / "m", stored, {}, "float32")
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "dtype": "float32"}))
    holds(open_checkpoint(model), {f"{Q}.weight": dense}, torch.float32)
    save_file({f"{Q}.weight._data._data": torch.ones(4, 4, dtype=torch.uint8)}, model / "model.safetensors")
    with pytest.raises(InputError, match="quanto.*packed without the shape"):
        open_checkpoint(model)


def test_floats_of_4_and_6_bits_have_sizes_and_are_copied_byte_for_byte(tmp_path):
    """Nothing says what they stand for: they are listed, skipped with a sentence, and written as they are."""
    entries = {"a.weight": ("F4", [3, 4], 6), "b.weight": ("F6_E2M3", [4, 2], 6), "c.weight": ("F8_E4M3FNUZ", [5], 5)}
    header, data = {}, bytes(range(17))
    for name, (dtype, shape, size) in entries.items():
        start = sum(entry["data_offsets"][1] - entry["data_offsets"][0] for entry in header.values())
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
    text = json.dumps(header).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    checkpoint = open_checkpoint(file)
    assert checkpoint.bytes == 17 and [info.size for info in checkpoint.tensors.values()] == [6, 6, 5]
    assert all("only BF16, F16 and F32 are read" in entry["why"] for entry in checkpoint.skipped)
    write_file(tmp_path / "copy.safetensors", [copied(name, info) for name, info in checkpoint.tensors.items()])
    for name, info in read_header(tmp_path / "copy.safetensors").items():
        assert b"".join(chunks(info)) == b"".join(chunks(checkpoint.tensors[name]))
