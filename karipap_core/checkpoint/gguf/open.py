"""Opens GGUF files: what a `Checkpoint` of one is made of."""

from pathlib import Path

from karipap_core.checkpoint.form import Form, Opened
from karipap_core.checkpoint.gguf.config import architecture_of, config_of, heads_of
from karipap_core.checkpoint.gguf.header import read_parts
from karipap_core.checkpoint.gguf.home import home_of
from karipap_core.checkpoint.gguf.tensors import tensors_of
from karipap_core.checkpoint.gguf.words import words_of
from karipap_core.errors import InputError


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
    tensors = tensors_of(header.tensors, architecture, heads, name)
    recipe = {"gguf": architecture.model_type, "heads": [heads.queries, heads.keys]}
    form = Form(words_of(header), header.tensors, recipe)
    return Opened(config, tensors, form), home_of(header, config)
