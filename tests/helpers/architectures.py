"""Small random checkpoints of every architecture that Karipap names, each with a tokenizer that encodes any text."""

import json
from pathlib import Path

import torch

VOCABULARY = 263  # a prime: 256 bytes, three special tokens and four that no text has
BOS, EOS, PAD = 256, 257, 258

COMMON = {"vocab_size": VOCABULARY, "bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
LLAMA = COMMON | {
    "hidden_size": 48,
    "intermediate_size": 86,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
MIXTURE = {"num_experts_per_tok": 2, "tie_word_embeddings": False}
SETTINGS = {
    "llama": ("LlamaConfig", LLAMA),
    "llama_untied": ("LlamaConfig", LLAMA | {"tie_word_embeddings": False}),
    "llama_biases": ("LlamaConfig", LLAMA | {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", LLAMA | {"head_dim": 16, "sliding_window": 32}),
    "mixtral": ("MixtralConfig", LLAMA | MIXTURE | {"num_local_experts": 3, "intermediate_size": 40}),
    "qwen2": ("Qwen2Config", LLAMA),
    "qwen3": ("Qwen3Config", LLAMA | {"head_dim": 16}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        LLAMA
        | MIXTURE
        | {
            "num_experts": 4,
            "moe_intermediate_size": 24,
            "head_dim": 16,
            "mlp_only_layers": [0],
            "norm_topk_prob": True,
        },
    ),
    "gpt_oss": (
        "GptOssConfig",
        LLAMA
        | MIXTURE
        | {
            "num_local_experts": 3,
            "intermediate_size": 40,
            "head_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma": ("GemmaConfig", LLAMA | {"head_dim": 16}),
    "gemma2": ("Gemma2Config", LLAMA | {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3Config", LLAMA | {"tie_word_embeddings": False}),
    "gpt2": ("GPT2Config", COMMON | {"n_embd": 48, "n_inner": 86, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "gpt_neox": (
        "GPTNeoXConfig",
        LLAMA | {"num_key_value_heads": None, "tie_word_embeddings": False, "rotary_pct": 0.5},
    ),
    "falcon": (
        "FalconConfig",
        COMMON
        | {
            "hidden_size": 48,
            "ffn_hidden_size": 86,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "multi_query": True,
        },
    ),
    "opt": (
        "OPTConfig",
        COMMON
        | {
            "hidden_size": 48,
            "ffn_dim": 86,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
            "word_embed_proj_dim": 40,
        },
    ),
    "bert": (
        "BertConfig",
        COMMON
        | {
            "hidden_size": 48,
            "intermediate_size": 86,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 256,
        },
    ),
}
# Named for how they are stored: GPT-2 as on the hub, without "transformer."; bf16; BERT with the head it learnt with.
SETTINGS["gpt2_bare"] = SETTINGS["gpt2"]
SETTINGS["llama_bf16"] = SETTINGS["llama_untied"]
SETTINGS["bert_masked"] = SETTINGS["bert"]
ENCODERS = ("bert", "bert_masked")
ARCHITECTURES = tuple(SETTINGS)


def make(
    name: str, folder: str | Path, seed: int = 0, dtype: str = "float32", max_shard: str | None = None, **changes
) -> Path:
    """Writes a checkpoint of the architecture `name` (one of `ARCHITECTURES`) and returns its folder.

    Weights are Gaussian with variance 1 / inputs, norms and biases a little off 1 and 0, so that a wrong weight shows
    in the logits. `max_shard` ("20KB") cuts the model into shards; `changes` are made to the architecture's config.
    """
    import transformers

    folder = Path(folder)
    class_name, settings = SETTINGS[name]
    config = getattr(transformers, class_name)(**settings | changes)
    auto = transformers.AutoModel if name in ENCODERS else transformers.AutoModelForCausalLM
    auto = transformers.AutoModelForMaskedLM if name == "bert_masked" else auto
    model = auto.from_config(config)
    fill(model, seed)
    model.to(torch.bfloat16 if name == "llama_bf16" else getattr(torch, dtype))
    if name not in ENCODERS:
        model.generation_config.eos_token_id = None  # so that generate() always goes on to the length asked for
    model.save_pretrained(folder, **({"max_shard_size": max_shard} if max_shard else {}))
    if name == "gpt2_bare":
        drop_prefix(folder / "model.safetensors", "transformer.")
    write_tokenizer(folder)
    return folder


def fill(model: torch.nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(noise * 0.1)


def save(model, folder: Path, seed: int = 0) -> Path:
    """Writes a model, filled as `make` fills one, and a tokenizer; returns the folder."""
    fill(model, seed)
    model.generation_config.eos_token_id = None
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def drop_prefix(file: Path, prefix: str) -> None:
    """Rewrites a safetensors file with `prefix` taken off its tensors' names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    save_file({tensor.removeprefix(prefix): value for tensor, value in tensors.items()}, file, {"format": "pt"})


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without merges: one token a byte, whatever the text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>", "<pad>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"pad_token": "<pad>", "model_max_length": 256, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
