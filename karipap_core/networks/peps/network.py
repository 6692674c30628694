"""`peps`: a projected entangled pair operator, the weight's index digits on the sites of a square lattice.

The rows are split into digits o_1 … o_n, the columns into i_1 … i_n, one pair for each site of a grid of R × C, row by
row. Site k has a core A_k[up, down, left, right, o_k, i_k]; neighbours share a bond, legs without a neighbour are of
size 1, and W[o, i] is the product of all cores summed over all bonds. A 2 × 2 grid is a ring of four.
Bonds are in this order: the horizontal ones row by row, (r, c) to (r, c + 1), then the vertical ones row by row, (r, c)
to (r + 1, c). `periodic` closes every side of three sites or more upon itself (the wrapping bond of a row follows the
row's others, the wrapping bonds downwards come last); on a side of two the two sites are neighbours already.
`tied`: one core on every site of a torus. That is what translation invariance asks for; it is here to show what it
costs, and cannot in general be exact.
Verstraete and Cirac, arXiv:cond-mat/0407066; Lubasch, Cirac and Bañuls, PRB 90, 064425 (2014) for the fit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Self

import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec, factorize, sizes
from karipap_core.networks.contraction import (
    Legs,
    Order,
    constant_in_graphs,
    contract,
    follow,
    order,
    planned_batch,
    touch,
)
from karipap_core.networks.curve import Curve
from karipap_core.networks.peps.fit import fit
from karipap_core.networks.peps.lattice import Bond, Sites, attainable, lattice, placed, site_bonds
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

# The default on 2 × 2 has the rows' digits on the upper sites, (4, n_out / 4), and the columns' on the lower ones,
# (4, n_in / 4): the cut (out | in) then has the bonds' D² values, and each pair of sites is a factored basis. On a
# trained 256×256 query kept .3 it lost .253 in the weight metric and .0060 under the loss metric, with balanced digits
# on all four sites .469 and .0103, with 16·16 on either side .297 and .0078 (three rounds; SVD .236 and .0079); two
# other weights told the same. A Gaussian matrix prefers balanced digits (384×384 kept .26: .49 lost, here .57).
SMALL = 4


@register
@dataclass(frozen=True)
class Peps(Spec):
    """JSON: {"network": "peps", "out": [o_1, …], "in": [i_1, …], "chi": [D_1, …], "grid": [R, C], "periodic": false,
    "tied": false}, a factor a site and a χ a bond (tied: a horizontal and a vertical one)."""

    grid: tuple[int, int] = (2, 2)
    periodic: bool = False
    tied: bool = False
    network: ClassVar[str] = "peps"

    def validate(self) -> None:
        object.__setattr__(self, "grid", checked_grid(self.grid))
        for name in ("periodic", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"Field {name!r} is {getattr(self, name)!r}: it must be true or false.")
        for name, factors in (("out", self.out), ("in", self.in_)):
            if len(factors) != self.sites:
                raise InputError(
                    f"Field {name!r} has {len(factors)} factors: a grid of {self.grid[0]} × "
                    f"{self.grid[1]} has {self.sites} sites."
                )
        wanted = 2 if self.tied else len(self.bonds)
        if len(self.chi) != wanted:
            raise InputError(f"Field 'chi' has {len(self.chi)} bonds: this grid has {wanted}.")
        if self.tied and (len(set(self.out)) > 1 or len(set(self.in_)) > 1):
            raise InputError("Field 'tied' needs the same factors of 'out' and of 'in' on every site.")

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        grid: Sequence[int] = (2, 2),
        periodic: bool = False,
        tied: bool = False,
    ) -> Self:
        """Every bond min(χ, attainable): see `attainable`. Default factors: exact divisors as equal as the numbers
        allow, the larger on the sites with fewer bonds, and those of the columns in the opposite order.

        Nothing is padded: a prime leaves factors of 1. Raises InputError where `tied` has no equal factors.
        """
        rows, columns = grid = checked_grid(grid)
        n = rows * columns
        if tied:
            roots = {name: round(size ** (1 / n)) for name, size in (("out", n_out), ("in", n_in))}
            if roots["out"] ** n != n_out or roots["in"] ** n != n_in:
                raise InputError(f"Field 'tied' needs equal factors: {n_out} × {n_in} has none on {n} sites.")
            out, in_ = out or (roots["out"],) * n, in_ or (roots["in"],) * n
        bonds = lattice(rows, columns, periodic, tied)
        if grid == (2, 2):
            out, in_ = out or (*split(n_out), 1, 1), in_ or (1, 1, *split(n_in))
        out = tuple(out or placed(factorize(n_out, n), bonds))
        in_ = tuple(in_ or placed(factorize(n_in, n), bonds, mirrored=True))
        for name, factors, size in (("out", out, n_out), ("in", in_, n_in)):
            if math.prod(factors) != size:
                raise InputError(f"Field {name!r} is {list(factors)}, whose product is not the weight's {size}.")
            if len(factors) != n:
                raise InputError(f"Field {name!r} has {len(factors)} factors: this grid has {n} sites.")
        legs = tuple(o * i for o, i in zip(out, in_, strict=True))
        if tied:
            dims = tuple(max(1, min(int(chi), math.isqrt(n_out * n_in))) if side > 1 else 1 for side in (columns, rows))
        else:
            dims = attainable(legs, grid, periodic, max(1, int(chi)))
        return cls(out, in_, dims, quantize, grid, periodic, tied)

    @property
    def sites(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def bonds(self) -> tuple[Bond, ...]:
        return lattice(*self.grid, self.periodic, self.tied)

    @property
    def lattice(self) -> Sites:
        return Sites(self.bonds, self.dims, self.legs)

    @property
    def dims(self) -> tuple[int, ...]:
        """The dimension of each of `bonds`."""
        if not self.tied:
            return self.chi
        return tuple(self.chi[0 if bond.direction == "horizontal" else 1] for bond in self.bonds)

    @property
    def legs(self) -> tuple[int, ...]:
        """o_k · i_k of each site."""
        return tuple(o * i for o, i in zip(self.out, self.in_, strict=True))

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        shapes = [[1, 1, 1, 1, o, i] for o, i in zip(self.out, self.in_, strict=True)]
        for bond, dim in zip(self.bonds, self.dims, strict=True):
            shapes[bond.site][bond.leg] = shapes[bond.other][bond.other_leg] = dim
        return [tuple(shape) for shape in shapes[: 1 if self.tied else None]]

    def shaped(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Merged cores (see `Sites`) in their shapes here."""
        return [core.reshape(shape) for core, shape in zip(cores, self.core_shapes, strict=True)]

    @property
    def max_chi(self) -> int:
        return max(self.with_chi(self.n_out * self.n_in).chi, default=1)

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        return fit(self, W, metric, progress)[0]

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """Estimated at `levels` (default: 6 up to break-even, even in √χ) from a part of the work of `decompose`.

        See `estimated_error` for how near that comes."""
        metric, W = metric or Metric("weight"), W.detach().double()
        spec = cls.for_shape(W.shape[0], W.shape[1], 1, *given, **options)
        return spec.curve_at(levels, W, metric, lambda at: estimated_error(at, W, metric))

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """y = Ŵ x by contractions of two tensors at a time, in the order that is quickest for this batch.

        The cores may be contracted with one another where that pays, but never all of them: that would be Ŵ.
        """
        batch = math.prod(x.shape[:-1])
        tensors = [x, *list(cores) * (self.sites if self.tied else 1)]
        found = apply_order(self, planned_batch(batch))
        return follow(found, tensors).reshape(*x.shape[:-1], self.n_out)

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.sites == 1:
            return cores[0].reshape(self.n_out, self.n_in)
        legs = site_legs(self)
        output = tuple(outs(self)) + tuple(ins(self))
        return contract(squeezed(self, cores), legs, output).reshape(self.n_out, self.n_in)

    def multiply_adds(self, batch: int = 1) -> int:
        return _apply_order(self, max(batch, 1)).multiply_adds

    def work(self, batch: int = 1) -> int:
        return _apply_order(self, max(batch, 1)).cost

    def work_to_form(self) -> int:
        sizes = tuple(enumerate((*self.dims, *self.out, *self.in_)))
        formed = touch(self.n_out * self.n_in)  # to put it in order
        return formed + (order(tuple(site_legs(self)), sizes, (*outs(self), *ins(self))).cost if self.sites > 1 else 0)


def estimated_error(spec: Peps, W: torch.Tensor, metric: Metric) -> float:
    """The error that `fit` will reach, from two rounds after one start: most of the rest is a gain like theirs.

    On trained weights .9 to 1.4 of the error reached, up to 1.7 where the fit gains most (loss metric, far down).
    """
    errors = fit(spec, W, metric, rounds=2, quick=True)[1]
    return errors[-1] if len(errors) < 3 else errors[2] * (errors[2] / errors[1]) ** 1.5


def checked_grid(grid: Any) -> tuple[int, int]:
    """`grid` as two positive integers, or InputError naming the field."""
    found = sizes(grid, "grid")
    if len(found) != 2:
        raise InputError(f"Field 'grid' is {list(found)}: it must be two numbers, rows and columns.")
    return found[0], found[1]


def split(n: int) -> tuple[int, int]:
    """A divisor near `SMALL`, not over √n, and the other factor: (4, n / 4) where it can be, (1, n) for a prime."""
    small = [k for k in range(1, min(math.isqrt(n), 4 * SMALL) + 1) if n % k == 0]
    least = min(small, key=lambda k: max(k / SMALL, SMALL / k))
    return least, n // least


# Legs of the contractions: bond b is b, then o_k and i_k of every site, then the batch.


def outs(spec: Peps) -> range:
    return range(len(spec.bonds), len(spec.bonds) + spec.sites)


def ins(spec: Peps) -> range:
    return range(len(spec.bonds) + spec.sites, len(spec.bonds) + 2 * spec.sites)


def site_legs(spec: Peps) -> list[Legs]:
    return [
        (*site_bonds(spec.bonds, k), o, i) for k, o, i in zip(range(spec.sites), outs(spec), ins(spec), strict=True)
    ]


def squeezed(spec: Peps, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A core for each site, without the legs where it has no neighbour."""
    cores = list(cores) * (spec.sites if spec.tied else 1)
    return [core.reshape(shape) for core, shape in zip(cores, layout(spec), strict=True)]


@constant_in_graphs  # like the order of contraction: looked up, not traced
def layout(spec: Peps) -> tuple[tuple[int, ...], ...]:
    return _layout(spec)


@lru_cache(maxsize=1024)
def _layout(spec: Peps) -> tuple[tuple[int, ...], ...]:
    sites = enumerate(zip(spec.out, spec.in_, strict=True))
    return tuple((*(spec.dims[b] for b in site_bonds(spec.bonds, k)), o, i) for k, (o, i) in sites)


@constant_in_graphs  # torch.compile takes the order as given, it does not trace the search
def apply_order(spec: Peps, batch: int) -> Order:
    return _apply_order(spec, batch)


@lru_cache(maxsize=1024)
def _apply_order(spec: Peps, batch: int) -> Order:
    x = 2 * spec.sites + len(spec.bonds)
    size = dict(enumerate((*spec.dims, *spec.out, *spec.in_, batch)))
    return order(((x, *ins(spec)), *site_legs(spec)), tuple(size.items()), (x, *outs(spec)), apart=0)
