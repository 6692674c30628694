"""Weights that torchao stores as integers or 8-bit floats of their own: `_weight_qdata` (out, in) holds q,
`_weight_scale` s and, for integers, `_weight_zero_point` z, one for a row, a group of it, a block or the whole weight:
W = (q − z) · s. Its packed 4-bit tensors are laid out for one kind of GPU each and are not opened.

Source: torchao's quantization/quantize_/workflows (Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor) and
prototype/safetensors (0.18).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.fp8 import FLOATS8, block_of, grid_of
from karipap_core.checkpoint.quantized.opening import HALVES, Opening, by, read, spread
from karipap_core.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import
    import torch

QDATA, PARTS = "_qdata", ("_qdata", "_scale", "_zero_point")


def torchao(opening: Opening) -> str:
    """Opens the weights. Raises InputError where parts do not fit, and for packed ones."""
    found: dict[str, None] = {}
    for base, _ in opening.bases(QDATA):
        stem, _, short = base.rpartition("._")
        if opening.stored[base + QDATA].dtype not in ("I8", *FLOATS8):
            raise InputError(
                f"{opening.name} is quantized (torchao), and {base}{QDATA} is packed for one kind of GPU, which is not "
                "opened here: give the model in 16 or 32 bits, or quantized to int8 or float8."
            )
        names = (f"{base}{QDATA}", f"{base}_scale", f"{base}_zero_point")
        found[scaled(opening, names, f"{stem}.{short}", "torchao")] = None
    opening.alone(*(f"._weight{part}" for part in PARTS))
    return " and ".join(found)


def scaled(opening: Opening, names: tuple[str, str, str], target: str, library: str) -> str:
    """Gives the weight `target` of numbers, scales and zeros (where there are any); says in words how it was stored."""
    codes, scales = opening.stored[names[0]], opening.part(names[1], HALVES, names[0])
    shape = codes.shape
    grid = grid_of(shape, scales.shape) if len(shape) in (2, 3) and 0 not in shape else None
    block = grid and block_of(shape, grid, None)
    if not grid or not block:
        raise opening.wrong(names[1], f"is {by(scales.shape)} for a weight of {by(shape)}, no grid of blocks of it")
    zeros = opening.maybe(names[2], ("I8", "I16", "I32", *HALVES))
    if zeros is not None:
        opening.shaped(names[2], scales.shape)

    def make(index: int | None) -> "torch.Tensor":
        numbers = read(codes).float()
        if zeros is not None:
            numbers = numbers - spread(read(zeros).float().reshape(grid), shape, block)
        made = numbers * spread(read(scales).float().reshape(grid), shape, block)
        return made if index is None else made[index]

    opening.give(target, shape, make, names)
    kind = "int8" if codes.dtype == "I8" else "fp8"
    return (
        f"{kind} ({library}, {'per tensor' if grid[-2:] == (1, 1) else 'per channel' if grid[-1] == 1 else 'groups'})"
    )
