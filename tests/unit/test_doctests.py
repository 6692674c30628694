"""The examples in docstrings are true."""

import doctest
import importlib

import pytest

from tests.helpers.paths import REPOSITORY

FILES = sorted(file.relative_to(REPOSITORY) for file in (REPOSITORY / "karipap_core").rglob("*.py"))
NAMES = [".".join(file.with_suffix("").parts) for file in FILES if ">>>" in (REPOSITORY / file).read_text()]


def test_there_are_examples():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_examples_are_true(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    failed, tried = doctest.testmod(module)
    assert tried and not failed
