"""Where a block adds what a weight puts out to what it holds already, found by running the block once.

A residual connection is t = s + c (W x + b), with s what a module of the block is given before the weight is run (the
block itself, a norm), t what one is given behind it, or what the block puts out, and c = 1 for nearly all. Where
attention and MLP are parallel what the other one puts out is added besides. Nothing is known of any architecture. Where
W x + b is normalized before it is added, nothing is found.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from karipap_core.models.sites import Site
from karipap_core.models.structure import taken_apart

TOKENS = 64  # that sums are told by
CLOSE = 1e-3  # of ‖t − s‖: more than float32 leaves over of t − s − c (W x + b), less than chance does
Seen = tuple[torch.Size, torch.Tensor]  # (tokens, width) of a tensor, and its first tokens


@dataclass(frozen=True)
class Residual:
    """What `scale` times the output of a weight is added to: what `given` is given, and as much of what the linear
    layer `beside`, which is run before the weight, puts out."""

    given: nn.Module
    beside: nn.Module | None = None
    scale: float = 1.0

    @contextmanager
    def watched(self) -> Iterator[list[torch.Tensor]]:
        """Within the context the block is to be run; the parts (…, out) of s, over `scale`, are put into the list."""
        parts: list[torch.Tensor] = []

        def entered(_: nn.Module, *arguments: Any) -> None:
            if (x := first_tensor(arguments)) is not None:
                parts.append(x / self.scale)

        with ExitStack() as stack:
            stack.callback(self.given.register_forward_pre_hook(entered, with_kwargs=True).remove)
            if self.beside is not None:
                stack.callback(self.beside.register_forward_hook(lambda _, __, y: parts.append(y.detach())).remove)
            yield parts


@contextmanager
def residuals(block: nn.Module, within: Mapping[str, Site]) -> Iterator[dict[str, Residual]]:
    """Within the context the block is to be run once; behind it, the residual connection of each weight that has one
    that can be seen."""
    found: dict[str, Residual] = {}
    run = _Run()
    handles = [each.register_forward_pre_hook(run.entered, with_kwargs=True) for each in block.modules()]
    handles += [site.module.register_forward_hook(run.left) for site in within.values()]
    handles.append(block.register_forward_hook(lambda _, __, output: run.entered(None, output)))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
    for name, site in within.items():
        if (residual := run.residual(site.module)) is not None:
            found[name] = residual


class _Run:
    """What was seen of a block's run."""

    def __init__(self) -> None:
        self.given: list[tuple[nn.Module | None, Seen]] = []  # by each module, and behind them what the block puts out
        self.put_out: dict[nn.Module, tuple[int, Seen]] = {}  # how many were given something before it; W x + b

    def entered(self, module: nn.Module | None, *arguments: Any) -> None:
        if (x := first_tensor(arguments)) is not None:
            self.given.append((module, _seen(x)))

    def left(self, module: nn.Module, _: Any, output: torch.Tensor) -> None:
        self.put_out[module] = len(self.given), _seen(output)

    def residual(self, module: nn.Module) -> Residual | None:
        if module not in self.put_out:
            return None
        place, (form, y) = self.put_out[module]
        times = Counter(each for each, _ in self.given)
        before = [
            (each, s) for each, (of, s) in self.given[:place] if of == form and each is not None and times[each] == 1
        ]
        behind = [t for _, (of, t) in self.given[place:] if of == form]
        beside = [each for each, (_, (of, _)) in self.put_out.items() if of == form and each is not module]
        for other in (None, *beside):
            added = y if other is None else y + self.put_out[other][1][1]
            for holder, s in before:
                scale = next((c for t in behind if (c := _scale(t - s, added))), None)
                if scale is not None:
                    earlier = other is not None and self.put_out[other][0] < place
                    return Residual(holder, other if earlier else None, scale)
        return None


def _scale(difference: torch.Tensor, y: torch.Tensor) -> float | None:
    """c where the difference is c y, 1 where it is that as exactly."""
    for c in (1.0, float((difference * y).sum() / y.square().sum())):
        if abs(c) > CLOSE and (difference - c * y).norm() <= CLOSE * abs(c) * y.norm():
            return c
    return None


def first_tensor(arguments: Any) -> torch.Tensor | None:
    """The first tensor of floats (…, width) among arguments, detached: what a block or a norm works on."""
    tensors, _ = taken_apart(arguments)
    return next((each.detach() for each in tensors if each.is_floating_point() and each.dim() > 1), None)


def _seen(x: torch.Tensor) -> Seen:
    """In a copy: a block may write into what it holds."""
    rows = x.detach().reshape(-1, x.shape[-1])
    return rows.shape, rows[:TOKENS].float().clone()
