"""Spearman's rank correlation with its bootstrap interval, also within groups."""

import math
from collections.abc import Sequence

import numpy as np

from karipap_core.statistics.bootstrap import LEVEL, RESAMPLES, SEED

FEWEST = 5  # parts below which no correlation is given


def spearman(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Sequence[int]] | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> dict | None:
    """Spearman's ρ and its percentile bootstrap interval: {"rho", "low", "high", "n"}; None where ρ is not defined.

    ρ = Σ a b / √(Σ a² Σ b²) with a, b the ranks (ties share their mean) minus their mean; with `groups` (lists of
    indices) ranks and means are those within each group, pooled: what is left of ρ when groups differ for reasons of
    their own. Pairs are resampled, within their group where there are groups; resamples without two different values
    are passed over. The interval counts which weights there happen to be, not the error of each y.
    Spearman, "The proof and measurement of association between two things", Am. J. Psychol. 15 (1904).
    """
    first, second = np.asarray(x, np.float64), np.asarray(y, np.float64)
    members = [np.asarray(group, dtype=np.int64) for group in ([range(len(first))] if groups is None else groups)]
    n = sum(len(group) for group in members)
    if n < FEWEST:
        return None
    rho = float(_pooled(first, second, [group[:, None] for group in members])[0])
    if not math.isfinite(rho):
        return None
    generator = np.random.default_rng(seed)
    drawn = [group[generator.integers(len(group), size=(len(group), resamples))] for group in members]
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(_pooled(first, second, drawn), [(1 - level) / 2, (1 + level) / 2])
    return {"rho": rho, "low": float(low), "high": float(high), "n": n}


def _pooled(x: np.ndarray, y: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """ρ of each column of `drawn`: for each group indices (members, columns)."""
    import pandas

    def ranks(values: np.ndarray) -> np.ndarray:
        found = pandas.DataFrame(values).rank().to_numpy()
        return found - found.mean(0)

    a, b = (np.concatenate([ranks(values[index]) for index in drawn]) for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
