"""Error and parameters of one weight in one network over χ (`Curve`)."""

import math
from dataclasses import dataclass

import numpy as np

LEVELS = 6  # χ at which a curve is measured where each one costs


def even_levels(top: int) -> list[int]:
    """`LEVELS` values of χ up to `top` (1 at least), even in √χ, where `Curve.at` reads between them; fewer where they
    coincide.

    >>> even_levels(100)
    [3, 11, 25, 44, 69, 100]
    """
    return sorted({max(1, round(max(top, 1) * (k / LEVELS) ** 2)) for k in range(1, LEVELS + 1)})


@dataclass(frozen=True)
class Curve:
    """What each χ costs and loses: one weight, one network, one metric.

    chi : ascending, the cap on every bond.  parameters : of the network at that χ.
    error : ‖A (W − Ŵ) B‖², absolute, never rising with χ.  total : ‖A W B‖², the error of dropping the weight (χ = 0).
    exact : True where every χ is listed with the very error that `decompose` reaches; False where a few χ were
    estimated (the network says how) and `at` reads between them.
    """

    chi: np.ndarray
    parameters: np.ndarray
    error: np.ndarray
    total: float
    exact: bool

    def at(self, chi: float) -> float:
        """The error at any χ: listed, or read between its neighbours, log error linear in √χ (linear next to a zero).

        With six levels on trained weights that is within 7 %; linear in χ it is up to 30 % too high.
        """
        chis = np.concatenate([[0], self.chi])
        errors = np.concatenate([[self.total], self.error])
        k = int(np.searchsorted(chis, chi))
        if k >= len(chis) or chis[k] == chi:
            return float(errors[min(k, len(chis) - 1)])
        low, high, at = (math.sqrt(value) for value in (chis[k - 1], chis[k], chi))
        t = (at - low) / (high - low)
        low, high = errors[k], errors[k - 1]
        if low <= 1e-9 * self.total:
            return float(high + t * (low - high))
        return float(math.exp((1 - t) * math.log(high) + t * math.log(low)))
