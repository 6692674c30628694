"""What architectures have in common: the shape of their description, names of tensors and fields."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Architecture:
    model_type: str
    model_class: str
    names: dict[str, str]
    fields: dict[str, str]
    layout: dict[str, str] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)  # of config.json, that no entry says
    flags: dict[str, str] = field(default_factory=dict)  # field of config.json → the tensor whose presence says it
    lacks: dict[str, str] = field(default_factory=dict)  # field of config.json → the tensor whose absence says it
    wide: int = 0  # blocks of the one size whose queries are scaled by the hidden size, see `config.py`
    tied: bool = False  # whether the head is the table even where nothing says so
    partial: bool = False  # whether a head may be rotated in part
    # Matrices that lie side by side in one tensor of transformers, column by column in turns: stem → (name, turn)
    turns: dict[str, tuple[str, int]] = field(default_factory=dict)
    silent: tuple[str, ...] = ()  # entries besides that say nothing that the config does not


SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
EXPERTS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
TABLES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
ATTENTION = {
    "attn_norm": "model.layers.{n}.input_layernorm",
    "attn_q": "model.layers.{n}.self_attn.q_proj",
    "attn_k": "model.layers.{n}.self_attn.k_proj",
    "attn_v": "model.layers.{n}.self_attn.v_proj",
    "attn_output": "model.layers.{n}.self_attn.o_proj",
    "ffn_norm": "model.layers.{n}.post_attention_layernorm",
}
QK_NORMS = {
    "attn_q_norm": "model.layers.{n}.self_attn.q_norm",
    "attn_k_norm": "model.layers.{n}.self_attn.k_norm",
}
GATED = {
    "ffn_gate": "model.layers.{n}.mlp.gate_proj",
    "ffn_up": "model.layers.{n}.mlp.up_proj",
    "ffn_down": "model.layers.{n}.mlp.down_proj",
}
MIXTURE = {
    "ffn_gate_inp": "model.layers.{n}.mlp.gate",
    "ffn_gate_exps": "model.layers.{n}.mlp.experts.{e}.gate_proj",
    "ffn_up_exps": "model.layers.{n}.mlp.experts.{e}.up_proj",
    "ffn_down_exps": "model.layers.{n}.mlp.experts.{e}.down_proj",
}
SHARED = {
    "ffn_gate_inp_shexp": "model.layers.{n}.mlp.shared_expert_gate",
    "ffn_gate_shexp": "model.layers.{n}.mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "model.layers.{n}.mlp.shared_expert.up_proj",
    "ffn_down_shexp": "model.layers.{n}.mlp.shared_expert.down_proj",
}
# Mixtral's and MiniMax's words for the three matrices of an expert.
BLOCK_SPARSE = {
    "ffn_gate_inp": "model.layers.{n}.block_sparse_moe.gate",
    "ffn_gate_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w1",
    "ffn_up_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w3",
    "ffn_down_exps": "model.layers.{n}.block_sparse_moe.experts.{e}.w2",
}
# Gemma 2 and 3 have a norm before and one behind each half of a block.
FOUR_NORMS = {
    "post_attention_norm": "model.layers.{n}.post_attention_layernorm",
    "ffn_norm": "model.layers.{n}.pre_feedforward_layernorm",
    "post_ffw_norm": "model.layers.{n}.post_feedforward_layernorm",
}
ROTATED = {"attn_q": "rotated q", "attn_k": "rotated k"}
OFFSET = dict.fromkeys(
    ("output_norm", "attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "attn_q_norm", "attn_k_norm"),
    "one more",
)
BIASES = {"attention_bias": "blk.0.attn_q.bias"}
EPSILON = "attention.layer_norm_epsilon"


def without(fields: dict[str, str], *keys: str) -> dict[str, str]:
    return {key: value for key, value in fields.items() if key not in keys}
