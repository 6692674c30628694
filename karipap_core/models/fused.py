"""Linear layers of a live model that its files store as one matrix (queries, keys and values …), run as that matrix.

transformers cuts such a matrix apart while it loads. To watch, replace or compress the weight that is stored, its
layers become parts of one module: the product is formed once, and each part gives its rows of it.
"""

from typing import Any

import torch
from torch import nn

from karipap_core.models.experts import linear_of


class Part(nn.Module):
    """One of the layers: some rows of what `parent.<name>` gives, and a bias of its own."""

    bias: torch.Tensor | None

    def __init__(self, linear: nn.Linear, parent: nn.Module, name: str, rows: torch.Tensor, shared: dict[str, Any]):
        super().__init__()
        self.register_parameter("bias", linear.bias)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.rows, self.name = rows, name
        object.__setattr__(self, "parent", parent)  # which has this part as a child
        self.shared = shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = self.shared
        if shared.get("x") is not x or id(self) in shared["given"]:
            shared |= {"x": x, "y": getattr(self.parent, self.name)(x), "given": set()}
        y = shared["y"][..., self.rows.to(x.device)]
        shared["given"].add(id(self))
        if len(shared["given"]) == shared["parts"]:  # nothing is held longer than it is needed
            shared |= {"x": None, "y": None}
        return y if self.bias is None else y + self.bias


def fuse(model: nn.Module, linears: dict[str, nn.Linear], name: str, rows: list[torch.Tensor]) -> str:
    """Makes linear layers (by path) parts of one module, beside the first of them and called `name`, whose path is
    returned. rows: for each layer the rows of the stored matrix that are its own."""
    parent = next(iter(linears)).rpartition(".")[0]
    holder = model.get_submodule(parent)
    first = next(iter(linears.values())).weight
    whole = torch.empty(sum(map(len, rows)), first.shape[1], dtype=first.dtype, device=first.device)
    for linear, own in zip(linears.values(), rows, strict=True):
        whole[own.to(first.device)] = linear.weight.data
    holder.add_module(name, linear_of(whole))
    shared: dict[str, Any] = {"parts": len(linears)}
    for (path, linear), own in zip(linears.items(), rows, strict=True):
        model.set_submodule(path, Part(linear, holder, name, own, shared))
    return f"{parent}.{name}".lstrip(".")
