"""Embeddings and heads as networks: the module in the hand, and models of every kind of table through disk."""

import copy
import json
import math
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, BartConfig

from karipap_core import InputError
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.roles import TABLES
from karipap_core.compressed.densify import densify
from karipap_core.layers.cores import Packed
from karipap_core.layers.embedding import TensorNetworkEmbedding
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.load import load_model
from karipap_core.models.sites import find_reach, observe, place, replaced, sites
from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS
from karipap_core.networks.dense import Dense
from tests.helpers.architectures import COMMON, ENCODERS, make
from tests.helpers.stored import compressed

TOKENS = torch.arange(34).reshape(2, 17) * 7 % 256
TIED = ("llama", "gpt2", "gpt2_bare", "gemma", "gemma2", "opt", "falcon", "qwen3")
UNTIED = ("llama_untied", "gpt_neox", "phi3")
SPECS = {
    "lowrank": lambda shape: NETWORKS["lowrank"].for_shape(*shape, 9),
    "lowrank, int4": lambda shape: NETWORKS["lowrank"].for_shape(*shape, 9, quantize="int4"),
    "dense, int8": lambda shape: Dense.for_shape(*shape, quantize="int8"),
    "table": lambda shape: EMBEDDING_NETWORKS["tt_embedding"].for_shape(*shape, 6),
    "dense, fp8": lambda shape: Dense.for_shape(*shape, quantize="fp8"),
    "lowrank, int4, aligned": lambda shape: NETWORKS["lowrank"].for_shape(*shape, 22, quantize="int4g12"),
    "lowrank, int3, square": lambda shape: NETWORKS["lowrank"].for_shape(*shape, 99, quantize="int3"),
    "qlr": lambda shape: NETWORKS["qlr"].for_shape(*shape, 4, quantize="int4"),
    "token, fp8": lambda shape: EMBEDDING_NETWORKS["tt_embedding"].for_shape(*shape, 2, form="token", quantize="fp8"),
}
every_spec = pytest.mark.parametrize("kind", list(SPECS))


@torch.no_grad()
def outputs(model) -> torch.Tensor:
    return model(input_ids=TOKENS)[0].float()


def loaded(folder, auto=AutoModelForCausalLM, dtype=torch.float64):
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not any(info[key] for key in ("unexpected_keys", "mismatched_keys", "error_msgs")), info
    assert not [name for name in info["missing_keys"] if "pooler" not in name], info
    assert not any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    return model.eval()


def decomposed(checkpoint):
    return lambda spec, weight: spec.decompose(checkpoint.read(weight.name).float())


def random_cores(spec, weight):
    return [core * 3 for core in spec.random_cores(len(weight.name))]


# ---- the module


@every_spec
def test_drop_in_for_an_embedding(kind):
    torch.manual_seed(0)
    embedding = nn.Embedding(53, 24, padding_idx=3)
    spec = SPECS[kind]((53, 24))
    table = TensorNetworkEmbedding.from_embedding(embedding, spec)
    ids = torch.randint(53, (2, 7))
    assert (table.num_embeddings, table.embedding_dim, table.padding_idx) == (53, 24, 3)
    with torch.no_grad():
        W = table.weight
        assert W.shape == (53, 24)
        for runtime in ("cores", "dense", "cores"):
            table.runtime = runtime
            for some in (ids, ids[0], ids[0, 0], ids[:, :0]):
                torch.testing.assert_close(table(some), nn.functional.embedding(some, W), rtol=1e-4, atol=1e-5)
        twin = copy.deepcopy(table).to(torch.bfloat16)
        assert twin(ids).dtype == torch.bfloat16
        torch.testing.assert_close(twin(ids).float(), table(ids), rtol=0.05, atol=0.1)
    again = TensorNetworkEmbedding(spec)
    again.load_state_dict(table.state_dict())
    assert torch.equal(again(ids), table(ids))
    torch.compiler.reset()  # the limit of recompilations counts over all tests
    compiled = torch.compile(table, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(ids), table(ids))
    assert table.report()["bytes"] == spec.bytes(4) == table.report()["memory_bytes"]
    table.runtime = "dense"
    assert table.report()["memory_bytes"] == spec.bytes(4) + 4 * 53 * 24
    if kind in ("lowrank", "table"):
        for runtime in ("cores", "dense"):
            table.runtime = runtime
            table.zero_grad()
            table(ids).square().sum().backward()
            assert all(core.grad.abs().sum() > 0 for core in table.cores)


@pytest.mark.parametrize("form", ["int8", "int4", "int3", "int2", "int4g24", "fp8"])
@pytest.mark.parametrize("shape", [(53, 24), (53, 40), (53, 7), (24, 24), (53, 1), (40, 3, 16)])
def test_rows_of_a_packed_core_are_those_of_the_whole(form, shape):
    rows = shape[0] if len(shape) == 2 else shape[0] * shape[1]
    packed = Packed(shape, (rows, math.prod(shape) // rows), form)
    packed.set(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    for index in (TOKENS % shape[0], torch.tensor(3), torch.zeros(0, dtype=torch.long)):
        assert torch.equal(packed.rows(index), packed.tensor()[index])
        assert packed.rows(index, torch.float64).dtype == torch.float64


def test_a_look_up_does_not_dequantize_the_table(monkeypatch):
    table = TensorNetworkEmbedding.from_embedding(nn.Embedding(530, 24), Dense.for_shape(530, 24, quantize="int4"))
    wanted = table(TOKENS)
    monkeypatch.setattr(Packed, "tensor", None)
    assert torch.equal(table(TOKENS), wanted)


def test_at_full_rank_it_is_the_embedding():
    embedding = nn.Embedding(53, 24)
    table = TensorNetworkEmbedding.from_embedding(embedding, NETWORKS["lowrank"].for_shape(53, 24, 99))
    torch.testing.assert_close(table(TOKENS % 53), embedding(TOKENS % 53), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("source", ["gemma.GemmaText", "bart.Bart"])
def test_scaled_embeddings_keep_their_scale(source, dtype):
    from importlib import import_module

    package, prefix = source.split(".")
    scaled = getattr(import_module(f"transformers.models.{package}.modeling_{package}"), f"{prefix}ScaledWordEmbedding")
    embedding = scaled(53, 24, 3, embed_scale=24**0.5).to(dtype)
    table = TensorNetworkEmbedding.like(embedding, Dense.for_shape(53, 24))
    table.set_cores([embedding.weight])
    assert torch.equal(table(TOKENS % 53), embedding(TOKENS % 53))  # to the last bit, in bfloat16 too
    assert torch.equal(table.weight, embedding.weight)


def test_tables_that_it_does_not_know():
    spec = NETWORKS["lowrank"].for_shape(53, 24, 3)

    class Shifted(nn.Embedding):
        def forward(self, ids):
            return super().forward(ids + 1)

    for module, said in ((Shifted(53, 24), "Shifted does more"), (nn.Embedding(53, 24, max_norm=1.0), "does more")):
        with pytest.raises(InputError, match=said):
            TensorNetworkEmbedding.like(module, spec)
    with pytest.raises(InputError, match="'mpo' cannot be looked up"):
        TensorNetworkEmbedding(NETWORKS["mpo"].for_shape(53, 24, 3))


# ---- models


def table_of(checkpoint, role: str = "embed") -> str:
    (name,) = [weight.name for weight in checkpoint.weights if weight.role == role]
    return name


@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("kind", ["lowrank", "lowrank, int4"])
def test_a_tied_head_contracts_with_the_same_cores(made, tmp_path, name, kind):
    checkpoint = open_checkpoint(made(name))
    table = table_of(checkpoint)
    folder, specs, matrices = compressed(
        checkpoint, tmp_path / "a", lambda w: SPECS[kind](w.shape) if w.name == table else None, random_cores
    )
    stored = open_checkpoint(folder, compressed=True)
    mine = {tensor: info.size for tensor, info in stored.tensors.items() if tensor not in checkpoint.tensors}
    assert all(tensor.startswith(f"{table}.cores.") for tensor in mine)
    assert sum(mine.values()) == specs[table].bytes(4)
    assert checkpoint.tensors.keys() - stored.tensors.keys() <= {f"{table}.weight", "lm_head.weight"}

    reference, _ = load_model(checkpoint, dtype=torch.float64)
    found = sites(reference, checkpoint, tables=True)
    assert table in found and table not in sites(reference, checkpoint)
    assert torch.equal(found[table].get(), checkpoint.read(table).double())
    model = loaded(folder)
    with replaced(found, matrices):
        expected = outputs(reference)
        torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
        generated = reference.generate(TOKENS[:, :5], max_new_tokens=4, do_sample=False)
        assert torch.equal(model.generate(TOKENS[:, :5], max_new_tokens=4, do_sample=False), generated)
    assert (outputs(reference) - expected).abs().max() > 0.1

    inputs, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert isinstance(inputs, TensorNetworkEmbedding) and isinstance(head, TensorNetworkLinear)
    assert all(head.cores.held(k) is inputs.cores.held(k) for k in range(len(head.cores)))
    assert head.report()["bytes"] == 0 and inputs.report()["bytes"] == specs[table].bytes(8)
    model.tie_weights()  # nothing of theirs is left to tie
    torch.testing.assert_close(sites(model, checkpoint, tables=True)[table].get(), matrices[table])

    model = loaded(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(loaded(tmp_path / "again", dtype=torch.float32)), outputs(model))
    again = open_checkpoint(tmp_path / "again", compressed=True)
    assert sum(info.size for info in again.tensors.values()) == sum(info.size for info in stored.tensors.values())
    for source in (folder, tmp_path / "again"):
        densify(source, tmp_path / "dense", overwrite=True)
        torch.testing.assert_close(outputs(loaded(tmp_path / "dense")), outputs(loaded(folder)), rtol=1e-3, atol=1e-3)
    densify(folder, tmp_path / "dense", overwrite=True)
    assert open_checkpoint(tmp_path / "dense").config == checkpoint.config


@pytest.mark.parametrize("name", TIED)
def test_an_untied_head_stays_as_it_was(made, tmp_path, name):
    checkpoint = open_checkpoint(made(name))
    table = table_of(checkpoint)
    folder, specs, matrices = compressed(
        checkpoint,
        tmp_path / "a",
        lambda w: SPECS["lowrank"](w.shape) if w.name == table else None,
        random_cores,
        embedding={"tied": "untie"},
    )
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    head = reference.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.detach().clone())
    with replaced(sites(reference, checkpoint, tables=True), matrices):
        expected = outputs(reference)
    model = loaded(folder)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.get_output_embeddings().weight, checkpoint.read(table).double())
    stored = open_checkpoint(folder, compressed=True)
    assert stored.config["tie_word_embeddings"] is False and stored.weight(table_of(stored, "head")).role == "head"
    model = loaded(folder, dtype=torch.float32)
    model.save_pretrained(tmp_path / "again")
    assert torch.equal(outputs(loaded(tmp_path / "again", dtype=torch.float32)), outputs(model))
    densify(folder, tmp_path / "dense")
    torch.testing.assert_close(outputs(loaded(tmp_path / "dense")), expected, rtol=1e-3, atol=1e-3)


def test_an_unknown_choice_for_the_tied_head(made, tmp_path):
    checkpoint = open_checkpoint(made("llama"))
    with pytest.raises(InputError, match="embedding.tied is 'both'"):
        compressed(
            checkpoint,
            tmp_path / "a",
            lambda w: SPECS["lowrank"](w.shape) if w.role == "embed" else None,
            embedding={"tied": "both"},
        )


@pytest.mark.parametrize("name", UNTIED)
@pytest.mark.parametrize("roles", [("embed",), ("head",), ("embed", "head")])
def test_untied_tables_are_two_weights(made, tmp_path, name, roles):
    checkpoint = open_checkpoint(made(name))

    def spec_of(weight):
        if weight.role in roles:
            return (
                NETWORKS["mpo"].for_shape(*weight.shape, 5) if weight.role == "head" else SPECS["table"](weight.shape)
            )
        return SPECS["lowrank, int4"](weight.shape) if weight.compressible else None

    folder, specs, matrices = compressed(checkpoint, tmp_path / "a", spec_of, random_cores)
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint, tables=True), matrices):
        expected = outputs(reference)
    model = loaded(folder)
    torch.testing.assert_close(outputs(model), expected, rtol=1e-5, atol=1e-5)
    assert isinstance(model.get_input_embeddings(), TensorNetworkEmbedding) == ("embed" in roles)
    assert isinstance(model.get_output_embeddings(), TensorNetworkLinear) == ("head" in roles)
    densify(folder, tmp_path / "dense")
    torch.testing.assert_close(outputs(loaded(tmp_path / "dense")), expected, rtol=1e-3, atol=1e-3)


def test_two_tables_that_the_config_calls_tied(tmp_path):
    """Both are stored and differ: transformers keeps them apart, and so must the compressed model."""
    folder = make("llama_untied", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    checkpoint = open_checkpoint(folder)
    out, _, matrices = compressed(
        checkpoint, tmp_path / "a", lambda w: SPECS["lowrank"](w.shape) if w.role == "embed" else None, random_cores
    )
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint, tables=True), matrices):
        torch.testing.assert_close(outputs(loaded(out)), outputs(reference), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
@every_spec
def test_encoders_without_a_head(made, tmp_path, name, kind):
    checkpoint = open_checkpoint(made(name))
    table = table_of(checkpoint)
    folder, specs, matrices = compressed(
        checkpoint, tmp_path / "a", lambda w: SPECS[kind](w.shape) if w.name == table else None, random_cores
    )
    reference, _ = load_model(checkpoint, dtype=torch.float64)
    with replaced(sites(reference, checkpoint, tables=True), matrices):
        expected = outputs(reference)
    model, _ = AutoModel.from_pretrained(folder, dtype=torch.float64, output_loading_info=True)
    torch.testing.assert_close(outputs(model.eval()), expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = AutoModel.from_pretrained(tmp_path / "again", dtype=torch.float64).eval()
    assert torch.equal(outputs(again), outputs(model))
    densify(tmp_path / "again", tmp_path / "dense")
    dense = AutoModel.from_pretrained(tmp_path / "dense", dtype=torch.float64).eval()
    torch.testing.assert_close(outputs(dense), expected, rtol=1e-3, atol=1e-3)


def test_the_head_that_an_encoder_learnt_with_contracts_too(made, tmp_path):
    checkpoint = open_checkpoint(made("bert_masked"))
    folder, _, matrices = compressed(
        checkpoint, tmp_path / "a", lambda w: SPECS["lowrank"](w.shape) if w.role == "embed" else None, random_cores
    )
    reference = AutoModelForMaskedLM.from_pretrained(made("bert_masked"), dtype=torch.float64).eval()
    assert reference.cls.predictions.decoder.bias.abs().max() > 0.01
    with replaced(sites(reference, checkpoint, tables=True), matrices):
        torch.testing.assert_close(
            outputs(loaded(folder, AutoModelForMaskedLM)), outputs(reference), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", ["llama", "llama_untied", "gpt2", "gpt_neox", "bert"])
def test_reachable_tables(made, name):
    checkpoint = open_checkpoint(made(name))
    blocks = checkpoint.block_parameters
    find_reach(checkpoint)
    assert checkpoint.left_out == {} and checkpoint.block_parameters == blocks
    assert set(checkpoint.reachable_tables) == {weight.name for weight in checkpoint.weights if weight.role in TABLES}
    again = open_checkpoint(made(name))  # known without asking
    assert again.left_out == {} and again.reachable_tables == checkpoint.reachable_tables


def test_watching_a_table(made):
    checkpoint = open_checkpoint(made("llama_untied"))
    model, _ = load_model(checkpoint)
    found = sites(model, checkpoint, tables=True)
    x, g = {}, {}
    with observe(found, x.__setitem__, g.__setitem__):
        model(input_ids=TOKENS)[0].square().mean().backward()
    table, head = table_of(checkpoint), table_of(checkpoint, "head")
    assert torch.equal(x[table], TOKENS.flatten()) and x[head].shape == (34, 48)
    gradient = torch.zeros(263, 48).index_add_(0, x[table], g[table])
    torch.testing.assert_close(found[table].module.weight.grad, gradient, rtol=1e-4, atol=1e-7)


def test_a_table_that_encoder_and_decoder_share_is_refused(tmp_path):
    settings = COMMON | {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8}
    settings |= {"decoder_ffn_dim": 8, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    model = AutoModel.from_config(BartConfig(**settings | {"max_position_embeddings": 32}))
    with pytest.raises(InputError, match="the model uses the same table as .*embed_tokens"):
        place(model, "shared", NETWORKS["lowrank"].for_shape(263, 16, 3), {})
    model.save_pretrained(tmp_path / "bart")
    checkpoint = open_checkpoint(tmp_path / "bart")
    assert any(weight.role == "embed" for weight in checkpoint.weights)
    find_reach(checkpoint)
    assert checkpoint.reachable_tables == () and checkpoint.left_out == {}


def test_a_scaled_model_in_bfloat16_is_scaled_as_the_dense_one(made, tmp_path):
    shutil.copytree(made("gemma"), tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    folder, _, _ = compressed(
        checkpoint,
        tmp_path / "a",
        lambda w: Dense.for_shape(*w.shape, quantize="int8") if w.role == "embed" else None,
        decomposed(checkpoint),
    )
    densify(folder, tmp_path / "dense")
    network, dense = loaded(folder, dtype=torch.bfloat16), loaded(tmp_path / "dense", dtype=torch.bfloat16)
    assert torch.equal(network.model.embed_tokens(TOKENS), dense.model.embed_tokens(TOKENS))
    assert torch.equal(outputs(network), outputs(dense))
