"""What llama.cpp's converter does to some tensors: rows in another order, norms with one added, and the like. `UNDO`
leads from a file's tensor to transformers', `DO` back.

Each is a function of the tensor and of the file's head counts; all but `CHANGED` keep its shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes a second to import
    import torch


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, as a file gives them (0 where it has none). Of linear attention: `groups` of value
    heads, one for each key head, `values` of these heads, of `size` numbers; `before` them stand queries and keys."""

    queries: int
    keys: int
    groups: int = 0
    values: int = 0
    size: int = 0
    before: int = 0


def _rotated(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from rotary pairs that are neighbours to pairs that are half a head apart."""
    halves = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, halves, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _grouped(tensor: "torch.Tensor", heads: Heads) -> "torch.Tensor":
    """Rows from all queries, all keys, all values to each group's queries, its key and its value."""
    import torch

    size = tensor.shape[0] // (heads.queries + 2 * heads.keys)
    parts = tensor.split([heads.queries * size, heads.keys * size, heads.keys * size])
    groups = [part.reshape(heads.keys, -1, *tensor.shape[1:]) for part in parts]
    return torch.cat(groups, 1).reshape(tensor.shape)


def _by_heads(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from all queries, all keys, all values to each head's three."""
    return tensor.reshape(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _tiled(tensor: "torch.Tensor", heads: Heads, size: int, before: int = 0) -> "torch.Tensor":
    """Rows from the first value head of each group, the second of each … to each group's heads together; those before
    stay."""
    import torch

    rows = tensor[before:].reshape(heads.values // heads.groups, heads.groups, size, *tensor.shape[1:])
    return torch.cat([tensor[:before], rows.transpose(0, 1).reshape(tensor[before:].shape)])


def _log(tensor: "torch.Tensor") -> "torch.Tensor":
    return (-tensor.float()).log().to(tensor.dtype)


UNDO: dict[str, Callable[["torch.Tensor", Heads], "torch.Tensor"]] = {
    "rotated q": lambda tensor, heads: _rotated(tensor, heads.queries),
    "rotated k": lambda tensor, heads: _rotated(tensor, heads.keys),
    "grouped qkv": _grouped,
    "qkv by heads": lambda tensor, heads: _by_heads(tensor, heads.queries),
    "one more": lambda tensor, _: (tensor.float() - 1).to(tensor.dtype),
    "minus exponential": lambda tensor, _: _log(tensor),
    "tiled heads": lambda tensor, heads: _tiled(tensor, heads, 1),
    "tiled values": lambda tensor, heads: _tiled(tensor, heads, heads.size),
    "tiled values behind": lambda tensor, heads: _tiled(tensor, heads, heads.size, heads.before),
    "tiled channels behind": lambda tensor, heads: _tiled(tensor, heads, heads.size, heads.before).unsqueeze(1),
    "tiled columns": lambda tensor, heads: _tiled(tensor.T, heads, heads.size).T.contiguous(),
    "tiled exponential": lambda tensor, heads: _tiled(_log(tensor), heads, 1),
    "transposed": lambda tensor, _: tensor.T.contiguous(),
    "each transposed": lambda tensor, _: tensor.transpose(-1, -2).contiguous(),
    "a row": lambda tensor, _: tensor.reshape(1, -1),
    "a channel": lambda tensor, _: tensor.unsqueeze(1),
}


def _paired(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from rotary pairs that are half a head apart to neighbours."""
    halves = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, 2, halves, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def _ungrouped(tensor: "torch.Tensor", heads: Heads) -> "torch.Tensor":
    """Rows from each group's queries, its key and its value to all queries, all keys, all values."""
    import torch

    each = heads.queries // heads.keys
    groups = tensor.reshape(heads.keys, each + 2, -1, *tensor.shape[1:])
    return torch.cat([part.flatten(0, 2) for part in groups.split([each, 1, 1], 1)])


def _by_parts(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from each head's query, key and value to all queries, all keys, all values."""
    return tensor.reshape(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _untiled(tensor: "torch.Tensor", heads: Heads, size: int, before: int = 0) -> "torch.Tensor":
    """Rows from each group's value heads together to the first of each group, the second of each …; those before
    stay."""
    import torch

    rows = tensor[before:].reshape(heads.groups, heads.values // heads.groups, size, *tensor.shape[1:])
    return torch.cat([tensor[:before], rows.transpose(0, 1).reshape(tensor[before:].shape)])


def _minus_exponential(tensor: "torch.Tensor") -> "torch.Tensor":
    return -tensor.float().exp()


DO: dict[str, Callable[["torch.Tensor", Heads], "torch.Tensor"]] = {
    "rotated q": lambda tensor, heads: _paired(tensor, heads.queries),
    "rotated k": lambda tensor, heads: _paired(tensor, heads.keys),
    "grouped qkv": _ungrouped,
    "qkv by heads": lambda tensor, heads: _by_parts(tensor, heads.queries),
    "one more": lambda tensor, _: tensor.float() + 1,
    "minus exponential": lambda tensor, _: _minus_exponential(tensor),
    "tiled heads": lambda tensor, heads: _untiled(tensor, heads, 1),
    "tiled values": lambda tensor, heads: _untiled(tensor, heads, heads.size),
    "tiled values behind": lambda tensor, heads: _untiled(tensor, heads, heads.size, heads.before),
    "tiled channels behind": lambda tensor, heads: _untiled(tensor.squeeze(1), heads, heads.size, heads.before),
    "tiled columns": lambda tensor, heads: _untiled(tensor.T, heads, heads.size).T,
    "tiled exponential": lambda tensor, heads: _untiled(_minus_exponential(tensor), heads, 1),
    "transposed": lambda tensor, _: tensor.T,
    "each transposed": lambda tensor, _: tensor.transpose(-1, -2),
    "a row": lambda tensor, _: tensor.reshape(-1),
    "a channel": lambda tensor, _: tensor.squeeze(1),
}
# layout → the shape that a tensor of a file has in transformers
CHANGED: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "transposed": lambda shape: shape[::-1],
    "each transposed": lambda shape: (*shape[:-2], *shape[:-3:-1]),
    "a row": lambda shape: (1, shape[-1]),
    "a channel": lambda shape: (shape[0], 1, *shape[1:]),
    "tiled channels behind": lambda shape: (shape[0], 1, *shape[1:]),
}
# Sides that a tensor has before
SIDES = {"transposed": 2, "each transposed": 3, "a row": 1, "a channel": 2, "tiled channels behind": 2}
SIDES |= {"tiled columns": 2}
OF_ROWS = ("rotated q", "rotated k", "grouped qkv", "qkv by heads", "tiled heads")  # these hold for a bias too


def wrong(layout: str, shape: tuple[int, ...], heads: Heads) -> str | None:
    """Why a tensor of that shape cannot have been laid out so, or None."""
    if (sides := SIDES.get(layout)) is not None and len(shape) != sides:
        return f"{len(shape)} dimensions where {sides} are due"
    if layout.startswith("tiled"):
        size = 1 if layout in ("tiled heads", "tiled exponential") else heads.size
        due = heads.values * size + (heads.before if layout.endswith("behind") else 0)
        rows = shape[-1] if layout == "tiled columns" and shape else shape[0] if shape else 0
        grouped = heads.groups > 0 and heads.size > 0 and heads.values % heads.groups == 0
        return None if grouped and rows == due else f"{rows:,} rows for {heads.values:,} value heads of {heads.size:,}"
    parts = {
        "rotated q": 2 * heads.queries,
        "rotated k": 2 * heads.keys,
        "grouped qkv": heads.queries + 2 * heads.keys,
        "qkv by heads": 3 * heads.queries,
    }
    if layout in parts and (parts[layout] < 1 or not shape or shape[0] % parts[layout]):
        return f"{shape[0] if shape else 0:,} rows for {heads.queries:,} heads of queries and {heads.keys:,} of keys"
    return "its head counts are no multiples" if layout == "grouped qkv" and heads.queries % heads.keys else None
