"""What the weights of a block see while losses run through a model: summed to second moments, and token by token."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError
from karipap_core.models.sites import Site
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.symmetric import PANELS, mirrored

ENOUGH = 4  # tokens for each direction of a moment, below which an expert borrows from others


class BlockSeen:
    """What the weights of one block (None: those outside the blocks) saw: an object that gives metrics, as
    `activations.Moments` does.

    scored : tokens of the windows for probing that have a loss.
    """

    def __init__(self, block: str | None, weights: Sequence[Weight], damping: float):
        self.block, self.weights, self.damping = block, list(weights), damping
        self.tensors: dict[str, torch.Tensor] = {}
        self.keys: dict[str, tuple[str, str]] = {}
        self.few: dict[str, int] = {}
        self.scored = 0

    def metric(self, name: str, which: str) -> Metric:
        """The Metric of a weight; see `Moments.metric`."""
        if which == "weight":
            return Metric("weight")
        if name not in self.keys:
            raise InputError(f"Weight {name} has no activations here: it is not of block {self.block}.")
        c_key, g_key = self.keys[name]
        G = self.tensors[g_key] if which == "loss" else None
        return Metric(which, C=self.tensors[c_key], G=G, damping=self.damping)

    def forget(self, name: str) -> None:
        """Gives up the moments of a weight that are no other's."""
        for key in self.keys.pop(name):
            if not any(key in keys for keys in self.keys.values()):
                self.tensors.pop(key, None)

    def borrowed(self, name: str) -> str | None:
        """One sentence where an expert saw too few tokens for moments of its own, None for any other weight."""
        if (count := self.few.get(name)) is None:
            return None
        return (
            f"The text brings {count:,} tokens to this expert, fewer than {ENOUGH} for each direction: its moments are "
            "blended with those of the layer's other experts."
        )


class Finder(Protocol):
    """Who is told what blocks see."""

    def moments(self, seen: BlockSeen) -> None:
        """The second moments of a block's weights are there."""

    def tokens(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        """What one of these weights saw of some tokens of the windows for probing: x (tokens, in) and g (tokens, out),
        row for row, the gradient of the loss summed over all tokens."""

    def through(self, seen: BlockSeen) -> None:
        """The block is through: nothing more will be said of it."""


class NoFinder:
    """A finder that looks at nothing, for others to begin with."""

    def moments(self, seen: BlockSeen) -> None: ...
    def tokens(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None: ...
    def through(self, seen: BlockSeen) -> None: ...


class Sums:
    """Running Σ v vᵀ of one stream of vectors, on the device they are on; float32 products of a few hundred rows summed
    in float64: the rounding stays below the sampling noise by five orders, at half the time of float64 products."""

    def __init__(self, size: int) -> None:
        self.size, self.count = size, 0
        self._total: torch.Tensor | None = None

    def add(self, vectors: torch.Tensor) -> None:
        vectors = vectors.detach().float()
        if self._total is None:
            self._total = torch.zeros(self.size, self.size, dtype=torch.float64, device=vectors.device)
        panel = self.size if self.size < PANELS else -(-self.size // 8)
        for start in range(0, self.size, panel):  # of the symmetric sum the lower triangle, in panels
            columns = vectors[:, start : start + panel]
            self._total[start:, start : start + panel] += vectors[:, start:].T @ columns
        self.count += len(vectors)

    @property
    def total(self) -> torch.Tensor:
        """Σ v vᵀ, float64, on the CPU."""
        if self._total is None:
            return torch.zeros(self.size, self.size, dtype=torch.float64)
        return mirrored(self._total.cpu().clone())

    def taken(self) -> torch.Tensor:
        """The same, given away without a copy: nothing is left."""
        if self._total is None:
            return self.total
        total, self._total = self._total.cpu(), None
        return mirrored(total)


class Watching:
    """Sums and tokens of the block that is run, for a finder; see `blockwise.Watcher`."""

    def __init__(self, finder: Finder, settings: CalibrationSettings, images: bool):
        self.finder, self.settings, self.images = finder, settings, images
        self.weights_of: Callable[[str | None], Sequence[Weight]] = lambda block: ()
        self.probing: range = range(0)  # batches of the windows for probing
        self.ends = (
            True  # whether a block is through when its moments are there, and the tokens that were kept till then
        )
        self._waiting: BlockSeen | None = None  # where it was not: tokens that come are told at once
        self.scored = (0, 0)  # tokens that have a loss, of the windows for moments and of those for probing
        self._inputs: dict[str, Sums] = {}
        self._gradients: dict[str, Sums] = {}
        self._tokens: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
        self._x: dict[str, list[torch.Tensor]] = defaultdict(list)  # of which the gradient is to come
        self._shared: dict[str, str] = {}  # weight → the weight whose input it shares (q, k and v; gate and up)
        self._last: tuple[int, torch.Tensor, str] | None = None  # the batch, what was seen last and at which weight

    def on_input(self, batch: int, name: str, x: torch.Tensor) -> None:
        if batch in self.probing:
            source = self._shared.get(name, name)
            same = self._x[source][-1] if source != name and self._x[source] else None
            self._x[name].append(self._as_kept(x) if same is None else same)
            return
        if self._shared.get(name, name) != name:
            return
        if name not in self._shared:
            last = self._last
            # The very same tensor handed to two weights of one block: their C is one.
            if last and last[0] == batch and last[1].shape == x.shape and last[1].data_ptr() == x.data_ptr():
                self._shared[name] = last[2]
                return
            self._shared[name] = name
            self._last = batch, x, name
        self._inputs.setdefault(name, Sums(x.shape[1])).add(x)

    def on_gradient(self, batch: int, name: str, g: torch.Tensor) -> None:
        if batch in self.probing:
            # A weight that is used twice has its gradients come back in the other order.
            x = self._x[name].pop()
            if self._waiting is None:
                self._tokens[name].append((x, self._as_kept(g)))
            else:
                self.finder.tokens(name, x, g.detach())
        else:
            self._gradients.setdefault(name, Sums(g.shape[1])).add(g)

    def _as_kept(self, seen: torch.Tensor) -> torch.Tensor:
        """Tokens that wait for their block's moments wait in 16 bits, as all that stands between blocks."""
        return seen.detach() if self._waiting is not None else seen.detach().to(torch.bfloat16)

    def through(self, block: str | None, sites: dict[str, Site]) -> None:
        weights = [weight for weight in self.weights_of(block) if weight.name in sites]
        if weights:
            if self._waiting is None:
                self.finder.moments(seen := self._seen(block, weights))
            else:
                seen = self._waiting
            for weight in weights:
                for x, g in self._tokens.pop(weight.name, ()):
                    self.finder.tokens(weight.name, x, g)
            if self.ends:
                self.finder.through(seen)
            else:
                self._waiting = seen
        self._last = None
        kept: tuple[dict[str, Any], ...] = (self._inputs, self._gradients, self._x, self._shared)
        for each in kept:
            for weight in weights:
                each.pop(weight.name, None)

    def _seen(self, block: str | None, weights: list[Weight]) -> BlockSeen:
        """Second moments as means over the vectors that a weight saw. G is scaled by how many these are for each scored
        token: an expert sees some of them alone, what sees images many patches for few words. An expert that saw few
        tokens borrows from its layer's other experts."""
        seen = BlockSeen(block, weights, self.settings.damping)
        seen.scored = self.scored[1]
        pooled: dict[tuple, list[str]] = defaultdict(list)
        for weight in weights:
            if weight.expert is not None:
                pooled[weight.layer, weight.role].append(weight.name)
        inputs = {w.name: self._inputs.get(self._shared.get(w.name, w.name), Sums(w.shape[1])) for w in weights}
        gradients = {w.name: self._gradients.get(w.name, Sums(w.shape[0])) for w in weights}
        for weight in weights:
            names = pooled.get((weight.layer, weight.role), [weight.name])
            source = self._shared.get(weight.name, weight.name)
            c_key, g_key = f"C|{source}", f"G|{weight.name}"
            if c_key not in seen.tensors:
                seen.tensors[c_key] = self._mean(seen, inputs, weight.name, names)
            whole = weight.expert is None and not self.images
            share = 1.0 if whole else max(1, gradients[weight.name].count) / self.scored[0]
            mean = self._mean(seen, gradients, weight.name, names)
            seen.tensors[g_key] = mean if share == 1.0 else mean.mul_(share)
            seen.keys[weight.name] = c_key, g_key
        return seen

    @staticmethod
    def _mean(seen: BlockSeen, sums: dict[str, Sums], name: str, pool: list[str]) -> torch.Tensor:
        own = sums[name]
        if len(pool) == 1 or own.count >= ENOUGH * own.size:
            return (own.taken() if len(pool) == 1 else own.total).div_(max(1, own.count))
        # Few tokens make a poor estimate of many directions: blend with the layer's other experts.
        seen.few[name] = own.count
        total = torch.zeros(own.size, own.size, dtype=torch.float64)
        for each in pool:
            total += sums[each].total
        count = sum(sums[each].count for each in pool)
        prior = ENOUGH * own.size - own.count
        return (own.total + prior * total / max(1, count)) / (own.count + prior)
