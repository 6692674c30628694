"""A model's config.json from the entries of a GGUF file."""

from typing import Any

import numpy as np

from karipap_core.checkpoint.gguf.architectures import KNOWN, MIXTRAL, Architecture
from karipap_core.checkpoint.gguf.header import Header
from karipap_core.checkpoint.gguf.layouts import Heads
from karipap_core.errors import InputError

MOST_SHOWN = 40  # characters of a value that are shown
# Entries of an architecture that change nothing here: said elsewhere, or of llama.cpp's own.
SAID_ELSEWHERE = {"vocab_size", "tensor_data_layout", "attention.value_length", "rope.dimension_count"}
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
    if name not in KNOWN:
        raise InputError(
            f"{header.file} is of the architecture {name[:MOST_SHOWN]}, which is not opened from GGUF: open the "
            "Hugging Face model that it was made from (safetensors)."
        )
    return KNOWN[name]


def heads_of(header: Header) -> Heads:
    """The head counts of a file, which decide about the order of rows."""
    name = header.entries["general.architecture"]
    queries = _plain(header, f"{name}.attention.head_count") or 0
    return Heads(queries, _plain(header, f"{name}.attention.head_count_kv") or queries)


def config_of(header: Header, architecture: Architecture) -> dict[str, Any]:
    """The config.json of a file's model. Raises InputError for an entry that no field says."""
    name = header.entries["general.architecture"]
    config: dict[str, Any] = {
        "architectures": [architecture.model_class],
        "model_type": architecture.model_type,
        "dtype": dtype_of_model(header),
        "tie_word_embeddings": architecture.tied or "output.weight" not in header.tensors,
    }
    config |= architecture.constants
    config |= {field: True for field, tensor in architecture.flags.items() if tensor in header.tensors}
    if (table := header.tensors.get("token_embd.weight")) is not None and len(table.shape) == 2:
        config["vocab_size"] = table.shape[0]
    for key in header.entries:
        prefix, _, rest = key.partition(".")
        if prefix != name:
            continue
        if field := architecture.fields.get(rest):
            config[field] = _plain(header, key)
        elif rest not in SAID_ELSEWHERE:
            shown = str(header.entries[key])[:MOST_SHOWN]
            raise InputError(f"{header.file} has the entry {key} ({shown}), which is not known here.")
    if architecture.wide:  # of Gemma 2 and 3; no entry says it, and llama.cpp goes by the number of blocks
        wide = config.get("num_hidden_layers") == architecture.wide
        scaled = config["hidden_size"] // heads_of(header).queries if wide else config["head_dim"]
        config["query_pre_attn_scalar"] = scaled
    config |= {field: _plain(header, key) for key, field in IDS.items() if key in header.entries}
    return config


def dtype_of_model(header: Header) -> str:
    """The dtype that a file's model is said to be of: that of its halves, bfloat16 where it holds blocks."""
    words = {info.dtype for info in header.tensors.values()}
    if words - set(ONLY_FLOATS) or "BF16" in words:
        return "bfloat16"
    return "float16" if "F16" in words else "float32"


def _plain(header: Header, key: str) -> Any:
    """An entry as one number or word: what a list gives each layer has to be the same for all. Floats of 32 bits become
    the shortest decimal that stands for them, as the model's own config.json had it."""
    value = header.entries.get(key)
    if isinstance(value, list):
        if len(set(value)) != 1:
            raise InputError(f"{header.file}: {key} differs from layer to layer, which is not opened here.")
        value = value[0]
    return float(str(np.float32(value))) if isinstance(value, float) else value
