"""The factor that calibrated rounding (GPTQ) of a weight's matrices needs, found once for a metric."""

from weakref import WeakKeyDictionary

import torch

from karipap_core.quantization.rounding import inverse_factor
from karipap_core.spectra.metric import Metric

# All matrices of one weight that take its inputs are rounded under one C.
_input_factors: WeakKeyDictionary[Metric, dict[str, torch.Tensor | None]] = WeakKeyDictionary()


def input_factor(metric: Metric, device: torch.device) -> torch.Tensor | None:
    """`rounding.inverse_factor` of the damped C, kept as long as the metric lives; None is the identity."""
    kept = _input_factors.setdefault(metric, {})
    if str(device) not in kept:
        C = metric.damped("C", device)
        kept[str(device)] = None if C is None else inverse_factor(C, 0)
    return kept[str(device)]
