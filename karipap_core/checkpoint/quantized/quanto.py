"""Weights that optimum-quanto stores as int8 or 8-bit floats: `weight._data` (out, in) holds q, `weight._scale` s for
each row or the whole weight, W = q · s. Nothing in config.json tells of them. Its packed int4 and int2 are stored in
groups without the shape of the weight, and are not opened.

Source: optimum.quanto's tensor.weights.qbytes and models.transformers_models (0.2.7).
"""

from karipap_core.checkpoint.quantized.fp8 import FLOATS8, drop_activations
from karipap_core.checkpoint.quantized.opening import Opening
from karipap_core.checkpoint.quantized.torchao import scaled
from karipap_core.errors import InputError

DATA, SCALE = "._data", "._scale"


def quanto(opening: Opening) -> str:
    """Opens the weights. Raises InputError where parts do not fit, and for packed ones."""
    drop_activations(opening)
    found: dict[str, None] = {}
    for base, _ in opening.bases(DATA):
        if base.endswith(DATA) or opening.stored[base + DATA].dtype not in ("I8", *FLOATS8):
            raise InputError(
                f"{opening.name} is quantized (quanto), and {base}{DATA} is packed without the shape of its weight: it "
                "is not opened here. Give the model in 16 or 32 bits, or quantized to int8 or float8."
            )
        found[scaled(opening, (base + DATA, base + SCALE, f"{base}._zero"), base, "quanto")] = None
    opening.alone(SCALE)
    return " and ".join(found)
