#!/bin/sh
# transformers 5.23.0 cannot load, with its default settings, what compressed-tensors 0.20.1 itself makes of a model in 4
# bits with zero points (pack-quantized, symmetric=False, as llm-compressor's W4A16_ASYM). Expected: from_pretrained reads
# it, as it reads the symmetric one. Seen: on the empty model compressed-tensors packs the weight and not the zero point
# (compressors/pack_quantized/base.py, the branch for the meta device), so that every stored weight_zero_point is called a
# MISMATCH and the load ends in a RuntimeError. "dequantize": true in quantization_config, or
# CompressedTensorsConfig(dequantize=True), reads the same folder rightly. Karipap's exports carry that field
# (karipap_core/exports).
#
#     sh findings/compressed-tensors-zero-points.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 transformers==5.23.0 compressed-tensors==0.20.1 accelerate numpy
cd "$folder"
cat > probe.py <<'PYTHON'
import sys

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM


def folder_of(symmetric: bool) -> tuple[str, torch.Tensor]:
    """A tiny Llama in 4 bits, made and written by compressed-tensors and transformers; its logits."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).eval()
    weights = {"num_bits": 4, "symmetric": symmetric, "strategy": "group", "group_size": 32}
    config = QuantizationConfig(
        config_groups={"all": {"targets": ["Linear"], "weights": weights}}, format="pack-quantized", ignore=["lm_head"]
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if (scheme := getattr(module, "quantization_scheme", None)) is not None:
            groups = module.weight.detach().unflatten(1, (-1, 32))
            scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), scheme.weights)
            module.weight_scale.data, module.weight_zero_point.data = scale, zero.to(torch.int8)
    compressor = ModelCompressor.from_pretrained_model(model, quantization_format="pack-quantized")
    compressor.compress_model(model)
    name = "symmetric" if symmetric else "zero-points"
    model.save_pretrained(name)
    compressor.update_config(name)
    return name


def loaded(name: str, **settings) -> str:
    try:
        AutoModelForCausalLM.from_pretrained(name, **settings)
    except RuntimeError as error:
        return f"RuntimeError: {error}"
    return "loaded"


seen = {symmetric: loaded(folder_of(symmetric)) for symmetric in (True, False)}
around = loaded("zero-points", quantization_config=CompressedTensorsConfig(dequantize=True))
print("symmetric:                  ", seen[True])
print("with zero points:           ", seen[False])
print("and dequantize=True:        ", around)
same = seen[True] == around == "loaded" and "ignore_mismatched_sizes" in seen[False]
sys.exit(0 if same else 1)
PYTHON
"$folder/venv/bin/python" probe.py
