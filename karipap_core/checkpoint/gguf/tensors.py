"""The tensors of a GGUF file as transformers names and lays them out, made when they are read."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from karipap_core.checkpoint.gguf.architectures import Architecture
from karipap_core.checkpoint.gguf.layouts import CHANGED, UNDO, Heads, wrong
from karipap_core.checkpoint.gguf.values import dtype_of, read_values
from karipap_core.checkpoint.tensorfile import TensorInfo, opened
from karipap_core.errors import InputError

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"(?:blk\.([0-9]{1,4})\.)?(\w+?)(\.weight|\.bias)?")
# Tensors that hold no weights: factors of the rotary frequencies, which the config says in another way.
ROPE = re.compile(r"(?:blk\.[0-9]{1,4}\.)?rope_(?:freqs|factors_long|factors_short)\.weight")


def tensors_of(
    tensors: dict[str, TensorInfo], architecture: Architecture, heads: Heads, name: str
) -> dict[str, TensorInfo]:
    """transformers' name → tensor. Raises InputError for a tensor that the architecture has no place for."""
    dtypes = {word: dtype_of(info) for word, info in {info.dtype: info for info in tensors.values()}.items()}
    found: dict[str, TensorInfo] = {}
    for stored, info in tensors.items():
        if ROPE.fullmatch(stored):
            continue
        matched = NAME.fullmatch(stored)
        target = architecture.names.get(matched[2]) if matched else None
        if matched is None or target is None or ("{n}" in target) != (matched[1] is not None):
            raise InputError(f"{name} holds {stored}, which a {architecture.model_class} has no place for.")
        layout = architecture.layout.get(matched[2])
        if layout and (why := wrong(layout, info.shape, heads)):
            raise InputError(f"{name}: tensor {stored} does not fit its head counts ({why}): fetch it again.")
        shape = CHANGED[layout](info.shape) if layout in CHANGED else info.shape
        target = target.replace("{n}", matched[1] or "") + (matched[3] or "")
        for place, part, sides in _experts(target, info, shape):
            found[place] = opened(info, sides, _made(part, layout, heads), dtypes[info.dtype])
    return found


def _experts(target: str, info: TensorInfo, shape: tuple[int, ...]):
    """(name, where it lies, shape) of each matrix of a stack of experts; of the tensor itself where it is none."""
    if "{e}" not in target:
        yield target, info, shape
        return
    size = info.size // max(shape[0], 1)
    for number in range(shape[0]):
        part = replace(info, shape=shape[1:], start=info.start + number * size, size=size)
        yield target.replace("{e}", str(number)), part, shape[1:]


def _made(info: TensorInfo, layout: str | None, heads: Heads) -> Callable[[int | None], "torch.Tensor"]:
    def make(index: int | None) -> "torch.Tensor":
        values = read_values(info)
        values = UNDO[layout](values, heads) if layout else values
        return values if index is None else values[index]

    return make
