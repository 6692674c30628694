"""optimum-quanto: integers of 4 and 2 bits rounded to nearest; it has no 3 bits, and its groups are of 128."""

from bench.packages import Asked, Rows, size

DISTRIBUTION = "optimum-quanto"
SETTINGS = [
    {"method": "qint4", "bits": 4, "group": 128},
    {"method": "qint2", "bits": 2, "group": 128},
]


def quantize(asked: Asked, method: str, bits: int, group: int) -> Rows:
    from types import SimpleNamespace

    from optimum import quanto
    from optimum.quanto.library.extensions.cpp import ext
    from torch import nn

    # In place of its C++ that takes codes apart, as its own Python does: it would first be compiled, a minute,
    # and where that is interrupted a lock stays, on which the next process waits for ever.
    ext._lib = SimpleNamespace(unpack=unpacked)
    made = Rows()
    for name, linear in asked.linears(asked.model()):
        holder = nn.Sequential(linear)
        quanto.quantize(holder, weights=getattr(quanto, method))
        quanto.freeze(holder)
        parts = {key: part for key, part in holder.state_dict().items() if key.startswith("0.weight")}
        codes = sum(size(part) for key, part in parts.items() if key.endswith("_data"))
        others = sum(size(part) for key, part in parts.items() if not key.endswith("_data"))
        made.add(name, holder[0].weight.dequantize(), bits, codes, others)
    return made


def unpacked(packed, bits: int):
    """The codes of a uint8 tensor that holds 8 / bits of them in each byte, the first part in the lowest bits."""
    from torch import cat

    return cat([packed >> bits * part & (1 << bits) - 1 for part in range(8 // bits)])
