"""`tt_embedding`: an embedding table (V, d) as tensor trains, looked up in without forming the table.

"table": one tensor train for the whole table. The token's number is split into digits o_1 … o_n and the vector's index
into i_1 … i_n, as in `mpo`; V is padded to V′ = Π o_k ≥ V, and the rows past V are never read, stored or measured. A
row is a product of one slice a core. Khrulkov et al., "Tensorized embedding layers", arXiv:1901.10787.

"token": each token's vector, reshaped to d_1 × … × d_n, is a matrix product state of its own; core k of all tokens is
(V, r_{k−1}, d_k, r_k). Nothing is shared between tokens: rank 1 costs Σ d_k numbers a token, rank r up to r² as many.
Xu, Xu, Mandic, "TensorGPT", arXiv:2307.00526.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch

from karipap_core.errors import InputError, unknown
from karipap_core.networks.base import Spec, factorize, outside_in
from karipap_core.networks.curve import Curve
from karipap_core.networks.mpo import Mpo, attainable, balance, estimated_error
from karipap_core.networks.refine import refine
from karipap_core.networks.registry import register
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric, damped_factor

FORMS = ("table", "token")
# Two sites came nearest to the table of the ways tried, in both forms. The demo model's table, kept .27, error plain /
# by frequency: two balanced sites .31 / .17, three .35 / .21, four .31 / .17; a token's own .62, .72, .73 (plain).
# Past this size a third site keeps the first unfolding of a table small enough to decompose.
TWO_SITES = 4096**2
BLOCK = 2**22  # numbers gathered or formed at once while rows are made: more of them leave the cache, twice as slow


@dataclass(eq=False)
class RowWeighted(Metric):
    """‖diag(p + λ)^{1/2} (W − Ŵ) B‖²: row v of an embedding table counts as often as token v is met.

    `G` holds the diagonal alone, p (V,) ≥ 0, for a dense (V, V) is out of reach; λ = `damping` · mean(p). `C` (d, d) or
    None is the other side's moment as in `Metric`: that of the gradients at the looked-up vectors, or that of the
    hidden states where the table is a tied head's. In place of `Metric`'s dense matrices of the left side stand sparse
    diagonal ones. Raises InputError where p is no vector of finite numbers ≥ 0 with a positive one among them.
    """

    name: str = "frequency"

    def __post_init__(self) -> None:
        p = self.G
        if p is None or p.ndim != 1 or not torch.isfinite(p).all() or (p < 0).any() or not (p > 0).any():
            raise InputError("Weights of the rows must be one finite number ≥ 0 a row, not all of them zero.")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"Damping {self.damping!r} must be zero or a positive number.")

    @property
    def weights(self) -> torch.Tensor:
        """p + λ (V,), float64."""
        assert self.G is not None  # looked at when it was made
        p = self.G.detach().double()
        return p + self.damping * p.mean()

    @property
    def damping_used(self) -> dict[str, float | None]:
        used = {} if self.C is None else {"C": damped_factor(self.C, self.damping, "C")[1]}
        return used | {"G": self.damping}

    def factor(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        return _diagonal(self.weights.sqrt().to(device)) if side == "G" else super().factor(side, device)

    def damped(self, side: str, device: torch.device | str = "cpu") -> torch.Tensor | None:
        return _diagonal(self.weights.to(device)) if side == "G" else super().damped(side, device)

    def check(self, n_out: int, n_in: int) -> None:
        for name, moment, shape in (("row weights", self.G, (n_out,)), ("C", self.C, (n_in, n_in))):
            if moment is not None and tuple(moment.shape) != shape:
                raise InputError(f"Moment {name} is {tuple(moment.shape)}, the weight needs {shape}.")

    def unwhiten_left(self, U: torch.Tensor) -> torch.Tensor:
        """A⁻¹ U; rows of weight 0 (damping 0, token never met) become 0, for nothing is known of them."""
        weights = self.weights.to(U.device)[:, None]
        return torch.where(weights > 0, U / weights.clamp(min=torch.finfo(weights.dtype).tiny).sqrt(), 0)


def frequency_metric(counts: torch.Tensor, C: torch.Tensor | None = None, damping: float = 0.1) -> RowWeighted:
    """The metric of a table whose token v was met `counts`[v] times: p = counts / Σ counts, smoothed by the damping.

    A token never met weighs `damping` / V. On the demo model's table a damping of .1 costs half a percent of the error
    weighted by the tokens of other text, against .01, and saves seven percent of the plain one. With `C` = None the
    error is the expected squared error of a looked-up vector. Raises InputError for counts that are negative, not
    finite or all zero.
    """
    counts = torch.as_tensor(counts).double()
    return RowWeighted(C=C, G=counts / counts.sum() if counts.sum() else counts, damping=damping)


def _diagonal(values: torch.Tensor) -> torch.Tensor:
    """A sparse (n, n) diagonal matrix: multiplies and transposes like the dense one."""
    at = torch.arange(len(values), device=values.device)
    return torch.sparse_coo_tensor(
        torch.stack([at, at]), values, (len(values),) * 2, is_coalesced=True, check_invariants=False
    )


@register(linear=False, embedding=True)
@dataclass(frozen=True)
class TtEmbedding(Spec):
    """JSON: {"network": "tt_embedding", "out": …, "in": [d_1, …], "chi": [r_1, …], "form": …, "vocabulary": V}.

    form "table": out [o_1, …] with Π out ≥ V and as many factors as `in`; "token": out [V]. `chi` has one bond fewer
    than `in` has factors. vocabulary: V, the table's true number of rows (left out: Π out).
    """

    form: str = "table"
    vocabulary: int | None = None
    network: ClassVar[str] = "tt_embedding"

    @classmethod
    def kinds(cls, quantize: str | None) -> list[tuple[str, str | None, dict[str, Any]]]:
        return [(network, form, {"form": "table"}) for network, form, _ in super().kinds(quantize)]

    def validate(self) -> None:
        if self.form not in FORMS:
            raise unknown("Field 'form':", self.form, FORMS)
        padded = math.prod(self.out)
        if self.vocabulary is None:
            object.__setattr__(self, "vocabulary", padded)
        if type(self.vocabulary) is not int or not 0 < self.vocabulary <= padded:
            raise InputError(
                f"Field 'vocabulary' is {self.vocabulary!r}: it must be an integer from 1 to the product "
                f"of 'out', {padded}."
            )
        if len(self.in_) < 2:
            raise InputError("Field 'in' of a 'tt_embedding' entry must have at least two factors.")
        if self.form == "table" and len(self.out) != len(self.in_):
            raise InputError(
                f"Fields 'out' and 'in' of a table have {len(self.out)} and {len(self.in_)} factors: they "
                "must have as many."
            )
        if self.form == "token" and self.out != (self.vocabulary,):
            raise InputError("Field 'out' of the form 'token' must hold the vocabulary alone.")
        _ = self.operator  # checked, and made here, for a compiled graph cannot

    @classmethod
    def for_shape(
        cls,
        n_out: int,
        n_in: int,
        chi: int,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        quantize: str | None = None,
        form: str = "table",
        sites: int | None = None,
        vocabulary: int | None = None,
    ) -> Self:
        """The default factorization of any (V, d): d by exact divisors as equal as it allows (a prime keeps 1s), V by
        `padded` factors; or those given. Each bond is min(χ, the most that it can attain). `vocabulary` is V again.
        """
        if form not in FORMS:
            raise unknown("Field 'form':", form, FORMS)
        sites = sites or (2 if form == "token" or n_out * n_in <= TWO_SITES else 3)
        sites = len(in_ or ()) or (len(out) if out and form == "table" else sites)
        in_ = in_ or outside_in(factorize(n_in, sites), mirrored=True)
        if math.prod(in_) != n_in:
            raise InputError(f"Field 'in' is {list(in_)}, whose product is not the weight's {n_in}.")
        if form == "token":
            out = (n_out,)
            bonds = attainable((1,) * len(in_), in_)
        else:
            out = out or outside_in(padded(n_out, sites))
            if math.prod(out) < n_out:
                raise InputError(f"Field 'out' is {list(out)}, whose product is under the table's {n_out} rows.")
            bonds = attainable(out, in_)
        return cls(tuple(out), tuple(in_), tuple(max(1, min(int(chi), most)) for most in bonds), quantize, form, n_out)

    @cached_property
    def operator(self) -> Mpo:
        """The tensor train of the padded table, or of one token's vector."""
        return Mpo(self.out if self.form == "table" else (1,) * len(self.in_), self.in_, self.chi)

    @property
    def n_out(self) -> int:
        return self.vocabulary or math.prod(self.out)

    @property
    def core_shapes(self) -> list[tuple[int, ...]]:
        if self.form == "table":
            return self.operator.core_shapes
        return [(self.n_out, left, i, right) for left, _, i, right in self.operator.core_shapes]

    @property
    def max_chi(self) -> int:
        return self.operator.max_chi

    def core_matrix(self, index: int) -> tuple[int, int]:
        """A token's own numbers are a row of their own, so that no two tokens share a scale of int8."""
        if self.form == "table":
            return super().core_matrix(index)
        rows, *own = self.core_shapes[index]
        return rows, math.prod(own)

    def fit(self, W: torch.Tensor, metric: Metric, progress: Progress = silent) -> list[torch.Tensor]:
        """TT-SVD, then L-BFGS on the metric error of the V rows over all cores (`refine`), which never raises it.

        Two sites a token are the truncated SVD of each: optimal where no moment joins the entries of a row or two rows.
        """
        cores = self.start(W)
        if self.optimal_at_start(metric):
            return cores
        return self.balanced(refine(self.dense, cores, W, metric, progress=progress)[0])

    def optimal_at_start(self, metric: Metric) -> bool:
        if len(self.chi) > 1 or metric.C is not None or not (metric.G is None or metric.G.ndim == 1):
            return False
        return self.form == "token" or math.prod(self.out) == self.vocabulary and metric.G is None

    def start(self, W: torch.Tensor) -> list[torch.Tensor]:
        """TT-SVD of W (float64), the rows of the padding zero; or of each token's vector, batched."""
        if self.form == "table":
            rows = W.new_zeros(math.prod(self.out), self.n_in)
            rows[: self.vocabulary] = W
            return self.operator.start(rows)
        blocks = W.split(max(1, BLOCK // self.n_in))
        parts = [self.balanced(token_svd(block.reshape(-1, *self.in_), self.chi)) for block in blocks]
        return [torch.cat(cores) for cores in zip(*parts, strict=True)]

    def balanced(self, cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The same Ŵ with both ends of every bond index at equal norm, for each token where it has cores of its own."""
        return balance(cores) if self.form == "table" else balance_each(cores)

    def rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """Rows of Ŵ: indices (…) int64 → (…, d), one product of slices a token, the table never formed.

        Raises IndexError for an index outside 0 … V − 1 (not inside a compiled graph).
        """
        flat = indices.reshape(-1)
        if (
            not torch.compiler.is_compiling()
            and flat.numel()
            and not 0 <= int(flat.min()) <= int(flat.max()) < self.n_out
        ):
            raise IndexError(f"A token is outside 0 … {self.n_out - 1}.")
        gathered = max(left * i * right for left, _, i, right in self.operator.core_shapes)
        blocks = [self._rows(block, cores) for block in flat.split(max(1, BLOCK // max(gathered, self.n_in)))]
        return torch.cat(blocks).reshape(*indices.shape, self.n_in)

    def _rows(self, indices: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        if self.form == "token":
            return chain([core[indices] for core in cores])
        slices, below = [], math.prod(self.out)
        for core, o in zip(cores, self.out, strict=True):
            below //= o
            slices.append(core[:, indices // below % o].movedim(1, 0))
        return chain(slices)

    def apply(self, x: torch.Tensor, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        """A tied head: x (…, d) → x Ŵᵀ (…, V). The table is never held as a whole.

        "table" contracts x with the cores as `mpo` does and drops the padding. "token" forms the rows block by block:
        that costs about χ V d multiply-adds once, where contracting x with every token's cores costs so much a vector.
        """
        if self.form == "table":
            return self.operator.apply(x, cores)[..., : self.vocabulary]
        blocks = zip(*(core.split(max(1, BLOCK // self.n_in)) for core in cores), strict=True)
        return torch.cat([x @ chain(block).T for block in blocks], dim=-1)

    def dense(self, cores: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.operator.dense(cores)[: self.vocabulary] if self.form == "table" else chain(cores)

    def multiply_adds(self, batch: int = 1) -> int:
        if self.form == "table":
            return self.operator.multiply_adds(batch)
        made = ready = 0
        for left, _, i, right in self.operator.core_shapes:
            made += ready * left * i * right  # the first core is there already
            ready = (ready or 1) * i
        return self.n_out * (made + batch * self.n_in)

    def forms(self, batch: int) -> bool:
        """Never: a table of all tokens is what a head of this form is there to do without."""
        return False

    @classmethod
    def curve(
        cls,
        W: torch.Tensor,
        metric: Metric | None = None,
        levels: Iterable[int] | None = None,
        out: Sequence[int] | None = None,
        in_: Sequence[int] | None = None,
        form: str = "table",
        sites: int | None = None,
        **options: Any,
    ) -> Curve:
        """Measured where the start is optimal, else estimated as `mpo` does, at `levels` (default: 6 up to break-even,
        even in √χ)."""
        metric, W = metric or Metric("weight"), W.detach().double()
        spec = cls.for_shape(W.shape[0], W.shape[1], 1, out, in_, form=form, sites=sites)
        if not spec.optimal_at_start(metric):
            return spec.curve_at(levels, W, metric, lambda at: estimated_error(at, W, metric))
        levels = range(1, spec.max_chi + 1) if levels is None else levels
        return spec.curve_at(levels, W, metric, lambda at: metric.absolute(W - at.dense(at.start(W))), exact=True)


def padded(n: int, sites: int) -> tuple[int, ...]:
    """`sites` factors as equal as can be, descending, whose product is n or as little over it as their being near the
    root of n allows.

    >>> padded(50257, 3), padded(32003, 2), padded(7, 3)
    ((37, 37, 37), (179, 179), (2, 2, 2))
    """
    factors = []
    for left in range(sites, 0, -1):
        root = round(n ** (1 / left))
        root += root**left < n  # the smallest integer whose power is n or over, rounding of the root aside
        factors.append(root)
        n = -(-n // root)
    return tuple(sorted(factors, reverse=True))


def chain(cores: Sequence[torch.Tensor]) -> torch.Tensor:
    """Products of batched cores (n, r_{k−1}, d_k, r_k), r_0 = r_n = 1: (n, Π d_k)."""
    product = cores[0].flatten(1, 2)
    for core in cores[1:]:
        product = (product @ core.flatten(2)).reshape(len(core), product.shape[1] * core.shape[2], core.shape[3])
    return product.flatten(1)


def token_svd(tensors: torch.Tensor, chi: Sequence[int]) -> list[torch.Tensor]:
    """TT-SVD of each of n tensors (n, d_1, …, d_m): cores (n, r_{k−1}, d_k, r_k), left to right, every token truncated
    alone to the same bonds."""
    n, *legs = tensors.shape
    rest, bond, cores = tensors, 1, []
    for leg, keep in zip(legs[:-1], chi, strict=True):
        U, sigma, Vt = torch.linalg.svd(rest.reshape(n, bond * leg, -1), full_matrices=False)
        cores.append(U[:, :, :keep].reshape(n, bond, leg, keep))
        rest, bond = sigma[:, :keep, None] * Vt[:, :keep], keep
    return [*cores, rest.reshape(n, bond, legs[-1], 1)]


def balance_each(cores: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """`mpo.balance` for batched cores (n, r_{k−1}, d_k, r_k): for each of the n alone."""
    cores = list(cores)
    for k in range(len(cores) - 1):
        left, right = cores[k].flatten(1, 2).norm(dim=1), cores[k + 1].flatten(2).norm(dim=2)
        alive = (left > 0) & (right > 0)
        scale = torch.where(alive, (right / left.where(alive, 1)).sqrt(), 1)
        cores[k] = cores[k] * scale[:, None, None]
        cores[k + 1] = cores[k + 1] / scale[:, :, None, None]
    return cores
