"""Weights of BitNet, which are −1, 0 or 1: `weight` (out / 4, in) holds four rows' codes q + 1 a byte, the first
quarter of the rows in the lowest bits, and `weight_scale` one number s. W = q / s in a `bitlinear`, q · s in an
`autobitlinear`.

Source: transformers.integrations.bitnet (5.23).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.opening import HALVES, Opening, by, read

if TYPE_CHECKING:  # torch takes a second to import
    import torch


def bitnet(opening: Opening) -> str:
    """Opens the packed weights. Raises InputError where parts do not fit, or layers have norms of their own."""
    times = opening.setting("linear_class", "bitlinear", "bitlinear", "autobitlinear") == "autobitlinear"
    opening.setting("use_rms_norm", False, False)
    for name, info in list(opening.stored.items()):
        if not name.endswith(".weight") or info.dtype != "U8":
            continue
        scale = opening.part(f"{name}_scale", HALVES, name)
        if len(info.shape) != 2 or 0 in info.shape or scale.items != 1:
            raise opening.wrong(
                name, f"is {by(info.shape)} with {by(scale.shape)} for a scale, not out / 4 × in with one"
            )

        def make(index: int | None, info=info, scale=scale) -> "torch.Tensor":
            import torch

            packed, s = read(info), read(scale).float().reshape(())
            codes = torch.cat([packed >> shift & 3 for shift in (0, 2, 4, 6)]).float() - 1
            return codes * s if times else codes / s

        opening.give(name, (info.shape[0] * 4, info.shape[1]), make, [name, f"{name}_scale"])
    opening.alone(".weight_scale")
    return "ternary (BitNet)"
