"""A model's config.json from the entries of a GGUF file."""

from typing import Any

from karipap_core.checkpoint.gguf.architectures import (
    FALCON_GROUPED,
    FALCON_TWO_NORMS,
    KNOWN,
    MIXTRAL,
    Architecture,
)
from karipap_core.checkpoint.gguf.header import Header
from karipap_core.checkpoint.gguf.layouts import Heads
from karipap_core.checkpoint.gguf.rope import decimal, rope_of
from karipap_core.errors import InputError

MOST_SHOWN = 40  # characters of a value that are shown
# Entries of an architecture that change nothing here: said elsewhere, or of llama.cpp's own.
SAID_ELSEWHERE = ("vocab_size", "tensor_data_layout", "attention.value_length", "attention.key_length")
COUNTS = (
    *("attention.head_count", "attention.head_count_kv"),
    *("ssm.group_count", "ssm.time_step_rank", "ssm.inner_size", "ssm.state_size"),
)
LENGTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
ROPE = ("rope.freq_base", "rope.dimension_count", "rope.scale_linear", "rope.dimension_sections")
NEEDED = ("embedding_length", "block_count", "attention.head_count", "ssm.inner_size")
MOST, MOST_BLOCKS = 1 << 24, 1 << 12  # of these that are believed
IDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}
ONLY_FLOATS = ("F32", "F16", "BF16")


def architecture_of(header: Header) -> Architecture:
    """What a file's model is. Raises InputError for a file that is no language model, or of an unknown architecture."""
    entries = header.entries
    kind, name = entries.get("general.type", "model"), entries.get("general.architecture")
    if kind != "model":
        raise InputError(f"{header.file} is a GGUF file of another kind ({str(kind)[:MOST_SHOWN]}), not a model.")
    if not isinstance(name, str):
        raise InputError(f"{header.file} has no general.architecture: it does not say what model it is.")
    if name == "llama" and entries.get("llama.expert_count"):
        return MIXTRAL
    if name == "falcon" and heads_of(header).keys > 1:
        return FALCON_TWO_NORMS if "blk.0.attn_norm_2.weight" in header.tensors else FALCON_GROUPED
    if name not in KNOWN:
        raise InputError(
            f"{header.file} is of the architecture {name[:MOST_SHOWN]}, which is not opened from GGUF: open the "
            "Hugging Face model that it was made from (safetensors)."
        )
    return KNOWN[name]


def heads_of(header: Header) -> Heads:
    """The head counts of a file, which decide about the order of rows."""
    name = header.entries["general.architecture"]
    queries, keys, groups, values, inner, size = (_count(header.entries.get(f"{name}.{what}")) for what in COUNTS)
    return Heads(queries, keys or queries, groups, values, inner // values if values else 0, 2 * size * groups)


def _count(value: Any) -> int:
    """A count of a file, of a list the largest; 0 for what is none."""
    value = max(value) if isinstance(value, list) and value else value
    return value if _whole(value) else 0


def config_of(header: Header, architecture: Architecture) -> dict[str, Any]:
    """The config.json of a file's model. Raises InputError for an entry that no field says."""
    name = header.entries["general.architecture"]
    said = {key.removeprefix(f"{name}."): key for key in header.entries if key.startswith(f"{name}.")}
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
        "dtype": dtype_of_model(header),
        "tie_word_embeddings": architecture.tied or "output.weight" not in header.tensors,
    }
    config |= architecture.constants
    config |= {field: True for field, tensor in architecture.flags.items() if tensor in header.tensors}
    config |= {field: tensor not in header.tensors for field, tensor in architecture.lacks.items()}
    if (table := header.tensors.get("token_embd.weight")) is not None and len(table.shape) == 2:
        config["vocab_size"] = table.shape[0]
    for rest, key in said.items():
        if field := architecture.fields.get(rest):
            config[field] = _plain(header, key)
        elif rest.startswith("expert_") and not header.entries[key]:
            continue  # of a model without experts
        elif rest not in SAID_ELSEWHERE + architecture.silent and not rest.startswith("rope."):
            shown = str(header.entries[key])[:MOST_SHOWN]
            raise InputError(f"{header.file} has the entry {key} ({shown}), which is not known here.")
    _missing(header, architecture, config, name)
    _heads(header, architecture, config, {rest: _plain(header, key) for rest, key in said.items() if rest in LENGTHS})
    rope = {rest: header.entries[key] for rest, key in said.items() if rest.startswith("rope.")}
    rope = {
        rest: value if rest == "rope.dimension_sections" else _plain(header, said[rest]) for rest, value in rope.items()
    }
    known = (*ROPE, *architecture.fields)
    if unknown := next((rest for rest in rope if not rest.startswith("rope.scaling.") and rest not in known), None):
        raise InputError(f"{header.file} has the entry {said[unknown]} ({rope[unknown]}), which is not known here.")
    config |= rope_of(header, rope, config)
    if "rope_scaling" in config and not config["rope_scaling"]:
        del config["rope_scaling"]
    if (special := SPECIAL.get(architecture.model_type)) is not None:
        config |= special(header, architecture, config)
    return config | {field: _plain(header, key) for key, field in IDS.items() if key in header.entries}


def _missing(header: Header, architecture: Architecture, config: dict[str, Any], name: str) -> None:
    """Raises InputError where an entry is not there, or is no number above 0, without which no model can be built."""
    for rest, field in architecture.fields.items():
        value, due = config.get(field), rest in NEEDED
        if due and not (value is not None and _whole(value) and (rest != "block_count" or value <= MOST_BLOCKS)):
            said = "lacks" if value is None else f"says {str(value)[:MOST_SHOWN]} for"
            raise InputError(f"{header.file} {said} {name}.{rest}, a whole number above 0: fetch it again.")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST


def _heads(header: Header, architecture: Architecture, config: dict[str, Any], lengths: dict[str, Any]) -> None:
    """Fills in the length of a head, and the part of it that is rotated. Raises InputError where these contradict each
    other, or are what transformers has no word for."""
    heads = heads_of(header)
    if not heads.queries:
        return
    usual = config.get("hidden_size", config.get("n_embd", 0)) // heads.queries
    length = lengths.get("attention.key_length", usual)
    if "attention.key_length" in architecture.fields:
        length = config.setdefault("head_dim", length)
    value, rotated = lengths.get("attention.value_length", length), lengths.get("rope.dimension_count", length)
    if not all(map(_whole, (usual, length, value, rotated))):
        raise InputError(f"{header.file} says {length}, {value} or {rotated} for the length of a head: fetch it again.")
    if architecture.partial and length and rotated != length:
        config["partial_rotary_factor"] = rotated / length
        rotated = length
    if value != length or rotated != length or (length != usual and "head_dim" not in config):
        raise InputError(
            f"{header.file} has heads of {length} with values of {value}, of which {rotated} are rotated: a "
            f"{architecture.model_class} has no such heads."
        )


def _gemma(header: Header, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """By what queries are scaled: no entry says it, and llama.cpp goes by the number of blocks."""
    wide = config["num_hidden_layers"] == architecture.wide
    return {"query_pre_attn_scalar": config["hidden_size"] // heads_of(header).queries if wide else config["head_dim"]}


def _falcon(header: Header, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """The first Falcon's config has no count of heads of keys: there is one."""
    return {} if config["new_decoder_architecture"] else {"num_kv_heads": None}


def _mamba(header: Header, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    if header.entries.get("mamba.ssm.dt_b_c_rms"):  # Falcon Mamba
        raise InputError(f"{header.file} is a Mamba with norms within (ssm.dt_b_c_rms), which is not opened from GGUF.")
    return {"expand": config["intermediate_size"] // config["hidden_size"]}


def _lfm2(header: Header, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """A block without heads of keys is one of short convolutions."""
    counts: Any = header.entries.get("lfm2.attention.head_count_kv")
    whole = isinstance(counts, list) and all(_whole(count) or count == 0 for count in counts)
    if not whole or len(counts) != config["num_hidden_layers"] or not any(counts):
        raise InputError(f"{header.file}: lfm2.attention.head_count_kv is no list of a number for each block.")
    types = ["full_attention" if count else "conv" for count in counts]
    return {"num_key_value_heads": max(counts), "layer_types": types}


def _qwen35(header: Header, architecture: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """Three blocks of linear attention and one of full, by turns; positions of text, rows and columns of images share a
    head. What predicts further tokens counts as blocks in the file, and has no place in transformers."""
    entries, heads = header.entries, heads_of(header)
    every, further = (entries.get(f"qwen35.{key}", 0) for key in ("full_attention_interval", "nextn_predict_layers"))
    sections = entries.get("qwen35.rope.dimension_sections")
    parts = [part for part in sections if part] if isinstance(sections, list) else []
    count = config["num_hidden_layers"] - further if isinstance(further, int) else 0
    if not _whole(every) or not _whole(count) or not parts or not all(map(_whole, parts)) or not heads.size:
        raise InputError(f"{header.file} does not say how its blocks of linear attention are made: fetch it again.")
    rope = {
        "rope_theta": config.pop("rope_theta", 1e7),
        "partial_rotary_factor": config.pop("partial_rotary_factor", 1.0),
    }
    return {
        "num_hidden_layers": count,
        "layer_types": [("linear" if (block + 1) % every else "full") + "_attention" for block in range(count)],
        "linear_value_head_dim": heads.size,
        "rope_parameters": {"rope_type": "default", "mrope_section": parts, "mrope_interleaved": True, **rope},
    }


SPECIAL = {
    "qwen3_5_text": _qwen35,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "falcon": _falcon,
    "mamba": _mamba,
    "lfm2": _lfm2,
}


def dtype_of_model(header: Header) -> str:
    """The dtype that a file's model is said to be of: that of its halves, bfloat16 where it holds blocks."""
    words = {info.dtype for info in header.tensors.values()}
    if words - set(ONLY_FLOATS) or "BF16" in words:
        return "bfloat16"
    return "float16" if "F16" in words else "float32"


def _plain(header: Header, key: str) -> Any:
    """An entry as one number or word: what a list gives each layer has to be the same for all."""
    value = header.entries.get(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise InputError(f"{header.file}: {key} differs from layer to layer, which is not opened here.")
        value = value[0]
    return decimal(value) if isinstance(value, float) else value
