"""A model that is stored quantized: what a run says, beside its files as they are."""

from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.form import beside
from tests.helpers.opened import sound, words

STORED = {"form": "int4 (GPTQ, g128), opened to bf16", "bytes": 400_000}


def draw(run: dict) -> str:
    def page(run: dict) -> None:
        from pages.parts import runs

        runs.facts(run)

    return words(sound(AppTest.from_function(page, kwargs={"run": run}, default_timeout=30).run()))


def test_a_run_says_what_it_is_beside_the_files():
    run = {"kept": 0.7, "bytes_kept": 0.7, "bytes": 620_000, "model": {"name": "m", "stored": STORED}}
    text = draw(run)
    assert "70.0%" in text and "155%" in text and "of the files as int4 (GPTQ, g128), opened to bf16" in text
    assert "Beside the files" not in draw(run | {"model": {"name": "m"}})


def test_a_size_beside_the_files_is_a_share_or_said_to_be_larger():
    assert beside(STORED, 100_000) == "25% of the 400 kB of the files as they are"
    larger = "1.55 times the 400 kB of the files as they are: larger than what it comes from"
    assert beside(STORED, 620_000) == larger
