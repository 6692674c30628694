"""What folders of safetensors for other engines share: integers in compressed-tensors' formats, a PEFT adapter in the
folder `adapter` for the low-rank pairs beside them, everything else dense.

An exporter says how it stores each weight (`forms`); what follows from that is here.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.checkpoint.tensorfile import Piece, word_of
from karipap_core.compressed.folder import computed, fill_folder, with_progress
from karipap_core.exports.adapter import FOLDER, adapter_pair, write_adapter
from karipap_core.exports.exporter import Exporter, Line, Wanted, dense_line, error_of
from karipap_core.exports.grids import FINEST, Scheme, group_of, quantization_config, regrouped
from karipap_core.exports.source import MATRIX, PAIR, Part, Source
from karipap_core.progress import Progress

if TYPE_CHECKING:  # torch takes a second to import
    import torch

    from karipap_core.quantization.packing import Quantized


@dataclass(frozen=True)
class Form:
    """How an export stores one weight: in a scheme, under the name that the live model's module has, with an adapter of
    that rank (0: none); or without a scheme dense. why : where it is not the plan's form, the reason."""

    scheme: Scheme | None = None
    module: str = ""
    rank: int = 0
    why: str = ""


class SafetensorsFolder(Exporter):
    packages = ("compressed-tensors", "peft")

    @abstractmethod
    def choose(self, source: Source, wanted: Wanted) -> dict[str, Form]:
        """For each compressed weight, how it is stored."""

    def forms(self, source: Source, wanted: Wanted) -> dict[str, Form]:
        """What `choose` gives, found once for all that asks: it reads every weight and builds the model without
        numbers."""
        key = f"{self.name} {wanted}"
        if key not in source.worked_out:
            source.worked_out[key] = self.choose(source, wanted)
        return source.worked_out[key]

    def config(self, source: Source, schemes: dict[str, Scheme]) -> dict:
        """config.json's `quantization_config` of {module: scheme}."""
        return quantization_config(schemes)

    def held(self, source: Source, part: Part, scheme: Scheme) -> "torch.Tensor":
        """The integers' part of a weight (out, in) as the engine has it in memory, float32."""
        return grid_of(part).dense()

    def lines(self, source: Source, wanted: Wanted) -> Iterator[Line]:
        forms = self.forms(source, wanted)
        for part in source.parts():
            form = forms[part.name]
            if form.scheme is None:
                yield dense_line(source, part, part.held.dtype, form.why)
                continue
            stored, size, says = self.held(source, part, form.scheme), form.scheme.bytes(part.shape), form.scheme.says
            if form.rank:
                left, right = adapter_pair(part, form.rank)
                stored = stored + left.float() @ right.float()
                size += left.nbytes + right.nbytes
                says += " + adapter"
            error = error_of(stored, source.exact(part.name))
            yield Line(part.name, part.says, says, error, size, part.bytes, form.rank, form.why)

    def write(self, source: Source, wanted: Wanted, folder: Path, progress: Progress) -> None:
        forms = {name: form for name, form in self.forms(source, wanted).items() if form.scheme is not None}

        @lru_cache(maxsize=1)  # a weight's tensors are asked for one after the other
        def tensors_of(name: str) -> "dict[str, torch.Tensor]":
            scheme = forms[name].scheme
            assert scheme is not None
            return scheme.tensors(grid_of(source.part(name)))

        def instead(name: str) -> list[Piece] | None:
            form = forms.get(name)
            if form is None or form.scheme is None:
                return None
            spec = source.spec(name)
            return [
                computed(f"{name}.{key}", word_of(dtype), shape, partial(lambda key: tensors_of(name)[key], key))
                for key, (dtype, shape) in form.scheme.layout((spec.n_out, spec.n_in)).items()
            ]

        pieces = list(source.pieces(instead).values())
        config, schemes = source.config, {form.module: form.scheme for form in forms.values() if form.scheme}
        if schemes:
            config = config | {"quantization_config": self.config(source, schemes)}
        fill_folder(folder, source.checkpoint, config, with_progress(pieces, progress, "export"))
        pairs = {form.module: adapter_pair(source.part(name), form.rank) for name, form in forms.items() if form.rank}
        if pairs:
            write_adapter(folder / FOLDER, pairs, source.checkpoint.kind or "encoder")


def grid_of(part: Part) -> "Quantized":
    """The integers of a part that has them, in groups that divide its row."""
    assert part.grid is not None
    return regrouped(part.grid, group_of(part.grid))


def why_dense(source: Source, part: Part, modules: dict[str, str] | None) -> str:
    """Why nothing that reads compressed-tensors holds a weight in few bits, "" where it may. modules : `modules_of`."""
    if source.plain:
        return "asked for"
    if part.form in (MATRIX, PAIR):
        return "no checkpoint format holds this network"
    if modules is None:
        return "experts that are stored one by one keep the whole model dense"
    if not part.linear or part.name not in modules:
        return "the model does not hold it as an ordinary linear layer"
    assert part.grid is not None
    if (group := group_of(part.grid)) is not None and group < FINEST:
        return f"its {part.shape[1]} columns do not divide into groups of {part.grid.group}"
    return ""


def modules_of(source: Source) -> dict[str, str] | None:
    """For each compressed weight that the ordinary model has in a linear layer of its own, that layer's name in the
    model as transformers builds it: a folder's names may lack a prefix, or be those of an older release.

    None where transformers stacks experts that are stored one by one: with any weight of the folder in few bits, its
    release 5.23 drops all experts that are not.
    """
    from torch import nn
    from transformers.core_model_loading import WeightConverter, rename_source_key

    from karipap_core.models.empty import config_of, from_config
    from karipap_core.models.names import Names

    checkpoint = source.checkpoint
    model = from_config(config_of(source.config, checkpoint.name), source.config, checkpoint.name)
    names = Names(model, checkpoint.tensors)
    merges = [each for each in names.merges if isinstance(each, WeightConverter)]
    if any(rename_source_key(tensor, names.renamings, merges)[1] for tensor in source.pieces()):
        return None
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found = {}
    for name in source.names:
        live, pattern = names.live(f"{name}.weight")
        path = live.removesuffix(".weight")
        if pattern is None and path in linear:
            found[name] = path
    return found
