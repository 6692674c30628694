"""`mpo`: its cores, its fit in every metric, its contraction, against NumPy, einsum and tensorly."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Metric, spec_from_json
from karipap_core.networks.contraction import touch
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo, attainable, balance, contraction, from_sites, to_sites
from karipap_core.networks.refine import refine
from tests.helpers.contractions import walked
from tests.helpers.metrics import metric_of, random

METRICS = ["weight", "functional", "loss"]
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def reference(cores):
    """Ŵ from its definition, one entry at a time."""
    cores = [core.double().numpy() for core in cores]
    outs, ins = ([core.shape[axis] for core in cores] for axis in (1, 2))
    W = np.empty((math.prod(outs), math.prod(ins)))
    for row, o in enumerate(itertools.product(*map(range, outs))):
        for column, i in enumerate(itertools.product(*map(range, ins))):
            entry = np.eye(1)
            for k, core in enumerate(cores):
                entry = entry @ core[:, o[k], i[k], :]
            W[row, column] = entry[0, 0]
    return torch.from_numpy(W)


def planted(spec, seed=0):
    return [random(*shape, seed=seed + k) / math.sqrt(math.prod(shape[1:])) for k, shape in enumerate(spec.core_shapes)]


# Sizes.


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 40), st.one_of(st.none(), st.integers(2, 5)))
def test_sizes_of_any_shape(shape, chi, sites):
    spec = Mpo.for_shape(*shape, chi, sites=sites)
    assert (spec.n_out, spec.n_in) == shape and len(spec.out) == (sites or 2)
    for k, bond in enumerate(spec.chi, 1):
        left = math.prod(spec.out[:k]) * math.prod(spec.in_[:k])
        assert bond == min(chi, left, math.prod(shape) // left)
    assert spec.parameters == sum(math.prod(core) for core in spec.core_shapes)
    assert spec_from_json(spec.to_json()) == spec
    assert Mpo.for_shape(*shape, spec.max_chi, sites=sites) == Mpo.for_shape(*shape, 10**9, sites=sites)
    even = spec.break_even_chi
    assert even == 0 or spec.with_chi(even).parameters < math.prod(shape)
    assert even == spec.max_chi or spec.with_chi(even + 1).parameters >= math.prod(shape)


def test_default_factorizations_are_stated():
    assert "11008·1 × 2·2048" in Mpo.for_shape(11008, 4096, 100).describe()
    assert "50257·1 × 3·255" in Mpo.for_shape(50257, 765, 100).describe()
    assert Mpo.for_shape(50, 49, 7).in_ == (1, 49)  # neither even nor a multiple of three: it is `lowrank`
    assert Mpo.for_shape(256, 1024, 1, sites=3).out == (8, 4, 8)
    assert Mpo.for_shape(256, 1024, 1, sites=3).in_ == (8, 8, 16)
    assert Mpo.for_shape(104729, 104723, 9, sites=2).out == (104729, 1)
    assert Mpo.for_shape(104729, 104723, 9, sites=2).in_ == (1, 104723)


def test_a_plan_may_choose_the_factorization():
    spec = Mpo.for_shape(12, 30, 4, out=(3, 4), in_=(5, 6))
    assert spec.to_json() == {"network": "mpo", "out": [3, 4], "in": [5, 6], "chi": [4], "quantize": None}
    assert Mpo.for_shape(12, 30, 4, out=(3, 2, 2)).in_ == Mpo.for_shape(12, 30, 4, sites=3).in_
    assert spec.with_chi(2).in_ == (5, 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": [12]}, "1 and 2 factors"),
        ({"out": [12], "in": [30], "chi": []}, "at least two"),
        ({"chi": [2, 2]}, "'chi' has 2 bonds: 2 sites have 1"),
        ({"chi": [16]}, "'chi' has bonds of 1 and 16 at site 1.*over 15 times"),
        ({"out": [4, 0]}, "'out'"),
        ({"chi": None}, "'chi'"),
    ],
)
def test_wrong_entries_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        spec_from_json({"network": "mpo", "out": [3, 4], "in": [5, 6], "chi": [4]} | change)


def test_bonds_that_cannot_be_filled_are_refused():
    entry = {"network": "mpo", "out": [4, 4, 4], "in": [4, 4, 4], "chi": [1, 16]}
    assert spec_from_json(entry).chi == (1, 16)
    with pytest.raises(InputError, match="site 2"):
        spec_from_json(entry | {"out": [4, 2, 8], "in": [4, 2, 8]})


def test_a_factorization_of_another_weight_is_refused():
    with pytest.raises(InputError, match=r"'out' is \[3, 5\].*12"):
        Mpo.for_shape(12, 30, 4, out=(3, 5))
    with pytest.raises(InputError, match="3 and 2 factors"):
        Mpo.for_shape(12, 30, 4, out=(3, 2, 2), in_=(5, 6))
    with pytest.raises(InputError, match=r"\(30, 12\)"):
        Mpo.for_shape(12, 30, 4).decompose(torch.zeros(30, 12))


# The network.


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(1, 5), st.integers(2, 4), st.integers(0, 99))
def test_dense_and_apply_are_the_definition(shape, chi, sites, seed):
    spec = Mpo.for_shape(*shape, chi, sites=sites)
    cores = planted(spec, seed)
    W = reference(cores)
    torch.testing.assert_close(spec.dense(cores), W)
    for batch in ((), (1,), (2, 3), (40,), (0,)):
        x = random(*batch, shape[1], seed=seed + 50)
        torch.testing.assert_close(spec.apply(x, cores), x @ W.T)


@settings(max_examples=30, deadline=None)
@given(shapes, st.integers(2, 4), st.sampled_from(METRICS))
def test_full_rank_reproduces_the_weight(shape, sites, which):
    W = random(*shape, seed=sum(shape)).float()
    spec = Mpo.for_shape(*shape, 10**9, sites=sites)
    cores = spec.decompose(W, metric_of(which, *shape))
    assert [tuple(core.shape) for core in cores] == spec.core_shapes
    assert all(core.dtype == torch.float32 for core in cores)
    assert (spec.dense(cores) - W).norm() <= 1e-5 * W.norm()


def test_sites_are_a_reshaping():
    W = random(12, 30)
    tensor = to_sites(W, (3, 2, 2), (5, 3, 2))
    assert tensor.shape == (15, 6, 4)
    assert tensor[2 * 5 + 4, 1 * 3 + 2, 0 * 2 + 1] == W[2 * 4 + 1 * 2 + 0, 4 * 6 + 2 * 2 + 1]
    assert torch.equal(from_sites(tensor, (3, 2, 2), (5, 3, 2)), W)


def test_balanced_bonds_have_equal_norms_and_the_same_weight():
    spec = Mpo.for_shape(12, 12, 5, sites=3)
    cores = planted(spec)
    cores[0], cores[1] = cores[0] * 1e3, cores[1] * 1e-5
    even = balance(cores)
    torch.testing.assert_close(spec.dense(even), spec.dense(cores))
    norms = [core.norm().item() for core in even]
    assert max(norms) < 10 * min(norms)
    dead = [cores[0].clone(), cores[1], cores[2]]
    dead[0][..., 0] = 0
    torch.testing.assert_close(spec.dense(balance(dead)), spec.dense(dead))


# The contraction.


def every_order(spec, batch):
    """Least cost over all orders, by brute force over pairs."""
    sites = len(spec.out)
    size = {"z": batch} | {f"r{k}": bond for k, bond in enumerate((1, *spec.chi, 1))}
    size |= {f"o{k}": n for k, n in enumerate(spec.out)} | {f"i{k}": n for k, n in enumerate(spec.in_)}
    x = frozenset({"z"} | {f"i{k}" for k in range(sites)})
    cores = [frozenset({f"r{k}", f"o{k}", f"i{k}", f"r{k + 1}"}) for k in range(sites)]
    y = {"z"} | {f"o{k}" for k in range(sites)}

    def least(tensors):
        if len(tensors) == 1:
            return 0
        best = math.inf
        for a, b in itertools.combinations(tensors, 2):
            rest = [t for t in tensors if t is not a and t is not b]
            if len(rest) == 1 and "z" in rest[0] and sites > 1:
                continue  # W itself
            joined = (a | b) & (y | frozenset().union(*rest, frozenset()))
            cost = math.prod(size[label] for label in a | b)
            cost += sum(touch(math.prod(size[label] for label in part)) for part in (a, b, joined))
            best = min(best, cost + least([*rest, joined]))
        return best

    return least([x, *cores])


@settings(max_examples=25, deadline=None)
@given(shapes, st.integers(1, 9), st.integers(2, 4), st.sampled_from([1, 7, 500]))
def test_the_order_is_the_cheapest_and_its_cost_is_what_its_steps_cost(shape, chi, sites, batch):
    spec = Mpo.for_shape(*shape, chi, sites=sites)
    claimed = spec.work(batch)
    assert claimed == every_order(spec, batch)
    tensors = [*spec.core_shapes, (batch, *spec.in_)]
    holds = [{k} for k in range(sites + 1)]  # which of them, x the last, each result is made of
    found = contraction(spec, batch)
    assert walked(found.steps, tensors) == (batch * spec.n_out, spec.multiply_adds(batch), claimed)
    for left, right, *_ in found.steps:
        holds.append(holds[left] | holds[right])
    assert set(range(sites)) not in holds and holds[-1] == set(range(sites + 1))  # never Ŵ


def test_known_costs():
    two = Mpo.for_shape(1024, 4096, 64, out=(1024, 1), in_=(1, 4096))
    assert two.multiply_adds(10) == LowRank.for_shape(1024, 4096, 64).multiply_adds(10)
    four = Mpo.for_shape(1024, 4096, 64, sites=4)
    assert four.parameters / (1024 * 4096) < 0.1 and four.multiply_adds() > 2 * 1024 * 4096


# The fit.


@pytest.mark.parametrize("sites", [2, 3, 4])
def test_error_is_within_the_discarded_weights(sites):
    spec = Mpo.for_shape(24, 36, 5, sites=sites)
    W = random(24, 36)
    discarded = []
    for k, chi in enumerate(spec.chi, 1):
        rows = math.prod(spec.out[:k]) * math.prod(spec.in_[:k])
        sigma = np.linalg.svd(to_sites(W, spec.out, spec.in_).reshape(rows, -1).numpy(), compute_uv=False)
        discarded.append((sigma[chi:] ** 2).sum())
    started = Metric().absolute(W - spec.dense(spec.start(W)))
    fitted = Metric().absolute(W - spec.dense(spec.fit(W, Metric())))
    assert max(discarded) * (1 - 1e-9) <= fitted <= started * (1 + 1e-9) and started <= sum(discarded) * (1 + 1e-9)
    if sites == 2:
        assert started == pytest.approx(discarded[0], rel=1e-10)


def test_agrees_with_tensorly():
    decomposition = pytest.importorskip("tensorly.decomposition", reason="tensorly is not installed")
    W = random(24, 36)
    spec = Mpo.for_shape(24, 36, 6, sites=3)
    train = decomposition.tensor_train(to_sites(W, spec.out, spec.in_).numpy(), rank=[1, *spec.chi, 1])
    wanted = from_sites(torch.from_numpy(np.ascontiguousarray(train.to_tensor())), spec.out, spec.in_)
    torch.testing.assert_close(spec.dense(spec.start(W)), wanted, rtol=0, atol=1e-10)


@pytest.mark.parametrize("which", METRICS)
def test_two_lowrank_sites_are_lowrank(which):
    """The cut (out | in): the fit must come down to the optimum, which is known there."""
    W, metric = random(16, 20), metric_of(which, 16, 20)
    spec = Mpo.for_shape(16, 20, 5, out=(16, 1), in_=(1, 20))
    best = LowRank.curve(W, metric).at(5)
    reached = metric.absolute(W - spec.dense(spec.fit(W, metric)))
    assert best * (1 - 1e-9) <= reached <= best * (1 + (1e-9 if which == "weight" else 0.03))


@pytest.mark.parametrize("which", ["functional", "loss"])
@pytest.mark.parametrize("sites", [2, 3])
def test_rounds_never_raise_the_metric_error(which, sites):
    W, metric = random(24, 24), metric_of(which, 24, 24)
    spec = Mpo.for_shape(24, 24, 6, sites=sites)
    cores, errors = refine(spec.dense, spec.start(W), W, metric, rounds=6, tolerance=0)
    assert len(errors) >= 4 and all(after < before for before, after in itertools.pairwise(errors))
    assert errors[0] == pytest.approx(metric.absolute(W - spec.dense(spec.start(W))))
    assert errors[-1] == pytest.approx(metric.absolute(W - spec.dense(cores)))
    assert errors[-1] < 0.8 * errors[0]


@pytest.mark.parametrize("which", METRICS)
def test_refinement_ends_where_no_core_can_be_improved(which):
    """At the end the error is stationary: the exact least-squares solution for any one core gains almost nothing."""
    W, metric = random(12, 12), metric_of(which, 12, 12)
    spec = Mpo.for_shape(12, 12, 4, sites=3)
    cores, errors = refine(spec.dense, spec.start(W), W, metric, rounds=60, tolerance=1e-4)
    target = metric.whiten(W).flatten()
    for k in range(3):
        columns = []
        for unit in torch.eye(cores[k].numel(), dtype=torch.float64):
            replaced = [*cores[:k], unit.reshape(cores[k].shape), *cores[k + 1 :]]
            columns.append(metric.whiten(spec.dense(replaced)).flatten())
        basis = torch.stack(columns, 1)
        best = (target - basis @ torch.linalg.lstsq(basis, target, driver="gelsd").solution).square().sum().item()
        assert errors[-1] <= 1.02 * best


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("sites", [2, 3, 4])
def test_recovers_a_planted_network(which, sites):
    spec = Mpo.for_shape(36, 24, 5, sites=sites)
    clean = spec.dense(planted(spec))
    noise = random(36, 24, seed=9)
    W = clean + 1e-6 * clean.norm() * noise / noise.norm()
    metric = metric_of(which, 36, 24)
    found = spec.dense(spec.fit(W, metric))
    assert math.sqrt(metric.error(W, found)) <= 1.01e-6 * math.sqrt(metric.absolute(noise) / metric.absolute(W)) * (
        clean.norm() / noise.norm()
    )
    below = spec.with_chi(4)
    assert metric.error(W, below.dense(below.fit(W, metric))) > 1e-4


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("sites", [None, 3])
def test_error_falls_with_chi(which, sites):
    W, metric = random(24, 20), metric_of(which, 24, 20)
    spec = Mpo.for_shape(24, 20, 1, sites=sites)
    errors = [
        metric.error(W, spec.with_chi(chi).dense(spec.with_chi(chi).decompose(W, metric)))
        for chi in (1, 2, 4, 7, spec.max_chi)
    ]
    assert all(after < before for before, after in itertools.pairwise(errors)) and errors[-1] < 1e-10


@pytest.mark.parametrize("W", [torch.zeros(12, 12), torch.ones(12, 12)])
@pytest.mark.parametrize("which", METRICS)
def test_rank_deficient_weights(W, which):
    spec = Mpo.for_shape(12, 12, 4, sites=3)
    cores = spec.decompose(W, metric_of(which, 12, 12))
    assert all(torch.isfinite(core).all() for core in cores)
    torch.testing.assert_close(spec.dense(cores), W, rtol=1e-6, atol=1e-6)


def test_progress_is_told_and_may_cancel():
    class Stop(Exception):
        pass

    told = []

    def progress(stage, done, total, item="", message=""):
        told.append((stage, done, total))
        if done == 1:
            raise Stop

    with pytest.raises(Stop):
        Mpo.for_shape(24, 24, 6, sites=3).decompose(random(24, 24), metric_of("loss", 24, 24), progress)
    assert told == [("refine", 0, 8), ("refine", 1, 8)]


# Its curve.


def test_curve_of_two_sites_in_the_weight_metric_is_exact():
    W = random(20, 24)
    curve = Mpo.curve(W)
    assert curve.exact and curve.chi[-1] == Mpo.for_shape(20, 24, 1).max_chi
    for chi in (1, 5, 11):
        spec = Mpo.for_shape(20, 24, chi)
        assert curve.at(chi) == pytest.approx(Metric().absolute(W - spec.dense(spec.fit(W, Metric()))), rel=1e-9)
        assert curve.parameters[chi - 1] == spec.parameters


@pytest.mark.parametrize("which", ["functional", "loss"])
@pytest.mark.parametrize("sites", [None, 3])
def test_curve_tells_what_decompose_reaches(which, sites):
    W, metric = random(48, 64), metric_of(which, 48, 64)
    curve = Mpo.curve(W, metric, sites=sites)
    spec = Mpo.for_shape(48, 64, 1, sites=sites)
    assert not curve.exact and curve.chi[-1] == spec.break_even_chi and len(curve.chi) <= 6
    assert np.all(np.diff(curve.error) <= 0) and curve.error[0] < curve.total == metric.absolute(W)
    for chi in (int(curve.chi[2]), int(curve.chi[3] + curve.chi[2]) // 2, int(curve.chi[-2])):
        at = spec.with_chi(chi)
        reached = metric.absolute(W - at.dense(at.decompose(W, metric)))
        assert 0.8 < curve.at(chi) / reached < 1.25
    assert list(curve.parameters) == [spec.with_chi(int(chi)).parameters for chi in curve.chi]


def test_curve_at_chosen_levels():
    W, metric = random(12, 16), metric_of("functional", 12, 16)
    curve = Mpo.curve(W, metric, levels=[3, 1], out=(3, 4), in_=(4, 4))
    assert list(curve.chi) == [1, 3] and curve.parameters[1] == 3 * (12 + 16)
    assert attainable((3, 4), (4, 4)) == [12]
