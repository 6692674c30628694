"""The cores of weights, decomposed once and kept: the sensitivity measurement, plans, sweeps and the compressed model
all take theirs from here.

For `lowrank` one decomposition at the break-even rank holds every smaller χ in its leading columns and rows; any other
network is kept for each of its specs, a group of weights that share cores for all its members at once. Kept in memory
up to a bound, and on disk in the workspace.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.networks import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Stored
from karipap_core.spectra.metric import Metric
from karipap_core.workspace.kept import has_tensors, keep_tensors, kept_tensors

if TYPE_CHECKING:
    from karipap_core.profiles.activations import Moments

Tensors = dict[str, torch.Tensor]


class Decompositions:
    """checkpoint, moments (None for the `weight` metric alone), metric name, and the folder to keep cores in.

    table_metric(name): the metric of an embedding table or a head, whose inputs are tokens (see study.py).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        moments: "Moments | None",
        metric: str,
        folder: Path,
        memory_bytes: int = 2 << 30,
        table_metric: Callable[[str], Metric] | None = None,
    ) -> None:
        self.checkpoint, self.moments, self.metric, self.table_metric = checkpoint, moments, metric, table_metric
        source = moments.folder.name if moments is not None and metric != "weight" else "none"
        self.folder = Path(folder) / f"cores-{metric}-{source}"
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, Tensors] = OrderedDict()

    def metric_of(self, name: str) -> Metric:
        """What an error of this weight costs. Raises ValueError where that needs what was not given."""
        if self.metric == "weight":
            return Metric("weight")
        if not self.checkpoint.weight(name).compressible:
            if self.table_metric is None:
                raise ValueError(f"{name} is a table of tokens: give `table_metric`.")
            return self.table_metric(name)
        if self.moments is None:
            raise ValueError(f"The metric {self.metric} looks at activations: give `moments`.")
        return self.moments.metric(name, self.metric)

    def cores(self, name: str, spec: Spec, progress: Progress = silent) -> list[torch.Tensor]:
        """float32 cores of a weight in a network, before they are quantized."""
        spec = replace(spec, quantize=None)
        if type(spec) is not LowRank:
            return self._fitted(name, spec, progress)
        chi = spec.chi[0]
        full = LowRank.for_shape(spec.n_out, spec.n_in, max(1, spec.break_even_chi))
        if chi > full.chi[0]:
            return self._fitted(name, spec, progress)
        left, right = self._fitted(name, full, progress)
        return [left[:, :chi].contiguous(), right[:chi].contiguous()]

    def stored(self, name: str, spec: Spec, dtype: str | None = None, progress: Progress = silent) -> list[Stored]:
        """The cores as they are stored: in `dtype` (default: the weight's own), `formats.Quantized` where the spec's
        `formats` say so, integers for indices."""
        plain = getattr(torch, dtype or self.checkpoint.weight(name).dtype)
        cores = self.cores(name, spec, progress)
        quantized = any(form not in (None, "index") for form in spec.formats)
        found: Sequence[Stored] = self._quantized(name, spec, cores) if quantized else cores
        return [
            core.to(plain) if form is None and isinstance(core, torch.Tensor) else core
            for core, form in zip(found, spec.formats, strict=True)
        ]

    def matrix(self, name: str, spec: Spec, dtype: str | None = None) -> torch.Tensor:
        """Ŵ (out, in) in float32, of the cores as they are stored."""
        from karipap_core.networks.stored import values

        return spec.dense(values(spec, self.stored(name, spec, dtype)))

    def _fitted(self, name: str, spec: Spec, progress: Progress) -> list[torch.Tensor]:
        read, metric_of = self.checkpoint.read, self.metric_of
        if not spec.members:
            return self._kept(
                _key(name, spec), lambda: _floats32(spec.decompose(read(name), metric_of(name), progress))
            )
        mates = spec.mates
        if not self._has(_key(name, spec)):
            weights = [read(member) for member in spec.members]
            found = spec.fit_group(mates, weights, [metric_of(member) for member in spec.members], progress)
            for member, mate, cores in zip(spec.members, mates, found, strict=True):
                self._kept(_key(member, mate), partial(_floats32, cores))
        return self._kept(_key(name, spec), list)

    def _quantized(self, name: str, spec: Spec, cores: list[torch.Tensor]) -> list[Stored]:
        from karipap_core.networks.stored import quantize_cores
        from karipap_core.quantization.formats import from_tensors

        def make() -> Tensors:
            found = quantize_cores(spec, cores, self.checkpoint.read(name), self.metric_of(name))
            tensors = {}
            for index, core in enumerate(found):
                for key, tensor in [("", core)] if isinstance(core, torch.Tensor) else core.tensors().items():
                    tensors[f"{index}.{key}"] = tensor.cpu().contiguous()
            return tensors

        # A network with a format of its own (`qlr`) is stored in it with `quantize` null too: not under its cores' key.
        key = _key(name, spec) + ("" if spec.quantize else "|stored")
        tensors = self._kept_tensors(key, make)
        found: list[Stored] = []
        for index, form in enumerate(spec.formats):
            mine = {key.partition(".")[2]: t for key, t in tensors.items() if key.startswith(f"{index}.")}
            if form is None or form == "index":
                found.append(mine[""])
            else:
                found.append(from_tensors(form, *spec.core_matrix(index), mine))
        return found

    # The cache: files named by weight and spec, and as much in memory as is allowed.

    def _kept(self, key: str, make: Callable[[], list[torch.Tensor]]) -> list[torch.Tensor]:
        tensors = self._kept_tensors(key, lambda: {str(index): core for index, core in enumerate(make())})
        return [tensors[str(index)] for index in range(len(tensors))]

    def _file(self, key: str) -> Path:
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"

    def _has(self, key: str) -> bool:
        return key in self._memory or has_tensors(self._file(key))

    def _kept_tensors(self, key: str, make: Callable[[], Tensors]) -> Tensors:
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        file = self._file(key)
        if (found := kept_tensors(file)) is not None:
            tensors = found[0]
        else:
            tensors = make()
            keep_tensors(file, tensors, {"weight": key.partition("|")[0]})
        self._memory[key] = tensors
        while len(self._memory) > 1 and sum(map(_size, self._memory.values())) > self.memory_bytes:
            self._memory.popitem(last=False)
        return tensors


def _key(name: str, spec: Spec) -> str:
    return f"{name}|{json.dumps(spec.to_json(), sort_keys=True)}"


def _floats32(cores: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [core.float().contiguous().cpu() if core.is_floating_point() else core.cpu() for core in cores]


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
