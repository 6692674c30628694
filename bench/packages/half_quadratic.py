"""HQQ: scales and zero points by half-quadratic optimization, without any text (Badri and Shaji 2023)."""

from bench.packages import Asked, Rows, size

DISTRIBUTION = "hqq"
# HQQ keeps both scale and zero point in 16 bits: of two groups the one is nearest to the other packages' bytes.
SIZES = [(4, 64), (4, 128), (3, 64), (3, 128), (2, 32), (2, 64)]
SETTINGS = [{"method": "half-quadratic", "bits": bits, "group": group} for bits, group in SIZES]


def quantize(asked: Asked, method: str, bits: int, group: int) -> Rows:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    made = Rows()
    for name, linear in asked.linears(asked.model()):
        settings = BaseQuantizeConfig(nbits=bits, group_size=group)
        layer = HQQLinear(linear, settings, device="cpu", del_orig=False)
        others = size(layer.meta["scale"]) + size(layer.meta["zero"])
        made.add(name, layer.dequantize(), bits, size(layer.W_q), others)
    if bits == 3:
        made.notes.append("HQQ keeps ten numbers of 3 bits in 32 bits.")
    return made
