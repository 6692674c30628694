"""What a model takes in memory, from a checkpoint's headers or from a config.json alone.

With a config alone the model is built on torch's meta device: every parameter with its shape, none with memory. So the
count is the one that transformers would load, tied tables once.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.roles import compressible, role_of
from karipap_core.deployment.kv import cache_of, heads_of
from karipap_core.errors import InputError
from karipap_core.models.empty import config_of, empty_model, from_config
from karipap_core.reading import read_json

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PretrainedConfig

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1, "int8": 1}
PREFILL = 2048  # tokens that an engine passes through the model at once while it reads a prompt (vLLM's default)


@dataclass(frozen=True)
class Matrix:
    """`count` equal matrices (out, in) of the blocks: what can be compressed or quantized. expert: of a mixture."""

    n_out: int
    n_in: int
    count: int = 1
    expert: bool = False

    @property
    def parameters(self) -> int:
        return self.n_out * self.n_in * self.count


@dataclass(frozen=True)
class Footprint:
    """What a model takes in memory.

    config: transformers' own; parameters and bytes: of the whole opened model, tied tables once; dtype: in which
    most of it is stored; matrices: of the blocks; checkpoint: where there are weights, None for a config alone;
    assumed: the config did not give the dtype.
    """

    name: str
    config: "PretrainedConfig"
    parameters: int
    bytes: int
    dtype: str
    matrices: tuple[Matrix, ...]
    checkpoint: Checkpoint | None = None
    assumed: bool = False

    @property
    def stored(self) -> dict | None:
        """{"form", "bytes"} of files that store the model smaller than it was opened to: quantized by somebody, and
        servable as they are (`Checkpoint.as_stored`)."""
        stored = self.checkpoint.as_stored if self.checkpoint else None
        return stored if stored and stored["bytes"] < self.bytes else None

    @property
    def itemsize(self) -> float:
        return self.bytes / self.parameters

    @property
    def block_parameters(self) -> int:
        return sum(matrix.parameters for matrix in self.matrices)

    def quantized(self, bits: Callable[[int, int], int]) -> int:
        """Bytes with the blocks' matrices stored in `bits(rows, columns)` bytes each and all else as it is."""
        dense = self.itemsize * self.block_parameters
        return round(self.bytes - dense) + sum(m.count * bits(m.n_out, m.n_in) for m in self.matrices)

    def active(self, n_bytes: int, batch: int) -> int:
        """Bytes of weights that one decoding step reads, of a model of `n_bytes`: all but the experts that no token of
        the batch goes to; those expected under even routing, 1 − (1 − k/E)^batch of them."""
        config = self.config.get_text_config(decoder=True)
        experts = next((getattr(config, key) for key in EXPERTS if getattr(config, key, None)), None)
        chosen = getattr(config, "num_experts_per_tok", None) or getattr(config, "num_experts_per_token", None)
        if not experts or not chosen or chosen >= experts:
            return n_bytes
        share = sum(m.parameters for m in self.matrices if m.expert) / self.parameters
        return round(n_bytes * (1 - share * (1 - chosen / experts) ** batch))

    @property
    def active_parameters(self) -> int:
        """Parameters that one token passes through: all but the experts that it does not go to."""
        return self.active(self.parameters, 1)

    def activations(self, tokens: int, batch: int) -> int:
        """Bytes that a pass holds at its peak, in 16 bits: a prefill chunk of c = min(PREFILL, tokens · batch) tokens,
        each with its residual stream twice, queries, keys and values (`_attention`), and twice the widest inside of an
        MLP (gate and up; `_inside`); and one row of logits in float32 for each sequence. Scores are never stored whole
        (flash attention). An estimate: engines and allocators add to it."""
        config = self.config.get_text_config(decoder=True)
        chunk = min(PREFILL, tokens * batch)
        each = 2 * config.hidden_size + _attention(config) + 2 * _inside(config)
        return 2 * chunk * each + 4 * batch * getattr(config, "vocab_size", 0)


def _attention(config) -> int:
    """Numbers of one token's queries, keys and values. Latent attention (MLA) forms every head's own from the latent
    while it reads a prompt."""
    if getattr(config, "kv_lora_rank", None):
        heads, key = config.num_attention_heads, config.qk_nope_head_dim + config.qk_rope_head_dim
        return heads * (2 * key + config.v_head_dim)
    if not getattr(config, "num_attention_heads", None):  # no attention: a state, about as wide
        return 3 * config.hidden_size
    kv_heads, heads = heads_of(config)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return width * (heads + 2 * kv_heads)


def _inside(config) -> int:
    """The widest MLP that a token passes: a dense one, or all experts that it goes to and the shared ones together."""
    dense = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    dense = max(dense) if isinstance(dense, list | tuple) else dense
    chosen = getattr(config, "num_experts_per_tok", None)
    if not chosen:
        return dense
    expert = getattr(config, "moe_intermediate_size", None) or dense
    shared = getattr(config, "shared_expert_intermediate_size", None)
    shared = shared or (getattr(config, "n_shared_experts", None) or 0) * expert
    return max(dense, chosen * expert + shared)


EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")


def footprint(model: str | Path) -> Footprint:
    """Of a model folder, a .safetensors file, a config.json (or a folder with nothing else), or a hub id, of which only
    the config is fetched. Raises InputError where there is none or transformers does not know the architecture."""
    path = Path(model).expanduser()
    if path.is_dir() and any(path.glob("*.safetensors")) or path.suffix == ".safetensors":
        return of_checkpoint(open_checkpoint(path))
    if path.is_dir():
        if not os.path.lexists(path / "config.json"):
            raise InputError(f"Folder {path} holds neither a model (.safetensors) nor a config.json.")
        return of_config(read_json(path / "config.json", lenient=True), path.resolve().name)
    if os.path.lexists(path):
        if path.suffix != ".json":
            raise InputError(f"{path} is neither a model folder, a .safetensors file nor a config.json.")
        name = path.absolute().parent.name if path.name == "config.json" else path.stem
        return of_config(read_json(path, lenient=True), name)
    return of_config(read_json(_hub_config(str(model)), lenient=True), str(model))


def of_config(document: dict, name: str = "model") -> Footprint:
    """The footprint of a config.json's contents."""
    config = config_of(document, name)
    cache_of(config)  # refuses a config that does not say what its cache is, before anything is built
    live = from_config(config, document, name)
    given = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    dtype = str(given).removeprefix("torch.") if given is not None else "bfloat16"
    if dtype not in ITEMSIZE:
        raise InputError(f"The config of {name}: dtype {dtype!r} is not one of {', '.join(ITEMSIZE)}.")
    parameters, matrices = 0, []
    shapes = [(key, tuple(value.shape)) for key, value in live.named_parameters()]
    mixture = any(".experts." in key for key, _ in shapes)
    for key, shape in shapes:
        parameters += math.prod(shape)
        base = key.removesuffix(".weight")
        role = role_of(base, mixture)
        stacked = len(shape) == 3 and ".experts." in key
        if compressible(role) and (stacked or (len(shape) == 2 and key.endswith(".weight"))):
            count = shape[0] if stacked else 1
            matrices.append(Matrix(shape[-2], shape[-1], count, ".experts." in key))
    return Footprint(
        name, config, parameters, parameters * ITEMSIZE[dtype], dtype, tuple(matrices), assumed=given is None
    )


def of_checkpoint(checkpoint: Checkpoint) -> Footprint:
    """The footprint of an open checkpoint, counted from its headers. Raises InputError where it has no config.json, or
    one that does not fit its tensors."""
    if not checkpoint.config:
        raise InputError(f"{checkpoint.name} has no config.json: nothing says how large its KV cache is.")
    config = config_of(checkpoint.config, checkpoint.name)
    cache_of(config)
    empty_model(checkpoint)
    dtypes = [weight.dtype for weight in checkpoint.weights]
    matrices = tuple(
        Matrix(weight.shape[0], weight.shape[1], expert=weight.expert is not None)
        for weight in checkpoint.weights
        if weight.compressible
    )
    dtype = max(set(dtypes), key=dtypes.count) if dtypes else "bfloat16"
    return Footprint(checkpoint.name, config, checkpoint.parameters, checkpoint.bytes, dtype, matrices, checkpoint)


def _hub_config(model: str) -> Path:
    import re

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise InputError(f"{model} does not exist: name a model folder, a config.json or a hub id such as owner/name.")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json"))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError):
        raise InputError(
            f"The config.json of {model} is neither in the hub's cache nor to be had from the hub: name a local file."
        ) from None
