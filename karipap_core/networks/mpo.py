"""`mpo`: a matrix product operator (tensor train of the weight's index digits).

The rows are split into digits o_1 … o_d, the columns into i_1 … i_d, and W[o, i] = Σ A_1[o_1, i_1] … A_d[o_d, i_d] is
a product of matrices: core k is (χ_{k−1}, o_k, i_k, χ_k) with χ_0 = χ_d = 1. Bond k is the cut (o_{≤k} i_{≤k} | the
rest); the singular values across it are W's Schmidt values there. Two sites are a sum of χ Kronecker products; the
two-site factorization out [n_out, 1], in [1, n_in] is `lowrank` itself.
Oseledets, "Tensor-train decomposition", SIAM J. Sci. Comput. 33 (2011); Novikov et al., arXiv:1509.06569.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, factorize, outside_in, tails
from karipap_core.networks.contraction import (
    Legs,
    Order,
    constant_in_graphs,
    follow,
    order,
    planned_batch,
    touch,
)
from karipap_core.networks.curve import Curve
from karipap_core.networks.refine import ROUNDS, refine
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.spectra.leading import leading_eigenvectors
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.symmetric import gram

# The default is two sites, out (n_out, 1) and in (2, n_in / 2): a core (n_out, 2, χ) with one map for either half of
# the inputs and a core (χ, n_in / 2) that both halves share. Of the factorizations tried at equal parameters on eight
# trained weights it lost least against the SVD. Metric error over the SVD's (geometric mean, moments of other text) at
# kept .15 / .3 / .6: functional .97 / .92 / .89, loss 1.02 / 1.08 / 1.40, weight 1.18 / 1.27 / 1.25; with balanced
# digits on two sites 1.42 / 1.56 / 1.82, .95 / 1.23 / 2.21 and 1.42 / 1.69 / 1.90. Three and four balanced sites were
# mostly worse still. Where n_in is odd it is split in three, else not at all: then the network is `lowrank`.
SPLIT = (2, 3)


@register
@dataclass(frozen=True)
class Mpo(Spec):
    """JSON: {"network": "mpo", "out": [o_1, …], "in": [i_1, …], "chi": [χ_1, …]}, one χ fewer than digits."""

    network: ClassVar[str] = "mpo"

    def validate(self) -> None:
        sites = len(self.out)
        if sites < 2 or len(self.in_) != sites:
            raise InputError(
                f"Fields 'out' and 'in' of an 'mpo' entry have {sites} and {len(self.in_)} factors: "
                "they must have the same number, at least two."
            )
        if len(self.chi) != sites - 1:
            raise InputError(f"Field 'chi' has {len(self.chi)} bonds: {sites} sites have {sites - 1}.")
        bonds, legs = (1, *self.chi, 1), self.legs
        for k in range(sites):
            left, right = bonds[k], bonds[k + 1]
            if right > left * legs[k] or left > right * legs[k]:
                raise InputError(
                    f"Field 'chi' has bonds of {left} and {right} at site {k + 1}: its legs {self.out[k]}·"
                    f"{self.in_[k]} let neither be over {legs[k]} times the other."
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
        sites: int | None = None,
    ) -> Self:
        """The default factorization (see `SPLIT`) of any two integers, or balanced ones on `sites` sites (exact
        divisors as equal as the numbers allow, the larger outside), or those given in `out` and `in_`.

        Nothing is padded: a prime keeps factors of 1. Each bond is min(χ, the most that it can attain).
        """
        given = len(out or in_ or ()) or sites
        if given:
            out = out or outside_in(factorize(n_out, given))
            in_ = in_ or outside_in(factorize(n_in, given), mirrored=True)
        else:
            split = next((factor for factor in SPLIT if n_in % factor == 0), 1)
            out, in_ = (n_out, 1), (split, n_in // split)
        for name, factors, size in (("out", out, n_out), ("in", in_, n_in)):
            if math.prod(factors) != size:
                raise InputError(f"Field {name!r} is {list(factors)}, whose product is not the weight's {size}.")
        if len(out) != len(in_):
            raise InputError(f"Fields 'out' and 'in' have {len(out)} and {len(in_)} factors: they must have as many.")
        return cls(
            tuple(out), tuple(in_), tuple(max(1, min(int(chi), most)) for most in attainable(out, in_)), quantize
        )

    @property
    def legs(self) -> tuple[int, ...]:
        """o_k · i_k of each site."""
        return tuple(o * i for o, i in zip(self.out, self.in_, strict=True))

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        bonds = (1, *self.chi, 1)
        return [(bonds[k], self.out[k], self.in_[k], bonds[k + 1]) for k in range(len(self.out))]

    @property
    def max_chi(self) -> int:
        return max(attainable(self.out, self.in_))

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """TT-SVD, then L-BFGS on ‖A (W − Ŵ) B‖² over all cores (`refine`), which never raises the error.

        In the weight metric two sites are the truncated SVD of the one unfolding: optimal, nothing to refine.
        """
        cores = self.start(W)
        if metric.name == "weight" and len(self.chi) == 1:
            return cores
        # Where the moments are too large to be used exactly, their Kronecker factors are those of the digits.
        digits = (self.out, self.in_) if min(*self.out, *self.in_) > 1 else None
        return balance(refine(self.dense, cores, W, metric, progress=progress, factors=digits)[0])

    def start(self, W: torch.Tensor) -> list[torch.Tensor]:
        """TT-SVD of W (float64) with balanced bonds: Frobenius error² ≤ Σ_k (discarded weight at bond k)."""
        return balance(self.shaped(tt_svd(to_sites(W, self.out, self.in_), self.chi)))

    def shaped(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """(χ_{k−1}, o_k i_k, χ_k) → (χ_{k−1}, o_k, i_k, χ_k)."""
        return [core.reshape(shape) for core, shape in zip(cores, self.core_shapes, strict=True)]

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """y = Ŵ x by contractions of two tensors at a time, in the order that is quickest for this batch.

        The cores may be contracted with one another where that pays, but never all of them: that would be Ŵ.
        """
        batch = math.prod(x.shape[:-1])
        found = apply_order(self, planned_batch(batch))
        return follow(found, [*cores, x]).reshape(*x.shape[:-1], self.n_out)

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return follow(dense_order(self), cores).reshape(self.n_out, self.n_in)

    def multiply_adds(self, batch: int = 1) -> int:
        return contraction(self, max(batch, 1)).multiply_adds

    def work(self, batch: int = 1) -> int:
        return contraction(self, max(batch, 1)).cost

    def work_to_form(self) -> int:
        return dense_order(self).cost + touch(self.n_out * self.n_in)  # to put its digits in order

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        sites: int | None = None,
        **options: Any,
    ) -> Curve:
        """Estimated at `levels` (default: 6 up to break-even, even in √χ) from a quarter of the work of `decompose`.

        See `estimated_error` for how near that comes; next to full rank, between levels, it may be a quarter too low.
        In the weight metric with two sites the curve is exact, every χ up to the largest attainable.
        """
        metric, W = metric or Metric("weight"), W.detach().double()
        spec = cls.for_shape(W.shape[0], W.shape[1], 1, out, in_, sites=sites)
        if metric.name == "weight" and len(spec.chi) == 1 and levels is None:
            squares = squared_singular_values(to_sites(W, spec.out, spec.in_))
            chi = np.arange(1, len(squares) + 1)
            return Curve(chi, chi * sum(spec.legs), tails(squares), W.square().sum().item(), exact=True)
        return spec.curve_at(levels, W, metric, lambda at: estimated_error(at, W, metric))


class Startable(Protocol):
    """A network with a start that `refine` goes on from."""

    def start(self, W: torch.Tensor) -> list[torch.Tensor]: ...

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor: ...


def estimated_error(spec: Startable, W: torch.Tensor, metric: Metric) -> float:
    """The error that `fit` will reach, from two rounds of `refine`: what is still to gain falls like rounds^(−3/2).

    On trained weights .93–1.06 of the error reached where that is over 1e-2 of the total; the smaller the error, the
    more too high: under the loss metric up to 1.4 at 3e-3 and 1.9 at 1e-4.
    """
    errors = refine(spec.dense, spec.start(W), W, metric, rounds=2)[1]
    if len(errors) < 3:
        return errors[-1]
    gain = (errors[1] - errors[2]) / (1 - 2**-1.5)
    return max(errors[2] - gain * (2**-1.5 - ROUNDS**-1.5), 0.4 * errors[2])  # no fit gained more than the .4 leaves


def attainable(out: Sequence[int], in_: Sequence[int]) -> list[int]:
    """The most that each bond can use: min(Π_{≤k} o i, Π_{>k} o i)."""
    legs = [o * i for o, i in zip(out, in_, strict=True)]
    return [min(math.prod(legs[:k]), math.prod(legs[k:])) for k in range(1, len(legs))]


def to_sites(W: torch.Tensor, out: Sequence[int], in_: Sequence[int]) -> torch.Tensor:
    """(out, in) → (o_1 i_1, …, o_d i_d)."""
    sites = len(out)
    order = [axis for k in range(sites) for axis in (k, sites + k)]
    return W.reshape(*out, *in_).permute(order).reshape([o * i for o, i in zip(out, in_, strict=True)])


def from_sites(tensor: torch.Tensor, out: Sequence[int], in_: Sequence[int]) -> torch.Tensor:
    """(o_1 i_1, …, o_d i_d) → (out, in)."""
    sites = len(out)
    digits = tensor.reshape([size for pair in zip(out, in_, strict=True) for size in pair])
    order = [*range(0, 2 * sites, 2), *range(1, 2 * sites, 2)]
    return digits.permute(order).reshape(math.prod(out), math.prod(in_))


def squared_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """σ², descending, by the smaller Gram matrix."""
    return torch.linalg.eigvalsh(gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)).flip(0)


def tt_svd(tensor: torch.Tensor, chi: Sequence[int]) -> list[torch.Tensor]:
    """Cores (χ_{k−1}, p_k, χ_k) of a tensor (p_1, …, p_d), left to right, all but the last left-orthonormal.

    Each step keeps the leading left singular vectors of its unfolding, from the eigenvectors of the smaller Gram
    matrix (the same error as a full SVD several times faster).
    """
    legs, rest, bond, cores = tensor.shape, tensor, 1, []
    for leg, keep in zip(legs[:-1], chi, strict=True):
        rest = rest.reshape(bond * leg, -1)
        if rest.shape[0] <= rest.shape[1]:
            basis = leading_eigenvectors(gram(rest), keep)
        else:
            right = leading_eigenvectors(gram(rest.T), keep)
            basis = torch.linalg.qr(rest @ right).Q
        cores.append(basis.reshape(bond, leg, keep))
        rest, bond = basis.T @ rest, keep
    return [*cores, rest.reshape(bond, legs[-1], 1)]


def balance(cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same Ŵ with both ends of every bond index at equal norm: Σ^{1/2} to each side in canonical gauge."""
    cores = list(cores)
    for k in range(len(cores) - 1):
        left, right = cores[k].flatten(0, -2).norm(dim=0), cores[k + 1].flatten(1).norm(dim=1)
        alive = (left > 0) & (right > 0)
        scale = torch.where(alive, (right / left.where(alive, 1)).sqrt(), 1)
        cores[k] = cores[k] * scale
        cores[k + 1] = cores[k + 1] / scale.reshape(-1, *[1] * (cores[k + 1].ndim - 1))
    return cores


@constant_in_graphs  # torch.compile takes the order as given, it does not trace the search
def apply_order(spec: Mpo, batch: int) -> Order:
    return contraction(spec, batch)


@lru_cache(maxsize=1024)
def contraction(spec: Mpo, batch: int) -> Order:
    """The quickest way to contract the cores with x (the last tensor, its batch first), two tensors at a time. Never
    are all cores contracted without x: that is Ŵ."""
    sites = len(spec.out)
    cores, output = core_legs(spec)
    sizes = enumerate((*spec.out, *spec.in_, *spec.chi, batch))
    ins, batched = output[sites:], 3 * sites - 1
    return order((*cores, (batched, *ins)), tuple(sizes), (batched, *output[:sites]), apart=sites)


@constant_in_graphs
def dense_order(spec: Mpo) -> Order:
    cores, output = core_legs(spec)
    return order(cores, tuple(enumerate((*spec.out, *spec.in_, *spec.chi))), output)


def core_legs(spec: Mpo) -> tuple[tuple[Legs, ...], Legs]:
    """The legs of each core without the bonds at both ends, and those of Ŵ: the digits of the rows, those of the
    columns, the bonds."""
    sites = len(spec.out)
    bonds = [(), *((2 * sites + k,) for k in range(sites - 1)), ()]
    return tuple((*bonds[k], k, sites + k, *bonds[k + 1]) for k in range(sites)), tuple(range(2 * sites))
