"""Weights in 8-bit floats with their scales beside them, and the 4-bit floats that come with them.

`<weight>` holds F8 numbers q, and `<weight>_scale_inv` or `<weight>_scale` what they are multiplied by (DeepSeek calls
it the inverse of what was quantized with): w = q · s, with one s for a block of `weight_block_size` (the last one of a
row or column may be cut off), a row, a column or the whole weight. A byte of a weight that is stored as I8 or U8 holds
two 4-bit floats (E2M1), the lower one first; scales that are bytes are powers of two, 2^(byte − 127).

Sources: DeepSeek-V3's model card and its inference code (kernel), FBGEMM's quantize_fp8_row,
transformers.integrations.finegrained_fp8 (5.23).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.opening import Opening, by, read, spread
from karipap_core.checkpoint.tensorfile import TensorInfo

if TYPE_CHECKING:  # torch takes a second to import
    import torch

FLOATS8 = ("F8_E4M3", "F8_E5M2")
FLOATS4 = ("I8", "U8", "F4")
SCALES = ("F32", "BF16", "F16", "F8_E8M0", "U8")
ENDINGS = ("_scale_inv", "_scale")
# Of activations and of caches: nothing is multiplied by them before a model runs in 8 bits.
ACTIVATIONS: tuple[str, ...] = ("input_scale", "input_scale_ub", "activation_scale", "act_scale", "output_scale")
ACTIVATIONS += ("q_scale", "k_scale", "v_scale", "kv_scale", "prob_output_scale")
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)


def fp8(opening: Opening) -> str:
    """Opens the weights of the fp8 checkpoints of DeepSeek, MiniMax, Mistral, FBGEMM … Raises InputError where a weight
    and its scales do not fit."""
    blocks = opening.settings.get("weight_block_size")
    if blocks is None and opening.method in ("fp8", "mxfp8") and "weight_block_size" not in opening.settings:
        blocks = [1, 32] if opening.method == "mxfp8" else [128, 128]
    sizes = isinstance(blocks, list | tuple) and len(blocks) == 2 and all(type(b) is int and b > 0 for b in blocks)
    if blocks is not None and not sizes:
        raise opening.unreadable("weight_block_size", blocks, "not two whole numbers above 0")
    drop_activations(opening)
    found: dict[str, None] = {}
    for name, info in list(opening.stored.items()):
        scaled = next((scale for scale in scales_of(name) if scale in opening.stored), None)
        if info.dtype in FLOATS8 or (info.dtype in FLOATS4 and scaled):
            scale = scaled or f"{name}_scale_inv"  # which is missing, and said to be
            found[give(opening, name, scale, tuple(blocks) if blocks else None)] = None
    opening.alone(*(f"weight{ending}" for ending in ENDINGS), "_scale_inv")
    return " and ".join(found)


def drop_activations(opening: Opening) -> None:
    """Leaves out the scales of activations and caches."""
    opening.drop(*(f".{ending}" for ending in ACTIVATIONS))


def scales_of(name: str) -> list[str]:
    """The names that the scales of a weight may have."""
    return [f"{name}{ending}" for ending in ENDINGS] + [f"{name.removesuffix('weight')}scale"]


def give(opening: Opening, name: str, scale: str, blocks: tuple[int, int] | None) -> str:
    """Opens one weight, or one stack of weights, and says in words how it was stored."""
    info, scales = opening.stored[name], opening.part(scale, SCALES, name)
    packed = info.dtype in FLOATS4
    shape = (*info.shape[:-1], info.shape[-1] * 2) if packed and info.dtype != "F4" else info.shape
    if len(shape) not in (2, 3) or 0 in shape:
        raise opening.wrong(name, f"is {by(shape)}, not a matrix or a stack of them")
    grid = grid_of(shape, scales.shape)
    block = grid and block_of(shape, grid, blocks)
    if not grid or not block:
        raise opening.wrong(scale, f"is {by(scales.shape)} for a weight of {by(shape)}, no grid of blocks of it")

    def make(index: int | None) -> "torch.Tensor":
        codes, of = read(info, index), shape if index is None else shape[1:]
        values = e2m1(codes).reshape(of) if packed else codes.float()
        return values * spread(_part(scales, grid, index), of, block)

    opening.give(name, shape, make, [name, scale], slices=len(shape) == 3)
    kind = f"fp{4 if packed else 8}"
    if blocks and block == blocks:
        return f"{kind} ({blocks[0]} × {blocks[1]} blocks)"
    whole = grid[-2:] == (1, 1)
    return f"{kind} (per {'tensor' if whole else 'channel' if 1 in grid[-2:] else 'block'})"


def grid_of(shape: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """The scales' shape with as many dimensions as the weight has; None where they are of no such shape."""
    if len(scales) == len(shape):
        return scales if len(shape) == 2 or scales[0] in (1, shape[0]) else None
    if scales in ((), (1,)):
        return (1,) * len(shape)
    if len(shape) == 2:
        return (*scales, 1) if scales == shape[:1] else None
    return {shape[:1]: (shape[0], 1, 1), shape[:2]: (*shape[:2], 1)}.get(scales)


def block_of(shape: tuple[int, ...], grid: tuple[int, ...], blocks: tuple[int, int] | None) -> tuple[int, int] | None:
    """Rows and columns that one scale of a grid is for: the blocks that are stated where the grid is theirs (the last
    of them may be cut off), else equal parts. None where neither can be."""
    sides, counts = shape[-2:], grid[-2:]
    if blocks and all(-(-side // size) == count for side, size, count in zip(sides, blocks, counts, strict=True)):
        return blocks
    if 0 in counts or any(side % count for side, count in zip(sides, counts, strict=True)):
        return None
    return sides[0] // counts[0], sides[1] // counts[1]


def _part(scales: TensorInfo, grid: tuple[int, ...], index: int | None) -> "torch.Tensor":
    """The scales of a weight, or of one in a stack, as float32."""
    found = factors(read(scales)).reshape(grid)
    return found if index is None else found[index if len(found) > 1 else 0]


def factors(scales: "torch.Tensor") -> "torch.Tensor":
    """Scales as float32; bytes are exponents of two."""
    import torch

    return scales.view(torch.float8_e8m0fnu).float() if scales.dtype == torch.uint8 else scales.float()


def e2m1(codes: "torch.Tensor") -> "torch.Tensor":
    """4-bit floats, two to a byte, the lower one first: (…, n) → (…, 2 n), float32."""
    import torch

    codes, table = codes.view(torch.uint8).long(), torch.tensor(E2M1)
    return torch.stack([table[codes & 15], table[codes >> 4]], -1).flatten(-2)
