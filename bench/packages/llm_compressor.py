"""llm-compressor's GPTQ, layer by layer behind the quantized ones, columns by falling activations (its defaults)."""

from bench.packages import Asked, Rows, size

DISTRIBUTION = "llmcompressor"
AT = [{"bits": 4, "group": 64}, {"bits": 3, "group": 64}, {"bits": 2, "group": 32}]
VARIANTS = {  # actorder, propagate_error, and the observer of its weights
    "GPTQ": {"order": "static", "propagate": True, "observer": "memoryless_minmax"},
    "GPTQ, MSE scales": {"order": "static", "propagate": True, "observer": "memoryless_mse"},
    "GPTQ, no order": {"order": None, "propagate": True, "observer": "memoryless_minmax"},
    "GPTQ, dense prefix": {"order": "static", "propagate": False, "observer": "memoryless_minmax"},
    "GPTQ, no order, dense prefix": {"order": None, "propagate": False, "observer": "memoryless_minmax"},
}
EVERY = [{"method": method, **at} for method in VARIANTS for at in AT]
SETTINGS, MORE = EVERY[:6], EVERY[6:]


def quantize(asked: Asked, method: str, bits: int, group: int) -> Rows:
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    variant = VARIANTS[method]
    model = asked.model()
    weights = {
        "num_bits": bits,
        "type": "int",
        "symmetric": False,
        "strategy": "group",
        "group_size": group,
        "observer": variant["observer"],
    }
    groups = {"group_0": {"targets": list(asked.weights), "weights": weights}}
    oneshot(
        model=model,
        dataset=_loader(asked.windows),
        recipe=GPTQModifier(config_groups=groups, actorder=variant["order"]),
        num_calibration_samples=len(asked.windows),
        max_seq_length=asked.windows.shape[1],
        shuffle_calibration_samples=False,
        pipeline="sequential",
        propagate_error=variant["propagate"],
    )
    made = Rows()
    modules = dict(model.named_modules())
    for path, name in asked.weights.items():
        scheme = getattr(modules.get(path), "quantization_scheme", None)
        if scheme is None:
            continue
        held = {key: value for key, value in modules[path].state_dict().items() if key.startswith("weight")}
        stored = PackedQuantizationCompressor.compress(held, scheme)
        codes = size(stored["weight_packed"])
        others = sum(size(part) for key, part in stored.items() if key.startswith("weight_")) - codes
        read = PackedQuantizationCompressor.decompress(
            stored | {"weight_scale": stored["weight_scale"].float()}, scheme
        )
        made.add(name, read["weight"], bits, codes, others)
    return made


def _loader(windows):
    from torch import ones_like
    from torch.utils.data import DataLoader

    rows = [{"input_ids": row[None], "attention_mask": ones_like(row)[None]} for row in windows]
    return DataLoader(rows, batch_size=None)
