"""Whole numbers on a grid as compressed-tensors stores them.

A weight is Ŵ = scale · (code − zero), a scale and a zero point for each group of neighbouring columns of a row. Stored
either so (codes and zero points of b bits, packed), or with code − zero as one signed number (`symmetric`), which takes
a bit more unless the zero points lie in the middle, and needs no zero points.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes a second to import
    import torch

    from karipap_core.quantization.packing import Quantized

FINEST = 16  # columns of a group; below, scales and zero points take so much that a dense matrix is no larger


@dataclass(frozen=True)
class Scheme:
    """bits : of a stored number. group : columns that share a scale, None for a whole row. symmetric : no zero points.
    scales : their dtype."""

    bits: int
    group: int | None
    symmetric: bool
    scales: str = "float16"

    @property
    def format(self) -> str:
        """compressed-tensors' word. Zero points of 8 bits are stored unpacked: packed ones win no byte there."""
        return "int-quantized" if self.bits == 8 and not self.symmetric else "pack-quantized"

    @property
    def says(self) -> str:
        """In a few words, as a summary has it."""
        parts = "per row" if self.group is None else f"in groups of {self.group}"
        return f"{self.bits}-bit integers {parts}"

    def layout(self, shape: tuple[int, int]) -> "dict[str, tuple[torch.dtype, tuple[int, ...]]]":
        """The tensors of a weight (out, in), by the endings of their names: (dtype, shape)."""
        import torch

        rows, columns = shape
        groups = columns // (self.group or columns)
        found: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {
            "weight_scale": (getattr(torch, self.scales), (rows, groups))
        }
        if self.format == "int-quantized":
            return found | {"weight": (torch.int8, shape), "weight_zero_point": (torch.int8, (rows, groups))}
        found |= {
            "weight_packed": (torch.int32, (rows, -(-columns * self.bits // 32))),
            "weight_shape": (torch.int64, (2,)),
        }
        if not self.symmetric:
            found["weight_zero_point"] = (torch.int32, (-(-rows * self.bits // 32), groups))
        return found

    def bytes(self, shape: tuple[int, int]) -> int:
        """Bytes of `layout`."""
        return sum(dtype.itemsize * math.prod(size) for dtype, size in self.layout(shape).values())

    def tensors(self, grid: "Quantized") -> "dict[str, torch.Tensor]":
        """The tensors of `layout`, of a grid whose groups are the scheme's or wider."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        grid = regrouped(grid, self.group)
        found = {"weight_scale": grid.scales.to(getattr(torch, self.scales)).contiguous()}
        middle = 1 << (self.bits - 1)  # what is stored is signed: unsigned codes are this much more
        codes = signed(grid) if self.symmetric else grid.codes.to(torch.int16) - middle
        zeros = (grid.zeros.to(torch.int16) - middle).to(torch.int8)
        if self.format == "int-quantized":
            return found | {"weight": codes.to(torch.int8), "weight_zero_point": zeros}
        found["weight_packed"] = pack_to_int32(codes.to(torch.int8), self.bits)
        found["weight_shape"] = torch.tensor(grid.codes.shape)
        if not self.symmetric:
            found["weight_zero_point"] = pack_to_int32(zeros, self.bits, packed_dim=0).contiguous()
        return found


def group_of(grid: "Quantized") -> int | None:
    """Columns of a group that divide the row, the widest in which the same numbers can be stored; None: the row."""
    columns = grid.codes.shape[1]
    return None if grid.group >= columns else math.gcd(grid.group, columns)


def signed(grid: "Quantized") -> "torch.Tensor":
    """code − zero (out, in), int16."""
    import torch

    zeros = grid.zeros.repeat_interleave(grid.group, 1)[:, : grid.codes.shape[1]]
    return grid.codes.to(torch.int16) - zeros


def signed_bits(grid: "Quantized") -> int:
    """The bits b ≥ `grid.bits` in which every code − zero fits: −2^(b − 1) ≤ code − zero < 2^(b − 1)."""
    low, high = (int(end) for end in signed(grid).aminmax())
    return max(grid.bits, 1 + max((-low - 1).bit_length() if low < 0 else 0, high.bit_length() if high > 0 else 0))


def regrouped(grid: "Quantized", group: int | None) -> "Quantized":
    """The same numbers in groups of `group` columns (None: a row), which divide the row and the grid's own groups, but
    for its last one, which may be short."""
    columns = grid.codes.shape[1]
    width = group or columns
    if width == min(grid.group, columns):
        return replace(grid, group=width)
    scales, zeros = (
        each.repeat_interleave(grid.group // width, 1)[:, : columns // width] for each in (grid.scales, grid.zeros)
    )
    return replace(grid, scales=scales, zeros=zeros, group=width)


def quantization_config(schemes: dict[str, Scheme]) -> dict:
    """`quantization_config` of compressed-tensors for {module: how its weight is stored}."""
    names: dict[Scheme, list[str]] = {}
    for name, scheme in schemes.items():
        names.setdefault(scheme, []).append(name)
    groups = {}
    for number, (scheme, modules) in enumerate(names.items()):
        weights = {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "channel" if scheme.group is None else "group",
            "group_size": scheme.group,
        }
        groups[f"group_{number}"] = {"targets": modules, "weights": weights, "format": scheme.format}
    formats = {scheme.format for scheme in names}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }
