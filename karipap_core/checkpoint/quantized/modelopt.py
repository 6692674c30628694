"""Weights that NVIDIA's Model Optimizer wrote: fp8 with `weight_scale`, and NVFP4, whose bytes hold two 4-bit floats
and whose `weight_scale` (out, in / 16) are 8-bit floats: W = q · weight_scale · weight_scale_2.

Source: modelopt's torch.export.quant_utils and torch.quantization.qtensor.nvfp4_tensor (0.47).
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.fp8 import FLOATS8, drop_activations, e2m1, give
from karipap_core.checkpoint.quantized.opening import Opening, by, read, spread

if TYPE_CHECKING:  # torch takes a second to import
    import torch

GROUP = 16
ENDINGS = (".weight_scale", ".weight_scale_2")


def modelopt(opening: Opening) -> str:
    """Opens the packed weights. Raises InputError where parts do not fit, or the algorithm is another."""
    algorithm = opening.setting("quant_algo", "FP8", "FP8", "NVFP4", "FP8_PER_CHANNEL_PER_TOKEN", "MIXED_PRECISION")
    for name in opening.stored:
        if name.endswith(".pre_quant_scale"):
            raise opening.unreadable("quant_algo", algorithm, f"with activations scaled before the weight ({name})")
    drop_activations(opening)
    found: dict[str, None] = {}
    for name, info in list(opening.stored.items()):
        if name.endswith(".weight") and info.dtype in FLOATS8:
            give(opening, name, f"{name}_scale", None)
            found["fp8"] = None
        elif name.endswith(".weight") and info.dtype == "U8":
            _nvfp4(opening, name)
            found["NVFP4"] = None
    opening.alone(*ENDINGS)
    return f"{' and '.join(found)} (Model Optimizer)"


def _nvfp4(opening: Opening, name: str) -> None:
    info, scales = opening.stored[name], opening.part(f"{name}_scale", ("F8_E4M3",), name)
    whole = opening.part(f"{name}_scale_2", ("F32",), name)
    if len(info.shape) != 2 or 0 in info.shape or info.shape[1] * 2 % GROUP:
        raise opening.wrong(name, f"is {by(info.shape)}, not out × in / 2 bytes")
    shape = (info.shape[0], info.shape[1] * 2)
    opening.shaped(f"{name}_scale", (shape[0], shape[1] // GROUP))
    if whole.items != 1:
        raise opening.wrong(f"{name}_scale_2", f"is {by(whole.shape)}, not one number")

    def make(index: int | None) -> "torch.Tensor":
        each = read(scales).float() * read(whole).reshape(())
        return e2m1(read(info)) * spread(each, shape, (1, GROUP))

    opening.give(name, shape, make, [name, f"{name}_scale", f"{name}_scale_2"])
