"""Calibrated rounding (GPTQ) of one matrix under a metric."""

from weakref import WeakKeyDictionary

import torch

from karipap_core.quantization.formats import Float8, Format, Quantized
from karipap_core.quantization.rounding import inverse_factor, on_grid, quantize_by_factor, quantize_rounding
from karipap_core.spectra.metric import Metric

# All Qs and Rs of one weight are rounded under one C.
_input_factors: WeakKeyDictionary[Metric, dict[str, torch.Tensor | None]] = WeakKeyDictionary()

Stored = Quantized | Float8 | torch.Tensor


def input_factor(metric: Metric, device: torch.device) -> torch.Tensor | None:
    """`rounding.inverse_factor` of the damped C, kept as long as the metric lives; None is the identity."""
    kept = _input_factors.setdefault(metric, {})
    if str(device) not in kept:
        C = metric.damped("C", device)
        kept[str(device)] = None if C is None else inverse_factor(C, 0)
    return kept[str(device)]


def gptq(matrix: torch.Tensor, name: str, U: torch.Tensor | None) -> Quantized | Float8:
    """Calibrated under the H that U is the `inverse_factor` of (None: the identity). 8 bits are rounded to nearest:
    calibration has nothing left to win there. What is on the grid already stays."""
    form = Format.parse(name)
    if U is None or form.bits == 8:
        return quantize_rounding(matrix, name)
    return on_grid(matrix, name) or quantize_by_factor(matrix, form.bits, form.group, U)
