"""Quantized checkpoints opened to the weights that their codes stand for, weight by weight, by the rules of the library
that wrote them. Nothing is read but headers until a weight is asked for."""

from collections.abc import Callable
from typing import Any

from karipap_core.checkpoint.quantized.awq import awq
from karipap_core.checkpoint.quantized.bitnet import bitnet
from karipap_core.checkpoint.quantized.bitsandbytes import bitsandbytes
from karipap_core.checkpoint.quantized.compressed_tensors import compressed_tensors
from karipap_core.checkpoint.quantized.fp8 import fp8
from karipap_core.checkpoint.quantized.gptq import gptq
from karipap_core.checkpoint.quantized.mlx import mlx
from karipap_core.checkpoint.quantized.modelopt import modelopt
from karipap_core.checkpoint.quantized.mxfp4 import mxfp4
from karipap_core.checkpoint.quantized.opening import Opening
from karipap_core.checkpoint.quantized.quanto import quanto
from karipap_core.checkpoint.quantized.torchao import torchao
from karipap_core.checkpoint.tensorfile import TensorInfo
from karipap_core.errors import InputError

# Files that say how the tensors beside them are quantized (GPTQ's, AWQ's, Model Optimizer's, quanto's): they would be
# wrong beside opened ones.
SAID_BESIDE = {"quantize_config.json", "quant_config.json", "hf_quant_config.json", "quanto_qmap.json"}

# packing_format of AutoRound's, in the layout of GPTQ → what is added to a stored zero.
AUTO_ROUND = {"auto_gptq": 1, "gptq": 1, "auto_round": 0, "gptqmodel": 0}


def auto_round(opening: Opening) -> str:
    """AutoRound's weights, which it packs as GPTQ's or AWQ's libraries do, as `packing_format` says.

    Up to 0.4 there was `backend` in its place, say auto_round:gptq:exllamav2: without the word gptq zeros are as they
    are (`dynamic_import_quantLinear_for_packing` of auto-round 0.3.1 and 0.4.7).
    """
    said, backend = opening.settings.get("packing_format"), str(opening.settings.get("backend") or "auto")
    if not said and backend.startswith("auto_round:"):
        packing = next((name for name in ("gptq", "awq") if name in backend), "auto_round")
    else:
        packing = str(said or "auto_gptq").removeprefix("auto_round:")
    if packing in ("auto_awq", "awq"):
        return awq(opening, "gemm")
    if packing not in AUTO_ROUND:
        raise opening.unreadable("packing_format", packing, f"not one of auto_awq, {', '.join(AUTO_ROUND)}")
    return gptq(opening, AUTO_ROUND[packing])


# quant_method → what takes the packed weights out of an `Opening`, and says in words how they were stored.
READERS: dict[str, Callable[[Opening], str]] = {
    "fp8": fp8,
    "mxfp8": fp8,
    "fbgemm_fp8": fp8,
    "mxfp4": mxfp4,
    "gptq": gptq,
    "awq": awq,
    "bitsandbytes": bitsandbytes,
    "compressed-tensors": compressed_tensors,
    "auto-round": auto_round,
    "intel/auto-round": auto_round,
    "modelopt": modelopt,
    "torchao": torchao,
    "quanto": quanto,
    "metal": mlx,
    "bitnet": bitnet,
}


def open_quantized(
    config: dict[str, Any], settings: dict[str, Any], stored: dict[str, TensorInfo], name: str
) -> tuple[dict[str, Any], dict[str, TensorInfo], str, dict[str, Any]]:
    """(config without a word of quantization, the opened tensors, words such as "int4 (GPTQ, g128)", what besides the
    stored tensors decides about their values) of a checkpoint with a quantization_config.

    Raises InputError for a method that is not opened here, and where parts of a weight are missing or do not fit.
    """
    method = settings.get("quant_method")
    if method not in READERS:
        said = method or "by a method that is not named"
        raise InputError(f"{name} is quantized ({said}), which is not opened here: give the model in 16 or 32 bits.")
    opening = Opening(config, settings, stored, name)
    words = READERS[method](opening)
    if not opening.made:
        raise InputError(
            f"The config of {name} says that it is quantized ({method}), and no tensor of it is: take "
            "quantization_config out of config.json, or fetch the model again."
        )
    return opening.plain_config, opening.tensors, words, {"quantization_config": settings, "dtype": opening.dtype}
