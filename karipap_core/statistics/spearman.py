"""Spearman's rank correlation: with its bootstrap interval, also within groups, and of a few pairs by permutation."""

import math
from collections.abc import Sequence
from itertools import permutations

import numpy as np
from numpy.typing import ArrayLike

from karipap_core.statistics.bootstrap import LEVEL, RESAMPLES, SEED

FEWEST = 5  # parts below which no correlation is given
EXACT_PERMUTATIONS, DRAWS = 7, 20_000


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


def spearman_by_permutation(x: ArrayLike, y: ArrayLike) -> tuple[float | None, float | None]:
    """(ρ, two-sided p) of a few pairs: p is the share of permutations of one side whose |ρ| is at least as large.

    All permutations up to seven pairs, else 20,000 draws with a fixed seed. (None, None) for fewer than three pairs or
    where one side does not vary.
    """
    a, b = (_centred_ranks(np.asarray(values, np.float64)[:, None])[:, 0] for values in (x, y))
    scale = math.sqrt((a @ a) * (b @ b))
    if len(a) < 3 or scale == 0:
        return None, None
    rho = float(a @ b / scale)
    if len(a) <= EXACT_PERMUTATIONS:
        shuffled = np.array(list(permutations(b)))
    else:
        generator = np.random.default_rng(SEED)
        shuffled = np.array([generator.permutation(b) for _ in range(DRAWS)])
    p = float((np.abs(shuffled @ a) / scale >= abs(rho) - 1e-12).mean())
    return rho, max(p, 1 / len(shuffled))


def _pooled(x: np.ndarray, y: np.ndarray, drawn: Sequence[np.ndarray]) -> np.ndarray:
    """ρ of each column of `drawn`: for each group indices (members, columns)."""
    a, b = (np.concatenate([_centred_ranks(values[index]) for index in drawn]) for values in (x, y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))


def _centred_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of each column, equal values sharing their mean, minus the mean rank."""
    import pandas

    ranks = pandas.DataFrame(values).rank().to_numpy()
    return ranks - ranks.mean(0)
