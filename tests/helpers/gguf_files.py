"""GGUF files of small checkpoints, laid out as llama.cpp's converter lays them out: names by gguf's own table."""

import json
import re
from pathlib import Path

import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH_NAMES
from gguf.quants import quantize
from safetensors.torch import load_file

from tests.helpers import architectures

# transformers' name of an architecture → gguf's, where they differ
NAMES = {
    "mistral": "llama",
    "mixtral": "llama",
    "qwen2_moe": "qwen2moe",
    "qwen3_moe": "qwen3moe",
    "gemma3_text": "gemma3",
    "gpt_oss": "gpt-oss",
    "qwen3_5_text": "qwen35",
}
# Entries that a converter writes of a config: entry → the names of its field
ENTRIES = {
    "context_length": ("max_position_embeddings", "n_positions"),
    "embedding_length": ("hidden_size", "n_embd"),
    "block_count": ("num_hidden_layers", "n_layer"),
    "feed_forward_length": ("ffn_hidden_size", "n_inner", "intermediate_size"),
    "attention.head_count": ("num_attention_heads", "n_head"),
    "attention.head_count_kv": ("num_kv_heads", "num_key_value_heads"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon"),
    "attention.sliding_window": ("sliding_window",),
    "expert_count": ("num_local_experts", "num_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "ssm.conv_kernel": ("conv_kernel",),
    "ssm.inner_size": ("intermediate_size",),
    "ssm.state_size": ("state_size",),
    "ssm.time_step_rank": ("time_step_rank",),
    "shortconv.l_cache": ("conv_L_cache",),
}
# Entries that only these have
OF = {
    "ssm.conv_kernel": ("mamba",),
    "ssm.inner_size": ("mamba",),
    "shortconv.l_cache": ("lfm2",),
    "attention.sliding_window": ("gemma2", "gemma3", "phi3", "gpt-oss"),
}
SMALL = {
    "vocab_size": architectures.VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": architectures.BOS,
    "eos_token_id": architectures.EOS,
    "pad_token_id": architectures.PAD,
}
ROPE = {"rope_type": "default", "rope_theta": 5e5}
HALF = {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LLAMA3 = ROPE | {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1, 1.2, 1.3] * 2, "long_factor": [2.0] * 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
# What there is a file of: the class of its config, and settings that are no defaults.
MADE = {
    "llama": ("LlamaConfig", {"tie_word_embeddings": True, "rope_parameters": ROPE}),
    "llama untied with biases": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "llama 3.1": ("LlamaConfig", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "llama by YaRN": ("LlamaConfig", {"rope_parameters": YARN}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16}),
    "qwen2": ("Qwen2Config", {"tie_word_embeddings": True}),
    "qwen2 moe": ("Qwen2MoeConfig", EXPERTS | {"shared_expert_intermediate_size": 48, "num_experts": 3}),
    "qwen3": ("Qwen3Config", {"head_dim": 32, "attention_bias": True}),
    "qwen3 moe": ("Qwen3MoeConfig", EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "gemma": ("GemmaConfig", {"head_dim": 16}),
    "gemma2": ("Gemma2Config", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 32}),
    "gpt oss": (
        "GptOssConfig",
        {"num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 8},
    ),
    "falcon": ("FalconConfig", {"multi_query": True}),
    "falcon in groups": ("FalconConfig", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "phi3": ("Phi3Config", HALF | {"sliding_window": 16}),
    "phi3 long": ("Phi3Config", {"rope_parameters": LONG, "original_max_position_embeddings": 32}),
    "gpt2": ("GPT2Config", {"n_inner": 96, "n_positions": 128}),
    "bloom": ("BloomConfig", {}),
    "starcoder2": ("Starcoder2Config", {"rope_parameters": ROPE}),
    "stablelm": ("StableLmConfig", HALF | {"use_qkv_bias": True}),
    "stablelm parallel": ("StableLmConfig", HALF | {"qk_layernorm": True, "use_parallel_residual": True}),
    "nemotron": ("NemotronConfig", HALF),
    "mamba": ("MambaConfig", {"state_size": 8, "time_step_rank": 6, "intermediate_size": 128}),
    "qwen3.5": (
        "Qwen3_5TextConfig",
        {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 6}
        | {
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 12,
            "tie_word_embeddings": True,
        }
        | {
            "rope_parameters": ROPE
            | {"partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
        },
    ),
    "lfm2": ("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}),
}

# Those that transformers opens as well; of others it leaves parts at random or at their defaults, or refuses them.
AS_TRANSFORMERS = (
    "llama",
    "qwen2",
    "gemma2",
    "gemma3",
    "falcon",
    "phi3",
    "bloom",
    "starcoder2",
    "stablelm",
    "nemotron",
)
AS_TRANSFORMERS += ("mamba", "lfm2", "qwen3.5")


def make(name: str, folder: Path, **changes) -> Path:
    """Writes the checkpoint of that name (of `MADE`), float32, with weights of which each shows in the logits."""
    kind, settings = MADE[name]
    config = getattr(transformers, kind)(**SMALL | settings | changes)
    return architectures.save(transformers.AutoModelForCausalLM.from_config(config), folder)


def write(folder: Path, file: Path, kind: str = "F32", entries: dict | None = None, split: int = 1) -> Path:
    """Writes the checkpoint in `folder` as a GGUF file whose matrices are of ggml's type `kind`."""
    file.parent.mkdir(exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    name = NAMES.get(config["model_type"], config["model_type"])
    writer = GGUFWriter(file, name, split_max_tensors=split if split > 1 else 0)
    for key, value in (_entries(config, name) | (entries or {})).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
        add.get(type(value), writer.add_array)(key, value)
    for tensor, value in _converted(folder, config, name).items():
        kept = value.ndim == 1 or any(word in tensor for word in ("norm", "ffn_gate_inp", "conv", "ssm_a", "bias"))
        word = GGMLQuantizationType.F32 if kept else GGMLQuantizationType[kind]
        packed = quantize(value, word)
        writer.add_tensor(tensor, packed, raw_dtype=word)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _entries(config: dict, name: str) -> dict:
    found = {}
    for entry, fields in ENTRIES.items():
        value = next((config[field] for field in fields if config.get(field) is not None), None)
        if value is not None and name in OF.get(entry, (name,)):
            found[f"{name}.{entry}"] = value
    rope = config.get("rope_parameters") or {}
    rope = rope.get("full_attention", rope)
    if "rope_theta" in rope:
        found[f"{name}.rope.freq_base"] = float(rope["rope_theta"])
    heads = config.get("num_attention_heads") or config.get("n_head")
    if heads:
        head = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
        found[f"{name}.rope.dimension_count"] = int(head * rope.get("partial_rotary_factor", 1))
        if config.get("head_dim"):
            found |= {f"{name}.attention.key_length": head, f"{name}.attention.value_length": head}
    if rope.get("rope_type") == "yarn":
        found |= {f"{name}.rope.scaling.type": "yarn", f"{name}.rope.scaling.factor": rope["factor"]}
        found[f"{name}.rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if name == "phi3":
        found[f"{name}.rope.scaling.original_context_length"] = config["original_max_position_embeddings"]
    found |= OTHERS.get(name, lambda config: {})(config) | _tokenizer()
    return {entry: value for entry, value in found.items() if value is not None}


# What the converters of single architectures write besides, or otherwise.
OTHERS = {
    "falcon": lambda config: {
        "falcon.attention.head_count_kv": config["num_kv_heads"] if config["new_decoder_architecture"] else 1,
        "falcon.tensor_data_layout": "jploski",
    },
    "gpt-oss": lambda config: {
        "gpt-oss.feed_forward_length": config["intermediate_size"],
        "gpt-oss.expert_feed_forward_length": config["intermediate_size"],
    },
    "bloom": lambda config: {"bloom.context_length": 128, "bloom.feed_forward_length": 4 * config["hidden_size"]},
    "stablelm": lambda config: {"stablelm.use_parallel_residual": True},
    "mamba": lambda config: {
        "mamba.context_length": 1 << 20,
        "mamba.feed_forward_length": 0,
        "mamba.attention.head_count": 0,
        "mamba.attention.head_count_kv": None,
        "mamba.attention.layer_norm_epsilon": None,
        "mamba.attention.layer_norm_rms_epsilon": config["layer_norm_epsilon"],
        "mamba.ssm.dt_b_c_rms": False,
    },
    "qwen35": lambda config: {
        "qwen35.full_attention_interval": 2,
        "qwen35.ssm.conv_kernel": config["linear_conv_kernel_dim"],
        "qwen35.ssm.state_size": config["linear_key_head_dim"],
        "qwen35.ssm.group_count": config["linear_num_key_heads"],
        "qwen35.ssm.time_step_rank": config["linear_num_value_heads"],
        "qwen35.ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
        "qwen35.rope.dimension_sections": [*config["rope_parameters"]["mrope_section"], 0],
    },
    "lfm2": lambda config: {
        "lfm2.attention.head_count_kv": [config["num_key_value_heads"] * (t != "conv") for t in config["layer_types"]],
        "lfm2.attention.layer_norm_rms_epsilon": config["norm_eps"],
    },
}


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
    table = get_tensor_name_map(architecture, config.get("num_hidden_layers") or config["n_layer"])
    tensors = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    tensors = _halves(tensors) if name == "gpt-oss" else _stacked(tensors)
    found: dict[str, np.ndarray] = {}
    for tensor, value in tensors.items():
        stem, _, suffix = tensor.replace("linear_attn.dt_bias", "linear_attn.dt_proj.bias").rpartition(".")
        stem = stem.removeprefix("transformer.") if name == "bloom" else stem
        if (stored := table.get_name(stem)) is None:  # parameters that are no module's weight
            stem, suffix = tensor, "weight" if tensor.endswith(("sinks", "exps")) else ""
            stored = table.get_name(stem) or stem
        stored = f"{stored}.{suffix}".removesuffix(".")
        found[stored] = _laid_out(value, stored, config, name).numpy()
    return found | _frequencies(config)


def _frequencies(config: dict) -> dict[str, np.ndarray]:
    """What rotary frequencies are divided by, which the converter writes as tensors: taken from transformers' own."""
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type") == "longrope":
        kinds = ("long", "short")
        return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in kinds}
    if rope.get("rope_type") != "llama3":
        return {}
    plain = transformers.LlamaConfig(**config | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    scaled = transformers.LlamaConfig(**config)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding
    return {"rope_freqs.weight": (rotary(plain).inv_freq / rotary(scaled).inv_freq).numpy()}


def _halves(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """gpt-oss: a stack of gates and one of ups, rows as outputs, where transformers has both in turns, as columns."""
    found = {}
    for tensor, value in tensors.items():
        if "experts" not in tensor:
            found[tensor] = value
            continue
        block, kind = tensor.split(".")[2], "bias" if tensor.endswith("bias") else "weight"
        value = value if kind == "bias" else value.transpose(1, 2)
        if "down" in tensor:
            found[f"blk.{block}.ffn_down_exps.{kind}"] = value
        else:
            found |= {f"blk.{block}.ffn_{half}_exps.{kind}": value[:, i::2] for i, half in enumerate(("gate", "up"))}
    return found


def _stacked(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts (and StableLM's norms of heads) as the converter stacks them, under the names that it gives them."""
    found: dict[str, torch.Tensor | list[torch.Tensor]] = {}
    for tensor in sorted(tensors, key=lambda name: [int(part) if part.isdecimal() else 0 for part in name.split(".")]):
        stack = re.fullmatch(r"(.*)\.(experts|norms)\.\d+\.(.*)", tensor)
        if stack is None:
            found[tensor] = tensors[tensor]
            continue
        before, word, matrix = stack.groups()
        if word == "norms":
            name = f"{before}.{matrix}"
        elif matrix.startswith("w"):
            name = f"{before.replace('model.', '').replace('block_sparse_moe', 'feed_forward')}.experts.{matrix}"
        else:
            name = f"{before}.experts.{matrix}"
        found.setdefault(name, []).append(tensors[tensor])
    return {name: torch.stack(value) if isinstance(value, list) else value for name, value in found.items()}


def _tiled(value: torch.Tensor, name: str, config: dict) -> torch.Tensor:
    """Qwen 3.5: value heads by their place in the group, where transformers has each group's together."""
    groups, size = config["linear_num_key_heads"], config["linear_value_head_dim"]
    if "ssm_norm" in name:
        return value
    value = -value.exp() if name.endswith("ssm_a") else value.T if "ssm_out" in name else value
    before = 2 * groups * config["linear_key_head_dim"] if "qkv" in name or "conv" in name else 0
    size = 1 if any(word in name for word in ("ssm_a", "ssm_beta", "ssm_dt")) else size
    rows = value[before:].reshape(groups, -1, size, *value.shape[1:]).transpose(0, 1).reshape(value[before:].shape)
    value = torch.cat([value[:before], rows])
    return (value.T if "ssm_out" in name else value.squeeze()).contiguous()


def _laid_out(value: torch.Tensor, name: str, config: dict, architecture: str) -> torch.Tensor:
    heads = config.get("num_attention_heads") or config.get("n_head")
    if architecture == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = heads if ".attn_q." in name else config["num_key_value_heads"]
        halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
        value = halves.swapaxes(1, 2).reshape(value.shape)
    elif architecture == "bloom" and "attn_qkv" in name:
        value = value.reshape(heads, 3, -1, *value.shape[1:]).transpose(0, 1).reshape(value.shape)
    elif architecture == "falcon" and "attn_qkv" in name:
        groups = config["num_kv_heads"] if config["new_decoder_architecture"] else 1
        parts = value.view(groups, heads // groups + 2, -1, value.shape[1])
        value = torch.cat([part.reshape(-1, value.shape[1]) for part in (parts[:, :-2], parts[:, -2], parts[:, -1])])
    elif architecture == "gpt2" and value.ndim == 2 and ".blk" in f".{name}":
        value = value.T
    elif architecture == "qwen35" and any(word in name for word in ("ssm_", "attn_qkv", "attn_gate")):
        value = _tiled(value, name, config)
    elif name.endswith("norm.weight") and (
        architecture == "qwen35" or architecture.startswith("gemma") or architecture == "nemotron"
    ):
        value = value + 1
    elif "ffn_gate_inp_shexp" in name or "conv" in name and value.ndim == 3:
        value = value.squeeze()
    elif name.endswith("ssm_a"):
        value = -value.exp()
    return value.contiguous()
