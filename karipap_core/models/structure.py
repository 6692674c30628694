"""What a block of a model returns, as its tensors and all the rest."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten


@dataclass
class Odd:
    """What a block returns besides its tensors (None in `leaves`), where that is no JSON."""

    spec: TreeSpec
    leaves: list[Any]


def taken_apart(found: Any) -> tuple[list[torch.Tensor], Any]:
    """(the tensors in what a block returns, what else it is): JSON where that is tensors, None, tuples and lists."""
    if isinstance(found, torch.Tensor):
        return [found], "tensor"
    if found is None:
        return [], None
    if type(found) in (tuple, list):
        parts = [taken_apart(each) for each in found]
        if not any(isinstance(structure, Odd) for _, structure in parts):
            return [tensor for tensors, _ in parts for tensor in tensors], [
                type(found).__name__,
                *(s for _, s in parts),
            ]
    leaves, spec = tree_flatten(found)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return tensors, Odd(spec, [None if isinstance(leaf, torch.Tensor) else (leaf,) for leaf in leaves])


def put_together(tensors: Iterator[torch.Tensor], structure: Any) -> Any:
    """The inverse of `taken_apart`."""
    if structure is None or structure == "tensor":
        return None if structure is None else next(tensors)
    if isinstance(structure, Odd):
        leaves = [next(tensors) if leaf is None else leaf[0] for leaf in structure.leaves]
        return tree_unflatten(leaves, structure.spec)
    parts = [put_together(tensors, each) for each in structure[1:]]
    return tuple(parts) if structure[0] == "tuple" else parts
