"""A matrix in integers of few bits: rounded to nearest with a searched clip, or calibrated (GPTQ).

Codes are integers 0 … 2^bits − 1 in groups of neighbouring inputs of one row, each group with a 16-bit scale and an
integer zero point of `bits` bits:  Ŵ = scale · (code − zero).  The bytes of all three are counted, packed without gaps.
"""

import numpy as np
import torch
from torch.nn import functional

from karipap_core.errors import InputError
from karipap_core.quantization.packing import Quantized

MOST_BITS = 8
SHRINKS = 40  # ranges tried for each group, from the whole one down to SMALLEST of it
SMALLEST = 0.3
CHUNK = 64  # columns between two updates of all that are still to come


def quantize_rtn(W: torch.Tensor, bits: int, group: int | None = 64, clip: bool = True) -> Quantized:
    """Rounding to nearest, asymmetric, in groups of `group` inputs (None: the whole row).

    W (out, in), any float dtype and device. With `clip` the range of each group is shrunk in `SHRINKS` steps and the
    one with the least squared error of the group is kept. Raises InputError for bits or group that cannot be.
    """
    W, group = _checked(W, bits, group)
    blocks, used = _blocks(W, group)
    scale, zero = _search(blocks, used, bits, clip)
    codes = _round(blocks, scale[..., None], zero[..., None], bits)
    codes = codes.flatten(1)[:, : W.shape[1]].to(torch.uint8)
    return Quantized(codes, scale.half(), zero.to(torch.uint8), bits, group)


def integer_grid(W: torch.Tensor, bits: int, group: int | None) -> Quantized | None:
    """W (out, in) without any loss in integers of `bits` bits, None where it is not on such a grid.

    Values scale · (code − zero) of a 16-bit scale and up to 8 bits are exact in float32, so that a dequantized matrix
    tells its grid: its largest magnitude in a group is k · scale for one k < 2^bits, and all others are multiples too.
    Finds the matrix again that `dense` gave (up to the choice among scales that say the same).
    """
    W, group = _checked(W, bits, group)
    blocks, steps = _blocks(W, group)[0], 2**bits - 1
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
    W: torch.Tensor, bits: int, group: int | None, C: torch.Tensor, damping=0.01, order: bool = False, clip: bool = True
) -> Quantized:
    """Calibrated rounding, column after column, each column's error made good by the columns still to come.

    Makes ‖(W − Ŵ) C^{1/2}‖² small, with C = E[x xᵀ] (in, in) of the layer's inputs, damped by `damping` of its mean
    diagonal. With U the upper Cholesky factor of C⁻¹, column j in turn: e = (w_j − ŵ_j) / U_jj, then
    w_k −= e U_jk for k > j (Frantar et al. 2022, "GPTQ", algorithm 1; in blocks of one group). A group's scale is
    searched on its weights as corrected when the first of its columns comes. With `order` columns go by falling C_jj
    and groups keep their place and the scales of the uncorrected weights, so that nothing more has to be stored.
    Arithmetic in float64. Raises InputError for a C of another shape.
    """
    W, _ = _checked(W, bits, group)
    n_in = W.shape[1]
    if C.shape != (n_in, n_in):
        raise InputError(f"C has shape {tuple(C.shape)}, the weight has {n_in} inputs: it must be ({n_in}, {n_in}).")
    C = C.to(W)
    if not order:
        return quantize_by_factor(W, bits, group, inverse_factor(C, damping), clip)
    permutation = C.diagonal().argsort(descending=True)
    U = inverse_factor(C[permutation][:, permutation], damping)
    return quantize_by_factor(W, bits, group, U, clip, permutation)


def quantize_by_factor(
    W: torch.Tensor,
    bits: int,
    group: int | None,
    U: torch.Tensor,
    clip: bool = True,
    permutation: torch.Tensor | None = None,
) -> Quantized:
    """`quantize_gptq` with U = `inverse_factor(C, damping)`, for those who round several matrices under one C; with
    `permutation` its columns go in that order and U is that of the permuted C.

    U may be smaller than W is wide, by a divisor: then each row is several pieces of len(U) entries that know nothing
    of one another, C being block-diagonal, while groups go on over the pieces. There, and with `permutation`, scales
    are those of the uncorrected weights. Raises InputError where len(U) does not divide the width.
    """
    W, group = _checked(W, bits, group)
    n_out, n_in = W.shape
    n = len(U)
    if n_in % n:
        raise InputError(f"The factor has {n} columns: it must be a divisor of the weight's {n_in}.")
    given = permutation is not None or n < n_in
    permutation = torch.arange(n, device=W.device) if permutation is None else permutation

    def by_column(matrix: torch.Tensor) -> torch.Tensor:  # a column is in one piece
        return matrix.reshape(-1, n)[:, permutation].T.contiguous()

    rows, chunk = by_column(W), CHUNK if given else group
    if given:
        scales, zeros = _search(*_blocks(W, group), bits, clip)
        spread = [by_column(each.repeat_interleave(group, 1)[:, :n_in]) for each in (scales, zeros)]
    else:
        scales, zeros = W.new_zeros(n_out, -(-n_in // group)), W.new_zeros(n_out, -(-n_in // group))
    codes = torch.empty_like(rows)
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        block = rows[start:stop]
        if not given:
            scale, zero = (each[:, 0] for each in _search(*_blocks(block.T, stop - start), bits, clip))
            scales[:, start // group], zeros[:, start // group] = scale, zero
        errors = torch.empty_like(block)
        for j in range(stop - start):
            if given:
                scale, zero = (each[start + j] for each in spread)
            codes[start + j] = _round(block[j], scale, zero, bits)
            errors[j] = (block[j] - scale * (codes[start + j] - zero)) / U[start + j, start + j]
            block[j + 1 :].addr_(U[start + j, start + j + 1 : stop], errors[j], alpha=-1)
        rows[stop:].addmm_(U[start:stop, stop:].T, errors, alpha=-1)
    codes = codes.T[:, permutation.argsort()].reshape(n_out, n_in).to(torch.uint8)
    return Quantized(codes, scales.half(), zeros.to(torch.uint8), bits, group)


def checked_matrix(W: torch.Tensor) -> torch.Tensor:
    """W in float64. Raises InputError where it is no matrix, or an empty one."""
    if W.ndim != 2 or W.numel() == 0:
        raise InputError(f"A weight of shape {tuple(W.shape)} cannot be quantized: it must be a matrix (out, in).")
    return W.detach().double()


def _checked(W: torch.Tensor, bits: int, group: int | None) -> tuple[torch.Tensor, int]:
    if not 1 <= bits <= MOST_BITS:
        raise InputError(f"{bits} bits: give 1 to {MOST_BITS}.")
    if group is not None and group < 1:
        raise InputError(f"Groups of {group}: give at least 1, or none for whole rows.")
    W = checked_matrix(W)
    return W, min(group or W.shape[1], W.shape[1])


def inverse_factor(C: torch.Tensor, damping: float) -> torch.Tensor:
    """U upper triangular with UᵀU = (C + damping · mean(diag C) · 1)⁻¹.

    U⁻¹ is the upper factor of C itself, which is the lower one of C with rows and columns in reverse.
    """
    mean = C.diagonal().mean()
    unit = torch.eye(len(C), dtype=C.dtype, device=C.device)
    lower = torch.linalg.cholesky((C + (damping * mean if mean > 0 else 1.0) * unit).flip(0, 1))
    return torch.linalg.solve_triangular(lower, unit, upper=False).flip(0, 1)


def _blocks(W: torch.Tensor, group: int) -> tuple[torch.Tensor, torch.Tensor]:
    """W as (out, groups, group), the last group filled up with zeros, and which entries are W's (groups, group)."""
    n_in = W.shape[1]
    missing = -n_in % group
    used = torch.arange(n_in + missing, device=W.device).reshape(-1, group) < n_in
    return functional.pad(W, (0, missing)).reshape(len(W), -1, group), used


def _search(blocks: torch.Tensor, used: torch.Tensor, bits: int, clip: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale (as float16 holds it) and zero point of every group, (out, groups) each.

    A range always holds 0, so that the zero point is one of the codes.
    """
    low, high = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    error: torch.Tensor | None = None
    for shrink in np.linspace(1, SMALLEST, SHRINKS) if clip else (1.0,):
        tried = _grid(low * shrink, high * shrink, bits)
        codes = _round(blocks, tried[0][..., None], tried[1][..., None], bits)
        new = ((tried[0][..., None] * (codes - tried[1][..., None]) - blocks).square() * used).sum(-1)
        if error is None:
            error, (scale, zero) = new, tried
        else:
            better = new < error
            error = torch.where(better, new, error)
            scale, zero = torch.where(better, tried[0], scale), torch.where(better, tried[1], zero)
    return scale, zero


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp(max=torch.finfo(torch.float16).max).half().to(low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, steps)


def _round(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (values / scale + zero).round().clamp(0, 2**bits - 1)
