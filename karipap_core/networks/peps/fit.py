"""The fit of a `peps`: from a tensor train along a snake, alternating least squares, then all cores together."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch

from karipap_core.networks.mpo import balance, to_sites, tt_svd
from karipap_core.networks.peps.lattice import Bond, Sites, snake, snake_bonds
from karipap_core.networks.refine import ENOUGH, ROUNDS, refine
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

RIDGE = 1e-9  # of the mean diagonal: environments of a closed network are nearly singular
NOISE = 0.1  # what opens the bonds that a start leaves empty, in units of its own entries
SWEEPS = 4  # of every start, before the best of them goes on
RACE = 2  # rounds of `refine` of the two best
WIDEST = 1500  # bonds of one core, multiplied: its environment's norm is a matrix of that size


class LatticeSpec(Protocol):
    """What the fit asks of a `peps` (`network.Peps`, where each of these is explained)."""

    @property
    def out(self) -> tuple[int, ...]: ...
    @property
    def in_(self) -> tuple[int, ...]: ...
    @property
    def grid(self) -> tuple[int, int]: ...
    @property
    def tied(self) -> bool: ...
    @property
    def sites(self) -> int: ...
    @property
    def bonds(self) -> tuple[Bond, ...]: ...
    @property
    def dims(self) -> tuple[int, ...]: ...
    @property
    def lattice(self) -> Sites: ...

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor: ...
    def shaped(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]: ...
    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]: ...


def fit(
    spec: LatticeSpec,
    W: torch.Tensor,
    metric: Metric,
    progress: Progress = silent,
    rounds: int = ROUNDS,
    quick: bool = False,
) -> tuple[list[torch.Tensor], list[float]]:
    """Cores of `spec` and the metric error before and after each round of `refine` (absolute, never rising).

    Three starts, the snake's tensor train with its other bonds opened by noise, the cuts of the lattice, and random
    cores, go through `SWEEPS` sweeps each where sweeps are affordable. The lowest of them and the cuts as they were
    before any sweep go through `RACE` rounds of `refine` in the metric, the better of the two through the rest: on
    trained weights sweeps gain up to 30 % in the metrics of activations, but can end in a valley in the weight metric,
    20 % above where the other start comes to (kept .6). Random cores never won there; they guard against the
    unforeseen. `quick` takes the cuts alone, without sweeps. What comes back is never worse than the snake's tensor
    train as it is, which is exact where its bonds suffice.
    """
    total = metric.absolute(W)
    if spec.tied:
        tried = [refine(spec.dense, random_start(spec, W, seed), W, metric, rounds) for seed in range(3)]
        return min(tried, key=lambda found: found[1][-1])
    plain = spec.shaped(snake_start(spec, W))
    bound = metric.absolute(W - spec.dense(plain))
    if bound <= ENOUGH * total:
        return plain, [bound]
    cuts = cut_start(spec, W)
    racers = [spec.shaped(cuts)]
    if not quick:
        racers.append(_swept(spec, W, [snake_start(spec, W, NOISE), cuts], progress))
    race = [refine(spec.dense, cores, W, metric, rounds if quick else RACE) for cores in racers]
    cores, errors = min(race, key=lambda found: found[1][-1])
    left = 0 if quick else max(0, rounds - RACE)
    while left:
        cores, more = refine(spec.dense, cores, W, metric, left, progress=progress)
        errors = errors + more[1:]
        left = int(len(more) > 1 and more[-1] < more[-2] / 2)  # a network that is there to be found: on to the noise
    return (cores, errors) if errors[-1] < bound else (plain, [bound])


def _swept(
    spec: LatticeSpec, W: torch.Tensor, starts: list[list[torch.Tensor]], progress: Progress
) -> list[torch.Tensor]:
    """The start that is lowest in the weight metric after `SWEEPS` sweeps each, random cores among them."""
    sites, target = spec.lattice, to_sites(W, spec.out, spec.in_)
    if max(core[..., 0].numel() for core in starts[0]) <= WIDEST:
        starts = [*starts, sites.merged(random_start(spec, W))]
        for done in range(SWEEPS * len(starts)):
            progress("sweeps", done, SWEEPS * len(starts))
            starts[done % len(starts)] = sweep(sites, starts[done % len(starts)], target)
    return spec.shaped(min(starts, key=lambda cores: (target - sites.contracted(cores)).square().sum().item()))


def sweep(sites: Sites, cores: Sequence[torch.Tensor], target: torch.Tensor) -> list[torch.Tensor]:
    """Each core in turn put at the least squares solution of ‖target − Ŵ‖² for it, its environment exact.

    target (p_1, …, p_n); merged cores. The ridge holds the core where it was, not at zero: so no step raises the error.
    """
    cores = list(cores)
    for k, core in enumerate(cores):
        now = core.flatten(0, -2)
        gram = sites.gram(k, cores).reshape(len(now), len(now))
        slope = sites.projection(k, cores, target).reshape(now.shape) - gram @ now
        gram.diagonal().add_(RIDGE * gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            cores[k] = (now + torch.cholesky_solve(slope, factor)).reshape(core.shape)
    return cores


def snake_start(spec: LatticeSpec, W: torch.Tensor, noise: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
    """Merged cores of the TT-SVD of W along the snake of sites; what it leaves empty is filled with `noise` of its own
    size (0: Ŵ is that tensor train, and W itself where its bonds are wide enough)."""
    sites, path = spec.lattice, snake(*spec.grid)
    crossed = snake_bonds(spec.grid, spec.bonds)
    target = to_sites(W, spec.out, spec.in_).permute(path)
    ranks = [1]
    for k in range(len(path) - 1):
        widest = min(ranks[-1] * target.shape[k], math.prod(target.shape[k + 1 :]))
        ranks.append(min(sites.dims[crossed[k]], widest))
    train = balance(tt_svd(target, ranks[1:]))
    generator = torch.Generator().manual_seed(seed)
    cores: dict[int, torch.Tensor] = {}
    for k, site in enumerate(path):
        core = torch.randn(sites.shape(site), generator=generator, dtype=torch.float64).to(W.device)
        core *= noise * train[k].square().mean().sqrt()
        taken = {crossed[step]: ranks[step + 1] for step in (k - 1, k) if step in crossed}
        block = train[k].transpose(1, 2)  # left, right, p
        if len(taken) == 2 and sites.bonds[site].index(crossed[k]) < sites.bonds[site].index(crossed[k - 1]):
            block = block.transpose(0, 1)
        corner = [taken.get(bond, 1) for bond in sites.bonds[site]]
        core[tuple(slice(0, size) for size in corner)] = block.reshape(*corner, -1)
        cores[site] = core
    return [cores[site] for site in range(spec.sites)]


def cut_start(spec: LatticeSpec, W: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Merged cores from SVDs across the lattice: halved, each half halved again, until single sites are left.

    The singular values kept at a cut are as many as the bonds that cross it have values together, and their number is
    read as the indices of those bonds. Unlike a snake's, a cut of the ring then has D² values.
    """
    sites, columns = spec.lattice, spec.grid[1]
    generator = torch.Generator().manual_seed(seed)
    cores: dict[int, torch.Tensor] = {}

    def halve(tensor: torch.Tensor, names: list[tuple[int, int]], region: list[int]) -> None:
        """`names`: (site, leg) of each axis."""
        if len(region) == 1:
            (k,) = region
            near = [leg for _, leg in names]
            core = tensor.permute([near.index(leg) for leg in sites.legs[k]])
            noise = torch.randn(core.shape, generator=generator, dtype=torch.float64).to(core.device)
            cores[k] = core + NOISE**2 * core.square().mean().sqrt() * noise
            return
        rows = sorted({k // columns for k in region})
        across = sorted({k % columns for k in region})
        first = (
            {k for k in region if k // columns < rows[len(rows) // 2]}
            if len(rows) >= len(across)
            else {k for k in region if k % columns < across[len(across) // 2]}
        )
        inside = [axis for axis, (k, _) in enumerate(names) if k in first]
        outside = [axis for axis, (k, _) in enumerate(names) if k not in first]
        crossing = [
            (b, bond if bond.site in first else bond._replace(site=bond.other, other=bond.site))
            for b, bond in enumerate(spec.bonds)
            if bond.site in region and bond.other in region and (bond.site in first) != (bond.other in first)
        ]
        dims = [spec.dims[b] for b, _ in crossing]
        tensor = tensor.permute(inside + outside)
        shape, wide = tensor.shape, math.prod(dims)
        one, two = tt_svd(tensor.reshape(math.prod(shape[: len(inside)]), -1), [min(wide, *_sides(shape, len(inside)))])
        one, two = balance([one, two])
        empty = wide - one.shape[-1]
        one = torch.nn.functional.pad(one[0], (0, empty)).reshape(*shape[: len(inside)], *dims)
        two = torch.nn.functional.pad(two[..., 0], (0, 0, 0, empty)).reshape(*dims, *shape[len(inside) :])
        halve(one, [names[axis] for axis in inside] + [(bond.site, b) for b, bond in crossing], sorted(first))
        halve(
            two,
            [(bond.other, b) for b, bond in crossing] + [names[axis] for axis in outside],
            [k for k in region if k not in first],
        )

    halve(to_sites(W, spec.out, spec.in_), list(enumerate(sites.physical)), list(range(spec.sites)))
    return [cores[site] for site in range(spec.sites)]


def _sides(shape: Sequence[int], rows: int) -> tuple[int, int]:
    return math.prod(shape[:rows]), math.prod(shape[rows:])


def random_start(spec: LatticeSpec, W: torch.Tensor, seed: int = 0) -> list[torch.Tensor]:
    """Normal cores at half the norm of W."""
    cores = [core.to(W.device) for core in spec.random_cores(seed, torch.float64)]
    norm = spec.dense(cores).norm()
    scale = (0.5 * W.norm() / norm.where(norm > 0, 1)) ** (1 / spec.sites)
    return [core * scale for core in cores]
