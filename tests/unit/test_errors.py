"""The sentence for a name that is not known."""

import pytest

from karipap_core.errors import InputError, unknown


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("mpoo", "is not one of lowrank, mpo. Did you mean 'mpo'?"),
        ("LowRank", "is not one of lowrank, mpo. Did you mean 'lowrank'?"),
        ("wavelet", "is not one of lowrank, mpo."),
        (None, "is not one of lowrank, mpo."),
        (["mpo"], "is not one of lowrank, mpo. Did you mean 'mpo'?"),
    ],
)
def test_the_nearest_name_is_offered_where_there_is_one(name, ending):
    error = unknown("Network", name, ["lowrank", "mpo"])
    assert isinstance(error, InputError)
    assert str(error) == f"Network {name!r} {ending}"


def test_nothing_known_offers_nothing():
    assert "Did you mean" not in str(unknown("Task", "mpo", iter(())))
