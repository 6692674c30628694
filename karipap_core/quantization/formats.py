"""Formats of few bits: how numbers are named, packed and unpacked."""

import math
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from karipap_core.errors import InputError

BITS = (2, 3, 4, 8)
GROUPS = {8: None, 4: 64, 3: 64, 2: 32}  # inputs that share a scale where a format does not say; None: the whole row
FORMAT = re.compile(r"int([2348])(?:g(\d+))?")
FP8_SCALES = 8  # scales tried for each row, over one octave


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


def stored_shapes(name: str, rows: int, columns: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """{tensor: (shape, dtype)} of what a matrix (rows, columns) is stored as in the format `name`."""
    form = Format.parse(name)
    if form.floating:
        return {"codes": ((rows, columns), torch.float8_e4m3fn), "scales": ((rows, 1), torch.float16)}
    groups = -(-columns // min(form.group or columns, columns))
    return {
        "codes": ((-(-rows * columns * form.bits // 8),), torch.uint8),
        "scales": ((rows, groups), torch.float16),
        "zeros": ((-(-rows * groups * form.bits // 8),), torch.uint8),
    }


def from_tensors(name: str, rows: int, columns: int, tensors: dict[str, torch.Tensor]) -> Quantized | Float8:
    """The matrix (rows, columns) of the format `name` that `tensors()` was stored from, on the tensors' device.

    Raises InputError naming a tensor that is missing or of another shape or dtype than the format's.
    """
    for key, (shape, dtype) in stored_shapes(name, rows, columns).items():
        if key not in tensors:
            raise InputError(f"Tensor {key!r} of a matrix in {name} is missing.")
        if tuple(tensors[key].shape) != shape or tensors[key].dtype != dtype:
            raise InputError(
                f"Tensor {key!r} of a matrix {rows} × {columns} in {name} is {tuple(tensors[key].shape)} "
                f"{tensors[key].dtype}: it must be {shape} {dtype}."
            )
    form = Format.parse(name)
    if form.floating:
        return Float8(tensors["codes"], tensors["scales"])
    codes = unpack(tensors["codes"], form.bits, (rows, columns))
    zeros = unpack(tensors["zeros"], form.bits, tuple(tensors["scales"].shape))
    return Quantized(codes, tensors["scales"], zeros, form.bits, min(form.group or columns, columns))


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes < 2^bits (any shape, uint8), one behind the other without gaps, most significant bit first: (n,) uint8."""
    flat = codes.detach().cpu().contiguous().numpy().reshape(-1, 1)
    return torch.from_numpy(np.packbits(np.unpackbits(flat, axis=1)[:, 8 - bits :]))


def unpack(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """The codes that `pack` was given, as uint8 of `shape`, on the device of `packed`.

    A word is the fewest whole bytes that hold whole codes: one, or three where a code has 3 bits.
    """
    width = 3 if bits == 3 else 1
    words = functional.pad(packed, (0, -packed.numel() % width)).reshape(-1, width)
    word = words[:, 0] if width == 1 else sum(words[:, k].int() << 8 * (width - 1 - k) for k in range(width))
    shifts = range(8 * width - bits, -1, -bits)
    codes = torch.stack([((word >> shift) & (2**bits - 1)).to(torch.uint8) for shift in shifts], 1)
    return codes.reshape(-1)[: math.prod(shape)].reshape(shape)
