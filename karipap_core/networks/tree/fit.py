"""The fit of a `tree`: hierarchical SVD in the group's mean metric, then sweeps in each member's own.

Everything is float64 and knows matrices and moments alone, nothing of specs or names. A group is one of two states,
`Branches` (one side shared) or `Tucker` (both); `sweep` lowers either, `settle` also moves its ranks.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol, Self, TypeVar

import numpy as np
import torch

from karipap_core.networks.tree.solve import View, added, descend, left, right, shared_step
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

SWEEPS = 8
TOLERANCE = 1e-4  # of the error: a sweep that gains less is the last
ENOUGH = 1e-15  # relative error at which a fit is exact
LEVEL_SWEEPS = 2  # of a level of a curve: within 1 % of all of them


def mean_factor(moments: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Lower Cholesky factor F of the group's mean moment; None where all are the identity."""
    known = [M for M in moments if M is not None]
    if not known:
        return None
    eye = torch.eye(len(known[0]), dtype=torch.float64, device=known[0].device)
    return torch.linalg.cholesky(added(eye if M is None else M for M in moments) / len(moments))


def orthonormal(V: torch.Tensor, F: torch.Tensor | None) -> torch.Tensor:
    """Rows with the same span and V F Fᵀ Vᵀ = 1."""
    return unwhitened(torch.linalg.qr(right(V, F).T).Q.T, F)


def unwhitened(Q: torch.Tensor, F: torch.Tensor | None) -> torch.Tensor:
    return Q if F is None else torch.linalg.solve_triangular(F, Q, upper=False, left=False)


def leading_rows(parts: Sequence[torch.Tensor], chi: int) -> torch.Tensor:
    """The χ leading right singular vectors (χ, n), as rows, of the parts (…, n) one on top of the other."""
    columns = parts[0].shape[1]
    if columns <= sum(len(part) for part in parts):
        return torch.linalg.eigh(added(part.T @ part for part in parts)).eigenvectors[:, -chi:].flip(1).T
    stack = torch.cat(list(parts))
    return torch.linalg.qr(stack.T @ torch.linalg.eigh(stack @ stack.T).eigenvectors[:, -chi:].flip(1)).Q.T


class Branches:
    """A group of share "in" or "out", seen with the shared side on the right: V (χ_g, shared) and each member's own
    factors, (own, χ_g) or (own, r_l) and (r_l, χ_g), the optimum of its own metric for this V. The views are whitened
    on their own sides, which a member's own factors can follow."""

    def __init__(self, views: Sequence[View], chi: Sequence[int], V: torch.Tensor | None = None) -> None:
        self.views, self.ranks = views, tuple(chi[1:])
        self.F = mean_factor([view.shared for view in views])
        self.V = unwhitened(leading_rows([right(view.W, self.F) for view in views], chi[0]), self.F) if V is None else V
        self.owns = [self.own(view, rank) for view, rank in zip(views, self.ranks, strict=True)]

    def projected(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Z (own, χ_g) and R (χ_g, χ_g): with Q = R⁻¹ V B orthonormal, W B Qᵀ = Z, so the best Ŵ is Z R⁻¹ V."""
        VC = right(self.V, view.shared)
        R = torch.linalg.cholesky(VC @ self.V.T)
        return torch.linalg.solve_triangular(R.T, view.W @ VC.T, upper=True, left=False), R

    def own(self, view: View, rank: int) -> tuple[torch.Tensor, ...]:
        """Z R⁻¹, or the rank-r truncation of Z times R⁻¹: with V held the optimum of this member's error."""
        Z, R = self.projected(view)
        if rank * sum(Z.shape) >= math.prod(Z.shape):
            return (torch.linalg.solve_triangular(R, Z, upper=False, left=False),)
        if Z.shape[0] <= Z.shape[1]:
            U = torch.linalg.eigh(Z @ Z.T).eigenvectors[:, -rank:].flip(1)
            C = U.T @ Z
        else:
            C = torch.linalg.eigh(Z.T @ Z).eigenvectors[:, -rank:].flip(1).T
            U = Z @ C.T
        return U, torch.linalg.solve_triangular(R, C, upper=False, left=False)

    def lefts(self) -> list[torch.Tensor]:
        return [own[0] if len(own) == 1 else own[0] @ own[1] for own in self.owns]

    def errors(self) -> list[float]:
        return [view.absolute(view.W - L @ self.V) for view, L in zip(self.views, self.lefts(), strict=True)]

    def stepped(self) -> "Branches":
        """One sweep: V with the owns held, then each own with V held."""
        if len(self.views) == 1:
            return self  # the start is the optimum
        V = orthonormal(shared_step(self.views, self.V, self.lefts(), self.F), self.F)
        return Branches(self.views, (len(V), *self.ranks), V)

    def merged(self, chi: int) -> "Branches":
        """The two-site step of the shared edge: V joined with the members' C, split anew at χ by an SVD in the group's
        mean metric, the members' own subspaces held; then each own with V held."""
        parts = []
        for view, own in zip(self.views, self.owns, strict=True):
            WF = right(view.W, self.F)
            parts.append(WF if len(own) == 1 else torch.linalg.qr(own[0]).Q.T @ WF)
        chi = min(chi, sum(len(part) for part in parts))
        return Branches(self.views, (chi, *self.ranks), unwhitened(leading_rows(parts, chi), self.F))

    def cores(self, share: str) -> list[list[torch.Tensor]]:
        V, owns = self.V, [list(own) for own in self.owns]
        for view, own in zip(self.views, owns, strict=True):
            if view.factor is not None:
                own[0] = torch.linalg.solve_triangular(view.factor.T, own[0], upper=True)
        inner = torch.stack([own[-1].norm(dim=0) for own in owns]).mean(0)
        scale = evened(inner, V.norm(dim=1))
        for own in owns:
            own[-1] = own[-1] * scale
            if len(own) == 2:
                bond = evened(own[0].norm(dim=0), own[1].norm(dim=1))
                own[0], own[1] = own[0] * bond, own[1] / bond[:, None]
        V = V / scale[:, None]
        if share == "in":
            return [[V, *own] for own in owns]
        U = V.T.contiguous()
        return [[U, *(core.T.contiguous() for core in reversed(own))] for own in owns]


def evened(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """What `one` of the two ends of a bond is multiplied with (and the other divided by) for equal norms."""
    alive = (one > 0) & (other > 0)
    return torch.where(alive, (other / one.where(alive, torch.ones_like(one))).sqrt(), torch.ones_like(one))


class Tucker:
    """A group of share "both" or "all": U (out, χ_out), V (χ_in, in) and each member's C_l (χ_out, χ_in), for "all"
    with C_l = Σ_a c[l, a] K_a."""

    def __init__(self, views: Sequence[View], turned: Sequence[View], chi: Sequence[int]) -> None:
        """views : with "in" on the right.  turned : with "out" on the right."""
        self.views, self.turned, self.bond = views, turned, chi[2] if len(chi) == 3 else None
        self.F_in = mean_factor([view.shared for view in views])
        self.F_out = mean_factor([view.shared for view in turned])
        whitened = [left(None if self.F_out is None else self.F_out.T, right(view.W, self.F_in)) for view in views]
        self.V = unwhitened(leading_rows(whitened, chi[1]), self.F_in)
        self.U = unwhitened(leading_rows([Y.T for Y in whitened], chi[0]), self.F_out).T
        self.layered: tuple[torch.Tensor, torch.Tensor] | None = None  # K and c
        self.middle()

    def middle(self) -> None:
        """C_l with U and V held: (Uᵀ G U)⁻¹ Uᵀ G W C Vᵀ (V C Vᵀ)⁻¹; with a bond on the layers K, c start from the
        SVD of these over (l | out, in), and then each in turn is a least-squares problem."""
        A = [self.U.T @ left(view.own, self.U) for view in self.views]
        B = [right(self.V, view.shared) @ self.V.T for view in self.views]
        inner = [left(v.own, self.U).T @ v.W @ right(self.V, v.shared).T for v in self.views]
        if self.layered is None:
            self.C = []
            for a, b, T in zip(A, B, inner, strict=True):
                half = torch.cholesky_solve(T, torch.linalg.cholesky(a))
                self.C.append(torch.cholesky_solve(half.T, torch.linalg.cholesky(b)).T)
        if self.bond is None:
            return
        if self.layered is None:
            flat = torch.stack(self.C).flatten(1)
            c = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -self.bond :].flip(1)
            K = (c.T @ flat).reshape(self.bond, *self.C[0].shape)
        else:
            K, c = self.layered
        outs, ins, targets = torch.stack(A), torch.stack(B), torch.stack(inner)
        hessian = c.T @ c
        hessian.diagonal().add_(1e-12 * hessian.diagonal().mean())
        R = torch.linalg.cholesky(hessian)

        def normal(K: torch.Tensor) -> torch.Tensor:
            return torch.einsum("la,lij->aij", c, outs @ torch.einsum("la,aij->lij", c, K) @ ins)

        def precondition(X: torch.Tensor) -> torch.Tensor:
            return torch.cholesky_solve(X.flatten(1), R).reshape(X.shape)

        K = descend(K, normal, torch.einsum("la,lij->aij", c, targets), precondition)
        bent = outs[:, None] @ K @ ins[:, None]  # (l, a, χ_out, χ_in)
        hessians = torch.einsum("aij,lbij->lab", K, bent)
        slopes = torch.einsum("aij,lij->la", K, targets)
        self.layered = K, (torch.linalg.pinv(hessians, hermitian=True) @ slopes[..., None])[..., 0]
        self.C = list(torch.einsum("la,aij->lij", self.layered[1], K))

    def errors(self) -> list[float]:
        return [view.absolute(view.W - self.U @ C @ self.V) for view, C in zip(self.views, self.C, strict=True)]

    def stepped(self) -> "Tucker":
        """One sweep: V, then U, then the members' C (for "all" K, then c)."""
        new = object.__new__(Tucker)
        new.__dict__.update(self.__dict__)
        new.V = shared_step(self.views, self.V, [self.U @ C for C in self.C], self.F_in)
        new.U = shared_step(self.turned, new.U.T, [(C @ new.V).T for C in new.C], self.F_out).T
        new.middle()
        return new

    def cores(self, share: str) -> list[list[torch.Tensor]]:
        rows = evened(torch.stack([C.norm(dim=1) for C in self.C]).mean(0), self.U.norm(dim=0))
        columns = evened(torch.stack([C.norm(dim=0) for C in self.C]).mean(0), self.V.norm(dim=1))
        U, V = self.U / rows, self.V / columns[:, None]
        if self.layered is None:
            return [[U, V, rows[:, None] * C * columns] for C in self.C]
        K, c = rows[:, None] * self.layered[0] * columns, self.layered[1]
        bond = evened(K.flatten(1).norm(dim=1), c.norm(dim=0))
        K = K * bond[:, None, None]
        return [[U, V, K, of_layer / bond] for of_layer in c]


def start(share: str, chi: Sequence[int], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]) -> Branches | Tucker:
    """Hierarchical SVD from the leaves: the shared bases in the group's mean metric, the rest the optimum for them.

    Where all members have one metric, error ≤ Σ_e (discarded weight at edge e) ≤ (2d − 3) of the best squared error.
    """
    pairs = list(zip(Ws, metrics, strict=True))
    if share in ("in", "out"):
        return Branches([View.of(*pair, share).whitened() for pair in pairs], chi)
    return Tucker([View.of(*pair, "in") for pair in pairs], [View.of(*pair, "out") for pair in pairs], chi)


class Group(Protocol):
    """What `sweep` asks of a state."""

    @property
    def views(self) -> Sequence[View]: ...

    def errors(self) -> list[float]: ...

    def stepped(self) -> Self: ...


State = TypeVar("State", bound=Group)


def sweep(
    state: State, progress: Progress = silent, sweeps: int = SWEEPS, tolerance: float = TOLERANCE
) -> tuple[State, list[float]]:
    """One-site sweeps until one gains less than `tolerance`: the state, and the group's error at the start and after
    each, which never rises (a sweep that would raise it, by rounding, is dropped)."""
    total = sum(view.absolute(view.W) for view in state.views)
    errors = [sum(state.errors())]
    for done in range(sweeps):
        progress("sweeps", done, sweeps, message=f"metric error {errors[-1] / total:.4g}" if total else "zero weights")
        if errors[-1] <= ENOUGH * total or (tried := state.stepped()) is state:
            break
        error = sum(tried.errors())
        if not error < errors[-1]:
            break
        state, gain = tried, 1 - error / errors[-1]
        errors.append(error)
        if gain < tolerance:
            break
    return state, errors


# ---- how a group's numbers are split between the edges


def edge_squares(state: Branches, chis: Sequence[int]) -> dict[int, list[np.ndarray]]:
    """σ² of every member's own edge, descending, with the first χ rows of V kept, for each χ.

    The Cholesky factor of the first rows is the first block of the factor of all, so one projection serves every χ.
    """
    found: dict[int, list[np.ndarray]] = {chi: [] for chi in chis}
    for view in state.views:
        Z = state.projected(view)[0]
        for chi in chis:
            part = Z[:, :chi]
            gram = part @ part.T if part.shape[0] <= chi else part.T @ part
            found[chi].append(torch.linalg.eigvalsh(gram).flip(0).clamp(min=0).cpu().numpy())
    return found


def price(squares: Sequence[np.ndarray], owns: Sequence[int], chi: int, budget: int) -> tuple[list[int], float] | None:
    """The members' ranks for `budget` numbers in their own factors, and the σ² kept; None where it is too small.

    One more rank costs n_own + χ numbers and keeps σ_r²; the one core n_own · χ keeps all. On the upper hull of kept
    over cost the steps are taken in the order of what they keep a number, the global price, until nothing more fits.
    """
    ranks, steps, kept, left_over = [], [], 0.0, budget
    for member, (sigma, own) in enumerate(zip(squares, owns, strict=True)):
        each, whole, every = own + chi, own * chi, min(own, chi)  # of a rank, of the one core; ranks at most
        most = min(every, (whole - 1) // each)  # the largest rank at which two factors are smaller than one core
        first = 1 if most else every
        ranks.append(first)
        kept += sigma[:first].sum()
        left_over -= min(each * first, whole)
        if not most:
            continue
        tails = sigma.sum() - np.cumsum(sigma[:most])
        jump = tails / (whole - each * np.arange(1, most + 1))  # from rank 1 … most to the one core
        leave = int(np.argmin(jump))  # where the line to the one core runs above all other ranks
        steps += [(sigma[r] / each, each, member, r + 1, sigma[r]) for r in range(1, leave + 1)]
        steps.append((jump[leave], whole - each * (leave + 1), member, every, tails[leave]))
    if left_over < 0:
        return None
    stopped, smallest = set(), min((step[1] for step in steps), default=1)
    for _, cost, member, rank, gain in sorted(steps, key=lambda step: (-step[0], step[3])):
        if left_over < smallest:
            break
        if member in stopped:
            continue
        if cost > left_over:
            stopped.add(member)
            continue
        ranks[member], left_over, kept = rank, left_over - cost, kept + gain
    # What is left buys single ranks of those that cannot afford their one core.
    while choices := [
        (squares[m][ranks[m]], m)
        for m in stopped
        if owns[m] + chi <= left_over and (ranks[m] + 1) * (owns[m] + chi) < owns[m] * chi
    ]:
        gain, member = max(choices)
        ranks[member], left_over, kept = ranks[member] + 1, left_over - owns[member] - chi, kept + gain
    return ranks, kept


def split(
    squares: dict[int, list[np.ndarray]], owns: Sequence[int], shared: int, budget: int
) -> tuple[float, int, list[int]] | None:
    """(kept, χ_g, ranks) of the χ_g at which `budget` numbers keep most; None where none fits."""
    best = None
    for chi, found in squares.items():
        priced = price(found, owns, chi, budget - chi * shared)
        if priced is not None and (best is None or priced[1] > best[0]):
            best = (priced[1], chi, priced[0])
    return best


def settle(state: Branches, grid: Sequence[int], budget: int) -> Branches:
    """The start of a level swept at its size: one-site sweeps, then two-site steps that re-price the own edges, at this
    χ_g and at its neighbours in `grid`. A step is kept where it lowers the group's error, so nothing here raises it."""

    def priced(state: Branches) -> Branches | None:
        chi, owns = len(state.V), [len(view.W) for view in state.views]
        found = price(edge_squares(state, [chi])[chi], owns, chi, budget - chi * state.V.shape[1])
        return None if found is None else Branches(state.views, (chi, *found[0]), state.V)

    state, errors = sweep(state, sweeps=LEVEL_SWEEPS)
    error = errors[-1]
    if (again := priced(state)) is not None and sum(again.errors()) < error:
        state, errors = sweep(again, sweeps=1)
        error = errors[-1]
    for direction in (-1, 1):
        began = len(state.V)
        while 0 <= (place := bisect_left(grid, len(state.V)) + direction) < len(grid):
            if (moved := priced(state.merged(grid[place]))) is None:
                break
            moved, errors = sweep(moved, sweeps=1)
            if not errors[-1] < error:
                break
            state, error = moved, errors[-1]
        if len(state.V) != began:
            break
    return state
