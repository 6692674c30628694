"""A model whose blocks are read when they are needed: in memory are one block and what lies outside the blocks.

The model is built with its parameters on the meta device and its tables of places and the like as they are; what lies
outside the blocks is loaded, and of a block a copy is filled from the checkpoint when it is asked for, by the rules
that transformers loads with. What that costs: the largest block and all outside the blocks, in the dtype that is run.
"""

import copy
import ctypes
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import InputError
from karipap_core.models.empty import empty_model, explained, live_config, quiet
from karipap_core.models.names import Names
from karipap_core.models.sites import Site, sites

if TYPE_CHECKING:  # its models take six seconds to import
    from transformers import PreTrainedModel

BLOCKS_SHARE = 0.5  # of the compressible parameters that have to lie in blocks, for reading them apart to be worth it


class Streamed:
    """The model of a checkpoint with one block in memory at a time.

    model : transformers' model; the parameters of `blocks` (paths, in the model's order) are empty.  outside : sites of
    weights outside the blocks, which are there all the time.  dtype : of parameters and activations.  Raises InputError
    where the model cannot be built, or what a block or the rest needs is not what the checkpoint's tensors give.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu", apart: bool = True
    ):
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, device
        architecture = type(empty_model(checkpoint))
        with quiet(), explained(f"{checkpoint.name} cannot be built by transformers"), _parameters_on_meta():
            config = live_config(checkpoint)
            config.return_dict = True
            self.model: PreTrainedModel = architecture._from_config(config, dtype=dtype)
        self.model.eval()
        self.blocks = block_paths(self.model, checkpoint) if apart else []
        self._weights: dict[str | None, list[Weight]] = defaultdict(list)
        self._tensors: dict[str | None, list[str]] = defaultdict(list)
        names = Names(self.model, checkpoint.tensors)
        self._live = {tensor: names.live(tensor)[0] for tensor in checkpoint.tensors}
        for tensor, live in self._live.items():
            self._tensors[_within(live, self.blocks)].append(tensor)
        for weight in checkpoint.weights:
            if weight.compressible:
                self._weights[self.home_of(weight, self.blocks)].append(weight)
        self._held: tuple[str, nn.Module, dict[str, Site]] | None = None
        self._fill(self.model, None)
        self.model.tie_weights()
        for name, parameter in list(self.model.named_parameters()):
            if parameter.is_meta and not _within(
                name, self.blocks
            ):  # a pooler, say: `empty_model` lets no other one pass
                owner = self.model.get_submodule(name.rpartition(".")[0])
                setattr(owner, name.rpartition(".")[2], nn.Parameter(torch.zeros(parameter.shape, dtype=dtype), False))
        self._move()
        self.outside = sites(self.model, checkpoint, among=self._weights[None])

    def _move(self) -> None:
        """Puts what is not empty on the device."""
        if self.device == "cpu":
            return
        for module in self.model.modules():
            for parameter in module.parameters(recurse=False):
                if not parameter.is_meta:
                    parameter.data = parameter.data.to(self.device)
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(self.device)

    def weights_of(self, path: str | None) -> list[Weight]:
        """The compressible weights in a block, or (None) outside the blocks."""
        return self._weights[path]

    def home_of(self, weight: Weight, blocks: Sequence[str]) -> str | None:
        """Which of these blocks a weight is in."""
        return _within(self._live[weight.tensor], blocks)

    def block(self, path: str) -> tuple[nn.Module, dict[str, Site]]:
        """The block at a path with its weights, and where each is in it. The one that was asked for before is gone."""
        if self._held is None or self._held[0] != path:
            self._held = None
            give_back()
            shell = self.model.get_submodule(path)
            stand_in = shell.__dict__.pop("forward", None)  # while a pass is under way (blockwise.py)
            module = copy.deepcopy(shell)
            shell.__dict__ |= {"forward": stand_in} if stand_in else {}
            self.model.set_submodule(path, module)
            try:
                self._fill(self.model, path)
                found = sites(self.model, self.checkpoint, among=self._weights[path], within=path)
            finally:
                self.model.set_submodule(path, shell)
            self._held = path, module.to(self.device), found
        return self._held[1], self._held[2]

    def _fill(self, model: "PreTrainedModel", path: str | None) -> None:
        """Loads the tensors of a block, or of what lies outside the blocks, into the model."""
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        tensors = {tensor: self.checkpoint.read_tensor(tensor) for tensor in self._tensors[path]}
        rules: Any = get_model_conversion_mapping(model)
        settings = LoadStateDictConfig(weight_mapping=rules, dtype=self.dtype, device_map={"": "cpu"})
        with quiet(), explained(f"{self.checkpoint.name} cannot be loaded by transformers"), torch.no_grad():
            convert_and_load_state_dict_in_model(model, tensors, settings)
        module = model if path is None else model.get_submodule(path)
        for name, parameter in module.named_parameters():
            if parameter.is_meta and path is not None:
                raise InputError(f"{self.checkpoint.name} lacks parameter {path}.{name}: fetch it again.")
            if not parameter.is_meta and not parameter.isfinite().all():
                raise self.checkpoint.damaged(name if path is None else f"{path}.{name}")
            parameter.requires_grad_(False)


def give_back() -> None:
    """Gives freed memory back to the system, where the C library can: a model that is gone leaves many small pieces."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _within(name: str, blocks: Sequence[str]) -> str | None:
    """The block that a parameter of this name is in."""
    parts, known = name.split("."), set(blocks)
    return next((path for end in range(len(parts), 0, -1) if (path := ".".join(parts[:end])) in known), None)


def block_paths(model: "PreTrainedModel", checkpoint: Checkpoint) -> list[str]:
    """Paths of the model's blocks, in its order: the modules by number that weights of the blocks are in."""
    found: set[str] = set()
    names = Names(model, checkpoint.tensors)
    for weight in checkpoint.weights:
        if not weight.compressible or weight.layer is None:
            continue
        parts = names.live(weight.tensor)[0].split(".")
        if str(weight.layer) in parts:
            found.add(".".join(parts[: parts.index(str(weight.layer)) + 1]))
    return [path for path, _ in model.named_modules() if path in found]


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters of modules that are made within are empty; buffers are what they are made as."""
    register = nn.Module.register_parameter

    def empty(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = type(parameter)(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = empty  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
