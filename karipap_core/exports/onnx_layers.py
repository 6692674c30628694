"""Linear layers as ONNX Runtime computes them: what stands in a model while its graph is taken.

Parameters here have shapes and no numbers; the export writes these beside the graph (`onnx_graph.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from karipap_core.networks.base import Spec
    from karipap_core.quantization.packing import Quantized

SIZES = (16, 32, 64, 128, 256)  # columns that a block of MatMulNBits may have
Attributes = dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]
NIBBLES = 4  # bits of a code of MatMulNBits here: its exact products of 2 and 8 bits unpack the matrix at every call
FLOAT32 = 1  # `accuracy_level` of MatMulNBits: activations stay float32; 4 would round them to 8 bits


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    """A parameter of that shape which takes no memory."""
    return nn.Parameter(torch.zeros((), dtype=dtype).expand(*shape), requires_grad=False)


@dataclass(frozen=True)
class Blocks:
    """A grid as `MatMulNBits` takes it: blocks of `size` neighbouring columns, `count` of them in a row; the last is
    filled up. codes (out, count, size / 2) uint8, two in a byte, the first in the lower half; scales (out, count)
    float16; zeros (out, ⌈count / 2⌉) uint8, packed alike."""

    size: int
    count: int


def blocks_of(bits: int, group: int, columns: int) -> Blocks | None:
    """The blocks for groups of so many columns: each is within one group. None where `MatMulNBits` has none, or is slow
    (codes of 8 bits)."""
    whole = group >= columns
    sizes = [size for size in SIZES if whole or group % size == 0]
    if bits > NIBBLES or not sizes:
        return None
    found = [Blocks(size, -(-columns // size)) for size in sizes]
    return min(found, key=lambda each: (each.count * (each.size + 5), each.count))  # half bytes, scale and zero


def in_blocks(grid: "Quantized", blocks: Blocks) -> dict[str, torch.Tensor]:
    """codes, scales and zeros of `Blocks`: the same values as the grid's."""
    rows, columns = grid.codes.shape
    first = torch.arange(blocks.count) * blocks.size // grid.group  # the group that a block lies in
    scales, zeros = grid.scales[:, first], grid.zeros[:, first]
    codes = functional.pad(grid.codes, (0, blocks.count * blocks.size - columns))
    return {
        "codes": _pairs(codes).reshape(rows, blocks.count, blocks.size // 2),
        "scales": scales.contiguous(),
        "zeros": _pairs(functional.pad(zeros, (0, blocks.count % 2))),
    }


def _pairs(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of 4 bits in a byte, the first in the lower half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


class InBlocks(nn.Module):
    """x ↦ Q x by the node `MatMulNBits`, with codes of 4 bits in blocks."""

    def __init__(self, rows: int, columns: int, blocks: Blocks) -> None:
        super().__init__()
        self.rows, self.columns, self.blocks = rows, columns, blocks
        self.codes = empty((rows, blocks.count, blocks.size // 2), torch.uint8)
        self.scales = empty((rows, blocks.count))
        self.zeros = empty((rows, -(-blocks.count // 2)), torch.uint8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        settings: Attributes = {"K": self.columns, "N": self.rows, "bits": NIBBLES, "block_size": self.blocks.size}
        return torch.onnx.ops.symbolic(
            "com.microsoft::MatMulNBits",
            (x, self.codes, self.scales, self.zeros),
            settings | {"accuracy_level": FLOAT32},
            dtype=x.dtype,
            shape=(*x.shape[:-1], self.rows),
            version=1,
        )


class Bytes(nn.Module):
    """x ↦ Q x with a code a byte, which ONNX Runtime makes a matrix of numbers when it loads the model: codes
    (out, in) uint8; scales and zeros (out, groups)."""

    def __init__(self, rows: int, columns: int, group: int) -> None:
        super().__init__()
        self.codes = empty((rows, columns), torch.uint8)
        self.scales = empty((rows, -(-columns // group)))
        self.zeros = empty((rows, -(-columns // group)), torch.uint8)
        self.group = group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, columns = self.codes.shape
        groups = self.scales.shape[1]
        codes = functional.pad(self.codes.float(), (0, groups * self.group - columns)).reshape(rows, groups, -1)
        numbers = (codes - self.zeros.float()[..., None]) * self.scales[..., None]
        return functional.linear(x, numbers.reshape(rows, -1)[:, :columns])


class Pair(nn.Module):
    """x ↦ L (R x), two products."""

    def __init__(self, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.left, self.right = empty((rows, rank)), empty((rank, columns))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(functional.linear(x, self.right), self.left)


class Network(nn.Module):
    """x ↦ Ŵ x by a network's own contraction with its cores."""

    def __init__(self, spec: "Spec") -> None:
        super().__init__()
        self.spec, self.cores = spec, nn.ParameterList([empty(shape) for shape in spec.core_shapes])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.spec.apply(x, list(self.cores))


def contracts(spec: "Spec") -> bool:
    """Whether a network's cores, as they are stored, cost less with one vector than the matrix that they stand for: all
    of them its own and in plain numbers."""
    own = all(spec.owned) and not spec.members and all(form is None for form in spec.formats)
    return own and spec.work(1) < spec.n_out * spec.n_in


class Stored(nn.Module):
    """x ↦ Ŵ x + b, Ŵ the sum of its parts: `grid` (`InBlocks` or `Bytes`), `pair`, both, or a `network`."""

    def __init__(
        self,
        bias: nn.Parameter | None,
        grid: nn.Module | None = None,
        pair: Pair | None = None,
        network: Network | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.pair, self.network = grid, pair, network
        self.register_parameter("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [part(x) for part in (self.grid, self.pair, self.network) if part is not None]
        found = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        return found if self.bias is None else found + self.bias
