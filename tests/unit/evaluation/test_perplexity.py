import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import Sample, cut, perplexity
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.tokens import encode, tokenize
from karipap_core.text import Text
from tests.helpers.paths import SHARED

STORY = Text("story", ("The ñandú ran: 'wait', said the 鳥. " * 9, "def f(x):\n    return x\n" * 7, "end 🙂"))


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with merges, so that tokens span bytes, characters and parts of characters."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        STORY.documents, trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def llama(positions=32, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=300, max_position_embeddings=positions, **sizes, **options)
    return LlamaForCausalLM(config).eval()


def gpt2(positions=32):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=300, n_positions=positions, n_embd=16, n_layer=2, n_head=2)).eval()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_token_is_scored_once_with_enough_context(data):
    n = data.draw(st.integers(2, 300))
    window = data.draw(st.integers(1, 60))
    stride = data.draw(st.integers(1, window))
    scored = [0] * n
    for position, w in enumerate(cut(n, window, stride)):
        assert 1 <= w.length <= window and w.start + w.length <= n - 1
        for i in range(w.skip, w.length):
            scored[w.start + i + 1] += 1
            assert position == 0 or i + 1 >= window - stride + 1
    assert scored == [0] + [1] * (n - 1)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_capped_windows_are_spread_and_score_at_most_the_cap(data):
    n = data.draw(st.integers(2, 2000))
    window = data.draw(st.integers(1, 60))
    stride = data.draw(st.integers(1, window))
    cap = data.draw(st.integers(1, 500))
    every, chosen = cut(n, window, stride), cut(n, window, stride, cap)
    total = sum(w.length - w.skip for w in chosen)
    assert total <= cap and (total > cap - stride - 1 or total == n - 1 or len(chosen) < 3 or chosen[-1] == every[-1])
    assert len(set(chosen)) == len(chosen)
    if len(chosen) > 1:
        assert set(chosen) <= set(every)
        assert (chosen[-1].start >= every[-1].start * (1 - 1 / len(chosen)) - stride) or len(chosen) == len(every)


def test_bytes_of_tokens_add_up_to_the_text(tokenizer):
    tokens = tokenize(tokenizer, STORY)
    assert int(tokens.bytes.sum()) == sum(len(document.encode()) for document in STORY.documents)
    assert (tokens.bytes >= 0).all() and len(tokens.ids) == len(tokens.bytes) == len(tokens.scored)
    openers = ~tokens.scored
    assert openers.sum() == 3 and (tokens.ids[openers] == tokenizer.bos_token_id).all() and openers[0]
    assert (tokens.bytes[openers] == 0).all()
    ascii_part = tokens.scored.nonzero()[:3, 0]
    pieces = [tokenizer.decode([i]) for i in tokens.ids[ascii_part]]
    assert pieces == ["The", " ñandú", " ran"] and tokens.bytes[ascii_part].tolist() == [3, 8, 4]


def test_ids_are_those_of_each_document_behind_its_opener(tokenizer):
    expected = []
    for document in STORY.documents:
        expected += [tokenizer.bos_token_id, *tokenizer(document, add_special_tokens=False)["input_ids"]]
    assert encode(tokenizer, STORY).tolist() == expected


def test_without_a_tokenizer_bytes_stand_for_tokens():
    tokens = tokenize(None, Text("t", ("aé",)), vocabulary=200)
    assert tokens.ids.tolist() == [97, 0xC3, 0xA9] and tokens.bytes.tolist() == [1, 1, 1] and tokens.scored.all()
    assert tokenize(None, Text("t", ("é",)), vocabulary=100).ids.tolist() == [0xC3 - 100, 0xA9 - 100]


def test_uniform_model_has_the_analytic_loss(tokenizer):
    model = llama()
    torch.nn.init.zeros_(model.lm_head.weight)
    found = perplexity(model, tokenizer, STORY, Scoring(16, 16))
    text_bytes = sum(len(document.encode()) for document in STORY.documents)
    # The first token is an opener, so nothing of the text goes unscored.
    assert found["text_bytes"] == text_bytes
    assert found["loss"] == pytest.approx(math.log(300), rel=1e-6)
    assert found["perplexity"] == pytest.approx(300, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(math.log2(300) * found["tokens"] / text_bytes, rel=1e-6)


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize(("window", "stride"), [(16, 16), (16, 5), (32, 16), (32, 1)])
def test_losses_equal_a_plain_loop_one_prediction_at_a_time(make, window, stride, tokenizer):
    model, ids = make(), encode(tokenizer, STORY)
    bos = tokenizer.bos_token_id
    expected, counted = 0.0, 0
    with torch.no_grad():
        for target in range(1, len(ids)):
            if ids[target] == bos:
                continue
            # The window that scores this token: the first that reaches it.
            number = 0 if target <= window else -(-(target - window) // stride)
            start = number * stride
            logits = model(input_ids=ids[None, start:target]).logits[0, -1].double()
            expected -= (logits - logits.logsumexp(0))[ids[target]].item()
            counted += 1
    found = perplexity(model, tokenizer, STORY, Scoring(window, stride))
    assert found["tokens"] == counted
    assert found["loss"] == pytest.approx(expected / counted, rel=1e-5)


def test_batching_changes_nothing(tokenizer, monkeypatch):
    model = llama()
    at_once = perplexity(model, tokenizer, STORY, Scoring(8, 4))
    monkeypatch.setattr("karipap_core.evaluation.perplexity.LOGITS_AT_ONCE", 1)
    assert perplexity(model, tokenizer, STORY, Scoring(8, 4))["loss"] == pytest.approx(at_once["loss"], rel=1e-6)


def test_defaults_follow_the_models_positions(tokenizer):
    assert Sample.of(gpt2(24), tokenizer, STORY).window == 24
    sample = Sample.of(llama(4096), tokenizer, STORY)
    assert (sample.window, sample.stride) == (512, 256)


def test_training_mode_is_left_as_it_was(tokenizer):
    model = gpt2().train()  # dropout 0.1: two runs in training mode would differ
    first = perplexity(model, tokenizer, STORY)["loss"]
    assert model.training and perplexity(model, tokenizer, STORY)["loss"] == first


def test_what_does_not_fit_is_refused_in_a_sentence(tokenizer):
    model = llama()
    with pytest.raises(InputError, match="32 positions"):
        perplexity(model, tokenizer, STORY, Scoring(33))
    with pytest.raises(InputError, match="stride ≤ window"):
        perplexity(model, tokenizer, STORY, Scoring(8, 9))
    with pytest.raises(InputError, match="max_tokens"):
        perplexity(model, tokenizer, STORY, Scoring(max_tokens=0))
    with pytest.raises(InputError, match="at least 2"):
        perplexity(model, None, Text("one", ("a",)))
    small = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(InputError, match="64 embeddings"):
        perplexity(small, tokenizer, STORY)
    model.lm_head.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        perplexity(model, tokenizer, STORY)


def test_real_model_reaches_the_known_loss(tmp_path):
    """stories260K on its own kind of text, 1.3693 nats when every story stands alone in up to 512 positions."""

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from karipap_core.text import read_text

    shared = SHARED
    folder, stories = shared / "models/stories260K", shared / "data/tinystories/tinystories_val_part.txt"
    if not (folder.is_dir() and stories.is_file()):
        pytest.skip("shared/ with stories260K is not here")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    real = AutoTokenizer.from_pretrained(folder)
    documents = read_text(stories).documents[:400]
    total = counted = 0
    for document in documents[::40]:
        story = Text("story", (document,))
        found = perplexity(model, real, story, Scoring(511, 511, 511))
        total, counted = total + found["loss"] * found["tokens"], counted + found["tokens"]
    direct = reference_loss(model, real, documents[::40])
    assert total / counted == pytest.approx(direct, rel=1e-5) and 1.2 < direct < 1.6


def reference_loss(model, tokenizer, documents) -> float:
    """transformers' own loss of each document behind its bos, weighted by tokens."""
    total = counted = 0
    for document in documents:
        ids = torch.tensor([tokenizer(document, truncation=True, max_length=512)["input_ids"]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        counted += ids.shape[1] - 1
    return total / counted
