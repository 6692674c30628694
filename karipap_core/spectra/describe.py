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
    """Every number of a spectrum, as the profile stores it: entropies in nats, `excess` = null_entropy - entropy.

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
        "excess": null - value,
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
