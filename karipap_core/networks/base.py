"""What every tensor network gives: a `Spec` of sizes, and the `Metric` that says what an error costs.

A network is one file with one subclass of `Spec` and one line in the registry (`networks/__init__.py`). The subclass
states its cores' shapes and three maps between them and the weight: `decompose`, `apply`, `dense`. Nothing here knows
of checkpoints, plans or layers.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.quantize import Format
from karipap_core.spectrum import METRICS

SHORTEST_ROW = 32  # entries of a core that share a scale at least
LARGEST_DAMPING = 1e4  # past this the damped moment is a multiple of the identity: nothing left to raise

# The factor of a second moment, kept as long as its tensor lives: q, k and v are given the same C and share it.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def damped_factor(moment: torch.Tensor, damping: float, name: str = "C") -> tuple[torch.Tensor | None, float | None]:
    """Cholesky factor L of `moment` + λ·mean(diag)·1 = L Lᵀ and the λ it took (float64, lower triangular).

    λ starts at `damping` and is raised tenfold until the factorization succeeds. A moment that is all zeros or holds
    NaN or Inf says nothing about its weight: then (None, None), with a warning, and the identity stands in for it.
    The result is cached on the tensor. Raises InputError where `moment` is not a square matrix.
    """
    if moment.ndim != 2 or moment.shape[0] != moment.shape[1]:
        raise InputError(f"Second moment {name} has shape {tuple(moment.shape)}: it must be a square matrix.")
    key = (damping, moment._version)
    kept = _factors.setdefault(moment, {})
    if key not in kept:
        kept.clear()
        kept[key] = _factor(moment.detach().double(), damping, name)
    return kept[key]


def _factor(moment: torch.Tensor, damping: float, name: str) -> tuple[torch.Tensor | None, float | None]:
    mean = moment.diagonal().mean().item()
    if not math.isfinite(mean) or mean <= 0 or not torch.isfinite(moment).all():
        warnings.warn(f"Second moment {name} is zero or not finite: the identity stands in for it.", stacklevel=4)
        return None, None
    while damping <= LARGEST_DAMPING:
        damped = (moment + moment.T) / 2
        damped.diagonal().add_(damping * mean)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            return factor, damping
        damping = max(damping * 10, 1e-12)
    warnings.warn(f"Second moment {name} is far from positive: the identity stands in for it.", stacklevel=4)
    return None, None


@dataclass(eq=False)
class Metric:
    """The norm that an error of the weight is measured in: ‖A (W − Ŵ) B‖², AᵀA = G + λ_G·1, B Bᵀ = C + λ_C·1.

    `C` (in, in) is the second moment of the inputs, `G` (out, out) that of the output gradients, both undamped; None
    stands for the identity. λ = `damping` · mean diagonal. **Every error here is measured with the damped moments**,
    the ones that `whiten` uses: so the tail of the spectrum of `whiten(W)` *is* the error of its truncation.
    B is the lower Cholesky factor of the damped C, Aᵀ that of the damped G; everything is float64 and computed on the
    device of the weight at hand. `name` is `weight` (C = G = None), `functional` (C) or `loss` (C and G).
    """

    name: str = "weight"
    C: torch.Tensor | None = None
    G: torch.Tensor | None = None
    damping: float = 0.01
    _moved: dict = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.name not in METRICS:
            raise InputError(f"Metric {self.name!r} is not one of {', '.join(METRICS)}.")
        wanted = {"weight": (False, False), "functional": (True, False), "loss": (True, True)}[self.name]
        for side, moment, needed in zip("CG", (self.C, self.G), wanted, strict=True):
            if (moment is not None) != needed:
                raise InputError(f"Metric {self.name!r} {'needs' if needed else 'does not take'} the moment {side}.")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"Damping {self.damping!r} must be zero or a positive number.")

    @property
    def damping_used(self) -> dict[str, float | None]:
        """λ of each side in units of its mean diagonal: more than `damping` where the moment was not positive with it,
        None where the side's moment says nothing (all zeros, NaN) and the identity stands in for it."""
        sides = {"C": self.C, "G": self.G}
        return {side: damped_factor(m, self.damping, side)[1] for side, m in sides.items() if m is not None}

    def factor(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """Lower Cholesky factor of the damped C (`side` "C": B itself) or G (`side` "G": Aᵀ); None is the identity."""
        moment = self.C if side == "C" else self.G
        if moment is None:
            return None
        factor = damped_factor(moment, self.damping, side)[0]
        if factor is None or factor.device == torch.device(device):
            return factor
        key = (side, str(device))
        if key not in self._moved:
            self._moved[key] = factor.to(device)
        return self._moved[key]

    def damped(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        """C + λ_C·1 = B Bᵀ or G + λ_G·1 = AᵀA itself (float64); None is the identity."""
        moment = self.C if side == "C" else self.G
        if moment is None or (damping := self.damping_used[side]) is None:
            return None
        matrix = moment.to(device=device, dtype=torch.float64, copy=True)
        matrix = (matrix + matrix.T) / 2
        matrix.diagonal().add_(damping * matrix.diagonal().mean())
        return matrix

    def check(self, n_out: int, n_in: int) -> None:
        """Raises InputError where a moment's size is not the weight's."""
        for side, moment, size in (("C", self.C, n_in), ("G", self.G, n_out)):
            if moment is not None and tuple(moment.shape) != (size, size):
                raise InputError(f"Moment {side} is {tuple(moment.shape)}, the weight needs {(size, size)}.")

    def whiten(self, W: torch.Tensor) -> torch.Tensor:
        """A W B, (out, in), float64."""
        self.check(*W.shape)
        Y = W.detach().double()
        G, C = self.factor("G", W.device), self.factor("C", W.device)
        Y = Y if G is None else G.T @ Y
        return Y if C is None else Y @ C

    def unwhiten_left(self, U: torch.Tensor) -> torch.Tensor:
        """A⁻¹ U by a triangular solve; U is (out, n) float64."""
        G = self.factor("G", U.device)
        return U if G is None else torch.linalg.solve_triangular(G.T, U, upper=True)

    def unwhiten_right(self, Vt: torch.Tensor) -> torch.Tensor:
        """Vt B⁻¹ by a triangular solve; Vt is (n, in) float64."""
        C = self.factor("C", Vt.device)
        return Vt if C is None else torch.linalg.solve_triangular(C, Vt, upper=False, left=False)

    def absolute(self, D: torch.Tensor) -> float:
        """‖A D B‖² of a difference D (out, in), with the damped moments."""
        return self.whiten(D).square().sum().item()

    def error(self, W: torch.Tensor, W_hat: torch.Tensor) -> float:
        """Relative metric error ‖A (W − Ŵ) B‖² / ‖A W B‖² with the damped moments (0 for a zero W met exactly)."""
        difference = self.absolute(W.detach().double() - W_hat.detach().double())
        return difference / self.absolute(W) if difference else 0.0


@dataclass(frozen=True)
class Curve:
    """What each χ costs and loses: one weight, one network, one metric.

    chi : ascending, the cap on every bond.  parameters : of the network at that χ.
    error : ‖A (W − Ŵ) B‖², absolute, never rising with χ.  total : ‖A W B‖², the error of dropping the weight (χ = 0).
    exact : True where every χ is listed with the very error that `decompose` reaches; False where a few χ were
    estimated (the network says how) and `at` reads between them.
    """

    chi: np.ndarray
    parameters: np.ndarray
    error: np.ndarray
    total: float
    exact: bool

    def at(self, chi: float) -> float:
        """The error at any χ: listed, or read between its neighbours, log error linear in √χ (linear next to a zero).

        With six levels on trained weights that is within 7 %; linear in χ it is up to 30 % too high.
        """
        chis = np.concatenate([[0], self.chi])
        errors = np.concatenate([[self.total], self.error])
        k = int(np.searchsorted(chis, chi))
        if k >= len(chis) or chis[k] == chi:
            return float(errors[min(k, len(chis) - 1)])
        low, high, at = (math.sqrt(value) for value in (chis[k - 1], chis[k], chi))
        t = (at - low) / (high - low)
        low, high = errors[k], errors[k - 1]
        if low <= 1e-9 * self.total:
            return float(high + t * (low - high))
        return float(math.exp((1 - t) * math.log(high) + t * math.log(low)))


@lru_cache(maxsize=4096)
def factorize(n: int, sites: int) -> tuple[int, ...]:
    """The `sites` exact divisors of n with the smallest sum, descending: as equal as n allows, 1 where it has no more.

    >>> factorize(256, 3), factorize(11008, 3), factorize(50257, 2)
    ((8, 8, 4), (43, 16, 16), (1733, 29))
    """
    if sites == 1:
        return (n,)
    best = None
    small = [k for k in range(1, math.isqrt(n) + 1) if n % k == 0]
    for divisor in small + [n // k for k in small]:
        candidate = tuple(sorted((divisor, *factorize(n // divisor, sites - 1)), reverse=True))
        if best is None or (sum(candidate), candidate) < (sum(best), best):
            best = candidate
    return best


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


@dataclass(frozen=True)
class Spec:
    """The sizes of one weight as one network; as JSON, the weight's entry in a plan.

    out, in_ : factors of the weight's two sides (JSON `out`, `in`), Π out = n_out, Π in_ = n_in.
    chi : bond dimensions, in the order the network's file states.
    quantize : the format its cores are stored in (`quantize.Format`: int8, int4g64, fp8 …), None for the weight's own
    dtype. A subclass may add fields (with defaults): they join the JSON under their own names. Validated when made;
    raises InputError naming the field.
    """

    out: tuple[int, ...]
    in_: tuple[int, ...]
    chi: tuple[int, ...]
    quantize: str | None = None
    network: ClassVar[str]

    def __post_init__(self) -> None:
        for name in ("out", "in_", "chi"):
            object.__setattr__(self, name, sizes(getattr(self, name), name.rstrip("_")))
        if self.quantize is not None:
            Format.parse(self.quantize)
        self.validate()

    def validate(self) -> None:
        """Checks what this network asks of its sizes beyond being positive; raises InputError naming the field."""

    # What a network's file gives.

    @classmethod
    def for_shape(cls, n_out: int, n_in: int, chi: int, out=None, in_=None, **options) -> "Spec":
        """The network's default factorization of (n_out, n_in), every bond at χ or the most that it can attain."""
        raise NotImplementedError

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        """Shape of each core, in order."""
        raise NotImplementedError

    @property
    def max_chi(self) -> int:
        """The χ from which on nothing is truncated."""
        raise NotImplementedError

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress) -> list[torch.Tensor]:
        """The float64 cores, on W's device, of the Ŵ nearest to W (out, in) in `metric`; see `decompose`."""
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

    @classmethod
    def curve(cls, W: torch.Tensor, metric: Metric | None = None, levels=None, out=None, in_=None, **options) -> Curve:
        """Error and parameters over χ; `levels` chooses the χ that are measured where each one costs."""
        raise NotImplementedError

    # What a network overrides where it is not like the others.

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
        """How each core is stored: a `quantize.Format`, "index" (integers, as int32), or None (the weight's dtype)."""
        return [self.quantize] * len(self.core_shapes)

    def core_matrix(self, index: int) -> tuple[int, int]:
        """(rows, columns) that a core's numbers are quantized as: groups run along a row, the shortest run of
        trailing legs with `SHORTEST_ROW` entries or more."""
        shape = self.core_shapes[index]
        columns, legs = 1, list(shape)
        while legs and columns < SHORTEST_ROW:
            columns *= legs.pop()
        return math.prod(legs), columns

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of Ŵ (…, n_in) at `indices` (…) (int64): a table that is looked up in, without forming it."""
        raise InputError(f"A {self.network!r} cannot be looked up in row by row: it is no network for an embedding.")

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

    def with_chi(self, chi: int) -> "Spec":
        """The same factorization and options at another χ."""
        options = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("out", "in_", "chi")}
        return type(self).for_shape(self.n_out, self.n_in, chi, self.out, self.in_, **options)

    @property
    def break_even_chi(self) -> int:
        """The largest χ with fewer parameters than the dense weight; 0 where none has."""
        low, high = 0, self.max_chi + 1
        while high - low > 1:
            middle = (low + high) // 2
            if self.with_chi(middle).parameters < self.n_out * self.n_in:
                low = middle
            else:
                high = middle
        return low

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
    def from_json(cls, entry: dict[str, Any]) -> "Spec":
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
        standard deviation s it has variance Π χ · s^(2·cores), and keeping the variance asks for 1 / n_in.
        """
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        spread = (self.n_in * math.prod(self.chi)) ** (-0.5 / len(self.core_shapes))
        return [torch.randn(shape, generator=generator, dtype=dtype) * spread for shape in self.core_shapes]
