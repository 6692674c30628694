"""The entries of a GGUF file that say what model it is: those that `checkpoint/gguf/` reads, from a config.json.

Every set of entries is read again before it is used. A field of the config that comes back otherwise is one that
llama.cpp has no word for, and is told of.
"""

import math
import re
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.gguf.architectures import (
    FALCON,
    FALCON_GROUPED,
    FALCON_TWO_NORMS,
    KNOWN,
    MIXTRAL,
    Architecture,
)
from karipap_core.checkpoint.gguf.config import config_of
from karipap_core.checkpoint.gguf.header import Header, read_header
from karipap_core.checkpoint.gguf.rope import HIGH, LOW, divisor
from karipap_core.checkpoint.tensorfile import TensorInfo
from karipap_core.errors import InputError
from karipap_core.exports.gguf.file import Tensor, float_bytes, write_file

if TYPE_CHECKING:  # torch takes a second to import
    import torch

# The converter writes these under another's name.
WRITTEN_AS = {"mistral": "llama", "mixtral": "llama"}
UNROTATED = ("gpt2", "bloom", "mamba")
# Fields that change no logit, or that other entries and tensors say.
SILENT = re.compile(
    r".*(?:dropout|pdrop|token_id|initializer|router|use_cache|summary|time_step_(?!rank)|mamba_kernels).*|_.*|dtype"
    r"|architectures|model_type|transformers_version|pretraining_tp|max_window_layers|rescale_prenorm_residual"
    r"|residual_in_fp32|n_ctx|use_bias|is_decoder|apply_residual_connection_post_layernorm|slow_but_exact"
    r"|tie_word_embeddings|problem_type|id2label|label2id|chunk_size_feed_forward|output_.*|return_dict"
)
# Biases that llama.cpp takes, besides those of norms and of queries, keys and values (its models/*.cpp).
AFTER = {"attn_output", "ffn_up", "ffn_down"}
BIASES = {
    "llama": AFTER | {"ffn_gate"},
    "gpt-oss": {"attn_output", "ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"},
    **dict.fromkeys(("gpt2", "bloom", "starcoder2", "nemotron"), AFTER),
    "mamba": {"ssm_conv1d", "ssm_dt"},
    "qwen35": {"ssm_dt"},
}
# Where llama.cpp lets every token attend to all before it, whatever the file says.
NO_WINDOW = ("llama", "qwen2", "qwen2moe", "qwen3", "qwen3moe", "starcoder2", "phi3")
BIASES_NEEDED = ("gpt-oss", "starcoder2")
WINDOW = ("sliding_window", "use_sliding_window", "layer_types")
CLOSE = 1e-6  # a relative difference of numbers that are read again: they are stored in 32 bits


@dataclass(frozen=True)
class Described:
    """A model in GGUF's words: what its architecture is called there, that architecture, the model's whole config with
    its defaults, the file's entries, and tensors that say how positions are rotated."""

    name: str
    architecture: Architecture
    config: dict[str, Any]
    entries: dict[str, Any]
    rotations: "dict[str, torch.Tensor]"

    @property
    def header(self) -> Header:
        """The entries as those of a file, for what goes by a file's head counts."""
        return Header(Path("model.gguf"), self.entries, {}, "")


def described(config: dict[str, Any]) -> Described:
    """config : an ordinary model's config.json. Raises InputError where llama.cpp has no such
    architecture or rule of rotation."""
    kind = str(config.get("model_type"))
    full = complete(config)
    name, architecture = named(kind, full)
    found = {"general.architecture": name} | sizes(name, architecture, full)
    rotated, rotations = rotation(name, full)
    return Described(name, architecture, full, found | rotated, rotations)


def complete(config: dict[str, Any]) -> dict[str, Any]:
    """A config with the defaults of its class, and each field under all its names."""
    from karipap_core.models.empty import config_of

    made = config_of(config)
    found = made.to_dict()
    return found | {other: found[name] for other, name in made.attribute_map.items() if found.get(name) is not None}


def named(kind: str, config: dict[str, Any]) -> tuple[str, Architecture]:
    """(GGUF's name, what is known of it) of an architecture of transformers."""
    if kind == "falcon":
        if not config["new_decoder_architecture"]:
            return "falcon", FALCON
        return "falcon", FALCON_GROUPED if config.get("num_ln_in_parallel_attn") == 1 else FALCON_TWO_NORMS
    if kind == "mixtral":
        return "llama", MIXTRAL
    if kind in WRITTEN_AS:
        return WRITTEN_AS[kind], KNOWN[WRITTEN_AS[kind]]
    for name, architecture in KNOWN.items():
        if architecture.model_type == kind:
            return name, architecture
    known = sorted({architecture.model_type for architecture in KNOWN.values()} | WRITTEN_AS.keys())
    raise InputError(f"A model of the type {kind} is not written as GGUF; these are: {', '.join(known)}.")


def sizes(name: str, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The entries of an architecture, but for those of rotations' scaling."""
    rope = rope_of(config)
    config = config | {"rope_theta": rope.get("rope_theta")}
    config |= {"rope_local_base_freq": local_rope(config).get("rope_theta"), "sliding_window": window_of(config)}
    heads = config.get("num_attention_heads") or config.get("n_head")
    if heads:
        length = config.get("head_dim") or (config.get("hidden_size") or config["n_embd"]) // heads
        config["head_dim"] = length
    found = {key: config.get(field) for key, field in architecture.fields.items()} | {
        "vocab_size": config["vocab_size"]
    }
    if heads and name not in UNROTATED:
        partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1
        found["rope.dimension_count"] = int(length * partial)
    if "attention.key_length" in architecture.fields:
        found["attention.value_length"] = length
    if name == "gpt2":
        found["feed_forward_length"] = config["n_inner"] or 4 * config["n_embd"]
    found |= OTHERS.get(name, lambda config: {})(config)
    return {
        f"{name}.{key}": float(value) if key.endswith(REAL) else value
        for key, value in found.items()
        if value is not None
    }


REAL = ("epsilon", "freq_base", "freq_base_swa", "softcapping")
OTHERS = {  # what single architectures have besides
    "falcon": lambda config: {
        "feed_forward_length": config["ffn_hidden_size"],
        "attention.head_count_kv": config["num_kv_heads"] if config["new_decoder_architecture"] else 1,
        "tensor_data_layout": "jploski",
    },
    "gpt-oss": lambda config: {"feed_forward_length": config["intermediate_size"]},
    "bloom": lambda config: {
        "context_length": config.get("seq_length", 2048),
        "feed_forward_length": 4 * config["hidden_size"],
        "attention.head_count_kv": config["n_head"],
    },
    "gemma3": lambda config: {"attn_logit_softcapping": None},
    "stablelm": lambda config: {"use_parallel_residual": bool(config["use_parallel_residual"])},
    "mamba": lambda config: {
        "context_length": 1 << 20,
        "feed_forward_length": 0,
        "attention.head_count": 0,
        "ssm.dt_b_c_rms": False,
    },
    "qwen35": lambda config: {
        "full_attention_interval": config["layer_types"].index("full_attention") + 1,
        "ssm.inner_size": config["linear_num_value_heads"] * config["linear_value_head_dim"],
        "rope.dimension_sections": [*rope_of(config)["mrope_section"], 0],
    },
    "lfm2": lambda config: {
        "attention.head_count_kv": [config["num_key_value_heads"] * (kind != "conv") for kind in config["layer_types"]],
    },
}


def rope_of(config: dict[str, Any]) -> dict[str, Any]:
    """How positions are rotated, of layers that attend to all."""
    rope = config.get("rope_parameters") or {}
    return rope.get("full_attention", rope)


def local_rope(config: dict[str, Any]) -> dict[str, Any]:
    return (config.get("rope_parameters") or {}).get("sliding_attention", {})


def window_of(config: dict[str, Any]) -> int | None:
    return config.get("sliding_window") if config.get("use_sliding_window", True) else None


def rotation(name: str, config: dict[str, Any]) -> "tuple[dict[str, Any], dict[str, torch.Tensor]]":
    """(entries, tensors) that say how frequencies are scaled. Raises InputError for a rule that GGUF does not have."""
    import torch

    rope = rope_of(config)
    kind, scaling = rope.get("rope_type", "default"), f"{name}.rope.scaling"
    length = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    if kind == "default":
        return ({f"{scaling}.original_context_length": length} if name == "phi3" and length else {}), {}
    if kind == "linear":
        return {f"{scaling}.type": "linear", f"{scaling}.factor": float(rope["factor"])}, {}
    if kind == "yarn":
        found = {"type": "yarn", "factor": float(rope["factor"]), "original_context_length": length}
        found |= {f"yarn_{beta}": rope.get(beta) and float(rope[beta]) for beta in ("beta_fast", "beta_slow")}
        return {f"{scaling}.{key}": value for key, value in found.items() if value is not None}, {}
    if kind == "llama3" and (rope["low_freq_factor"], rope["high_freq_factor"]) == (LOW, HIGH):
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        waves = [2 * math.pi * rope["rope_theta"] ** (2 * index / size) for index in range(size // 2)]
        factors = [divisor(length / wave, rope["factor"]) for wave in waves]
        return {}, {"rope_freqs.weight": torch.tensor(factors)}
    if kind == "longrope" and length:
        factor = rope.get("factor") or config["max_position_embeddings"] / length
        grows = math.sqrt(1 + math.log(factor) / math.log(length)) if factor > 1 else 1.0
        entries = {"original_context_length": length, "attn_factor": float(rope.get("attention_factor") or grows)}
        sides = {f"rope_factors_{side}.weight": torch.tensor(rope[f"{side}_factor"]) for side in ("long", "short")}
        return {f"{scaling}.{key}": value for key, value in entries.items()}, sides
    raise InputError(f"llama.cpp has no word for rotations scaled by the rule {str(kind)[:40]} with these settings.")


def rotation_tensors(model: Described) -> list[Tensor]:
    """The tensors of `model.rotations` for a file."""
    return [
        Tensor(name, tuple(value.shape), "F32", partial(float_bytes, value, "F32"))
        for name, value in model.rotations.items()
    ]


def check_tensors(model: Described, tensors: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError for tensors of the file that llama.cpp has no place for, or lacks, in such a model."""
    taken = BIASES.get(model.name, set())
    for name in tensors:
        stem, _, suffix = name.rpartition(".")
        stem = stem.rpartition(".")[2]
        if suffix == "bias" and "norm" not in stem and stem not in taken | {"attn_q", "attn_k", "attn_v", "attn_qkv"}:
            raise InputError(f"llama.cpp's {model.name} has no place for the bias {name}.")
    if model.name in BIASES_NEEDED and "blk.0.attn_output.bias" not in tensors:
        raise InputError(f"llama.cpp's {model.name} needs biases, and this model has none.")
    sides = [model.config.get(f"linear_{kind}_head_dim") for kind in ("key", "value")]
    if model.name == "qwen35" and sides[0] != sides[1]:
        raise InputError(
            f"llama.cpp's qwen35 has values as long as keys, and this model's are {sides[1]} and {sides[0]}."
        )


def read_again(model: Described, tensors: dict[str, tuple[int, ...]]) -> list[str]:
    """What becomes of a config that is written and read: sentences on what llama.cpp does otherwise on purpose.

    tensors : names and shapes of the file's. Raises InputError naming a field that comes back otherwise.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "entries.gguf"
        rotations = rotation_tensors(model)
        write_file(file, model.entries, rotations, lambda name: None)
        header = read_header(file)
        held = {name: TensorInfo(file, "BF16", shape, 0, 0) for name, shape in tensors.items()}
        header = Header(file, header.entries, held | header.tensors, header.sum)
        try:
            back = complete(config_of(header, model.architecture))
        except InputError as error:
            raise InputError(
                f"llama.cpp has no word for a setting of this model: {error}".replace(f"{file}: ", "")
            ) from None
    known = complete({"model_type": model.config["model_type"]})
    other = [key for key in known if not SILENT.fullmatch(key) and not same(model.config.get(key), back.get(key))]
    window = window_of(model.config) if model.name in NO_WINDOW else None
    if model.name in NO_WINDOW:
        other = [key for key in other if key not in WINDOW]
    if other:
        ours = str(model.config.get(other[0]))[:80]
        raise InputError(f"llama.cpp has no word for {other[0]} = {ours} of this model's config.json.")
    if window is None or window >= model.config["max_position_embeddings"]:
        return []
    return [
        f"llama.cpp lets a token attend to all before it, the model to the last {window:,} alone: texts that are "
        "longer get other probabilities."
    ]


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a config say the same; what one of two sets of settings lacks is its default."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return all(same(ours[key], theirs[key]) for key in ours.keys() & theirs.keys())
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    if isinstance(ours, int | float) and isinstance(theirs, int | float):
        return math.isclose(ours, theirs, rel_tol=CLOSE)
    return ours == theirs
