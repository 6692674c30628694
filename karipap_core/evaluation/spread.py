"""Windows of a text scored by the workers of a cluster: what `fidelity.scored` gives here, batch for batch."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from karipap_core.checkpoint.carried import same_there
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cluster import crew, device_there
from karipap_core.evaluation.fidelity import Scored, keep_logits, scored
from karipap_core.evaluation.perplexity import Sample, Window, batches


@dataclass(frozen=True)
class Live:
    """Which model a worker loads, of a folder that all see, and how."""

    path: str
    dtype: torch.dtype
    device: str


def scored_elsewhere(
    model: Any,
    sample: Sample,
    source: str | Path | Checkpoint,
    matrices: Mapping[str, torch.Tensor] | None = None,
    dense: str | Path | Checkpoint | None = None,
) -> Iterator[Scored] | None:
    """What `fidelity.scored` gives of `model`, found by the workers of the cluster that was joined; None where there is
    none, one batch is all, or they do not see the model's files, so that it is found here.

    source : where the model is loaded from.  matrices : what some of its weights are replaced by (name → Ŵ); then it is
    held against itself as it was.  dense : else what it is held against.
    """
    if (workers := crew()) is None:
        return None
    groups = list(batches(sample, model.config.get_text_config().vocab_size))
    if len(groups) == 1:
        return None
    first = next(model.parameters())
    lives: list[Live] = []
    for each in (source, dense):
        if each is not None:
            checkpoint = each if isinstance(each, Checkpoint) else open_checkpoint(each, compressed=True)
            if not same_there(checkpoint, workers):
                return None
            lives.append(Live(str(checkpoint.path.absolute()), first.dtype, device_there(str(first.device))))
    share = -(-len(groups) // workers.slots)
    runs = [[window for group in groups[at : at + share] for window in group] for at in range(0, len(groups), share)]
    common = (replace(sample, windows=()), lives, None if matrices is None else dict(matrices))
    found = workers.each(_scored, ((run,) for run in runs), common, lives[0].device)
    return (batch for run in found for batch in run)


def _scored(
    sample: Sample, lives: Sequence[Live], matrices: Mapping[str, torch.Tensor] | None, windows: list[Window]
) -> list[Scored]:
    from karipap_core.models.sites import replaced

    sample = replace(sample, windows=tuple(windows))
    model, found = _loaded(lives[0])
    if matrices is None:
        return list(scored(model, sample, _loaded(lives[1])[0] if len(lives) > 1 else None))
    dense = keep_logits(model, sample)
    with replaced(found, dict(matrices)):
        return list(scored(model, sample, dense))


@lru_cache(maxsize=2)
def _loaded(live: Live) -> tuple[Any, dict]:
    """(the model, its sites), kept by the worker for the next windows."""
    from karipap_core.models.load import load_model
    from karipap_core.models.sites import sites

    checkpoint = open_checkpoint(live.path, compressed=True)
    model, _ = load_model(checkpoint, dtype=live.dtype, device=live.device, run=False)
    return model, {} if checkpoint.compressed else sites(model, checkpoint, tables=True)
