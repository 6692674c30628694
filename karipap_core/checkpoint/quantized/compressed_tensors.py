"""Weights in the formats of compressed-tensors (llm-compressor, vLLM), told from each other by what is stored.

`weight_packed` as words (pack-quantized): codes of 1 to 8 bits in a row, the lowest bits first and without gaps; older
versions put as many into a word as fit into it whole. A code stands for the number that is 2^(bits − 1) less.
`weight_zero_point`, where there is one, is packed in the same way along the outputs, and may be plain int8.
`weight` as int8 or F8 (int-quantized, float-quantized, naive-quantized, mxfp8-quantized): the numbers themselves.
`weight_packed` as bytes: 4-bit floats, two a byte (nvfp4-pack-quantized, mxfp4-pack-quantized), or 6-bit ones, four in
three bytes (mxfp6-pack-quantized). W = (q − z) · s, or · (s / weight_global_scale), with one s for a row, a group of a
row (`weight_g_idx` names each column's, where columns are not in order), a block or the whole weight.

Source: compressed-tensors' compressors/ and quantization.lifecycle.forward (0.20).
"""

from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.quantized.fp8 import ACTIVATIONS, FLOATS8, SCALES, block_of, e2m1, factors, grid_of
from karipap_core.checkpoint.quantized.gptq import checked
from karipap_core.checkpoint.quantized.opening import Opening, by, read, spread, stream
from karipap_core.checkpoint.tensorfile import chunks

if TYPE_CHECKING:  # torch takes a second to import
    import torch

FORMATS: tuple[str, ...] = ("int-quantized", "float-quantized", "naive-quantized", "pack-quantized", "mixed-precision")
FORMATS += ("nvfp4-pack-quantized", "mxfp4-pack-quantized", "mxfp6-pack-quantized", "mxfp8-quantized", "dense")
BESIDE: tuple[str, ...] = ("input_zero_point", "input_global_scale", "output_zero_point")
BESIDE += ("q_zero_point", "k_zero_point", "v_zero_point")
ENDINGS = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".weight_global_scale")
PARTS = ("scale", "zero_point", "global_scale", "g_idx", "shape")
ALL_SCALES = (*SCALES, "F8_E4M3")


def compressed_tensors(opening: Opening) -> str:
    """Opens the packed weights. Raises InputError where parts do not fit, or a format is another."""
    opening.setting("format", "dense", *FORMATS)
    sparsity = opening.settings.get("sparsity_config")
    sparse = sparsity.get("format", "dense") if isinstance(sparsity, dict) else "dense"
    if sparse != "dense":
        raise opening.unreadable("sparsity_config.format", sparse, "not dense")
    groups = _groups(opening)
    opening.drop(*(f".{ending}" for ending in (*ACTIVATIONS, *BESIDE)))
    found: dict[str, None] = {}
    for name, info in list(opening.stored.items()):
        if name.endswith(".weight_packed"):
            base = name.removesuffix("_packed")
            found[_give(opening, name, base, *_packed(opening, name, base, groups))] = None
        elif info.dtype in (*FLOATS8, "I8") and name.endswith(".weight"):
            if len(info.shape) not in (2, 3) or 0 in info.shape:
                raise opening.wrong(name, f"is {by(info.shape)}, not a matrix or a stack of them")
            found[_give(opening, name, name, 8, info.shape, groups)] = None
    opening.alone(*ENDINGS)
    return " and ".join(found)


def _groups(opening: Opening) -> list[dict[str, Any]]:
    """What config_groups say of weights. Which of them is for which weight shows in what is stored: their targets are
    patterns, and a stranger's pattern may take for ever to match."""
    groups = opening.settings.get("config_groups") or {}
    listed: list[Any] = list(groups.values()) if isinstance(groups, dict) else [None]
    if not all(isinstance(group, dict) and isinstance(group.get("weights") or {}, dict) for group in listed):
        raise opening.unreadable("config_groups", groups, "not a table of tables that say weights")
    return [group["weights"] for group in listed if group.get("weights")]


def _packed(
    opening: Opening, name: str, base: str, groups: list[dict[str, Any]]
) -> tuple[int, tuple[int, ...], list[dict[str, Any]]]:
    """(bits of a code, shape of the weight, groups that may be its) of what is stored as words or bytes."""
    info = opening.part(name, ("I32", "U8"), base)
    if len(info.shape) != 2 or 0 in info.shape:
        raise opening.wrong(name, f"is {by(info.shape)}, not a matrix")
    rows, width = info.shape
    if info.dtype == "U8":
        sizes = {4: width * 2, 6: width * 4 // 3}
    else:
        stored = opening.part(f"{base}_shape", ("I64", "I32"), name)
        opening.shaped(f"{base}_shape", (2,))
        data, each = b"".join(chunks(stored)), stored.size // 2
        shape = [int.from_bytes(data[start : start + each], "little", signed=True) for start in (0, each)]
        if shape[0] != rows or shape[1] < 1:
            raise opening.wrong(name, f"is {by(info.shape)}, which a weight of {by(tuple(shape))} is not packed to")
        sizes = {bits: shape[1] for bits in range(1, 9) if width in _widths(shape[1], bits)}
    fit = [group for group in groups if group.get("num_bits") in sizes]
    if not fit:
        said = " or ".join(str(group.get("num_bits")) for group in groups) or "an unknown number of"
        raise opening.wrong(name, f"is {by(info.shape)}, which codes of {said} bits do not take")
    bits = fit[0]["num_bits"]
    return bits, (rows, sizes[bits]), [group for group in fit if group["num_bits"] == bits]


def _widths(items: int, bits: int) -> tuple[int, int]:
    """Words that a row of codes takes: without gaps, and with as many in each as fit into it whole."""
    return -(-items * bits // 32), -(-items // (32 // bits))


def _give(
    opening: Opening, name: str, base: str, bits: int, shape: tuple[int, ...], groups: list[dict[str, Any]]
) -> str:
    """Opens one weight of that shape, and says in words how it was stored."""
    info, parts = opening.stored[name], {part: f"{base}_{part}" for part in PARTS}
    scales = opening.part(parts["scale"], ALL_SCALES, name)
    grid = grid_of(shape, scales.shape)
    block = grid and _block(shape, grid, groups)
    if not grid or not block:
        raise opening.wrong(parts["scale"], f"is {by(scales.shape)} for {by(shape)} numbers, no grid of blocks of them")
    zeros = opening.maybe(parts["zero_point"], ("I8", "U8", "I32", *FLOATS8))
    if zeros is not None:
        packed = [(words, grid[-1]) for words in _widths(shape[0], bits)] if zeros.dtype == "I32" else []
        opening.shaped(parts["zero_point"], *packed, scales.shape)
    whole = opening.maybe(parts["global_scale"], ("F32", "F16", "BF16"))
    if whole is not None and whole.items != 1:
        raise opening.wrong(parts["global_scale"], f"is {by(whole.shape)}, not one number")
    order = opening.maybe(parts["g_idx"], ("I32", "I64"))
    if order is not None:
        opening.shaped(parts["g_idx"], shape[-1:])

    gaps = info.dtype == "I32" and info.shape[1] != _widths(shape[1], bits)[0]

    def make(index: int | None) -> "torch.Tensor":
        s = factors(read(scales)).reshape(grid)
        s = s if whole is None else s / read(whole).float().reshape(())
        z = None if zeros is None else _zeros(read(zeros), bits, grid, gaps)
        across = block
        columns = None if order is None else read(order)
        if columns is not None and bool((columns >= 0).all()):  # all of them -1: columns are in order
            columns, across = checked(opening, parts["g_idx"], columns, grid[-1]), (block[0], 1)
            s, z = s[..., columns], None if z is None else z[..., columns]
        numbers = _codes(read(info), bits, shape, gaps)
        numbers = numbers if z is None else numbers - spread(z, shape, across)
        made = numbers * spread(s, shape, across)
        return made if index is None else made[index]

    opening.give(base, shape, make, [name, *parts.values()])
    kind = "int" if info.dtype in ("I32", "I8") else "nvfp" if whole is not None else "fp"
    size = "blocks" if block[0] > 1 else f"g{block[1]}" if grid[-1] > 1 else "per channel"
    return f"{kind}{bits} (compressed-tensors, {'per tensor' if grid[-2:] == (1, 1) else size})"


def _block(shape: tuple[int, ...], grid: tuple[int, ...], groups: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Rows and columns that one scale is for: as a group of the config says where that fits what is stored."""
    for group in groups:
        pair = group.get("block_structure")
        rows, columns = pair if isinstance(pair, list) and len(pair) == 2 else (1, group.get("group_size"))
        if type(rows) is not int or type(columns) is not int or rows <= 0 or columns <= 0:
            continue
        if block_of(shape, grid, (rows, columns)) == (rows, columns):
            return rows, columns
    return block_of(shape, grid, None)


def _codes(stored: "torch.Tensor", bits: int, shape: tuple[int, ...], gaps: bool) -> "torch.Tensor":
    """The numbers of a weight before they are scaled, float32."""
    import torch

    if stored.dtype == torch.int32:
        return (_unpacked(stored, bits, shape[1], gaps) - (1 << (bits - 1))).float()
    if stored.dtype == torch.uint8:
        return e2m1(stored) if bits == 4 else _e2m3(stored)
    return stored.float()


def _unpacked(words: "torch.Tensor", bits: int, items: int, gaps: bool) -> "torch.Tensor":
    """Codes in words of 32 bits: one stream of them or, with `gaps`, in each word as many as fit into it whole."""
    if gaps:
        return stream(words[..., None], bits, 32 // bits).flatten(-2)[..., :items]
    return stream(words, bits, items)


def _zeros(stored: "torch.Tensor", bits: int, grid: tuple[int, ...], gaps: bool) -> "torch.Tensor":
    """What is taken off the numbers, one for each scale, float32."""
    import torch

    if stored.dtype == torch.int32:
        return (_unpacked(stored.T, bits, grid[0], gaps) - (1 << (bits - 1))).T.float()
    return stored.float().reshape(grid)


def _e2m3(stored: "torch.Tensor") -> "torch.Tensor":
    """6-bit floats, four in three bytes: (…, 3 n) → (…, 4 n), float32."""
    import torch

    low, middle, high = stored.int().unflatten(-1, (-1, 3)).unbind(-1)
    words = low | middle << 8 | high << 16
    codes = torch.stack([words >> shift & 63 for shift in (0, 6, 12, 18)], -1).flatten(-2)
    exponent, mantissa = codes >> 3 & 3, (codes & 7) / 8
    size = torch.where(exponent == 0, mantissa, (1 + mantissa) * 2.0 ** (exponent - 1))
    return torch.where(codes & 32 != 0, -size, size)
