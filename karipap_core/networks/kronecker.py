"""Second moments that are too large to multiply with again and again: Kronecker products, and leading directions.

C ≈ C_1 ⊗ … ⊗ C_n over the digits of an index costs Σ i_k multiply-adds a number where C itself costs Π i_k. Moments of
trained models are far from any Kronecker product (relative distance .4 to .9 on the demo model): a few directions hold
most of them, and these are in no digit order. So `Factored` keeps the leading ones as they are and takes the Kronecker
product for the rest.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import factorize

SWEEPS = 100
SETTLED = 1e-12  # relative gain of a sweep at which the product is final
LARGEST = 256  # a digit over this is split in two
LEADING = 64  # directions kept as they are
POWERS = 4  # multiplications that bring the leading directions out


def nearest(matrix: torch.Tensor, factors: Sequence[int]) -> list[torch.Tensor]:
    """The C_1 … C_n, symmetric and positive, with ‖C − C_1 ⊗ … ⊗ C_n‖ smallest; C_k is (factors[k], factors[k]).

    The entries of C, rearranged to T (f_1², …, f_n²), turn the product of matrices into one of vectors: the nearest is
    the rank-one tensor nearest to T. It is found by improving one vector at a time (for two factors the power iteration
    for T's leading singular pair, for more a local optimum) from the partial traces of C. Where C is positive every
    step stays so. float64; the norm is shared equally. Cost: n · |C| a sweep, some tens of sweeps. Raises InputError
    for factors that do not multiply to the matrix's size, and for a matrix that is zero or not finite.
    Van Loan and Pitsianis, "Approximation with Kronecker products" (1993).
    """
    factors, n = tuple(factors), len(factors)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or math.prod(factors) != len(matrix):
        raise InputError(f"Factors {list(factors)} do not multiply to the sides of a matrix {tuple(matrix.shape)}.")
    matrix = matrix.detach().double()
    pairs = [axis for k in range(n) for axis in (k, n + k)]
    tensor = ((matrix + matrix.T) / 2).reshape(*factors, *factors).permute(pairs).reshape([f * f for f in factors])
    parts = [torch.eye(f, dtype=matrix.dtype, device=matrix.device).flatten() for f in factors]
    size = 0.0
    for _ in range(SWEEPS):
        before = size
        for k in range(n):
            part = tensor
            for other in reversed(range(n)):  # from the last: the axes before it keep their numbers
                if other != k:
                    part = torch.tensordot(part, parts[other], dims=([other], [0]))
            size = part.norm().item()
            if not 0 < size < math.inf:
                raise InputError("A matrix that is zero or not finite has no nearest Kronecker product.")
            parts[k] = part / size
        if size - before <= SETTLED * size:
            break
    return [size ** (1 / n) * part.reshape(f, f) for part, f in zip(parts, factors, strict=True)]


def digits(factors: Sequence[int]) -> tuple[int, ...]:
    """The factors of an index, those over `LARGEST` split in two as equal as their divisors allow.

    >>> digits((2, 5504)), digits((4096, 1)), digits((509,))
    ((2, 86, 64), (64, 64, 1), (509,))
    """
    split: list[int] = []
    for factor in factors:
        parts = factorize(factor, 2) if factor > LARGEST else (factor,)
        split.extend(parts if parts[-1] > 1 else (factor,))
    return tuple(split)


def multiply(factors: Sequence[torch.Tensor], matrix: torch.Tensor) -> torch.Tensor:
    """(C_1 ⊗ … ⊗ C_n) X for X (Π f_k, m), without forming the product."""
    before, shape = 1, matrix.shape
    for factor in factors:
        matrix = factor @ matrix.reshape(before, len(factor), -1)
        before *= len(factor)
    return matrix.reshape(shape)


@dataclass(frozen=True)
class Factored:
    """L Lᵀ + C_1 ⊗ … ⊗ C_n in place of a second moment; `leading` is L (n, `LEADING`)."""

    leading: torch.Tensor
    factors: tuple[torch.Tensor, ...]

    @classmethod
    def of(cls, moment: torch.Tensor, factors: Sequence[int]) -> "Factored":
        """The leading directions of `moment` (positive, float64) by subspace iteration, and `nearest` to the rest over
        `digits(factors)`. The rest is what Nyström's formula C − C Q (Qᵀ C Q)⁻¹ Qᵀ C leaves, which is never negative.
        Cost: 6 · n² · `LEADING`; nothing is decomposed that has the moment's size."""
        seeded = torch.Generator().manual_seed(0)
        Q = torch.randn(len(moment), LEADING, generator=seeded, dtype=torch.float64).to(moment.device)
        for _ in range(POWERS):
            Q = torch.linalg.qr(moment @ Q).Q
        image = moment @ Q
        values, vectors = torch.linalg.eigh(Q.T @ image)
        leading = image @ vectors / values.clamp(min=1e-12 * values[-1].item()).sqrt()
        return cls(leading, tuple(nearest(moment - leading @ leading.T, digits(factors))))

    @staticmethod
    def pays(n: int, factors: Sequence[int]) -> bool:
        """Whether multiplying with it costs under half of what an (n, n) matrix does."""
        return 2 * (2 * LEADING + sum(digits(factors))) < n

    def to(self, dtype: torch.dtype) -> "Factored":
        return Factored(self.leading.to(dtype), tuple(factor.to(dtype) for factor in self.factors))

    def __matmul__(self, matrix: torch.Tensor) -> torch.Tensor:
        return multiply(self.factors, matrix) + self.leading @ (self.leading.T @ matrix)

    def __rmatmul__(self, matrix: torch.Tensor) -> torch.Tensor:
        return (self @ matrix.T).T
