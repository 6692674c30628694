"""The fit of a `peps`: from a tensor train along a snake, alternating least squares, then all cores together."""

import math
from collections.abc import Sequence

import torch

from karipap_core.networks.base import Metric, Spec
from karipap_core.networks.lattice import Sites, snake, snake_bonds
from karipap_core.networks.mpo import balance, to_sites, tt_svd
from karipap_core.networks.refine import ENOUGH, ROUNDS, refine
from karipap_core.progress import Progress, silent

RIDGE = 1e-9  # of the mean diagonal: environments of a closed network are nearly singular
NOISE = 0.1
SWEEPS = 6
WIDEST = 1200  # bonds of one core, multiplied: its environment's norm is a matrix of that size


def fit(
    spec: Spec, W: torch.Tensor, metric: Metric, progress: Progress = silent, rounds: int = ROUNDS
) -> list[torch.Tensor]:
    sites, total = spec.lattice, metric.absolute(W)
    plain = spec.shaped(snake_start(spec, W))
    best = metric.absolute(W - spec.dense(plain))
    if best <= ENOUGH * total or spec.tied:
        return plain
    cores, target = snake_start(spec, W, NOISE), to_sites(W, spec.out, spec.in_)
    if max(core[..., 0].numel() for core in cores) <= WIDEST:
        for _ in range(SWEEPS):
            cores = sweep(sites, cores, target)
    cores, errors = refine(spec.dense, spec.shaped(cores), W, metric, rounds, progress=progress)
    return cores if errors[-1] < best else plain


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


def snake_start(spec: Spec, W: torch.Tensor, noise: float = 0.0, seed: int = 0) -> list[torch.Tensor]:
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
    cores: list[torch.Tensor] = [None] * len(path)
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
    return cores
