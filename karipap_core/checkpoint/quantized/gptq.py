"""Weights that GPTQ quantized, in the layout of AutoGPTQ and GPTQModel.

`qweight` (in · bits / 32, out) holds the codes q of a column below each other, the lowest bits first; with 3 bits, 32
of them are three words. `scales` (groups, out); `qzeros` (groups, out · bits / 32) the zeros z, side by side, each
stored as z − 1 in the first version of the format ("gptq") and as z in the second ("gptq_v2"); `g_idx` (in) the group
of each input, i // group_size where it is left out. W[o, i] = s[g, o] · (q[i, o] − z[g, o]) with g = g_idx[i].

With 2, 4 and 8 bits GPTQModel takes the ones of a whole word away at once, and adds them so: a zero of 0 borrows from
its neighbour, which adding 1 to each alone would leave one too small. AutoRound 0.15 packs so too, though its own layer
adds 1 to each alone. With 3 bits each is stored alone.

Sources: AutoGPTQ's qlinear_cuda_old, GPTQModel's nn_modules.qlinear.torch and utils.model
(convert_gptq_v1_to_v2_format), AutoRound's auto_round_extension.torch.
"""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.quantized.opening import HALVES, Opening, by, read, stream
from karipap_core.errors import InputError

if TYPE_CHECKING:  # torch takes a second to import
    import torch

BITS = (2, 3, 4, 8)
WORDS32 = ("I32", "U32")
ENDINGS = (".qweight", ".qzeros", ".scales", ".g_idx")


def gptq(opening: Opening, plus: int | None = None) -> str:
    """Opens the packed weights; `plus`: what is added to a stored zero, where `checkpoint_format` does not say it.

    Raises InputError where parts do not fit, or a setting is of another layout.
    """
    opening.setting("pack_dtype", "int32", "int32")
    bits, group = opening.setting("bits", 4, *BITS), opening.number("group_size", 128)
    plus = _added(opening) if plus is None else plus
    for base, _ in opening.bases(".qweight"):
        _open(opening, base, _bits_of(opening, base, bits), group, plus)
    opening.alone(*ENDINGS)
    return f"int{bits} (GPTQ, {f'g{group}' if group > 0 else 'per channel'})"


def _added(opening: Opening) -> int:
    """What is added to a stored zero: 1 in the first version of the format."""
    field = "checkpoint_format" if "checkpoint_format" in opening.settings else "format"
    said, versions = str(opening.settings.get(field) or "gptq"), {"gptq": 1, "gptq_v2": 0}
    if said not in versions:
        raise opening.unreadable(field, said, f"not one of {', '.join(versions)}")
    return versions[said]


def _bits_of(opening: Opening, base: str, bits: int) -> int:
    """The bits of one weight: `dynamic` (of AutoRound: `extra_config`) gives some modules others than the rest, by
    patterns of their names, which a stranger may have made to match for ever; the width of its zeros tells as well."""
    if not opening.settings.get("dynamic") and not opening.settings.get("extra_config"):
        return bits
    zeros, scales = opening.maybe(f"{base}.qzeros", WORDS32), opening.maybe(f"{base}.scales", HALVES)
    if zeros is None or scales is None or len(zeros.shape) != 2 or len(scales.shape) != 2 or 0 in scales.shape:
        return bits
    return next((b for b in (bits, *BITS) if -(-scales.shape[1] * b // 32) == zeros.shape[1]), bits)


def _open(opening: Opening, base: str, bits: int, group: int, plus: int) -> None:
    names = {ending: base + ending for ending in ENDINGS}
    codes = opening.part(names[".qweight"], WORDS32, base)
    scales = opening.part(names[".scales"], HALVES, names[".qweight"])
    zeros = opening.part(names[".qzeros"], WORDS32, names[".qweight"])
    order = opening.maybe(names[".g_idx"], ("I32", "I64"))
    if len(codes.shape) != 2 or 0 in codes.shape or codes.shape[0] * 32 % bits:
        raise opening.wrong(names[".qweight"], f"is {by(codes.shape)}, not in · {bits} / 32 × out")
    inputs, outputs = codes.shape[0] * 32 // bits, codes.shape[1]
    if order is not None:
        opening.shaped(names[".g_idx"], (inputs,))
    groups = -(-inputs // group) if group > 0 else 1
    opening.shaped(names[".scales"], (groups, outputs))
    opening.shaped(names[".qzeros"], (groups, -(-outputs * bits // 32)))

    def make(index: int | None) -> "torch.Tensor":
        import torch

        q = _down(read(codes), bits, inputs)  # (in, out), as all here: a group's row is taken whole
        stored = read(zeros)
        if plus and 32 % bits == 0:
            z = stream(stored.view(torch.int32) + ones(bits), bits, outputs)
        else:
            z = stream(stored, bits, outputs) + plus & (1 << bits) - 1  # a zero of 0 is stored as the largest code
        groups_of = torch.arange(inputs) // (group if group > 0 else inputs)
        groups_of = groups_of if order is None else checked(opening, names[".g_idx"], read(order), groups)
        return ((q - z[groups_of]).float().mul_(read(scales).float()[groups_of])).T

    opening.give(f"{base}.weight", (outputs, inputs), make, names.values(), linear=True)


def ones(bits: int) -> int:
    """A 1 in every number of a word of 32 bits."""
    return sum(1 << at for at in range(0, 32, bits))


def _down(words: "torch.Tensor", bits: int, items: int) -> "torch.Tensor":
    """`stream` of words that lie below each other: (words, out) → (items, out), int32."""
    import torch

    if 32 % bits:
        return stream(words.T.contiguous(), bits, items).T
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)[:, None]
    return (words.view(torch.int32)[:, None] >> shifts & (1 << bits) - 1).flatten(0, 1)[:items]


def checked(opening: Opening, name: str, groups_of: "torch.Tensor", groups: int) -> "torch.Tensor":
    """Numbers of groups that may be looked up: negative ones count from the end, as in the libraries."""
    found = groups_of.long()
    if found.numel() and not -groups <= int(found.min()) <= int(found.max()) < groups:
        raise InputError(
            f"{opening.name}: {name} names group {int(found.abs().max())} of {groups}: the file is damaged, fetch it "
            "again."
        )
    return found
