"""A matrix in integers of few bits: rounded to nearest with a searched clip, or calibrated (GPTQ).

Codes are integers 0 … 2^bits − 1 in groups of neighbouring inputs of one row, each group with a 16-bit scale and an
integer zero point of `bits` bits:  Ŵ = scale · (code − zero).  The bytes of all three are counted, packed without gaps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from karipap_core.errors import InputError
from karipap_core.quantization.packing import Quantized

MOST_BITS = 8
SHRINKS = 40  # ranges tried for each group, from the whole one down to SMALLEST of it
SMALLEST = 0.3
AT_ONCE = 2**16  # numbers whose ranges are searched together: they and what is made of them stay in the cache
EPS32 = torch.finfo(torch.float32).eps
CHUNK = 64  # columns between two updates of the next ones
WIDE = 256  # columns between two updates of all that are still to come


def quantize_rtn(W: torch.Tensor, bits: int, group: int | None = 64, clip: bool = True) -> Quantized:
    """Rounding to nearest, asymmetric, in groups of `group` inputs (None: the whole row).

    W (out, in), any float dtype and device. With `clip` the range of each group is shrunk in `SHRINKS` steps and the
    one with the least squared error of the group is kept. Raises InputError for bits or group that cannot be.
    """
    W, group = checked(W, bits, group)
    blocks, used = in_groups(W, group)
    scale, zero = search(blocks, used, bits, clip)
    codes = _round(blocks, scale[..., None], zero[..., None], bits)
    codes = codes.flatten(1)[:, : W.shape[1]].to(torch.uint8)
    return Quantized(codes, scale.half(), zero.to(torch.uint8), bits, group)


def integer_grid(W: torch.Tensor, bits: int, group: int | None) -> Quantized | None:
    """W (out, in) without any loss in integers of `bits` bits, None where it is not on such a grid.

    Values scale · (code − zero) of a 16-bit scale and up to 8 bits are exact in float32, so that a dequantized matrix
    tells its grid: its largest magnitude in a group is k · scale for one k < 2^bits, and all others are multiples too.
    Finds the matrix again that `dense` gave (up to the choice among scales that say the same).
    """
    W, group = checked(W, bits, group)
    blocks, steps = in_groups(W, group)[0], 2**bits - 1
    shape, blocks = blocks.shape, blocks.flatten(0, 1)  # (groups, group)
    largest = blocks.abs().amax(1)
    scales, zeros = torch.ones_like(largest), torch.zeros_like(largest)
    missing = largest > 0
    for k in range(1, steps + 1):
        scale = (largest / k).half().double()
        # Few k divide so well that what they give is a 16-bit number: only those groups are looked at as a whole.
        (at,) = torch.nonzero(missing & (scale * k == largest), as_tuple=True)
        whole = blocks[at] / scale[at, None]
        zero = (-whole.amin(1)).clamp(min=0)
        fits = (whole == whole.round()).all(1) & (zero + whole.amax(1).clamp(min=0) <= steps)
        at = at[fits]
        scales[at], zeros[at], missing[at] = scale[at], zero[fits], False
    if missing.any():
        return None
    codes = _round(blocks, scales[:, None], zeros[:, None], bits)
    codes = codes.reshape(len(W), -1)[:, : W.shape[1]].to(torch.uint8)
    scales, zeros = (each.reshape(shape[:2]) for each in (scales, zeros))
    return Quantized(codes, scales.half(), zeros.to(torch.uint8), bits, group)


def quantize_gptq(
    W: torch.Tensor,
    bits: int,
    group: int | None,
    C: torch.Tensor,
    damping=0.01,
    order: bool = False,
    clip: bool = True,
    weigh: bool = False,
) -> Quantized:
    """Calibrated rounding, column after column, each column's error made good by the columns still to come.

    Makes ‖(W − Ŵ) C^{1/2}‖² small, with C = E[x xᵀ] (in, in) of the layer's inputs, damped by `damping` of its mean
    diagonal. With U the upper Cholesky factor of C⁻¹, column j in turn: e = (w_j − ŵ_j) / U_jj, then
    w_k −= e U_jk for k > j (Frantar et al. 2022, "GPTQ", algorithm 1; in blocks of one group). A group's scale is
    searched on its weights as corrected when the first of its columns comes; with `weigh` not for the least squared
    error but for the least Σ e², which is what a column loses when the others make good what they can. With `order`
    columns go by falling C_jj and groups keep their place and the scales of the uncorrected weights, so that nothing
    more has to be stored.
    Arithmetic in float64. Raises InputError for a C of another shape.
    """
    W, _ = checked(W, bits, group)
    n_in = W.shape[1]
    if C.shape != (n_in, n_in):
        raise InputError(f"C has shape {tuple(C.shape)}, the weight has {n_in} inputs: it must be ({n_in}, {n_in}).")
    C = C.to(W)
    if not order:
        return quantize_by_factor(W, bits, group, inverse_factor(C, damping), clip, weigh=weigh)
    permutation = C.diagonal().argsort(descending=True)
    U = inverse_factor(C[permutation][:, permutation], damping)
    return quantize_by_factor(W, bits, group, U, clip, permutation, weigh)


def quantize_by_factor(
    W: torch.Tensor,
    bits: int,
    group: int | None,
    U: torch.Tensor,
    clip: bool = True,
    permutation: torch.Tensor | None = None,
    weigh: bool = False,
) -> Quantized:
    """`quantize_gptq` with U = `inverse_factor(C, damping)`, for those who round several matrices under one C; with
    `permutation` its columns go in that order and U is that of the permuted C.

    U may be smaller than W is wide, by a divisor: then each row is several pieces of len(U) entries that know nothing
    of one another, C being block-diagonal, while groups go on over the pieces. There, and with `permutation`, scales
    are those of the uncorrected weights. Raises InputError where len(U) does not divide the width.
    """
    W, group = checked(W, bits, group)
    n_out, n_in = W.shape
    n = len(U)
    if n_in % n:
        raise InputError(f"The factor has {n} columns: it must be a divisor of the weight's {n_in}.")
    given = permutation is not None or n < n_in

    def by_column(matrix: torch.Tensor) -> torch.Tensor:  # a column is in one piece; always a copy, it is written to
        matrix = matrix.reshape(-1, n)
        matrix = matrix if permutation is None else matrix[:, permutation]
        return matrix.T.clone(memory_format=torch.contiguous_format)

    rows, chunk = by_column(W), CHUNK if given else group
    weights = U.diagonal().square().reciprocal()
    if given:
        natural = (weights if permutation is None else weights[permutation.argsort()]).repeat(n_in // n)
        heavy = in_groups(natural[None], group)[0]
        scales, zeros = search(*in_groups(W, group), bits, clip, heavy if weigh else None)
        spread = [by_column(each.repeat_interleave(group, 1)[:, :n_in]) for each in (scales, zeros)]
    else:
        scales, zeros = W.new_zeros(n_out, -(-n_in // group)), W.new_zeros(n_out, -(-n_in // group))
    codes, diagonal = torch.empty_like(rows), U.diagonal().tolist()
    wide = max(1, WIDE // chunk) * chunk
    errors = rows.new_empty(min(wide, n), rows.shape[1])
    for start in range(0, n, chunk):
        stop, first = min(start + chunk, n), start - start % wide
        last = min(first + wide, n)
        block = rows[start:stop]
        if not given:
            found = search(*in_groups(block.T, stop - start), bits, clip, weights[start:stop] if weigh else None)
            scale, zero = (each[:, 0] for each in found)
            scales[:, start // group], zeros[:, start // group] = scale, zero
        own = errors[start - first : stop - first]
        for j, (column, code, error) in enumerate(zip(block, codes[start:stop], own, strict=True)):
            if given:
                scale, zero = (each[start + j] for each in spread)
            torch.div(column, scale, out=code).add_(zero).round_().clamp_(0, 2**bits - 1)
            torch.sub(code, zero, out=error).mul_(scale)
            torch.sub(column, error, out=error).div_(diagonal[start + j])
            block[j + 1 :].addr_(U[start + j, start + j + 1 : stop], error, alpha=-1)
        rows[stop:last].addmm_(U[start:stop, stop:last].T, own, alpha=-1)
        if stop == last:
            rows[last:].addmm_(U[first:last, last:].T, errors[: last - first], alpha=-1)
    codes = codes.to(torch.uint8).T
    codes = (codes if permutation is None else codes[:, permutation.argsort()]).reshape(n_out, n_in)
    return Quantized(codes, scales.half(), zeros.to(torch.uint8), bits, group)


def checked_matrix(W: torch.Tensor) -> torch.Tensor:
    """W in float64. Raises InputError where it is no matrix, or an empty one."""
    if W.ndim != 2 or W.numel() == 0:
        raise InputError(f"A weight of shape {tuple(W.shape)} cannot be quantized: it must be a matrix (out, in).")
    return W.detach().double()


def checked(W: torch.Tensor, bits: int, group: int | None) -> tuple[torch.Tensor, int]:
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"{bits} bits: give 1 to {MOST_BITS}.")
    if group is not None and group < 1:
        raise InputError(f"Groups of {group}: give at least 1, or none for whole rows.")
    W = checked_matrix(W)
    return W, min(group or W.shape[1], W.shape[1])


@dataclass
class Columns:
    """C = E[x xᵀ] (in, in), for rounding: its factors, made when they are asked for and kept in `kept`.

    moment() gives C, which is changed; damping : in units of its mean diagonal.
    """

    moment: Callable[[], torch.Tensor]
    damping: float
    kept: dict[int | None, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)

    @classmethod
    def of(cls, C: torch.Tensor, damping: float) -> "Columns":
        return cls(C.clone, damping)

    def damped(self) -> torch.Tensor:
        """C as it is rounded under."""
        return damped(self.moment(), self.damping)

    def in_order(self) -> torch.Tensor:
        """`inverse_factor` of C."""
        if None not in self.kept:
            self.kept[None] = inverse_factor(self.moment(), self.damping), torch.empty(0)
        return self.kept[None][0]

    def by_weight(self, group: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(U, order): `inverse_factor` of C with its columns in an order in which groups of `group` neighbours stay
        together: they go by falling sum of C_jj, columns within by falling C_jj; a last group that is shorter is the
        last. What weighs most is made good by most, and no order has to be stored."""
        if group not in self.kept:
            C = self.moment()
            weights = C.diagonal()
            whole = len(weights) // group * group
            within = [each.argsort(descending=True, stable=True) for each in weights.split(group)]
            first = weights[:whole].reshape(-1, group).sum(1).argsort(descending=True, stable=True).tolist()
            order = torch.cat([at * group + within[at] for at in (*first, *range(len(first), len(within)))])
            for other in self.kept.keys() - {None}:
                del self.kept[other]
            self.kept[group] = inverse_factor(C[order][:, order], self.damping), order
        return self.kept[group]


def inverse_factor(C: torch.Tensor, damping: float) -> torch.Tensor:
    """U upper triangular with UᵀU = (C + damping · mean(diag C) · 1)⁻¹.

    U⁻¹ is the upper factor of C itself, which is the lower one of C with rows and columns in reverse.
    """
    return _inverse(torch.linalg.cholesky(damped(C, damping).flip(0, 1))).flip(0, 1)


def damped(C: torch.Tensor, damping: float) -> torch.Tensor:
    """C + damping · mean(diag C) · 1; the identity for a C of zeros."""
    mean, found = C.diagonal().mean(), C.clone()
    found.diagonal().add_(damping * mean if mean > 0 else 1.0)
    return found


def _inverse(lower: torch.Tensor) -> torch.Tensor:
    """L⁻¹ of a lower triangular L (n, n), half by half: n³/3 multiply-adds, a third of a solution for the identity."""
    n = len(lower)
    if n <= WIDE:
        unit = torch.eye(n, dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, unit, upper=False)
    half, found = n // 2, torch.zeros_like(lower)
    first, last, between = lower[:half, :half], lower[half:, half:], lower[half:, :half]
    found[:half, :half], found[half:, half:] = _inverse(first), _inverse(last)
    between = torch.linalg.solve_triangular(first, between, upper=False, left=False)
    found[half:, :half] = -torch.linalg.solve_triangular(last, between, upper=False)
    return found


def in_groups(W: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """W as (out, groups, group), the last group filled up with zeros, and which entries are W's (groups, group)."""
    n_in = W.shape[1]
    missing = -n_in % group
    used = torch.arange(n_in + missing, device=W.device).reshape(-1, group) < n_in
    W = functional.pad(W, (0, missing)) if missing else W
    return W.reshape(len(W), -1, group), used


def search(
    blocks: torch.Tensor, used: torch.Tensor, bits: int, clip: bool = True, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (as float16 holds it) and zero point of every group, (out, groups) each.

    A range always holds 0, so that the zero point is one of the codes. The least sum of squared errors decides, each
    times its weight (`weights`, of a shape that spreads to that of `blocks`), in float64; in float32 all ranges are
    looked at first, and those left out that are over the least by more than float32 can be wrong.
    """
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    if not clip:
        return _grid(low, high, bits)
    values = blocks.flatten(0, 1)
    shrinks = torch.from_numpy(np.linspace(1, SMALLEST, SHRINKS)).to(values.device)
    scales, zeros = _grid(low.flatten() * shrinks[:, None], high.flatten() * shrinks[:, None], bits)
    unused = None if used.all() else ~used.expand(blocks.shape).flatten(0, 1)
    if weights is not None:  # against each other within a group
        weights = (weights / weights.amax(-1, keepdim=True)).expand(blocks.shape).flatten(0, 1)
    (group, shrink) = torch.nonzero(_promising(values, unused, weights, scales, zeros, bits).T, as_tuple=True)
    errors = torch.full_like(scales, torch.inf)
    at_once = max(1, AT_ONCE // values.shape[-1])
    for at, which in zip(group.split(at_once), shrink.split(at_once), strict=True):
        scale, zero, part = scales[which, at][:, None], zeros[which, at][:, None], _some(values, at)
        left = (part / scale).add_(zero).round_().clamp_(0, 2**bits - 1).sub_(zero).mul_(scale).sub_(part).square_()
        if unused is not None:
            left[unused[at]] = 0
        if weights is not None:
            left *= _some(weights, at)
        errors[which, at] = left.sum(-1)
    best = errors.argmin(0, keepdim=True)
    return scales.gather(0, best).view(low.shape), zeros.gather(0, best).view(low.shape)


def _promising(
    values: torch.Tensor,
    unused: torch.Tensor | None,
    weights: torch.Tensor | None,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    bits: int,
) -> torch.Tensor:
    """Which ranges (ranges, groups) may leave a group (groups, entries) the least error of all, with weights of at most
    1, as far as float32 can tell, whose errors are added up as if all went one way; also those that it cannot hold."""
    steps, entries = 2**bits - 1, values.shape[1]
    scales, zeros, errors = scales.float(), zeros.float(), torch.empty(scales.shape, device=values.device)
    at_once = max(1, AT_ONCE // entries)
    for start in range(0, len(values), at_once):
        part = slice(start, start + at_once)
        # Groups side by side: sums over short rows are slow.
        few, none = values[part].T.float().contiguous(), None if unused is None else unused[part].T
        heavy = None if weights is None else weights[part].T.float().contiguous()
        ranges = max(1, AT_ONCE // few.numel())  # of few numbers so many at a time, each call costs as much
        for first in range(0, len(scales), ranges):
            these = slice(first, first + ranges)
            codes = torch.addcmul(zeros[these, None, part], few, scales[these, None, part].reciprocal())
            left = codes.round().clamp_(0, steps).sub_(codes).square_()
            if none is not None:
                left[:, none] = 0
            if heavy is not None:
                left *= heavy
            torch.sum(left, 1, out=errors[these, part])
    wrong = 4 * EPS32 * (steps / SMALLEST + 1)  # of one code: three roundings of what is at most steps / SMALLEST
    margin = 2 * wrong * (entries * errors).sqrt_() + (entries * wrong**2 + 18 * EPS32 * errors)
    squares = scales.square()
    return ~((errors - margin) * squares > ((errors + margin) * squares).amin(0))


def _some(values: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rows of a matrix, in the order in memory that it has: sums come out the same to the last bit."""
    return values.T[:, at].T if values.stride(0) < values.stride(1) else values[at]


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp(max=torch.finfo(torch.float16).max).half().to(low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, steps)


def _round(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (values / scale + zero).round().clamp(0, 2**bits - 1)
