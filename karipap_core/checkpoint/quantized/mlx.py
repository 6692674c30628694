"""Weights in the affine form of MLX: `weight` (out, in · bits / 32) holds codes q as words, the lowest bits first and
without gaps, `scales` and `biases` (out, groups; transformers calls them `qbiases`) a scale s and an offset b for each
group of a row: W = q · s + b. `group_size` and `bits` may be told for single modules, under their names.

Source: MLX' mx.quantize, mlx_lm.utils, transformers.integrations.metal_quantization (5.23).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.opening import HALVES, Opening, by, read, spread, stream

if TYPE_CHECKING:  # torch takes a second to import
    import torch

BITS = (2, 3, 4, 5, 6, 8)


def mlx(opening: Opening) -> str:
    """Opens the packed weights. Raises InputError where parts do not fit, or the mode is not affine."""
    opening.setting("mode", "affine", "affine")
    group = opening.setting("group_size", 64, 32, 64, 128)
    found: dict[int, None] = {}
    for base, _ in opening.bases(".scales"):
        found[_open(opening, base, group)] = None
    opening.alone(".qbiases", ".biases")
    return f"{' and '.join(f'int{bits}' for bits in found)} (MLX, g{group})"


def _open(opening: Opening, base: str, group: int) -> int:
    own = opening.settings.get(base)
    group = own["group_size"] if isinstance(own, dict) and own.get("group_size") in (32, 64, 128) else group
    names = [f"{base}.weight", f"{base}.scales", f"{base}.biases"]
    names[2] = f"{base}.qbiases" if f"{base}.qbiases" in opening.stored else names[2]
    codes, scales = opening.part(names[0], ("U32",), names[1]), opening.part(names[1], HALVES, base)
    offsets = opening.part(names[2], HALVES, names[0])
    if len(codes.shape) != 2 or 0 in codes.shape or len(scales.shape) != 2:
        raise opening.wrong(names[0], f"is {by(codes.shape)}, not out × in · bits / 32")
    shape = (codes.shape[0], scales.shape[1] * group)
    bits = next((bits for bits in BITS if shape[1] * bits == codes.shape[1] * 32), None)
    if bits is None:
        raise opening.wrong(names[0], f"is {by(codes.shape)}, which is no whole number of bits for {by(shape)} numbers")
    for name in names[1:]:
        opening.shaped(name, (shape[0], shape[1] // group))

    def make(index: int | None) -> "torch.Tensor":
        s, b = (spread(read(part).float(), shape, (1, group)) for part in (scales, offsets))
        return stream(read(codes), bits, shape[1]) * s + b

    opening.give(names[0], shape, make, names)
    return bits
