"""Cores fitted behind a compressed prefix, against the same steps with the whole model in memory."""

from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from karipap_core import story
from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.models.sites import observe, sites
from karipap_core.networks.stored import values
from karipap_core.plan import aligned, behind, estimate
from karipap_core.plan.aligned import aligned_matrices, fit_aligned
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.foretold import BEHIND_DENSE, ITSELF
from karipap_core.plan.kind import prefix_of
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.spectra.metric import Metric
from karipap_core.workspace import Workspace
from reliability.architectures import generate
from reliability.architectures.listing import architectures
from tests.helpers.architectures import make
from tests.helpers.studies import CALIBRATION, SETTINGS
from tests.unit.compressed.test_compress import folder_hash

KINDS = ("llama", "gpt2", "bert", "opt", "mixtral", "falcon", "gemma2")
STEPS = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


def study_of(kind, folder) -> Study:
    return Study(make(kind, folder / "model"), CALIBRATION, SETTINGS, "cpu", Workspace(folder / "workspace"))


def plan_of(study, kept=0.5, choice="lowrank", metric="loss"):
    plan = Planner(study, choice, metric).make(Budget(kept, scope="blocks"), "uniform")
    return replace(plan, prefix="aligned")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    study = study_of("llama", tmp_path_factory.mktemp("aligned"))
    return study, plan_of(study)


def in_memory(study, plan) -> dict[str, torch.Tensor]:
    """Ŵ of every weight, by one pass of the whole model for each step, dense and with what is cut so far."""
    model, windows = study.model[0], study.windows.moments[: behind.WINDOWS]
    live, cut = sites(model, study.checkpoint), {}

    def inputs(name, replaced):
        """What a weight is given, and what its output is added to, if it is the last of attention or MLP."""
        seen, stream = [], []
        layer = model.model.layers[study.checkpoint.weight(name).layer]
        holder = {"o": layer.input_layernorm, "down": layer.post_attention_layernorm}.get(
            study.checkpoint.weight(name).role, layer
        )
        with ExitStack() as stack, torch.no_grad():
            for other, matrix in replaced.items():
                stack.enter_context(live[other].replaced(matrix))
            stack.enter_context(observe({name: live[name]}, lambda _, x: seen.append(x.double())))
            stack.callback(holder.register_forward_hook(lambda _, x, __: stream.append(x[0].double())).remove)
            model(windows)
        return torch.cat(seen), torch.cat(stream).flatten(0, 1)

    for layer in sorted({weight.layer for weight in study.weights}):
        for roles in STEPS:
            mine = [w for w in study.weights if w.layer == layer and w.role in roles and plan.spec(w.name)]
            before = dict(cut)
            for weight in mine:
                W, spec = study.checkpoint.read(weight.name).double(), plan.spec(weight.name)
                metric = study.moments.metric(weight.name, plan.metric)
                if before:
                    (x, s), (x_hat, s_hat) = inputs(weight.name, {}), inputs(weight.name, before)
                    own, wanted = x_hat.T @ x_hat / len(x), W @ x.T @ x_hat / len(x)
                    if weight.role in ("o", "down"):
                        wanted = wanted + (s - s_hat).T @ x_hat / len(x)
                    more = aligned.DAMPING * own.diagonal().mean() * torch.eye(len(own), dtype=own.dtype)
                    W = (wanted + W @ more) @ torch.linalg.inv(own + more)
                    metric = Metric(plan.metric, own, metric.G, metric.damping)
                cut[weight.name] = spec.dense(spec.decompose(W, metric))
    return cut


def test_it_is_what_the_whole_model_in_memory_gives(world):
    study, plan = world
    found, expected = aligned_matrices(study, plan), in_memory(study, plan)
    assert found.keys() == expected.keys() and len(found) > 10
    for name, matrix in expected.items():
        assert (found[name] - matrix).norm() < 2e-3 * matrix.norm(), name


def test_weights_that_a_plan_leaves_dense_stay_so(world):
    study, plan = world
    left = {w.name for w in study.weights if w.role in ("q", "down")}
    plan = replace(plan, weights={name: entry for name, entry in plan.weights.items() if name not in left})
    found, expected = aligned_matrices(study, plan), in_memory(study, plan)
    assert found.keys() == expected.keys() and not left & found.keys()
    for name, matrix in expected.items():
        assert (found[name] - matrix).norm() < 2e-3 * matrix.norm(), name


@pytest.mark.parametrize("metric", ["weight", "functional", "loss"])
def test_what_the_prefix_has_lost_is_made_good(tmp_path, metric):
    study = study_of("llama", tmp_path)
    plan = plan_of(study, 0.4, metric=metric)
    source, probe = study.decompositions_of(plan), study.probe
    one = {name: (lambda n=name: source.matrix(n, plan.spec(n))) for name in plan.weights if plan.spec(name)}
    two = {name: (lambda m=matrix: m) for name, matrix in aligned_matrices(study, plan).items()}
    plain, made_good = probe.measured([one, two])
    assert made_good.divergence < 0.97 * plain.divergence


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_a_plan_is_fitted_once(kind, tmp_path):
    study = study_of(kind, tmp_path)
    plan, kept = plan_of(study), []
    fit_aligned(study, plan, lambda name, spec, cores: kept.append((name, spec.dense(values(spec, cores)))))
    cut = {name for name in plan.weights if plan.spec(name) is not None}
    assert len(kept) == len(cut) and dict(kept).keys() == cut
    assert all(torch.isfinite(matrix).all() for _, matrix in kept)


@pytest.mark.parametrize("choice", ["lowrank", Choice("qlr", "int4"), "tree"], ids=str)
def test_a_run_that_was_stopped_goes_on_to_the_same_folder(choice, tmp_path, monkeypatch):
    study = study_of("llama_bf16", tmp_path)
    plan = plan_of(study, 0.4, choice)
    whole = compress(study, plan, tmp_path / "whole")
    assert whole["verify"]["ok"]

    def stop(stage, done, total, item="", *more):
        if stage == "fit" and done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(study, plan, tmp_path / "stopped", progress=stop)
    assert len(list((tmp_path / "stopped" / ".parts").rglob("*.safetensors"))) > 0
    compress(study, plan, tmp_path / "stopped")
    one, two = (folder_hash(tmp_path / name) for name in ("whole", "stopped"))
    assert one["model.safetensors"] == two["model.safetensors"]
    plain = compress(study, replace(plan, prefix=None), tmp_path / "plain")
    assert folder_hash(tmp_path / "plain")["model.safetensors"] != one["model.safetensors"]
    assert plain["bytes"] == whole["bytes"]


def test_a_model_that_does_not_run_block_by_block_is_refused(world, monkeypatch):
    study, plan = world
    monkeypatch.setattr(aligned, "runs_apart", lambda *_: False)
    with pytest.raises(InputError, match="does not run block by block: make the plan without an aligned prefix"):
        aligned_matrices(study, plan)


def test_a_dry_run_counts_the_passes_that_torch_counts(world, monkeypatch):
    study, plan = world
    windows, window = study.windows.moments.shape
    monkeypatch.setattr(estimate, "SETTINGS", SETTINGS)
    monkeypatch.setattr(estimate, "WINDOWS", windows)
    parts = {row["part"]: row["operations"] for row in estimate.of_compress(study.checkpoint, "cpu", plan)["parts"]}
    assert "behind the prefix" not in {
        row["part"] for row in estimate.of_compress(study.checkpoint, "cpu", replace(plan, prefix=None))["parts"]
    }
    with FlopCounterMode(display=False) as counted:
        aligned_matrices(study, plan)
    ran = sum(counted.get_flop_counts()["Global"].values())
    assert 0.5 * ran < parts["behind the prefix"]["float32"] < 2 * ran


def test_the_plan_s_file_says_so(world, tmp_path):
    _, plan = world
    plan.save(tmp_path / "plan.json")
    assert type(plan).load(tmp_path / "plan.json").prefix == "aligned"


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"network": "dense", "quantize": "int4"}, "aligned"),
        ({"network": "qlr", "bits": "int3", "quantize": None}, "aligned"),
        ({"network": "lowrank", "quantize": "int2g32"}, "aligned"),
        ({"network": "lowrank", "quantize": "int8"}, None),
        ({"network": "dense", "quantize": "fp8"}, None),
        ({"network": "lowrank"}, None),
    ],
)
def test_numbers_in_few_bits_are_fitted_behind_a_compressed_prefix_unasked(entry, expected):
    weights = {"w": entry, "v": {"network": "dense"}}
    assert prefix_of("auto", weights, lambda: True) == expected
    assert prefix_of("auto", weights, lambda: False) is None, "where the model does not run block by block"
    assert prefix_of("dense", weights, lambda: True) is None
    assert prefix_of("aligned", weights, lambda: False) == "aligned", "and is refused when it is compressed"


def test_plans_that_are_made_get_it(tmp_path):
    study = study_of("llama", tmp_path)
    made = {
        choice: story.make_plan(study, Budget(0.3, scope="blocks"), "lowrank", "uniform", quantize=choice)
        for choice in (None, "int3")
    }
    assert made[None].prefix is None and made["int3"].prefix == "aligned"
    assert {name: plan.predicted["source"] for name, plan in made.items()} == {None: ITSELF, "int3": BEHIND_DENSE}
    assert story.make_plan(study, 0.5, rule="uniform", quantize="int3", prefix="dense").prefix is None
    with pytest.raises(InputError, match="Prefix 'tall' is not one of auto, dense, aligned"):
        story.make_plan(study, 0.5, prefix="tall")


@pytest.mark.parametrize("name", ["xlnet", "zamba2"])
def test_few_bits_of_models_whose_blocks_share_or_multiply_by_themselves(name, tmp_path):
    """Their blocks cannot be run apart, which is found out and no fault of the folder."""
    [architecture] = [each for each in architectures() if each.name == name]
    model = generate.make(architecture, tmp_path / "model")
    plan = story.make_plan(model, Budget(0.5, scope="blocks"), "lowrank", "uniform", quantize="int3")
    assert plan.prefix is None
    story.compress(model, plan, tmp_path / "compressed")
    assert story.verify(tmp_path / "compressed").to_json()["ok"]
