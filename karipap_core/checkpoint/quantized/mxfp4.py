"""Experts in MXFP4, as gpt-oss stores them: `<stack>_blocks` (experts, out, in / 32, 16) holds two 4-bit floats a byte,
the lower one first, and `<stack>_scales` (experts, out, in / 32) the exponent of two of each 32 of them, plus 127.
The opened stack is (experts, in, out), as the model computes with it.

Sources: the OCP Microscaling formats 1.0, gpt_oss.torch.weights, transformers.integrations.mxfp4 (5.23).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.fp8 import e2m1, factors
from karipap_core.checkpoint.quantized.opening import Opening, by, read
from karipap_core.checkpoint.tensorfile import TensorInfo

if TYPE_CHECKING:  # torch takes a second to import
    import torch

BLOCKS, SCALES = "_blocks", "_scales"


def mxfp4(opening: Opening) -> str:
    """Opens the stacks of experts. Raises InputError where blocks and scales do not fit."""
    for base, _ in opening.bases(BLOCKS):
        blocks = opening.part(base + BLOCKS, ("U8",), base)
        scales = opening.part(base + SCALES, ("U8", "F8_E8M0"), base + BLOCKS)
        if len(blocks.shape) != 4 or blocks.shape[3] != 16 or 0 in blocks.shape:
            raise opening.wrong(base + BLOCKS, f"is {by(blocks.shape)}, not experts × out × in / 32 × 16")
        opening.shaped(base + SCALES, blocks.shape[:3])
        count, rows, groups, _ = blocks.shape
        parts = [base + BLOCKS, base + SCALES]
        opening.give(base, (count, groups * 32, rows), _maker(blocks, scales), parts, slices=True)
    opening.alone(SCALES)
    return "MXFP4"


def _maker(blocks: TensorInfo, scales: TensorInfo):
    def make(index: int | None) -> "torch.Tensor":
        numbers = e2m1(read(blocks, index)) * factors(read(scales, index))[..., None]
        return numbers.flatten(-2).transpose(-1, -2)

    return make
