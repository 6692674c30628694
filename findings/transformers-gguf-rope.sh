#!/bin/sh
# transformers 5.23.0 opens a GGUF file of Llama 3.1 without its rotation. Expected: rope_freqs.weight, in which llama.cpp's
# converter keeps what frequencies are divided by, makes a rope of type llama3 (or is refused). Seen: it is passed over, and
# the model gets the plain rotation, without a word: other logits from the second token on. The biases of a Llama go the
# same way. (modeling_gguf_pytorch_utils.py, load_gguf_checkpoint; integrations/ggml.py, GGUF_CONFIG_MAPPING.)
# Karipap finds the rule that gives the divisors, and reads the biases (karipap_core/checkpoint/gguf/rope.py, config.py).
#
#     sh findings/transformers-gguf-rope.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.23.0 torch==2.13.0 accelerate gguf==0.19.0
cd "$folder"
cat > probe.py <<'PYTHON'
import sys

import torch
from gguf import GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}
SCALED = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED |= {"original_max_position_embeddings": 64}


def opened(rope, bias):
    """(the model that a file was made of, the model that transformers opens from it)."""
    torch.manual_seed(0)
    more = {"tie_word_embeddings": True, "max_position_embeddings": 256, "initializer_range": 0.3}
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **more, rope_parameters=rope, attention_bias=bias)).eval()
    for name, parameter in model.named_parameters():
        parameter.data += 0.5 * name.endswith("bias")
    writer = GGUFWriter("model.gguf", "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(48)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(32)
    names = get_tensor_name_map(MODEL_ARCH.LLAMA, 1)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        stem, kind = name.rsplit(".", 1)
        if "q_proj" in name or "k_proj" in name:  # in rotary pairs, as the converter writes them
            value = value.reshape(2, 2, 8, *value.shape[1:]).transpose(1, 2).reshape(value.shape)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", value.contiguous().numpy())
    if rope is SCALED:
        sizes = SIZES | {"max_position_embeddings": 256}
        turning = [LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_parameters=rule)).inv_freq for rule in (PLAIN, SCALED)]
        writer.add_tensor("rope_freqs.weight", (turning[0] / turning[1]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model, AutoModelForCausalLM.from_pretrained(".", gguf_file="model.gguf", dtype=torch.float32).eval()


def off(rope, bias=False):
    with torch.no_grad():
        one, other = (model(torch.arange(24)[None]).logits for model in opened(rope, bias))
    return (one - other).abs().max().item()


plain, scaled, biased = off(PLAIN), off(SCALED), off(PLAIN, bias=True)
print(f"logits off by {plain:.1e} without a rule, by {scaled:.1e} with Llama 3.1's, by {biased:.1e} with biases")
same = plain < 1e-4 and scaled > 0.01 and biased > 0.01
sys.exit(0 if same else "This has changed: look at findings/ and at Karipap's reading of GGUF.")
PYTHON
"$folder/venv/bin/python" probe.py 2> errors || { cat errors; exit 1; }
