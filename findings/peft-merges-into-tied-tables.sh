#!/bin/sh
# merge_and_unload of peft 0.21.2 makes another model of a LoRA on one of two tied tables. Expected: the merged model gives
# the logits of the model with its adapter on. Seen: where lm_head and embed_tokens are one tensor and only one of them is
# adapted, the update is added to that tensor, and so to both, without an error; ensure_weight_tying changes nothing about it.
# (peft/tuners/lora/layer.py, Embedding.merge and Linear.merge.)
# Karipap gives the merged model a head of its own (karipap_core/checkpoint/lora/merged.py).
#
#     sh findings/peft-merges-into-tied-tables.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.23.0 torch==2.13.0 accelerate
cd "$folder"
cat > probe.py <<'PYTHON'
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}


def off(module, **settings):
    """By how much the merged model's logits differ from those of the model with its adapter on."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True, initializer_range=0.3)).eval()
    model = get_peft_model(model, LoraConfig(r=4, target_modules=[module], init_lora_weights=False, **settings)).eval()
    ids = torch.arange(10)[None]
    with torch.no_grad():
        return (model(ids).logits - model.merge_and_unload()(ids).logits).abs().max().item()


found = {name: off(name) for name in ("q_proj", "embed_tokens", "lm_head")}
found["embed_tokens, tied"] = off("embed_tokens", ensure_weight_tying=True)
print("logits off by", ", ".join(f"{value:.1e} ({name})" for name, value in found.items()))
same = found.pop("q_proj") < 1e-4 and all(value > 0.1 for value in found.values())
sys.exit(0 if same else "This has changed: look at findings/ and at Karipap's merging of adapters.")
PYTHON
"$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
