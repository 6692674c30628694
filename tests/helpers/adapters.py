"""Small LoRA adapters, as PEFT saves them."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

NAMED = "base_model.model.model.layers.1.self_attn.q_proj"


def adapter(folder: Path, base: Path, tensors: dict[str, torch.Tensor], **settings) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "base_model_name_or_path": str(base), **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def matrices(out: int, in_: int, rank: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, A)"""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(out, rank, generator=generator), torch.randn(rank, in_, generator=generator) * 0.1


B, A = matrices(48, 48)
GOOD = {f"{NAMED}.lora_A.weight": A, f"{NAMED}.lora_B.weight": B}
