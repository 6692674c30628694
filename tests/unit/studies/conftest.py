"""What tests of studies share: a text, a small model on it, and memory measured without a process of its own."""

import random

import pytest


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Words in no order: nothing to predict, which is enough to compare a model with itself."""
    rng = random.Random(0)
    words = ["tensor", "bond", "weight", "layer", "spin", "lattice", "rank", "token", "of", "the", "and"]
    file = tmp_path_factory.mktemp("text") / "words.txt"
    file.write_text(" ".join(rng.choice(words) for _ in range(5000)))
    return file


@pytest.fixture(scope="module")
def llama(made, text):
    """(its folder, the live model, the windows of its study) of one random Llama."""
    from tests.helpers.claims import live, windows_of

    folder = made("llama_untied")
    return folder, live(folder), windows_of(folder, text)


@pytest.fixture(autouse=True)
def in_one_process(monkeypatch):
    """The claim on memory measures in this process: a new one for each form takes seconds."""
    from karipap_core.studies.claims import resident
    from karipap_core.studies.claims.experiments import memory

    monkeypatch.setattr(memory, "resident", lambda folder, *how: resident.measured(str(folder), *how))
