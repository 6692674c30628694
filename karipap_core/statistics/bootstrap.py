"""How sure a difference between two models is: the paired bootstrap over the documents that both were measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike

from karipap_core.errors import InputError

LEVEL, RESAMPLES, SEED = 0.95, 2000, 0
FEWEST_DOCUMENTS = 10  # below this, resampling documents says too little: windows are resampled
AT_ONCE = 2**22  # numbers of one block of resamples
MOST_KEPT = 2**20  # numbers of the resamples that are kept for the next interval over as many units


@dataclass(frozen=True)
class Interval:
    """A difference and where it lies: `mean` of the sample itself, percentiles `low` and `high`, over `units`."""

    mean: float
    low: float
    high: float
    units: int
    level: float = LEVEL

    @property
    def measurable(self) -> bool:
        """Whether the interval leaves out 0."""
        return not self.low <= 0.0 <= self.high


def paired_bootstrap(
    differences: ArrayLike,
    tokens: ArrayLike | None = None,
    level: float = LEVEL,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Interval | None:
    """Percentile interval of Σ d_i / Σ n_i, units drawn with replacement (Efron and Tibshirani 1993, chapter 13).

    differences: of each unit (a document, a window, an item), the sum over its n_i tokens of ours − theirs, both
    measured on the same tokens; tokens: the n_i (default: one each, so the mean of the differences). Float64, NumPy's
    PCG64 with `seed`: the same numbers give the same interval on every machine. None for fewer than two units. Raises
    InputError for lengths that differ, numbers that are not finite, and a level outside (0, 1).
    """
    sums = np.asarray(differences, dtype=np.float64)
    counts = np.ones_like(sums) if tokens is None else np.asarray(tokens, dtype=np.float64)
    if sums.ndim != 1 or sums.shape != counts.shape:
        raise InputError(f"{sums.size} differences but {counts.size} numbers of tokens: one of each for a unit.")
    if not (np.isfinite(sums).all() and np.isfinite(counts).all() and (counts > 0).all()):
        raise InputError("Differences must be finite, and every unit needs at least one token.")
    if not 0 < level < 1 or resamples < 1:
        raise InputError(f"level {level} and resamples {resamples}: need 0 < level < 1 and at least one resample.")
    if len(sums) < 2:
        return None
    small = resamples * len(sums) <= MOST_KEPT
    blocks = _kept(len(sums), resamples, seed) if small else _drawn(len(sums), resamples, seed)
    means = [(drawn @ sums) / (drawn @ counts) for drawn in blocks]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / counts.sum()), float(low), float(high), len(sums), level)


def in_units(differences, documents, stride: int) -> dict:
    """Sums of per-token differences by the unit that is resampled: {"over", "ids", "tokens", "rise"}, lists.

    differences: (n,) of each scored token in the order of the windows; documents: (n,) the number of its document.
    Units are documents where at least `FEWEST_DOCUMENTS` were measured, else blocks of `stride` neighbouring tokens,
    one for each window: their tokens depend on each other less than those within. "ids" are the documents' numbers
    (windows': their order): equal ids are equal tokens on the same sample, so two models can be paired.
    """
    differences, documents = np.asarray(differences, np.float64), np.asarray(documents)
    over, labels = "documents", documents
    if len(np.unique(documents)) < FEWEST_DOCUMENTS:
        over, labels = "windows", np.arange(len(differences)) // stride
    ids, place = np.unique(labels, return_inverse=True)
    return {
        "over": over,
        "ids": ids.tolist(),
        "tokens": np.bincount(place, minlength=len(ids)).tolist(),
        "rise": np.bincount(place, weights=differences, minlength=len(ids)).tolist(),
    }


def figures(differences, documents, stride: int) -> dict:
    """What a measured point says about its rise: {"rise_low", "rise_high", "documents", "units"}.

    rise_low and rise_high: the interval of `paired_bootstrap`, None for one unit; documents: how many were measured;
    units: see `in_units`, kept so that two points can be compared with each other as well as with the dense model.
    """
    units = in_units(differences, documents, stride)
    found = paired_bootstrap(units["rise"], units["tokens"])
    return {
        "rise_low": found and found.low,
        "rise_high": found and found.high,
        "documents": len(np.unique(np.asarray(documents))),
        "units": units,
    }


def difference(a: dict, b: dict) -> Interval | None:
    """The interval of b's loss minus a's, from the "units" of two points, token by token on the same sample.

    None where the points were not measured on the same tokens, or were written before units were kept.
    """
    ours, theirs = b.get("units"), a.get("units")
    if not ours or not theirs or any(ours[key] != theirs[key] for key in ("over", "ids", "tokens")):
        return None
    if any(a.get(key) != b.get(key) for key in ("window", "stride")) or _text(a) != _text(b):
        return None
    return paired_bootstrap(np.subtract(ours["rise"], theirs["rise"]), ours["tokens"])


def rise_of(point: dict) -> Interval | None:
    """The interval of a point's rise in loss, None where the point has none (written before intervals were)."""
    if point.get("rise") is None or point.get("rise_low") is None or point.get("rise_high") is None:
        return None
    units = len((point.get("units") or {}).get("ids", ())) or point.get("documents") or 0
    return Interval(point["rise"], point["rise_low"], point["rise_high"], units)


def _drawn(units: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each unit is drawn in each resample, (resamples, units), in blocks that fit into memory."""
    generator, share = np.random.default_rng(seed), np.full(units, 1 / units)
    while resamples > 0:
        block = min(resamples, max(1, AT_ONCE // units))
        yield generator.multinomial(units, share, size=block).astype(np.float64)
        resamples -= block


@lru_cache(maxsize=4)
def _kept(units: int, resamples: int, seed: int) -> tuple[np.ndarray, ...]:
    """The same, kept: a table of points on one text has hundreds of intervals over the same units, and to draw takes
    nearly all of the time."""
    return tuple(_drawn(units, resamples, seed))


def in_words(found: Interval | None, form: str = "+z.4f") -> str:
    """ "+0.0123 (95 % interval +0.0101 to +0.0150)", or that there is no measurable difference."""
    if found is None:
        return "no interval: too little was measured"
    span = f"{found.level:.0%}".replace("%", " %") + f" interval {found.low:{form}} to {found.high:{form}}"
    return f"{found.mean:{form}} ({span})" if found.measurable else f"no measurable difference ({span})"


def _text(point: dict):
    text = point.get("text")
    return text.get("sha256") if isinstance(text, dict) else text
