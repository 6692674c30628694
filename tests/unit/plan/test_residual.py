"""Where blocks add what a weight puts out, and what is gained where a weight makes good what that sum has lost."""

from contextlib import contextmanager

import pytest
import torch

from karipap_core.models.sites import sites
from karipap_core.plan import behind
from karipap_core.plan.aligned import aligned_matrices
from karipap_core.plan.residual import residuals
from tests.helpers import architectures as made_up
from tests.unit.plan.test_aligned import plan_of, study_of

# {weight of block 0: (whose input it is added to, what else is added to that)}; "": the block's own input
KNOWN = {
    "llama": {"self_attn.o_proj": ("", None), "mlp.down_proj": ("post_attention_layernorm", None)},
    "gpt2": {"attn.c_proj": ("", None), "mlp.c_proj": ("ln_2", None)},
    "opt": {"self_attn.out_proj": ("", None), "fc2": ("final_layer_norm", None)},
    "bert": {"attention.output.dense": ("", None), "output.dense": ("intermediate", None)},  # norms behind the sum
    "mixtral": {"self_attn.o_proj": ("", None)},  # experts are given other tokens
    "gpt_neox": {"attention.dense": ("", None), "mlp.dense_4h_to_h": ("", "attention.dense")},  # parallel
    "falcon": {"self_attention.dense": ("", None), "mlp.dense_4h_to_h": ("", "self_attention.dense")},
    "granite": {"self_attn.o_proj": ("", None), "mlp.down_proj": ("post_attention_layernorm", None)},
    "gemma2": {},  # norms before the sum
}
SCALES = {"granite": 0.22}  # that outputs are multiplied by before they are added


@pytest.fixture(autouse=True)
def granite(monkeypatch):
    settings = made_up.LLAMA | {"residual_multiplier": SCALES["granite"]}
    monkeypatch.setitem(made_up.SETTINGS, "granite", ("GraniteConfig", settings))


@pytest.mark.parametrize("kind", KNOWN)
def test_the_residual_connections_of_architectures(kind, tmp_path):
    study = study_of(kind, tmp_path)
    checkpoint, model = study.checkpoint, study.model[0]
    live = {name: site for name, site in sites(model, checkpoint).items() if checkpoint.weight(name).layer == 0}
    path = next(name for name, module in model.named_modules() if name.endswith(".0"))
    block = model.get_submodule(path)
    with residuals(block, live) as found, torch.no_grad():
        model(study.windows.moments[:2])
    names = {module: name for name, module in block.named_modules()}
    told = {
        names[live[name].module]: (names[each.given], each.beside and names[each.beside])
        for name, each in found.items()
    }
    assert told == KNOWN[kind]
    assert {round(each.scale, 6) for each in found.values()} <= {SCALES.get(kind, 1.0)}


@pytest.mark.parametrize(
    ("kind", "last"),
    [("gpt2", "h.0.mlp.c_proj"), ("gpt_neox", "layers.0.mlp.dense_4h_to_h"), ("granite", "layers.0.mlp.down_proj")],
)
def test_what_is_watched_and_the_output_are_what_the_block_puts_out(kind, last, tmp_path):
    study = study_of(kind, tmp_path)
    model, windows = study.model[0], study.windows.moments[:2]
    live = {name: site for name, site in sites(model, study.checkpoint).items() if ".0." in name}
    block = model.get_submodule(next(name for name, _ in model.named_modules() if name.endswith(".0")))
    with residuals(block, live) as found, torch.no_grad():
        model(windows)
    name = next(name for name in live if name.endswith(last))
    outputs = []
    watched = (live[name].module, block)
    handles = [module.register_forward_hook(lambda _, __, output: outputs.append(output)) for module in watched]
    with found[name].watched() as parts, torch.no_grad():
        model(windows)
    for handle in handles:
        handle.remove()
    own, whole = (each[0] if isinstance(each, tuple) else each for each in outputs)
    torch.testing.assert_close((sum(parts) + own) * found[name].scale, whole)


@pytest.mark.parametrize(("kind", "left"), [("llama", 0.995), ("gpt2", 0.93), ("opt", 0.99), ("gpt_neox", 0.88)])
def test_what_the_sum_has_lost_is_made_good(kind, left, tmp_path, monkeypatch):
    study = study_of(kind, tmp_path)
    plan = plan_of(study, 0.4)

    @contextmanager
    def nothing(block, within):
        yield {}

    ways = [aligned_matrices(study, plan)]
    monkeypatch.setattr(behind, "residuals", nothing)
    ways.append(aligned_matrices(study, plan))
    probe = study.probe.measured([{name: (lambda m=matrix: m) for name, matrix in each.items()} for each in ways])
    with_it, without = (each.divergence for each in probe)
    assert with_it < left * without
