"""Every number of a spectrum as the profile stores it."""

import numpy as np

from karipap_core.spectra.null import null_deviation, null_entropy, spikes
from karipap_core.spectra.spectrum import (
    chi_at_error,
    effective_rank,
    entropy,
    normalized_entropy,
    rank,
    renyi2,
    stable_rank,
    tail,
)

# ---- all of it ------------------------------------------------------------------------------------------------------


def describe(sigma, shape: tuple[int, int]) -> dict:
    """Every number of a spectrum, as the profile stores it: entropies in nats, `excess` = null_entropy - entropy, None
    for a zero matrix, which has no spectrum to compare with noise.

    An excess below two or three `null_deviation` is what chance gives. `total` is sum sigma^2, `chi_at_1pct` the chi
    that leaves 1 % of it, `spike_share` the spikes' part of it.
    """
    count, share = spikes(sigma, shape)
    value, null = entropy(sigma), null_entropy(*shape)
    return {
        "entropy": value,
        "normalized_entropy": normalized_entropy(sigma, shape),
        "null_entropy": null,
        "null_deviation": null_deviation(*shape),
        "excess": null - value if np.any(sigma) else None,
        "renyi2": renyi2(sigma),
        "effective_rank": effective_rank(sigma),
        "rank": rank(sigma, shape),
        "stable_rank": stable_rank(sigma),
        "spikes": count,
        "spike_share": share,
        "sigma_max": float(np.max(sigma, initial=0)),
        "total": float(tail(sigma)[0]),
        "chi_at_1pct": chi_at_error(sigma, 0.01),
    }


def in_words(numbers: dict, shape: tuple[int, int]) -> str | None:
    """One sentence where a matrix is zero or of less than full rank, from what `describe` gives; None otherwise.

    >>> in_words(describe([2.0, 0.0], (2, 3)), (2, 3))
    'Its rank is 1 of 2, to the rounding of float32: low rank with χ = 1 holds it exactly.'
    """
    most = min(shape)
    if numbers["rank"] == 0:
        return "All its numbers are zero: there is no spectrum to speak of, and every network holds it exactly."
    if numbers["rank"] < most:
        return (
            f"Its rank is {numbers['rank']:,} of {most:,}, to the rounding of float32: low rank with χ = "
            f"{numbers['rank']:,} holds it exactly."
        )
    return None
