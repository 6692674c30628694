"""GPTQModel: GPTQ with groups in the order of their activations (its default), and EoRA's low-rank correction on it."""

import os
import tempfile
from pathlib import Path

from bench.packages import Asked, Rows, size

DISTRIBUTION = "gptqmodel"
AT = [{"bits": 4, "group": 64}, {"bits": 3, "group": 64}, {"bits": 2, "group": 32}]
SETTINGS = [{"method": method, **at} for method in ("GPTQ", "GPTQ, MSE scales", "GPTAQ") for at in AT]
SETTINGS += [{"method": "GPTQ + EoRA r8", **at, "rank": 8} for at in AT]
MORE = [{"method": "GPTQ, order of columns", **at} for at in AT]


def quantize(asked: Asked, method: str, bits: int, group: int, rank: int | None = None) -> Rows:
    # Without, it asks for more threads than it allows itself where there are one or two CPUs, and ends with an error.
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.config import GPTAQConfig

    rows = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in asked.windows]
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "quantized")
        variant: dict = {
            "GPTQ, MSE scales": {"mse": 2.0},
            "GPTAQ": {"gptaq": GPTAQConfig(device="cpu")},
            "GPTQ, order of columns": {"desc_act": True, "act_group_aware": False},
        }.get(method, {})
        config = QuantizeConfig(bits=bits, group_size=group, sym=False, offload_to_disk=False, device="cpu", **variant)
        model = GPTQModel.load(asked.folder, config)
        model.quantize(rows, batch_size=1)
        model.save(folder)
        adapter = None
        if rank is not None:
            adapter = _eora(asked, folder, str(Path(place) / "eora"), rank, rows)
        model = GPTQModel.load(folder, device="cpu", backend=BACKEND.TORCH, adapter=adapter)
        return _read(asked, model, bits)


def _eora(asked: Asked, folder: str, path: str, rank: int, rows: list[dict]):
    from gptqmodel import GPTQModel
    from gptqmodel.adapter.adapter import Lora

    GPTQModel.adapter.generate(
        adapter=Lora(path=path, rank=rank),
        model_id_or_path=asked.folder,
        quantized_model_id_or_path=folder,
        calibration_dataset=rows,
        calibration_dataset_concat_size=0,
    )
    return Lora(path=path, rank=rank)


def _read(asked: Asked, model, bits: int) -> Rows:
    made = Rows()
    modules = dict(model.model.named_modules())
    for path, name in asked.weights.items():
        layer = modules.get(path)
        if not hasattr(layer, "dequantize_weight"):
            continue
        matrix = layer.dequantize_weight().T.float()  # it computes with (in, out)
        others = sum(size(getattr(layer, part)) for part in ("qzeros", "scales", "g_idx"))
        more = {}
        if layer.adapter is not None:
            A, B = layer.adapter.lora_A, layer.adapter.lora_B
            matrix = matrix + (A.float() @ B.float()).T
            others += size(A) + size(B)
            more = {"parameters": matrix.numel() + A.numel() + B.numel()}
        made.add(name, matrix, bits, size(layer.qweight), others, **more)
    return made
