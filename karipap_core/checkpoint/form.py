"""The form that a checkpoint is stored in where that is not the one that the model computes with: quantized, packed
into another kind of file, or a model and an adapter of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.quantized import open_quantized
from karipap_core.checkpoint.tensorfile import TensorInfo
from karipap_core.terminal import size

if TYPE_CHECKING:  # torch takes a second to import
    import torch


@dataclass(frozen=True)
class Form:
    """`words` for people ("int4 (GPTQ, g128)"), the `stored` tensors by their names in the files, and the `recipe`:
    what besides them decides about the opened values (bits, scaling …), as JSON.

    `update` is a sentence where the tensors are no model's but the update that an adapter makes; `factors` then gives
    (out, r) and (r, in) whose product a tensor is.
    """

    words: str
    stored: dict[str, TensorInfo]
    recipe: dict[str, Any]
    update: str = ""
    factors: "dict[str, Callable[[], tuple[torch.Tensor, torch.Tensor]]]" = field(default_factory=dict)


def beside(stored: dict[str, Any], n_bytes: int) -> str:
    """A size beside that of the files as they are (`Checkpoint.as_stored`), in words: one may well be larger than the
    quantized file that it was made from."""
    share = n_bytes / max(stored["bytes"], 1)
    files = f"the {size(stored['bytes'])} of the files as they are"
    return f"{share:.0%} of {files}" if share < 1 else f"{share:.2f} times {files}: larger than what it comes from"


@dataclass(frozen=True)
class Opened:
    """A checkpoint in the form that the model computes with: the `config` without what told of the stored form, and the
    `tensors` by the names that transformers gives them, those of another form as `OpenedTensor`s."""

    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    form: Form | None = None


def opened(config: dict[str, Any], stored: dict[str, TensorInfo], name: str) -> Opened:
    """The tensors of a checkpoint as its model computes with them, by the rules of the library that quantized it.

    Raises InputError for a method that cannot be opened here, and for parts that are missing or do not fit.
    """
    inner = config.get("text_config") or {}
    settings = config.get("quantization_config") or inner.get("quantization_config") or config.get("quantization")
    if isinstance(settings, dict) and "quant_method" not in settings and config.get("quantization"):
        settings = settings | {"quant_method": "metal"}  # MLX writes this table, under two names
    if not settings and any(name.endswith("._data") for name in stored):
        settings = {"quant_method": "quanto"}  # which says so in a file of its own
    if not isinstance(settings, dict) or settings.get("quant_method") == "karipap":
        return Opened(config, stored)
    plain, tensors, words, recipe = open_quantized(config, settings, stored, name)
    return Opened(plain, tensors, Form(words, stored, recipe))
