"""PEFT's LoRA on compressed layers: y = Ŵ x + s B (A x), where Ŵ stays a network and A and B learn.

PEFT chooses an adapter's class by the class of the layer beneath, and knows torch's own alone. This adds the layers of
`karipap_core.layers` to what it knows, the moment PEFT is imported (see `karipap_core/__init__.py`). What would write
to the weight beneath (merging, starts such as PiSSA's) is refused: Ŵ is not stored, and PEFT would write to a copy.
"""

import inspect
import warnings
from functools import wraps
from importlib import metadata
from typing import Any

import torch
from peft.tuners import tuners_utils
from peft.tuners.lora import layer as lora
from peft.tuners.lora import model as lora_model
from peft.utils.other import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from karipap_core.errors import InputError
from karipap_core.layers.cores import CoresModule
from karipap_core.layers.embedding import TensorNetworkEmbedding
from karipap_core.layers.linear import TensorNetworkLinear

STARTS = ("gaussian", "orthogonal", "eva")  # values of init_lora_weights that leave the layer's own weight alone
UNMERGED = (
    "An adapter cannot be merged into a compressed layer, whose weight is not stored: keep the adapter beside the "
    "folder, or write a dense folder (karipap densify), put the adapter on that and merge it there."
)


class _OnNetwork:
    """What both adapters refuse."""

    def update_layer(self, *args: Any, **more: Any) -> None:
        start = more["config"].init_lora_weights
        if isinstance(start, str) and start.lower() not in STARTS:
            raise InputError(
                f"init_lora_weights {start!r} changes the weight beneath, which a compressed layer does not store: "
                f"take true, {', '.join(STARTS)}."
            )
        super().update_layer(*args, **more)  # type: ignore[misc]  # of PEFT's class, which stands beside this one

    def merge(self, *args: Any, **more: Any) -> None:
        raise InputError(UNMERGED)


class NetworkLinear(_OnNetwork, lora.Linear):
    """LoRA on a `TensorNetworkLinear`."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.in_features, module.out_features


class NetworkEmbedding(_OnNetwork, lora.Embedding):
    """LoRA on a `TensorNetworkEmbedding`."""

    def _get_in_out_features(self, module: Any) -> tuple[int, int]:
        return module.num_embeddings, module.embedding_dim

    def _embed(self, input: torch.Tensor, weight: torch.Tensor, *parallel: Any, **more: Any) -> torch.Tensor:
        table: Any = self.get_base_layer()
        return nn.functional.embedding(input, weight, table.padding_idx)

    def _get_embed_scale(self):
        table: Any = self.get_base_layer()
        return None if table.scale is None else torch.tensor(table.scale, dtype=table.cores.dtype)


CLASSES: dict[type, Any] = {TensorNetworkLinear: NetworkLinear, TensorNetworkEmbedding: NetworkEmbedding}


def register() -> None:
    """Makes the layers known to PEFT. An older or newer PEFT that is made otherwise stays as it is, and that is said:
    whoever imports it may not want adapters on compressed layers at all."""
    wrappers = (
        (lora_model, "dispatch_default", _dispatch),
        (lora_model.LoraModel, "_check_merge_allowed", _check_merge),
        (ModulesToSaveWrapper, "check_module", _check_module),
        (tuners_utils, "_maybe_include_all_linear_layers", _all_linear),
    )
    known = all(hasattr(owner, name) for owner, name, _ in wrappers)
    if not known or "config" not in inspect.signature(lora_model.dispatch_default).parameters:
        version = metadata.version("peft")
        warnings.warn(f"PEFT {version} puts no LoRA on Karipap's compressed layers; 0.21.2 does.", stacklevel=2)
        return
    for owner, name, wrapped in wrappers:
        setattr(owner, name, wrapped(getattr(owner, name)))


def _dispatch(known):
    """PEFT's choice of a class, which asks here first."""

    @wraps(known)
    def dispatch(target: nn.Module, adapter_name: str, config, **more: Any) -> nn.Module | None:
        beneath = target.get_base_layer() if isinstance(target, tuners_utils.BaseTunerLayer) else target
        if not isinstance(beneath, CoresModule) or more.get("parameter_name") is not None:
            return known(target, adapter_name, config=config, **more)
        return CLASSES[type(beneath)](target, adapter_name, config=config, **more)

    return dispatch


def _check_merge(known):
    """Whether merging is allowed, asked before the first layer is merged: none is left half merged."""

    @wraps(known)
    def check(self) -> None:
        known(self)
        if any(isinstance(module, _OnNetwork) for module in self.model.modules()):
            raise InputError(UNMERGED)

    return check


def _check_module(known):
    """Whether a whole layer can be trained beside the adapter (`modules_to_save`), which PEFT does on a copy of it."""

    @wraps(known)
    def check(self) -> None:
        known(self)
        layer = self.original_module
        if isinstance(layer, CoresModule) and not list(layer.cores.parameters()):
            raise InputError(
                "modules_to_save names a compressed layer without numbers of its own to train: its cores are another "
                "layer's (the embedding's, of a tied head) or packed in few bits. Name that layer, or take LoRA for it."
            )

    return check


def _all_linear(known):
    """`target_modules="all-linear"`, with the compressed linear layers among all."""

    @wraps(known)
    def include(config, model: nn.Module):
        asked = getattr(config, "target_modules", None)
        found = known(config, model)
        if asked is not found.target_modules:
            head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
            found.target_modules |= {
                name
                for name, module in model.named_modules()
                if isinstance(module, TensorNetworkLinear) and module is not head
            }
        return found

    return include


register()  # importing this is registering
