"""The KV cache of a model, from its config.json alone: bytes, and where the cache can lie.

    bytes = Σ over layers  values a token · tokens kept · batch · bytes a value
    values a token = 2 · kv_heads · head_dim  (grouped queries: kv_heads < heads), or with latent attention (MLA)
                     kv_lora_rank + qk_rope_head_dim: one latent and one rotated key, for K and V together

Nothing here reads weights. Times are bytes over peak bandwidths: what no implementation can be faster than.
"""

from dataclasses import dataclass

from karipap_core.checkpoint.kinds import kind_of
from karipap_core.errors import InputError

GROUP = 64  # values that share a scale and a zero point where the cache has 4 bits
BITS = {"fp16": 16, "bf16": 16, "fp8": 8, "int8": 8, "int4": 4}
WINDOWED = {"sliding_attention", "chunked_attention", "hybrid_sliding", "reference_sliding_attention"}
STATEFUL = {"linear_attention", "conv", "mamba", "mamba2", "recurrent", "ssm"}  # one state, however long the text
NOTHING = {"dummy", "moe", "mlp"}


@dataclass(frozen=True)
class Layer:
    """values: numbers kept for each token; window: tokens kept at most (None: all); sparse: an indexer picks what is
    read."""

    values: int
    window: int | None = None
    sparse: bool = False


@dataclass(frozen=True)
class Cache:
    """layers: those that keep anything. kind: "MHA", "GQA", "MQA", "MLA", or "none". stateful: layers with a state of
    fixed size instead. top_k: tokens that a sparse model reads in each step (from its config)."""

    layers: tuple[Layer, ...]
    kind: str
    stateful: int = 0
    top_k: int | None = None

    @property
    def sparse(self) -> bool:
        return any(layer.sparse for layer in self.layers)

    @property
    def windowed(self) -> int:
        return sum(layer.window is not None for layer in self.layers)

    def bytes(self, tokens: int, batch: int, dtype: str = "fp16", keep: float = 1.0) -> int:
        """Bytes of `batch` sequences of `tokens`, scales included.

        keep: fraction of a layer's tokens that stay (a layer with a window keeps the window). fp8 and int8 have one
        16-bit scale a channel of each layer, fixed beforehand; int4 a 16-bit scale and a 16-bit zero point for each 64
        values of a token. Raises InputError for values that cannot be.
        """
        if dtype not in BITS:
            raise InputError(f"KV cache in {dtype!r}: one of {', '.join(BITS)}.")
        if tokens < 1 or batch < 1:
            raise InputError(f"{tokens} tokens, batch {batch}: both must be at least 1.")
        if not 0 < keep <= 1:
            raise InputError(f"KV kept {keep:g}: a fraction above 0 and at most 1.")
        bits, total = BITS[dtype], 0
        for layer in self.layers:
            kept = tokens if layer.window is None else min(tokens, layer.window)
            if layer.window is None and keep < 1:
                kept = max(1, round(keep * tokens))
            numbers = layer.values * kept * batch
            total += -(-numbers * bits // 8)
            if bits == 8:
                total += 2 * layer.values
            elif bits == 4:
                total += 4 * kept * batch * -(-layer.values // GROUP)
        return total


def cache_of(config) -> Cache:
    """The cache of a transformers config (`footprint.config_of`). Raises InputError where it does not say enough.

    Which layers see a window or keep a state is what the config says (`layer_types`, `sliding_window`), read as
    transformers' own cache reads it.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"A {config.model_type} is an encoder and a decoder: only decoders are planned for.")
    said = {key: getattr(config, key, None) for key in ("architectures", "model_type", "is_decoder", "causal")}
    if kind_of(said, True) != "causal":
        return Cache((), "none")  # an encoder sees its whole input at once and keeps nothing
    config = config.get_text_config(decoder=True)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise InputError(f"The config of a {config.model_type} does not say num_hidden_layers.")
    if not hasattr(config, "num_attention_heads"):
        return Cache((), "none", count)  # without attention, a layer keeps a state (RWKV)
    each = getattr(config, "per_layer_config", None) or [config] * count
    types = getattr(config, "layer_types", None)
    types = list(types) if types else [_type(layer) for layer in each]
    if modes := getattr(config, "kv_sharing_modes", None):
        types = ["dummy" if mode == "reuse" else kind for mode, kind in zip(modes, types, strict=True)]
    elif shared := getattr(config, "num_kv_shared_layers", 0):
        types = types[: count - shared] + ["dummy"] * shared  # they read the cache of an earlier layer
    layers, stateful = [], 0
    for kind, layer in zip(types, each, strict=True):
        if kind in NOTHING:
            continue
        if kind in STATEFUL:
            stateful += 1
            continue
        window = None
        if kind in WINDOWED:
            window = getattr(layer, "attention_chunk_size" if kind == "chunked_attention" else "sliding_window", None)
        indexed = kind == "indexed_attention"
        keys = getattr(layer, "index_head_dim", 0) or 0 if indexed else 0  # the indexer keeps a key of its own
        layers.append(Layer(_values(layer) + keys, window, indexed))
    top_k = getattr(config, "index_topk", None) if any(layer.sparse for layer in layers) else None
    return Cache(tuple(layers), _kind(config) if layers else "none", stateful, top_k)


def _type(config) -> str:
    if getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True):
        return "sliding_attention"
    return "chunked_attention" if getattr(config, "attention_chunk_size", None) else "full_attention"


def heads_of(config) -> tuple[int, int]:
    """(KV heads, query heads) of a transformers config. Raises InputError where it does not say."""
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int) or heads < 1:
        raise InputError(f"The config of a {config.model_type} does not say num_attention_heads.")
    if getattr(config, "new_decoder_architecture", False):  # Falcon
        return getattr(config, "num_kv_heads", heads), heads
    if getattr(config, "multi_query", False):
        return 1, heads
    return getattr(config, "num_key_value_heads", None) or heads, heads


def _values(config) -> int:
    if getattr(config, "kv_lora_rank", None):
        return config.kv_lora_rank + config.qk_rope_head_dim
    kv_heads, heads = heads_of(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 2 * kv_heads * width


def _kind(config) -> str:
    if getattr(config, "kv_lora_rank", None):
        return "MLA"
    kv_heads, heads = heads_of(config)
    return "MHA" if kv_heads == heads else "MQA" if kv_heads == 1 else "GQA"


@dataclass(frozen=True)
class Placement:
    """Where the cache lies. available: whether this model and these sizes allow it, and `why`; hbm and pool: bytes in
    the GPU's memory and outside it; seconds: least time of one decoding step of the whole batch (None: unknown)."""

    name: str
    available: bool
    why: str
    hbm: int
    pool: int
    seconds: float | None


def placements(
    whole: int,
    kept: int,
    selected: int,
    read: int,
    free: int,
    bandwidth: float | None,
    pcie: float | None,
    cxl: dict,
    signal: bool,
) -> list[Placement]:
    """The four places for a cache, in the order in which they are to be preferred.

    whole, kept, selected: bytes of all tokens, of those that stay (kv_keep) and of those that a step of sparse
    attention reads; read: bytes of weights that a step reads; free: bytes of the GPU left for the cache; bandwidth,
    pcie: of the GPU, in bytes a second; cxl: the pool of hardware.json; signal: whether something says which tokens
    matter. A step reads weights and cache from the GPU's memory while the part outside streams in: its time is the
    longer of the two, the least that any overlap can reach.

    Dense attention reads every token in every step, so that what lies outside has to come in whole: fetching a
    selection is open only where there is a signal.
    """
    link = min(pcie, cxl["bandwidth_gb_s"] * 1e9) if pcie else None
    fits, room = kept <= free, max(0, min(free, kept))
    over = kept - room

    def step(hbm: float, outside: float, over_link: float | None, latency: float = 0.0) -> float | None:
        if bandwidth is None or (outside and over_link is None):
            return None
        streaming = outside / over_link + latency if outside and over_link is not None else 0.0
        return max((read + hbm) / bandwidth, streaming)

    if free <= 0:
        reason = "The weights leave the GPU no room, so that no place for the cache helps: make the weights smaller."
        return [Placement(name, False, reason, 0, 0, None) for name in NAMES]
    inside = Placement(
        NAMES[0],
        fits,
        "All that is kept lies in the GPU's memory." if fits else "It does not fit the GPU's memory.",
        room,
        0,
        step(kept, 0, None) if fits else None,
    )
    needless = "Not needed: the cache fits the GPU."
    streams = "What does not fit streams in over {} in every step, whole: dense attention reads all of it."
    if signal:
        streams = "What does not fit streams in over {} in every step, whole, although a selection would do."
    offload = Placement(
        NAMES[1], not fits, needless if fits else streams.format("PCIe"), room, over, step(room, over, pcie)
    )
    pool = Placement(
        NAMES[2],
        not fits,
        needless
        if fits
        else streams.format("PCIe and CXL")
        + " It is no faster than host memory: it is for caches that host memory cannot hold, or that hosts share.",
        room,
        over,
        step(room, over, link, cxl["latency_ns"] * 1e-9),
    )
    if not signal:
        why = "Never for dense attention: nothing says which tokens a step may leave out."
        return [inside, offload, pool, Placement(NAMES[3], False, why, 0, 0, None)]
    hot = min(selected, free)
    outside = (
        "The whole cache lies outside; each step fetches the selected part (at most all of it, less what is still in)."
    )
    select = Placement(
        NAMES[3],
        whole > free,
        needless if whole <= free else outside,
        hot,
        whole,
        step(selected, selected, link, cxl["latency_ns"] * 1e-9),
    )
    return [inside, offload, pool, select]


NAMES = ("HBM only", "PCIe offload", "CXL pool", "hierarchical selective fetch")
