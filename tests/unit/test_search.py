"""The bisection behind every "largest that fits"."""

import pytest

from karipap_core.search import largest


@pytest.mark.parametrize(("limit", "found"), [(-1, 0), (0, 0), (1, 1), (7, 7), (9, 9), (10, 9), (99, 9)])
def test_the_largest_below_the_upper_end_is_found_in_few_calls(limit, found):
    asked = []
    assert largest(lambda n: asked.append(n) or n <= limit, 0, 10) == found
    assert len(asked) <= 4 and all(0 < n < 10 for n in asked), "neither end is asked"


def test_an_empty_range_is_its_lower_end():
    assert largest(lambda n: 1 / 0, 3, 4) == largest(lambda n: 1 / 0, 3, 3) == 3
