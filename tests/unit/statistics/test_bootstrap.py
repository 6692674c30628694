"""The paired bootstrap against SciPy's, an enumeration of every resample, and data whose mean is known."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from karipap_core.errors import InputError
from karipap_core.evaluation.fidelity import measure
from karipap_core.evaluation.perplexity import Sample
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.tokens import tokenize
from karipap_core.statistics.bootstrap import (
    Interval,
    difference,
    figures,
    in_units,
    in_words,
    paired_bootstrap,
    rise_of,
)
from karipap_core.text import Text
from tests.helpers.models import llama, perturbed


def unequal_documents(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(5, 200, count)
    return tokens * generator.normal(0.05, 0.1, count), tokens


def test_the_interval_is_scipys():
    sums, tokens = unequal_documents(40, 0)
    mine = paired_bootstrap(sums, tokens, resamples=20_000)
    theirs = stats.bootstrap(
        (sums, tokens),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert mine.mean == pytest.approx(sums.sum() / tokens.sum(), rel=1e-12)
    assert mine.low == pytest.approx(theirs.low, abs=0.03 * width)
    assert mine.high == pytest.approx(theirs.high, abs=0.03 * width)
    assert mine.units == 40


@pytest.mark.parametrize("level", [0.5, 0.8])
def test_the_interval_is_that_of_all_resamples(level):
    sums, tokens = unequal_documents(5, 3)
    draws = np.array(list(itertools.product(range(5), repeat=5)))  # all 3,125
    every = sums[draws].sum(1) / tokens[draws].sum(1)
    low, high = np.quantile(every, [(1 - level) / 2, (1 + level) / 2])
    found = paired_bootstrap(sums, tokens, level=level, resamples=40_000)
    assert found.low == pytest.approx(low, abs=0.03 * np.ptp(every))
    assert found.high == pytest.approx(high, abs=0.03 * np.ptp(every))


def test_it_covers_the_true_mean_about_as_often_as_it_says():
    generator, hits, trials = np.random.default_rng(5), 0, 400
    for trial in range(trials):
        differences = generator.exponential(1.0, 50) - 0.7  # skewed; its mean is 0.3
        found = paired_bootstrap(differences, resamples=400, seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.89 <= hits / trials <= 0.98  # a percentile interval of 50 skewed units covers a little under 95 %


def test_the_same_numbers_give_the_same_interval_and_blocks_do_not_matter(monkeypatch):
    sums, tokens = unequal_documents(30, 9)
    first = paired_bootstrap(sums, tokens)
    monkeypatch.setattr("karipap_core.statistics.bootstrap.AT_ONCE", 1000)
    assert paired_bootstrap(sums, tokens) == first
    assert paired_bootstrap(sums, tokens, seed=1) != first


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-3, 3))
def test_it_moves_with_the_data_and_holds_the_mean_of_equal_ones(values, shift):
    found = paired_bootstrap(values, resamples=100)
    moved = paired_bootstrap(np.array(values) + shift, resamples=100)
    assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9
    assert moved.low == pytest.approx(found.low + shift, abs=1e-9)
    same = paired_bootstrap([shift] * len(values), resamples=100)
    assert same.low == pytest.approx(shift) and same.high == pytest.approx(shift)


def test_what_cannot_be_resampled():
    assert paired_bootstrap([0.1]) is None and paired_bootstrap([]) is None
    for bad in (([1.0, 2.0], [1.0]), ([1.0, np.nan],), ([1.0, 2.0], [1, 0])):
        with pytest.raises(InputError):
            paired_bootstrap(*bad)
    with pytest.raises(InputError, match="level 1"):
        paired_bootstrap([1.0, 2.0], level=1)


def test_words_say_when_nothing_can_be_told():
    assert in_words(Interval(0.01, -0.002, 0.02, 30)) == ("no measurable difference (95 % interval -0.0020 to +0.0200)")
    assert in_words(Interval(0.01, 0.002, 0.02, 30)).startswith("+0.0100 (95 % interval +0.0020")
    assert "too little" in in_words(None)


def test_units_are_documents_or_windows_where_these_are_few():
    differences = np.arange(24.0)
    many = in_units(differences, np.repeat(np.arange(12), 2), stride=8)
    assert many["over"] == "documents" and many["tokens"] == [2] * 12 and many["rise"][1] == 5.0
    few = in_units(differences, np.zeros(24, int), stride=8)
    assert few == {"over": "windows", "ids": [0, 1, 2], "tokens": [8, 8, 8], "rise": [28.0, 92.0, 156.0]}


def test_every_token_knows_its_document():
    class Words:  # a tokenizer of one id a letter, with an opener
        bos_token_id, is_fast = 7, False

        def __call__(self, document, **options):
            return {"input_ids": [ord(letter) for letter in document]}

    text = Text("three", ("ab", "c", "def"))
    assert tokenize(None, text).documents.tolist() == [0, 0, 1, 2, 2, 2]
    assert tokenize(Words(), text).documents.tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2]


def test_a_measured_point_carries_the_interval_of_its_rise():
    dense = llama()
    text = Text("squares", tuple(f"the square of {n} is {n * n}; " for n in range(30)))
    sample = Sample.of(dense, None, text, Scoring(16, 16))
    worse, same = measure(perturbed(dense), sample, dense), measure(dense, sample, dense)
    assert worse["rise_low"] < worse["rise"] < worse["rise_high"] and worse["documents"] == 30
    assert sum(worse["units"]["tokens"]) == worse["tokens"]
    assert sum(worse["units"]["rise"]) / worse["tokens"] == pytest.approx(worse["rise"], abs=1e-6)
    assert same["rise_low"] == same["rise_high"] == 0.0 and not rise_of(same).measurable
    # Two points of the same tokens are paired: their difference is known better than either rise.
    other = measure(perturbed(dense, 0.031), sample, dense)
    found = difference(worse, other)
    assert found.mean == pytest.approx(other["rise"] - worse["rise"], abs=1e-6)
    assert found.high - found.low < worse["rise_high"] - worse["rise_low"]
    assert difference(worse, other | {"window": 8}) is None
    old = {key: value for key, value in other.items() if key not in ("units", "rise_low", "rise_high", "documents")}
    assert difference(worse, old) is None and rise_of(old) is None


def test_the_figures_of_one_token():
    found = figures(torch.tensor([0.5]), torch.tensor([0]), 8)
    assert found["rise_low"] is None and found["rise_high"] is None and found["documents"] == 1
