"""What each architecture is called in GGUF and in transformers: its class, the fields of its config, the names of its
tensors, and how llama.cpp's converter lays some of them out otherwise.

Source of the names and layouts: llama.cpp's converter of Hugging Face models and gguf's table of tensor names. `names`
leads from a tensor's stem in the file ("attn_q" for blk.3.attn_q.weight) to the module's name in transformers, where
"{n}" is the block and "{e}" an expert. `layout` says what undoes the converter's work on a stem, see `layouts.py`.
`fields` leads from an entry of the file ("block_count" for llama.block_count) to a field of config.json.
"""

from dataclasses import replace

from karipap_core.checkpoint.gguf.shared import (
    ATTENTION,
    BIASES,
    BLOCK_SPARSE,
    EPSILON,
    EXPERTS,
    FOUR_NORMS,
    GATED,
    MIXTURE,
    OFFSET,
    QK_NORMS,
    ROTATED,
    SHARED,
    SIZES,
    TABLES,
    Architecture,
    without,
)

LLAMA = Architecture(
    "llama",
    "LlamaForCausalLM",
    TABLES | ATTENTION | GATED,
    SIZES | {"rope.dimension_count": "head_dim"},
    ROTATED,
    flags=BIASES | {"mlp_bias": "blk.0.ffn_up.bias"},
)
MIXTRAL = Architecture(
    "mixtral",
    "MixtralForCausalLM",
    TABLES | ATTENTION | BLOCK_SPARSE,
    LLAMA.fields | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
    ROTATED,
)
QWEN2 = Architecture("qwen2", "Qwen2ForCausalLM", TABLES | ATTENTION | GATED, SIZES)
QWEN3 = Architecture("qwen3", "Qwen3ForCausalLM", TABLES | ATTENTION | QK_NORMS | GATED, SIZES, flags=BIASES)
GEMMA = Architecture("gemma", "GemmaForCausalLM", TABLES | ATTENTION | GATED, SIZES, OFFSET, tied=True)
GEMMA2 = Architecture(
    "gemma2",
    "Gemma2ForCausalLM",
    TABLES | ATTENTION | GATED | FOUR_NORMS,
    SIZES
    | {
        "attention.sliding_window": "sliding_window",
        "attn_logit_softcapping": "attn_logit_softcapping",
        "final_logit_softcapping": "final_logit_softcapping",
    },
    OFFSET,
    wide=46,
    tied=True,
)
GPT_OSS = Architecture(
    "gpt_oss",
    "GptOssForCausalLM",
    TABLES
    | without(ATTENTION, "ffn_norm")
    | {
        "attn_sinks": "model.layers.{n}.self_attn.sinks",
        "post_attention_norm": "model.layers.{n}.post_attention_layernorm",
        "ffn_gate_inp": "model.layers.{n}.mlp.router",
        "ffn_down_exps": "model.layers.{n}.mlp.experts.down_proj",
    },
    without(SIZES, "feed_forward_length")
    | {
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "intermediate_size",
        "attention.sliding_window": "sliding_window",
    },
    {"ffn_down_exps": "each transposed"},
    {"rope_scaling": {"truncate": False}},
    turns={
        "ffn_gate_exps": ("model.layers.{n}.mlp.experts.gate_up_proj", 0),
        "ffn_up_exps": ("model.layers.{n}.mlp.experts.gate_up_proj", 1),
    },
    silent=("feed_forward_length",),
)
FALCON = Architecture(
    "falcon",
    "FalconForCausalLM",
    {
        "token_embd": "transformer.word_embeddings",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "attn_norm": "transformer.h.{n}.input_layernorm",
        "attn_qkv": "transformer.h.{n}.self_attention.query_key_value",
        "attn_output": "transformer.h.{n}.self_attention.dense",
        "ffn_up": "transformer.h.{n}.mlp.dense_h_to_4h",
        "ffn_down": "transformer.h.{n}.mlp.dense_4h_to_h",
    },
    {
        **without(SIZES, "attention.layer_norm_rms_epsilon", "attention.key_length"),
        "feed_forward_length": "ffn_hidden_size",
        "attention.head_count_kv": "num_kv_heads",
        EPSILON: "layer_norm_epsilon",
    },
    {"attn_qkv": "grouped qkv"},
    {"parallel_attn": True, "alibi": False, "bias": False, "multi_query": True, "new_decoder_architecture": False},
)
# Those after the first have several heads of keys, and a norm of its own for each half of a block, or one for both.
FALCON_GROUPED = replace(
    FALCON, constants=FALCON.constants | {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 1}
)
FALCON_TWO_NORMS = replace(
    FALCON,
    names=FALCON.names | {"attn_norm": "transformer.h.{n}.ln_mlp", "attn_norm_2": "transformer.h.{n}.ln_attn"},
    constants=FALCON.constants | {"new_decoder_architecture": True, "num_ln_in_parallel_attn": 2},
)

KNOWN: dict[str, Architecture] = {
    "llama": LLAMA,
    "mistral": replace(LLAMA, model_type="mistral", model_class="MistralForCausalLM"),
    "qwen2": QWEN2,
    "qwen2moe": Architecture(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        TABLES | ATTENTION | MIXTURE | SHARED,
        SIZES | EXPERTS | {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"},
        {"ffn_gate_inp_shexp": "a row"},
    ),
    "qwen3": QWEN3,
    "qwen3moe": Architecture(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        TABLES | ATTENTION | QK_NORMS | MIXTURE,
        SIZES | EXPERTS,
        constants={"norm_topk_prob": True},
    ),
    "gemma": GEMMA,
    "gemma2": GEMMA2,
    "gemma3": Architecture(
        "gemma3_text",
        "Gemma3ForCausalLM",
        GEMMA2.names | QK_NORMS,
        GEMMA2.fields | {"rope.freq_base_swa": "rope_local_base_freq"},
        OFFSET,
        wide=62,
        tied=True,
    ),
    "gpt-oss": GPT_OSS,
    "falcon": FALCON,
    "phi3": Architecture(
        "phi3",
        "Phi3ForCausalLM",
        TABLES
        | without(ATTENTION, "attn_q", "attn_k", "attn_v")
        | {
            "attn_qkv": "model.layers.{n}.self_attn.qkv_proj",
            "ffn_up": "model.layers.{n}.mlp.gate_up_proj",
            "ffn_down": "model.layers.{n}.mlp.down_proj",
        },
        without(SIZES, "attention.key_length") | {"attention.sliding_window": "sliding_window"},
        partial=True,
    ),
    "gpt2": Architecture(
        "gpt2",
        "GPT2LMHeadModel",
        {
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
            "attn_norm": "transformer.h.{n}.ln_1",
            "attn_qkv": "transformer.h.{n}.attn.c_attn",
            "attn_output": "transformer.h.{n}.attn.c_proj",
            "ffn_norm": "transformer.h.{n}.ln_2",
            "ffn_up": "transformer.h.{n}.mlp.c_fc",
            "ffn_down": "transformer.h.{n}.mlp.c_proj",
        },
        {
            "context_length": "n_positions",
            "embedding_length": "n_embd",
            "block_count": "n_layer",
            "feed_forward_length": "n_inner",
            "attention.head_count": "n_head",
            EPSILON: "layer_norm_epsilon",
        },
        dict.fromkeys(("attn_qkv", "attn_output", "ffn_up", "ffn_down"), "transposed"),
        silent=("attention.head_count_kv",),
    ),
    "bloom": Architecture(
        "bloom",
        "BloomForCausalLM",
        FALCON.names
        | {
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "ffn_norm": "transformer.h.{n}.post_attention_layernorm",
        },
        {
            "embedding_length": "hidden_size",
            "block_count": "n_layer",
            "attention.head_count": "n_head",
            EPSILON: "layer_norm_epsilon",
        },
        {"attn_qkv": "qkv by heads"},
        silent=("context_length", "feed_forward_length", "attention.head_count_kv"),
    ),
    "starcoder2": Architecture(
        "starcoder2",
        "Starcoder2ForCausalLM",
        TABLES | ATTENTION | {"ffn_up": "model.layers.{n}.mlp.c_fc", "ffn_down": "model.layers.{n}.mlp.c_proj"},
        {**without(SIZES, "attention.layer_norm_rms_epsilon", "attention.key_length"), EPSILON: "norm_epsilon"},
        constants={"use_bias": False},
        flags={"use_bias": "blk.0.attn_q.bias"},
    ),
    "stablelm": Architecture(
        "stablelm",
        "StableLmForCausalLM",
        TABLES
        | ATTENTION
        | GATED
        | {
            "attn_q_norm": "model.layers.{n}.self_attn.q_layernorm.norms.{e}",
            "attn_k_norm": "model.layers.{n}.self_attn.k_layernorm.norms.{e}",
        },
        {
            **without(SIZES, "attention.layer_norm_rms_epsilon", "attention.key_length"),
            EPSILON: "layer_norm_eps",
        },
        flags={"use_qkv_bias": "blk.0.attn_q.bias", "qk_layernorm": "blk.0.attn_q_norm.weight"},
        lacks={"use_parallel_residual": "blk.0.ffn_norm.weight"},
        partial=True,
        silent=("use_parallel_residual",),  # converters say true of models that are none
    ),
    "nemotron": Architecture(
        "nemotron",
        "NemotronForCausalLM",
        TABLES | ATTENTION | without(GATED, "ffn_gate"),
        {**without(SIZES, "attention.layer_norm_rms_epsilon"), EPSILON: "norm_eps"},
        OFFSET,
        flags=BIASES | {"mlp_bias": "blk.0.ffn_up.bias"},
        partial=True,
    ),
    "mamba": Architecture(
        "mamba",
        "MambaForCausalLM",
        {
            "token_embd": "backbone.embeddings",
            "output_norm": "backbone.norm_f",
            "output": "lm_head",
            "attn_norm": "backbone.layers.{n}.norm",
            "ssm_in": "backbone.layers.{n}.mixer.in_proj",
            "ssm_conv1d": "backbone.layers.{n}.mixer.conv1d",
            "ssm_x": "backbone.layers.{n}.mixer.x_proj",
            "ssm_dt": "backbone.layers.{n}.mixer.dt_proj",
            "ssm_a": "backbone.layers.{n}.mixer.A_log",
            "ssm_d": "backbone.layers.{n}.mixer.D",
            "ssm_out": "backbone.layers.{n}.mixer.out_proj",
        },
        {
            "embedding_length": "hidden_size",
            "block_count": "num_hidden_layers",
            "ssm.conv_kernel": "conv_kernel",
            "ssm.inner_size": "intermediate_size",
            "ssm.state_size": "state_size",
            "ssm.time_step_rank": "time_step_rank",
            "attention.layer_norm_rms_epsilon": "layer_norm_epsilon",
        },
        {"ssm_conv1d": "a channel", "ssm_a": "minus exponential"},
        silent=("context_length", "feed_forward_length", "attention.head_count", "ssm.dt_b_c_rms"),
    ),
    "qwen35": Architecture(
        "qwen3_5_text",
        "Qwen3_5ForCausalLM",
        TABLES
        | without(ATTENTION, "ffn_norm")
        | QK_NORMS
        | GATED
        | {
            "post_attention_norm": "model.layers.{n}.post_attention_layernorm",
            "attn_qkv": "model.layers.{n}.linear_attn.in_proj_qkv",
            "attn_gate": "model.layers.{n}.linear_attn.in_proj_z",
            "ssm_alpha": "model.layers.{n}.linear_attn.in_proj_a",
            "ssm_beta": "model.layers.{n}.linear_attn.in_proj_b",
            "ssm_conv1d": "model.layers.{n}.linear_attn.conv1d",
            "ssm_norm": "model.layers.{n}.linear_attn.norm",
            "ssm_out": "model.layers.{n}.linear_attn.out_proj",
            "ssm_a": "model.layers.{n}.linear_attn.A_log",
            "ssm_dt": "model.layers.{n}.linear_attn.dt",
        },
        SIZES
        | {
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "ssm.state_size": "linear_key_head_dim",
            "ssm.group_count": "linear_num_key_heads",
            "ssm.time_step_rank": "linear_num_value_heads",
        },
        OFFSET
        | {
            "attn_qkv": "tiled values behind",
            "attn_gate": "tiled values",
            "ssm_alpha": "tiled heads",
            "ssm_beta": "tiled heads",
            "ssm_conv1d": "tiled channels behind",
            "ssm_out": "tiled columns",
            "ssm_a": "tiled exponential",
            "ssm_dt": "tiled heads",
        },
        partial=True,
        silent=("full_attention_interval", "ssm.inner_size", "nextn_predict_layers"),
    ),
    "lfm2": Architecture(
        "lfm2",
        "Lfm2ForCausalLM",
        TABLES
        | {
            "token_embd_norm": "model.embedding_norm",
            "attn_norm": "model.layers.{n}.operator_norm",
            "attn_q": "model.layers.{n}.self_attn.q_proj",
            "attn_k": "model.layers.{n}.self_attn.k_proj",
            "attn_v": "model.layers.{n}.self_attn.v_proj",
            "attn_output": "model.layers.{n}.self_attn.out_proj",
            "attn_q_norm": "model.layers.{n}.self_attn.q_layernorm",
            "attn_k_norm": "model.layers.{n}.self_attn.k_layernorm",
            "ffn_norm": "model.layers.{n}.ffn_norm",
            "ffn_gate": "model.layers.{n}.feed_forward.w1",
            "ffn_up": "model.layers.{n}.feed_forward.w3",
            "ffn_down": "model.layers.{n}.feed_forward.w2",
            "shortconv.in_proj": "model.layers.{n}.conv.in_proj",
            "shortconv.out_proj": "model.layers.{n}.conv.out_proj",
            "shortconv.conv": "model.layers.{n}.conv.conv",
        },
        {
            **without(SIZES, "attention.key_length", "attention.head_count_kv"),
            "attention.layer_norm_rms_epsilon": "norm_eps",
            "shortconv.l_cache": "conv_L_cache",
        },
        {"shortconv.conv": "a channel"},
        {"block_auto_adjust_ff_dim": False},
        {"conv_bias": "blk.0.shortconv.in_proj.bias"},
        silent=("attention.head_count_kv",),
    ),
}
