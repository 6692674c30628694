"""Weights that bitsandbytes quantized, to 4-bit floats in blocks or to rows of int8.

4 bits: `weight` holds two codes a byte, the higher bits first, in whatever dtype it is stored as; `weight.quant_map`
the 16 numbers that the codes stand for, `weight.absmax` what each block of them is multiplied by, and
`weight.quant_state.bitsandbytes__nf4` (or fp4) JSON with the weight's shape and the blocks' size. With double
quantization absmax is bytes too: absmax = nested_quant_map[byte] · nested_absmax + nested_offset.
8 bits: `weight` (out, in) holds q and `SCB` (out) the largest number of each row: W = q · SCB / 127.

Source: bitsandbytes' functional (QuantState, int8_vectorwise_dequant) and nn.modules.
"""

import json
import math
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.quantized.opening import Opening, by, read
from karipap_core.checkpoint.tensorfile import TensorInfo, chunks

if TYPE_CHECKING:  # torch takes a second to import
    import torch

STATE = ".quant_state.bitsandbytes__"
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map")
LONGEST = 1 << 16  # bytes of a quant_state
SCALE = 7.874015718698502e-3  # 1 / 127, as the library writes it
ROWS = 0  # what weight_format says of a weight that lies row by row


def bitsandbytes(opening: Opening) -> str:
    """Opens the packed weights. Raises InputError where parts do not fit."""
    kinds: dict[str, None] = {}
    for kind in ("nf4", "fp4"):
        for name, _ in opening.bases(STATE + kind):
            _four_bits(opening, name, kind)
            kinds[kind] = None
    for base, _ in opening.bases(".SCB"):
        _rows(opening, base)
        kinds["int8"] = None
    opening.alone(*PARTS)
    for name, info in opening.stored.items():
        if name not in opening.used and name.endswith("weight") and info.dtype in ("I8", "U8"):
            opening.part(f"{name}{STATE}nf4" if info.dtype == "U8" else f"{name.removesuffix('weight')}SCB", (), name)
    return f"{' and '.join(kinds)} (bitsandbytes)"


def _four_bits(opening: Opening, name: str, kind: str) -> None:
    state = _state(opening, f"{name}{STATE}{kind}")
    shape, block = tuple(state["shape"]), state["blocksize"]
    codes = opening.part(name, opening.stored[name].dtype if name in opening.stored else (), f"{name}{STATE}{kind}")
    items, count = math.prod(shape), -(-math.prod(shape) // block)
    if codes.size != -(-items // 2):
        raise opening.wrong(name, f"has {codes.size} bytes where {by(shape)} numbers of 4 bits take {-(-items // 2)}")
    opening.part(f"{name}.quant_map", ("F32",), name)
    opening.shaped(f"{name}.quant_map", (16,))
    nested = "nested_blocksize" in state
    opening.part(f"{name}.absmax", ("U8",) if nested else ("F32",), name)
    opening.shaped(f"{name}.absmax", (count,))
    if nested:
        for part, size in (("nested_absmax", -(-count // state["nested_blocksize"])), ("nested_quant_map", 256)):
            opening.part(f"{name}.{part}", ("F32",), name)
            opening.shaped(f"{name}.{part}", (size,))
    parts = {part: opening.stored.get(f"{name}{part}") for part in PARTS}

    def make(index: int | None) -> "torch.Tensor":
        import torch

        packed = read(codes).flatten().view(torch.uint8).long()
        places = torch.stack([packed >> 4, packed & 15], -1).flatten()[:items]
        numbers = _numbers(parts, ".quant_map")[places]
        largest = _absmax(parts, state).repeat_interleave(block)[:items]
        made = (numbers * largest).reshape(shape)
        return made if index is None else made[index]

    names = [name, f"{name}{STATE}{kind}", *(f"{name}{part}" for part in PARTS)]
    opening.give(name, shape, make, names, linear=len(shape) == 2)


def _numbers(parts: dict[str, TensorInfo | None], part: str) -> "torch.Tensor":
    info = parts[part]
    assert info is not None  # looked for when the weight was opened
    return read(info)


def _absmax(parts: dict[str, TensorInfo | None], state: dict[str, Any]) -> "torch.Tensor":
    """What each block is multiplied by, float32."""
    stored = _numbers(parts, ".absmax")
    if "nested_blocksize" not in state:
        return stored
    outer = _numbers(parts, ".nested_absmax").repeat_interleave(state["nested_blocksize"])[: len(stored)]
    return _numbers(parts, ".nested_quant_map")[stored.long()] * outer + state["nested_offset"]


def _state(opening: Opening, name: str) -> dict[str, Any]:
    """The checked JSON of a quant_state: shape, blocksize and, where absmax is quantized too, nested_blocksize and
    nested_offset."""
    info = opening.part(name, ("U8",), name)
    try:
        state = json.loads(b"".join(chunks(info))) if info.size <= LONGEST else None
    except ValueError:
        state = None
    found: dict[str, Any] = state if isinstance(state, dict) else {}
    keys = [key for key in ("blocksize", "nested_blocksize") if key == "blocksize" or key in found]
    sides = found.get("shape")
    sound = (
        isinstance(sides, list)
        and all(type(side) is int and side > 0 for side in sides)
        and all(type(found.get(key)) is int and found[key] > 0 for key in keys)
        and (len(keys) == 1 or type(found.get("nested_offset")) in (int, float))
    )
    if not sound:
        raise opening.wrong(name, "is no description of a weight of bitsandbytes (shape, blocksize)")
    return found


def _rows(opening: Opening, base: str) -> None:
    name, largest = f"{base}.weight", opening.part(f"{base}.SCB", ("F32", "F16", "BF16"), base)
    codes = opening.part(name, ("I8",), f"{base}.SCB")
    order = opening.maybe(f"{base}.weight_format", ("U8", "I8", "I32", "I64"))
    if order is not None and any(b"".join(chunks(order))):
        raise opening.wrong(f"{base}.weight_format", f"says another order than row by row ({ROWS}), which is not read")
    if len(codes.shape) != 2 or 0 in codes.shape:
        raise opening.wrong(name, f"is {by(codes.shape)}, not out × in")
    opening.shaped(f"{base}.SCB", codes.shape[:1])

    def make(index: int | None) -> "torch.Tensor":
        return read(codes) * read(largest).float()[:, None] * SCALE

    opening.give(name, codes.shape, make, [name, f"{base}.SCB", f"{base}.weight_format"], linear=True)
