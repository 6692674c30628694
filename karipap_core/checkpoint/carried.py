"""Some weights of a checkpoint for another process, which may be on another machine."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cluster import Crew
from karipap_core.errors import InputError

if TYPE_CHECKING:
    import torch


@dataclass
class Carried:
    """What of a `Checkpoint` is asked for of a few weights: `weight`, `read`, `factors`. They are read from `path`
    where that is not None, else they are carried along."""

    weights: dict[str, Weight]
    path: str | None = None
    matrices: "dict[str, torch.Tensor]" = field(default_factory=dict)
    products: "dict[str, tuple[torch.Tensor, torch.Tensor]]" = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Checkpoint, names: Sequence[str], crew: Crew) -> "Carried":
        """These weights for the workers of a crew."""
        found = cls({name: checkpoint.weight(name) for name in names})
        if same_there(checkpoint, crew):
            found.path = str(checkpoint.path.absolute())
            return found
        for name in names:
            if (factors := checkpoint.factors(name)) is not None:
                found.products[name] = factors
            found.matrices[name] = checkpoint.read(name)
        return found

    def weight(self, name: str) -> Weight:
        """See `Checkpoint.weight`."""
        return self.weights[name]

    def read(self, name: str) -> "torch.Tensor":
        """See `Checkpoint.read`."""
        return self.matrices[name] if self.path is None else _opened(self.path).read(name)

    def factors(self, name: str) -> "tuple[torch.Tensor, torch.Tensor] | None":
        """See `Checkpoint.factors`."""
        return self.products.get(name) if self.path is None else _opened(self.path).factors(name)


@lru_cache(maxsize=1)
def _opened(path: str) -> Checkpoint:
    return open_checkpoint(path)


def same_there(checkpoint: Checkpoint, crew: Crew) -> bool:
    """Whether all workers share this workspace's folder and open this very checkpoint at the path that it has here."""
    if not crew.shared:
        return False
    if checkpoint.key not in crew.facts:
        path, ours = str(checkpoint.path.absolute()), _facts(checkpoint)
        crew.facts[checkpoint.key] = all(theirs == ours for theirs in crew.everywhere(facts_at, path))
    return crew.facts[checkpoint.key]


def facts_at(path: str) -> str:
    """What tells the checkpoint at a path from others, "" where there is none."""
    try:
        return _facts(open_checkpoint(path, compressed=True))
    except InputError:
        return ""


def _facts(checkpoint: Checkpoint) -> str:
    """Of the files, their sizes and times; of the tensors, names and shapes; and the recipe that opens them."""
    stats = {info.file: info.file.stat() for info in checkpoint.stored.values()}
    files = sorted([str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats.items())
    tensors = sorted([name, info.dtype, list(info.shape)] for name, info in checkpoint.tensors.items())
    recipe = checkpoint.form.recipe if checkpoint.form else {}
    text = json.dumps([files, tensors, recipe], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
