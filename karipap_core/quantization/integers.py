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
from karipap_core.quantization.rounding import Columns, integer_grid, quantize_by_factor, quantize_rtn
from karipap_core.quantization.two_sided import Rows, quantize_two_sided, refitted

AT_ONCE = 2**19  # numbers that are multiplied with together
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

    def calibrated(
        self, W: torch.Tensor, columns: Columns | None, rows: Rows | None = None, refit: bool = True
    ) -> Quantized:
        """GPTQ (`rounding.quantize_by_factor`), or with `rows` its two-sided kin and the scales fitted again
        (two_sided.py); 8 bits are rounded to nearest: calibration has nothing left to win there. What is on the grid
        already stays."""
        if columns is None or self.bits == 8:
            return self.on_grid(W) or self.nearest(W)
        if (found := self.on_grid(W)) is not None:
            return found
        if rows is None:
            return quantize_by_factor(W, self.bits, self.group, columns.in_order())
        found = quantize_two_sided(W, self.bits, self.group, columns, rows)
        return refitted(W, found, columns, rows) if refit else found

    @torch.no_grad()
    def product(
        self, x: torch.Tensor, rows: int, columns: int, tensors: Mapping[str, torch.Tensor]
    ) -> torch.Tensor | None:
        """Some rows at a time, which stay in the cache, Σ scale (code − zero) x as Σ scale code x − Σ scale zero x. Of
        codes that share a byte the first ones, the second ones … are each multiplied with their own entries of x."""
        width, each = self.width(columns), 8 // self.bits
        if self.bits * each != 8 or columns % width or width % each:
            return None
        groups = columns // width
        codes, scales = tensors["codes"].reshape(rows, -1), tensors["scales"].float()
        zeros = unpack(tensors["zeros"], self.bits, (rows, groups)).float()
        parts = [x[:, place::each].contiguous() for place in range(each)]
        found = x.reshape(len(x), groups, width).sum(-1) @ (scales * zeros).T.neg()
        at_once = max(1, AT_ONCE // columns)
        room = x.new_empty(min(at_once, rows), columns // each)  # one for all: fresh memory costs as much as filling it
        for start in range(0, rows, at_once):
            these, scale = codes[start : start + at_once], scales[start : start + at_once]
            for place, part in enumerate(parts):
                numbers = room[: len(these)].copy_(self._place(these, place, each))
                if groups > 1:
                    numbers.view(len(scale), groups, -1).mul_(scale[..., None])
                product = part @ numbers.T
                found[:, start : start + at_once] += product if groups > 1 else product * scale.T
        return found

    def _place(self, codes: torch.Tensor, place: int, each: int) -> torch.Tensor:
        shift = 8 - self.bits * (place + 1)
        codes = codes >> shift if shift else codes
        return codes & (2**self.bits - 1) if place else codes

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
