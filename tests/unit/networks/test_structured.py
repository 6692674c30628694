"""Structure around a network, each piece against NumPy: heads as a leg, orders of rows and columns, an SVD head."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.layers.cores import stored_tensors
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks import NETWORKS, Metric, spec_from_json
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.structured import Structure, Structured, head_factors, permuted, similar_order

METRICS = ["weight", "functional", "loss"]
structures = st.builds(Structure, head=st.integers(0, 3), rows=st.booleans(), columns=st.booleans())


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def metric_of(which, n_out, n_in):
    X = random(4 * n_in, n_in) * torch.logspace(0, -1.5, n_in) @ random(n_in, n_in, seed=1)
    g = random(4 * n_out, n_out, seed=2) * torch.logspace(0, -1, n_out) @ random(n_out, n_out, seed=3)
    C, G = X.T @ X / len(X), 1e-6 * g.T @ g / len(g)
    return Metric(which, C=None if which == "weight" else C, G=G if which == "loss" else None)


def shuffled(n, seed=0):
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(3, 24), st.integers(3, 24)),
    st.integers(1, 8),
    structures,
    st.sampled_from(["mpo", "lowrank", "disentangled", "peps"]),
)
def test_dense_and_apply_are_the_definition(shape, chi, structure, inner):
    spec = Structured.for_shape(*shape, chi, inner=inner, structure=structure)
    cores = spec.random_cores(3, torch.float64)
    assert [tuple(core.shape) for core in cores] == [tuple(shape) for shape in spec.core_shapes]
    given_cores = list(cores)
    rows = given_cores.pop(0).numpy() if structure.rows else np.arange(shape[0])
    columns = given_cores.pop(0).numpy() if structure.columns else np.arange(shape[1])
    L, R = (given_cores.pop(0).numpy(), given_cores.pop(0).numpy()) if structure.head else (np.zeros((shape[0], 1)), 0)
    inside = spec.base.dense(given_cores).numpy()
    W = np.empty(shape)
    for o in range(shape[0]):
        for j in range(shape[1]):
            W[o, columns[j]] = inside[rows[o], j]
    W = W + (L @ R if structure.head else 0)
    assert spec.dense(cores).numpy() == pytest.approx(W, abs=1e-10)
    x = random(2, 3, shape[1], seed=5)
    assert spec.apply(x, cores).numpy() == pytest.approx(x.numpy() @ W.T, abs=1e-9)
    assert spec.multiply_adds(7) == spec.base.multiply_adds(7) + 7 * structure.head * sum(shape)


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(3, 300), st.integers(3, 300)),
    st.integers(1, 20),
    structures,
    st.sampled_from([None, "int8", "int4"]),
    st.sampled_from(["mpo", "lowrank", "disentangled"]),
)
def test_every_byte_is_counted(shape, chi, structure, quantize, inner):
    spec = Structured.for_shape(*shape, chi, quantize=quantize, inner=inner, structure=structure)
    around = LowRank.for_shape(*shape, structure.head, quantize=quantize).bytes(2) if structure.head else 0
    integers = 4 * (shape[0] * structure.rows + shape[1] * structure.columns)
    assert spec.bytes(2) == spec.base.bytes(2) + around + integers
    on_disk = stored_tensors(spec)
    assert spec.bytes(2) == sum(math.prod(s) * (2 if kind is None else kind.itemsize) for s, kind in on_disk.values())
    assert spec.formats.count("index") == structure.rows + structure.columns
    assert spec.with_chi(chi) == spec
    if structure != Structure():
        assert spec_from_json(spec.to_json()) == spec and spec.to_json()["network"] == inner


@pytest.mark.parametrize("inner", [name for name in NETWORKS if name != "qlr"])  # Q + L R is exact at every χ
@pytest.mark.parametrize("which", ["weight", "loss"])
def test_every_network_takes_it_and_reproduces_the_weight(inner, which):
    W = random(12, 18).float()
    spec = Structured.for_shape(12, 18, 10**6, inner=inner, structure=Structure(head=2, rows=True, columns=True))
    cores = spec.decompose(W, metric_of(which, 12, 18))
    assert (spec.dense(cores) - W).norm() <= 1e-5 * W.norm()
    assert [core.dtype for core in cores] == [torch.int32] * 2 + [torch.float32] * (len(cores) - 2)


@pytest.mark.parametrize("structure", [{"head": 2}, {"columns": True}, {"rows": True, "columns": True, "head": 1}])
def test_the_layer_is_a_drop_in(structure):
    torch.manual_seed(0)
    linear = torch.nn.Linear(20, 12)
    spec = Structured.for_shape(12, 20, 10**6, structure=Structure(**structure))
    layer = TensorNetworkLinear.from_linear(linear, spec)
    x = torch.randn(3, 5, 20)
    torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=1e-4)
    again = TensorNetworkLinear(spec, bias=True)
    again.load_state_dict(layer.state_dict())
    torch.testing.assert_close(again(x), layer(x))
    layer.runtime = "dense"
    torch.testing.assert_close(layer(x), linear(x), atol=1e-5, rtol=1e-4)


# The fit.


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("structure", [{"head": 3}, {"columns": True}, {"rows": True, "columns": True, "head": 2}])
def test_fit_is_never_worse_than_its_start(which, structure):
    """The start: an SVD head of the same rank, and the network of the same χ on its residual in the natural order."""
    W, metric = random(24, 30), metric_of(which, 24, 30)
    structure = Structure(**structure)
    spec = Structured.for_shape(24, 30, 4, structure=structure)
    rest = W
    if structure.head:
        left, right = LowRank.for_shape(24, 30, structure.head).fit(W, metric)
        rest = W - left @ right
    start = metric.absolute(rest - spec.base.dense(spec.base.fit(rest, metric)))
    fitted = metric.absolute(W - spec.dense(spec.fit(W, metric)))
    assert fitted <= start * (1 + 1e-9)
    if structure.head:
        assert fitted < 0.999 * start  # both parts move together


@pytest.mark.parametrize("which", METRICS)
def test_error_falls_with_chi_and_with_the_head(which):
    W, metric = random(24, 20), metric_of(which, 24, 20)
    for around in ([Structure(head=2)] * 4, [Structure(head=rank) for rank in (0, 2, 5, 9)]):
        errors = []
        for chi, structure in zip((1, 3, 7, 12), around, strict=True):
            spec = Structured.for_shape(24, 20, chi, structure=structure)
            errors.append(metric.error(W, spec.dense(spec.fit(W, metric))))
        assert all(after < before for before, after in zip(errors, errors[1:], strict=False))


def test_a_planted_head_and_network_are_found_to_the_noise():
    spec = Structured.for_shape(24, 36, 2, (4, 6), (6, 6), structure=Structure(head=2))
    cores = spec.random_cores(1, torch.float64)
    cores = [core * 3 if k < 2 else core for k, core in enumerate(cores)]  # a head that leads the spectrum
    W = spec.dense(cores)
    noise = random(24, 36, seed=9)
    W = W / W.norm() + 1e-6 * noise / noise.norm()
    assert Metric().error(W, spec.dense(spec.fit(W, Metric()))) < 1e-9
    for lesser in (Structure(head=1), Structure()):
        smaller = Structured.for_shape(24, 36, 2, (4, 6), (6, 6), structure=lesser)
        assert Metric().error(W, smaller.dense(smaller.fit(W, Metric()))) > 1e-4


def test_curve_is_the_residuals():
    W, metric = random(24, 30), metric_of("loss", 24, 30)
    structure = Structure(head=3, columns=True)
    curve = Structured.curve(W, metric, structure=structure)
    assert np.all(np.diff(curve.error) <= 0) and curve.total == metric.absolute(W) and not curve.exact
    for chi, parameters, error in list(zip(curve.chi, curve.parameters, curve.error, strict=True))[:3]:
        spec = Structured.for_shape(24, 30, int(chi), structure=structure)
        assert parameters == spec.parameters
        assert metric.absolute(W - spec.dense(spec.fit(W, metric))) <= error * 1.25  # the joint refinement comes on top


# Orders of rows and columns.


@pytest.mark.parametrize("which", METRICS)
def test_a_permuted_metric_measures_the_same(which):
    W, metric = random(10, 14), metric_of(which, 10, 14)
    rows, columns = shuffled(10), shuffled(14)
    moved, moved_metric = permuted(W, metric, rows, columns)
    assert moved[3, 5] == W[rows[3], columns[5]]
    assert moved_metric.absolute(moved) == pytest.approx(metric.absolute(W))


@pytest.mark.parametrize("which", ["rows", "columns"])
def test_shuffled_clusters_are_found_again(which):
    """Rows that are copies of a few, shuffled: in the order found each value of the first digit has one of each."""
    kinds, copies = 6, 4
    W = random(kinds, 40)[torch.arange(kinds).repeat_interleave(copies)] + 1e-3 * random(kinds * copies, 40, seed=1)
    shuffle = shuffled(kinds * copies)
    W, kind = W[shuffle], shuffle // copies
    order = similar_order(W if which == "rows" else W.T, Metric(), which, (copies, kinds))
    assert sorted(order.tolist()) == list(range(kinds * copies))
    assert all(sorted(kind[block].tolist()) == list(range(kinds)) for block in order.reshape(copies, kinds))
    assert torch.equal(order, similar_order((W if which == "rows" else W.T).clone(), Metric(), which, (copies, kinds)))


def test_an_order_makes_a_shuffled_network_exact_again():
    """W's columns are a few, copied and shuffled: in the right order two sites with χ = 1 hold it, in no order 4 do."""
    kinds, copies = 6, 4
    W = (random(20, kinds).repeat_interleave(copies, 1))[:, shuffled(kinds * copies)]
    ordered = Structured.for_shape(20, 24, 1, (1, 20), (copies, kinds), structure=Structure(columns=True))
    assert Metric().error(W, ordered.dense(ordered.fit(W, Metric()))) < 1e-12
    plain = Mpo.for_shape(20, 24, 1, (1, 20), (copies, kinds))
    assert Metric().error(W, plain.dense(plain.fit(W, Metric()))) > 0.1


@pytest.mark.parametrize("W", [torch.zeros(6, 8), torch.ones(6, 8)])
def test_weights_without_any_order_have_one(W):
    assert sorted(similar_order(W, Metric(), "rows", (3, 2)).tolist()) == list(range(6))
    assert similar_order(torch.ones(1, 8), Metric(), "rows", (1,)).tolist() == [0]


# Heads.


def test_heads_are_a_leg():
    assert head_factors(256, 128, 8) == ((8, 32, 1), (2, 1, 64))
    assert head_factors(128, 256, 8, "in") == ((2, 1, 64), (8, 32, 1))
    assert head_factors(12, 7, 3) == ((3, 4, 1), (1, 1, 7))
    with pytest.raises(InputError, match="divide"):
        head_factors(256, 128, 7)
    spec = Structured.for_shape(256, 128, 8, structure=Structure(heads=8))
    assert spec.out == (8, 32, 1) and spec.bytes(2) == Mpo.for_shape(256, 128, 8, spec.out, spec.in_).bytes(2)


def test_heads_that_are_alike_are_stored_once():
    """One head's map times a factor a head: the heads' bond is 1, and the leg finds it."""
    W = torch.kron(random(4, 1), random(8, 12, seed=1))
    out, in_ = head_factors(32, 12, 4)
    spec = Structured.for_shape(32, 12, 12, out, in_, structure=Structure(heads=4))
    cores = Mpo(spec.out, (1, 1, 12), (1, 8)).fit(W, Metric())
    assert Metric().error(W, Mpo(spec.out, (1, 1, 12), (1, 8)).dense(cores)) < 1e-20
    assert Metric().error(W, spec.dense(spec.fit(W, Metric()))) < 1e-12


@pytest.mark.parametrize(
    "structure, said",
    [
        ({"head": -1}, "'head'"),
        ({"head": True}, "'head'"),
        ({"head": 13}, "no more than 12"),
        ({"rows": 1}, "'rows'"),
        ({"heads": 7}, "'heads' 7"),
        ({"tail": 1}, "may hold head, rows"),
        ([1], "'structure'"),
    ],
)
def test_wrong_structures_are_refused(structure, said):
    entry = {"network": "mpo", "out": [3, 4], "in": [5, 6], "chi": [4]}
    with pytest.raises(InputError, match=said):
        spec_from_json(entry | {"structure": structure})
    assert spec_from_json(entry | {"structure": None}) == spec_from_json(entry)
