"""Structure put around a network, each piece counted in bytes: the plan field "structure" of an entry.

{"network": "mpo", "out": …, "in": …, "chi": …, "structure": {"head": r, "rows": true, "columns": true, "heads": n}}

head : an SVD of rank r, cores L (n_out, r) and R (r, n_in), beside the network, which then has the residual.
rows, columns : the network sees the weight's rows (columns) in another order, stored as an integer core.
heads : one leg of `out` or `in` counts the attention heads; see `head_factors`. It costs nothing.
Cores in order: the rows' places, the columns' order, L, R, the network's own.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import torch

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.refine import refine
from karipap_core.networks.registry import network_named
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric


@dataclass(frozen=True)
class Structure:
    """What the plan's field "structure" says. Raises InputError naming the part that is wrong."""

    head: int = 0
    rows: bool = False
    columns: bool = False
    heads: int = 0

    def __post_init__(self) -> None:
        for name in ("head", "heads"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise InputError(f"Field 'structure' has {name!r} {value!r}: it must be a whole number, 0 for none.")
        for name in ("rows", "columns"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"Field 'structure' has {name!r} {getattr(self, name)!r}: it must be true or false.")

    @classmethod
    def from_json(cls, value: Any) -> "Structure":
        known = [f.name for f in fields(cls)]
        if not isinstance(value, dict) or set(value) - set(known):
            raise InputError(f"Field 'structure' is {value!r}: it may hold {', '.join(known)}.")
        return cls(**value)


@dataclass(frozen=True)
class Structured(Spec):
    """A network with `structure` around it; `inner` is the network's name, `options` its own fields."""

    inner: str = "mpo"
    options: tuple[tuple[str, Any], ...] = ()
    structure: Structure = Structure()

    @property
    def network(self) -> str:  # type: ignore[override]  # of the one inside: the plan's entry keeps the network's own name
        return self.inner

    def validate(self) -> None:
        if self.base.members:
            raise InputError("Field 'structure' does not go with a network that layers share.")
        if self.structure.head > min(self.n_out, self.n_in):
            raise InputError(
                f"Field 'structure' has 'head' {self.structure.head}: this weight has no more than "
                f"{min(self.n_out, self.n_in)}."
            )
        if self.structure.heads > 1 and self.structure.heads not in (*self.out, *self.in_):
            raise InputError(f"Field 'structure' has 'heads' {self.structure.heads}: no factor of 'out' or 'in' is.")

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        inner: str = "mpo",
        structure: Structure | None = None,
        **options: Any,
    ) -> Self:
        """The default factorization of the network named `inner`, to which `options` go; with `heads` that of
        `head_factors`, the heads among the rows."""
        structure = structure or Structure()
        if structure.heads > 1 and not (out or in_):
            out, in_ = head_factors(n_out, n_in, structure.heads)
        base = network_named(inner).for_shape(n_out, n_in, chi, out, in_, quantize=quantize, **options)
        return cls.around(base, structure)

    def with_chi(self, chi: int) -> Self:
        return self.around(self.base.with_chi(chi), self.structure)

    @classmethod
    def around(cls, base: Spec, structure: Structure) -> Self:
        """`structure` around a network that is there."""
        own = {f.name: getattr(base, f.name) for f in fields(base)}
        shared = {name: own.pop(name) for name in ("out", "in_", "chi", "quantize")}
        return cls(**shared, inner=base.network, options=tuple(own.items()), structure=structure)

    @cached_property
    def base(self) -> Spec:
        """The network inside."""
        return network_named(self.inner)(self.out, self.in_, self.chi, self.quantize, **dict(self.options))

    def to_json(self) -> dict[str, Any]:
        return self.base.to_json() | {"structure": {k: v for k, v in asdict(self.structure).items() if v}}

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        structure = Structure.from_json(entry["structure"])
        return cls.around(
            network_named(entry.get("network"), "Field 'network', with 'structure':").from_json(entry), structure
        )

    def describe(self) -> str:
        parts = [
            f"{name} {value}" if name in ("head", "heads") else f"{name} in another order"
            for name, value in asdict(self.structure).items()
            if value
        ]
        own = f"{self.base.parameters:,} parameters"
        return ", ".join([self.base.describe().replace(own, f"{self.parameters:,} parameters"), *parts])

    # Sizes.

    @property
    def around_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the cores before the network's own."""
        sides = ((self.n_out, self.structure.rows), (self.n_in, self.structure.columns))
        return [(n,) for n, on in sides if on] + (self.head.core_shapes if self.head else [])

    @cached_property
    def head(self) -> LowRank | None:
        """The SVD's own spec: its cores are stored as those of a `lowrank` weight."""
        rank = self.structure.head
        return LowRank((self.n_out,), (self.n_in,), (rank,), self.quantize) if rank else None

    @property
    def orders(self) -> int:
        """How many integer cores come first."""
        return self.structure.rows + self.structure.columns

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        return self.around_shapes + self.base.core_shapes

    @property
    def formats(self) -> list[str | None]:
        return ["index"] * self.orders + (self.head.formats if self.head else []) + self.base.formats

    def core_matrix(self, index: int) -> tuple[int, int]:
        own = index - len(self.around_shapes)
        if own >= 0:
            return self.base.core_matrix(own)
        if self.head is None or index < self.orders:
            return super().core_matrix(index)
        return self.head.core_matrix(index - self.orders)

    @property
    def max_chi(self) -> int:
        return self.base.max_chi

    def multiply_adds(self, batch: int = 1) -> int:
        return self.base.multiply_adds(batch) + batch * self.structure.head * (self.n_out + self.n_in)

    def work(self, batch: int = 1) -> int:
        return self.base.work(batch) + batch * self.structure.head * (self.n_out + self.n_in)

    def work_to_form(self) -> int:
        return self.base.work_to_form() + self.structure.head * self.n_out * self.n_in

    # The maps.

    def parts(
        self, cores: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, list[torch.Tensor], list[torch.Tensor]]:
        """(rows' places, columns' order, [L, R] or [], the network's cores)."""
        cores = list(cores)
        rows = cores.pop(0).long() if self.structure.rows else None
        columns = cores.pop(0).long() if self.structure.columns else None
        split = 2 if self.structure.head else 0
        return rows, columns, cores[:split], cores[split:]

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """y = (N x[columns])[rows] + L R x, N the network."""
        rows, columns, head, own = self.parts(cores)
        y = self.base.apply(x if columns is None else x[..., columns], own)
        y = y if rows is None else y[..., rows]
        return y + x @ head[1].mT @ head[0].mT if head else y

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        rows, columns, head, own = self.parts(cores)
        W = self.base.dense(own)
        W = W if rows is None else W[rows]
        W = W if columns is None else W[:, columns.argsort()]
        return W + head[0] @ head[1] if head else W

    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """The network's and the head's random cores, each with half the variance; the orders are random too."""
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        sides = ((self.n_out, self.structure.rows), (self.n_in, self.structure.columns))
        orders = [torch.randperm(n, generator=generator, dtype=torch.int32) for n, on in sides if on]
        own = self.base.random_cores(seed, dtype)
        if not self.structure.head:
            return orders + own
        spread = (2 * self.n_in * self.structure.head) ** -0.25
        head = [torch.randn(shape, generator=generator, dtype=dtype) * spread for shape in self.around_shapes[-2:]]
        return [*orders, *head, own[0] / math.sqrt(2), *own[1:]]

    # The fit.

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """Head first, the network on what it leaves, both moved together by `refine`; never over that start.

        With `rows` or `columns` the network is fitted in the order of `similar_order` and in the weight's own, and the
        better one is kept, so that reordering never costs more than its bytes.
        """
        if not self.orders:
            return self._fit_in_order(W, metric, None, None, progress)
        found = []
        for reorder in (True, False):
            rows, columns = self.chosen_orders(W, metric, reorder)
            cores = self._fit_in_order(W, metric, rows, columns, progress)
            found.append((metric.absolute(W - self.dense(cores)), cores))
        return min(found, key=lambda item: item[0])[1]

    def decompose(
        self, W: torch.Tensor, metric: Metric | None = None, progress: Progress = silent
    ) -> list[torch.Tensor]:
        """As every network's; the orders are int32, as they are stored."""
        cores = super().decompose(W, metric, progress)
        return [core.int() for core in cores[: self.orders]] + cores[self.orders :]

    def chosen_orders(
        self, W: torch.Tensor, metric: Metric, reorder: bool = True
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The order of the rows and of the columns (None where it is not stored), natural unless `reorder`."""
        rows = columns = None
        if self.structure.rows:
            rows = similar_order(W, metric, "rows", self.out) if reorder else torch.arange(self.n_out)
        if self.structure.columns:
            columns = similar_order(W, metric, "columns", self.in_) if reorder else torch.arange(self.n_in)
        return rows, columns

    def _fit_in_order(
        self,
        W: torch.Tensor,
        metric: Metric,
        rows: torch.Tensor | None,
        columns: torch.Tensor | None,
        progress: Progress,
    ) -> list[torch.Tensor]:
        rank = self.structure.head
        head = LowRank.for_shape(self.n_out, self.n_in, rank).fit(W, metric) if rank else []
        rest = W - head[0] @ head[1] if rank else W
        own = self.base.fit(*permuted(rest, metric, rows, columns), progress)
        # What is stored of the rows is each one's place: so both orders are gathers of `apply`.
        orders = [order for order in (None if rows is None else rows.argsort(), columns) if order is not None]
        if not rank:
            return [*orders, *own]
        return [*orders, *refine(lambda moved: self.dense([*orders, *moved]), [*head, *own], W, metric)[0]]

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """The network's own curve on what it is given: the residual of the head, in the orders chosen."""
        metric, W = metric or Metric("weight"), W.detach().double()
        spec = cls.for_shape(W.shape[0], W.shape[1], 1, *given, **options)
        rest = W
        if spec.structure.head:
            left, right = LowRank.for_shape(spec.n_out, spec.n_in, spec.structure.head).fit(W, metric)
            rest = W - left @ right
        seen = permuted(rest, metric, *spec.chosen_orders(W, metric))
        curve = type(spec.base).curve(*seen, levels, spec.out, spec.in_, **dict(spec.options))
        return replace(
            curve,
            parameters=curve.parameters + (spec.parameters - spec.base.parameters),
            total=metric.absolute(W),
            exact=False,
        )


def head_factors(n_out: int, n_in: int, heads: int, on: str = "out") -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`out` and `in` of three sites on which the attention heads are a leg of their own.

    On "out" (q, k, v): (heads, n_out/heads, 1) and (s, 1, n_in/s): the default `mpo` with the heads taken out of its
    first core; on "in" (o): the mirror image. s is 2 where it divides, else 1. Raises InputError where `heads` does
    not divide that side.
    """
    size, other = (n_out, n_in) if on == "out" else (n_in, n_out)
    if on not in ("out", "in") or size % heads:
        raise InputError(f"Field 'structure' has 'heads' {heads}: it must divide the {size} of {on!r}.")
    split = 2 if other % 2 == 0 else 1
    one, two = (heads, size // heads, 1), (split, 1, other // split)
    return (one, two) if on == "out" else (two, one)


def similar_order(W: torch.Tensor, metric: Metric, which: str, legs: Sequence[int]) -> torch.Tensor:
    """An order of W's rows or columns in which like ones differ in the first digit only.

    Likeness is the squared cosine of two rows of W B (columns of A W), B and A the metric's whitening on the *other*
    side. The line is the Fiedler vector of the normalized Laplacian, its largest entry positive; it is dealt out to
    the values of the first leg over 1 in turn, so that the blocks of that digit are like one another, which is what
    an MPO's first bond can use. Deterministic.
    """
    Y = W.double()
    if which == "rows":
        C = metric.factor("C", W.device)
        Y = Y if C is None else Y @ C
    else:
        G = metric.factor("G", W.device)
        Y = (Y if G is None else G.T @ Y).T
    n = len(Y)
    Y = Y / Y.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    likeness = (Y @ Y.T).square()
    scale = likeness.sum(1).clamp(min=1e-300).rsqrt()
    vector = torch.linalg.eigh(scale[:, None] * likeness * scale).eigenvectors[:, -2 if n > 1 else -1] * scale
    vector = vector * vector[vector.abs().argmax()].sign()
    line = vector.argsort(stable=True)
    first = next((leg for leg in legs if leg > 1), 1)
    return line.reshape(n // first, first).T.reshape(n).contiguous()


def permuted(
    W: torch.Tensor, metric: Metric, rows: torch.Tensor | None, columns: torch.Tensor | None
) -> tuple[torch.Tensor, Metric]:
    """W and its metric with rows and columns in another order (None: as they are)."""
    C, G = metric.C, metric.G
    if rows is not None:
        W, G = W[rows], None if G is None else G[rows][:, rows]
    if columns is not None:
        W, C = W[:, columns], None if C is None else C[columns][:, columns]
    if rows is None and columns is None:
        return W, metric
    return W, Metric(metric.name, C, G, metric.damping)
