"""A weight in 2, 3, 4 or 8 bits: rounded to nearest with a searched clip, or calibrated (GPTQ).

Codes are integers 0 … 2^bits − 1 in groups of neighbouring inputs of one row, each group with a 16-bit scale and an
integer zero point of `bits` bits:  Ŵ = scale · (code − zero).  The byte ledger counts all three, packed without gaps.
"""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from karipap_core.errors import InputError

BITS = (2, 3, 4, 8)
SHRINKS = 40  # ranges tried for each group, from the whole one down to SMALLEST of it
SMALLEST = 0.3
GROUPS = {8: None, 4: 64, 3: 64, 2: 32}  # inputs that share a scale where a format does not say; None: the whole row
FORMAT = re.compile(r"int([2348])(?:g(\d+))?")


@dataclass(frozen=True)
class Format:
    """How numbers are stored: `int8`, `int4`, `int3`, `int2` (groups of `GROUPS`, or `int4g128` …), or `fp8` (e4m3 with
    one 16-bit scale a row)."""

    name: str
    bits: int
    group: int | None
    floating: bool = False

    @classmethod
    def parse(cls, name: str) -> "Format":
        """Raises InputError for a name that is none of the formats."""
        if name == "fp8":
            return cls(name, 8, None, True)
        found = FORMAT.fullmatch(name) if isinstance(name, str) else None
        if found is None or found[2] == "0":
            raise InputError(f"Format {name!r} is not one of int8, int4, int3, int2 (int4g128 sets the group) or fp8.")
        bits = int(found[1])
        return cls(name, bits, int(found[2]) if found[2] else GROUPS[bits])

    def bytes(self, rows: int, columns: int) -> int:
        """Bytes on disk of a matrix: packed codes, packed zero points and 16-bit scales (`Quantized.bytes`)."""
        if self.floating:
            return rows * columns + 2 * rows
        groups = rows * -(-columns // min(self.group or columns, columns))
        return -(-rows * columns * self.bits // 8) + -(-groups * self.bits // 8) + 2 * groups


@dataclass(frozen=True)
class Quantized:
    """codes (out, in) uint8; scales (out, groups) float16; zeros (out, groups) uint8; the last group may be short."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor
    bits: int
    group: int

    @property
    def bytes(self) -> int:
        """Bytes on disk: packed codes, packed zero points and 16-bit scales."""
        packed = sum(-(-tensor.numel() * self.bits // 8) for tensor in (self.codes, self.zeros))
        return packed + 2 * self.scales.numel()

    def dense(self) -> torch.Tensor:
        """Ŵ (out, in) float32."""
        n_in = self.codes.shape[1]
        spread = [t.float().repeat_interleave(self.group, 1)[:, :n_in] for t in (self.scales, self.zeros)]
        return spread[0] * (self.codes.float() - spread[1])


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes < 2^bits (any shape, uint8), one behind the other without gaps, most significant bit first: (n,) uint8."""
    flat = codes.detach().cpu().contiguous().numpy().reshape(-1, 1)
    return torch.from_numpy(np.packbits(np.unpackbits(flat, axis=1)[:, 8 - bits :]))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The codes that `pack` was given, as uint8 of `shape`."""
    count = int(np.prod(shape))
    flat = np.unpackbits(packed.cpu().numpy(), count=count * bits).reshape(count, bits)
    return torch.from_numpy(np.packbits(flat, axis=1)[:, 0] >> (8 - bits)).reshape(shape)


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
    W, group = _checked(W, bits, group)
    n_out, n_in = W.shape
    if C.shape != (n_in, n_in):
        raise InputError(f"C has shape {tuple(C.shape)}, the weight has {n_in} inputs: it must be ({n_in}, {n_in}).")
    U = _inverse_factor(C.to(W), damping, permutation := _permutation(C, n_in, order, W.device))
    W, home = W[:, permutation], permutation // group
    groups = -(-n_in // group)
    scales, zeros = W.new_zeros(n_out, groups), W.new_zeros(n_out, groups)
    if order:
        blocks, used = _blocks(W[:, permutation.argsort()], group)
        scales, zeros = _search(blocks, used, bits, clip)
    codes = W.new_zeros(n_out, n_in)
    homes = home.tolist()
    for start in range(0, n_in, group):
        stop = min(start + group, n_in)
        block = W[:, start:stop].clone()
        if not order:
            whole, used = _blocks(block, stop - start)
            found = _search(whole, used, bits, clip)
            scales[:, start // group], zeros[:, start // group] = found[0][:, 0], found[1][:, 0]
        errors = torch.empty_like(block)
        for j in range(stop - start):
            scale, zero = scales[:, homes[start + j]], zeros[:, homes[start + j]]
            code = _round(block[:, j], scale, zero, bits)
            codes[:, start + j] = code
            errors[:, j] = (block[:, j] - scale * (code - zero)) / U[start + j, start + j]
            block[:, j + 1 :] -= torch.outer(errors[:, j], U[start + j, start + j + 1 : stop])
        W[:, stop:] -= errors @ U[start:stop, stop:]
    codes = codes[:, permutation.argsort()].to(torch.uint8)
    return Quantized(codes, scales.half(), zeros.to(torch.uint8), bits, group)


def _checked(W: torch.Tensor, bits: int, group: int | None) -> tuple[torch.Tensor, int]:
    if bits not in BITS:
        raise InputError(f"{bits} bits: only {', '.join(map(str, BITS))} are there.")
    if W.ndim != 2 or W.numel() == 0:
        raise InputError(f"A weight of shape {tuple(W.shape)} cannot be quantized: it must be a matrix (out, in).")
    if group is not None and group < 1:
        raise InputError(f"Groups of {group}: give at least 1, or none for whole rows.")
    return W.detach().double(), min(group or W.shape[1], W.shape[1])


def _permutation(C: torch.Tensor, n_in: int, order: bool, device) -> torch.Tensor:
    return C.diagonal().argsort(descending=True).to(device) if order else torch.arange(n_in, device=device)


def _inverse_factor(C: torch.Tensor, damping: float, permutation: torch.Tensor) -> torch.Tensor:
    """U upper triangular with UᵀU = (C + damping · mean(diag C) · 1)⁻¹, rows and columns permuted."""
    C = C[permutation][:, permutation]
    mean = C.diagonal().mean()
    C = C + (damping * mean if mean > 0 else 1.0) * torch.eye(len(C), dtype=C.dtype, device=C.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(C))
    return torch.linalg.cholesky(inverse, upper=True)


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
    best = None
    for shrink in np.linspace(1, SMALLEST, SHRINKS) if clip else (1.0,):
        scale, zero = _grid(low * shrink, high * shrink, bits)
        codes = _round(blocks, scale[..., None], zero[..., None], bits)
        error = ((scale[..., None] * (codes - zero[..., None]) - blocks).square() * used).sum(-1)
        if best is None:
            best = error, scale, zero
        else:
            better = error < best[0]
            best = tuple(torch.where(better, new, old) for new, old in zip((error, scale, zero), best, strict=True))
    return best[1], best[2]


def _grid(low: torch.Tensor, high: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    steps = 2**bits - 1
    scale = ((high - low) / steps).clamp(max=torch.finfo(torch.float16).max).half().to(low)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, (-low / scale).round().clamp(0, steps)


def _round(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return (values / scale + zero).round().clamp(0, 2**bits - 1)
