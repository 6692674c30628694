"""Moments, probes, sensitivities and plans on small models, against plain computations of the same thing."""

import numpy as np
import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.models.load import load_model
from karipap_core.models.sites import sites
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.budget import Budget
from karipap_core.plan.damage import marginals
from karipap_core.plan.decompositions import Decompositions
from karipap_core.plan.planner import Planner
from karipap_core.plan.probe import Probe
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings, calibration_windows, sampled_loss
from karipap_core.profiles.blockpass import generator_of
from karipap_core.spectra.metric import Metric
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=1024, window=32, probe_windows=6, check_windows=6)
TEXT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" * 2 for n in range(150)))


@pytest.fixture(scope="module", params=["llama", "gpt2", "mixtral", "bert"])
def study(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return Study(make(request.param, folder / "model"), TEXT, SETTINGS, "cpu", Workspace(folder / "workspace"))


def test_windows_are_shared_by_no_two_uses(study):
    windows = study.windows
    rows = [tuple(row.tolist()) for part in (windows.moments, windows.probe, windows.check) for row in part]
    assert len(windows.probe) == 6 and len(windows.check) == 6 and len(windows.moments) == 1024 // 32
    ids = torch.cat([windows.moments, windows.probe, windows.check]).flatten()
    assert len(rows) == len(set(rows)) and windows.available >= len(ids)


def test_moments_are_those_of_a_plain_pass(study):
    """C and G of every weight from retained gradients of an ordinary forward and backward pass in float64 sums."""
    model, tokenizer = load_model(study.checkpoint)
    windows = calibration_windows(tokenizer, TEXT, study.settings, model.config.vocab_size).moments
    found = sites(model, study.checkpoint)
    seen = {name: ([], []) for name in found}
    outputs = []

    def keep(name):
        def hook(module, arguments, output):
            output.retain_grad()
            outputs.append((name, output))
            seen[name][0].append(arguments[0].detach().flatten(0, -2).double().numpy())

        return hook

    for name, site in found.items():
        site.module.register_forward_hook(keep(name))
    for number, rows in enumerate(windows.split(2048 // study.settings.window)):
        outputs.clear()
        sampled_loss(model, rows, generator_of(4 * study.settings.seed, number)).backward()
        for name, output in outputs:
            seen[name][1].append(output.grad.flatten(0, -2).double().numpy())
    tokens = windows.numel()
    for name, (x, g) in seen.items():
        x, g = np.concatenate(x), np.concatenate(g)
        if study.checkpoint.weight(name).expert is not None and len(x) < 4 * max(x.shape[1], g.shape[1]):
            continue  # borrows from the other experts
        metric = study.moments.metric(name, "loss")
        assert metric.C.numpy() == pytest.approx(x.T @ x / len(x), rel=1e-4, abs=1e-5 * (x**2).mean())
        assert metric.G.numpy() == pytest.approx(g.T @ g / tokens, rel=1e-3, abs=1e-4 * (g**2).mean())


def test_probe_measures_what_float64_numpy_measures_and_replay_changes_nothing(study):
    model, _ = load_model(study.checkpoint)
    windows = study.windows.probe
    probe = Probe(model, study.checkpoint, windows)
    assert probe.measure().divergence == pytest.approx(0, abs=1e-9)

    def outputs():
        with torch.no_grad():
            result = model(input_ids=windows)
        return (result.logits if study.checkpoint.kind == "causal" else result.last_hidden_state).double().numpy()

    dense = outputs()
    weight = [w for w in study.checkpoint.weights if w.compressible and w.name in probe.sites][-1]
    probe.replace(weight.name, study.checkpoint.read(weight.name).float() * 0.5)
    changed = outputs()
    if study.checkpoint.kind == "causal":
        p, q = (a - np.logaddexp.reduce(a, -1, keepdims=True) for a in (dense, changed))
        expected = (np.exp(p) * (p - q)).sum(-1).mean()
        labels = np.take_along_axis(q[:, :-1], windows[:, 1:, None].numpy(), -1)
        assert probe.measure().loss == pytest.approx(-labels.mean(), rel=1e-5)
    else:
        expected = ((changed - dense) ** 2).sum(-1).mean() / (dense**2).sum(-1).mean()
    assert probe.measure().divergence == pytest.approx(expected, rel=1e-4)
    assert probe.measure([weight.name]).divergence == pytest.approx(expected, rel=1e-4)
    probe.restore()
    assert probe.measure().divergence == pytest.approx(0, abs=1e-9)


def test_dense_outputs_that_are_made_again_are_those_that_were_kept(study):
    """Also while the table of tokens, which head and embedding may share, is another one."""
    model, _ = load_model(study.checkpoint)
    kept = Probe(model, study.checkpoint, study.windows.probe)
    slim = Probe(model, study.checkpoint, study.windows.probe, memory_bytes=1)
    assert kept._last[0] is None and (slim._last[0] is None) == (study.checkpoint.kind != "causal")
    names = [w.name for w in study.checkpoint.weights if w.name in slim.sites and w.role in ("q", "qkv", "embed")]
    for name in names[:2]:
        for probe in (kept, slim):
            probe.replace(name, study.checkpoint.read(name).float() * 0.7)
            found = probe.measure()
            probe.restore()
            assert probe.measure().divergence == pytest.approx(0, abs=1e-9)
            if probe is kept:
                wanted = found
        assert found.divergence == pytest.approx(wanted.divergence, rel=1e-5) and found.divergence > 1e-6


def test_marginals_are_differences_of_whole_measurements_and_leave_the_plan_in_place(study):
    probe, decompositions = study.probe, study.decompositions("loss")
    names = [w.name for w in study.checkpoint.weights if w.compressible and w.name in probe.sites][:3]
    specs = {n: LowRank.for_shape(*study.checkpoint.weight(n).shape, 4) for n in names[:2]}
    for name, spec in specs.items():
        probe.replace(name, decompositions.matrix(name, spec))
    base = probe.measure().divergence
    found = marginals(probe, decompositions, study.weights, specs)
    assert probe.measure().divergence == pytest.approx(base, rel=1e-6)
    probe.restore(names[0])
    assert found[names[0]][1] == pytest.approx(base - probe.measure().divergence, rel=1e-3, abs=1e-8)
    probe.replace(names[0], decompositions.matrix(names[0], specs[names[0]]))
    cut, change = found[names[2]]
    probe.replace(names[2], decompositions.matrix(names[2], cut))
    assert change == pytest.approx(probe.measure().divergence - base, rel=1e-3, abs=1e-8)
    probe.restore()


def test_every_rule_meets_the_budget_and_says_what_it_expects(study, monkeypatch):
    planner = Planner(study, "lowrank", "loss")
    for rule in ("uniform", "entropy", "functional", "loss", "calibrated", "best"):
        plan = planner.make(Budget(kept=0.7, scope="blocks"), rule)
        ledger = plan.ledger(study.checkpoint)
        assert 0.5 < ledger.kept_blocks <= 0.7
        assert plan.predicted["kept_blocks"] == ledger.kept_blocks and np.isfinite(plan.predicted["rise"])
        assert (plan.predicted["source"] == "curve") == (rule == "calibrated")
        plan.check(study.checkpoint)
    assert {found["rule"] for found in plan.tried} >= {"uniform", "calibrated", "refined"}
    # Nothing measured is measured again in another session.
    again = Study(study.checkpoint, TEXT, SETTINGS, "cpu", study.workspace)
    monkeypatch.setattr("karipap_core.models.load.load_model", None)
    assert again.calibration("loss").levels == study.calibration("loss").levels
    again.release()  # nothing was loaded, nothing is put back


def test_locks_stay_and_the_rest_makes_up_for_them(study):
    names = [w.name for w in study.checkpoint.weights if w.compressible]
    locks = {names[0]: {"network": "dense"}}
    plan = Planner(study, "lowrank", "loss", locks).make(Budget(kept=0.6, scope="blocks"), "calibrated")
    assert plan.weights[names[0]] == {"network": "dense", "locked": True}
    assert plan.ledger(study.checkpoint).kept_blocks <= 0.6


def test_budgets_in_bytes_of_the_whole_model(study):
    rest = 1 - study.checkpoint.block_parameters / study.checkpoint.parameters
    plan = Planner(study, "lowrank", "loss").make(Budget(kept_bytes=rest + 0.7 * (1 - rest)), "calibrated")
    assert plan.ledger(study.checkpoint).bytes_kept <= rest + 0.7 * (1 - rest)
    with pytest.raises(InputError, match="leaves nothing"):
        Planner(study, "lowrank", "loss").make(Budget(kept_bytes=rest * 0.9), "calibrated")
    for wrong in (Budget(), Budget(kept=0.5, kept_bytes=0.5), Budget(kept=1.5), Budget(kept=0.5, scope="all")):
        with pytest.raises(InputError):
            wrong.limit(study.checkpoint)


def test_curves_of_some_weights_leave_those_of_all_and_of_the_tables_as_they_are(study):
    kept = study.folder / "curves"
    everything = study.curves("lowrank", "weight")
    tables = study.curves("lowrank", "weight", study.tables)
    assert set(everything) == {weight.name for weight in study.weights}
    assert set(tables) == {weight.name for weight in study.tables} and not set(tables) & set(everything)
    before = {file.name: file.read_bytes() for file in kept.iterdir()}
    some = study.curves("lowrank", "weight", study.weights[1:3])
    assert list(some) == [weight.name for weight in study.weights[1:3]]
    for name, curve in some.items():
        assert curve.error == pytest.approx(everything[name].error) and list(curve.chi) == list(everything[name].chi)
    assert {file.name: file.read_bytes() for file in kept.iterdir()} == before
    again = Study(study.checkpoint, TEXT, SETTINGS, "cpu", study.workspace)
    assert set(again.curves("lowrank", "weight", again.tables)) == set(tables)
    assert study.curves("lowrank", "weight") is everything


def test_release_puts_back_what_probes_replaced(study):
    weight = study.weights[0]
    study.check.replace(weight.name, study.checkpoint.read(weight.name).float() * 0.5)
    assert study.check.measure().divergence > 1e-9
    study.release()
    assert study.check.measure().divergence == pytest.approx(0, abs=1e-9)


def test_cores_of_a_weight_in_bfloat16_take_no_more_than_it_and_are_stored_as_before(tmp_path):
    model = make("llama", tmp_path / "model", dtype="bfloat16")
    decompositions = Decompositions(open_checkpoint(model), None, "weight", "two-sided", tmp_path / "cores")
    weight = next(weight for weight in decompositions.checkpoint.weights if weight.role == "down")
    name = weight.name
    spec = LowRank.for_shape(*weight.shape, 7)
    stored = decompositions.stored(name, spec)
    [file] = decompositions.folder.glob("*.safetensors")
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    assert file.stat().st_size - header <= 2 * weight.parameters
    W = decompositions.checkpoint.read(name)
    for found, core in zip(stored, spec.decompose(W, Metric("weight")), strict=True):
        assert torch.equal(found, core.bfloat16())
    again = Decompositions(open_checkpoint(model), None, "weight", "two-sided", tmp_path / "cores")
    assert all(map(torch.equal, again.cores(name, spec), (core.float() for core in stored)))
