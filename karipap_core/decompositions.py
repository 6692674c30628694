"""The cores of weights, decomposed once and kept: the sensitivity measurement, plans, sweeps and the compressed model
all take theirs from here.

For `lowrank` one decomposition at the break-even rank holds every smaller χ in its leading columns and rows; any other
network is kept for each of its specs. Kept in memory up to a bound, and on disk in the workspace.
"""

import hashlib
import json
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from karipap_core.progress import silent
from karipap_core.workspace import whole_file


class Decompositions:
    """checkpoint, moments (None for the `weight` metric alone), metric name, and the folder to keep cores in."""

    def __init__(self, checkpoint, moments, metric: str, folder: Path, memory_bytes: int = 2 << 30) -> None:
        self.checkpoint, self.moments, self.metric = checkpoint, moments, metric
        source = moments.folder.name if metric != "weight" else "none"
        self.folder = Path(folder) / f"cores-{metric}-{source}"
        self.memory_bytes = memory_bytes
        self._memory: OrderedDict[str, list[torch.Tensor]] = OrderedDict()

    def metric_of(self, name: str):
        from karipap_core.networks.base import Metric

        return Metric("weight") if self.metric == "weight" else self.moments.metric(name, self.metric)

    def cores(self, name: str, spec, progress=None) -> list[torch.Tensor]:
        """float32 cores of a weight in a network."""
        from karipap_core.networks.lowrank import LowRank

        if not isinstance(spec, LowRank):
            return self._kept(name, spec, progress)
        chi = spec.chi[0]
        full = LowRank.for_shape(spec.n_out, spec.n_in, max(1, spec.break_even_chi))
        if chi > full.chi[0]:
            return self._kept(name, spec, progress)
        left, right = self._kept(name, full, progress)
        return [left[:, :chi].contiguous(), right[:chi].contiguous()]

    def matrix(self, name: str, spec, dtype: str | None = None) -> torch.Tensor:
        """Ŵ (out, in) in float32, of cores rounded to the dtype they are stored in (default: the weight's own)."""
        dtype = getattr(torch, dtype or self.checkpoint.weight(name).dtype)
        return spec.dense([core.to(dtype).float() for core in self.cores(name, spec)])

    def _kept(self, name: str, spec, progress) -> list[torch.Tensor]:
        key = f"{name}|{json.dumps(spec.to_json(), sort_keys=True)}"
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.safetensors"
        if file.exists():
            with safe_open(file, framework="pt") as handle:
                cores = [handle.get_tensor(str(index)) for index in range(len(spec.core_shapes))]
        else:
            cores = spec.decompose(self.checkpoint.read(name), self.metric_of(name), progress or silent)
            cores = [core.float().contiguous() for core in cores]
            with whole_file(file) as temporary:
                save_file({str(index): core for index, core in enumerate(cores)}, temporary, metadata={"weight": name})
        self._memory[key] = cores
        while len(self._memory) > 1 and sum(4 * c.numel() for kept in self._memory.values() for c in kept) > (
            self.memory_bytes
        ):
            self._memory.popitem(last=False)
        return cores
