"""Baselines that quantize block after block, each on what the quantized blocks before it hand on, as packages do.

The second moments of a block's inputs are summed while its own weights are still dense (llm-compressor's "sequential"
pipeline, and the original code of GPTQ): one pass over the windows to see, and one to hand on.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from karipap_core.models.sites import Site, observe
from karipap_core.plan.behind import Prefixed
from karipap_core.profiles.watching import Sums
from karipap_core.progress import Progress, silent
from karipap_core.quantization.packing import Quantized

Quantize = Callable[[str, torch.Tensor], Quantized]


def in_sequence(study, names: Iterable[str], quantize: Quantize, progress: Progress = silent) -> dict[str, Quantized]:
    """quantize(name, C) of every weight, with C = E[x xᵀ] (in, in), float64, of its inputs behind the quantized blocks;
    of weights outside the blocks, and of experts that few tokens reach, that of the dense model.

    The model must run block by block (`blockpass.runs_apart`). Raises what `quantize` does.
    """
    walk = _Sequence(study, names, quantize, progress)
    walk.go()
    return walk.found


class _Sequence(Prefixed):
    def __init__(self, study, names: Iterable[str], quantize: Quantize, progress: Progress) -> None:
        super().__init__(study, names, progress)
        self.quantize = quantize
        self.found: dict[str, Quantized] = {}
        self.few = {name: study.checkpoint.weight(name).expert is not None for name in self.names}

    def cut_apart(self, name: str) -> None:
        self.found[name] = self.quantize(name, self._of_dense(name))

    def cut_block(self, module: Any, within: Mapping[str, Site]) -> None:
        mine = {name: site for name, site in within.items() if name in self.few and name not in self.found}
        sums, source = self._seen(module, mine)
        moments: dict[str, torch.Tensor] = {}
        for name in mine:
            of = source.get(name)
            if of is None or self.few[name]:
                C = self._of_dense(name)
            else:
                C = moments[of] if of in moments else moments.setdefault(of, sums[of].taken().div_(sums[of].count))
            self.found[name] = self.quantize(name, C)
        self.matrices = {name: self.found[name].dense() for name in within if name in self.found}

    def _seen(self, module: Any, mine: Mapping[str, Site]) -> tuple[dict[str, Sums], dict[str, str]]:
        """Σ x xᵀ of the block's inputs, and under which weight's name those of each weight are: the very same tensor
        handed to several weights is summed once."""
        sums: dict[str, Sums] = {}
        source: dict[str, str] = {}
        last: list[tuple[torch.Tensor, str]] = []  # kept, so that no other takes its place in memory

        def seen(name: str, x: torch.Tensor) -> None:
            if last and (last[0][0].data_ptr(), last[0][0].shape) == (x.data_ptr(), x.shape):
                shared = last[0][1]
            else:
                last[:] = [(x, name)]
                shared = name
            source.setdefault(name, shared)
            if source[name] == name:
                sums.setdefault(name, Sums(x.shape[1])).add(x)

        with observe(dict(mine), seen):
            for number in range(len(self.batches)):
                last.clear()
                self._run(module, number)
        return sums, source

    def _of_dense(self, name: str) -> torch.Tensor:
        return self.study.moments.metric(name, "functional").C
