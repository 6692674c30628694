"""Each target of the fuzzer for a moment, with the same inputs on every run; `make fuzz` goes on from there."""

import random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from reliability import fuzz
from reliability.targets import TARGETS, Target, changed

SHORT = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate,),  # what fails is to be mended, not shrunk for minutes
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("name", TARGETS)
def test_valid_input_is_taken(name, demo_model):
    for seed in TARGETS[name].seeds():
        assert TARGETS[name].tried(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_input_is_refused_in_a_sentence_or_used(name, demo_model):
    @SHORT
    @given(st.data())
    def holds(data):
        target = TARGETS[name]
        target.tried(target.made(lambda n: data.draw(st.integers(0, n - 1)), lambda: data.draw(st.binary(max_size=99))))

    holds()


def test_a_change_is_one_change_and_leaves_the_document_as_it_was():
    document = {"a": [1, 2, {"b": None}], "c": "d"}
    generator = random.Random(0)
    made = [changed(document, generator.randrange) for _ in range(200)]
    assert document == {"a": [1, 2, {"b": None}], "c": "d"}
    assert sum(one != document for one in made) > 150 and len({repr(one) for one in made}) > 50


def test_the_fuzzer_finds_a_reader_that_fails(tmp_path, monkeypatch):
    """One fault in plain sight, one that only a damaged document shows, one refusal that is no sentence."""
    monkeypatch.chdir(tmp_path)

    def reader(data):
        if data.startswith(b"{") and data.endswith(b"}"):
            if b'"number": 5' not in data:
                raise KeyError("number")
        elif len(data) > 10:
            raise InputError("two\nlines")
        else:
            raise InputError("This is no object.")

    target = Target("made up", reader, lambda: [b'{"number": 5, "name": "x"}'])
    fuzz._at_random(target, 1, 1, tmp_path / "report.json")
    text = (tmp_path / "report.json").read_text()
    assert "KeyError in target" in text and "AssertionError in target" in text
    kept = {file.name for file in (tmp_path / "build" / "fuzz" / "made-up").iterdir()}
    assert {"KeyError-in-target.input", "KeyError-in-target.txt"} <= kept
