"""Smaller bonds for a `peps` that is too large, one at a time, and what its double layer ⟨Ŵ|Ŵ⟩ says of them.

A bond D → D′ is cut where its environment, all the rest of the double layer, says that it hurts least; then the cores
settle anew. Up to nine sites environments are exact, beyond that they come from `trg`.
Evenbly, PRB 98, 085155 (2018) for truncation inside a closed network; Jiang, Weng and Xiang, PRL 101, 090603 (2008).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.contraction import contract
from karipap_core.networks.mpo import to_sites
from karipap_core.networks.peps.fit import sweep
from karipap_core.networks.peps.network import Peps
from karipap_core.networks.peps.trg import METHODS as BLOCKINGS
from karipap_core.networks.peps.trg import contract as renormalized
from karipap_core.networks.refine import refine
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.null import null_entropy
from karipap_core.spectra.spectrum import entropy, singular_values

EXACT_SITES = 9  # up to here environments are contracted exactly
CHI = 24  # of `trg` where nobody says otherwise
STEP = 0.1  # the part of a bond that one step takes off
RIDGE = 1e-12  # of the largest eigenvalue of an environment


# ---- the norm -------------------------------------------------------------------------------------------------------


def norm(spec: Peps, cores: Sequence[torch.Tensor], method: str = "exact", chi: int = CHI) -> float:
    """‖Ŵ‖² = ⟨Ŵ|Ŵ⟩, from the double layer: each site with itself, its physical leg summed, is a tensor of four legs.

    method "exact" contracts it as it is, "trg" and "hotrg" by renormalization with bonds of `chi` (trg.py;
    exact on 2 × 2). Sides that are no powers of two are filled up with sites that only pass bonds on. Random cores of
    4 × 4 with D = 3 (double bonds of 9): trg with χ = 24 is 72 % too low, hotrg 19 %; with D = 2 and χ = 16 both are
    right to 1e-8. Exact work grows with the exponential of the width: a torus of 4 × 4 with D = 3 is out of reach.
    Raises InputError for another method.
    """
    cores = list(cores) * (spec.sites if spec.tied else 1)
    if method == "exact":
        sites = spec.lattice
        merged = sites.merged([core.double() for core in cores])
        layers = [_double(core) for core in merged]
        if len(layers) == 1:
            return layers[0].item()
        return contract(layers, [(*sites.bonds[k], *sites.upper(k)) for k in range(spec.sites)], ()).item()
    if method not in BLOCKINGS:
        raise InputError(f"method: {method!r} is not one of exact, {', '.join(BLOCKINGS)}.")
    found = renormalized(_filled(_tensors(spec, cores), *spec.grid), chi, method=method)
    return found.sign * math.exp(found.ln_z) if found.sign else 0.0


def _double(core: torch.Tensor) -> torch.Tensor:
    """A site's tensor of the double layer: (its bonds, the same of the upper layer)."""
    rows = core.reshape(-1, core.shape[-1])
    return (rows @ rows.T).reshape((*core.shape[:-1], *core.shape[:-1]))


def _tensors(spec: Peps, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The double layer as tensors T[up, down, left, right]."""
    return [_four(core.double().flatten(-2)) for core in cores]


def _four(core: torch.Tensor, other: torch.Tensor | None = None) -> torch.Tensor:
    other = core if other is None else other
    tensor = torch.einsum("udlrp,UDLRp->uUdDlLrR", core, other)
    return tensor.reshape([a * b for a, b in zip(core.shape[:4], other.shape[:4], strict=True)])


def _filled(tensors: Sequence[torch.Tensor], rows: int, columns: int) -> list[list[torch.Tensor]]:
    """Rows of tensors on sides of a power of two, at least two."""
    grid = [list(tensors[r * columns : (r + 1) * columns]) for r in range(rows)]

    def through(size: int, like: torch.Tensor) -> torch.Tensor:
        return torch.eye(size, dtype=like.dtype, device=like.device)

    height, width = (max(2, 1 << (side - 1).bit_length()) for side in (rows, columns))
    for row in grid:
        row += [through(row[-1].shape[3], row[0])[None, None] for _ in range(width - columns)]
    for _ in range(height - rows):
        grid.append([through(tensor.shape[1], tensor)[:, :, None, None] for tensor in grid[-1]])
    return grid


# ---- one bond -------------------------------------------------------------------------------------------------------


def environment(spec: Peps, cores: Sequence[torch.Tensor], bond: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(left, right): positive matrices that weigh the two ends of a bond, by `trg`.

    `cores` are the merged ones with five legs (up, down, left, right, p), orthonormal towards the bond. left[a, a′] is
    ⟨Ŵ|Ŵ⟩ with the bond cut open, a and a′ at this end and the other end closed upon itself; right the other way round.
    """
    where = spec.bonds[bond]
    layers = [_four(core) for core in cores]
    found = []
    for near, leg, far, far_leg in (
        (where.site, where.leg, where.other, where.other_leg),
        (where.other, where.other_leg, where.site, where.leg),
    ):
        slices, size = cores[near].split(1, dim=leg), cores[near].shape[leg]
        closed = _four(*[cores[far]] * 2)
        shape = list(closed.shape)
        width = cores[far].shape[far_leg]
        closed = closed.reshape(*shape[:far_leg], width, width, *shape[far_leg + 1 :])
        closed = closed.diagonal(dim1=far_leg, dim2=far_leg + 1).sum(-1).unsqueeze(far_leg)
        matrix = torch.zeros(size, size, dtype=torch.float64)
        for a in range(size):
            for b in range(a, size):
                tensors = list(layers)
                tensors[far], tensors[near] = closed, _four(slices[a], slices[b])
                z = renormalized(_filled(tensors, *spec.grid), CHI, method="hotrg")
                matrix[a, b] = matrix[b, a] = z.sign * math.exp(z.ln_z) if z.sign else 0.0
        found.append(matrix.to(cores[near]))
    return found[0], found[1]


def full_environment(spec: Peps, cores: Sequence[torch.Tensor], bond: int) -> torch.Tensor:
    """Γ[a, b, a′, b′]: ⟨Ŵ|Ŵ⟩ with the bond cut open in both layers, contracted exactly; a and b are its two ends."""
    sites, where = spec.lattice, spec.bonds[bond]
    ends = (2 * sites.above, 2 * sites.above + 1)
    layers, legs = [], []
    for k, core in enumerate(sites.squeezed(cores)):
        layers.append(_double(core))
        names = [sites.bonds[k], sites.upper(k)]
        for end, site in zip(ends, (where.site, where.other), strict=True):
            if k == site:
                names = [
                    tuple(end + 2 * layer if leg % sites.above == bond else leg for leg in part)
                    for layer, part in enumerate(names)
                ]
        legs.append((*names[0], *names[1]))
    return contract(layers, legs, (ends[0], ends[1], ends[0] + 2, ends[1] + 2))


def cut_bond(spec: Peps, cores: Sequence[torch.Tensor], bond: int, keep: int) -> tuple[Peps, list[torch.Tensor], float]:
    """The network with `bond` at `keep`, and the weight that this discards: ‖Ŵ − Ŵ′‖² / ‖Ŵ‖².

    Both ends are orthonormalized towards the bond, core = Q R; M = R Rᵀ is then all there is on it, and ‖Ŵ − Ŵ′‖² is
    (M − M′) Γ (M − M′). First M′ is the truncated SVD of M weighted by Γ with either end closed (the best for a Γ that
    factors), then its two factors are put at their optimum under Γ itself, in turns. Beyond `EXACT_SITES` sites Γ is
    not at hand: the weights come from `trg`, and the discarded weight is measured on Ŵ.
    """
    where, exact = spec.bonds[bond], spec.sites <= EXACT_SITES
    five = [core.double().flatten(-2) for core in cores]
    halves = []
    for site, leg in ((where.site, where.leg), (where.other, where.other_leg)):
        last = five[site].movedim(leg, -1)
        q, r = torch.linalg.qr(last.reshape(-1, last.shape[-1]))
        five[site] = q.reshape(*last.shape[:-1], q.shape[1]).movedim(-1, leg)
        halves.append(r)
    M = halves[0] @ halves[1].T
    if exact:
        gamma = full_environment(spec, five, bond)
        left, right = torch.einsum("abcb->ac", gamma), torch.einsum("abac->bc", gamma)
    else:
        left, right = environment(spec, five, bond)
    (root, back), (root2, back2) = _roots(left), _roots(right)
    u, sigma, vt = torch.linalg.svd(root @ M @ root2.T, full_matrices=False)
    some = sigma[:keep].sqrt()
    one, two = back @ u[:, :keep] * some, back2 @ vt[:keep].T * some
    if exact:
        one, two = _settle(gamma, M, one, two)
        difference = M - one @ two.T
        lost = torch.einsum("ab,abcd,cd", difference, gamma, difference) / torch.einsum("ab,abcd,cd", M, gamma, M)
    for site, leg, factor in ((where.site, where.leg, one), (where.other, where.other_leg, two)):
        five[site] = torch.tensordot(five[site], factor, ([leg], [0])).movedim(-1, leg)
    chi = list(spec.chi)
    chi[bond] = one.shape[1]
    smaller = replace(spec, chi=tuple(chi))
    cut = smaller.shaped(five)
    if not exact:
        formed = spec.dense(cores)
        lost = (formed - smaller.dense(cut)).square().sum() / formed.square().sum()
    return smaller, cut, lost.item()


def _roots(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R with RᵀR = weight, and its inverse (on what is not rounding)."""
    values, vectors = torch.linalg.eigh((weight + weight.T) / 2)
    values = values.clamp(min=RIDGE * values[-1].clamp(min=1e-300)).sqrt()
    return values[:, None] * vectors.T, vectors / values


def _settle(gamma, M, one, two, turns: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of M′ = one twoᵀ, each in turn at the minimum of (M − M′) Γ (M − M′): it never rises."""
    gamma = (gamma + gamma.permute(2, 3, 0, 1)) / 2
    for turn in range(2 * turns):
        if turn % 2:
            one, two, M, gamma = two, one, M.T, gamma.permute(1, 0, 3, 2)
        towards = torch.einsum("abcd,bk->akcd", gamma, two)
        normal = torch.einsum("akcd,dl->akcl", towards, two).reshape(one.numel(), one.numel())
        slope = torch.einsum("akcd,cd->ak", towards, M - one @ two.T).reshape(-1, 1)
        normal.diagonal().add_(1e-10 * normal.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(normal)
        if not failed:
            one = one + torch.cholesky_solve(slope, factor).reshape(one.shape)
        if turn % 2:
            one, two, M, gamma = two, one, M.T, gamma.permute(1, 0, 3, 2)
    return one, two


# ---- the flow -------------------------------------------------------------------------------------------------------


def renormalize(
    spec: Peps,
    cores: Sequence[torch.Tensor],
    W: torch.Tensor,
    metric: Metric | None = None,
    schedule: Sequence[int] | None = None,
    budget: int | None = None,
    sweeps: int = 1,
    progress: Progress = silent,
) -> tuple[Peps, list[torch.Tensor], list[dict]]:
    """Bonds cut one at a time (`cut_bond`) and the cores settled anew after each, down to a schedule or a budget.

    schedule : descending caps on all bonds, such as [12, 8, 6]; default: a tenth less of the widest bond, again and
    again.  budget : parameters that the network may have; the flow ends as soon as it fits.  One of the two is needed.
    After each cut `sweeps` ALS sweeps towards W in the weight metric, as many rounds of `refine` in the others.
    Returns the spec, its float64 cores, and the flow: {"step", "bond", "D" (now), "kept" (parameters over W's),
    "discarded" (the part of ‖Ŵ‖² that the cut took), "error" (relative metric error after settling)}, the start as
    step 0 with no bond. Raises InputError for a tied network, no goal, or a budget below bonds of 1.
    """
    if spec.tied:
        raise InputError("Field 'tied': bonds that are all the same cannot be cut one at a time.")
    if schedule is None and budget is None:
        raise InputError("Give a schedule of bond dimensions or a budget of parameters.")
    least = replace(spec, chi=(1,) * len(spec.chi)).parameters
    if budget is not None and budget < least:
        raise InputError(f"budget: {budget} parameters are fewer than the {least} of this lattice with bonds of 1.")
    metric, W = metric or Metric(), W.detach().double()
    cores, total = [core.double() for core in cores], metric.absolute(W) or 1.0
    target = to_sites(W, spec.out, spec.in_)
    numbers = W.numel()

    def row(step: int, bond: int | None, discarded: float) -> dict:
        error = metric.absolute(W - spec.dense(cores)) / total
        return {
            "step": step,
            "bond": bond,
            "D": None if bond is None else spec.chi[bond],
            "kept": spec.parameters / numbers,
            "discarded": discarded,
            "error": error,
        }

    flow = [row(0, None, 0.0)]
    while (cut := _next_cut(spec, schedule, budget)) is not None:
        bond, keep = cut
        progress("renormalize", len(flow) - 1, len(flow), message=f"kept {flow[-1]['kept']:.3f}")
        spec, cores, discarded = cut_bond(spec, cores, bond, keep)
        if metric.name == "weight":
            for _ in range(sweeps):
                cores = spec.shaped(sweep(spec.lattice, spec.lattice.merged(cores), target))
        else:
            cores = refine(spec.dense, cores, W, metric, rounds=sweeps)[0]
        flow.append(row(len(flow), bond, discarded))
    return spec, cores, flow


def _next_cut(spec: Peps, schedule: Sequence[int] | None, budget: int | None) -> tuple[int, int] | None:
    """(bond, its next dimension), or None where the goal is reached: the widest bond first."""
    if budget is not None and spec.parameters <= budget:
        return None
    widest = max(range(len(spec.chi)), key=lambda b: spec.chi[b], default=None)
    if widest is None or spec.chi[widest] == 1:
        return None
    now = spec.chi[widest]
    if schedule is not None:
        caps = [cap for cap in schedule if cap < now]
        return (widest, max(1, max(caps))) if caps else None
    assert budget is not None  # one of the two is given
    lower = max(1, math.floor(now * (1 - STEP)) if now > 1 / STEP else now - 1)
    fits = [keep for keep in range(lower, now) if _at(spec, widest, keep).parameters <= budget]
    return widest, max(fits, default=lower)


def _at(spec: Peps, bond: int, keep: int) -> Peps:
    return replace(spec, chi=tuple(keep if b == bond else size for b, size in enumerate(spec.chi)))


# ---- what the lattice's cuts hold -----------------------------------------------------------------------------------


def bond_profile(W: torch.Tensor, spec: Peps) -> list[dict]:
    """Entanglement of W, as it is or whitened, across the lattice in both directions.

    The cut of a horizontal bond parts the columns of sites left of it from those right of it, that of a vertical bond
    the rows above from those below: "entropy" is S of W's singular values across it, in nats, "null" what a Gaussian
    weight would have. A row for each bond: {"bond", "direction", "cut" [[sites], [sites]], "entropy", "null"}; bonds
    over the same cut have the same numbers. A bond that wraps has the cut through the middle.
    """
    columns = spec.grid[1]
    tensor = to_sites(W.detach().double(), spec.out, spec.in_)
    known: dict[tuple[int, ...], tuple[float, float]] = {}
    rows = []
    for number, bond in enumerate(spec.bonds):
        place = [(k % columns if bond.direction == "horizontal" else k // columns) for k in range(spec.sites)]
        edge = place[bond.site] + 1 if place[bond.other] > place[bond.site] else (max(place) + 1) // 2
        near = tuple(k for k in range(spec.sites) if place[k] < edge)
        far = tuple(k for k in range(spec.sites) if place[k] >= edge)
        if near not in known:
            size = math.prod(spec.legs[k] for k in near)
            sigma = singular_values(tensor.permute(near + far).reshape(size, -1), device="cpu")
            known[near] = entropy(np.asarray(sigma)), null_entropy(size, math.prod(spec.legs) // size)
        value, null = known[near]
        rows.append(
            {
                "bond": number,
                "direction": bond.direction,
                "cut": [list(near), list(far)],
                "entropy": value,
                "null": null,
            }
        )
    return rows
