"""Weights that AWQ quantized to 4 bits, in the two layouts that its library documents.

"gemm": `qweight` (in, out / 8) and `qzeros` (groups, out / 8), in each word the outputs 0 2 4 6 1 3 5 7 of eight, the
lowest bits first; `scales` (groups, out). "gemv": `qweight` (out, in / 8), in order; `qzeros` (out, words) and `scales`
(out, 8 · words), of which the first numbers are those of the groups and the rest fills up. W[o, i] = s · (q[i, o] − z).

Source: AutoAWQ's awq.modules.linear.gemm and gemv.
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.gptq import WORDS32
from karipap_core.checkpoint.quantized.opening import HALVES, Opening, by, read, spread, stream
from karipap_core.checkpoint.tensorfile import TensorInfo

if TYPE_CHECKING:  # torch takes a second to import
    import torch

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the outputs of a word, from its lowest bits on
EACH = 8  # codes in a word
ENDINGS = (".qweight", ".qzeros", ".scales")


def awq(opening: Opening, layout: str | None = None) -> str:
    """Opens the packed weights; `layout`: gemm or gemv, where `version` or `format` does not say it.

    Raises InputError where parts do not fit, or a setting is of another layout.
    """
    settings = opening.settings
    field = "version" if settings.get("version") else "format"
    layout = layout or str(settings.get("version") or settings.get("format") or "gemm").lower()
    layout = "gemm" if layout in ("exllama", "ipex") else layout
    if layout not in ("gemm", "gemv"):
        raise opening.unreadable(field, layout, "not one of gemm, gemv")
    opening.setting("w_bit" if "w_bit" in settings else "bits", 4, 4)
    group = opening.number("q_group_size" if "q_group_size" in settings else "group_size", 128)
    for base, _ in opening.bases(".qweight"):
        (_gemm if layout == "gemm" else _gemv)(opening, base, group)
    opening.alone(*ENDINGS)
    return f"int4 (AWQ, {f'g{group}' if group > 0 else 'per channel'})"


def _parts(opening: Opening, base: str, sides: str) -> tuple[list[str], TensorInfo, TensorInfo, TensorInfo]:
    """The names of a weight's parts, and its codes, zeros and scales; `sides`: what the codes' shape stands for."""
    names = [base + ending for ending in ENDINGS]
    codes = opening.part(names[0], WORDS32, base)
    zeros, scales = opening.part(names[1], WORDS32, names[0]), opening.part(names[2], HALVES, names[0])
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise opening.wrong(names[0], f"is {by(codes.shape)}, not {sides}")
    return names, codes, zeros, scales


def _gemm(opening: Opening, base: str, group: int) -> None:
    names, codes, zeros, scales = _parts(opening, base, "in × out / 8")
    inputs, outputs = codes.shape[0], codes.shape[1] * EACH
    group = group if group > 0 else inputs
    groups = -(-inputs // group)
    opening.shaped(names[1], (groups, outputs // EACH))
    opening.shaped(names[2], (groups, outputs))

    def make(index: int | None) -> "torch.Tensor":
        q, z = (_in_order(stream(read(part), 4, outputs)) for part in (codes, zeros))
        return ((q - spread(z, q.shape, (group, 1))) * spread(read(scales).float(), q.shape, (group, 1))).T

    opening.give(f"{base}.weight", (outputs, inputs), make, names, linear=True)


def _in_order(codes: "torch.Tensor") -> "torch.Tensor":
    """Codes as they follow in words of eight, with each word's in the order of the outputs."""
    import torch

    places = torch.tensor([ORDER.index(output) for output in range(EACH)])
    return codes.unflatten(-1, (-1, EACH))[..., places].flatten(-2)


def _gemv(opening: Opening, base: str, group: int) -> None:
    names, codes, zeros, scales = _parts(opening, base, "out × in / 8")
    outputs, inputs = codes.shape[0], codes.shape[1] * EACH
    group = group if group > 0 else inputs
    groups = -(-inputs // group)
    width = zeros.shape[1] if len(zeros.shape) == 2 else 0
    opening.shaped(names[1], (outputs, max(width, -(-groups // EACH))))
    opening.shaped(names[2], (outputs, width * EACH))

    def make(index: int | None) -> "torch.Tensor":
        q = stream(read(codes), 4, inputs)
        z, s = stream(read(zeros), 4, groups), read(scales)[:, :groups].float()
        return (q - spread(z, q.shape, (1, group))) * spread(s, q.shape, (1, group))

    opening.give(f"{base}.weight", (outputs, inputs), make, names, linear=True)
