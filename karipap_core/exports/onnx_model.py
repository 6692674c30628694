"""The model that a graph is taken from: as transformers builds it, without numbers, weights in their parts."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from karipap_core.checkpoint.kinds import kind_of
from karipap_core.checkpoint.tensorfile import Piece, copied, word_of
from karipap_core.compressed.folder import computed
from karipap_core.errors import InputError
from karipap_core.exports.adapter import adapter_pair
from karipap_core.exports.onnx_layers import (
    Attributes,
    Bytes,
    InBlocks,
    Network,
    Pair,
    Stored,
    blocks_of,
    contracts,
    empty,
    in_blocks,
)
from karipap_core.exports.source import MATRIX, Part, Source
from karipap_core.models.classes import class_of
from karipap_core.models.empty import check_config, config_explained, config_of, explained, quiet
from karipap_core.models.names import Names
from karipap_core.models.sites import is_linear

ATTENTION = "karipap_onnx"
OPSET = 23  # the first with a node for attention


def attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **others):
    """Attention as one node of ONNX: query (batch, heads, n, width), key and value (batch, fewer heads, n + past, …), a
    mask of true and false or of what is added."""
    unknown = [name for name in ("s_aux", "position_bias", "head_mask") if others.get(name) is not None]
    if unknown or attention_mask is None:
        raise InputError(f"its attention takes {', '.join(unknown) or 'no mask'}, which ONNX's has no place for")
    settings: Attributes = {"scale": float(scaling if scaling is not None else query.shape[-1] ** -0.5)}
    if softcap is not None:
        settings["softcap"] = float(softcap)
    out = torch.onnx.ops.symbolic(
        "::Attention",
        (query, key, value, attention_mask),
        settings,
        dtype=query.dtype,
        shape=(*query.shape[:-1], value.shape[-1]),
        version=OPSET,
    )
    return out.transpose(1, 2).contiguous(), None


def mask(*arguments, **settings):
    """The mask of true and false, also where torch's attention would do without."""
    return ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*arguments, **settings | {"allow_is_causal_skip": False})


AttentionInterface.register(ATTENTION, attention)
AttentionMaskInterface.register(ATTENTION, mask)


@dataclass
class Model:
    """live : without numbers. pieces : what fills its parameters, by their names. cache : (heads, width of keys, width
    of values) of each layer. positions : whether it is told the tokens' places."""

    live: PreTrainedModel
    pieces: dict[str, Piece]
    cache: list[tuple[int, int, int]]
    positions: bool


class Plain:
    """The ordinary model of a compressed folder, its parameters without numbers.

    Raises InputError where it is none whose graph can be taken: one that does not predict the next token, that
    transformers cannot build, or that computes with a tensor in another form than it is stored.
    """

    def __init__(self, source: Source) -> None:
        from accelerate import init_empty_weights

        name, document = source.checkpoint.name, source.config
        does = kind_of(document, True)
        if does != "causal":
            raise InputError(f"{name} is an {does} model: only those that predict the next token are exported to ONNX.")
        check_config(document, name)
        config = config_of(document, name)
        if config.get_text_config() is not config:
            raise InputError(f"{name} sees or hears beside reading text: only models of text are exported to ONNX.")
        with quiet(), config_explained(name, document), init_empty_weights(include_buffers=False):
            architecture = class_of(config, does, name)
            model = architecture._from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
        model.tie_weights()  # behind the block: within it, every parameter becomes one of its own
        self.source, self.model = source, model.eval()
        self.pieces = source.pieces()
        self.names = Names(model, self.pieces)
        held = dict(model.named_parameters(remove_duplicate=False))
        self.tied = {*model.all_tied_weights_keys, *model.all_tied_weights_keys.values()}
        kind = type(model).__name__
        if stacks := [each for each, parameter in held.items() if parameter.dim() > 2]:
            raise InputError(f"{name}: a {kind} computes with {stacks[0]}, which is no matrix, not exported to ONNX.")
        for tensor in self.pieces:
            live, pattern = self.names.live(tensor)
            if live in held and pattern is not None:
                raise InputError(
                    f"{name}: a {kind} computes with {tensor} in another form than it is stored, which is not exported "
                    "to ONNX."
                )

    def path(self, name: str) -> str:
        """The module of a weight that the model holds as one."""
        return self.names.live(f"{name}.weight")[0].removesuffix(".weight")

    def why_dense(self, part: Part) -> str:
        """Why a weight is stored as a dense matrix, "" where it is stored in its parts."""
        if self.source.plain:
            return "as asked"
        if part.form == MATRIX and not contracts(self.source.spec(part.name)):
            return "its cores are packed, shared, or cost more than the matrix that they stand for"
        path = self.path(part.name)
        if f"{path}.weight" in self.tied or part.role == "embed":
            return "rows of the table are looked up"
        module = None if part.held.stack else dict(self.model.named_modules()).get(path)
        return "" if module is not None and is_linear(module) else "the model does not hold it as a linear layer"

    def filled(self) -> Model:
        """The model with compressed weights in their parts, and what fills it. Raises InputError where its cache is
        another than of keys and values, and for a parameter that no tensor gives."""
        model, source = self.model, self.source
        parts = [part for part in source.parts() if not self.why_dense(part)]
        paths = {part.name: self.path(part.name) for part in parts}
        live = {tensor: self.names.live(tensor)[0] for tensor in self.pieces}
        _without_numbers(model)
        cache = _cache_of(model, source.checkpoint.name)
        read = lru_cache(maxsize=1)(source.part)
        own: dict[str, list[Piece]] = {}
        for name, path in paths.items():
            bias = getattr(model.get_submodule(path), "bias", None)
            if read(name).form == MATRIX:
                layer, own[name] = network_of(source, name, path, bias)
            else:
                layer, own[name] = layer_of(read(name), path, bias, partial(read, name))
            model.set_submodule(path, layer)
        held = dict(model.named_parameters(remove_duplicate=False))
        pieces = {
            name: piece
            for tensor, piece in source.pieces(own.get).items()
            if (name := live.get(tensor, tensor)) in held
        }
        given = {id(held[name]) for name in pieces}
        for name, parameter in held.items():
            if id(parameter) not in given:
                raise InputError(f"{source.checkpoint.name} lacks parameter {name} of a {type(model).__name__}.")
        return Model(model, pieces, cache, "position_ids" in inspect.signature(model.forward).parameters)


def layer_of(part: Part, path: str, bias: nn.Parameter | None, read: Callable[[], Part]) -> tuple[Stored, list[Piece]]:
    """What stands in the model at `path` for a weight, and the pieces that fill it, which `read` it when written."""
    pieces: list[Piece] = []

    def add(name: str, like: torch.Tensor, tensor: Callable[[], torch.Tensor]) -> None:
        pieces.append(computed(f"{path}.{name}", word_of(like.dtype), tuple(like.shape), tensor))

    grid: nn.Module | None = None
    if part.grid is not None:
        grid = grid_of(part)
        for key, tensor in grid_tensors(part).items():
            add(f"grid.{key}", tensor, partial(lambda key: grid_tensors(read())[key], key))
    pair = None
    if part.pair is not None:
        pair = Pair(*part.shape, part.rank)
        for number, key in enumerate(("left", "right")):
            tensor = adapter_pair(part, part.rank)[number]
            add(f"pair.{key}", tensor, partial(lambda number: adapter_pair(read(), part.rank)[number], number))
    return Stored(bias, grid, pair), pieces


def network_of(source: Source, name: str, path: str, bias: nn.Parameter | None) -> tuple[Stored, list[Piece]]:
    """The layer of a weight that stays a network, and its cores as the folder stores them."""
    network, tensors = Network(source.spec(name)), source.checkpoint.tensors
    pieces = [copied(f"{path}.network.cores.{k}", tensors[f"{name}.cores.{k}"]) for k in range(len(network.cores))]
    return Stored(bias, network=network), pieces


def grid_of(part: Part) -> InBlocks | Bytes:
    """The module of a weight's whole numbers."""
    assert part.grid is not None
    blocks = blocks_of(part.grid.bits, part.grid.group, part.shape[1])
    return Bytes(*part.shape, part.grid.group) if blocks is None else InBlocks(*part.shape, blocks)


def grid_tensors(part: Part) -> dict[str, torch.Tensor]:
    """What fills the module of `grid_of`, by the names of its parameters."""
    assert part.grid is not None
    blocks = blocks_of(part.grid.bits, part.grid.group, part.shape[1])
    if blocks is None:
        return {"codes": part.grid.codes, "scales": part.grid.scales, "zeros": part.grid.zeros}
    return in_blocks(part.grid, blocks)


def _without_numbers(model: nn.Module) -> None:
    """Parameters on the meta device become some of the CPU that take no memory either; those that are one stay one."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = made.setdefault(id(parameter), empty(parameter.shape))


@torch.no_grad()
def _cache_of(model: PreTrainedModel, name: str) -> list[tuple[int, int, int]]:
    """(heads, width of keys, width of values) of each layer's cache, by a run on one token."""
    with quiet(), explained(f"{name} cannot be run with a cache"):
        cache = model(torch.zeros(1, 1, dtype=torch.long), use_cache=True).past_key_values
    found = []
    for layer in cache.layers if isinstance(cache, DynamicCache) else [None]:
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer) or keys is None or values is None:
            raise InputError(f"{name} keeps more of earlier tokens than keys and values, and is not exported to ONNX.")
        found.append((keys.shape[1], keys.shape[3], values.shape[3]))
    return found
