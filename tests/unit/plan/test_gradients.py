"""Damages from gradients, against forward passes and against the formula written out."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from karipap_core.networks.lowrank import LowRank
from karipap_core.plan import onepass
from karipap_core.plan.budget import Budget
from karipap_core.plan.calibrate import LARGE, fitted, picked, scaled
from karipap_core.plan.damage import apply_plan, marginals, marginals_from_gradients
from karipap_core.plan.gradients import LowRankDamages
from karipap_core.plan.onepass import _errors
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.profiles import blockpass, moments
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.spectra.metric import Metric
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=2048, window=64, probe_windows=12, check_windows=6)
TEXT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" * 2 for n in range(300)))


def test_damages_of_all_chis_are_the_formula_of_each():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(9, 7, generator=generator, dtype=torch.float64)
    left, right = torch.randn(9, 4, generator=generator), torch.randn(4, 7, generator=generator)
    x, g = torch.randn(50, 7, generator=generator), torch.randn(50, 9, generator=generator)
    damages = LowRankDamages(W, (left, right), [1, 3, 4], scored=40)
    damages.add(x[:30], g[:30])
    damages.add(x[30:], g[30:])
    for chi, found in zip([1, 3, 4], damages.damages, strict=True):
        delta = W.numpy() - left[:, :chi].double().numpy() @ right[:chi].double().numpy()
        terms = np.einsum("to,oi,ti->t", g.double().numpy(), delta, x.double().numpy())
        assert found == pytest.approx((terms**2).sum() / 2 / 40, rel=1e-5)


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_gradients_say_what_forward_passes_measure(kind, tmp_path, monkeypatch):
    """Damages of all weights and levels, both ways, each in a workspace of its own."""
    passes = []
    for module in (onepass, moments):
        monkeypatch.setattr(module, "look_over", lambda *a, **k: passes.append(a) or blockpass.look_over(*a, **k))
    model = make(kind, tmp_path / "model")
    found = {}
    for way in ("gradients", "all"):
        study = Study(model, TEXT, SETTINGS, workspace=Workspace(tmp_path / way), measure=way)
        calibration = study.calibration("loss")
        if way == "gradients":
            assert study.profile().weights and len(passes) == 1, "spectra, cores and damages come of one pass"
        assert (calibration.gradients is None) == (way == "all")
        found[way] = calibration.levels
    rows = [(mine, row) for name in found["all"] for mine, row in zip(*(found[w][name] for w in found), strict=True)]
    pairs = np.array([(mine[2], row[2]) for mine, row in rows])
    pairs = pairs[pairs.min(axis=1) > 1e-7]
    assert len(pairs) > 20 and spearmanr(*pairs.T).statistic > 0.94
    assert abs(np.log(pairs[:, 0] / pairs[:, 1]).mean()) < 0.3
    # Asked for, the other way is measured beside the first and not in its place.
    both = Study(model, TEXT, SETTINGS, workspace=Workspace(tmp_path / "gradients"), measure="all")
    assert both.calibration_entry()["measure"] == "all"
    assert both.calibration_file("loss") != Study(model, TEXT, SETTINGS, workspace=both.workspace).calibration_file(
        "loss"
    )


def test_one_pass_is_enough_however_large_the_moments(tmp_path, monkeypatch):
    passes = []
    for module in (onepass, moments):
        monkeypatch.setattr(module, "look_over", lambda *a, **k: passes.append(a) or blockpass.look_over(*a, **k))
    monkeypatch.setattr(onepass, "KEPT_MOMENTS", 0)
    model = make("llama", tmp_path / "model")
    for network, kept in (("lowrank", False), ("lowrank+mpo", True)):
        study = Study(model, TEXT, SETTINGS, workspace=Workspace(tmp_path / network))
        Planner(study, network, "loss").make(Budget(0.7), "calibrated")
        assert len(passes) == 1 and any(study.moments.folder.glob("*.safetensors")) == kept
        passes.clear()


def test_scale_and_bend_are_found_in_what_was_made_with_them():
    estimated = np.geomspace(1e-4, 10, 12)
    pairs = [[d, 1.2 * d * max(1.0, d / LARGE) ** -0.4] for d in estimated]
    fit = fitted(pairs)
    assert fit["scale"] == pytest.approx(1.2) and fit["bend"] == pytest.approx(-0.4) and fit["scatter"] < 1e-9
    assert scaled(3.0, fit) == pytest.approx(1.2 * 3.0 * 30**-0.4)
    nothing = fitted([])
    assert scaled(0.5, nothing) == 0.5 and nothing["scatter"] is None


def test_the_weights_that_are_measured_lie_over_the_whole_range():
    class Named:
        def __init__(self, name):
            self.name = name

    weights = [Named(str(number)) for number in range(20)]
    estimated = {str(number): [[1, 0.0, 2.0**number], [2, 0.0, 0.1]] for number in range(20)}
    names = [weight.name for weight in picked(weights, estimated)]
    assert names[0] == "0" and names[-1] == "19" and len(names) == 6


def test_marginals_from_gradients_are_those_of_forward_passes(tmp_path):
    study = Study(make("llama", tmp_path / "model"), TEXT, SETTINGS, workspace=Workspace(tmp_path / "workspace"))
    probe, decompositions = study.probe, study.decompositions("loss")
    weights = study.weights
    chis = {w.name: round(0.9 * LowRank.for_shape(*w.shape, 1).break_even_chi) for w in weights[::2]}
    specs = {w.name: LowRank.for_shape(*w.shape, chis[w.name]) for w in weights[::2]}
    apply_plan(probe, decompositions, specs)
    ways = [way(probe, decompositions, weights, specs) for way in (marginals, marginals_from_gradients)]
    pairs = np.array([[found[weight.name][1] for found in ways] for weight in weights])
    assert all(ways[0][weight.name][0] == ways[1][weight.name][0] for weight in weights)
    assert spearmanr(*pairs.T).statistic > 0.85  # of a random model, which loses much
    assert 0.7 < np.exp(np.median(np.log(pairs[:, 1] / pairs[:, 0]))) < 1.4


def test_errors_of_all_chis_are_those_of_the_metric():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(20, 14, generator=generator)
    moments = [x.T @ x / 50 for x in (torch.randn(50, n, generator=generator, dtype=torch.float64) for n in (14, 20))]
    for metric in (Metric("weight"), Metric("functional", C=moments[0]), Metric("loss", C=moments[0], G=moments[1])):
        cores = [core.float() for core in LowRank.for_shape(20, 14, 8).decompose(W, metric)]
        for chi, error in enumerate(_errors(W, cores, metric), start=1):
            wanted = metric.absolute(W.double() - cores[0][:, :chi].double() @ cores[1][:chi].double())
            assert error == pytest.approx(wanted, rel=1e-5)
