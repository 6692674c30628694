"""Kronecker products near a second moment, against a brute-force SVD, and fits that use them, against exact ones."""

import math
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Metric, kronecker, refine
from karipap_core.networks.kronecker import Factored, digits, multiply, nearest
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.tt_embedding import frequency_metric

QUICK = settings(max_examples=30, deadline=None)
factors = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(n, seed=0, decay=1.0):
    """A second moment as activations have it: a few strong directions, a long weak tail."""
    basis = torch.linalg.qr(random(n, n, seed=seed)).Q
    return basis * torch.arange(1, n + 1, dtype=torch.float64) ** -decay @ basis.T


def positive(n, seed):
    X = random(n, 2 * n, seed=seed)
    return X @ X.T / n


# ---- the nearest product


@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (5, 5), (1, 7), (12, 2)])
def test_two_factors_are_the_leading_pair_of_the_rearranged_matrix(sizes):
    C = moment(math.prod(sizes), 3).numpy()
    a, b = sizes
    rearranged = np.array([C[i * b : i * b + b, j * b : j * b + b].ravel() for i in range(a) for j in range(a)])
    U, sigma, Vt = np.linalg.svd(rearranged)
    best = np.kron((sigma[0] * U[:, 0]).reshape(a, a), Vt[0].reshape(b, b))
    A, B = nearest(torch.from_numpy(C), sizes)
    assert np.kron(A.numpy(), B.numpy()) == pytest.approx(best, abs=1e-5 * abs(best).max())
    distance = np.linalg.norm(C - np.kron(A.numpy(), B.numpy()))
    assert distance == pytest.approx(math.sqrt((sigma[1:] ** 2).sum()), rel=1e-9, abs=1e-12)
    assert A.norm().item() == pytest.approx(B.norm().item())


@QUICK
@given(factors, st.integers(0, 99))
def test_a_planted_product_is_found_whatever_its_factors(sizes, seed):
    parts = [positive(f, seed + k) for k, f in enumerate(sizes)]
    planted = reduce(torch.kron, parts)
    found = nearest(planted, sizes)
    assert reduce(torch.kron, found).numpy() == pytest.approx(planted.numpy(), abs=1e-9 * planted.abs().max().item())


@QUICK
@given(factors, st.integers(0, 99))
def test_factors_of_a_positive_matrix_are_symmetric_positive_and_no_single_one_could_be_better(sizes, seed):
    C = positive(math.prod(sizes), seed)
    found = nearest(C, sizes)
    product = reduce(torch.kron, found)
    for k, part in enumerate(found):
        assert part.numpy() == pytest.approx(part.T.numpy(), abs=1e-10 * part.abs().max().item())
        assert torch.linalg.eigvalsh(part)[0] > 0
        other = random(*part.shape, seed=k)  # the product is linear in a factor: its slope vanishes in any direction
        step = reduce(torch.kron, [other if j == k else p for j, p in enumerate(found)])
        assert abs(((C - product) * step).sum().item()) < 1e-5 * C.norm() * step.norm()
    partial = reduce(torch.kron, [torch.eye(f, dtype=torch.float64) for f in sizes]) * C.diagonal().mean()
    assert (C - product).norm() <= (C - partial).norm() + 1e-9 * C.norm()


@QUICK
@given(factors, st.integers(1, 4))
def test_multiplying_by_the_factors_is_multiplying_by_the_product(sizes, columns):
    parts, X = [random(f, f, seed=k) for k, f in enumerate(sizes)], random(math.prod(sizes), columns, seed=9)
    assert multiply(parts, X).numpy() == pytest.approx((reduce(torch.kron, parts) @ X).numpy(), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(
    "matrix, sizes",
    [
        (torch.eye(6), (2, 2)),
        (torch.zeros(4, 4), (2, 2)),
        (torch.full((4, 4), math.nan), (2, 2)),
        (random(4, 2), (2, 2)),
    ],
)
def test_what_has_no_nearest_product_is_refused(matrix, sizes):
    with pytest.raises(InputError):
        nearest(matrix, sizes)


def test_large_digits_are_split_and_primes_are_not():
    assert digits((2, 5504)) == (2, 86, 64) and digits((509,)) == (509,) and digits((256, 1)) == (256, 1)
    assert all(math.prod(digits((n,))) == n for n in range(1, 2000, 7))


# ---- the stand-in of a moment


def test_leading_directions_bring_the_stand_in_near_and_leave_it_positive(monkeypatch):
    monkeypatch.setattr(kronecker, "LEADING", 16)
    C, eye = moment(120, decay=1.5), torch.eye(120, dtype=torch.float64)
    near = Factored.of(C, (12, 10)) @ eye
    alone = reduce(torch.kron, nearest(C, (12, 10)))
    assert (C - near).norm() < 0.05 * (C - alone).norm()
    assert torch.linalg.eigvalsh(near)[0] > 0
    stand_in, X = Factored.of(C, (12, 10)), random(7, 120)
    assert (X @ stand_in).numpy() == pytest.approx((X @ near).numpy(), abs=1e-10)
    single = stand_in.to(torch.float32)
    assert (X.float() @ single).dtype == torch.float32


# ---- fits


@pytest.fixture
def small(monkeypatch):
    """The limits lowered so that a small weight is treated as a large one."""
    monkeypatch.setattr(kronecker, "LEADING", 24)
    monkeypatch.setattr(kronecker, "LARGEST", 64)
    monkeypatch.setattr(refine, "AFFORDABLE", 1e6)


def problem(n_out=192, n_in=384, share=0.15):
    spec = Mpo.for_shape(n_out, n_in, 1)
    spec = spec.with_chi(int(share * spec.break_even_chi))
    spectrum = torch.arange(1, n_out + 1, dtype=torch.float64) ** -0.7
    W = torch.linalg.qr(random(n_out, n_out)).Q * spectrum @ torch.linalg.qr(random(n_in, n_out, seed=1)).Q.T
    return spec, W, Metric("loss", moment(n_in, 2), moment(n_out, 3))


def test_a_large_fit_never_raises_the_exact_error_and_ends_near_the_exact_fit(small):
    spec, W, metric = problem()
    assert refine.evaluation_cost(W, metric) == 192 * 192 * 384 + 192 * 384 * 384 > refine.AFFORDABLE
    start = spec.start(W)
    cores, errors = refine.refine(spec.dense, start, W, metric, factors=(spec.out, spec.in_))
    assert all(after < before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] == pytest.approx(metric.absolute(W - spec.dense(cores)), rel=1e-12)
    exact = refine.refine(spec.dense, start, W, metric, exact=True)[1]
    assert errors[0] == exact[0] and errors[-1] < 0.5 * errors[0]
    assert errors[-1] < 1.2 * exact[-1]


def test_only_moments_for_which_it_pays_are_replaced(small):
    metric = problem()[2]
    G, C = metric.damped("G"), metric.damped("C")
    standing = refine.stand_ins([G, C], ((192,), (384,)))
    assert [type(moment) for moment in standing] == [Factored, Factored]
    assert refine.stand_ins([G, C], ((192,), (383,)))[1] is C  # a prime has no digits
    assert refine.stand_ins([None, None], ((192,), (384,))) is None
    diagonal = frequency_metric(torch.ones(192)).damped("G")
    assert refine.stand_ins([diagonal, C], ((192,), (384,)))[0] is diagonal


def test_an_affordable_fit_is_the_exact_one():
    spec, W, metric = problem(24, 36, 0.3)
    one, other = (refine.refine(spec.dense, spec.start(W), W, metric, exact=exact)[1] for exact in (None, True))
    assert one == other
