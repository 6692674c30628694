"""What tests of studies share: a text, a small model on it, and no process for each form that memory is measured of."""

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
def no_process(monkeypatch):
    """The claim on memory takes the size of the files for what a folder takes while it runs: a process for each form
    takes seconds. What the process measures has a test of its own."""
    from karipap_core.studies.claims.experiments import memory

    def resident(folder, dtype, device) -> dict[str, int]:
        held = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        return {"resident_bytes": held, "weights_bytes": held, "peak_bytes": 2 * held}

    monkeypatch.setattr(memory, "resident", resident)
