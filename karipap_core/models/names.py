"""From the names of weights on disk to modules of a live model, by the rules that transformers loads with."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from karipap_core.checkpoint.layouts import operand
from karipap_core.errors import InputError
from karipap_core.models.experts import stacked_experts, with_stacks
from karipap_core.models.fused import Part, fuse
from karipap_core.models.operands import HeadsOperand, Patches, WholeOperand, is_patches, stand_in

if TYPE_CHECKING:  # its models take six seconds to import
    from transformers import PreTrainedModel
    from transformers.core_model_loading import WeightConverter, WeightRenaming


def part_of(pattern: str) -> str:
    """The name of an expert's module in a pattern of transformers: "gate_proj" of "mlp.experts.*.gate_proj.weight"."""
    return pattern.removesuffix(".weight").rpartition(".")[2]


def merges_experts(conversion) -> bool:
    """Whether a conversion of transformers stacks separately stored experts."""
    from transformers.core_model_loading import MergeModulelist, WeightConverter

    return isinstance(conversion, WeightConverter) and any(
        isinstance(operation, MergeModulelist) for operation in conversion.operations
    )


class Names:
    """From names on disk to modules of one live model.

    stored : the names of what is stored; some renamings of transformers only hold where another name was seen before.
    """

    def __init__(self, model: "PreTrainedModel", stored: Iterable[str] = ()):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        conversions = get_model_conversion_mapping(model)
        self.model = model
        self.merges = [conversion for conversion in conversions if merges_experts(conversion)]
        self.renamings = [conversion for conversion in conversions if isinstance(conversion, WeightRenaming)]
        self.others = [
            conversion
            for conversion in conversions
            if isinstance(conversion, WeightConverter) and not merges_experts(conversion)
        ]
        seeing = [each for each in self.renamings if hasattr(each, "_active")]
        for name in sorted(stored) if seeing else ():
            rename_source_key(name, self.renamings, [])
        self.moved: dict[str, str] = {}  # stacks, and weights that are stored fused, by name → where their modules are
        self.stacks: set[str] = set()  # those of `moved` that are stacks
        self._modules: dict[str, bool] = {}

    def unstack(self, stacks: Iterable[str], merged: bool, within: str = "") -> None:
        """Splits stacks of the model, so that `path` finds the modules of their slices.

        stacks : stacked tensors by their names on disk.  merged : also those of experts that are stored one by one, in
        the module at the path `within`.
        """
        for path in stacked_experts(self.model) if merged else ():
            if not f"{path}.".startswith(f"{within}." if within else ""):
                continue
            for merge in self.merges:
                owner, _, stack = merge.target_patterns[0].rpartition(".")
                if f".{path}".endswith(f".{owner.lstrip('.')}") and (module := with_stacks(self.model, path)):
                    module.split(stack, [part_of(name) for name in merge.source_patterns])
        for tensor in stacks:
            self._split(tensor)
        self._modules = {}

    def _split(self, tensor: str) -> None:
        """Splits one stored stack, where the model holds it as one."""
        live, pattern = self.live(tensor)
        if pattern is None and self._stand_in(tensor, live, heads=True):
            self.moved[tensor], self.stacks = live, self.stacks | {tensor}
            return
        converter = None if pattern is None else self._converter(pattern)
        if converter and len(converter.target_patterns + converter.source_patterns) > 2:
            return  # a stack that becomes several, or is a part of one
        owner, _, stack = live.rpartition(".")
        module = with_stacks(self.model, owner) if self._has(owner) else None
        if module is None or not module.holds(stack):
            return
        if stack not in module.paths:
            parameter, rows = getattr(module, stack), None
            if pattern is not None:
                count = parameter.shape[2 if module.transposed else 1]
                rows = self._rows(pattern, tensor, live, _numbers(count)[None, :, None])[0]
            module.split(stack, rows=rows)
        self.moved[tensor.removesuffix(".weight")] = live
        self.stacks.add(tensor.removesuffix(".weight"))

    def path(self, name: str) -> str:
        """The path of the module that holds the weight `name` (as on disk, without ".weight").

        Raises InputError where the model has no such module, or holds the weight in another form than it is stored.
        """
        stack, _, number = name.rpartition(".")
        if number.isdecimal() and stack in self.moved:
            return f"{self.moved[stack]}.{number}"
        if name in self.moved:
            return self.moved[name]
        live, pattern = self.live(f"{name}.weight")
        if live in self._known() and pattern is not None:
            self.moved[name] = self._fused(name, live, pattern)
            return self.moved[name]
        if live not in self._known():
            live, pattern = self.live(name)
            if pattern is not None or not self._stand_in(name, live, heads=False):
                raise InputError(
                    f"{type(self.model).__name__} holds no linear layer for weight {name}: leave it dense."
                )
        path = live.removesuffix(".weight")
        module = self.model.get_submodule(path)
        tied = self.model.all_tied_weights_keys
        if is_patches(module) and f"{path}.weight" not in {*tied, *tied.values()}:  # that two modules hold stays theirs
            self.model.set_submodule(path, module := Patches(module))
            self._modules = {}
        if isinstance(module, Patches | WholeOperand):
            self.moved[name] = path = f"{path}.matrix"
        return path

    def _stand_in(self, stored: str, live: str, heads: bool) -> bool:
        """Puts a module in the place of a parameter that the model multiplies by itself, once; whether one is there."""
        owner, _, name = live.rpartition(".")
        held = getattr(self.model.get_submodule(owner), name, None) if self._has(owner) else None
        layout = operand(stored, tuple(held.shape)) if isinstance(held, nn.Parameter) else None
        if layout is not None and heads == (layout.count is not None):
            stand_in(self.model, live, layout)
            self._modules = {}
            return True
        return isinstance(held, HeadsOperand if heads else WholeOperand)

    def live(self, tensor: str) -> tuple[str, str | None]:
        """(name in the model, pattern of the converter that it goes through) of a stored tensor; the first of its names
        where it becomes several."""
        from transformers.core_model_loading import rename_source_key

        known = self._known()
        live, pattern = rename_source_key(tensor, self.renamings, self.others, self.model.base_model_prefix, known)
        if live not in known:
            # The name is already the model's own, and a renaming that is meant for older files spoilt it.
            plain, _ = rename_source_key(tensor, [], [], self.model.base_model_prefix, known)
            if plain in known:
                return plain, None
        return live, pattern

    def renamings_of(self, names: Iterable[str]) -> "list[WeightRenaming]":
        """What takes the stored parts of these weights (cores …) to where their modules are, behind the model's own
        renamings: for those alone that these do not take there."""
        from transformers.core_model_loading import WeightRenaming, rename_source_key

        found = []
        for name in names:
            stored, _ = rename_source_key(f"{name}.cores.0", self.renamings, [])
            stored, path = stored.removesuffix(".cores.0"), self.path(name)
            prefix = f"{self.model.base_model_prefix}."
            if path.removeprefix(prefix) != stored.removeprefix(prefix):
                what = r"\d" if name in self.stacks else r"cores\."  # a bias goes its own way
                found.append(WeightRenaming(rf"{re.escape(stored)}\.(?={what})", f"{path}."))
        return found

    def _fused(self, name: str, first: str, pattern: str) -> str:
        """The path of the module of a weight whose rows the model holds in several layers, or in another order."""
        converter = self._converter(pattern)
        targets = [first.replace(converter.target_patterns[0], each) for each in converter.target_patterns]
        paths = [target.removesuffix(".weight") for target in targets]
        last = f"{name.rpartition('.')[2]}_stored"  # a name that the converter would take for a matrix to be cut
        if len(converter.source_patterns) == 1 and all(self._has(path) for path in paths):
            modules = [self.model.get_submodule(path) for path in paths]
            if all(isinstance(module, Part) for module in modules):
                return f"{paths[0].rpartition('.')[0]}.{last}"
            linears = {path: each for path, each in zip(paths, modules, strict=True) if type(each) is nn.Linear}
            if len(linears) == len(paths):
                count = sum(linear.out_features for linear in linears.values())
                rows = self._rows(pattern, f"{name}.weight", first, _numbers(count)[:, None])
                path = fuse(self.model, linears, last, rows)
                self._modules = {}
                return path
        raise InputError(f"{type(self.model).__name__} computes with weight {name} in another form: leave it dense.")

    def _rows(self, pattern: str, tensor: str, live: str, numbers: torch.Tensor) -> list[torch.Tensor]:
        """For each layer that a stored matrix becomes, the numbers of its rows: what the converter makes of numbers."""
        converter = self._converter(pattern)
        found = {pattern: [numbers]}
        try:
            for operation in converter.operations:
                found = operation.convert(
                    found,
                    source_patterns=converter.source_patterns,
                    target_patterns=converter.target_patterns,
                    full_layer_name=live,
                    model=self.model,
                    config=self.model.config,
                    missing_keys=None,
                )
            made = [each[0] if isinstance(each, list) else each for each in found.values()]
            rows = [each.flatten() for each in made]
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError):
            rows = []
        if not rows or not torch.equal(torch.cat(rows).sort().values, numbers.flatten()):
            raise InputError(f"{type(self.model).__name__} computes with {tensor} in another form: leave it dense.")
        return rows

    def _converter(self, pattern: str) -> "WeightConverter":
        return next(each for each in self.others if pattern in each.source_patterns)

    def _has(self, path: str) -> bool:
        return f"{path}.weight" in self._known()

    def _known(self) -> dict[str, bool]:
        """Names that parameters have, or would have: a module that holds a network has no weight of its own."""
        if not self._modules:
            self._modules = {f"{path}.weight": True for path, _ in self.model.named_modules() if path}
            self._modules |= {path: True for path, _ in self.model.named_modules() if path}
            self._modules |= {name: True for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return self._modules


def _numbers(count: int) -> torch.Tensor:
    """0, 1 … on the CPU, also while a model is built on the meta device."""
    return torch.arange(count, device="cpu")
