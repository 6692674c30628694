"""`lowrank` against the SVD of float64 NumPy, in every metric."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import NETWORKS, Metric, spec_from_json
from karipap_core.networks.lowrank import LowRank

shapes = st.tuples(st.integers(1, 23), st.integers(1, 23))


def problem(n_out, n_in, which, seed=0, damping=0.01):
    """(W, Metric, the damped moments as NumPy arrays)."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n_out, n_in))
    X = rng.standard_normal((3 * n_in, n_in)) @ rng.standard_normal((n_in, n_in))
    g = rng.standard_normal((3 * n_out, n_out)) @ rng.standard_normal((n_out, n_out))
    C, G = X.T @ X / len(X), g.T @ g / len(g)
    metric = Metric(
        which,
        C=None if which == "weight" else torch.from_numpy(C),
        G=torch.from_numpy(G) if which == "loss" else None,
        damping=damping,
    )
    C = C + damping * np.diag(C).mean() * np.eye(n_in) if which != "weight" else np.eye(n_in)
    G = G + damping * np.diag(G).mean() * np.eye(n_out) if which == "loss" else np.eye(n_out)
    return torch.from_numpy(W), metric, C, G


def root(moment):
    """The symmetric square root: another factor than the Cholesky one that the code under test uses."""
    values, vectors = np.linalg.eigh(moment)
    return vectors * np.sqrt(values) @ vectors.T


def product(cores):
    return (cores[0] @ cores[1]).numpy()


@pytest.mark.parametrize("which", ["weight", "functional", "loss"])
@pytest.mark.parametrize(("n_out", "n_in"), [(12, 17), (17, 12), (1, 9), (9, 1), (13, 13)])
def test_reaches_the_tail_of_the_whitened_spectrum(which, n_out, n_in):
    W, metric, C, G = problem(n_out, n_in, which)
    sigma = np.linalg.svd(root(G) @ W.numpy() @ root(C), compute_uv=False)
    total = (sigma**2).sum()
    curve = LowRank.curve(W, metric)
    assert curve.exact and curve.total == pytest.approx(total, rel=1e-10)
    for chi in range(1, min(n_out, n_in) + 1):
        spec = LowRank.for_shape(n_out, n_in, chi)
        D = W.numpy() - product(spec.fit(W, metric))
        lost = np.trace(D.T @ G @ D @ C)
        tail = (sigma[chi:] ** 2).sum()
        assert abs(lost - tail) <= 1e-10 * total
        assert abs(curve.at(chi) - tail) <= 1e-10 * total
        assert abs(metric.absolute(torch.from_numpy(D)) - lost) <= 1e-10 * total
        assert curve.parameters[chi - 1] == spec.parameters


@pytest.mark.parametrize("which", ["weight", "functional", "loss"])
def test_errors_of_several_cores_are_those_of_their_matrices(which):
    W, metric, C, G = problem(12, 17, which)
    spec = LowRank.for_shape(12, 17, 5)
    tries = [spec.fit(W, metric), spec.random_cores(seed=1, dtype=torch.float64)]
    lost = [np.trace((D := W.numpy() - product(cores)).T @ G @ D @ C) for cores in tries]
    assert spec.errors(tries, W, metric) == pytest.approx(lost, rel=1e-9)
    assert spec.errors(tries, W, metric, metric.whiten(W)) == pytest.approx(lost, rel=1e-9)


def test_agrees_with_the_inverse_free_form():
    W, metric, C, _ = problem(11, 14, "functional")
    Y = W.numpy() @ root(C)
    U = np.linalg.eigh(Y @ Y.T)[1][:, -5:]
    found = product(LowRank.for_shape(11, 14, 5).fit(W, metric))
    np.testing.assert_allclose(found, U @ U.T @ W.numpy(), rtol=0, atol=1e-10)


def test_agrees_with_the_form_of_triangular_solves():
    W, metric, C, G = problem(11, 14, "loss")
    A, B = np.linalg.cholesky(G).T, np.linalg.cholesky(C)
    U, sigma, Vt = np.linalg.svd(A @ W.numpy() @ B)
    wanted = np.linalg.inv(A) @ (U[:, :5] * sigma[:5]) @ Vt[:5] @ np.linalg.inv(B)
    found = product(LowRank.for_shape(11, 14, 5).fit(W, metric))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-9 * np.abs(wanted).max())


def test_the_metric_pays_in_the_metric():
    W, metric, _, _ = problem(16, 16, "loss")
    spec = LowRank.for_shape(16, 16, 4)
    plain, aware = spec.dense(spec.decompose(W)), spec.dense(spec.decompose(W, metric))
    assert metric.error(W, aware) < 0.9 * metric.error(W, plain)
    assert Metric().error(W, plain) < Metric().error(W, aware)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(1, 40), st.sampled_from([torch.float32, torch.bfloat16, torch.float64]), st.integers(0, 9))
def test_any_shape(shape, chi, dtype, seed):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    spec = LowRank.for_shape(*shape, chi)
    cores = spec.decompose(W)
    assert [tuple(core.shape) for core in cores] == spec.core_shapes
    assert all(core.dtype == torch.float32 for core in cores)
    assert spec.parameters == sum(core.numel() for core in cores) == spec.chi[0] * sum(shape)
    x = torch.randn(2, 3, shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    cores = [core.double() for core in cores]
    torch.testing.assert_close(spec.apply(x, cores), x @ spec.dense(cores).T)
    if chi >= min(shape):
        assert Metric().error(W, spec.dense(cores)) < 1e-10


def test_smaller_chi_is_nested_in_larger():
    """What lets one decomposition serve every χ."""
    W, metric, _, _ = problem(12, 15, "loss")
    left, right = LowRank.for_shape(12, 15, 9).fit(W, metric)
    small_left, small_right = LowRank.for_shape(12, 15, 4).fit(W, metric)
    torch.testing.assert_close(left[:, :4] @ right[:4], small_left @ small_right)


def test_components_are_shared_equally():
    W, metric, _, _ = problem(12, 15, "loss")
    left, right = LowRank.for_shape(12, 15, 7).fit(W, metric)
    torch.testing.assert_close(left.norm(dim=0), right.norm(dim=1))


@pytest.mark.parametrize("W", [torch.zeros(6, 5), torch.ones(6, 5)])
def test_rank_deficient_weights(W):
    spec = LowRank.for_shape(6, 5, 5)
    cores = spec.decompose(W)
    assert all(torch.isfinite(core).all() for core in cores)
    torch.testing.assert_close(spec.dense(cores), W, rtol=1e-6, atol=1e-6)
    assert LowRank.curve(W).at(1) == pytest.approx(0, abs=1e-12)


def test_spec_counts_itself():
    spec = LowRank.for_shape(256, 1024, 100)
    assert spec.to_json() == {"network": "lowrank", "out": [256], "in": [1024], "chi": [100], "quantize": None}
    assert spec_from_json(spec.to_json() | {"quantize": None, "locked": True}) == spec
    assert (spec.n_out, spec.n_in, spec.max_chi, spec.parameters) == (256, 1024, 256, 128000)
    assert spec.multiply_adds(3) == 3 * 128000
    assert spec.break_even_chi == 204 and spec.with_chi(204).parameters < 256 * 1024 <= spec.with_chi(205).parameters
    assert LowRank.for_shape(1, 7, 1).break_even_chi == 0
    assert "256 × 1024" in spec.describe() and "128,000" in spec.describe()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": "lowrang"}, "'network'.*'lowrang'.*lowrank"),
        ({"chi": None}, "'chi'.*None"),
        ({"chi": [0]}, r"'chi'.*\[0\]"),
        ({"chi": [True]}, "'chi'"),
        ({"chi": [2.0]}, "'chi'"),
        ({"chi": [7]}, "'chi' is 7.*no more than 6"),
        ({"chi": [2, 2]}, "'chi'.*one number"),
        ({"out": "6"}, "'out'"),
        ({"in": [-8]}, "'in'"),
    ],
)
def test_wrong_entries_are_refused(change, said):
    entry = {"network": "lowrank", "out": [6], "in": [8], "chi": [2]}
    with pytest.raises(InputError, match=said):
        spec_from_json(entry | change)


@pytest.mark.parametrize("field", ["network", "out", "in", "chi"])
def test_missing_fields_are_named(field):
    entry = {"network": "lowrank", "out": [6], "in": [8], "chi": [2]}
    del entry[field]
    with pytest.raises(InputError, match=f"'{field}'"):
        spec_from_json(entry)


def test_another_weight_is_refused():
    with pytest.raises(InputError, match=r"\(8, 6\).*\(6, 8\)"):
        LowRank.for_shape(6, 8, 2).decompose(torch.zeros(8, 6))
    with pytest.raises(InputError, match="Moment C"):
        LowRank.for_shape(6, 8, 2).decompose(torch.zeros(6, 8), Metric("functional", C=torch.eye(6)))


def test_registered():
    assert NETWORKS["lowrank"] is LowRank
