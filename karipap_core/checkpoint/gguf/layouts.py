"""What llama.cpp's converter does to some tensors, undone: rows in another order, norms with one added, and the like.

Each is a function of the tensor and of the file's head counts; all but `CHANGED` keep its shape.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes a second to import
    import torch


@dataclass(frozen=True)
class Heads:
    """Heads of queries and of keys, as a file gives them (0 where it has none)."""

    queries: int
    keys: int


def _rotated(tensor: "torch.Tensor", heads: int) -> "torch.Tensor":
    """Rows from rotary pairs that are neighbours to pairs that are half a head apart."""
    halves = tensor.shape[0] // heads // 2
    return tensor.reshape(heads, halves, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


UNDO: dict[str, Callable[["torch.Tensor", Heads], "torch.Tensor"]] = {
    "rotated q": lambda tensor, heads: _rotated(tensor, heads.queries),
    "rotated k": lambda tensor, heads: _rotated(tensor, heads.keys),
    "one more": lambda tensor, _: (tensor.float() - 1).to(tensor.dtype),
    "a row": lambda tensor, _: tensor.reshape(1, -1),
}
# layout → the shape that a tensor has afterwards
CHANGED: dict[str, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "a row": lambda shape: (1, shape[-1]),
}


def wrong(layout: str, shape: tuple[int, ...], heads: Heads) -> str | None:
    """Why a tensor of that shape cannot have been laid out so, or None."""
    counts = {"rotated q": heads.queries, "rotated k": heads.keys}
    if (count := counts.get(layout)) is not None and (count < 1 or not shape or shape[0] % (2 * count)):
        return f"{shape[0] if shape else 0} rows do not make {count} heads of pairs"
    return None
