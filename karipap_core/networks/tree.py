"""`tree`: the weights of several layers as one tree tensor network, its branches shared between them.

The weights of a group, one role in several layers, are the slices of T[layer, out, in]. What layers share is the basis
of the residual stream, so one side's basis is stored once for the group (χ_g the bond on that shared branch, r_l the
bond on layer l's own branch):

    share "in"    W_l = U_l C_l V_g    V_g (χ_g, in) shared;  U_l (out, r_l), C_l (r_l, χ_g) of the layer
    share "out"   W_l = U_g C_l V_l    U_g (out, χ_g) shared; C_l (χ_g, r_l), V_l (r_l, in) of the layer
    share "both"  W_l = U_g C_l V_g    both shared, C_l (χ_out, χ_in) of the layer: Tucker's form
    share "all"   as "both" with C_l = Σ_a c_l[a] K_a: K (χ_L, χ_out, χ_in) shared too, a bond on the layer index

Where r_l is the most that it can be, min(n_own, χ_g), the pair U_l C_l truncates nothing and is stored as the one core
B_l that it is (out, χ_g): with all layers like that, and share "in", this is Basis Sharing (arXiv:2410.03765). A group
of one weight is then `lowrank`. `chi` is (χ_g, r_0, …, r_{L−1}) for "in" and "out", (χ_out, χ_in) for "both" and
(χ_out, χ_in, χ_L) for "all". Each member's entry is complete in itself; shared cores come first in its list and are
stored with member 0 alone.
Grasedyck, "Hierarchical singular value decomposition of tensors", SIAM J. Matrix Anal. Appl. 31 (2010); De Lathauwer
et al., "On the best rank-1 and rank-(R1, …, RN) approximation", ibid. 21 (2000).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Curve, Metric, Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.progress import Progress, silent

SHARES = ("in", "out", "both", "all")
SWEEPS = 8
TOLERANCE = 1e-4  # of the error: a sweep that gains less is the last
ENOUGH = 1e-15  # relative error at which a fit is exact
CG_STEPS = 12  # in one update of a shared core; with equal moments one is enough


@dataclass(frozen=True)
class Tree(Spec):
    """JSON: {"network": "tree", "out": [n_out], "in": [n_in], "chi": […], "share": …, "members": […], "at": k}.

    share : which side's basis the group shares (see the module).  members : names of the group's weights in order, ()
    for a weight alone.  at : this weight's number among them.
    """

    share: str = "in"
    members: tuple[str, ...] = ()
    at: int = 0

    network: ClassVar[str] = "tree"

    def validate(self) -> None:
        names = self.members
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InputError(f"Field 'members' is {names!r}: it must be a list of weight names.")
        object.__setattr__(self, "members", tuple(names))
        if len(set(names)) != len(names):
            raise InputError("Field 'members' names a weight twice.")
        if self.share not in SHARES:
            raise InputError(f"Field 'share' is {self.share!r}: it must be one of {', '.join(SHARES)}.")
        if isinstance(self.at, bool) or not isinstance(self.at, int) or not 0 <= self.at < self.layers:
            raise InputError(f"Field 'at' is {self.at!r}: the group has members 0 to {self.layers - 1}.")
        for name in ("out", "in_"):
            if len(getattr(self, name)) != 1:
                raise InputError(f"Field {name.rstrip('_')!r} of a 'tree' entry must hold one number.")
        wanted = {"both": 2, "all": 3}.get(self.share, 1 + self.layers)
        if len(self.chi) != wanted:
            raise InputError(f"Field 'chi' has {len(self.chi)} bonds: share {self.share!r} in a group of {self.layers} "
                             f"has {wanted}.")  # fmt: skip
        for bond, most in zip(self.chi, self._most, strict=True):
            if bond > most:
                raise InputError(f"Field 'chi' is {list(self.chi)}: its bonds can be no more than {list(self._most)}.")

    @property
    def _most(self) -> tuple[int, ...]:
        """What each bond can be at most, as far as this member knows (the others may be of other own sizes)."""
        if self.share == "both":
            return (self.n_out, self.n_in)
        if self.share == "all":
            return (self.n_out, self.n_in, self.layers)
        shared, own = self.sides
        own_most = [self.chi[0]] * self.layers
        own_most[self.at] = min(own, self.chi[0])
        return (shared if self.members else min(shared, own), *own_most)

    @classmethod
    def for_shape(
        cls, n_out: int, n_in: int, chi: int, out=None, in_=None, quantize=None, share="in", members=(), at=0
    ) -> "Tree":
        """One χ for the whole group, every bond at χ or the most that it can attain; the members are taken to be of
        one shape. Nothing is truncated on the layers' own branches: Basis Sharing, and `lowrank` for a weight alone."""
        chi, layers = max(1, int(chi)), max(1, len(members))
        if share in ("both", "all"):
            bonds = (min(chi, n_out, layers * n_in), min(chi, n_in, layers * n_out))
            bonds += (min(chi, layers),) if share == "all" else ()
        else:
            shared, own = (n_in, n_out) if share == "in" else (n_out, n_in)
            chi = min(chi, shared, layers * own)
            bonds = (chi, *[min(chi, own)] * layers)
        return cls(out or (n_out,), in_ or (n_in,), bonds, quantize, share, members, at)

    @property
    def layers(self) -> int:
        return max(1, len(self.members))

    @property
    def sides(self) -> tuple[int, int]:
        """(size of the shared side, size of the layer's own); for share "in" and "out"."""
        return (self.n_in, self.n_out) if self.share == "in" else (self.n_out, self.n_in)

    @property
    def rank(self) -> int:
        """r_l of this member; for share "in" and "out"."""
        return self.chi[1 + self.at]

    @property
    def whole(self) -> bool:
        """Whether this member's own branch truncates nothing, so that it is one core."""
        return self.rank == min(self.sides[1], self.chi[0])

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        out, in_, chi = self.n_out, self.n_in, self.chi
        if self.share == "both":
            return [(out, chi[0]), (chi[1], in_), (chi[0], chi[1])]
        if self.share == "all":
            return [(out, chi[0]), (chi[1], in_), (chi[2], chi[0], chi[1]), (chi[2],)]
        if self.share == "in":
            own = [(out, chi[0])] if self.whole else [(out, self.rank), (self.rank, chi[0])]
            return [(chi[0], in_), *own]
        own = [(chi[0], in_)] if self.whole else [(chi[0], self.rank), (self.rank, in_)]
        return [(out, chi[0]), *own]

    @property
    def shared(self) -> int:
        """How many of the first cores belong to the whole group."""
        return {"both": 2, "all": 3}.get(self.share, 1)

    @property
    def owned(self) -> list[bool]:
        return [self.at == 0 or k >= self.shared for k in range(len(self.core_shapes))]

    @property
    def max_chi(self) -> int:
        out, in_, layers = self.n_out, self.n_in, self.layers
        if self.share in ("both", "all"):
            most = max(min(out, layers * in_), min(in_, layers * out))
            return max(most, layers) if self.share == "all" else most
        shared, own = self.sides
        return min(shared, layers * own)

    def factors(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The matrices whose product is Ŵ, in order: the layer's branch of "all" is contracted first."""
        if self.share in ("both", "all"):
            U, V, C = cores[:3]
            if self.share == "all":
                C = (cores[3] @ C.flatten(1)).reshape(C.shape[1:])
            return [U, C, V]
        return [*cores[1:], cores[0]] if self.share == "in" else list(cores)

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        for factor in reversed(self.factors(cores)):
            x = x @ factor.T
        return x

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        left, *rest = self.factors(cores)
        for factor in rest:
            left = left @ factor
        return left

    def multiply_adds(self, batch: int = 1) -> int:
        shapes = self.core_shapes
        if self.share == "all":  # the layer's branch once, then three matrices
            return math.prod(shapes[2]) + batch * sum(math.prod(s) for s in (*shapes[:2], shapes[2][1:]))
        return batch * sum(math.prod(shape) for shape in shapes)

    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """As in `Spec`, but over the bonds that this member's own product sums over."""
        if self.share in ("both", "all"):
            settings = math.prod(self.chi)
        else:
            settings = self.chi[0] if self.whole else self.chi[0] * self.rank
        shapes = self.core_shapes
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        spread = (self.n_in * settings) ** (-0.5 / len(shapes))
        return [torch.randn(shape, generator=generator, dtype=dtype) * spread for shape in shapes]

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """A group of one weight; the members of a larger one are fitted together by `fit_group`."""
        if self.layers > 1:
            raise InputError(f"Field 'members' names {self.layers} weights: a tree is fitted to all of them at once.")
        return fit_group([self], [W], [metric], progress)[0]

    @classmethod
    def curve(cls, W: torch.Tensor, metric: Metric | None = None, levels=None, out=None, in_=None, **_) -> Curve:
        """That of a weight alone, where a tree is `lowrank`; a group's is `group_curve`."""
        return LowRank.curve(W, metric)


# ---- the group


@dataclass(frozen=True)
class GroupCurve:
    """What each size of a group costs and loses.

    specs : one list of members' specs a level, ascending in size.  parameters : of the whole group, (levels,).
    error : ‖A (W − Ŵ) B‖² of each member, absolute, (levels, members); their sum never rises.
    total : ‖A W B‖² of each member, (members,).
    """

    specs: list[list[Tree]]
    parameters: np.ndarray
    error: np.ndarray
    total: np.ndarray


def group_specs(members: Sequence[str], shape: tuple[int, int], chi, share: str = "in", quantize=None) -> list[Tree]:
    """The members' specs: `chi` is one number (see `Tree.for_shape`) or all the bonds in the order of the module."""
    names = tuple(members) if len(members) > 1 else ()
    if isinstance(chi, int):
        return [Tree.for_shape(*shape, chi, quantize=quantize, share=share, members=names, at=at)
                for at in range(len(members))]  # fmt: skip
    return [Tree(shape[:1], shape[1:], tuple(chi), quantize, share, names, at) for at in range(len(members))]


@torch.no_grad()
def fit_group(
    specs: Sequence[Tree], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric], progress: Progress = silent
) -> list[list[torch.Tensor]]:
    """Float64 cores of each member, on the weights' device; shared cores are one tensor in all lists.

    Lowers Σ_l ‖A_l (W_l − Ŵ_l) B_l‖², each member in its own metric: a hierarchical SVD in the summed metric, then at
    most `SWEEPS` one-site sweeps, none of which raises the sum. Raises InputError where specs, weights and metrics do
    not belong together.
    """
    check_group(specs, Ws, metrics)
    return sweep(start(specs, Ws, metrics), progress)[0].cores(specs)


def check_group(specs: Sequence[Tree], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]) -> None:
    if not len(specs) == len(Ws) == len(metrics) == (specs[0].layers if specs else -1):
        raise InputError(f"A group needs a spec, a weight and a metric each: {len(specs)}, {len(Ws)}, {len(metrics)}.")
    first = specs[0]
    for at, (spec, W, metric) in enumerate(zip(specs, Ws, metrics, strict=True)):
        if (spec.chi, spec.share, spec.members, spec.at) != (first.chi, first.share, first.members, at):
            raise InputError(f"Member {at} of the group differs in 'chi', 'share' or 'members', or in its place 'at'.")
        if tuple(W.shape) != (spec.n_out, spec.n_in):
            raise InputError(f"Weight {at} of the group is {tuple(W.shape)}, its entry {(spec.n_out, spec.n_in)}.")
        metric.check(*W.shape)


@dataclass
class View:
    """One member turned so that the shared side is on the right: W (own, shared), the moment of its own side (with
    lower factor) and that of the shared side; None is the identity."""

    W: torch.Tensor
    own: torch.Tensor | None
    own_factor: torch.Tensor | None
    shared: torch.Tensor | None

    @classmethod
    def of(cls, W: torch.Tensor, metric: Metric, side: str) -> "View":
        W, (own, shared) = W.detach().double(), ("G", "C") if side == "in" else ("C", "G")
        return cls(W if side == "in" else W.T, metric.damped(own, W.device), metric.factor(own, W.device),
                   metric.damped(shared, W.device))  # fmt: skip

    def absolute(self, D: torch.Tensor) -> float:
        """‖A D B‖² of a difference D (own, shared)."""
        return (left(self.own, D) * right(D, self.shared)).sum().item()


def left(M: torch.Tensor | None, X: torch.Tensor) -> torch.Tensor:
    return X if M is None else M @ X


def right(X: torch.Tensor, M: torch.Tensor | None) -> torch.Tensor:
    return X if M is None else X @ M


def mean_factor(moments: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Lower Cholesky factor F of the group's mean moment; None where all are the identity."""
    known = [M for M in moments if M is not None]
    if not known:
        return None
    eye = torch.eye(len(known[0]), dtype=torch.float64, device=known[0].device)
    return torch.linalg.cholesky(sum(eye if M is None else M for M in moments) / len(moments))


def orthonormal(V: torch.Tensor, F: torch.Tensor | None) -> torch.Tensor:
    """Rows with the same span and V F Fᵀ Vᵀ = 1."""
    return unwhitened(torch.linalg.qr(right(V, F).T).Q.T, F)


def unwhitened(Q: torch.Tensor, F: torch.Tensor | None) -> torch.Tensor:
    return Q if F is None else torch.linalg.solve_triangular(F, Q, upper=False, left=False)


def leading_rows(parts: Sequence[torch.Tensor], chi: int) -> torch.Tensor:
    """The χ leading right singular vectors (χ, n), as rows, of the parts (…, n) one on top of the other."""
    columns = parts[0].shape[1]
    if columns <= sum(len(part) for part in parts):
        return torch.linalg.eigh(sum(part.T @ part for part in parts)).eigenvectors[:, -chi:].flip(1).T
    stack = torch.cat(list(parts))
    return torch.linalg.qr(stack.T @ torch.linalg.eigh(stack @ stack.T).eigenvectors[:, -chi:].flip(1)).Q.T


def shared_start(views: Sequence[View], F: torch.Tensor | None, chi: int) -> torch.Tensor:
    """V (χ, shared): the leading basis of the shared side, each member whitened by its own side and the group's F."""
    whitened = (left(None if v.own_factor is None else v.own_factor.T, right(v.W, F)) for v in views)
    return unwhitened(leading_rows(list(whitened), chi), F)


def shared_step(views: Sequence[View], V: torch.Tensor, lefts: Sequence[torch.Tensor], F) -> torch.Tensor:
    """V that lowers Σ_l ‖A_l (W_l − L_l V) B_l‖², every left factor L_l (own, χ) held.

    The optimum solves Σ_l P_l V C_l = Σ_l L_lᵀ G_l W_l C_l with P_l = L_lᵀ G_l L_l: conjugate gradients from V,
    preconditioned by (Σ P)⁻¹ and the mean moment's inverse, which is exact where all members' moments are equal.
    """
    weighed = [left(v.own, L).T for v, L in zip(views, lefts, strict=True)]
    P = [weight @ L for weight, L in zip(weighed, lefts, strict=True)]
    together = sum(P)
    together.diagonal().add_(1e-12 * together.diagonal().mean() + torch.finfo(torch.float64).tiny)
    R = torch.linalg.cholesky(together)

    def normal(X: torch.Tensor) -> torch.Tensor:
        return sum(p @ right(X, v.shared) for p, v in zip(P, views, strict=True))

    def precondition(X: torch.Tensor) -> torch.Tensor:
        X = torch.cholesky_solve(X, R)
        return X if F is None else torch.cholesky_solve(X.T, F).T

    target = sum(weight @ right(v.W, v.shared) for weight, v in zip(weighed, views, strict=True))
    return descend(V, normal, target, precondition)


def descend(X, normal: Callable, target: torch.Tensor, precondition: Callable) -> torch.Tensor:
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


class Branches:
    """A group of share "in" or "out", seen with the shared side on the right: V (χ_g, shared) and each member's own
    factors, (own, χ_g) or (own, r_l) and (r_l, χ_g), the optimum of its own metric for this V."""

    def __init__(self, views: Sequence[View], chi: Sequence[int], V: torch.Tensor | None = None) -> None:
        self.views, self.ranks = views, chi[1:]
        self.F = mean_factor([view.shared for view in views])
        self.V = shared_start(views, self.F, chi[0]) if V is None else V
        self.owns = [self.own(view, rank) for view, rank in zip(views, self.ranks, strict=True)]

    def projected(self, view: View) -> tuple[torch.Tensor, torch.Tensor]:
        """Z (own, χ_g) and R (χ_g, χ_g): with Q = R⁻¹ V B orthonormal, W B Qᵀ = Z, so the best Ŵ is Z R⁻¹ V."""
        VC = right(self.V, view.shared)
        R = torch.linalg.cholesky(VC @ self.V.T)
        return torch.linalg.solve_triangular(R.T, view.W @ VC.T, upper=True, left=False), R

    def own(self, view: View, rank: int) -> tuple[torch.Tensor, ...]:
        """The rank-r truncation of A Z, un-whitened: with V held the optimum of this member's error."""
        Z, R = self.projected(view)
        if rank == min(Z.shape):
            return (torch.linalg.solve_triangular(R, Z, upper=False, left=False),)
        factor = view.own_factor
        whitened = Z if factor is None else factor.T @ Z
        if Z.shape[0] <= Z.shape[1]:
            basis = torch.linalg.eigh(whitened @ whitened.T).eigenvectors[:, -rank:].flip(1)
            U = basis if factor is None else torch.linalg.solve_triangular(factor.T, basis, upper=True)
            C = basis.T @ whitened
        else:
            basis = torch.linalg.eigh(whitened.T @ whitened).eigenvectors[:, -rank:].flip(1)
            U, C = Z @ basis, basis.T
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

    def cores(self, specs: Sequence[Tree]) -> list[list[torch.Tensor]]:
        V, owns = self.V, [list(own) for own in self.owns]
        inner = torch.stack([own[-1].norm(dim=0) for own in owns]).mean(0)
        scale = evened(inner, V.norm(dim=1))
        for own in owns:
            own[-1] = own[-1] * scale
            if len(own) == 2:
                bond = evened(own[0].norm(dim=0), own[1].norm(dim=1))
                own[0], own[1] = own[0] * bond, own[1] / bond[:, None]
        V = V / scale[:, None]
        if specs[0].share == "in":
            return [[V, *own] for own in owns]
        return [[V.T.contiguous(), *(core.T.contiguous() for core in reversed(own))] for own in owns]


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
        self.V = shared_start(views, self.F_in, chi[1])
        self.U = shared_start(turned, self.F_out, chi[0]).T
        self.K = self.c = None
        self.middle()

    def middle(self) -> None:
        """C_l with U and V held: (Uᵀ G U)⁻¹ Uᵀ G W C Vᵀ (V C Vᵀ)⁻¹; with a bond on the layers K, c start from the
        SVD of these over (l | out, in), and then each in turn is a least-squares problem."""
        A = [self.U.T @ left(view.own, self.U) for view in self.views]
        B = [right(self.V, view.shared) @ self.V.T for view in self.views]
        inner = [left(v.own, self.U).T @ v.W @ right(self.V, v.shared).T for v in self.views]
        if self.bond is None or self.K is None:
            self.C = []
            for a, b, T in zip(A, B, inner, strict=True):
                half = torch.cholesky_solve(T, torch.linalg.cholesky(a))
                self.C.append(torch.cholesky_solve(half.T, torch.linalg.cholesky(b)).T)
        if self.bond is None:
            return
        A, B, inner = torch.stack(A), torch.stack(B), torch.stack(inner)
        if self.K is None:
            flat = torch.stack(self.C).flatten(1)
            self.c = torch.linalg.eigh(flat @ flat.T).eigenvectors[:, -self.bond :].flip(1)
            self.K = (self.c.T @ flat).reshape(self.bond, *self.C[0].shape)
        c = self.c
        hessian = c.T @ c
        hessian.diagonal().add_(1e-12 * hessian.diagonal().mean())
        R = torch.linalg.cholesky(hessian)

        def normal(K: torch.Tensor) -> torch.Tensor:
            return torch.einsum("la,lij->aij", c, A @ torch.einsum("la,aij->lij", c, K) @ B)

        def precondition(X: torch.Tensor) -> torch.Tensor:
            return torch.cholesky_solve(X.flatten(1), R).reshape(X.shape)

        K = descend(self.K, normal, torch.einsum("la,lij->aij", c, inner), precondition)
        bent = A[:, None] @ K @ B[:, None]  # (l, a, χ_out, χ_in)
        hessians = torch.einsum("aij,lbij->lab", K, bent)
        targets = torch.einsum("aij,lij->la", K, inner)
        self.K, self.c = K, torch.linalg.lstsq(hessians, targets[..., None], driver="gelsd").solution[..., 0]
        self.C = list(torch.einsum("la,aij->lij", self.c, K))

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

    def cores(self, specs: Sequence[Tree]) -> list[list[torch.Tensor]]:
        rows = evened(torch.stack([C.norm(dim=1) for C in self.C]).mean(0), self.U.norm(dim=0))
        columns = evened(torch.stack([C.norm(dim=0) for C in self.C]).mean(0), self.V.norm(dim=1))
        U, V = self.U / rows, self.V / columns[:, None]
        if self.bond is None:
            return [[U, V, rows[:, None] * C * columns] for C in self.C]
        K = rows[:, None] * self.K * columns
        bond = evened(K.flatten(1).norm(dim=1), self.c.norm(dim=0))
        return [[U, V, K * bond[:, None, None], c / bond] for c in self.c]


def start(specs: Sequence[Tree], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]) -> Branches | Tucker:
    """Hierarchical SVD from the leaves: the shared bases in the group's mean metric, the rest the optimum for them.

    Where all members have one metric, error ≤ Σ_e (discarded weight at edge e) ≤ (2d − 3) of the best squared error.
    """
    pairs, chi = list(zip(Ws, metrics, strict=True)), specs[0].chi
    if specs[0].share in ("in", "out"):
        return Branches([View.of(*pair, specs[0].share) for pair in pairs], chi)
    return Tucker([View.of(*pair, "in") for pair in pairs], [View.of(*pair, "out") for pair in pairs], chi)


def sweep(
    state: Branches | Tucker, progress: Progress = silent, sweeps: int = SWEEPS, tolerance: float = TOLERANCE
) -> tuple[Branches | Tucker, list[float]]:
    """One-site sweeps until one gains less than `tolerance`: the state, and the group's error at the start and after
    each, which never rises (a sweep that would raise it, by rounding, is dropped)."""
    total = sum(view.absolute(view.W) for view in state.views)
    errors = [sum(state.errors())]
    for done in range(sweeps):
        progress("sweep", done, sweeps, message=f"metric error {errors[-1] / total:.4g}" if total else "zero weights")
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
