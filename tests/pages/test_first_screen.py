"""The first screen and the words: what it is, what high and low mean, one next step, and a line for every word."""

import html
import importlib
import re

import numpy as np
import pandas as pd
import plotly.colors
import pytest

from karipap_core.figures import profile as figures
from karipap_core.figures import style
from pages import profile as page
from pages.parts import common, terms
from tests.helpers import made_up
from tests.helpers.opened import opened, sound, words
from tests.helpers.paths import REPOSITORY


def test_the_first_screen_says_what_this_is_and_leads_on(profiled):
    app = sound(opened())
    said = words(app)
    assert page.INTRO in said
    assert page.INTRO.count(".") == 2  # two sentences
    assert figures.QUANTITIES["entropy"].low in said and figures.QUANTITIES["entropy"].high in said
    assert [button.key for button in app.button if button.proto.type == "primary"] == ["choose_chi"]


@pytest.mark.parametrize("quantity", list(figures.QUANTITIES))
def test_low_and_high_are_said_of_every_quantity(profiled, quantity):
    kind = figures.QUANTITIES[quantity]
    assert kind.low != kind.high
    said = words(sound(opened(quantity=quantity)))
    assert kind.low in said and kind.high in said


def test_low_and_high_say_the_truth_of_two_weights():
    """Low entropy must be where a small χ keeps most."""
    made = made_up.profile(2)
    rows = [row for row in made.weights if row["compressible"]]
    values = {name: [kind.value(made, row, "weight", 0.1) for row in rows] for name, kind in figures.QUANTITIES.items()}
    by_entropy, chi = np.argsort(values["effective_rank"]), np.asarray(values["chi"])
    few, many = by_entropy[: len(rows) // 3], by_entropy[-len(rows) // 3 :]
    assert chi[few].mean() < chi[many].mean()


def test_the_ends_of_the_colours_are_those_of_the_map():
    shown = plotly.colors.sample_colorscale(style.SCALE, [0.0, 1.0])
    assert [f"rgb{plotly.colors.hex_to_rgb(end)}" for end in style.ends()] == shown


def test_every_word_has_a_short_line():
    for term in terms.TERMS.values():
        assert term.line.endswith(".") and len(term.line) < 125, term.name
        assert term.line.count(". ") <= 1, term.name
    assert len(terms.TERMS) == sum(map(len, terms.GROUPS.values()))  # no key twice


def test_the_glossary_has_every_word(profiled):
    said = html.unescape(words(sound(opened("glossary"))))
    for term in terms.TERMS.values():
        assert term.name in said and term.line in said


@pytest.mark.parametrize("name", ["profile", "plan", "tradeoff", "run"])
def test_words_of_a_page_are_at_its_end(profiled, name):
    words_of = importlib.import_module(f"pages.{name}").WORDS
    said = html.unescape(words(sound(opened(name))))
    assert words_of and all(terms.line(key) in said for key in words_of)
    assert set(page.HELP.values()) <= terms.TERMS.keys()


def test_no_number_is_a_nought_with_a_minus():
    table = pd.DataFrame({"rise": [-0.00001, 0.00004, -0.5], "kept": [0.1, 0.2, -0.00001], "label": ["a", "b", "c"]})
    shown = common.no_signed_zeros(table, {"rise": "%.4f", "kept": "percent", "label": None, "gone": "%.4f"})
    assert [f"{number:.4f}" for number in shown["rise"]] == ["0.0000", "0.0000", "-0.5000"]
    assert shown["kept"].equals(table["kept"]) and list(table["rise"]) == [-0.00001, 0.00004, -0.5]


@pytest.mark.parametrize("folder", ["pages", "karipap_core"])
def test_differences_are_written_without_a_signed_nought(folder):
    """Python's own way to say so is the z of a format (PEP 682)."""
    bare = re.compile(r":\+\.\df")
    found = [file.name for file in (REPOSITORY / folder).rglob("*.py") if bare.search(file.read_text("utf-8"))]
    assert not found
