"""What a weight is called and where it sits, from its module name alone."""

import re
from collections.abc import Iterable

# Containers whose numbered children are the model's blocks. No block has a number of more digits: some code counts.
LAYER = re.compile(
    r"(?:^|\.)(?:h|block|blocks|layer|layers|resblocks|attentions|ffns|encoders|self_attends|\w+_layers|\w+_blocks)"
    r"\.([0-9]{1,4})\."
)
EXPERT = re.compile(r"\.experts\.([0-9]{1,4})\.")
# Models whose linear maps are transformers' Conv1D, stored (in, out).
CONV1D = {"gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp"}
ROUTERS = {"gate", "router", "shared_expert_gate", "wg"}
# The order in which a layer's weights are listed, and columns of a table stand.
ORDER: tuple[str, ...] = ("q", "q_a", "q_b", "k", "v", "kv_a", "kv_b", "qkv", "o")
ORDER += ("ssm_in", "ssm_x", "ssm_dt", "ssm_out")  # of state spaces: what goes in, B, C and Δ, the step, what comes out
ORDER += ("gate", "up", "gate_up", "down", "fc1", "fc2")
ORDER += ("shared_gate", "shared_up", "shared_gate_up", "shared_down", "router", "other")
NOT_COMPRESSIBLE = {"embed", "head", "position", "token_type", "pooler", "classifier", "router"}

# First match wins; `attn`-like parents are asked for only where the last word alone could be two things.
ROLES = tuple(
    (re.compile(rf"(?:^|\.)(?:{pattern})$"), role)
    for pattern, role in (
        (r"self_attention\.experts\.input_linear", "q"),
        (r"self_attention\.experts\.output_linear", "o"),
        (r"experts\.mlp\.w1", "gate"),  # DBRX's
        (r"experts\.mlp\.v1", "up"),
        (r"attention\.receptance", "q"),  # RWKV's
        (r"attention\.output", "o"),
        (r"feed_forward\.key", "fc1"),
        (r"feed_forward\.value", "fc2"),
        (r"feed_forward\.receptance", "gate"),
        (
            r"(?:mixer|mamba\w*|ssm|conv|linear_attn|temporal_block)\.(?:in_proj|in_proj_qkvz?|linear_x|linear_y)",
            "ssm_in",
        ),
        (
            r"(?:mixer|mamba\w*|ssm)\.(?:x_proj(?:_weight)?|bcdt_proj|in_proj_ba)|linear_attn\.in_proj_(?:ba|a|b|z)",
            "ssm_x",
        ),
        (r"(?:mixer|mamba\w*|ssm)\.dt_proj(?:_weight)?", "ssm_dt"),
        (r"(?:mixer|mamba\w*|ssm|conv)\.out_proj|temporal_block\.linear_out", "ssm_out"),
        (r"q_proj|query|q_lin|SelfAttention\.q|EncDecAttention\.q|\w*attn\.q|attention\.wq|Wq", "q"),
        (r"k_proj|key|k_lin|SelfAttention\.k|EncDecAttention\.k|\w*attn\.k|attention\.wk|Wk", "k"),
        (r"v_proj|value|v_lin|SelfAttention\.v|EncDecAttention\.v|\w*attn\.v|attention\.wv|Wv", "v"),
        (r"q_a_proj|wq_a", "q_a"),
        (r"q_b_proj|wq_b", "q_b"),
        (r"kv_a_proj_with_mqa", "kv_a"),
        (r"kv_b_proj", "kv_b"),
        (r"qkv_proj|query_key_value|c_attn|Wqkv|in_proj_qkv|qkv|wqkv|gqkv_proj|rel_qkv", "qkv"),
        (r"o_proj|out_lin|attention\.output\.dense|\w*attention\.dense|self_attn\.(?:dense|out_proj)", "o"),
        (r"(?:\w*attn|\w*attention|\w*Attention)\.(?:c_proj|out_proj|o|Wo|wo|proj|to_out|dense)", "o"),
        (
            r"gate_(?:and_)?up_proj|up_gate_proj|input_linear|(?:shared_)?w13_weight|w13_dn|mlp\.Wi",
            "gate_up",
        ),
        (r"gate_proj|w1|wi_0|gate", "gate"),
        (r"up_proj|w3|wi_1", "up"),
        (r"down_proj|w2|(?:shared_)?w2_weight|w2_md|output_linear", "down"),
        (
            r"fc1|dense1|c_fc|fc_in|dense_h_to_4h|lin1|intermediate\.dense|wi|dense_in|linear_fc1|ff\.layer_1|ffn\.0",
            "fc1",
        ),
        (
            r"fc2|dense2|fc_out|dense_4h_to_h|lin2|output\.dense|mlp\.c_proj|mlp\.Wo|wo|linear_fc2|ff\.layer_2|ffn\.2",
            "fc2",
        ),
    )
)
OUTSIDE = tuple(
    (re.compile(rf"(?:^|\.)(?:{pattern})$"), role)
    for pattern, role in (
        (
            r"wpe|(?:\w+_)?pos_embed\w*|\w*position\w*embed\w*|embed_positions\w*|positions_embed|pos_emb|pos_enc"
            r"|\w*(?:row|column|class)_embed\w*|\w*relative_attention_bias|rel(?:ative)?_\w*embed\w*",
            "position",
        ),
        (r"token_type_embeddings?|segment_embeddings?|lang_embeddings?", "token_type"),
        (
            r"embed_tokens(?:_per_layer)?|wte|transformer\.w|llm\.embed|embed|embed_in|word_embeddings|tokens_embed|tok_embeddings|shared|embeddings|\w*embedding",
            "embed",
        ),
        (
            r"lm_head|embed_out|predictions\.decoder|vocab_projector|output|lm_head\.decoder|llm\.unembed|lm_loss"
            r"|pred_layer\.proj|output_projection|logits_dense|log_softmax\.mlp\.layer0",
            "head",
        ),
        (r"^head", "head"),
        (r"pooler\.dense|pooler", "pooler"),
        (r"classifier(?:\.\w+)*|score|qa_outputs|seq_relationship", "classifier"),
    )
)

# Maps of an image's patches: no tables, whatever they are called.
PATCHES = re.compile(
    r"(?:^|\.)(?:\w*patch_(?:embed\w*|conv)(?:\.(?:proj\w*|linear))?|embed_patches\.proj|vision_model\.conv1"
    r"|visual\.downsample)$"
)
# Linear maps that are called like tables: ProphetNet's, from a token to what distances mean to it.
NO_TABLE = re.compile(rf"{PATCHES.pattern}|\.relative_pos_embeddings$")

# What the first part of a path is called that leads to blocks which do not read the text.
OTHER_TOWERS = tuple(
    (tower, re.compile(rf"(?:^|_)(?:{words})(?:_|$)"))
    for tower, words in (
        ("vision", "vision|visual|image|images|img|video|vit"),
        ("audio", "audio|speech|sound"),
        ("connector", "qformer|resampler|projector|connector|perceiver"),
    )
)
TOWERS = (*(tower for tower, _ in OTHER_TOWERS), "encoder", "decoder", "language")


def place(name: str) -> tuple[int | None, int | None]:
    """(layer, expert) of a module name: the number of its block and of its expert, each None where there is none."""
    layer, expert = LAYER.search(name), EXPERT.search(name)
    return (int(layer[1]) if layer else None), (int(expert[1]) if expert else None)


def role_of(name: str, mixture: bool) -> str:
    """The role of a module by name; `mixture` says whether the model has experts (then a lone `gate` is a router)."""
    if mixture and (name.rpartition(".")[2] in ROUTERS or ".router." in name):
        return "router"
    if NO_TABLE.search(name):
        return "other"
    for pattern, role in OUTSIDE[:3] if place(name)[0] is not None else OUTSIDE:
        if pattern.search(name):
            return role
    for pattern, role in ROLES:
        if pattern.search(name):
            return f"shared_{role}" if ".shared_" in name else role  # the expert that every token passes
    return "other"


def towers_of(names: Iterable[str]) -> dict[str, str]:
    """{name of a module that can be compressed: its tower, "vision", "audio", "connector", "encoder", "decoder" or
    "language"}; all "" where the blocks are of but one.

    An encoder without a decoder, or the other way about, is what reads the language where nothing else does.
    """
    found = {name: _tower_of(name) for name in names}
    if "language" not in found.values() and not {"encoder", "decoder"} <= set(found.values()):
        found = {name: "language" if tower in ("encoder", "decoder") else tower for name, tower in found.items()}
    towers = {tower for name, tower in found.items() if place(name)[0] is not None}
    return found if len(towers) > 1 else dict.fromkeys(found, "")


def _tower_of(name: str) -> str:
    block = LAYER.search(name)
    parts = name[: block.start() if block else None].split(".")
    for tower, pattern in OTHER_TOWERS:
        if any(pattern.search(part) for part in parts):
            return tower
    return next((part.rpartition("_")[2] for part in parts if part.endswith(("encoder", "decoder"))), "language")


def compressible(role: str) -> bool:
    """Whether a weight may become a network: those of the blocks and the projections between parts, but for routers,
    heads of tasks and tables that are looked up in."""
    return role not in NOT_COMPRESSIBLE


def listing_key(name: str, layer: int | None, expert: int | None, role: str, tower: str = "") -> tuple:
    """Sort key: tables before the blocks, then tower by tower as they run and layer by layer in the order of `ORDER`,
    experts by number, the rest."""
    number = [int(part) if part.isdecimal() else part for part in name.split(".")]
    natural = [(0, part, "") if isinstance(part, int) else (1, 0, part) for part in number]
    group = 1 if layer is not None else 0 if role in ("embed", "position", "token_type") else 2
    rank = ORDER.index(role) if role in ORDER else len(ORDER)
    return (group, TOWERS.index(tower) if tower else 0, layer or 0, -1 if expert is None else expert, rank, natural)


EMBEDDINGS = ("embed", "head", "position", "token_type")  # tables that tokens or places are looked up in
TABLES = ("embed", "head")  # roles outside the blocks that may become networks
