"""`lowrank`: the truncated SVD of the whitened weight, un-whitened. The fair bar for every other network.

Cores L (n_out, χ) and R (χ, n_in), W ≈ L R, χ(n_out + n_in) parameters and as many multiply-adds a vector.
With the functional metric it is SVD-LLM (arXiv:2403.07378); with the loss metric the whitening is on both sides.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, tails
from karipap_core.networks.curve import Curve
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Format, Stored
from karipap_core.quantization.gptq import factors
from karipap_core.quantization.rounding import Columns
from karipap_core.quantization.two_sided import Rows
from karipap_core.spectra.leading import leading_eigenvectors
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.symmetric import gram

DAMPING = 1e-6  # of H: it is made of moments that are damped already, this is against cores with empty rows


@register(embedding=True)
@dataclass(frozen=True)
class LowRank(Spec):
    """JSON: {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [χ]}."""

    network: ClassVar[str] = "lowrank"
    nested: ClassVar[bool] = True

    def validate(self) -> None:
        self.check_single("out", "in_", "chi")
        if self.chi[0] > self.max_chi:
            raise InputError(f"Field 'chi' is {self.chi[0]}: this weight has no more than {self.max_chi}.")

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
    ) -> Self:
        return cls(tuple(out or (n_out,)), tuple(in_ or (n_in,)), (max(1, min(int(chi), n_out, n_in)),), quantize)

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        return [(self.n_out, self.chi[0]), (self.chi[0], self.n_in)]

    def core_matrix(self, index: int) -> tuple[int, int]:
        rows, columns = self.core_shapes[index]
        return rows, columns  # also where χ is small: GPTQ needs the inputs of L in its columns

    @property
    def max_chi(self) -> int:
        return min(self.n_out, self.n_in)

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """The optimum of ‖A (W − Ŵ) B‖² among rank-χ matrices (Eckart–Young in the whitened weight Y = A W B).

        From the eigenvectors of the smaller Gram matrix: U of Y Yᵀ gives Ŵ = A⁻¹ U_χ · U_χᵀ A W, V of Yᵀ Y gives
        Ŵ = W B V_χ · V_χᵀ B⁻¹: one triangular solve. Each component's norm is shared equally by the two cores.
        Cost O(min² · max + min³), float64.
        """
        return self.fit_whitened(W, metric, metric.whiten(W))

    def fit_whitened(self, W: torch.Tensor, metric: Metric, Y: torch.Tensor) -> list[torch.Tensor]:
        """`fit` where Y = A W B is known already."""
        chi = self.chi[0]
        if self.n_out <= self.n_in:
            U = leading_eigenvectors(gram(Y), chi)
            G = metric.factor("G", W.device)
            left, right = metric.unwhiten_left(U), U.T @ (W if G is None else G.T @ W)
        else:
            V = leading_eigenvectors(gram(Y.T), chi)
            C = metric.factor("C", W.device)
            left, right = (W if C is None else W @ C) @ V, metric.unwhiten_right(V.T)
        norms = torch.stack([left.norm(dim=0), right.norm(dim=1)]).clamp(min=torch.finfo(torch.float32).tiny)
        balance = (norms[1] / norms[0]).sqrt()
        return [left * balance, right / balance[:, None]]

    def calibrated(self, cores: Sequence[torch.Tensor], W: torch.Tensor, metric: Metric) -> Sequence[Stored]:
        """Components mixed by `rotation`: R rounded under C and Lᵀ G L, L refitted by least squares under C, then L
        under R̂ C R̂ᵀ and G. Short rows of L share their scales, but not their errors: H is the same for each row."""
        C, (left_form, right_form) = metric.damped("C", W.device), self.formats
        columns, rows = factors(metric, W.device)
        left, right = (core.double() for core in cores)
        mixed = rotation(len(right)).to(right)
        right = mixed.T @ right
        right_stored: Stored = right.float()
        if right_form is not None:
            mixed_rows = None
            if rows is not None and (G := metric.factor("G", W.device)) is not None:
                mixed_rows = Rows.of(gram((G.T @ left @ mixed).T), DAMPING)
            rounded = Format.parse(right_form).calibrated(right, columns, mixed_rows)
            right_stored, right = rounded, rounded.dense().double()
        flow = right if C is None else right @ C
        H = flow @ right.T
        # The optimum for any G: rows of L do not mix in the normal equations. Pseudo-inverse: rounding may empty a row.
        left = W @ flow.T @ torch.linalg.pinv(H, hermitian=True)
        if left_form is None:
            return [left.float(), right_stored]
        return [Format.parse(left_form).calibrated(left, Columns.of(H, DAMPING), rows), right_stored]

    def errors(
        self,
        tries: Sequence[Sequence[torch.Tensor]],
        W: torch.Tensor,
        metric: Metric,
        whitened: torch.Tensor | None = None,
    ) -> list[float]:
        """By ‖A W B − (A L) (R B)‖²: only the thin cores are whitened anew."""
        Y = metric.whiten(W) if whitened is None else whitened
        return [(Y - metric.whiten_left(L) @ metric.whiten_right(R)).square().sum().item() for L, R in tries]

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
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """Exact: the tails Σ_{i>χ} σ² of the whitened weight, every χ from 1 to full rank (`levels` is not needed)."""
        Y = (metric or Metric("weight")).whiten(W)
        squares = torch.linalg.eigvalsh(gram(Y if Y.shape[0] <= Y.shape[1] else Y.T)).flip(0)
        chi = np.arange(1, len(squares) + 1)
        return Curve(chi, chi * sum(W.shape), tails(squares), Y.square().sum().item(), exact=True)


def rotation(chi: int) -> torch.Tensor:
    """An orthogonal matrix T (χ, χ), float64, the same each time: L R = (L T)(Tᵀ R), which nothing stored tells apart.

    As the SVD gives them the components are uncorrelated, R C Rᵀ is diagonal, and GPTQ has nothing to make an error of
    L good with: each component keeps the relative error of its bits. Mixed at random, the strong ones are rounded as
    finely as the weak ones. Demo model, int4 cores with 0.8 of the break-even χ, functional metric: relative error
    .0018 for .0061 (a query), .0034 for .0088 (up), .0277 for .0317 (down, .0231 of it truncation).
    """
    noise = torch.randn(chi, chi, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.linalg.qr(noise).Q
