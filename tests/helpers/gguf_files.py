"""GGUF files of small checkpoints, laid out as llama.cpp's converter lays them out: names by gguf's own table."""

import json
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import quantize
from safetensors.torch import load_file

# transformers' name of an architecture → gguf's, where they differ
NAMES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
}
# Entries that a converter writes of a config: (field, entry)
ENTRIES = (
    ("max_position_embeddings", "context_length"),
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("sliding_window", "attention.sliding_window"),
    ("num_local_experts", "expert_count"),
    ("num_experts", "expert_count"),
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
)


def write(folder: Path, file: Path, kind: str = "F32", entries: dict | None = None, split: int = 1) -> Path:
    """Writes the checkpoint in `folder` as a GGUF file whose matrices are of ggml's type `kind`."""
    config = json.loads((folder / "config.json").read_text())
    name = NAMES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(file, name, split_max_tensors=split if split > 1 else 0)
    for key, value in (_entries(config, name) | (entries or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for tensor, value in _converted(folder, config, name).items():
        kept = value.ndim == 1 or "norm" in tensor or "ffn_gate_inp" in tensor
        word = GGMLQuantizationType.F32 if kept else GGMLQuantizationType[kind]
        packed = quantize(value, word)
        writer.add_tensor(tensor, packed, raw_dtype=word)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _entries(config: dict, name: str) -> dict:
    theta = config.get("rope_theta") or (config.get("rope_parameters") or {}).get("rope_theta")
    found = {f"{name}.{entry}": config[field] for field, entry in ENTRIES if config.get(field) is not None}
    found |= {f"{name}.rope.freq_base": float(theta)} if theta else {}
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    found[f"{name}.rope.dimension_count"] = head
    if config.get("head_dim"):
        found |= {f"{name}.attention.key_length": head, f"{name}.attention.value_length": head}
    return found | _tokenizer()


def _tokenizer() -> dict:
    """What a file says of the tokenizer that `architectures.write_tokenizer` writes."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    rare = letters[-2:]  # the one merge, of bytes that no text has
    tokens = [*letters, "<s>", "</s>", "<pad>", "".join(rare), *(f"[PAD{number}]" for number in range(260, 263))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 3 + [1] + [5] * 3,
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.padding_token_id": 258,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.merges": [" ".join(rare)],
    }


def _converted(folder: Path, config: dict, name: str) -> dict[str, np.ndarray]:
    architecture = next(key for key, value in MODEL_ARCH_NAMES.items() if value == name)
    table = get_tensor_name_map(architecture, config["num_hidden_layers"])
    found: dict[str, np.ndarray] = {}
    for tensor, value in _stacked(load_file(folder / "model.safetensors")).items():
        stem, _, suffix = tensor.rpartition(".")
        stored = table.get_name(stem)
        assert stored is not None, tensor
        found[f"{stored}.{suffix}"] = _laid_out(value.float(), f"{stored}.{suffix}", config, name).numpy()
    return found


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts as the converter stacks them, under the names that it gives to the stacks."""
    found: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    for tensor in sorted(tensors, key=lambda name: [int(part) if part.isdecimal() else 0 for part in name.split(".")]):
        before, _, after = tensor.partition(".experts.")
        number, _, matrix = after.partition(".")
        if not number.isdecimal():
            found[tensor] = tensors[tensor]
            continue
        before = before.replace("model.", "").replace("block_sparse_moe", "feed_forward")
        before = before if matrix.startswith("w") else f"model.{before}"
        found.setdefault(f"{before}.experts.{matrix}", []).append(tensors[tensor])
    return {name: torch.stack(value) if isinstance(value, list) else value for name, value in found.items()}


def _laid_out(value: torch.Tensor, name: str, config: dict, architecture: str) -> torch.Tensor:
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config["num_attention_heads"] if ".attn_q." in name else config["num_key_value_heads"]
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        return halves.swapaxes(1, 2).reshape(value.shape).contiguous()
    if architecture.startswith("gemma") and "norm" in name:
        return value + 1
    if "ffn_gate_inp_shexp" in name:
        return value.squeeze()
    return value.contiguous()
