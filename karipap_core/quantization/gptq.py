"""The factors that calibrated rounding of a weight's matrices needs, each found once for a second moment."""

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from karipap_core.quantization.rounding import inverse_factor
from karipap_core.spectra.metric import Metric

# All matrices that take the same inputs are rounded under one C: those of one weight, and q, k and v.
_factors: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def input_factor(metric: Metric, device: torch.device) -> torch.Tensor | None:
    """`rounding.inverse_factor` of the damped C, kept as long as C lives; None is the identity."""
    return _factor(metric, "C", device)


def output_factor(metric: Metric, device: torch.device) -> torch.Tensor | None:
    """`rounding.inverse_factor` of the damped G, kept as long as G lives; None where rows know nothing of one another:
    G is the identity or diagonal, or is not to be rounded under."""
    V = _factor(metric, "G", device) if metric.rounds_under_G else None
    return None if V is None or not V.triu(1).any() else V


def _factor(metric: Metric, side: str, device: torch.device) -> torch.Tensor | None:
    moment = metric.C if side == "C" else metric.G
    if moment is None:
        return None
    kept, key = _factors.setdefault(moment, {}), (metric.damping, moment._version, str(device))
    if key not in kept:
        kept.clear()
        damped = metric.damped(side, device)
        kept[key] = None if damped is None else inverse_factor(damped, 0)
    return kept[key]


def factors(metric: Metric, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """(`input_factor`, `output_factor`)"""
    return input_factor(metric, device), output_factor(metric, device)
