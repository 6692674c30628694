"""Low-rank pairs beside a stored weight as a PEFT adapter: W + L R, each layer with its own rank and scaling 1."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.exports.source import Part

if TYPE_CHECKING:  # torch takes a second to import
    import torch

FOLDER = "adapter"
TASKS = {"causal": "CAUSAL_LM", "encoder-decoder": "SEQ_2_SEQ_LM", "encoder": "FEATURE_EXTRACTION"}

Pair = tuple["torch.Tensor", "torch.Tensor"]


def adapter_pair(part: Part, rank: int) -> Pair:
    """L (out, rank) and R (rank, in) as an adapter stores them, zeros behind the pair's own rank.

    In the weight's dtype, in which they lie; those of few bits, whose numbers are a 16-bit scale times a code, in
    float16, which keeps three bits more of them than bfloat16.
    """
    import torch
    from torch.nn.functional import pad

    assert part.pair is not None
    dtype = torch.float16 if part.packed else getattr(torch, part.held.dtype)
    left, right = (each.to(dtype) for each in part.pair)
    more = rank - part.rank
    return pad(left, (0, more)).contiguous(), pad(right, (0, 0, 0, more)).contiguous()


def write_adapter(folder: Path, pairs: dict[str, Pair], kind: str) -> None:
    """The adapter of {module: L and R} of a model of that kind (`Checkpoint.kind`)."""
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir()
    ranks = {name: left.shape[1] for name, (left, right) in pairs.items()}
    most = max(ranks.values())
    # Keys are regular expressions there, and `r` and `lora_alpha` hold for what none of them matches.
    others = {re.escape(name): rank for name, rank in ranks.items() if rank != most}
    config = LoraConfig(
        r=most,
        lora_alpha=most,
        target_modules=sorted(ranks),
        rank_pattern=others,
        alpha_pattern=dict(others),
        task_type=TASKS[kind],
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    tensors = {}
    for name, (left, right) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = right
        tensors[f"base_model.model.{name}.lora_B.weight"] = left
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
