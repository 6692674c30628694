"""How long a layer takes for one vector on this machine, beside a dense one: what multiply-adds do not tell."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks.base import Spec

LARGEST = 2**23  # numbers of a dense weight up to which it is made for this
ROUNDS = 15
SHORTEST = 5e-4  # seconds of a round at least: what takes less is repeated


@torch.no_grad()
def decode_seconds(spec: Spec) -> tuple[float, float] | None:
    """(seconds of a layer of `spec`, of a dense layer of its shape) for one vector in float32, random numbers in both:
    medians of rounds that take turns, by the clock. Some tenths of a second and the memory of both; None for
    a weight of more than `LARGEST` numbers, of which nothing is made."""
    if spec.n_out * spec.n_in > LARGEST or spec.parameters > 2 * LARGEST:
        return None
    x = torch.randn(1, spec.n_in, generator=torch.Generator().manual_seed(0))
    layers: list[Callable] = [
        TensorNetworkLinear.from_spec(spec, seed=0),
        nn.Linear(spec.n_in, spec.n_out, bias=False),
    ]
    for layer in layers:
        _seconds(layer, x, 1)
    repeats = [max(1, round(SHORTEST / max(_seconds(layer, x, 1), 1e-7))) for layer in layers]
    took: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for seconds, layer, repeat in zip(took, layers, repeats, strict=True):
            seconds.append(_seconds(layer, x, repeat))
    ours, dense = map(statistics.median, took)
    return ours, dense


def _seconds(layer: Callable, x: torch.Tensor, repeat: int) -> float:
    began = time.perf_counter()
    for _ in range(repeat):
        layer(x)
    return (time.perf_counter() - began) / repeat
