"""`qlr`: a quantized weight and a low-rank repair of it, W ≈ Q + L R.

Cores Q (n_out, n_in) on the grid of `bits`, L (n_out, χ), R (χ, n_in): L R is the truncated SVD, in the metric, of what
Q leaves, and Q is rounded (GPTQ) from what L R leaves, in turns, the first L R being that of W itself (QERA,
arXiv:2410.06040; CALDERA, arXiv:2405.18886). It has more numbers than the dense weight, in fewer bytes: judge it by
bytes alone.

L and R unquantized: Q is not fitted at χ but at the ranks of a ladder up to χ, each of which gives Qs with a whole
spectrum behind them; at any χ the best of them is taken. So the error falls with χ by construction, and a few fits tell
the whole curve. L and R in a format: they are rounded in every turn, and Q, rounded last, makes their error good.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, tails
from karipap_core.networks.curve import Curve
from karipap_core.networks.dense import Dense
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.registry import register
from karipap_core.networks.stored import quantize_cores, rounded_cores, values
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Format, Stored
from karipap_core.quantization.gptq import factors
from karipap_core.search import largest
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.symmetric import gram

BITS = ("int4", "int3", "int2")  # of Q, where a plan chooses
FACTORS = "int4"  # the format of L and R where a plan asks for none
LADDER = (64, 32, 16, 8, 4)  # ranks at which Q is fitted, as parts of the full rank
TURNS = 2
STORED_TURNS = 2
STORED_LADDER = (64, 16, 4)  # ranks at which a curve of stored cores is measured


@register
@dataclass(frozen=True)
class Qlr(Spec):
    """JSON: {"network": "qlr", "out": [n_out], "in": [n_in], "chi": [χ], "quantize": null, "bits": "int3"}.

    bits : format of Q, integers.  quantize : format of L and R.
    """

    bits: str = "int3"
    network: ClassVar[str] = "qlr"
    structured: ClassVar[bool] = False
    curve_of_stored: ClassVar[bool] = True
    kind_fields: ClassVar[tuple[str, ...]] = ("bits",)

    def validate(self) -> None:
        self.check_single("out", "in_", "chi")
        if self.chi[0] > self.max_chi:
            raise InputError(f"Field 'chi' is {self.chi[0]}: this weight has no more than {self.max_chi}.")
        if not Format.parse(self.bits).calibrates:
            raise InputError(
                f"Field 'bits' is {self.bits!r}: it must be a format of integers (int8, int4, int3, int2)."
            )

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        bits: str = "int3",
    ) -> Self:
        rank = max(1, min(int(chi), n_out, n_in))
        return cls(tuple(out or (n_out,)), tuple(in_ or (n_in,)), (rank,), quantize, bits)

    @classmethod
    def kinds(cls, quantize: str | None) -> list[tuple[str, str | None, dict[str, Any]]]:
        """Q in each of `BITS` with a correction, and without one (rank 0)."""
        factors = FACTORS if quantize in (None, "auto") else quantize
        return [kind for bits in BITS for kind in ((cls.network, factors, {"bits": bits}), (Dense.network, bits, {}))]

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        return [(self.n_out, self.n_in), *self.low_rank.core_shapes]

    @property
    def formats(self) -> list[str | None]:
        return [self.bits, self.quantize, self.quantize]

    def core_matrix(self, index: int) -> tuple[int, int]:
        rows, columns = self.core_shapes[index]
        return rows, columns

    @property
    def low_rank(self) -> LowRank:
        """The spec of L R."""
        return LowRank(self.out, self.in_, self.chi, self.quantize)

    @property
    def max_chi(self) -> int:
        return min(self.n_out, self.n_in)

    @property
    def break_even_chi(self) -> int:
        """The largest χ with fewer bytes than the dense weight in 16 bits, L and R unquantized in 16 bits too; 0 where
        none has."""
        dense = 2 * self.n_out * self.n_in
        return largest(lambda chi: self.with_chi(chi).bytes(2) < dense, 0, self.max_chi + 1)

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """Q, L and R, those with a format as they are when dequantized: storing them again loses nothing.

        Without `quantize`: of the Qs of the ladder up to χ the one with the least tail beyond χ, and the L R that is
        the optimum of what it leaves. With it: the best of `STORED_TURNS` turns, the error measured with L and R as
        stored. Q rounded alone is among the candidates: never worse than quantization alone.
        Cost: one GPTQ and one eigenvalue problem for each candidate.
        """
        return self._best(W, metric, progress=progress)[1]

    def _best(
        self, W: torch.Tensor, metric: Metric, alone: "_Alone | None" = None, progress: Progress = silent
    ) -> tuple[float, list[torch.Tensor]]:
        """The least error, and the cores that `fit` gives."""
        tries = self._stored(W, metric, alone) if self.quantize else self._tails(W, metric)
        least, best = math.inf, list[torch.Tensor]()
        for count, (error, cores) in enumerate(tries):
            progress("qlr", count, None)
            if not best or error < least:
                least, best = error, cores
        Q, *low_rank = best
        return least, [Q, *(low_rank or self.low_rank.fit(W - Q, metric))]

    def _tails(self, W: torch.Tensor, metric: Metric) -> Iterator[tuple[float, list[torch.Tensor]]]:
        for _, Q, squares in candidates(W, metric, self.bits, self.chi[0]):
            yield squares[self.chi[0] :].sum().item(), [Q]

    def _stored(
        self, W: torch.Tensor, metric: Metric, alone: "_Alone | None"
    ) -> Iterator[tuple[float, list[torch.Tensor]]]:
        rounded, low_rank = _rounder(metric, self.bits, W.device), self.low_rank
        alone = alone or _Alone.of(W, metric, self.bits)

        def repair(left: torch.Tensor, Y: torch.Tensor) -> list[torch.Tensor]:
            stored = quantize_cores(low_rank, low_rank.fit_whitened(left, metric, Y), left, metric, whitened=Y)
            return values(low_rank, stored, torch.float64)

        def judged(Q: torch.Tensor, Y: torch.Tensor, *cores: torch.Tensor) -> tuple[float, list[torch.Tensor]]:
            return low_rank.errors([cores], W - Q, metric, Y)[0], [Q, *cores]

        Q, Y = alone.Q, alone.left
        L, R = repair(W - Q, Y)
        yield judged(Q, Y, torch.zeros_like(L), torch.zeros_like(R))
        yield judged(Q, Y, L, R)
        Q, Y = torch.zeros_like(W), alone.whole
        for _ in range(STORED_TURNS):
            L, R = repair(W - Q, Y)
            yield judged(Q, Y, L, R)
            Q = rounded(W - L @ R)
            Y = metric.whiten(W - Q)
            yield judged(Q, Y, L, R)

    def calibrated(self, cores: Sequence[torch.Tensor], W: torch.Tensor, metric: Metric) -> Sequence[Stored]:
        """Fitted anew to W: `fit` gives cores that are on the grids of their formats already."""
        return rounded_cores(self, self.fit(W, metric))

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        Q, left, right = cores
        return x @ Q.T + x @ right.T @ left.T

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        Q, left, right = cores
        return Q + left @ right

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        Q, left, right = cores
        return Q[indices] + left[indices] @ right

    def multiply_adds(self, batch: int = 1) -> int:
        return batch * self.parameters

    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """Independent normal cores; Q and L R each give half of the variance that `Spec.random_cores` keeps."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        spreads = [(2 * self.n_in) ** -0.5] + [(2 * self.n_in * self.chi[0]) ** -0.25] * 2
        return [
            torch.randn(shape, generator=generator, dtype=dtype) * spread
            for shape, spread in zip(self.core_shapes, spreads, strict=True)
        ]

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        bits: str = "int3",
    ) -> Curve:
        """With L and R unquantized exact, every χ (`levels` is not needed): the least tail over the candidates. With
        `quantize` the cores as stored are measured at `levels` (default: 1 and the `STORED_LADDER`); a level
        that came out worse than a smaller one counts as that one."""
        metric, W = metric or Metric("weight"), W.detach().double()
        n_out, n_in = W.shape
        full = cls.for_shape(n_out, n_in, min(n_out, n_in), out, in_, quantize, bits)
        if quantize is not None:
            chosen = {*(levels or (1, *(max(1, full.max_chi // part) for part in STORED_LADDER)))}
            alone = _Alone.of(W, metric, bits)
            return full.curve_at(chosen, W, metric, lambda at: at._best(W, metric, alone)[0])
        chi, error = np.arange(1, full.max_chi + 1), np.full(full.max_chi, np.inf)
        for rank, _, squares in candidates(W, metric, bits, full.max_chi):
            first = max(rank, 1) - 1
            error[first:] = np.minimum(error[first:], tails(squares)[first:])
        parameters = np.array([full.with_chi(int(level)).parameters for level in chi])
        return Curve(chi, parameters, np.minimum.accumulate(error), metric.absolute(W), exact=True)


@dataclass(frozen=True)
class _Alone:
    """W rounded alone, Q; and A (W − Q) B (`left`) and A W B (`whole`): the same at every rank."""

    Q: torch.Tensor
    left: torch.Tensor
    whole: torch.Tensor

    @classmethod
    def of(cls, W: torch.Tensor, metric: Metric, bits: str) -> Self:
        Q = _rounder(metric, bits, W.device)(W)
        return cls(Q, metric.whiten(W - Q), metric.whiten(W))


def candidates(
    W: torch.Tensor, metric: Metric, bits: str, chi: int
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """(rank, Q, σ² of A (W − Q) B descending) of W rounded alone (rank 0) and, for each rank of the ladder up to χ, of
    `TURNS` turns of Q ← GPTQ(W − L R) and L R ← SVD_rank(W − Q), the first L R being that of W itself."""
    rounded = _rounder(metric, bits, W.device)
    Q = rounded(W)
    yield 0, Q, _squares(W - Q, metric)
    for rank in _ladder(W):
        if rank > chi:
            break
        low_rank, left = LowRank.for_shape(W.shape[0], W.shape[1], rank), W
        for _ in range(TURNS):
            Q = rounded(W - low_rank.dense(low_rank.fit(left, metric)))
            left = W - Q
            yield rank, Q, _squares(left, metric)


def _ladder(W: torch.Tensor) -> list[int]:
    return sorted({max(1, min(W.shape) // part) for part in LADDER})


def _rounder(metric: Metric, bits: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    """Matrix (out, in) → Q dequantized, float64, calibrated under the damped C and G. Scales are not fitted again: L R
    are fitted to what Q leaves anyway."""
    (columns, rows), form = factors(metric, device), Format.parse(bits)
    return lambda matrix: form.calibrated(matrix, columns, rows, refit=False).dense().double()


def _squares(D: torch.Tensor, metric: Metric) -> torch.Tensor:
    Y = metric.whiten(D)
    return torch.linalg.eigvalsh(gram(Y if Y.shape[0] <= Y.shape[1] else Y.T)).flip(0).clamp(min=0)
