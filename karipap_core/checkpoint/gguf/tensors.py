"""The tensors of a GGUF file as transformers names and lays them out, made when they are read."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from karipap_core.checkpoint.gguf.architectures import Architecture
from karipap_core.checkpoint.gguf.layouts import CHANGED, OF_ROWS, UNDO, Heads, wrong
from karipap_core.checkpoint.gguf.values import dtype_of, read_values
from karipap_core.checkpoint.tensorfile import FLOATS, TensorInfo, opened
from karipap_core.errors import InputError

if TYPE_CHECKING:
    import torch

NAME = re.compile(r"(?:blk\.([0-9]{1,4})\.)?([\w.]+?)(\.weight|\.bias)?")
# Tensors that hold no weights: factors of the rotary frequencies, which the config says in another way.
ROPE = re.compile(r"(?:blk\.[0-9]{1,4}\.)?rope_(?:freqs|factors_long|factors_short)\.weight")
WHOLE = (
    "experts.down_proj",
    "self_attn.sinks",
    "linear_attn.dt",
)  # parameters of transformers that are no module's weight
LEAST = {"F32": 0, "BF16": 1, "F16": 1}  # of two that become one tensor, the wider


def tensors_of(
    tensors: dict[str, TensorInfo], architecture: Architecture, heads: Heads, name: str
) -> dict[str, TensorInfo]:
    """transformers' name → tensor. Raises InputError for a tensor that the architecture has no place for."""
    dtypes = {word: dtype_of(info) for word, info in {info.dtype: info for info in tensors.values()}.items()}
    found: dict[str, TensorInfo] = {}
    turns: dict[str, dict[int, TensorInfo]] = {}
    for stored, info in tensors.items():
        if ROPE.fullmatch(stored):
            continue
        matched = NAME.fullmatch(stored)
        block, stem, suffix = matched.groups(default="") if matched else ("", "", "")
        target, turn = architecture.turns.get(stem, (architecture.names.get(stem), None))
        if target is None or ("{n}" in target) != bool(block):
            raise InputError(f"{name} holds {stored}, which a {architecture.model_class} has no place for.")
        target = target.replace("{n}", block)
        if turn is not None:
            turns.setdefault(f"{target}{suffix.replace('.', '_').removesuffix('_weight')}", {})[turn] = info
            continue
        layout = architecture.layout.get(stem)
        layout = None if suffix == ".bias" and layout not in OF_ROWS else layout
        if layout and (why := wrong(layout, info.shape, heads)):
            raise InputError(f"{name}: tensor {stored} does not fit its head counts ({why}): fetch it again.")
        target += suffix.replace(".", "_").removesuffix("_weight") if target.endswith(WHOLE) else suffix
        shape = CHANGED[layout](info.shape) if layout in CHANGED else info.shape
        for place, part, sides in _experts(target, info, shape):
            found[place] = opened(info, sides, _made(part, layout, heads), dtypes[info.dtype])
    return found | {target: _by_turns(target, parts, dtypes, name) for target, parts in turns.items()}


def _by_turns(target: str, parts: dict[int, TensorInfo], dtypes: dict[str, str], name: str) -> TensorInfo:
    """Two tensors of experts, (experts, rows, columns) or a bias each, whose rows become columns of one by turns."""
    if len(parts) < 2 or parts[0].shape != parts[1].shape or len(parts[0].shape) not in (2, 3):
        raise InputError(f"{name} lacks a half of {target}, or has it in another shape: fetch it again.")
    shape = parts[0].shape
    dtype = min((dtypes[part.dtype] for part in parts.values()), key=LEAST.__getitem__)

    def make(index: int | None) -> "torch.Tensor":
        import torch

        halves = [read_values(part if index is None else _slice(part, index)) for _, part in sorted(parts.items())]
        halves = [half.to(getattr(torch, FLOATS[dtype])) for half in halves]
        joined = torch.stack(halves, -2 if len(shape) == 3 else -1)  # (…, rows, 2, columns), or (…, rows, 2)
        joined = joined.flatten(-3, -2).transpose(-1, -2) if len(shape) == 3 else joined.flatten(-2)
        return joined.contiguous()

    sides = (shape[0], shape[2], 2 * shape[1]) if len(shape) == 3 else (shape[0], 2 * shape[1])
    return opened(parts[0], sides, make, dtype)


def _slice(info: TensorInfo, number: int) -> TensorInfo:
    """Where a slice of a tensor's first dimension lies."""
    size = info.size // info.shape[0]
    return replace(info, shape=info.shape[1:], start=info.start + number * size, size=size)


def _experts(target: str, info: TensorInfo, shape: tuple[int, ...]):
    """(name, where it lies, shape) of each matrix of a stack of experts; of the tensor itself where it is none."""
    if "{e}" not in target:
        yield target, info, shape
        return
    for number in range(shape[0]):
        yield target.replace("{e}", str(number)), _slice(info, number), shape[1:]


def _made(info: TensorInfo, layout: str | None, heads: Heads) -> Callable[[int | None], "torch.Tensor"]:
    def make(index: int | None) -> "torch.Tensor":
        if index is not None and layout in (None, "each transposed"):
            values = read_values(_slice(info, index))
            return values if layout is None else values.T.contiguous()
        values = read_values(info)
        values = UNDO[layout](values, heads) if layout else values
        return values if index is None else values[index]

    return make
