"""What people do with a model they loaded, done with a compressed folder: pipelines, other devices, other sizes."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, pipeline

from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of, plan_for

IDS = torch.arange(24)[None]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("tools")
    model = make("llama_untied", root / "model")
    return model, folder_of(model, root / "out")


def outputs(folder: Path, **more) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, **more)(IDS).logits


def test_pipelines_open_the_folder(world, tmp_path):
    (found,) = pipeline("text-generation", str(world[1]))("def f", max_new_tokens=5, do_sample=False)
    assert found["generated_text"].startswith("def f") and len(found["generated_text"]) > 5
    bert = folder_of(make("bert", tmp_path / "bert"), tmp_path / "out", plan_for(tmp_path / "bert"))
    assert len(pipeline("feature-extraction", str(bert))("word")[0]) == 4


def test_layers_on_the_disk_and_shards_give_the_same(world, tmp_path):
    places = dict.fromkeys(("model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    wanted = outputs(world[1])
    # Cores that accelerate moves are made whole before they are multiplied: the same numbers in another order.
    torch.testing.assert_close(outputs(world[1], device_map="auto"), wanted, rtol=1e-5, atol=1e-5)
    spread = outputs(world[1], device_map=places | {"model.layers.1": "disk"}, offload_folder=tmp_path / "off")
    torch.testing.assert_close(spread, wanted, rtol=1e-5, atol=1e-5)
    AutoModelForCausalLM.from_pretrained(world[1]).save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1 and torch.equal(
        outputs(tmp_path / "shards"), wanted
    )


def test_tokens_are_added_to_a_dense_embedding_and_what_is_saved_opens(world, tmp_path):
    live = AutoModelForCausalLM.from_pretrained(world[1])
    live.resize_token_embeddings(280)
    live.save_pretrained(tmp_path)
    found = outputs(tmp_path)
    assert found.shape[-1] == 280 and torch.equal(found[..., :263], outputs(world[1]))


@pytest.mark.parametrize("table", ["model.embed_tokens", "lm_head"])
def test_a_compressed_table_keeps_its_tokens_and_the_model_stays_whole(world, tmp_path, table):
    plan = plan_for(world[0])
    weights = plan.weights | {table: NETWORKS["lowrank"].for_shape(263, 48, 12).to_json()}
    plan = Plan(plan.model, "weight", weights, embedding={"kind": "lowrank", "chi": 12})
    live = AutoModelForCausalLM.from_pretrained(folder_of(world[0], tmp_path / "out", plan))
    before, parameters = live(IDS).logits, sum(value.numel() for value in live.parameters())
    for size in ({"new_num_tokens": 280}, {"new_num_tokens": 200}, {"pad_to_multiple_of": 64}):
        with pytest.raises(InputError, match="it keeps its 263 tokens. Resize the dense model"):
            live.resize_token_embeddings(**size)
    live.resize_token_embeddings(263)  # is what it has
    assert torch.equal(live(IDS).logits, before) and live.config.vocab_size == 263
    assert sum(value.numel() for value in live.parameters()) == parameters
    with pytest.raises(InputError, match="karipap densify"):
        live.dequantize()


def test_sentence_transformers_opens_the_folder(tmp_path):
    sentences = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    bert = make("bert", tmp_path / "bert")
    parts = [modules.Transformer(str(bert)), modules.Pooling(48, pooling_mode="mean"), modules.Dense(48, 16)]
    sentences.SentenceTransformer(modules=parts).save(str(tmp_path / "whole"))
    folder = folder_of(tmp_path / "whole", tmp_path / "out", plan_for(tmp_path / "whole", {"q": ("lowrank", None)}))
    found = sentences.SentenceTransformer(str(folder)).encode(["one", "two"])
    sentences.SentenceTransformer(str(folder)).save(str(tmp_path / "again"))
    assert found.shape == (2, 16)
    assert (sentences.SentenceTransformer(str(tmp_path / "again")).encode(["one", "two"]) == found).all()
