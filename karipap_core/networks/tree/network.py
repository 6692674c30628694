"""`tree`: the weights of several layers as one tree tensor network, its branches shared between them.

The weights of a group, one role in several layers, are the slices of T[layer, out, in]. What layers share is the basis
of the residual stream, so one side's basis is stored once for the group (χ_g the bond on that shared branch, r_l the
bond on layer l's own branch):

    share "in"    W_l = U_l C_l V_g    V_g (χ_g, in) shared;  U_l (out, r_l), C_l (r_l, χ_g) of the layer
    share "out"   W_l = U_g C_l V_l    U_g (out, χ_g) shared; C_l (χ_g, r_l), V_l (r_l, in) of the layer
    share "both"  W_l = U_g C_l V_g    both shared, C_l (χ_out, χ_in) of the layer: Tucker's form
    share "all"   as "both" with C_l = Σ_a c_l[a] K_a: K (χ_L, χ_out, χ_in) shared too, a bond on the layer index

Where U_l and C_l would hold no fewer numbers than their product, that is stored as one core B_l (out, χ_g), which
truncates nothing: with all layers like that, and share "in", this is Basis Sharing (arXiv:2410.03765). A group of one
weight is then `lowrank`. `chi` is (χ_g, r_0, …, r_{L−1}) for "in" and "out", (χ_out, χ_in) for "both" and
(χ_out, χ_in, χ_L) for "all". Each member's entry is complete in itself; shared cores come first in its list and are
stored with member 0 alone.
Grasedyck, "Hierarchical singular value decomposition of tensors", SIAM J. Matrix Anal. Appl. 31 (2010); De Lathauwer
et al., "On the best rank-1 and rank-(R1, …, RN) approximation", ibid. 21 (2000).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError, unknown
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.registry import register
from karipap_core.networks.tree.fit import Branches, edge_squares, settle, split, start, sweep
from karipap_core.networks.tree.groups import group_names, side_of
from karipap_core.networks.tree.solve import View
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric

SHARES = ("in", "out", "both", "all")
GRID = 24  # values of χ_g that a curve tries
KEPT = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)  # parts of the dense group that a curve is measured at
ALONE_LEVELS = 48  # of the curve of a group of one, which costs one spectrum


@register
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
    structured: ClassVar[bool] = False
    grouped: ClassVar[bool] = True

    def validate(self) -> None:
        names = self.members
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise InputError(f"Field 'members' is {names!r}: it must be a list of weight names.")
        object.__setattr__(self, "members", tuple(names))
        if len(set(names)) != len(names):
            raise InputError("Field 'members' names a weight twice.")
        if self.share not in SHARES:
            raise unknown("Field 'share':", self.share, SHARES)
        if isinstance(self.at, bool) or not isinstance(self.at, int) or not 0 <= self.at < self.layers:
            raise InputError(f"Field 'at' is {self.at!r}: the group has members 0 to {self.layers - 1}.")
        self.check_single("out", "in_")
        wanted = {"both": 2, "all": 3}.get(self.share, 1 + self.layers)
        if len(self.chi) != wanted:
            raise InputError(
                f"Field 'chi' has {len(self.chi)} bonds: share {self.share!r} in a group of {self.layers} has {wanted}."
            )
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
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        share: str = "in",
        members: tuple[str, ...] = (),
        at: int = 0,
    ) -> Self:
        """One χ for the whole group, every bond at χ or the most that it can attain; the members are taken to be of
        one shape. Nothing is truncated on the layers' own branches: Basis Sharing, and `lowrank` for a weight alone."""
        chi, layers = max(1, int(chi)), max(1, len(members))
        bonds: tuple[int, ...]
        if share in ("both", "all"):
            bonds = (min(chi, n_out, layers * n_in), min(chi, n_in, layers * n_out))
            bonds += (min(chi, layers),) if share == "all" else ()
        else:
            shared, own = (n_in, n_out) if share == "in" else (n_out, n_in)
            chi = min(chi, shared, layers * own)
            bonds = (chi, *[min(chi, own)] * layers)
        return cls(tuple(out or (n_out,)), tuple(in_ or (n_in,)), bonds, quantize, share, members, at)

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
    def undivided(self) -> bool:
        """Whether this member's own branch is one core: two of rank r_l would hold no fewer numbers."""
        own, chi = self.sides[1], self.chi[0]
        return self.rank * (own + chi) >= own * chi

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        out, in_, chi = self.n_out, self.n_in, self.chi
        if self.share == "both":
            return [(out, chi[0]), (chi[1], in_), (chi[0], chi[1])]
        if self.share == "all":
            return [(out, chi[0]), (chi[1], in_), (chi[2], chi[0], chi[1]), (chi[2],)]
        if self.share == "in":
            own = [(out, chi[0])] if self.undivided else [(out, self.rank), (self.rank, chi[0])]
            return [(chi[0], in_), *own]
        own = [(chi[0], in_)] if self.undivided else [(chi[0], self.rank), (self.rank, in_)]
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
        return chain(self.factors(cores))

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
            settings = self.chi[0] if self.undivided else self.chi[0] * self.rank
        shapes = self.core_shapes
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        spread = (self.n_in * settings) ** (-0.5 / len(shapes))
        return [torch.randn(shape, generator=generator, dtype=dtype) * spread for shape in shapes]

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """A group of one weight; the members of a larger one are fitted together by `fit_group`."""
        if self.layers > 1:
            raise InputError(f"Field 'members' names {self.layers} weights: a tree is fitted to all of them at once.")
        return fit_group([self], [W], [metric], progress)[0]

    @property
    def mates(self) -> list[Spec]:
        return [replace(self, at=at) for at in range(self.layers)]

    @classmethod
    def groups(cls, weights: Sequence[Weight]) -> list[list[str]]:
        return group_names(weights)

    @classmethod
    def group_levels(
        cls, members: Sequence[str], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]
    ) -> tuple[list[list["Tree"]], np.ndarray, np.ndarray]:
        found = group_curve(members, Ws, metrics)
        return found.specs, found.error, found.total

    @classmethod
    def fit_group(
        cls, specs: Sequence[Spec], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric], progress: Progress = silent
    ) -> list[list[torch.Tensor]]:
        return fit_group([spec for spec in specs if isinstance(spec, cls)], Ws, metrics, progress)

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """That of a weight alone, where a tree is `lowrank`; a group's is `group_curve`."""
        return LowRank.curve(W, metric)


def chain(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    product = factors[0]
    for factor in factors[1:]:
        product = product @ factor
    return product


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


def group_specs(
    members: Sequence[str],
    shape: tuple[int, int],
    chi: int | Sequence[int],
    share: str = "in",
    quantize: str | None = None,
) -> list[Tree]:
    """The members' specs: `chi` is one number (see `Tree.for_shape`) or all the bonds in the order of the module."""
    names = tuple(members) if len(members) > 1 else ()
    if isinstance(chi, int):
        return [
            Tree.for_shape(*shape, chi, quantize=quantize, share=share, members=names, at=at)
            for at in range(len(members))
        ]
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
    return sweep(start(specs[0].share, specs[0].chi, Ws, metrics), progress)[0].cores(specs[0].share)


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


@torch.no_grad()
def group_curve(
    members: Sequence[str],
    Ws: Sequence[torch.Tensor],
    metrics: Sequence[Metric],
    levels: Iterable[int] | None = None,
    progress: Progress = silent,
    share: str | None = None,
) -> GroupCurve:
    """Error and parameters of a group over its size.

    levels : numbers that the whole group may hold (default: the parts `KEPT` of the dense group); those too small for
    one bond on every edge are left out.  share : "in" or "out" (default: by the members' names, see `side_of`).
    A level's split between χ_g and the r_l comes from the spectra of the edges at one price a number; then the group
    is swept, and two-site steps move χ_g and the r_l as long as that lowers the error at the same size.
    """
    share = share or side_of(members[0])
    if share not in ("in", "out"):
        raise InputError(f"Field 'share' is {share!r}: a group's curve is measured for 'in' and 'out'.")
    n_out, n_in = Ws[0].shape
    shape = (n_out, n_in)
    if len(members) == 1:
        return curve_of_one(members, shape, Tree.curve(Ws[0], metrics[0]), levels, share)
    views = [View.of(W, metric, share).whitened() for W, metric in zip(Ws, metrics, strict=True)]
    owns, shared = [len(view.W) for view in views], views[0].W.shape[1]
    dense, most = sum(math.prod(W.shape) for W in Ws), min(shared, sum(owns))
    widest = Branches(views, (most, *[min(own, most) for own in owns]))
    grid = sorted({max(1, round(most * k / GRID)) for k in range(1, GRID + 1)})
    squares = edge_squares(widest, grid)
    groups: list[list[Tree]] = []
    sizes: list[int] = []
    errors: list[list[float]] = []
    levels = sorted(levels or (round(part * dense) for part in KEPT))
    for done, budget in enumerate(levels):
        progress("levels", done, len(levels))
        chosen = split(squares, owns, shared, budget)
        if chosen is None:
            continue
        state = Branches(views, (chosen[1], *chosen[2]), widest.V[: chosen[1]])
        state = settle(state, grid, budget)
        specs, of_members = group_specs(members, shape, (len(state.V), *state.ranks), share), state.errors()
        size = sum(spec.parameters for spec in specs)
        if not sizes or (size > sizes[-1] and sum(of_members) <= sum(errors[-1])):
            groups.append(specs)
            sizes.append(size)
            errors.append(of_members)
    if not sizes:
        raise InputError(f"Levels {levels} are all too small for a group of {len(members)} weights {shape}.")
    total = np.array([view.absolute(view.W) for view in views])
    return GroupCurve(groups, np.array(sizes), np.array(errors), total)


def curve_of_one(
    members: Sequence[str], shape: tuple[int, int], curve: Curve, levels: Iterable[int] | None, share: str
) -> GroupCurve:
    """A group of one weight is `lowrank`, whose curve is known at every χ: `ALONE_LEVELS` of them, or those of
    `levels`, as large as each allows."""
    if levels is None:
        smaller = [int(chi) for chi in curve.chi if chi * sum(shape) < math.prod(shape)] or [1]  # than the weight
        chis = sorted({smaller[round(k)] for k in np.linspace(0, len(smaller) - 1, ALONE_LEVELS)})
    else:
        levels = list(levels)
        chis = sorted({min(level // sum(shape), int(curve.chi[-1])) for level in levels} - {0})
        if not chis:
            raise InputError(f"Levels {levels} are all too small for a weight {shape}.")
    specs = [group_specs(members, shape, chi, share) for chi in chis]
    sizes = np.array([spec.parameters for (spec,) in specs])
    return GroupCurve(specs, sizes, np.array([[curve.at(chi)] for chi in chis]), np.array([curve.total]))
