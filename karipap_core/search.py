"""The one bisection: the largest χ, batch or size that fits."""

from collections.abc import Callable


def largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest whole number n with low ≤ n < high for which `fits` holds.

    `fits` must hold up to some number and for none above it. It is asked between the two ends only: `low` is the answer
    where nothing above it fits, whether or not it fits itself. Takes log₂(high − low) calls.

    >>> largest(lambda n: n * n <= 50, 0, 50)
    7
    """
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
