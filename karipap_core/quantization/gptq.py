"""The factors that calibrated rounding of a weight's matrices needs, each found once for a second moment."""

from functools import partial
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from karipap_core.quantization.rounding import Columns
from karipap_core.quantization.two_sided import Rows
from karipap_core.spectra.metric import Metric

# All matrices that take the same inputs are rounded under one C: those of one weight, and q, k and v.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def columns_of(metric: Metric, device: torch.device) -> Columns | None:
    """The damped C, whose factors are kept as long as C lives; None is the identity."""
    if metric.C is None or metric.damping_used["C"] is None:
        return None
    return Columns(partial(_damped, metric, "C", device), 0, _kept(metric, metric.C, device))


def rows_of(metric: Metric, device: torch.device) -> Rows | None:
    """`two_sided.Rows` of the damped G, kept as long as G lives; None where rows know nothing of one another, or G is
    not to be rounded under."""
    if metric.G is None or not metric.rounds_under_G or metric.damping_used["G"] is None:
        return None
    kept = _kept(metric, metric.G, device)
    if None not in kept:
        kept[None] = Rows.of(_damped(metric, "G", device), 0)
    return kept[None]


def _damped(metric: Metric, side: str, device: torch.device) -> torch.Tensor:
    found = metric.damped(side, device)
    assert found is not None  # who asks has looked
    return found


def _kept(metric: Metric, moment: torch.Tensor, device: torch.device) -> dict[Any, Any]:
    """What is kept of a moment with this damping, as it is now."""
    kept, key = _factors.setdefault(moment, {}), (metric.damping, moment._version, str(device))
    if key not in kept:
        kept.clear()
        kept[key] = {}
    return kept[key]


def factors(metric: Metric, device: torch.device) -> tuple[Columns | None, Rows | None]:
    """(`columns_of`, `rows_of`)"""
    return columns_of(metric, device), rows_of(metric, device)
