"""torchao's weight-only formats: `IntxWeightOnlyConfig` (any bits, rounded to nearest), and its int4 and int8 ones."""

from bench.packages import Asked, Rows, size

DISTRIBUTION = "torchao"
SETTINGS = [
    {"method": "Intx", "bits": 4, "group": 64},
    {"method": "Intx", "bits": 3, "group": 64},
    {"method": "Intx", "bits": 2, "group": 64},
    {"method": "Intx", "bits": 2, "group": 32},
    {"method": "Intx HQQ", "bits": 4, "group": 64},
    {"method": "Intx HQQ", "bits": 3, "group": 64},
    {"method": "Intx HQQ", "bits": 2, "group": 32},
    {"method": "Int4WeightOnly", "bits": 4, "group": 64},
    {"method": "Int8WeightOnly", "bits": 8, "group": None},
]


def quantize(asked: Asked, method: str, bits: int, group: int | None) -> Rows:
    from torchao.quantization import quantize_

    made = Rows()
    for name, linear in asked.linears(asked.model()):
        quantize_(linear, _config(method, bits, group))
        weight = linear.weight
        parts = {part: getattr(weight, part, None) for part in ("qdata", "scale", "zero_point")}
        others = sum(size(part) for key, part in parts.items() if key != "qdata" and part is not None)
        made.add(name, weight.dequantize(), bits, size(parts["qdata"]), others)
    if method.startswith("Intx"):
        made.notes.append(f"On a CPU torchao keeps each number of {bits} bits in 8.")
    return made


def _config(method: str, bits: int, group: int | None):
    import torch
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig, IntxWeightOnlyConfig
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.quant_primitives import MappingType
    from torchao.quantization.quantize_.workflows import IntxChooseQParamsAlgorithm

    if method == "Int8WeightOnly":
        return Int8WeightOnlyConfig()
    if method == "Int4WeightOnly":
        return Int4WeightOnlyConfig(group_size=group)
    by_hqq = method == "Intx HQQ"  # which has scales alone: its zero points are all 0
    return IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(group),
        mapping_type=MappingType.SYMMETRIC if by_hqq else MappingType.ASYMMETRIC,
        intx_choose_qparams_algorithm=getattr(IntxChooseQParamsAlgorithm, "HQQ_SCALE_ONLY" if by_hqq else "AFFINE"),
    )
