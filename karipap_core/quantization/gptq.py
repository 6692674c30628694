"""The factors that calibrated rounding of a weight's matrices needs, each found once for a second moment."""

from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from karipap_core.quantization.rounding import inverse_factor
from karipap_core.quantization.two_sided import Rows
from karipap_core.spectra.metric import Metric

# All matrices that take the same inputs are rounded under one C: those of one weight, and q, k and v.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def input_factor(metric: Metric, device: torch.device) -> torch.Tensor | None:
    """`rounding.inverse_factor` of the damped C, kept as long as C lives; None is the identity."""
    return _factor(metric, "C", device)


def rows_of(metric: Metric, device: torch.device) -> Rows | None:
    """`two_sided.Rows` of the damped G, kept as long as G lives; None where rows know nothing of one another, or G is
    not to be rounded under."""
    return _factor(metric, "G", device) if metric.rounds_under_G else None


def _factor(metric: Metric, side: str, device: torch.device) -> Any:
    moment = metric.C if side == "C" else metric.G
    if moment is None:
        return None
    kept, key = _factors.setdefault(moment, {}), (metric.damping, moment._version, str(device))
    if key not in kept:
        kept.clear()
        damped = metric.damped(side, device)
        factored = inverse_factor if side == "C" else Rows.of
        kept[key] = None if damped is None else factored(damped, 0)
    return kept[key]


def factors(metric: Metric, device: torch.device) -> tuple[torch.Tensor | None, Rows | None]:
    """(`input_factor`, `rows_of`)"""
    return input_factor(metric, device), rows_of(metric, device)
