"""`transformers`: a folder in compressed-tensors' `pack-quantized` with a PEFT adapter for the low-rank pairs.

Whole numbers are stored as they are: their codes, 16-bit scales and zero points are what `pack-quantized` holds, in
groups of neighbouring columns or one for a row. A pair L R beside them becomes a LoRA of that layer's rank in the
folder `adapter` (scaling 1), which transformers loads on top. Everything else is dense.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.checkpoint.tensorfile import Piece, word_of
from karipap_core.compressed.folder import computed, fill_folder, with_progress
from karipap_core.exports.exporter import Exporter, Line, Wanted, dense_line, error_of, register
from karipap_core.exports.source import MATRIX, PAIR, Part, Source
from karipap_core.progress import Progress

if TYPE_CHECKING:  # torch takes a second to import
    import torch

    from karipap_core.quantization.packing import Quantized

ADAPTER = "adapter"


@register
class Transformers(Exporter):
    name = "transformers"
    title = "transformers (compressed-tensors + PEFT)"
    library = "transformers"
    packages = ("compressed-tensors", "peft")
    engine = "transformers"
    script = "with_transformers.py"

    def lines(self, source: Source, wanted: Wanted) -> Iterator[Line]:
        for part in source.parts():
            if why := why_dense(part):
                yield dense_line(source, part, part.held.dtype, why)
                continue
            grid = part.grid
            assert grid is not None
            stored = grid.dense()
            size = packed_bytes(grid)
            says = f"int{grid.bits} {'per channel' if grid.group == part.shape[1] else f'in groups of {grid.group}'}"
            if part.pair is not None:
                left, right = adapter_pair(part)
                stored = stored + left.float() @ right.float()
                size += left.nbytes + right.nbytes
                says += " + adapter"
            error = error_of(stored, source.exact(part.name))
            yield Line(part.name, part.says, says, error, size, part.bytes, part.rank)

    def write(self, source: Source, wanted: Wanted, folder: Path, progress: Progress) -> None:
        quantized: dict[tuple[int, int | None], list[str]] = {}
        pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def instead(name: str) -> list[Piece] | None:
            part = source.part(name)
            if why_dense(part):
                return None
            grid = part.grid
            assert grid is not None
            quantized.setdefault((grid.bits, None if grid.group == part.shape[1] else grid.group), []).append(name)
            if part.pair is not None:
                pairs[name] = adapter_pair(part)
            return [
                computed(f"{name}.{key}", word_of(tensor.dtype), tuple(tensor.shape), partial(lambda t: t, tensor))
                for key, tensor in packed(grid, part.shape).items()
            ]

        pieces = list(source.pieces(instead).values())
        config = source.config
        if quantized:
            config = config | {"quantization_config": quantization_config(quantized)}
        fill_folder(folder, source.checkpoint, config, with_progress(pieces, progress, "export"))
        if pairs:
            write_adapter(folder / ADAPTER, pairs)

    def commands(self, source: Source, out: Path) -> str:
        lines = [
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'model = AutoModelForCausalLM.from_pretrained({str(out)!r}, dtype="auto")',
            f"tokenizer = AutoTokenizer.from_pretrained({str(out)!r})",
        ]
        if any(part.pair is not None and not why_dense(part) for part in source.parts()):
            lines.insert(1, "from peft import PeftModel")
            lines.append(f"model = PeftModel.from_pretrained(model, {str(out / ADAPTER)!r})")
        return "\n".join(lines)


def why_dense(part: Part) -> str:
    """Why a weight cannot be stored packed, "" where it can."""
    if part.form in (MATRIX, PAIR):
        return "no checkpoint format holds this network"
    if not part.linear:
        return "the model does not hold it as an ordinary linear layer"
    assert part.grid is not None
    if part.shape[1] % part.grid.group:
        return f"its {part.shape[1]} columns do not divide into groups of {part.grid.group}"
    return ""


def packed(grid: "Quantized", shape: tuple[int, int]) -> dict[str, "torch.Tensor"]:
    """The tensors of a weight in `pack-quantized`, by the endings of their names; codes and zero points are stored as
    signed numbers there, 2^(bits − 1) less than ours."""
    import torch
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    shift = 1 << (grid.bits - 1)
    codes, zeros = ((each.to(torch.int16) - shift).to(torch.int8) for each in (grid.codes, grid.zeros))
    return {
        "weight_packed": pack_to_int32(codes, grid.bits),
        "weight_scale": grid.scales.contiguous(),
        "weight_shape": torch.tensor(shape),
        "weight_zero_point": pack_to_int32(zeros, grid.bits, packed_dim=0).contiguous(),
    }


def packed_bytes(grid: "Quantized") -> int:
    """Bytes of `packed`, counted."""
    (rows, columns), groups = grid.codes.shape, grid.scales.shape[1]
    words = rows * -(-columns * grid.bits // 32) + groups * -(-rows * grid.bits // 32)
    return 4 * words + 2 * rows * groups + 16


def adapter_pair(part: Part) -> "tuple[torch.Tensor, torch.Tensor]":
    """L and R as an adapter stores them: in the weight's dtype, in which they lie, or those of few bits, whose numbers
    are a 16-bit scale times a code, in float16, which keeps three bits more of them than bfloat16."""
    import torch

    assert part.pair is not None
    dtype = torch.float16 if part.packed else getattr(torch, part.held.dtype)
    left, right = part.pair
    return left.to(dtype), right.to(dtype)


def quantization_config(quantized: dict[tuple[int, int | None], list[str]]) -> dict:
    """`quantization_config` of compressed-tensors for {(bits, group or None for a row): names of layers}."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig, QuantizationScheme

    groups = {}
    for number, ((bits, group), names) in enumerate(quantized.items()):
        strategy = "channel" if group is None else "group"
        args = QuantizationArgs(num_bits=bits, symmetric=False, group_size=group, strategy=strategy)
        groups[f"group_{number}"] = QuantizationScheme(targets=names, weights=args, format="pack-quantized")
    config = QuantizationConfig(config_groups=groups, format="pack-quantized", quantization_status="compressed")
    # transformers 5.23 with compressed-tensors 0.20.1 lays out zero points unpacked before it loads, and refuses the
    # packed ones as of another shape; made numbers when they are loaded, they are read rightly.
    return json.loads(config.model_dump_json(exclude_none=True)) | {"dequantize": True}


def write_adapter(folder: Path, pairs: "dict[str, tuple[torch.Tensor, torch.Tensor]]") -> None:
    """A PEFT adapter W + L R, each layer with its own rank and scaling 1."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir()
    ranks = {name: left.shape[1] for name, (left, right) in pairs.items()}
    most = max(ranks.values())
    others = {name: rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern=others,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {}
    for name, (left, right) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = right.contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = left.contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
