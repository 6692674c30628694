"""The card of an export, read as the hub reads it."""

import pytest
from huggingface_hub import ModelCard

from karipap_core.exports.card import measured_in_words, write_card
from karipap_core.exports.export import planned
from karipap_core.exports.exporter import Wanted, exporter_named
from karipap_core.exports.source import Source
from tests.helpers.architectures import make
from tests.helpers.plans import in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")
OWN = """---
license: other
license_name: the-licence
language: [de]
tags: [theirs]
pipeline_tag: text-generation
---
Their words.
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("card")
    return in_turn(make("llama", root / "somebody" / "model"), root / "folder", "int8")


def card_of(folder, out, to: str, model: str | None = None) -> ModelCard:
    source, exporter = Source(folder), exporter_named(to)
    if model:
        source.plan = source.plan | {"model": {"name": model}}
    out.mkdir()
    document = planned(source, exporter, Wanted(), out)
    write_card(out, source, exporter, document)
    return ModelCard((out / "README.md").read_text("utf-8"))


COMMANDS = {  # gguf: llama.cpp has no words for this model's tokenizer
    "transformers": 'AutoModelForCausalLM.from_pretrained("out"',
    "vllm": "vllm serve out",
    "onnx": "onnxruntime.InferenceSession('out' + \"/model.onnx\")",
}


@pytest.mark.parametrize("to", COMMANDS)
def test_fields_and_commands(folder, tmp_path, to):
    (folder / "README.md").write_text(OWN)
    card = card_of(folder, tmp_path / "out", to)
    fields = card.data.to_dict()
    assert fields["license"] == "other" and fields["license_name"] == "the-licence" and fields["language"] == ["de"]
    assert fields["library_name"] == exporter_named(to).library and fields["quantized_by"] == "karipap"
    assert "karipap" in fields["tags"]
    assert "theirs" not in fields["tags"]
    assert "base_model" not in fields  # a folder of this machine is no name on the hub
    assert str(tmp_path) not in card.text and str(folder.parent) not in card.text, "a path of this machine"
    assert "14 weights as" in card.text and "Not measured" in card.text
    assert COMMANDS[to] in card.text


def test_a_model_of_the_hub_is_named(folder, tmp_path):
    fields = card_of(folder, tmp_path / "out", "transformers", "somebody/model").data.to_dict()
    assert fields["base_model"] == "somebody/model" and fields["base_model_relation"] == "quantized"


def test_what_was_measured_has_its_interval():
    measured = {
        "engine": "some 1.0",
        "loss": 2.51,
        "karipap_loss": 2.5,
        "difference": 0.01,
        "difference_error": 0.001,
        "tokens": 1000,
        "windows": 4,
        "largest": 0.25,
        "text": "held-out",
    }
    said = measured_in_words(measured, "Some")
    assert "2.5100 nats a token on 1,000 tokens of held-out" in said and "+0.01000 ± 0.00196" in said
    assert "±" not in measured_in_words(measured | {"difference_error": None}, "Some")
