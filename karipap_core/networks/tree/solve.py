"""A weight seen from the side that its group shares, and conjugate gradients for the basis of that side."""

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch

from karipap_core.spectra.metric import Metric

CG_STEPS = 12  # in one update of a shared core; with equal moments one is enough

Map = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class View:
    """One member turned so that the shared side is on the right: W (own, shared), the moment of its own side and that
    of the shared side; None is the identity. `factor` (lower) is what W was whitened with on its own side."""

    W: torch.Tensor
    own: torch.Tensor | None
    shared: torch.Tensor | None
    factor: torch.Tensor | None = None

    @classmethod
    def of(cls, W: torch.Tensor, metric: Metric, side: str) -> "View":
        W, (own, shared) = W.detach().double(), ("G", "C") if side == "in" else ("C", "G")
        W = W if side == "in" else W.T
        return cls(W, metric.damped(own, W.device), metric.damped(shared, W.device), metric.factor(own, W.device))

    def whitened(self) -> "View":
        """The same with Fᵀ W for W: the moment of its own side is the identity then."""
        return View(self.W if self.factor is None else self.factor.T @ self.W, None, self.shared, self.factor)

    def absolute(self, D: torch.Tensor) -> float:
        """‖A D B‖² of a difference D (own, shared)."""
        return (left(self.own, D) * right(D, self.shared)).sum().item()


def left(M: torch.Tensor | None, X: torch.Tensor) -> torch.Tensor:
    return X if M is None else M @ X


def right(X: torch.Tensor, M: torch.Tensor | None) -> torch.Tensor:
    return X if M is None else X @ M


def added(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of one tensor or more."""
    return reduce(operator.add, parts)


def shared_step(
    views: Sequence[View], V: torch.Tensor, lefts: Sequence[torch.Tensor], F: torch.Tensor | None
) -> torch.Tensor:
    """V that lowers Σ_l ‖A_l (W_l − L_l V) B_l‖², every left factor L_l (own, χ) held.

    The optimum solves Σ_l P_l V C_l = Σ_l L_lᵀ G_l W_l C_l with P_l = L_lᵀ G_l L_l: conjugate gradients from V,
    preconditioned by (Σ P)⁻¹ and the mean moment's inverse, which is exact where all members' moments are equal.
    """
    weighed = [left(v.own, L).T for v, L in zip(views, lefts, strict=True)]
    P = [weight @ L for weight, L in zip(weighed, lefts, strict=True)]
    together = added(P)
    together.diagonal().add_(1e-12 * together.diagonal().mean() + torch.finfo(torch.float64).tiny)
    R = torch.linalg.cholesky(together)

    def normal(X: torch.Tensor) -> torch.Tensor:
        return added(p @ right(X, v.shared) for p, v in zip(P, views, strict=True))

    def precondition(X: torch.Tensor) -> torch.Tensor:
        X = torch.cholesky_solve(X, R)
        return X if F is None else torch.cholesky_solve(X.T, F).T

    target = added(weight @ right(v.W, v.shared) for weight, v in zip(weighed, views, strict=True))
    return descend(V, normal, target, precondition)


def descend(X: torch.Tensor, normal: Map, target: torch.Tensor, precondition: Map) -> torch.Tensor:
    """Conjugate gradients on normal(X) = target from X: the quadratic error falls with every step."""
    R = target - normal(X)
    Z = precondition(R)
    P, size = Z, (R * Z).sum()
    enough = 1e-8 * size
    for _ in range(CG_STEPS):
        slope = normal(P)
        curvature = (P * slope).sum()
        if not curvature > 0:
            break
        step = size / curvature
        X, R = X + step * P, R - step * slope
        Z = precondition(R)
        size, former = (R * Z).sum(), size
        if not size > enough:
            break
        P = Z + size / former * P
    return X
