"""The square lattice of a `peps`: which sites are neighbours, how wide their bonds can get, and its contractions.

Sites are numbered row by row. Horizontal bonds come first, row by row, (r, c) to (r, c + 1), then the vertical ones row
by row, (r, c) to (r + 1, c).
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch

from karipap_core.networks.contraction import Legs, contract

UP, DOWN, LEFT, RIGHT = range(4)


class Bond(NamedTuple):
    """Leg `leg` of site `site` meets leg `other_leg` of site `other`; sites are numbered row by row."""

    direction: str
    site: int
    leg: int
    other: int
    other_leg: int

    @property
    def ends(self) -> tuple[tuple[int, int], tuple[int, int]]:
        return (self.site, self.leg), (self.other, self.other_leg)


@lru_cache(maxsize=256)
def lattice(rows: int, columns: int, periodic: bool = False, tied: bool = False) -> tuple[Bond, ...]:
    """The bonds of a grid in the order that the module states. A tied torus of side 2 has two bonds between a pair."""
    shortest = 2 if tied else 3
    found = []
    for direction, side, step in (("horizontal", columns, (0, 1)), ("vertical", rows, (1, 0))):
        leg, other_leg = (RIGHT, LEFT) if direction == "horizontal" else (DOWN, UP)
        for r in range(rows):
            for c in range(columns):
                last = (c if direction == "horizontal" else r) == side - 1
                if last and not ((periodic or tied) and side >= shortest):
                    continue
                other = (r + step[0]) % rows * columns + (c + step[1]) % columns
                found.append(Bond(direction, r * columns + c, leg, other, other_leg))
    return tuple(found)


def snake(rows: int, columns: int) -> list[int]:
    """The sites along a path of neighbours: there and back, row after row."""
    return [r * columns + (c if r % 2 == 0 else columns - 1 - c) for r in range(rows) for c in range(columns)]


def site_bonds(bonds: Sequence[Bond], site: int) -> list[int]:
    """The numbers of a site's bonds in the order of its legs."""
    return [b for _, b in sorted((leg, b) for b, bond in enumerate(bonds) for k, leg in bond.ends if k == site)]


@lru_cache(maxsize=4096)
def attainable(legs: tuple[int, ...], grid: tuple[int, int], periodic: bool, chi: int) -> tuple[int, ...]:
    """The dimension of each bond at a cap of χ.

    A bond on the snake can grow until the snake alone, a tensor train, is exact; beyond that, and on all others,
    growing is of use until every bond at that dimension makes the network as large as the weight. No bond is wider
    than the rest of the core on either end.
    """
    bonds = lattice(*grid, periodic)
    if not bonds:
        return ()
    total = math.prod(legs)
    around = [site_bonds(bonds, k) for k in range(len(legs))]
    even = 1
    while sum(leg * (even + 1) ** len(near) for leg, near in zip(legs, around, strict=True)) <= total:
        even += 1
    path = snake(*grid)
    most = [even] * len(bonds)
    for k, b in snake_bonds(grid, bonds).items():
        left = math.prod(legs[site] for site in path[: k + 1])
        most[b] = max(even, min(left, total // left))
    dims = [min(chi, m) for m in most]
    while True:
        before = list(dims)
        for b, bond in enumerate(bonds):
            for site in (bond.site, bond.other):
                rest = legs[site] * math.prod(dims[other] for other in around[site] if other != b)
                dims[b] = min(dims[b], rest)
        if dims == before:
            return tuple(dims)


def snake_bonds(grid: tuple[int, int], bonds: Sequence[Bond]) -> dict[int, int]:
    """{step k of the snake: the bond it crosses}."""
    path = snake(*grid)
    joined = {frozenset((bond.site, bond.other)): b for b, bond in reversed(list(enumerate(bonds)))}
    return {k: joined[frozenset(pair)] for k, pair in enumerate(zip(path, path[1:], strict=False))}


def placed(factors: Sequence[int], bonds: Sequence[Bond], mirrored: bool = False) -> tuple[int, ...]:
    """Descending factors on the sites, those with the fewest bonds first, in order (`mirrored`: from the last)."""
    count = [sum(k in (bond.site, bond.other) for bond in bonds) for k in range(len(factors))]
    sites = sorted(range(len(factors)), key=lambda k: (count[k], -k if mirrored else k))
    result = [1] * len(factors)
    for site, factor in zip(sites, factors, strict=True):
        result[site] = factor
    return tuple(result)


class Sites:
    """A network of merged cores: each has its bonds, in the order of its legs, and then one leg p = o · i.

    Named for `contract`: bond b is b, the leg of site k is B + k, and the bonds of a second layer lie above both.
    """

    def __init__(self, bonds: Sequence[Bond], dims: Sequence[int], legs: Sequence[int]) -> None:
        self.dims, self.sizes, count = tuple(dims), tuple(legs), len(legs)
        self.bonds = [site_bonds(bonds, k) for k in range(count)]
        self.used = [sorted({end[1] for bond in bonds for end in bond.ends if end[0] == k}) for k in range(count)]
        self.physical = tuple(len(bonds) + k for k in range(count))
        self.above = len(bonds) + count
        self.legs = [(*near, p) for near, p in zip(self.bonds, self.physical, strict=True)]
        self.bra = [(*(self.above + b for b in near), p) for near, p in zip(self.bonds, self.physical, strict=True)]

    def shape(self, k: int) -> tuple[int, ...]:
        return (*(self.dims[b] for b in self.bonds[k]), self.sizes[k])

    def merged(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Cores (up, down, left, right, o, i) without the legs that lead nowhere."""
        return [core.reshape(self.shape(k)) for k, core in enumerate(cores)]

    def upper(self, k: int) -> Legs:
        """The bonds of site k in the second layer."""
        return tuple(self.above + b for b in self.bonds[k])

    def squeezed(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Cores (up, down, left, right, p) of any widths without the legs where a site has no neighbour."""
        return [
            core.reshape(*(core.shape[leg] for leg in used), core.shape[-1])
            for core, used in zip(cores, self.used, strict=True)
        ]

    def contracted(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """The tensor (p_1, …, p_n) of the network."""
        return cores[0] if len(cores) == 1 else contract(cores, self.legs, self.physical)

    def projection(self, k: int, cores: Sequence[torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """⟨environment of site k | target⟩: (bonds of k, p_k)."""
        others = [j for j in range(len(cores)) if j != k]
        tensors, legs = [cores[j] for j in others], [self.legs[j] for j in others]
        return contract([target, *tensors], [self.physical, *legs], self.legs[k])

    def gram(self, k: int, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """⟨environment of site k | environment of site k⟩: (bonds of k, the same of the other layer)."""
        others = [j for j in range(len(cores)) if j != k]
        both = [cores[j] for j in others] * 2
        legs = [self.legs[j] for j in others] + [self.bra[j] for j in others]
        return contract(both, legs, (*self.bonds[k], *(self.above + b for b in self.bonds[k])))
