"""Every case of the catalogue, in this process; a few of each kind again by the real command."""

import pytest

from tests import bad_input

ALL = [pytest.param(case, id=f"{kind}: {case.name}") for kind, cases in bad_input.kinds().items() for case in cases]
# What the frame makes of a sentence is the same for all: two of each kind, as far as lowered limits, which do not reach
# another process, leave them.
FEW = [
    pytest.param(case, id=f"{kind}: {case.name}")
    for kind, cases in bad_input.kinds().items()
    for case in [case for case in cases if not case.limits][::60][:2]
]


@pytest.fixture(scope="module", autouse=True)
def imported():
    bad_input.warm()


@pytest.mark.parametrize("case", ALL)
def test_one_sentence_and_nothing_left(case, tmp_path):
    assert bad_input.run(case, tmp_path).wrong(case) is None


@pytest.mark.parametrize("case", FEW)
def test_the_real_command_says_the_same(case, tmp_path):
    assert bad_input.run(case, tmp_path, bad_input.real_command).wrong(case) is None


def test_no_name_is_given_twice():
    for kind, cases in bad_input.kinds().items():
        names = [case.name for case in cases]
        assert len(set(names)) == len(names), f"{kind}: {[name for name in names if names.count(name) > 1]}"
