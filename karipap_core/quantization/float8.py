"""`fp8`: 8-bit floating numbers (e4m3) with one 16-bit scale a row, Ŵ = scale · code."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from karipap_core.quantization.formats import Format, Shapes, register
from karipap_core.quantization.rounding import checked_matrix

SCALES = 8  # scales tried for each row, over one octave
LARGEST = torch.finfo(torch.float8_e4m3fn).max  # 448
UPPER_OCTAVE = (208, 224, 240, 256, 288, 320, 352, 384, 416, 448)  # where the largest code of a row can lie


@dataclass(frozen=True)
class Float8:
    """codes (out, in) float8_e4m3fn; scales (out, 1) float16."""

    codes: torch.Tensor
    scales: torch.Tensor

    @property
    def bytes(self) -> int:
        """Bytes on disk: one for each code, two for each row."""
        return self.codes.numel() + 2 * self.scales.numel()

    def dense(self) -> torch.Tensor:
        """Ŵ (out, in) float32."""
        return self.scales.float() * self.codes.float()

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored: `codes` float8_e4m3fn (out, in), `scales` float16 (out, 1)."""
        return {"codes": self.codes.contiguous(), "scales": self.scales.contiguous()}


@register
@dataclass(frozen=True)
class Float8Format(Format):
    """e4m3: a sign, 4 bits of exponent, 3 of fraction."""

    pattern: ClassVar[str] = "fp8"
    names: ClassVar[tuple[str, ...]] = ("fp8",)

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        return cls(found[0])

    def shapes(self, rows: int, columns: int) -> Shapes:
        return {"codes": ((rows, columns), torch.float8_e4m3fn), "scales": ((rows, 1), torch.float16)}

    def read(self, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]) -> Float8:
        return Float8(tensors["codes"], tensors["scales"])

    def nearest(self, W: torch.Tensor) -> Float8:
        return quantize_fp8(W)

    def on_grid(self, W: torch.Tensor) -> Float8 | None:
        """A row's largest code lies in the upper octave, by how scales are chosen (`quantize_fp8`), or its scale at
        an end of the range."""
        W = checked_matrix(W)
        largest = W.abs().amax(1, keepdim=True)
        scales, missing = torch.ones_like(largest), largest > 0
        for code in UPPER_OCTAVE:
            scale = in_range(largest / code).double()
            values = W / scale
            fits = (values.float().to(torch.float8_e4m3fn).double() == values).all(1, keepdim=True) & missing
            scales, missing = torch.where(fits, scale, scales), missing & ~fits
        return None if missing.any() else Float8((W / scales).float().to(torch.float8_e4m3fn), scales.half())

    def some_rows(
        self, tensors: Mapping[str, torch.Tensor], matrix: tuple[int, int], entries: int, index: torch.Tensor
    ) -> Float8 | None:
        if matrix[0] % entries:
            return None
        codes, scales = (tensors[name].reshape(entries, -1)[index] for name in ("codes", "scales"))
        return Float8(codes.reshape(-1, matrix[1]), scales.reshape(-1, 1))


def in_range(scales: torch.Tensor) -> torch.Tensor:
    """As float16, neither subnormal, which would lose digits, nor infinite."""
    limits = torch.finfo(torch.float16)
    return scales.clamp(limits.smallest_normal, limits.max).half()


def quantize_fp8(W: torch.Tensor) -> Float8:
    """e4m3 with one 16-bit scale a row, W (out, in) of any float dtype.

    Where in its octave a row's largest entry falls matters to how all are rounded: of `SCALES` scales from
    max|w| / 448 to twice that the one with the least squared error of the row is kept.
    """
    W = checked_matrix(W)
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None
    for step in range(SCALES):
        scale = in_range(W.abs().amax(1, keepdim=True) / LARGEST * 2 ** (step / SCALES))
        codes = (W / scale.double()).clamp(-LARGEST, LARGEST).float().to(torch.float8_e4m3fn)
        error = (scale.double() * codes.double() - W).square().sum(1, keepdim=True)
        if found is not None:
            better = error < found[0]
            codes = torch.where(better, codes.view(torch.uint8), found[2].view(torch.uint8)).view(codes.dtype)
            error, scale = torch.where(better, error, found[0]), torch.where(better, scale, found[1])
        found = error, scale, codes
    assert found is not None  # SCALES is not 0
    return Float8(found[2], found[1])
