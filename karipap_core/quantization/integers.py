"""`int8`, `int4`, `int3`, `int2`: whole numbers in groups of neighbouring columns, each group with a scale.

`int4g128` sets the group; without it a group is that of `GROUPS`. See packing.py for the numbers and rounding.py for
how they are found.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch

from karipap_core.quantization.formats import Format, Shapes, register
from karipap_core.quantization.packing import Quantized, unpack
from karipap_core.quantization.rounding import integer_grid, quantize_by_factor, quantize_rtn

GROUPS = {8: None, 4: 64, 3: 64, 2: 32}  # columns that share a scale where a name does not say; None: the whole row


@register
@dataclass(frozen=True)
class Integers(Format):
    """Codes of `bits` bits, packed without gaps; for each `group` columns (None: the whole row) a 16-bit scale and a
    zero point of `bits` bits."""

    bits: int
    group: int | None

    pattern: ClassVar[str] = r"int([2348])(?:g(\d*[1-9]\d*))?"
    names: ClassVar[tuple[str, ...]] = ("int8", "int4", "int3", "int2")
    calibrates: ClassVar[bool] = True

    @classmethod
    def named(cls, found: re.Match[str]) -> Self:
        bits = int(found[1])
        return cls(found[0], bits, int(found[2]) if found[2] else GROUPS[bits])

    def width(self, columns: int) -> int:
        """Columns of a group in a matrix of so many."""
        return min(self.group or columns, columns)

    def shapes(self, rows: int, columns: int) -> Shapes:
        groups = -(-columns // self.width(columns))
        return {
            "codes": ((-(-rows * columns * self.bits // 8),), torch.uint8),
            "scales": ((rows, groups), torch.float16),
            "zeros": ((-(-rows * groups * self.bits // 8),), torch.uint8),
        }

    def read(self, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]) -> Quantized:
        codes = unpack(tensors["codes"], self.bits, (rows, columns))
        zeros = unpack(tensors["zeros"], self.bits, tuple(tensors["scales"].shape))
        return Quantized(codes, tensors["scales"], zeros, self.bits, self.width(columns))

    def nearest(self, W: torch.Tensor) -> Quantized:
        return quantize_rtn(W, self.bits, self.group)

    def on_grid(self, W: torch.Tensor) -> Quantized | None:
        return integer_grid(W, self.bits, self.group)

    def calibrated(self, W: torch.Tensor, U: torch.Tensor | None) -> Quantized:
        """GPTQ (`rounding.quantize_by_factor`); 8 bits are rounded to nearest: calibration has nothing left to win
        there. What is on the grid already stays."""
        if U is None or self.bits == 8:
            return self.on_grid(W) or self.nearest(W)
        return self.on_grid(W) or quantize_by_factor(W, self.bits, self.group, U)

    def some_rows(
        self, tensors: Mapping[str, torch.Tensor], matrix: tuple[int, int], entries: int, index: torch.Tensor
    ) -> Quantized | None:
        """Where every entry begins at a whole byte."""
        (rows, columns), each = matrix, matrix[0] // entries
        if rows % entries or each * columns * self.bits % 8:
            return None
        groups = tensors["scales"].shape[1]
        codes, scales = (tensors[name].reshape(entries, -1)[index] for name in ("codes", "scales"))
        scales = scales.reshape(-1, groups)
        zeros = unpack(tensors["zeros"], self.bits, (entries, each * groups))[index].reshape(scales.shape)
        codes = unpack(codes.flatten(), self.bits, (len(scales), columns))
        return Quantized(codes, scales, zeros, self.bits, self.width(columns))
