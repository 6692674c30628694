"""An embedding whose table is a tensor network: a drop-in for `nn.Embedding`.

table = TensorNetworkEmbedding.from_embedding(embedding, spec, metric)
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from karipap_core.errors import InputError
from karipap_core.layers.cores import Cores, CoresModule, LookedUp
from karipap_core.networks import Metric, Spec


def looked_up(spec: Spec) -> bool:
    """Whether a network can be looked up in row by row, as an embedding is."""
    return type(spec).rows is not Spec.rows


class TensorNetworkEmbedding(CoresModule):
    """Rows of Ŵ (num_embeddings, embedding_dim) at ids (…) → (…, embedding_dim), Ŵ held as the cores of `spec`.

    runtime "auto" or "cores" computes the rows asked for and never forms Ŵ; "dense" keeps it, as in
    `TensorNetworkLinear`. `scale` multiplies every row; with `scale_rounds` it is first rounded to the rows' dtype, as
    the models do that keep it in a tensor. Cores in a format are dequantized in every pass, where they can be only the
    rows asked for.
    """

    def __init__(
        self,
        spec: Spec,
        padding_idx: int | None = None,
        scale: float | None = None,
        scale_rounds: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        runtime: str = "auto",
        borrowed: Mapping[int, Cores] | None = None,
    ) -> None:
        """Uninitialized cores. Raises InputError for a network that cannot be looked up in."""
        if not looked_up(spec):
            raise InputError(
                f"A {spec.network!r} cannot be looked up in row by row: it is no network for an embedding."
            )
        super().__init__(spec, device, dtype, runtime, borrowed)
        self.num_embeddings, self.embedding_dim = spec.n_out, spec.n_in
        self.padding_idx, self.scale, self.scale_rounds = padding_idx, scale, scale_rounds

    @classmethod
    def like(
        cls, embedding: nn.Embedding, spec: Spec, borrowed: Mapping[int, Cores] | None = None
    ) -> "TensorNetworkEmbedding":
        """An uninitialized table in place of `embedding`: its padding index, scale, device and dtype.

        Knows `nn.Embedding` and transformers' `…ScaledWordEmbedding`s. Raises InputError for any other class and for
        one that renorms its rows.
        """
        if not is_table(embedding):
            raise InputError(f"A {type(embedding).__name__} does more than look rows up: leave it dense.")
        scale = getattr(embedding, "embed_scale", None)
        rounds = isinstance(scale, torch.Tensor)
        if rounds:  # on the meta device the tensor has no value; the class keeps the number beside it
            scale = getattr(embedding, "scalar_embed_scale", None)
            if scale is None:
                raise InputError(f"A {type(embedding).__name__} does not say its scale: leave it dense.")
        weight = embedding.weight
        scale = None if scale is None else float(scale)
        return cls(spec, embedding.padding_idx, scale, rounds, weight.device, weight.dtype, borrowed=borrowed)

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, spec: Spec, metric: Metric | None = None
    ) -> "TensorNetworkEmbedding":
        """The table of `embedding` decomposed in `metric` (default: weight)."""
        table = cls.like(embedding, spec)
        table.set_cores(spec.decompose(embedding.weight.detach(), metric))
        return table

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self._runtime != "dense":
            rows = self.spec.rows(ids, self.cores(device=ids.device, lazy=LookedUp))
        else:
            rows = nn.functional.embedding(ids, self._formed_weight())
        if self.scale is None:
            return rows
        if self.scale_rounds:
            return rows * torch.full((), self.scale, dtype=rows.dtype, device=rows.device)
        return rows * self.scale

    def report(self) -> dict[str, Any]:
        """`parameters`, `kept`, `bytes` and `memory_bytes` as of a `TensorNetworkLinear`."""
        return self._sizes()

    def extra_repr(self) -> str:
        return f"{self.spec.describe()}, runtime={self._runtime}"


def is_table(module: nn.Module) -> bool:
    """Whether a module is an embedding that looks rows up and at most scales them."""
    if not isinstance(module, nn.Embedding) or module.max_norm is not None or len(list(module.parameters())) > 1:
        return False
    return type(module) is nn.Embedding or type(module).__name__.endswith("ScaledWordEmbedding")
