"""`lowrank`: the truncated SVD of the whitened weight, un-whitened. The fair bar for every other network.

Cores L (n_out, χ) and R (χ, n_in), W ≈ L R, χ(n_out + n_in) parameters and as many multiply-adds a vector.
With the functional metric it is SVD-LLM (arXiv:2403.07378); with the loss metric the whitening is on both sides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, tails
from karipap_core.networks.curve import Curve
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric


@register(embedding=True)
@dataclass(frozen=True)
class LowRank(Spec):
    """JSON: {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [χ]}."""

    network: ClassVar[str] = "lowrank"

    def validate(self) -> None:
        for name in ("out", "in_", "chi"):
            if len(getattr(self, name)) != 1:
                raise InputError(f"Field {name.rstrip('_')!r} of a 'lowrank' entry must hold one number.")
        if self.chi[0] > self.max_chi:
            raise InputError(f"Field 'chi' is {self.chi[0]}: this weight has no more than {self.max_chi}.")

    @classmethod
    def for_shape(cls, n_out: int, n_in: int, chi: int, out=None, in_=None, quantize=None) -> "LowRank":
        return cls(out or (n_out,), in_ or (n_in,), (max(1, min(int(chi), n_out, n_in)),), quantize)

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        return [(self.n_out, self.chi[0]), (self.chi[0], self.n_in)]

    def core_matrix(self, index: int) -> tuple[int, int]:
        return self.core_shapes[index]  # also where χ is small: GPTQ needs the inputs of L in its columns

    @property
    def max_chi(self) -> int:
        return min(self.n_out, self.n_in)

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """The optimum of ‖A (W − Ŵ) B‖² among rank-χ matrices (Eckart–Young in the whitened weight Y = A W B).

        From the eigenvectors of the smaller Gram matrix: U of Y Yᵀ gives Ŵ = A⁻¹ U_χ · U_χᵀ A W, V of Yᵀ Y gives
        Ŵ = W B V_χ · V_χᵀ B⁻¹: one triangular solve. Each component's norm is shared equally by the two cores.
        Cost O(min² · max + min³), float64.
        """
        Y, chi = metric.whiten(W), self.chi[0]
        if self.n_out <= self.n_in:
            U = torch.linalg.eigh(Y @ Y.T).eigenvectors[:, -chi:].flip(1)
            G = metric.factor("G", W.device)
            left, right = metric.unwhiten_left(U), U.T @ (W if G is None else G.T @ W)
        else:
            V = torch.linalg.eigh(Y.T @ Y).eigenvectors[:, -chi:].flip(1)
            C = metric.factor("C", W.device)
            left, right = (W if C is None else W @ C) @ V, metric.unwhiten_right(V.T)
        norms = torch.stack([left.norm(dim=0), right.norm(dim=1)]).clamp(min=torch.finfo(torch.float32).tiny)
        balance = (norms[1] / norms[0]).sqrt()
        return [left * balance, right / balance[:, None]]

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        left, right = cores
        return x @ right.T @ left.T

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return cores[0] @ cores[1]

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return cores[0][indices] @ cores[1]

    def multiply_adds(self, batch: int = 1) -> int:
        return batch * self.parameters

    @classmethod
    def curve(cls, W: torch.Tensor, metric: Metric | None = None, levels=None, out=None, in_=None, **_) -> Curve:
        """Exact: the tails Σ_{i>χ} σ² of the whitened weight, every χ from 1 to full rank (`levels` is not needed)."""
        Y = (metric or Metric("weight")).whiten(W)
        gram = Y @ Y.T if Y.shape[0] <= Y.shape[1] else Y.T @ Y
        squares = torch.linalg.eigvalsh(gram).flip(0)
        chi = np.arange(1, len(squares) + 1)
        return Curve(chi, chi * sum(W.shape), tails(squares), Y.square().sum().item(), exact=True)
