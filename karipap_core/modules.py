"""Where the weights of a checkpoint live in a model that transformers has loaded, for every architecture alike.

Between disk and memory transformers renames tensors, adds or drops the base model's prefix, and stacks experts. The
same rules that it loads with answer here, so that nobody else knows of it: a `Site` is one weight of the checkpoint
in the running model, to be read, replaced or watched.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming, rename_source_key
from transformers.pytorch_utils import Conv1D

from karipap_core.errors import InputError
from karipap_core.experts import stacked_experts, unstack
from karipap_core.networks.linear import TensorNetworkLinear

PART = re.compile(r"\*\.(\w+)\.weight$")


def merges_experts(conversion) -> bool:
    """Whether a conversion of transformers stacks separately stored experts."""
    return isinstance(conversion, WeightConverter) and any(
        isinstance(operation, MergeModulelist) for operation in conversion.operations
    )


class Names:
    """From names on disk to modules of one live model."""

    def __init__(self, model: nn.Module):
        conversions = get_model_conversion_mapping(model)
        self.model = model
        self.merges = [conversion for conversion in conversions if merges_experts(conversion)]
        self.renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
        self.others = [
            conversion
            for conversion in conversions
            if isinstance(conversion, WeightConverter) and not merges_experts(conversion)
        ]

    def unstack(self, stored_stacked: bool) -> None:
        """Unstacks the model's experts under the names that they have on disk (see `UnstackedExperts`)."""
        parts: dict[str, dict[str, list[str]]] = {}
        for path in stacked_experts(self.model) if not stored_stacked else ():
            for merge in self.merges:
                owner, _, stack = merge.target_patterns[0].rpartition(".")
                if f".{path}".endswith(f".{owner.lstrip('.')}"):
                    parts.setdefault(path, {})[stack] = [PART.search(name)[1] for name in merge.source_patterns]
        unstack(self.model, parts)

    def path(self, name: str) -> str:
        """The path of the module that holds the weight `name` (as on disk, without ".weight").

        Raises InputError where the model has no such module, or holds the weight in another form than it is stored.
        """
        known = self._known()
        live, converter = rename_source_key(
            f"{name}.weight", self.renamings, self.others, self.model.base_model_prefix, known
        )
        if live not in known:
            # The name is already the model's own, and a renaming that is meant for older files spoilt it.
            live, _ = rename_source_key(f"{name}.weight", [], [], self.model.base_model_prefix, known)
        if live not in known or converter is not None:
            raise InputError(f"{type(self.model).__name__} holds no linear layer for weight {name}: leave it dense.")
        return live.removesuffix(".weight")

    def _known(self) -> dict[str, bool]:
        if not hasattr(self, "_modules"):
            self._modules = {f"{path}.weight": True for path, _ in self.model.named_modules() if path}
        return self._modules


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes y = W x + b: `nn.Linear`, GPT-2's `Conv1D`, or one of Karipap's."""
    return isinstance(module, nn.Linear | Conv1D | TensorNetworkLinear)


@dataclass
class Site:
    """One weight of a checkpoint in a live model."""

    name: str
    path: str
    module: nn.Module

    def get(self) -> torch.Tensor:
        """W (out, in) as it acts now, in the model's dtype and on its device; a view where the module holds W."""
        weight = self.module.weight.detach()
        return weight.T if isinstance(self.module, Conv1D) else weight

    @contextmanager
    def replaced(self, W: torch.Tensor) -> Iterator[None]:
        """Within the context the module computes with W (out, in), cast to its dtype and device; then as before.

        Raises InputError for a W of another shape, and for a module that is a tensor network already.
        """
        if not isinstance(self.module, nn.Linear | Conv1D):
            raise InputError(f"Weight {self.name} is a {type(self.module).__name__} and cannot be replaced.")
        if tuple(W.shape) != tuple(self.get().shape):
            raise InputError(f"Weight {self.name} is {tuple(self.get().shape)}, not {tuple(W.shape)}.")
        parameter, kept = self.module.weight, self.module.weight.data
        stored = W.T if isinstance(self.module, Conv1D) else W
        parameter.data = stored.to(kept).contiguous()
        try:
            yield
        finally:
            parameter.data = kept


def sites(model: nn.Module, checkpoint) -> dict[str, Site]:
    """The compressible weights of `checkpoint` in `model` (loaded from it, dense or compressed), by name.

    Stacked experts are unstacked in place (no copy; the same function). A weight that the model does not compute
    with as one linear layer is left out.
    """
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    names = Names(model)
    names.unstack(any(weight.index is not None for weight in weights))
    found = {}
    for weight in weights:
        try:
            path = names.path(weight.name)
        except InputError:
            continue
        module = model.get_submodule(path)
        if is_linear(module):
            found[weight.name] = Site(weight.name, path, module)
    return found


@contextmanager
def replaced(found: dict[str, Site], matrices: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within the context every weight named in `matrices` (name → W (out, in)) acts as given; then as before."""
    with ExitStack() as stack:
        for name, W in matrices.items():
            stack.enter_context(found[name].replaced(W))
        yield


@contextmanager
def observe(
    found: dict[str, Site],
    inputs: Callable[[str, torch.Tensor], None] | None = None,
    gradients: Callable[[str, torch.Tensor], None] | None = None,
) -> Iterator[None]:
    """Within the context, every pass of every site is reported.

    `inputs(name, x)` with x (tokens, in) in the forward pass, `gradients(name, g)` with g (tokens, out) = ∂/∂(W x) in
    the backward pass, row for row the same tokens; for an expert, those routed to it. Gradients come only where the
    output requires one (a parameter before it, or its own, does). Detached, in the model's dtype; keep copies.
    """

    def seen(name, module, arguments, output):
        if inputs is not None:
            x = arguments[0].detach()
            inputs(name, x.reshape(-1, x.shape[-1]))
        if gradients is not None and output.requires_grad:
            output.register_hook(lambda g: gradients(name, g.detach().reshape(-1, g.shape[-1])))

    handles = [site.module.register_forward_hook(partial(seen, name)) for name, site in found.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
