"""Whole numbers on a grid as ggml's blocks of 32, and which of its types holds a grid best.

A block of 32 neighbouring columns of a row holds codes q and a scale d in float16, of Q4_1 a minimum m as well:

    type   | bytes | value        | codes
    Q4_0   | 18    | d (q − 8)    | 0 … 15
    Q4_1   | 20    | d q + m      | 0 … 15
    Q5_0   | 22    | d (q − 16)   | 0 … 31
    Q8_0   | 34    | d q          | −128 … 127

A grid is Ŵ = s (code − zero). Codes of 2 and 3 bits differ from their zero by at most 7, so that Q4_0 holds them as
they are; codes of 4 bits are Q4_1 with m = −s · zero, which float16 rounds in its twelfth bit; those of 8 bits are Q8_0
as they are wherever the 32 differ from their zero by no more than a signed byte holds, and elsewhere are rounded.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from karipap_core.exports.exporter import error_of

if TYPE_CHECKING:
    from karipap_core.quantization.packing import Quantized

BLOCK = 32
BYTES = {"Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q8_0": 34}  # of a block
CLOSE = 1e-3  # a relative error that a smaller type may have: half of what rounding to bfloat16 does
SIGNED = {"Q4_0": (-8, 7), "Q5_0": (-16, 15)}
LEAST_OF_BYTE, MOST_OF_BYTE = -128, 127


@dataclass(frozen=True)
class Grid:
    """A matrix (rows, columns) in blocks: codes − zeros as `codes` (rows, blocks, 32) int16, with `zeros` and `scales`
    (rows, blocks) of each, int16 and float32."""

    codes: torch.Tensor
    zeros: torch.Tensor
    scales: torch.Tensor
    bits: int

    def dense(self) -> torch.Tensor:
        """Ŵ (rows, columns) float32."""
        return (self.codes.float() * self.scales[..., None]).flatten(1)


def in_blocks(grid: "Quantized", laid_out=lambda tensor: tensor) -> Grid | None:
    """A grid in blocks, None where 32 neighbouring columns do not share a scale and a zero point. laid_out: a matrix
    (rows, columns) → that with its rows or columns in the order of the file."""
    rows, columns = grid.codes.shape
    if columns % BLOCK:
        return None

    def each(tensor: torch.Tensor) -> torch.Tensor:
        """What a group has, for each of its columns, as blocks."""
        wide = tensor.repeat_interleave(grid.group, 1)[:, :columns]
        return laid_out(wide).reshape(rows, -1, BLOCK)

    zeros, scales = each(grid.zeros.to(torch.int16)), each(grid.scales.float())
    if not all(torch.equal(part, part[..., :1].expand_as(part)) for part in (zeros, scales)):
        return None
    codes = laid_out(grid.codes.to(torch.int16)).reshape(rows, -1, BLOCK) - zeros
    return Grid(codes, zeros[..., 0], scales[..., 0], grid.bits)


def fits(grid: Grid, kind: str) -> bool:
    """Whether a type has codes for all of a grid's numbers."""
    if kind == "Q4_1":
        return grid.bits <= 4 and bool((grid.scales * grid.zeros).half().isfinite().all())
    least, most = SIGNED.get(kind, (-(1 << 15), 1 << 15))
    return bool(grid.codes.min() >= least and grid.codes.max() <= most)


def best_of(grid: Grid) -> str:
    """The smallest type that holds a grid to within `CLOSE`; Q8_0 where none does."""
    wanted = grid.dense()
    for kind in ("Q4_0", "Q4_1", "Q5_0"):
        if fits(grid, kind) and error_of(values(grid, kind), wanted) <= CLOSE:
            return kind
    return "Q8_0"


def values(grid: Grid, kind: str) -> torch.Tensor:
    """What ggml makes of `packed`, (rows, columns) float32."""
    if kind == "Q4_1":
        least = -(grid.scales * grid.zeros).half().float()
        return ((grid.codes + grid.zeros[..., None]).float() * grid.scales[..., None] + least[..., None]).flatten(1)
    if kind == "Q8_0":
        codes, scales = as_bytes(grid)
        return (codes.float() * scales[..., None]).flatten(1)
    return grid.dense()


def packed(grid: Grid, kind: str) -> np.ndarray:
    """The blocks of a matrix, (rows, bytes) uint8."""
    rows = len(grid.codes)
    if kind == "Q8_0":
        codes, scales = as_bytes(grid)
        parts = [halves(scales), codes.to(torch.int8).numpy().view(np.uint8)]
        return np.concatenate(parts, -1).reshape(rows, -1)
    if kind == "Q4_1":
        codes, parts = grid.codes + grid.zeros[..., None], [halves(grid.scales), halves(-(grid.scales * grid.zeros))]
    else:
        codes, parts = grid.codes - SIGNED[kind][0], [halves(grid.scales)]
    q = codes.numpy().astype(np.uint8)
    if kind == "Q5_0":
        parts.append(np.packbits(q >> 4, axis=-1, bitorder="little"))
    low, high = q[..., : BLOCK // 2] & 15, q[..., BLOCK // 2 :] & 15
    return np.concatenate([*parts, low | high << 4], -1).reshape(rows, -1)


def halves(numbers: torch.Tensor) -> np.ndarray:
    """(rows, blocks) as float16, two bytes each."""
    return numbers.half().numpy()[..., None].view(np.uint8)


def as_bytes(grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """A grid as (codes, scales) of Q8_0: its own where a block's numbers are signed bytes, else the nearest of a scale
    that reaches to the largest."""
    beyond = (grid.codes.amax(-1) / MOST_OF_BYTE).maximum(grid.codes.amin(-1) / LEAST_OF_BYTE).clamp_min(1)
    scales = (grid.scales * beyond).half().float()
    ratio = torch.where(beyond > 1, grid.scales / scales, torch.ones_like(scales))
    codes = (grid.codes.float() * ratio[..., None]).round().clamp(LEAST_OF_BYTE, MOST_OF_BYTE)
    return codes, scales
