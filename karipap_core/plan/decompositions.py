"""The cores of weights, decomposed once and kept: the sensitivity measurement, plans, sweeps and the compressed model
all take theirs from here.

For `lowrank` one decomposition at the break-even rank holds every smaller χ in its leading columns and rows; any other
network is kept for each of its specs, a group of weights that share cores for all its members at once. Kept in memory
up to a bound, and on disk in the workspace.
"""

import hashlib
import json
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from karipap_core import cluster
from karipap_core.checkpoint.carried import Carried
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.networks import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.kind import ROUNDED, counting
from karipap_core.profiles.given import Given
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Stored
from karipap_core.spectra.metric import Metric
from karipap_core.workspace.files import whole_file
from karipap_core.workspace.kept import has_tensors, keep_tensors, kept_tensors

if TYPE_CHECKING:
    from karipap_core.profiles.moments import Moments
    from karipap_core.profiles.watching import BlockSeen

Tensors = dict[str, torch.Tensor]


class Decompositions:
    """checkpoint, moments (None for the `weight` metric alone), metric name, how numbers in few bits are rounded
    (`ROUNDINGS`), and the folder to keep cores in.

    table_metric(name): the metric of an embedding table or a head, whose inputs are tokens (see study.py).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        moments: "Moments | None",
        metric: str,
        rounding: str,
        folder: Path,
        memory_bytes: int = 256 << 20,
        table_metric: Callable[[str], Metric] | None = None,
    ) -> None:
        self.checkpoint, self.metric, self.rounding, self.table_metric = checkpoint, metric, rounding, table_metric
        self.moments: Moments | BlockSeen | None = moments
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
        return replace(self.moments.metric(name, self.metric), rounds_under_G=self.rounding == "two-sided")

    @contextmanager
    def seeing(self, seen: "BlockSeen") -> Iterator[None]:
        """Within, moments come from what a block was found to see."""
        before, self.moments = self.moments, seen
        try:
            yield
        finally:
            self.moments = before

    def cores(self, name: str, spec: Spec, progress: Progress = silent) -> list[torch.Tensor]:
        """float32 cores of a weight in a network, before they are quantized; of a weight in bfloat16 their values are
        those of bfloat16, in which they are kept: they take no more of the disk than the weight."""
        spec = replace(spec, quantize=None)
        wider = self._wider(spec)
        found = self._fitted(name, wider, progress)
        if wider is not spec:
            (left, right), chi = found, spec.chi[0]
            found = [left[:, :chi].contiguous(), right[:chi].contiguous()]
        return [core.float() if core.is_floating_point() else core for core in found]

    def stored(self, name: str, spec: Spec, dtype: str | None = None, progress: Progress = silent) -> list[Stored]:
        """The cores as they are stored: in `dtype` (default: the weight's own), `formats.Quantized` where the spec's
        `formats` say so, integers for indices."""
        from karipap_core.networks.stored import in_dtype

        plain = getattr(torch, dtype or self.checkpoint.weight(name).dtype)
        cores = self.cores(name, spec, progress)
        found: Sequence[Stored] = self._quantized(name, spec, cores) if _rounded(spec) else cores
        return in_dtype(spec, found, plain)

    def matrix(self, name: str, spec: Spec, dtype: str | None = None) -> torch.Tensor:
        """Ŵ (out, in) in float32, of the cores as they are stored."""
        from karipap_core.networks.stored import values

        return spec.dense(values(spec, self.stored(name, spec, dtype)))

    # Over the workers of a cluster, where one is joined.

    def each(self, function: Callable[..., Any], parts: Iterable[tuple[Sequence[str], Sequence[Any]]]) -> Iterator[Any]:
        """function(decompositions, *given) for every (names of the weights that it looks at, given), in their order:
        with these decompositions here, or on workers with such of those weights alone, whose cores are kept here."""
        if (crew := cluster.crew()) is None:
            for _, given in parts:
                yield function(self, *given)
            return

        def carried() -> Iterator[tuple]:
            for names, given in parts:
                tables = {n: self.metric_of(n) for n in names if not self.checkpoint.weight(n).compressible}
                seen = Given.of(self.moments, [name for name in names if name not in tables], [self.metric])
                weights = Carried.of(self.checkpoint, names, crew)
                how = self.metric, self.rounding
                yield function, weights, how, seen, tables, self.folder if weights.path else None, given

        for found, files in crew.each(_elsewhere, carried()):
            for name, content in files.items():
                with whole_file(self.folder / name) as temporary:
                    temporary.write_bytes(content)
            yield found

    def make(self, wanted: Iterable[tuple[str, Spec]], progress: Progress = silent) -> None:
        """Has workers of a cluster make the stored cores of these weights that are not there yet; without one whoever
        asks for them makes them."""
        if cluster.crew() is None:
            return
        groups: dict[tuple[str, ...], list[tuple[str, Spec]]] = {}
        for name, spec in wanted:
            if not self._made(name, spec):
                groups.setdefault(tuple(spec.members) or (name,), []).append((name, spec))
        for number, _ in enumerate(self.each(_make, [(names, [each]) for names, each in groups.items()])):
            progress("cores", number + 1, len(groups))

    def _made(self, name: str, spec: Spec) -> bool:
        if _rounded(spec):
            return self._has(self._stored_key(name, spec))
        return self._has(self._key(name, self._wider(replace(spec, quantize=None))))

    @staticmethod
    def _wider(spec: Spec) -> Spec:
        """The spec whose cores hold those of a plain one."""
        if type(spec) is LowRank:
            full = LowRank.for_shape(spec.n_out, spec.n_in, max(1, spec.break_even_chi))
            return full if spec.chi[0] <= full.chi[0] else spec
        return spec

    def _fitted(self, name: str, spec: Spec, progress: Progress) -> list[torch.Tensor]:
        read, metric_of = self.checkpoint.read, self.metric_of
        key, as_kept = self._key(name, spec), partial(_as_kept, dtype=self.checkpoint.weight(name).dtype)
        if not spec.members:
            return self._kept(key, lambda: as_kept(spec.decompose(read(name), metric_of(name), progress)))
        mates = spec.mates
        if not self._has(key):
            weights = [read(member) for member in spec.members]
            found = spec.fit_group(mates, weights, [metric_of(member) for member in spec.members], progress)
            for member, mate, cores in zip(spec.members, mates, found, strict=True):
                self._kept(self._key(member, mate), partial(as_kept, cores))
        return self._kept(key, list)

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

        tensors = self._kept_tensors(self._stored_key(name, spec), make)
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

    def _key(self, name: str, spec: Spec) -> str:
        """What is rounded under both moments is kept apart from what was rounded under one."""
        told = counting(self.rounding, self.metric, _rounded(spec))
        return f"{name}|{json.dumps(spec.to_json(), sort_keys=True)}" + (f"|{told} {ROUNDED}" if told else "")

    def _stored_key(self, name: str, spec: Spec) -> str:
        """Of quantized cores. A network with a format of its own (`qlr`) is stored in it with `quantize` null too: not
        under its cores' key."""
        return self._key(name, spec) + ("" if spec.quantize else "|stored")

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


def _rounded(spec: Spec) -> bool:
    """Whether a core of it is stored in few bits."""
    return any(form not in (None, "index") for form in spec.formats)


def _make(decompositions: Decompositions, wanted: Sequence[tuple[str, Spec]]) -> None:
    for name, spec in wanted:
        decompositions.stored(name, spec)


def _elsewhere(
    function: Callable[..., Any],
    weights: Carried,
    how: tuple[str, str],
    seen: Given,
    tables: Mapping[str, Metric],
    folder: Path | None,
    given: Sequence[Any],
) -> tuple[Any, dict[str, bytes]]:
    """(function(decompositions, *given), the files that they kept) of decompositions of these weights. With the folder
    that all workers share they are kept there at once."""
    with tempfile.TemporaryDirectory() as temporary:
        made = Decompositions(cast(Checkpoint, weights), None, *how, Path(temporary), table_metric=tables.__getitem__)
        made.moments, made.folder = cast("Moments", seen), folder or Path(temporary)
        found = function(made, *given)
        return found, {file.name: file.read_bytes() for file in Path(temporary).iterdir()}


def _as_kept(cores: Iterable[torch.Tensor], dtype: str) -> list[torch.Tensor]:
    """Cores of a weight of this dtype. Not in float16: what a metric weighs little may lie beyond its range."""
    kept = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    return [core.to(kept).contiguous().cpu() if core.is_floating_point() else core.cpu() for core in cores]


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
