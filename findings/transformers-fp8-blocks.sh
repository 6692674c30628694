#!/bin/sh
# transformers 5.23.0 opens fp8 weights by blocks that it takes from the shapes, and passes over weight_block_size of
# config.json. Expected: 192 × 192 in blocks of 128 × 128 has 2 × 2 scales, the last of them for the 64 rows and columns
# that are left (DeepSeek-V3's inference/kernel.py: ceil of the shape over the block). Seen: blocks of 96 × 96 (shape over
# grid), so that rows and columns 96 to 127 are multiplied by their neighbours' scales, without a word; with 200 × 200,
# which 3 × 3 scales in blocks of 80 do not divide, an error. (integrations/finegrained_fp8.py, Fp8Dequantize.)
# Karipap goes by weight_block_size wherever the scales are of its grid (karipap_core/checkpoint/quantized/fp8.py).
#
#     sh findings/transformers-fp8-blocks.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 accelerate
cd "$folder"
cat > probe.py <<'PYTHON'
import json
import sys

import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM


def opened(side, block):
    """(q_proj as transformers opens it, by weight_block_size, by shape over grid) of a model of that width."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=side, intermediate_size=side, num_hidden_layers=1, num_attention_heads=1
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(str(side))
    tensors, wanted, grids = load_file(f"{side}/model.safetensors"), {}, {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        count = -(-side // block)
        codes = (torch.rand(side, side) * 100).to(torch.float8_e4m3fn)
        scales = torch.arange(1, count * count + 1, dtype=torch.float32).reshape(count, count)
        tensors[name], tensors[f"{name}_scale_inv"] = codes, scales
        for table, size in ((wanted, block), (grids, -(-side // count))):
            each = scales.repeat_interleave(size, 0)[:side].repeat_interleave(size, 1)[:, :side]
            table[name] = codes.float() * each
    save_file(tensors, f"{side}/model.safetensors", metadata={"format": "pt"})
    document = json.load(open(f"{side}/config.json"))
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [block, block]}
    json.dump(document | {"quantization_config": settings}, open(f"{side}/config.json", "w"))
    name = "model.layers.0.self_attn.q_proj.weight"
    try:
        found = LlamaForCausalLM.from_pretrained(str(side), dtype=torch.float32).get_parameter(name).data
    except Exception as error:
        return type(error).__name__, wanted[name], grids[name]
    return found, wanted[name], grids[name]


found, wanted, grid = opened(192, 128)
off = ((found - wanted).norm() / wanted.norm()).item()
print(f"192 in blocks of 128: off by {off:.0%} of its norm; as of blocks of 96: {torch.equal(found, grid)}")
refused, _, _ = opened(200, 80)
print("200 in blocks of 80: ", refused if isinstance(refused, str) else "opened")
same = off > 0.1 and torch.equal(found, grid) and isinstance(refused, str)
sys.exit(0 if same else "This has changed: look at findings/ and at docs/quantized.md.")
PYTHON
HF_HUB_OFFLINE=1 HF_HOME="$folder/hub" "$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
