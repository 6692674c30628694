import copy
import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, BertModel

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.fidelity import (
    EncoderSample,
    divergence,
    hidden_states,
    keep_logits,
    measure,
    output_fidelity,
)
from karipap_core.evaluation.folder import dense_model_of, evaluate_folder
from karipap_core.evaluation.perplexity import Sample, perplexity
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.speed import measure_memory, measure_speed, weights_bytes
from karipap_core.spectra.spectrum import pick_device
from karipap_core.text import Text
from tests.helpers.architectures import make
from tests.helpers.models import llama, perturbed

TEXT = Text("text", ("a line of text, " * 20, "and another one " * 15))


def test_divergence_against_numpy(monkeypatch):
    generator = np.random.default_rng(0)
    p, q = 3 * generator.normal(size=(50, 7)), 3 * generator.normal(size=(50, 7))
    a, b = np.exp(p), np.exp(q)
    a, b = a / a.sum(1, keepdims=True), b / b.sum(1, keepdims=True)
    expected = (a * np.log(a / b)).sum(1)
    monkeypatch.setattr("karipap_core.evaluation.fidelity.ROWS_AT_ONCE", 64)  # several chunks
    kl, same = divergence(torch.tensor(p), torch.tensor(q))
    np.testing.assert_allclose(kl.numpy(), expected, rtol=2e-6)
    assert (same.numpy() == (p.argmax(1) == q.argmax(1))).all()


@pytest.mark.parametrize(("noise", "within"), [(1.0, 1e-6), (1e-2, 1e-6), (1e-4, 1e-4)])
def test_small_divergences_keep_their_digits(noise, within):
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(200, 2000, generator=generator) * 3 + 5
    q = p + noise * torch.randn(200, 2000, generator=generator)
    log_p, log_q = p.double().log_softmax(-1), q.double().log_softmax(-1)
    wanted = (log_p.exp() * (log_p - log_q)).sum(-1).mean()
    torch.testing.assert_close(divergence(p, q)[0].mean(), wanted, rtol=within, atol=0)


def test_a_divergence_of_hundreds_of_nats():
    p, q = torch.tensor([[0.0, -900.0]]), torch.tensor([[-900.0, 0.0]])
    assert divergence(p, q)[0].item() == pytest.approx(900, rel=1e-6)


def test_divergence_of_two_bernoullis_and_of_equals():
    p, q = 0.9, 0.6
    dense, other = torch.tensor([[math.log(p / (1 - p)), 0.0]]), torch.tensor([[math.log(q / (1 - q)), 0.0]])
    kl, _ = divergence(dense.double(), other.double())
    assert kl.item() == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), rel=1e-6)
    shifted, _ = divergence(dense, dense + 5)
    assert shifted.item() < 1e-9
    with pytest.raises(InputError, match="vocabulary"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4))


def test_measure_against_a_plain_loop_and_kept_logits():
    dense = llama()
    model = perturbed(dense)
    sample = Sample.of(dense, None, TEXT, Scoring(16, 16))
    ids = sample.tokens.ids
    kl, agree, loss, tokens = 0.0, 0, 0.0, 0
    with torch.no_grad():
        for start in range(0, len(ids) - 1, 16):
            part = ids[None, start : min(start + 16, len(ids) - 1)]
            p, q = (each(input_ids=part).logits[0].double().log_softmax(-1) for each in (dense, model))
            kl += (p.exp() * (p - q)).sum().item()
            agree += (p.argmax(-1) == q.argmax(-1)).sum().item()
            loss -= q[torch.arange(len(q)), ids[start + 1 : start + 1 + len(q)]].sum().item()
            tokens += len(q)
    found = measure(model, sample, dense)
    assert found["tokens"] == tokens == len(ids) - 1
    assert found["kl"] == pytest.approx(kl / tokens, rel=1e-4) and found["kl"] > 1e-4
    assert found["top1_agreement"] == pytest.approx(agree / tokens, abs=1e-9)
    assert found["loss"] == pytest.approx(loss / tokens, rel=1e-5)
    assert found["dense"]["loss"] == pytest.approx(perplexity(dense, None, TEXT, Scoring(16, 16))["loss"], rel=1e-6)
    assert found["rise"] == pytest.approx(found["loss"] - found["dense"]["loss"], abs=1e-12)
    assert found["rise_error"] > 0
    assert 0.2 < found["top1_agreement"] < 1
    again = measure(model, sample, keep_logits(dense, sample))
    for key in ("loss", "rise", "kl", "top1_agreement"):
        assert again[key] == pytest.approx(found[key], rel=1e-6)
    assert again["dense"] == pytest.approx(found["dense"])


def test_the_same_model_loses_nothing():
    dense = llama()
    found = measure(dense, Sample.of(dense, None, TEXT), dense)
    assert found["kl"] == 0.0 and found["rise"] == 0.0 and found["top1_agreement"] == 1.0


def test_rise_error_is_that_of_block_means():
    """Differences that are constant within blocks: the error is the standard deviation of block means / √blocks."""
    from karipap_core.evaluation.fidelity import _standard_error

    blocks = torch.tensor([0.0, 1.0, 2.0, 5.0]).double()
    assert _standard_error(blocks.repeat_interleave(8), 8) == pytest.approx(blocks.std().item() / 2)
    assert _standard_error(blocks[:1].repeat(8), 8) is None


def test_encoder_fidelity_against_numpy():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=256,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        initializer_range=0.3,
    )
    dense = BertModel(config).eval()
    model = copy.deepcopy(dense)
    model.encoder.layer[0].output.dense.weight.data *= 0.8
    sample = EncoderSample.of(dense, None, TEXT, Scoring(20))
    found = output_fidelity(model, sample, dense)
    assert output_fidelity(model, sample, list(hidden_states(dense, sample))) == found
    ids = np.frombuffer("".join(TEXT.documents).encode(), dtype=np.uint8).astype(np.int64)
    ids = torch.tensor(ids[: len(ids) // 20 * 20]).reshape(-1, 20)
    with torch.no_grad():
        a, b = (each(input_ids=ids).last_hidden_state.double().numpy() for each in (dense, model))
    assert found["relative_error"] == pytest.approx(((a - b) ** 2).sum() / (a**2).sum(), rel=1e-4)
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    assert found["cosine"] == pytest.approx(cosine.mean(), rel=1e-6)
    assert found["relative_error"] > 1e-4 and found["tokens"] == ids.numel()
    with pytest.raises(InputError, match="32 positions"):
        EncoderSample.of(dense, None, TEXT, Scoring(40))


def test_speed_takes_turns_and_memory_counts_shared_weights_once():
    dense = llama()
    found = measure_speed({"dense": dense, "compressed": perturbed(dense)}, prompt=32, new_tokens=4, repeats=3)
    for figures in found.values():
        assert figures["prefill_tokens_per_second"] > 0 and figures["decode_ms_per_token"] > 0
        assert figures["prefill_cpu_seconds"] > 0 and figures["decode_cpu_ms_per_token"] > 0
        assert (figures["prompt"], figures["new_tokens"], figures["repeats"]) == (32, 4, 3)
    long = measure_speed({"dense": dense}, prompt=1000, new_tokens=1000, repeats=1)["dense"]
    assert long["prompt"] + long["new_tokens"] <= 64
    before = weights_bytes(dense)
    assert before >= 4 * sum(parameter.numel() for parameter in dense.parameters())
    dense.lm_head.weight = dense.model.embed_tokens.weight
    assert before - weights_bytes(dense) == 4 * 256 * 32
    memory = measure_memory(dense, 32, 4)
    assert memory["peak_bytes"] >= memory["weights_bytes"] == weights_bytes(dense)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A causal model, the same with other weights as if compressed (its config names a plan), and an encoder."""
    root = tmp_path_factory.mktemp("folders")
    model = make("llama", root / "model")
    other = make("llama", root / "other", seed=1)
    return root, model, other, make("bert", root / "encoder")


def plan_in(folder, fingerprint, source=None):
    """Let a folder's files say that it was made from the checkpoint with this fingerprint."""
    config = json.loads((folder / "config.json").read_text())
    plan = {"model": {"name": "somewhere/else", "fingerprint": fingerprint}}
    config["quantization_config"] = {"quant_method": "karipap", "plan": plan}
    (folder / "config.json").write_text(json.dumps(config))
    report = {"format": "karipap-report", "version": 1}
    (folder / "karipap.json").write_text(json.dumps(report | ({"source": source} if source else {})))


def test_folder_without_a_plan_is_measured_alone(folders):
    _, model, _, _ = folders
    found = evaluate_folder(model, text=TEXT, scoring=Scoring(32, 16), device="cpu", speed=False)
    assert found["dense"] is None and found["kl"] is None and "names no dense model" in found["notes"][0]
    live = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    alone = perplexity(live, AutoTokenizer.from_pretrained(model), TEXT, Scoring(32, 16))
    assert {key: found[key] for key in alone} == pytest.approx(alone)
    assert found["text"] == {"name": "text", "sha256": TEXT.sha256} and found["dtype"] == "float32"
    assert found["memory"]["compressed"]["disk_bytes"] == (model / "model.safetensors").stat().st_size
    json.dumps(found, allow_nan=False)


def test_folder_against_another_model(folders):
    _, model, other, _ = folders
    found = evaluate_folder(other, model, TEXT, Scoring(32, 32, 200), device="cpu")
    a, b = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (model, other))
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = measure(b, Sample.of(b, tokenizer, TEXT, Scoring(32, 32, 200)), a)
    for key in ("loss", "kl", "rise", "top1_agreement"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)
    assert found["speed"].keys() == found["memory"].keys() == {"compressed", "dense"}
    assert found["notes"] == []


def test_the_dense_model_is_found_where_the_folder_says_and_only_if_it_is_the_same(folders, tmp_path):
    _, model, other, _ = folders
    same, wrong = open_checkpoint(model).fingerprint, "0" * 64
    plan_in(other, same, str(model))
    notes = []
    assert dense_model_of(other, None, notes) == str(model) and notes == []
    plan_in(other, wrong, str(model))
    assert dense_model_of(other, None, notes) is None and "not found here unchanged" in notes[0]
    assert dense_model_of(other, model, notes) == model and "fingerprints differ" in notes[1]
    plan_in(other, same)
    assert dense_model_of(other, None, []) is None


def test_encoders_and_what_is_not_there(folders):
    _, model, _, encoder = folders
    found = evaluate_folder(encoder, encoder, TEXT, Scoring(34), device="cpu", speed=False)
    assert found["fidelity"]["relative_error"] == 0.0 and found["fidelity"]["cosine"] == pytest.approx(1.0)
    assert found["loss"] is None and found["kind"] == "encoder"
    with pytest.raises(InputError, match="--against"):
        evaluate_folder(encoder, text=TEXT, device="cpu", speed=False)
    with pytest.raises(InputError, match="dtype"):
        evaluate_folder(model, text=TEXT, dtype="int3")
    with pytest.raises(InputError, match="not here"):
        pick_device("tpu")
