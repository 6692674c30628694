"""Opens GGUF files: what a `Checkpoint` of one is made of."""

from dataclasses import astuple
from pathlib import Path

from karipap_core.checkpoint.form import Form, Opened
from karipap_core.checkpoint.gguf.config import architecture_of, config_of, heads_of
from karipap_core.checkpoint.gguf.header import read_parts
from karipap_core.checkpoint.gguf.home import home_of
from karipap_core.checkpoint.gguf.tensors import tensors_of
from karipap_core.checkpoint.gguf.words import words_of
from karipap_core.errors import InputError

AHEAD = ("qwen3_5_text",)  # models whose blocks behind the last predict further tokens; transformers has no such blocks


def open_gguf(files: list[Path], name: str) -> tuple[Opened, Path]:
    """(what the files open to, the folder with their config.json and tokenizer); several are one model in parts.

    Raises InputError for damaged files, an architecture or a type that is not opened, and entries or tensors that
    transformers' model has no place for.
    """
    header = read_parts(files)
    architecture = architecture_of(header)
    if not header.tensors:
        raise InputError(f"{files[0]} holds no tensors: fetch it again.")
    heads = heads_of(header)
    config = config_of(header, architecture)
    blocks = config.get("num_hidden_layers") if architecture.model_type in AHEAD else None
    own = {key: info for key, info in header.tensors.items() if blocks is None or not _behind(key, blocks)}
    tensors = tensors_of(own, architecture, heads, name)
    recipe = {"gguf": architecture.model_type, "heads": list(astuple(heads))}
    form = Form(words_of(header), header.tensors, recipe)
    return Opened(config, tensors, form), home_of(header, config)


def _behind(tensor: str, blocks: int) -> bool:
    """Whether a tensor is of a block behind the last."""
    start, _, rest = tensor.partition(".")
    number = rest.partition(".")[0]
    return start == "blk" and number.isdecimal() and int(number[:9]) >= blocks
