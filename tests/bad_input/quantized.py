"""Quantized checkpoints with parts that are missing or do not fit, and forms that are not opened."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tests.bad_input import Case, changed, model
from tests.helpers import quantized as by_hand

Make = Callable[[Path], object]
UP = "model.layers.0.mlp.up_proj"  # 86 × 48
Q = "model.layers.0.self_attn.q_proj"  # 48 × 48
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemm"}
FP8 = {"quant_method": "fp8", "weight_block_size": [16, 16]}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized"}
PACKED |= {"config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}}}
WRITERS = {
    "gptq": lambda: by_hand.gptq(Q, 48, 48, 4, 16),
    "awq": lambda: by_hand.awq_gemm(Q, 48, 48, 16),
    "fp8": lambda: by_hand.fp8_blocks(Q, 48, 48, (16, 16)),
    "bitsandbytes": lambda: by_hand.bitsandbytes4(Q, 48, 48, 64),
    "compressed-tensors": lambda: by_hand.packed_ints(Q, 48, 48, 4, 16, zeros=True),
}


def quantized(settings: dict, edit: Callable[[dict], object] = lambda tensors: None) -> Make:
    """A good model, one of whose weights is quantized, with these settings and its tensors edited."""

    def make(folder: Path) -> None:
        place = model(folder)
        found = load_file(place / "model.safetensors")
        if write := WRITERS.get(settings["quant_method"]):
            del found[f"{Q}.weight"]
            found |= write()[0]
        edit(found)
        found = {name: tensor.contiguous() for name, tensor in found.items()}
        save_file(found, place / "model.safetensors", {"format": "pt"})
        changed(place / "config.json", quantization_config=settings)

    return make


def state(**fields) -> Callable[[dict], object]:
    """Another description of a weight of bitsandbytes."""
    text = json.dumps(fields).encode()
    name = f"{Q}.weight.quant_state.bitsandbytes__nf4"
    return lambda tensors: tensors.update({name: torch.tensor(list(text), dtype=torch.uint8)})


def four_bits(folder: Path) -> None:
    """A good model with one weight in safetensors' F4."""
    file = model(folder) / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8:end]), data[end:]
    entry = header[f"{UP}.weight"]
    entry |= {"dtype": "F4", "shape": [entry["shape"][0], 8 * entry["shape"][1]]}  # as many bytes as 32-bit floats
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


CASES = [
    Case("codes without scales", quantized(GPTQ, lambda t: t.pop(f"{Q}.scales")), "profile model --metrics weight",
         "model is quantized (gptq) and holds model.layers.0.self_attn.q_proj.qweight without model.layers.0.self_attn."
         "q_proj.scales: fetch it again, whole."),
    Case("scales without codes", quantized(FP8, lambda t: t.pop(f"{Q}.weight")), "profile model --metrics weight",
         "model is quantized (fp8) and holds model.layers.0.self_attn.q_proj.weight_scale_inv without the codes that it "
         "belongs to: fetch it again, whole."),
    Case("zeros of another model", quantized(GPTQ, lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"][:, :-1]})), "plan model --budget 0.7",
         "model is quantized (gptq): model.layers.0.self_attn.q_proj.qzeros is 3 × 5 where 3 × 6 belongs to its weight. "
         "Its files and config.json are not of one model."),
    Case("an input of a group that there is not", quantized(GPTQ, lambda t: t[f"{Q}.g_idx"].fill_(9)), "evaluate model",
         "model: model.layers.0.self_attn.q_proj.g_idx names group 9 of 3: the file is damaged, fetch it again."),
    Case("a scale that is no number", quantized(FP8, lambda t: t[f"{Q}.weight_scale_inv"].fill_(float("nan"))), "evaluate model",
         "Weight model.layers.0.self_attn.q_proj.weight of model holds NaN or infinity: the checkpoint is damaged."),
    Case("blocks of no size", quantized(FP8 | {"weight_block_size": [0, 16]}), "evaluate model",
         "model is quantized (fp8), and its quantization_config.weight_block_size is [0, 16], not two whole numbers above "
         "0: it is not opened here. Give the model in 16 or 32 bits."),
    Case("blocks that the scales are not of", quantized(FP8, lambda t: t.update({f"{Q}.weight_scale_inv": torch.ones(5, 5)})), "evaluate model",
         "model is quantized (fp8): model.layers.0.self_attn.q_proj.weight_scale_inv is 5 × 5 for a weight of 48 × 48, no "
         "grid of blocks of it. Its files and config.json are not of one model."),
    Case("bits that no integer has", quantized(GPTQ | {"bits": 7}), "deploy model --tokens 100 --batch 1 --gpu A100",
         "model is quantized (gptq), and its quantization_config.bits is 7, not one of 2, 3, 4, 8: it is not opened here. "
         "Give the model in 16 or 32 bits."),
    Case("words in an order that is not opened", quantized(AWQ | {"version": "marlin"}), "evaluate model",
         "model is quantized (awq), and its quantization_config.version is marlin, not one of gemm, gemv: it is not opened "
         "here. Give the model in 16 or 32 bits."),
    Case("a weight both packed and plain", quantized(AWQ, lambda t: t.update({f"{Q}.weight": torch.ones(48, 48)})), "evaluate model",
         "model is quantized (awq) and holds model.layers.0.self_attn.q_proj.weight both packed (model.layers.0.self_attn."
         "q_proj.qweight) and as it is: fetch it again."),
    Case("a description that is no JSON", quantized(BNB, lambda t: t[f"{Q}.weight.quant_state.bitsandbytes__nf4"].fill_(7)), "evaluate model",
         "model is quantized (bitsandbytes): model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4 is no "
         "description of a weight of bitsandbytes (shape, blocksize). Its files and config.json are not of one model."),
    Case("a description of another weight", quantized(BNB, state(shape=[48, 49], blocksize=64)), "evaluate model",
         "model is quantized (bitsandbytes): model.layers.0.self_attn.q_proj.weight has 1152 bytes where 48 × 49 numbers "
         "of 4 bits take 1176. Its files and config.json are not of one model."),
    Case("more numbers than the words hold", quantized(PACKED, lambda t: t.update({f"{Q}.weight_shape": torch.tensor([48, 480])})), "evaluate model",
         "model is quantized (compressed-tensors): model.layers.0.self_attn.q_proj.weight_packed is 48 × 6, which codes of "
         "4 bits do not take. Its files and config.json are not of one model."),
    Case("sparse and packed", quantized(PACKED | {"sparsity_config": {"format": "sparse-24-bitmask"}}), "evaluate model",
         "model is quantized (compressed-tensors), and its quantization_config.sparsity_config.format is "
         "sparse-24-bitmask, not dense: it is not opened here. Give the model in 16 or 32 bits."),
    Case("a method that is not opened", quantized({"quant_method": "aqlm"}), "profile model",
         "model is quantized (aqlm), which is not opened here: give the model in 16 or 32 bits."),
    Case("4-bit floats that nothing is said of", four_bits, "evaluate model",
         "model: model.layers.0.mlp.up_proj.weight is 86 × 384 in the file and 86 × 48 by config.json (hidden_size 48): "
         "file and config are not of one model."),
]  # fmt: skip
