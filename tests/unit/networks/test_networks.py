"""Metrics and networks against plain float64 NumPy, analytic cases, and tensorly's own tensor train."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.layers.cores import stored_tensors
from karipap_core.layers.linear import TensorNetworkLinear, check_layer
from karipap_core.networks import NETWORKS, Metric, spec_from_json
from karipap_core.networks.base import factorize
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo, to_sites
from karipap_core.networks.refine import refine
from tests.helpers.metrics import damped, gaussian, metrics, moment, plain_error

QUICK = settings(max_examples=40, deadline=None)


# ---- the metric


@pytest.mark.parametrize("name", ["weight", "functional", "loss"])
def test_the_metric_is_its_definition_and_whitening_undoes(name):
    metric, W = metrics(12, 20)[name], gaussian(12, 20)
    assert metric.absolute(W) == pytest.approx(plain_error(metric, W.numpy()), rel=1e-10)
    whitened = metric.whiten(W)
    assert metric.unwhiten_right(metric.unwhiten_left(whitened)).numpy() == pytest.approx(W.numpy(), rel=1e-8, abs=1e-9)
    assert metric.error(W, W) == 0.0 and metric.error(W, torch.zeros_like(W)) == pytest.approx(1)


def test_a_singular_moment_is_damped_more_until_it_can_be_factored_and_an_empty_one_is_told_of():
    broken = torch.diag(torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64))
    metric = Metric("functional", broken)
    metric.whiten(gaussian(2, 3))
    assert metric.damping_used["C"] > 0.01
    with pytest.warns(UserWarning, match="identity stands in"):
        empty = Metric("functional", torch.zeros(3, 3, dtype=torch.float64))
        assert empty.absolute(torch.eye(3)) == pytest.approx(3)
    with pytest.raises(InputError, match="moment C"):
        Metric("functional", moment(4, 0)).whiten(gaussian(2, 3)) if False else Metric("functional")
    with pytest.raises(InputError, match="needs"):
        Metric("functional", moment(4, 0)).whiten(gaussian(2, 3))


# ---- every network


@st.composite
def cases(draw):
    sizes = st.sampled_from([1, 2, 3, 5, 6, 7, 8, 11, 12, 16, 24])
    return draw(st.sampled_from(list(NETWORKS))), draw(sizes), draw(sizes), draw(st.integers(1, 12))


@QUICK
@given(cases(), st.integers(0, 3))
def test_apply_is_the_dense_product_and_sizes_are_counted_before_anything_is_made(case, batch_dims):
    name, out, n_in, chi = case
    spec = NETWORKS[name].for_shape(out, n_in, chi)
    assert (spec.n_out, spec.n_in) == (out, n_in)
    cores = spec.random_cores(seed=0, dtype=torch.float64)
    assert [tuple(core.shape) for core in cores] == [tuple(shape) for shape in spec.core_shapes]
    assert spec.parameters == sum(core.numel() for core in cores)
    x = torch.randn(*range(2, 2 + batch_dims), n_in, dtype=torch.float64)
    expected = x.numpy() @ spec.dense(cores).numpy().T
    assert spec.apply(x, cores).numpy() == pytest.approx(expected, rel=1e-9, abs=1e-11)
    assert spec_from_json(spec.to_json()) == spec
    assert spec.multiply_adds(1) >= 1


@QUICK
@given(cases())
def test_full_rank_is_the_weight_itself(case):
    name, out, n_in, _ = case
    W = gaussian(out, n_in)
    full = NETWORKS[name].for_shape(out, n_in, 10**6)
    cores = full.decompose(W)
    assert all(core.dtype == torch.float32 for core in cores)
    assert full.dense(cores).numpy() == pytest.approx(W.numpy(), abs=1e-5 * W.abs().max().item())


@pytest.mark.parametrize("name", list(NETWORKS))
@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
def test_error_falls_with_chi_and_the_curve_tells_it(name, measure):
    out, n_in = 24, 36
    W, metric, kind = gaussian(out, n_in), metrics(out, n_in)[measure], NETWORKS[name]
    curve = kind.curve(W, metric)
    errors = []
    for chi in (2, 4, 8, 12):
        spec = kind.for_shape(out, n_in, chi)
        cores = [core.double() for core in spec.decompose(W, metric)]
        errors.append(plain_error(metric, (W - spec.dense(cores)).numpy()))
        if curve.exact:
            assert curve.at(chi) == pytest.approx(errors[-1], rel=1e-4)
    assert all(after <= before * (1 + 1e-6) for before, after in zip(errors, errors[1:], strict=False))
    assert np.all(np.diff(curve.error) <= 0) and curve.total == pytest.approx(plain_error(metric, W.numpy()))
    assert curve.at(0) == curve.total and curve.parameters[0] == kind.for_shape(out, n_in, int(curve.chi[0])).parameters


@pytest.mark.parametrize(
    "entry",
    [
        {"network": "lowrank", "out": [4], "in": [4], "chi": [5]},
        {"network": "lowrank", "out": [2, 2], "in": [4], "chi": [1]},
        {"network": "lowrank", "out": [4], "in": [4]},
        {"network": "mpo", "out": [2, 2], "in": [4], "chi": [1]},
        {"network": "mpo", "out": [2, 2], "in": [2, 2], "chi": [1, 1]},
        {"network": "mpo", "out": [2, 2], "in": [2, 2], "chi": [5]},
        {"network": "mpo", "out": [2, 2], "in": [2, 2], "chi": [True]},
        {"network": "none such", "out": [2], "in": [2], "chi": [1]},
    ],
)
def test_a_wrong_entry_is_one_sentence_that_names_the_field(entry):
    with pytest.raises(InputError, match="[Ff]ield") as caught:
        spec_from_json(entry)
    assert "\n" not in str(caught.value)


# ---- low rank


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
@pytest.mark.parametrize("shape", [(30, 18), (18, 30)])
def test_lowrank_is_the_optimum_and_the_tail_is_its_loss(measure, shape):
    W, metric = gaussian(*shape), metrics(*shape)[measure]
    A = np.eye(shape[0]) if metric.G is None else np.linalg.cholesky(damped(metric.G)).T
    B = np.eye(shape[1]) if metric.C is None else np.linalg.cholesky(damped(metric.C))
    U, s, Vt = np.linalg.svd(A @ W.numpy() @ B)
    curve = LowRank.curve(W, metric)
    for chi in (1, 5, 11, 18):
        spec = LowRank.for_shape(*shape, chi)
        left, right = spec.fit(W, metric)
        error = plain_error(metric, (W - left @ right).numpy())
        total = float((s**2).sum())
        assert error == pytest.approx((s[chi:] ** 2).sum(), rel=1e-8, abs=1e-10 * total)
        assert curve.at(chi) == pytest.approx(error, rel=1e-8, abs=1e-10 * total)
        # The inverse-free form of the same optimum: project the whitened weight on its leading left vectors.
        projected = np.linalg.inv(A) @ U[:, :chi] @ U[:, :chi].T @ A @ W.numpy()
        assert (left @ right).numpy() == pytest.approx(projected, abs=1e-7)
        assert left.norm(dim=0).numpy() == pytest.approx(right.norm(dim=1).numpy(), rel=1e-6)


# ---- matrix product operator


FACTORED = [(11008, 2, (128, 86)), (50257, 2, (1733, 29)), (509, 2, (509, 1)), (4096, 3, (16, 16, 16))]


@pytest.mark.parametrize("n, sites, expected", FACTORED)
def test_factors_are_exact_and_balanced(n, sites, expected):
    assert factorize(n, sites) == expected and math.prod(expected) == n


def test_an_mpo_of_one_factor_a_side_is_lowrank():
    W = gaussian(12, 10)
    spec = Mpo.for_shape(12, 10, 4, out=(12, 1), in_=(1, 10))
    lowrank = LowRank.for_shape(12, 10, 4)
    assert spec.parameters == lowrank.parameters
    one, other = spec.dense(spec.decompose(W)), lowrank.dense(lowrank.decompose(W))
    assert one.numpy() == pytest.approx(other.numpy(), abs=1e-5)


@pytest.mark.parametrize("sites", [2, 3, 4])
def test_planted_bonds_are_found_again_to_the_noise(sites):
    spec = Mpo.for_shape(36, 24, 3, sites=sites)
    planted = spec.dense(spec.random_cores(seed=3, dtype=torch.float64))
    planted = planted / planted.norm()
    noise = 1e-6 * gaussian(36, 24, 5) / math.sqrt(36 * 24)
    for metric in metrics(36, 24).values():
        cores = spec.decompose(planted + noise, metric)
        assert (spec.dense([core.double() for core in cores]) - planted).norm().item() < 3e-6


@pytest.mark.parametrize("sites", [2, 3])
def test_truncation_error_is_under_the_sum_of_discarded_weights(sites):
    W = gaussian(24, 24)
    full = Mpo.for_shape(24, 24, 10**6, sites=sites)
    spec = full.with_chi(5)
    discarded = 0.0
    for bond in range(1, sites):
        tensor = to_sites(W, spec.out, spec.in_).numpy()
        sigma = np.linalg.svd(tensor.reshape(math.prod(tensor.shape[:bond]), -1), compute_uv=False)
        discarded += float((sigma[spec.chi[bond - 1] :] ** 2).sum())
    error = (W - spec.dense(spec.start(W))).square().sum().item()
    assert error <= discarded * (1 + 1e-9) and (sites > 2 or error == pytest.approx(discarded))


@pytest.mark.parametrize("measure", ["functional", "loss"])
@pytest.mark.parametrize("sites", [2, 3])
def test_refinement_never_raises_the_error_and_gains(measure, sites):
    W, metric = gaussian(32, 24), metrics(32, 24)[measure]
    spec = Mpo.for_shape(32, 24, 6, sites=sites)
    cores, errors = refine(spec.dense, spec.start(W), W, metric, rounds=6, tolerance=0.0)
    assert all(after <= before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] == pytest.approx(plain_error(metric, (W - spec.dense(cores)).numpy()), rel=1e-6)
    assert errors[-1] < 0.8 * errors[0]


def test_tt_svd_agrees_with_tensorly():
    tensorly = pytest.importorskip("tensorly")
    from tensorly.decomposition import tensor_train

    W = gaussian(24, 30)
    spec = Mpo.for_shape(24, 30, 6, sites=3)
    tensor = to_sites(W, spec.out, spec.in_).numpy()
    theirs = tensorly.tt_to_tensor(tensor_train(tensor, rank=[1, *spec.chi, 1]))
    ours = to_sites(spec.dense(spec.start(W)), spec.out, spec.in_).numpy()
    assert ours == pytest.approx(theirs, abs=1e-8)


def test_contraction_cost_is_the_best_order_there_is():
    spec = Mpo.for_shape(64, 64, 4, sites=2)  # (8, 8) x (8, 8), χ 4
    # x[i1 i2] with core 2 over i2, then core 1 over i1 and the bond; or the cores the other way round.
    by_hand = 8 * 8 * 8 * 4 + 8 * 8 * 8 * 4
    assert spec.multiply_adds(1) == by_hand
    assert spec.multiply_adds(10) <= 10 * by_hand


# ---- the layer


@pytest.mark.parametrize("name", list(NETWORKS))
def test_the_layer_is_a_drop_in(name):
    torch.manual_seed(0)
    linear = torch.nn.Linear(20, 12)
    spec = NETWORKS[name].for_shape(12, 20, 10**6)
    layer = TensorNetworkLinear.from_linear(linear, spec)
    x = torch.randn(3, 5, 20)
    torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=1e-4)
    assert set(layer.state_dict()) == {"bias", *stored_tensors(spec)}
    again = TensorNetworkLinear(spec, bias=True)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    layer.runtime = "dense"
    torch.testing.assert_close(layer(x), again(x), atol=1e-5, rtol=1e-4)
    if all(form is None for form in spec.formats):
        with torch.no_grad():
            layer.cores[0].mul_(2)
            torch.testing.assert_close(layer.weight, spec.dense(list(layer.cores)), atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(layer(x) - layer.bias, x @ layer.weight.T, atol=1e-4, rtol=1e-4)
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("name", list(NETWORKS))
def test_gradients_flow_to_every_core(name):
    spec = NETWORKS[name].for_shape(12, 20, 4)
    layer = TensorNetworkLinear.from_spec(spec, seed=1)
    plain = [k for k, form in enumerate(spec.formats) if form is None]
    for runtime in ("cores", "dense"):
        layer.runtime = runtime
        layer.zero_grad()
        layer(torch.randn(7, 20)).square().sum().backward()
        assert plain and all(layer.cores[k].grad.abs().sum() > 0 for k in plain)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_random_layer_keeps_the_variance(name):
    spec = NETWORKS[name].for_shape(96, 120, 12)
    x = torch.randn(200, 120, generator=torch.Generator().manual_seed(0))
    spread = [TensorNetworkLinear.from_spec(spec, seed=seed)(x).var().item() for seed in range(20)]
    assert np.mean(spread) == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_report_and_check_of_a_layer(name):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(20, 12, bias=False), torch.randn(300, 20) * torch.linspace(0.1, 2, 20)
    spec = NETWORKS[name].for_shape(12, 20, 3)
    report = TensorNetworkLinear.from_linear(linear, spec).report()
    assert report["parameters"] == spec.parameters and report["bytes"] == spec.bytes(4)
    assert report["dense_parameters"] == 240 and report["kept"] == spec.parameters / 240
    rows = check_layer(linear, x, [1, 3, 6], network=name)
    W = linear.weight.detach().double().numpy()
    C = (x.double().T @ x.double() / len(x)).numpy()
    metric = Metric("functional", torch.from_numpy(C))
    for row in rows:
        spec = NETWORKS[name].for_shape(12, 20, row["chi"])
        D = W - spec.dense([c.double() for c in spec.decompose(linear.weight.detach(), metric)]).numpy()
        assert row["weight_error"] == pytest.approx((D**2).sum() / (W**2).sum(), rel=1e-4)
        functional = ((x.double().numpy() @ D.T) ** 2).sum() / ((x.double().numpy() @ W.T) ** 2).sum()
        assert row["functional_error"] == pytest.approx(functional, rel=1e-4)
    with pytest.raises(InputError, match="width"):
        check_layer(linear, torch.randn(3, 19), [1])
