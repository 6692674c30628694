"""A sample of the architectures that `make architectures` runs: one for each thing that a checkpoint's names, its
stacks or its layers can be like. Of most, a plan at full rank over all that a plan can reach, against the dense model
as transformers itself loads both; of a few the whole chain."""

import functools
import warnings

import pytest
import torch

import karipap_core  # noqa: F401  (registers the format)
from karipap_core.checkpoint.reach import coverage, in_words
from karipap_core.compressed.folder import write_compressed
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.workspace.kept import keep_tensors
from reliability.architectures import chain, generate, listing

# What each is here for, and what share of its parameters a plan reaches at least.
SAMPLE = {
    "apertus": ("a gate that is none", 0.98),
    "aria_text": ("experts renamed, (in, out)", 0.98),
    "bloom": ("positions by slopes, a fused qkv", 0.97),
    "bert": ("a head that fills masks", 0.88),
    "codegen": ("a fused qkv in its own order", 0.97),
    "ctrl": ("tables and heads of other names", 0.96),
    "dbrx": ("experts' slices below one another in one matrix", 0.97),
    "deepseek_v2": ("latent attention, shared experts", 0.98),
    "deepseek_v4": ("a grouped linear layer, parameters multiplied by the model", 0.97),
    "dots1": ("a dense layer before experts", 0.98),
    "exaone4": ("norms behind", 0.98),
    "falcon": ("a linear layer with a forward of its own", 0.97),
    "gemma3": ("patches, a packed attention", 0.97),
    "gemma3_text": ("sliding and full attention", 0.98),
    "gpt_oss": ("stacks (in, out) with biases", 0.97),
    "gpt2": ("maps stored (in, out)", 0.96),
    "granitemoe": ("stacks under other names", 0.98),
    "gte": ("a matrix that is stored fused", 0.9),
    "hrm_text": ("two stacks of layers, matrices stored fused", 0.98),
    "inkling2_text": ("stacks whose rows are interleaved", 0.96),
    "inkling_text": ("shared experts as stacks", 0.96),
    "jamba": ("state spaces, attention and experts", 0.9),
    "jetmoe": ("experts of the attention", 0.97),
    "jina_embeddings_v3": ("stored fused, with biases", 0.88),
    "kimi_k25": ("renamings that hold where another was seen", 0.3),
    "llama4_text": ("every expert is given all tokens", 0.98),
    "llava": ("a tower for images", 0.8),
    "longcat_flash": ("experts that give tokens back", 0.98),
    "mamba2": ("state spaces", 0.9),
    "marian": ("an encoder and a decoder", 0.9),
    "minimax": ("buffers that are stored", 0.97),
    "mixtral": ("experts stored one by one", 0.98),
    "mpt": ("blocks without biases", 0.97),
    "opt": ("positions that are learnt", 0.96),
    "persimmon": ("a fused qkv by heads", 0.97),
    "phimoe": ("experts with biases around", 0.97),
    "qwen3_next": ("gated linear attention", 0.8),
    "rwkv": ("no attention", 0.9),
    "recurrent_gemma": ("a matrix for each head, (in, out)", 0.96),
    "squeezebert": ("convolutions of one place", 0.25),
    "t5": ("relative positions, a shared table", 0.97),
    "xlm": ("blocks in containers of other names", 0.97),
    "xlnet": ("projections of three dimensions", 0.96),
    "zamba": ("a matrix for each head", 0.96),
}
WHOLE = ("granitemoe", "gte", "longcat_flash", "xlm", "xlnet")


@functools.cache
def known() -> dict[str, listing.Architecture]:
    return {each.name: each for each in listing.architectures()}


@pytest.mark.parametrize("name", SAMPLE)
def test_full_rank_is_the_dense_model(name, tmp_path):
    architecture = known()[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        study = Study(generate.make(architecture, tmp_path / "dense"), device="cpu")
        reached = study.weights
        checkpoint = study.checkpoint
        specs = {each.name: NETWORKS["lowrank"].for_shape(*each.shape, min(each.shape)) for each in reached}
        files = {each: tmp_path / "cores" / f"{number}.safetensors" for number, each in enumerate(specs)}
        for each in specs:
            keep_tensors(files[each], exact(checkpoint.read(each)), {})
        plan = Plan(model_entry(checkpoint), "weight", {each: spec.to_json() for each, spec in specs.items()})
        folder = write_compressed(checkpoint, plan.to_json(), files, tmp_path / "full")
        live, info = generate.class_of(architecture).from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        dense = generate.class_of(architecture).from_pretrained(tmp_path / "dense").eval()
        inputs = generate.inputs_in(tmp_path / "dense")
        theirs, ours = generate.outputs_of(dense, inputs), generate.outputs_of(live.eval(), inputs)
    assert (ours - theirs).norm() <= chain.AGREEMENT * theirs.norm()
    whole = chain.outside_tables(dense)  # counted in the live model
    share = checkpoint.block_parameters / whole
    assert checkpoint.block_parameters == sum(each.parameters for each in reached)
    assert SAMPLE[name][1] <= share <= 1
    said = coverage(checkpoint)
    assert abs(said["share"] - share) < 0.02 and f"{said['share']:.1%}" in in_words(said)


def exact(matrix: torch.Tensor) -> dict[str, torch.Tensor]:
    """The cores of a matrix (out, in) at full rank: it and an identity."""
    rows, columns = matrix.shape
    sides = (matrix, torch.eye(columns)) if columns <= rows else (torch.eye(rows), matrix)
    return {f"cores.{number}": side.contiguous() for number, side in enumerate(sides)}


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_chain(name, tmp_path):
    row = chain.run(known()[name], tmp_path)
    assert not row.faults and row.steps["verify"] == "ok", row.steps


def test_what_is_not_reached_takes_no_part_in_a_budget(tmp_path):
    study = Study(generate.make(known()["xlnet"], tmp_path / "dense"), device="cpu")
    before = study.checkpoint.block_parameters
    assert sum(each.parameters for each in study.weights) == study.checkpoint.block_parameters <= before
    assert study.checkpoint.parameters - before > 0
