"""A config of default sizes made tiny: every size that a field's name tells is lowered, all by one table, so that
fields which have to agree still do.

A model's widths all become `WIDTH`, its heads `HEADS` of `HEAD`, and so on, whatever they were: a language model
behind an image tower fits without anybody knowing which field of the one names a size of the other.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from typing import Any

WIDTH, HEADS, HEAD, INNER, VOCABULARY, EXPERTS, POSITIONS = 64, 4, 16, 96, 320, 4, 128
MOST_LAYERS = 4
RANK = 16

Rule = tuple[re.Pattern[str], Callable[[int], int]]


def at_most(limit: int) -> Callable[[int], int]:
    return lambda value: min(value, limit)


def become(size: int) -> Callable[[int], int]:
    return lambda value: size if value > 1 else value


def _rules() -> tuple[Rule, ...]:
    table: tuple[tuple[str, Callable[[int], int]], ...] = (
        (r"num_labels|num_channels|in_channels|out_channels_first|seed|spatial_merge_size|temporal_patch_size", int),
        (
            r"(?:\w*_)?vocab_size\w*|num_embeddings|n_codes_total|\w*_vocab|vocab_offset|\w+_vocabulary_size",
            at_most(VOCABULARY),
        ),
        (r"codebook_size|num_codevectors_per_group", at_most(32)),
        (r"type_vocab_size", int),
        (r"entity_emb_size|embedding_size", become(WIDTH)),
        (r"num_(?:nextn_predict|mtp|hash)\w*|num_kv_shared_layers", at_most(0)),
        (r"first_k_dense_replace|num_dense_layers|moe_layer_start_index", at_most(1)),
        (r"(?:mamba|ssm)\w*heads|mamba_n_heads|n_mamba_heads", become(2 * HEADS)),
        (r"linear_num_key_heads", become(2)),
        (r"\w*(?:kv_heads|key_value_heads|num_kv\w*|key_value_attention_heads|num_query_groups)", int),  # see `_heads`
        (r"\w*heads|n_head|num_landmarks", become(HEADS)),
        (r"qk_head_dim", become(2 * HEAD)),
        (
            r"\w*(?:head_dim|d_head|d_kv|head_size|dim_head|kv_channels|headdim|rotary_dim|query_pre_attn_scalar)",
            become(HEAD),
        ),
        (r"mamba_d_ssm", become(2 * WIDTH)),
        (r"\w*(?:d_state|state_size)", at_most(4)),  # beside which the other maps would be small
        (
            r"\w*(?:lora_rank|low_rank\w*|laurel_rank|lowrank|dt_rank|chunk_size|time_step_rank)",
            become(RANK),
        ),
        (r"n_groups?|topk_group|num_expert_group|mamba_n_groups|num_groups", become(1)),
        (r"\w*(?:experts_per_tok\w*|moe_k|top_?k\w*|num_selected_experts|router_topk|experts_top_k)", at_most(2)),
        (r"num_shared_experts|n_shared_experts", at_most(1)),
        (r"\w*(?:experts|num_local_experts|expert_num)", become(EXPERTS)),
        (
            r"\w*(?:intermediate_size|intermediate_dim|ffn\w*|mlp_dim|d_ff|n_inner|feed_?forward\w*|inner_dim|ff_dim|dff|d_inner|ffn_hidden_size|mlp_hidden\w*)",
            become(INNER),
        ),
        (
            r"\w*(?:position_embeddings|max_position\w*|n_positions|n_ctx|max_seq\w*|seq_len|context_length|model_max_length|source_positions|target_positions|max_sequence_length|text_len\w*)",
            at_most(POSITIONS),
        ),
        (r"\w*(?:sliding_window\w*|attention_window\w*|local_attention|window_len)", at_most(8)),
        (r"\w*(?:image_size|img_size|resolution|crop_size)", at_most(32)),
        (r"patch_size|patch_length", at_most(8)),
        (r"num_mel_bins|n_mels|mel_dim|num_mels|n_mel_bins|feature_size|input_feat_per_channel|mel_bins", at_most(32)),
        (r"attention_chunk_size|block_size|chunk_length|index_block_size", at_most(16)),
        (
            r"\w*(?:hidden\w*|d_model|d_latents|n_embd|embed\w*|emb_dim|emb_size|projection\w*|proj_size|width|units|channels|dim|true_hidden_size|lru_width)",
            at_most(WIDTH),
        ),
    )
    return tuple((re.compile(pattern), change) for pattern, change in table)


RULES = _rules()
LAYERS = re.compile(r"(?:\w*_)?(?:num_(?:\w+_)?layers|n_layers?|layers|depth|num_blocks)")
KEPT_LAYERS = re.compile(r"num_(?:conv|adapter|lstm|feat_extract|residual|kv_shared)\w*|\w*extract_layers")
LAYER_NUMBERS = re.compile(r"\w*(?:indexes|indices|idxs|layers|layer_ids|hook_ids|layer_list|blocks|_index)")
DERIVED = ("out_features", "out_indices", "stage_names")  # of a tower that is a backbone
TOKEN = re.compile(
    r"\w*(?:token_id|token_ids|token_index|bos_id|eos_id|pad_id|start_id|end_id|newline_id|think\w*_id|patch_id)"
)
KV = re.compile(r"(\w*?)(?:num_)?(?:kv_heads|key_value_heads|num_kv\w*|key_value_attention_heads|num_query_groups)")


def shrunk(config: dict[str, Any]) -> dict[str, Any]:
    """A copy of a config's dictionary with tiny sizes."""
    tokens: dict[int, int] = {}
    return _table(deepcopy(config), tokens)


def _table(table: dict[str, Any], tokens: dict[int, int]) -> dict[str, Any]:
    chosen = _layers(table)
    found: dict[str, Any] = {}
    for field, value in table.items():
        if field in DERIVED:
            found[field] = None
        elif isinstance(value, dict) and value and all(str(key).isdecimal() for key in value):
            found[field] = _by_layer(value, tokens, chosen)
        elif isinstance(value, dict):
            found[field] = (
                value
                if field in ("id2label", "label2id")
                else _rope(value)
                if "rope" in field
                else _table(value, tokens)
            )
        elif isinstance(value, bool) or value is None:
            found[field] = value
        elif TOKEN.fullmatch(field):
            found[field] = _tokens(value, tokens)
        elif isinstance(value, int):
            found[field] = _number(field, value, table, chosen)
        elif isinstance(value, list | tuple):
            found[field] = _list(field, value, table, chosen)
        else:
            found[field] = value
    return found


def _by_layer(value: dict[Any, Any], tokens: dict[int, int], chosen: dict[str, list[int]]) -> dict[int, Any]:
    """A table with a row for some layers, of those that stay, by their new numbers."""
    layers = max(chosen.values(), key=len, default=[])
    numbers = {int(key): row for key, row in value.items()}
    return {new: _table(numbers[old], tokens) for new, old in enumerate(layers) if isinstance(numbers.get(old), dict)}


def _number(field: str, value: int, table: dict[str, Any], chosen: dict[str, list[int]]) -> int:
    if field in chosen:
        return len(chosen[field])
    if KV.fullmatch(field):
        return _kv(field, value, table)
    for pattern, change in RULES:
        if pattern.fullmatch(field):
            return change(value)
    return value


def _kv(field: str, value: int, table: dict[str, Any]) -> int:
    """One head stays one, as many as there are queries stay that, and any other number becomes half of them."""
    heads = [
        other
        for name, other in table.items()
        if name.endswith(("attention_heads", "n_head", "num_heads")) and isinstance(other, int)
    ]
    return value if value <= 1 else HEADS if value in heads else HEADS // 2


def _layers(table: dict[str, Any]) -> dict[str, list[int]]:
    """Which layers stay, for every field that counts some: one of each sort, and two at least."""
    chosen = {}
    for field, count in table.items():
        field = str(field)
        if not isinstance(count, int) or isinstance(count, bool) or count < 2:
            continue
        if not LAYERS.fullmatch(field) or KEPT_LAYERS.fullmatch(field):
            continue
        lists = [value for value in table.values() if isinstance(value, list | tuple) and len(value) == count]
        sorts: dict[str, int] = {}
        for layer, entry in enumerate(zip(*lists, strict=True) if lists else []):
            sorts.setdefault(repr(entry), layer)
        kept = sorted(sorts.values())[:MOST_LAYERS]
        kept += [layer for layer in range(count) if layer not in kept][: max(0, 2 - len(kept))]
        chosen[field] = sorted(kept)
    return chosen


def _list(field: str, value: list | tuple, table: dict[str, Any], chosen: dict[str, list[int]]) -> list:
    for counter, layers in chosen.items():
        if len(value) == table[counter] and not (
            LAYER_NUMBERS.fullmatch(field) and list(value) == list(range(len(value)))
        ):
            return [_item(field, value[layer]) for layer in layers]
    numbers = bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    if numbers and LAYER_NUMBERS.fullmatch(field) and chosen:
        layers = max(len(kept) for kept in chosen.values())
        return [item for item in value if item < layers] or [layers - 1]
    if field == "mrope_section":
        return _sections(value)
    return [_item(field, item) for item in value]


def _item(field: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        singular = field.removesuffix("s") if field.endswith("sizes") else field.removesuffix("_per_layer")
        return _number(singular, value, {}, {})
    return value


def _tokens(value: Any, tokens: dict[int, int]) -> Any:
    """Ids beyond the vocabulary become ids at its end, each its own."""
    if isinstance(value, list):
        return [_tokens(item, tokens) for item in value]
    if not isinstance(value, int) or value < VOCABULARY:
        return value
    return tokens.setdefault(value, VOCABULARY - 1 - len(tokens))


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    """A table of rotations: sections of a head's half, whatever head there was."""
    found = {}
    for field, entry in value.items():
        if isinstance(entry, dict):
            found[field] = _rope(entry)
        elif field == "mrope_section":
            found[field] = _sections(entry)
        elif field == "original_max_position_embeddings":
            found[field] = min(entry, POSITIONS // 4)
        else:
            found[field] = entry
    return found


def _sections(value: list) -> list:
    if not isinstance(value, list) or not value:
        return value
    each, rest = divmod(HEAD // 2, len(value))
    return [each + (number < rest) for number in range(len(value))]


# Repairs of what was lowered, each tried where the ones before were not enough.

USUAL: dict[str, Any] = {  # of fields that are left open, for models that cannot do without
    "head_dim": HEAD,
    "num_key_value_heads": HEADS // 2,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": INNER,
    "intermediate_size": INNER,
    "sliding_window": 8,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
}


def filled(table: dict[str, Any]) -> dict[str, Any]:
    """Sizes that are left open, said."""
    return {
        field: filled(value) if isinstance(value, dict) else USUAL.get(field, value) if value is None else value
        for field, value in table.items()
    }


def with_sections(table: dict[str, Any]) -> dict[str, Any]:
    """Sections of rotations said, which models that see images otherwise take for heads of the usual size."""
    found = {field: with_sections(value) if isinstance(value, dict) else value for field, value in table.items()}
    if "rope_type" in found:
        found["mrope_section"] = _sections([0, 0, 0])
    return found


REPAIRS: tuple[Callable[[dict[str, Any]], dict[str, Any]], ...] = (dict, filled, with_sections)
