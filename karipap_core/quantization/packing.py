"""Codes of 1 to 8 bits packed into bytes, and a matrix of them with its scales (`Quantized`)."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Quantized:
    """Ŵ = scale · (code − zero), a scale and a zero point for each group of neighbouring columns of one row.

    codes (out, in) uint8; scales (out, groups) float16; zeros (out, groups) uint8; the last group may be short.
    """

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
        (rows, columns), groups = self.codes.shape, self.scales.shape[1]
        codes = functional.pad(self.codes, (0, -columns % self.group)).reshape(rows, groups, self.group).float()
        codes = codes.sub_(self.zeros[..., None]).mul_(self.scales[..., None])
        return codes.reshape(rows, groups * self.group)[:, :columns]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored: `codes` and `zeros` packed (1-D uint8), `scales` float16 (out, groups)."""
        return {
            "codes": pack(self.codes, self.bits),
            "scales": self.scales.contiguous(),
            "zeros": pack(self.zeros, self.bits),
        }


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes < 2^bits (any shape, uint8), one behind the other without gaps, most significant bit first: (n,) uint8."""
    flat = codes.detach().cpu().contiguous().numpy().reshape(-1, 1)
    return torch.from_numpy(np.packbits(np.unpackbits(flat, axis=1)[:, 8 - bits :]))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The codes that `pack` was given, as uint8 of `shape`, on the device of `packed`.

    A word is the fewest whole bytes that hold whole codes: one, or three where a code has 3 bits.
    """
    width = bits // math.gcd(bits, 8)
    words = functional.pad(packed, (0, -packed.numel() % width)).reshape(-1, width)
    word = words[:, 0] if width == 1 else words[:, 0].to(torch.int32 if width < 4 else torch.int64)
    for k in range(1, width):
        word = word << 8 | words[:, k]
    shifts = range(8 * width - bits, -1, -bits)
    codes = torch.stack([((word >> shift) & (2**bits - 1)).to(torch.uint8) for shift in shifts], 1)
    return codes.reshape(-1)[: math.prod(shape)].reshape(shape)
