"""What every tensor network gives: a `Spec`, the sizes of one weight as one network.

A network is one file with one subclass of `Spec`, a frozen dataclass under `@register`, and its line in
`networks/listed.py`. Seven things are its own: how a shape is factorized at a χ (`for_shape`), the shapes of its
cores (`core_shapes`), the largest χ of use (`max_chi`), the fit (`fit`), the two maps from cores to the weight
(`apply`, `dense`), and what `apply` costs (`multiply_adds`). All else is here and may be overridden. Nothing here knows
of checkpoints, plans or layers.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np
import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError
from karipap_core.networks.contraction import bucket, touch
from karipap_core.networks.curve import Curve, even_levels
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Format, Stored
from karipap_core.search import largest
from karipap_core.spectra.metric import Metric

AUTO_FORMATS = (None, "int8", "int4")  # three-bit cores lost to four-bit ones with fewer parameters kept, everywhere
SHORTEST_ROW = 32  # entries of a core that share a scale at least


@lru_cache(maxsize=4096)
def factorize(n: int, sites: int) -> tuple[int, ...]:
    """The `sites` exact divisors of n with the smallest sum, descending: as equal as n allows, 1 where it has no more.

    >>> factorize(256, 3), factorize(11008, 3), factorize(50257, 2)
    ((8, 8, 4), (43, 16, 16), (1733, 29))
    """
    if sites == 1:
        return (n,)
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    found = {tuple(sorted((k, *factorize(n // k, sites - 1)), reverse=True)) for k in small + [n // k for k in small]}
    return min(found, key=lambda factors: (sum(factors), factors))


def outside_in(factors: Sequence[int], mirrored: bool = False) -> tuple[int, ...]:
    """Larger factors on the outer sites, whose cores have one bond only: on the first, the last, the second, …

    `mirrored` begins with the last, so that o_k · i_k is even where only one side has a large prime.

    >>> outside_in((8, 4, 2)), outside_in((8, 4, 2), mirrored=True)
    ((8, 2, 4), (4, 2, 8))
    """
    left, right = tuple(factors[0::2]), tuple(reversed(factors[1::2]))
    placed = left + right
    return tuple(reversed(placed)) if mirrored else placed


def sizes(value: Any, name: str) -> tuple[int, ...]:
    """`value` as a tuple of positive integers, or InputError naming the field."""
    if not isinstance(value, list | tuple) or not all(
        isinstance(k, int) and not isinstance(k, bool) and k > 0 for k in value
    ):
        raise InputError(f"Field {name!r} is {value!r}: it must be a list of positive integers.")
    return tuple(value)


def tails(squares: torch.Tensor) -> np.ndarray:
    """Tails Σ_{i>χ} λ_i for χ = 1 … r of descending λ ≥ 0, summed from the smallest up so that none is lost."""
    tail = torch.flip(torch.cumsum(torch.flip(squares.clamp(min=0), (0,)), 0), (0,))
    return torch.cat([tail[1:], tail.new_zeros(1)]).cpu().numpy()


@lru_cache(maxsize=4096)
def _forms(spec: "Spec", batch: int) -> bool:
    dense = spec.n_out * spec.n_in
    return spec.work_to_form() + batch * dense + touch(dense) < spec.work(batch)


@dataclass(frozen=True)
class Spec:
    """The sizes of one weight as one network; as JSON, the weight's entry in a plan.

    out, in_ : factors of the weight's two sides (JSON `out`, `in`), Π out = n_out, Π in_ = n_in.
    chi : bond dimensions, in the order the network's file states.
    quantize : the format its cores are stored in (`formats.Format`: int8, int4g64, fp8 …), None for the weight's own
    dtype. A subclass may add fields (with defaults): they join the JSON under their own names. Validated when made;
    raises InputError naming the field.
    """

    out: tuple[int, ...]
    in_: tuple[int, ...]
    chi: tuple[int, ...]
    quantize: str | None = None
    network: ClassVar[str]
    # What a plan has to know of a network (plan/options.py).
    structured: ClassVar[bool] = True  # structure (structured.py) may be put around it
    nested: ClassVar[bool] = False  # the cores at a smaller χ are the leading part of those at a larger one
    grouped: ClassVar[bool] = False  # weights share cores, so that whole groups of them are chosen for
    curve_of_stored: ClassVar[bool] = False  # `curve` knows what it costs to store the cores in `quantize`
    kind_fields: ClassVar[tuple[str, ...]] = ()  # fields of its own that `kinds` tells apart

    def __post_init__(self) -> None:
        for name in ("out", "in_", "chi"):
            object.__setattr__(self, name, sizes(getattr(self, name), name.rstrip("_")))
        if self.quantize is not None:
            Format.parse(self.quantize)
        self.validate()

    def validate(self) -> None:
        """Checks what this network asks of its sizes beyond being positive; raises InputError naming the field."""

    def check_single(self, *names: str) -> None:
        """For `validate`: raises InputError where a field of `names` ("out", "in_", "chi") does not hold one number."""
        for name in names:
            if len(getattr(self, name)) != 1:
                raise InputError(f"Field {name.rstrip('_')!r} of a {self.network!r} entry must hold one number.")

    # What a network's file gives.

    @classmethod
    def for_shape(cls, n_out: int, n_in: int, chi: int, *given: Any, **options: Any) -> Self:
        """The network of a weight (n_out, n_in), any integers, every bond at χ or the most that it can attain.

        A network's own signature goes on with `out`, `in_` (factors to take in place of its default ones), `quantize`
        and whatever options it has, each with a default. Raises InputError for factors that do not fit the shape.
        """
        raise NotImplementedError

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each core, in order."""
        raise NotImplementedError

    @property
    def max_chi(self) -> int:
        """The χ from which on nothing is truncated."""
        raise NotImplementedError

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """The cores, float64 and on W's device, of a Ŵ with a small ‖A (W − Ŵ) B‖² (`metric.absolute(W - Ŵ)`).

        W (out, in) is float64. `decompose` calls it after checking sizes. Where the optimum is not known, start from
        something good and let `refine.refine` lower the error of all cores together.
        """
        raise NotImplementedError

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """y = Ŵ x for x (…, n_in) → (…, n_out), without forming Ŵ; any float dtype, differentiable."""
        raise NotImplementedError

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Ŵ (n_out, n_in) in the cores' dtype."""
        raise NotImplementedError

    def multiply_adds(self, batch: int = 1) -> int:
        """Multiply-adds of `apply` on `batch` input vectors."""
        raise NotImplementedError

    # What a network overrides where it is not like the others.

    def work(self, batch: int = 1) -> int:
        """What `apply` on `batch` input vectors costs in time, in multiply-adds of a large matrix product."""
        return self.multiply_adds(batch)

    def work_to_form(self) -> int:
        """What `dense` costs in time, in the same unit; here that of `apply` on the unit matrix."""
        return self.work(self.n_in)

    def forms(self, batch: int) -> bool:
        """Whether forming Ŵ in a pass and multiplying with it is quicker than `apply` for that many input vectors."""
        return _forms(self, bucket(batch))

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        *given: Any,
        **options: Any,
    ) -> Curve:
        """Error and parameters over χ of W (out, in), any float dtype, in `metric` (default: weight).

        `given` and `options` are those of `for_shape`. Here every level is fitted (see `curve_at`), at the full cost of
        each; a network that knows its error without a fit, or from less work, says it in its own way.
        """
        metric, W = metric or Metric("weight"), W.detach().double()
        n_out, n_in = W.shape
        spec = cls.for_shape(n_out, n_in, 1, *given, **options)
        return spec.curve_at(levels, W, metric, lambda at: metric.absolute(W - at.dense(at.fit(W, metric))))

    @classmethod
    def kinds(cls, quantize: str | None) -> list[tuple[str, str | None, dict[str, Any]]]:
        """What a plan tries for a weight where this network is asked for, beside the weight as it is.

        quantize : the format asked for, None for none, "auto" for whichever pays. Each kind is (network, format,
        options of `for_shape`); the network is this one, or "dense" for the weight itself in a format.
        """
        return [(cls.network, form, {}) for form in (AUTO_FORMATS if quantize == "auto" else (quantize,))]

    @property
    def owned(self) -> list[bool]:
        """Whether each core is stored with this weight; False where another member of its group stores it."""
        return [True] * len(self.core_shapes)

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the weights that share cores with this one, itself among them; () where it stands alone."""
        return ()

    @property
    def formats(self) -> list[str | None]:
        """How each core is stored: a `formats.Format`, "index" (integers, as int32), or None (the weight's dtype)."""
        return [self.quantize] * len(self.core_shapes)

    def core_matrix(self, index: int) -> tuple[int, int]:
        """(rows, columns) that a core's numbers are quantized as: groups run along a row, the shortest run of
        trailing legs with `SHORTEST_ROW` entries or more."""
        shape = self.core_shapes[index]
        columns, legs = 1, list(shape)
        while legs and columns < SHORTEST_ROW:
            columns *= legs.pop()
        return math.prod(legs), columns

    def calibrated(self, cores: Sequence[torch.Tensor], W: torch.Tensor, metric: Metric) -> Sequence[Stored] | None:
        """`cores` in `formats`, each made good for what rounding the others does to ‖A (W − Ŵ) B‖²: one core in a
        format as `Format.calibrated` gives it, any other as a tensor. None (default): the way that fits any network
        (`stored.quantize_cores`, which calls this). W float64, cores on its device."""
        return None

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of Ŵ (…, n_in) at `indices` (…) (int64): a table that is looked up in, without forming it."""
        raise InputError(f"A {self.network!r} cannot be looked up in row by row: it is no network for an embedding.")

    # What a network gives besides whose weights share cores (`grouped`).

    @property
    def mates(self) -> "list[Spec]":
        """The specs of all `members`, in order; of a weight that stands alone its own."""
        return [self]

    @classmethod
    def groups(cls, weights: Sequence[Weight]) -> list[list[str]]:
        """Names of the weights that share cores, group by group; every weight is in one, maybe alone."""
        raise NotImplementedError

    @classmethod
    def group_levels(
        cls, members: Sequence[str], Ws: Sequence[torch.Tensor], metrics: Sequence[Metric]
    ) -> "tuple[Sequence[Sequence[Spec]], np.ndarray, np.ndarray]":
        """(the members' specs at some sizes, rising, the absolute error of each member at each (levels, members), the
        error of dropping each (members,))."""
        raise NotImplementedError

    @classmethod
    def fit_group(
        cls, specs: "Sequence[Spec]", Ws: Sequence[torch.Tensor], metrics: Sequence[Metric], progress: Progress = silent
    ) -> list[list[torch.Tensor]]:
        """Float64 cores of each member; shared ones are one tensor in all lists."""
        raise NotImplementedError

    # What all share.

    @property
    def looked_up(self) -> bool:
        """Whether `rows` is there: the network can be an embedding."""
        return type(self).rows is not Spec.rows

    @property
    def n_out(self) -> int:
        return math.prod(self.out)

    @property
    def n_in(self) -> int:
        return math.prod(self.in_)

    @property
    def parameters(self) -> int:
        """Numbers in the cores that this weight stores, known before any is allocated (indices are counted too)."""
        return sum(math.prod(shape) for shape, own in zip(self.core_shapes, self.owned, strict=True) if own)

    def bytes(self, itemsize: int) -> int:
        """Bytes on disk of the cores that this weight stores; `itemsize` is the weight's own dtype's."""
        plain, packed = self.stored
        return plain * itemsize + packed

    @property
    def stored(self) -> tuple[int, int]:
        """(numbers stored in the weight's own dtype, bytes of everything else: packed cores, their scales, indices)."""
        plain = packed = 0
        for index, (shape, form, own) in enumerate(zip(self.core_shapes, self.formats, self.owned, strict=True)):
            if not own:
                continue
            if form is None:
                plain += math.prod(shape)
            elif form == "index":
                packed += 4 * math.prod(shape)
            else:
                packed += Format.parse(form).bytes(*self.core_matrix(index))
        return plain, packed

    def with_chi(self, chi: int) -> Self:
        """The same factorization and options at another χ."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("out", "in_", "chi")}
        return type(self).for_shape(self.n_out, self.n_in, chi, self.out, self.in_, **options)

    def curve_at(
        self,
        levels: Iterable[int] | None,
        W: torch.Tensor,
        metric: Metric,
        error: Callable[[Self], float],
        exact: bool = False,
    ) -> Curve:
        """This factorization's `Curve` at `levels` of χ (default: `even_levels` up to break-even), `error` giving the
        absolute metric error of the spec at each, in ascending order: fitted or estimated. One that comes out above
        that of a smaller χ counts as that one. W float64."""
        chosen = sorted(even_levels(self.break_even_chi) if levels is None else levels)
        specs = [self.with_chi(chi) for chi in chosen]
        errors = np.minimum.accumulate([error(spec) for spec in specs])
        parameters = np.array([spec.parameters for spec in specs])
        return Curve(np.array(chosen), parameters, errors, metric.absolute(W), exact)

    def errors(
        self,
        tries: Sequence[Sequence[torch.Tensor]],
        W: torch.Tensor,
        metric: Metric,
        whitened: torch.Tensor | None = None,
    ) -> list[float]:
        """‖A (W − Ŵ) B‖² of several sets of cores, float64 as W is. whitened : A W B, where that is known already."""
        return [metric.absolute(W - self.dense(cores)) for cores in tries]

    @property
    def break_even_chi(self) -> int:
        """The largest χ with fewer parameters than the dense weight; 0 where none has."""
        dense = self.n_out * self.n_in
        return largest(lambda chi: self.with_chi(chi).parameters < dense, 0, self.max_chi + 1)

    def describe(self) -> str:
        """One line for people: the factorization and the bonds."""
        out, in_ = ("·".join(map(str, side)) for side in (self.out, self.in_))
        stored = f", {self.quantize}" if self.quantize else ""
        return f"{self.network} {out} × {in_}, χ {'·'.join(map(str, self.chi))}, {self.parameters:,} parameters{stored}"

    def to_json(self) -> dict[str, Any]:
        """The plan's entry."""
        entry: dict[str, Any] = {"network": self.network}
        for f in fields(self):
            value = getattr(self, f.name)
            entry[f.name.rstrip("_")] = list(value) if isinstance(value, tuple) else value
        return entry

    @classmethod
    def from_json(cls, entry: dict[str, Any]) -> Self:
        """Reads its own fields from the plan's entry and leaves the plan's (`locked`, `by`) alone.

        Raises InputError naming a field that is missing or wrong.
        """
        given = {}
        for f in fields(cls):
            key = f.name.rstrip("_")
            if key in entry:
                given[f.name] = entry[key]
            elif f.name in ("out", "in_", "chi"):
                raise InputError(f"Field {key!r} is missing from a {cls.network!r} entry.")
        return cls(**given)

    def decompose(
        self, W: torch.Tensor, metric: Metric | None = None, progress: Progress = silent
    ) -> list[torch.Tensor]:
        """The cores (float32, on W's device) of the Ŵ nearest to W (out, in) in `metric` (default: weight).

        Any float dtype in; the arithmetic is float64. Raises InputError where W or the metric's moments are not of
        this spec's size.
        """
        if tuple(W.shape) != (self.n_out, self.n_in):
            raise InputError(f"Weight is {tuple(W.shape)}, fields 'out' and 'in' say {(self.n_out, self.n_in)}.")
        metric = metric or Metric("weight")
        metric.check(self.n_out, self.n_in)
        return [core.float().contiguous() for core in self.fit(W.detach().double(), metric, progress)]

    def random_cores(self, seed: int | None = None, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
        """Independent normal cores that keep the variance: x of unit variance gives y of unit variance.

        An entry of W is a sum over all settings of the bonds of a product of one entry a core, so with every core at
        standard deviation s it has variance Π χ · s^(2·cores), and keeping the variance asks for 1 / n_in. A network
        whose entries are other sums overrides it.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        spread = (self.n_in * math.prod(self.chi)) ** (-0.5 / len(self.core_shapes))
        return [torch.randn(shape, generator=generator, dtype=dtype) * spread for shape in self.core_shapes]
