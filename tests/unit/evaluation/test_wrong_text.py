"""Texts that are wrong for a model are said to be: held against ln(vocabulary) and a bootstrap of another make."""

import copy
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from karipap_core.cli.tables import evaluation as evaluation_table
from karipap_core.cli.tables import heal as heal_table
from karipap_core.errors import InputError
from karipap_core.evaluation.fidelity import measure
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.perplexity import Sample
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.wrong_text import text_warning, warnings_of
from karipap_core.profiles.activations import CalibrationSettings, calibration_windows
from karipap_core.text import Text
from karipap_core.tradeoffs.compare import compare
from karipap_core.tradeoffs.sides import Side
from tests.helpers.models import llama
from tests.helpers.paths import REPOSITORY

TEXT = Text("text", tuple(f"document {number}: " + "a line of text, " * 20 for number in range(12)))


def scaled(model, factor: float):
    """The same model, as much more sure of itself."""
    other = copy.deepcopy(model)
    other.lm_head.weight.data *= factor
    return other


def losses(model, sample) -> np.ndarray:
    """−ln p of every scored token by a plain loop in float64."""
    found = []
    ids = sample.tokens.ids
    for window in sample.windows:
        with torch.no_grad():
            logits = model(input_ids=ids[None, window.start : window.start + window.length]).logits[0].double().numpy()
        logits -= logits.max(1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        targets = ids[window.start + 1 : window.start + window.length + 1].numpy()
        found.append(-log_p[np.arange(len(targets)), targets][window.skip :])
    return np.concatenate(found)


def interval(differences: np.ndarray, documents: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the mean, documents drawn with replacement, in plain Python."""
    generator = np.random.default_rng(7)
    groups = [differences[documents == number] for number in np.unique(documents)]
    means = []
    for _ in range(4000):
        chosen = [groups[index] for index in generator.integers(len(groups), size=len(groups))]
        means.append(np.concatenate(chosen).mean())
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


@pytest.mark.parametrize("factor", [0.0, 0.05, 1.0, 6.0])
def test_above_blind_guessing_is_told_by_the_losses_of_a_plain_loop(factor):
    model = scaled(llama(), factor)
    sample = Sample.of(model, None, TEXT, Scoring(32, 32))
    mean = losses(model, sample).mean()
    found = measure(model, sample)
    assert found["loss"] == pytest.approx(mean, rel=1e-5)
    if mean > math.log(256) + 1e-5:
        assert found["text_warning"] == (
            "The text is wrong for this model, or the model is damaged: its loss of "
            f"{mean:.4g} nats a token is above ln 256 = 5.545, which guessing blindly has, so what is measured on it "
            "does not say what was lost."
        )
    else:
        assert factor < 1 and found["text_warning"] is None


def test_a_gain_beyond_noise_is_told_by_a_bootstrap_of_another_make():
    dense = scaled(llama(), 1.0)
    sample = Sample.of(dense, None, TEXT, Scoring(32, 32))
    positions = sample.positions
    seen = set()
    for factor in (0.9, 0.99, 0.999, 1.0, 1.1):
        other = scaled(dense, factor)
        found = measure(other, sample, dense) | {"dense": {"loss": 1.0}}  # as if the text were not wrong otherwise
        differences = losses(other, sample) - losses(dense, sample)
        low, high = interval(differences, sample.tokens.documents[positions].numpy())
        assert (found["rise_low"], found["rise_high"]) == pytest.approx((low, high), abs=0.1 * (high - low) + 1e-6)
        said = text_warning(found, 256)
        assert (said is not None) == (high < -0.005)
        seen.add(said is not None)
        if said is not None:
            assert said == (
                "The text is wrong for this model: the compressed model predicts it measurably better than the dense "
                f"one ({found['rise']:+.4f}, 95 % interval {found['rise_low']:+.4f} to {found['rise_high']:+.4f} nats "
                "a token), and nothing is learnt by cutting weights, so the rise does not say what was lost."
            )
            assert "it has learnt text of this kind" in text_warning(found, 256, healed=True)
    assert seen == {True, False}


def point(**more) -> dict:
    return {"loss": 2.0, "dense": {"loss": 2.1}, "rise": -0.1, "rise_low": -0.2, "rise_high": -0.05} | more


def test_what_may_be_noise_is_no_warning():
    assert text_warning(point(), 512) is not None
    assert text_warning(point(rise_high=-0.005), 512) is None  # other machines make as much of the same weights
    assert text_warning(point(rise_high=0.01), 512) is None
    assert text_warning(point(rise=0.1, rise_low=0.05, rise_high=0.2), 512) is None
    assert text_warning(point(rise_low=None, rise_high=None), 512) is None
    assert text_warning({"loss": 2.0, "dense": {"loss": 2.1}, "rise": -0.1}, 512) is None  # an old file
    assert text_warning(point(rise_high=None, dense={"loss": 6.3}), 512) is not None


def test_a_healed_model_may_be_better_and_the_sentence_says_what_that_means():
    assert text_warning(point(), 512, healed=True) == (
        "The healed model predicts this text measurably better than the dense one (-0.1000, 95 % interval -0.2000 to "
        "-0.0500 nats a token): it has learnt text of this kind, so the rise does not say what was lost on others."
    )
    assert text_warning(point(dense={"loss": 6.3}), 512, healed=True).startswith("The text is wrong for this model")


def test_of_many_points_one_sentence():
    assert warnings_of([point(), point(text_warning=None)]) == []
    assert warnings_of([point(text_warning="Wrong."), point(text_warning="Wrong."), point()]) == ["Wrong."]
    differing = [
        point(text_warning="A little.", rise=-0.1, label="a"),
        point(text_warning="A lot.", rise=-0.3, label="b"),
        point(label="c"),
    ]
    assert warnings_of(differing) == ["2 of 3 points, most of all b: A lot."]


def test_nul_characters_through_the_bundled_model():
    folder = REPOSITORY / "assets/demo_model"
    found = evaluate_folder(folder, text=Text("nul", ("\0" * 3000,)), scoring=Scoring(max_tokens=512), speed=False)
    assert found["loss"] > 10 and found["text_warning"].startswith(
        f"The text is wrong for this model, or the model is damaged: its loss of {found['loss']:.4g} nats a token is "
        "above ln "
    )
    assert found["text_warning"] in evaluation_table.table(found).replace("\n", " ")


def test_a_text_of_less_than_a_window_is_told_of():
    model = scaled(llama(), 0.0)  # guesses blindly, which is not above ln 256
    found = measure(model, Sample.of(model, None, Text("short", ("a text of 24 characters.",)), Scoring(64)))
    assert found["text_warning"] == (
        "Text short has 24 tokens, which is less than one window of 64: its figures are unsure."
    )
    with pytest.raises(InputError, match="^Text one has 1 token: at least 2 are needed to predict one.$"):
        Sample.of(model, None, Text("one", ("a",)))


def test_a_text_of_words_that_a_tokenizer_does_not_know_is_refused():
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "known": 1, "words": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    model = llama()
    foreign = Text("foreign", ("quite other ones " * 100 + "known words",))
    sentence = "Text foreign is wrong for this model: 300 of its 302 tokens are unknown to the tokenizer."
    with pytest.raises(InputError) as raised:
        Sample.of(model, tokenizer, foreign)
    assert str(raised.value) == sentence
    with pytest.raises(InputError) as raised:
        calibration_windows(tokenizer, foreign, CalibrationSettings(), 256)
    assert str(raised.value) == sentence
    Sample.of(model, tokenizer, Text("half", ("known other " * 100,)))


def test_it_is_said_wherever_figures_are_compared():
    said = "The text is wrong for this model: so it is."
    sides = [Side(name, "run", point=point(text_warning=warning)) for name, warning in (("a", said), ("b", None))]
    assert f"a: {said}" in compare(*sides)["notes"]
    healed = {
        "loss_before": 3.0,
        "loss_after": 2.5,
        "dense_loss": 2.4,
        "dense_trained": None,
        "steps": 1,
        "objective": "distill",
        "seconds": 1,
        "learning_rate": 1e-4,
        "trained": 1,
        "text": {"name": "t"},
        "validation": {"name": "v", "tokens": 1},
        "notes": [],
        "folder": "f",
        "points": [{"text": "t", "label": "l", "rise": -0.1, "text_warning": said}],
    }
    assert said in heal_table.table(healed)
