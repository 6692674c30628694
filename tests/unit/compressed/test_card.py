"""The card of a compressed folder: what the hub and people find out from it, and that it is nobody's model."""

import re

import pytest
import yaml

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.card import CARD, base_model, carried
from karipap_core.compressed.verify import verify
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan, model_entry
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of

pytestmark = pytest.mark.usefixtures("quick_fits")
THEIRS = "---\nlicense: apache-2.0\nlanguage:\n- en\nmodel-index: nonsense\ntags: [chat]\n---\n\n# A model\n"


def fields(card: str) -> dict:
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.DOTALL)[1])


@pytest.fixture
def folder(tmp_path):
    model = make("llama", tmp_path / "model")
    (model / CARD).write_text(THEIRS)
    weights = [weight for weight in open_checkpoint(model).weights if weight.compressible]
    entries = {weight.name: NETWORKS["lowrank"].for_shape(*weight.shape, 4).to_json() for weight in weights}
    plan = Plan(model_entry(open_checkpoint(model)) | {"name": "owner/model"}, "weight", entries)
    return folder_of(model, tmp_path / "small", plan)


def test_the_card_names_the_base_model_its_licence_and_how_to_load_it(folder):
    card = (folder / CARD).read_text()
    assert fields(card) == {
        "base_model": "owner/model",
        "base_model_relation": "quantized",
        "language": ["en"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "quantized_by": "karipap",
        "tags": ["karipap"],
    }
    assert (
        "transformers.AutoModelForCausalLM.from_pretrained('model-karipap')" in card and "pip install karipap" in card
    )


def test_who_edits_the_card_does_not_change_the_model(folder):
    (folder / CARD).write_text("mine")
    checks = {check["name"]: check["ok"] for check in verify(folder, folder.with_name("model"))["checks"]}
    assert checks["unchanged"] is True
    (folder / "generation_config.json").write_text("{}")  # and what is of the model still counts
    checks = {check["name"]: check["ok"] for check in verify(folder, folder.with_name("model"))["checks"]}
    assert checks["unchanged"] is False


@pytest.mark.parametrize("text", ["", "no fields", "---\n: [\n---\n", "---\n- a list\n---\n", "---\nlicense:\n---\n"])
def test_a_card_that_cannot_be_read_carries_nothing(tmp_path, text):
    (tmp_path / CARD).write_text(text)
    assert carried(tmp_path / CARD) == {} == carried(tmp_path / "none")


def test_a_folder_of_this_machine_is_no_base_model_of_the_hub():
    assert base_model({"model": {"name": "/home/me/models/mine"}}, "x") == "mine"
    assert base_model({"model": {"name": "owner/name"}}, "x") == "owner/name"
    assert base_model({}, "x") == "x"
