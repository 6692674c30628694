"""The metric against float64 NumPy, and what it does with second moments that are no good."""

import math
import warnings
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Curve, Metric
from karipap_core.networks.base import factorize, outside_in


def moments(n_out, n_in, seed=0):
    """Well-conditioned, anisotropic second moments of inputs and output gradients, and the samples they come from."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((4 * n_in, n_in)) * np.geomspace(1, 0.05, n_in)
    g = rng.standard_normal((4 * n_out, n_out)) * np.geomspace(1e-3, 1e-5, n_out)
    return X, g, torch.from_numpy(X.T @ X / len(X)), torch.from_numpy(g.T @ g / len(g))


def damp(moment, damping):
    moment = moment.numpy()
    return moment + damping * np.diag(moment).mean() * np.eye(len(moment))


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.3])
def test_error_is_the_quadratic_form_of_the_damped_moments(damping):
    _, _, C, G = moments(5, 7)
    D = np.random.default_rng(1).standard_normal((5, 7))
    Cd, Gd = damp(C, damping), damp(G, damping)
    wanted = {
        "weight": np.trace(D.T @ D),
        "functional": np.trace(D @ Cd @ D.T),
        "loss": np.trace(D.T @ Gd @ D @ Cd),
    }
    given_moments = {"weight": {}, "functional": {"C": C}, "loss": {"C": C, "G": G}}
    for name, value in wanted.items():
        metric = Metric(name, **given_moments[name], damping=damping)
        assert metric.absolute(torch.from_numpy(D)) == pytest.approx(value, rel=1e-12)
        whitened = metric.whiten(torch.from_numpy(D))
        assert whitened.dtype == torch.float64
        assert whitened.square().sum().item() == pytest.approx(value, rel=1e-12)


def test_functional_error_is_the_mean_square_of_the_outputs_error():
    X, _, C, _ = moments(5, 7)
    D = np.random.default_rng(2).standard_normal((5, 7))
    outputs = X @ D.T
    metric = Metric("functional", C=C, damping=0.0)
    assert metric.absolute(torch.from_numpy(D)) == pytest.approx((outputs**2).sum() / len(X), rel=1e-12)


def test_relative_error():
    _, _, C, G = moments(4, 6)
    metric = Metric("loss", C=C, G=G)
    W = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    assert metric.error(W, torch.zeros(4, 6)) == pytest.approx(1.0)
    assert metric.error(W, 0.9 * W) == pytest.approx(0.01, rel=1e-5)
    assert metric.error(W, W) == 0.0 == metric.error(torch.zeros(4, 6), torch.zeros(4, 6))


def test_unwhitening_undoes_whitening():
    _, _, C, G = moments(6, 9)
    metric = Metric("loss", C=C, G=G)
    W = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    back = metric.unwhiten_right(metric.unwhiten_left(metric.whiten(W)))
    torch.testing.assert_close(back, W, rtol=1e-10, atol=1e-12)
    plain = Metric()
    assert plain.unwhiten_left(W) is W and plain.unwhiten_right(W) is W


def test_damped_is_what_the_factor_factors():
    _, _, C, G = moments(6, 9)
    metric = Metric("loss", C=C, G=G, damping=0.02)
    for side, moment in (("C", C), ("G", G)):
        factor = metric.factor(side)
        np.testing.assert_allclose(metric.damped(side).numpy(), damp(moment, 0.02), rtol=1e-12)
        np.testing.assert_allclose((factor @ factor.T).numpy(), damp(moment, 0.02), rtol=1e-10, atol=1e-18)
        assert torch.equal(factor, factor.tril())
    assert metric.damping_used == {"C": 0.02, "G": 0.02}


def test_weights_that_share_a_moment_share_its_factor():
    _, _, C, G = moments(6, 9)
    q, k, up = Metric("functional", C=C), Metric("loss", C=C, G=G), Metric("functional", C=C.clone())
    assert q.factor("C") is k.factor("C")
    assert q.factor("C") is not up.factor("C")
    before = q.factor("C").clone()
    C.mul_(4)  # a moment that is still being collected
    torch.testing.assert_close(q.factor("C"), 2 * before)


def test_damping_rises_until_the_moment_is_positive_and_is_reported():
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((8, 8)))[0]
    C = torch.from_numpy(Q @ np.diag([-0.05, 0, 0, 0.5, 1, 1, 2, 4.0]) @ Q.T)  # mean diagonal 1.056
    metric = Metric("functional", C=C, damping=0.01)
    assert metric.damping_used == {"C": pytest.approx(0.1)}
    assert metric.absolute(torch.eye(8)) == pytest.approx(np.trace(damp(C, 0.1)))
    rank_one = torch.ones(5, 5, dtype=torch.float64)
    assert Metric("functional", C=rank_one).damping_used == {"C": 0.01}
    assert Metric("functional", C=rank_one, damping=0).damping_used["C"] > 0


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_a_moment_that_says_nothing_gives_way_to_the_identity_visibly(bad):
    C = torch.zeros(4, 4, dtype=torch.float64)
    C[1, 2] = bad
    metric = Metric("functional", C=C)
    with pytest.warns(UserWarning, match="Second moment C"):
        assert metric.damping_used == {"C": None}
    W = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # told once
        assert metric.factor("C") is None and metric.damped("C") is None
        assert torch.equal(metric.whiten(W), W)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "weigth"}, "'weigth'"),
        ({"name": "functional"}, "needs the moment C"),
        ({"name": "loss", "C": torch.eye(3)}, "needs the moment G"),
        ({"name": "weight", "C": torch.eye(3)}, "does not take the moment C"),
        ({"name": "weight", "damping": -1.0}, "-1.0"),
        ({"name": "weight", "damping": math.nan}, "nan"),
    ],
)
def test_wrong_metrics_are_refused(arguments, said):
    with pytest.raises(InputError, match=said):
        Metric(**arguments)


def test_moments_of_another_size_are_refused():
    with pytest.raises(InputError, match=r"Moment C is \(3, 3\), the weight needs \(4, 4\)"):
        Metric("functional", C=torch.eye(3)).whiten(torch.zeros(2, 4))
    with pytest.raises(InputError, match="square"):
        Metric("functional", C=torch.zeros(3, 4)).factor("C")


def curve(chi, error, total=1.0):
    return Curve(np.array(chi), np.array(chi) * 10, np.array(error), total, exact=False)


def test_curve_reads_between_its_levels():
    found = curve([1, 4, 16], [0.5, 0.1, 0.001])
    assert [found.at(chi) for chi in (0, 1, 4, 16, 99)] == [1.0, 0.5, 0.1, 0.001, 0.001]
    assert found.at(9) == pytest.approx(0.01)  # √9 is halfway between √4 and √16, so is the logarithm
    assert found.at(0.25) == pytest.approx(math.sqrt(0.5))
    every = [found.at(chi) for chi in np.linspace(0, 16, 200)]
    assert np.all(np.diff(every) <= 0)


def test_curve_reads_next_to_a_zero():
    assert curve([1, 4], [0.5, 0.0]).at(2.25) == pytest.approx(0.25)
    assert curve([1], [0.0], total=0.0).at(0.5) == 0.0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 4))
def test_factorize_is_exact_and_the_most_even(n, sites):
    found = factorize(n, sites)
    assert math.prod(found) == n and len(found) == sites and list(found) == sorted(found, reverse=True)
    divisors = [k for k in range(1, n + 1) if n % k == 0]
    if len(divisors) ** (sites - 1) <= 2000:
        every = (heads for heads in product(divisors, repeat=sites - 1) if n % math.prod(heads) == 0)
        assert sum(found) == min(sum(heads) + n // math.prod(heads) for heads in every)


def test_factorize_known_numbers():
    assert factorize(11008, 2) == (128, 86) and factorize(11008, 3) == (43, 16, 16)
    assert factorize(50257, 2) == (1733, 29) and factorize(104729, 3) == (104729, 1, 1)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.booleans())
def test_larger_factors_outside(factors, mirrored):
    factors = sorted(factors, reverse=True)
    placed = list(outside_in(factors, mirrored))
    assert sorted(placed, reverse=True) == factors
    lowest = placed.index(min(placed))
    assert placed[:lowest] == sorted(placed[:lowest], reverse=True)  # falls towards the middle, then rises
    assert placed[lowest:] == sorted(placed[lowest:])
    assert placed[-1 if mirrored else 0] == factors[0]
