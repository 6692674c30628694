"""auto-round: rounding and clipping learnt by signed gradients, block by block (Cheng et al. 2023), by its defaults."""

import math

from bench.packages import Asked, Rows

DISTRIBUTION = "auto-round"
SETTINGS = [
    {"method": "SignRound", "bits": 4, "group": 64},
    {"method": "SignRound", "bits": 3, "group": 64},
    {"method": "SignRound", "bits": 2, "group": 32},
]


def quantize(asked: Asked, method: str, bits: int, group: int) -> Rows:
    from auto_round import AutoRound
    from torch.utils.data import DataLoader
    from transformers import AutoTokenizer

    model = asked.model()
    count, window = asked.windows.shape
    rounder = AutoRound(
        model,
        AutoTokenizer.from_pretrained(asked.folder),
        scheme=f"W{bits}A16",
        group_size=group,
        sym=False,
        dataset=DataLoader([{"input_ids": row} for row in asked.windows], batch_size=8),
        nsamples=count,
        seqlen=window,
        device_map="cpu",
    )
    model, _ = rounder.quantize()
    made = Rows()
    modules = dict(model.named_modules())
    for path, name in asked.weights.items():
        layer = modules.get(path)
        if not hasattr(layer, "scale"):
            continue
        # As its export packs it: codes and zero points at their bits in 32-bit words, scales in 16 bits.
        codes = 4 * math.ceil(layer.weight.shape[1] * bits / 32) * layer.weight.shape[0]
        others = 2 * layer.scale.numel() + math.ceil(layer.scale.numel() * bits / 8)
        made.add(name, layer.weight, bits, codes, others)
    return made
