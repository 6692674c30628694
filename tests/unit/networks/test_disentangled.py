"""`disentangled`: gates, their angles, their places, the fit, against NumPy, quimb, and `mpo` without gates."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Metric, spec_from_json
from karipap_core.networks.disentangled import Disentangled, disentangle, rank_bound, sweep, sweep_gates, veto
from karipap_core.networks.gates import (
    Place,
    angle_count,
    angles_of,
    brickwork,
    gates_of,
    nearest_rotation,
    rotation_log,
    turn,
)
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.refine import refine

METRICS = ["weight", "functional", "loss"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def rotation(n, seed=0):
    return nearest_rotation(random(n, n, seed=seed))


def metric_of(which, n_out, n_in):
    """Moments with a long tail, which mix the digits."""
    X = random(4 * n_in, n_in) * torch.logspace(0, -1.5, n_in) @ random(n_in, n_in, seed=1)
    g = random(4 * n_out, n_out, seed=2) * torch.logspace(0, -1, n_out) @ random(n_out, n_out, seed=3)
    C, G = X.T @ X / len(X), 1e-6 * g.T @ g / len(g)
    return Metric(which, C=None if which == "weight" else C, G=G if which == "loss" else None)


def full_gate(gate, place, digits):
    """1 ⊗ gate ⊗ 1 over all digits, by NumPy."""
    after = math.prod(digits) // (place.before * place.size)
    return np.kron(np.kron(np.eye(place.before), np.asarray(gate)), np.eye(after))


def full_circuit(circuit, places, digits):
    Q = np.eye(math.prod(digits))
    for layer, where in zip(circuit, places, strict=True):
        for gate, place in zip(layer, where, strict=True):
            Q = Q @ full_gate(gate, place, digits)
    return Q


# Gates and angles.


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=3), st.integers(0, 99))
def test_gates_are_rotations(sizes, seed):
    places = [Place(1, size) for size in sizes]
    angles = random(sum(place.angles for place in places), seed=seed)
    for gate, size in zip(gates_of(places, angles), sizes, strict=True):
        assert gate.shape == (size, size)
        # torch.matrix_exp comes no nearer where angles are small.
        assert np.asarray(gate @ gate.T) == pytest.approx(np.eye(size), abs=1e-11)
        assert np.linalg.det(np.asarray(gate)) == pytest.approx(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(0, 999))
def test_angles_round_trip(n, seed):
    gate = rotation(n, seed)
    K = rotation_log(gate)
    assert torch.equal(K, -K.T) and np.abs(np.linalg.eigvals(K.numpy())).max() <= math.pi * (1 + 1e-9)
    angles = angles_of([gate])
    assert angles.shape == (angle_count(n),)
    torch.testing.assert_close(gates_of([Place(1, n)], angles)[0], gate, rtol=0, atol=1e-11)
    assert torch.equal(angles, angles_of([gate.clone()]))  # the same gate has the same angles


@pytest.mark.parametrize("n, turned", [(2, 2), (4, 2), (7, 4), (8, 8), (9, 6)])
@pytest.mark.parametrize("off", [0.0, 1e-12, 1e-9, 1e-7, 1e-3])
def test_half_turns_have_angles_too(n, turned, off):
    """−1 is where the principal logarithm is not unique: there and near it some logarithm must be found."""
    signs = torch.ones(n, dtype=torch.float64)
    signs[:turned] = -1
    noise, basis = off * random(n, n, seed=5), rotation(n, 4)
    gate = basis * signs @ basis.T @ torch.linalg.matrix_exp(noise - noise.T)
    torch.testing.assert_close(torch.linalg.matrix_exp(rotation_log(gate)), gate, rtol=0, atol=1e-8)


def test_a_reflection_is_no_gate():
    with pytest.raises(InputError, match="determinant"):
        rotation_log(torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)))


def test_the_nearest_rotation_beats_all_others():
    for seed in range(6):  # determinants of both signs
        E = random(4, 4, seed=seed)
        best = (nearest_rotation(E) * E).sum()
        assert np.linalg.det(nearest_rotation(E).numpy()) == pytest.approx(1)
        assert all((rotation(4, other) * E).sum() < best for other in range(300, 340))


# Places and counts.


def test_brickwork_is_stated():
    assert brickwork((4, 4, 4, 4), 3) == [
        [Place(1, 16), Place(16, 16)],
        [Place(4, 16)],
        [Place(1, 16), Place(16, 16)],
    ]
    assert brickwork((4, 1, 5, 1, 6), 2) == [[Place(1, 20)], [Place(4, 30)]]  # digits of 1 are passed over
    assert brickwork((43, 16, 16), 4) == [[], [Place(43, 256)], [], []]  # 43 is too large; a second gate would merge
    assert brickwork((16, 16), 4) == [[]] * 4  # one gate on everything is the SVD's own factor
    assert brickwork((509, 1, 1), 2) == [[], []]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 40), st.sampled_from([0, 1, 2, 4]))
def test_sizes_of_any_shape(n_out, n_in, chi, layers):
    spec = Disentangled.for_shape(n_out, n_in, chi, layers=layers)
    assert (spec.n_out, spec.n_in) == (n_out, n_in)
    assert spec.parameters == sum(math.prod(shape) for shape in spec.core_shapes)
    assert spec.parameters == spec.mpo.parameters + spec.gate_parameters
    assert spec_from_json(spec.to_json()) == spec and spec.with_chi(chi) == spec
    assert all(place.size <= 256 for side in spec.places for layer in side for place in layer)
    assert layers or not spec.gate_parameters


def test_bytes_count_every_angle():
    spec = Disentangled.for_shape(64, 64, 8, (4, 4, 4), (4, 4, 4), layers=2)
    assert spec.gate_parameters == 2 * 2 * angle_count(16) == 480
    assert spec.bytes(2) == 2 * (Mpo.for_shape(64, 64, 8, (4, 4, 4), (4, 4, 4)).parameters + 480)
    packed = Disentangled.for_shape(64, 64, 8, (4, 4, 4), (4, 4, 4), quantize="int8", layers=2)
    assert packed.bytes(2) < spec.bytes(2)


@pytest.mark.parametrize(
    "change", [{"layers": -1}, {"layers": True}, {"layers": 1.5}, {"chi": [9, 9, 9]}, {"out": [4]}]
)
def test_wrong_entries_are_refused(change):
    entry = {"network": "disentangled", "out": [2, 2, 3], "in": [2, 2, 3], "chi": [2, 2], "layers": 1}
    spec_from_json(entry)
    with pytest.raises(InputError, match="[Ff]ield") as caught:
        spec_from_json(entry | change)
    assert "'mpo'" not in str(caught.value)


# The network.


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([(12, 12), (8, 27), (30, 16), (7, 12), (36, 1)]),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 99),
)
def test_dense_and_apply_are_the_definition(shape, chi, layers, seed):
    """Q_L Ŵ Q_Rᵀ with every gate a Kronecker product of NumPy's."""
    spec = Disentangled.for_shape(*shape, chi, layers=layers)
    cores = spec.random_cores(seed, torch.float64)
    left, right = (
        full_circuit(circuit, places, digits)
        for circuit, places, digits in zip(spec.circuits(cores), spec.places, (spec.out, spec.in_), strict=True)
    )
    W = left @ spec.mpo.dense(cores[: len(spec.out)]).numpy() @ right.T
    assert spec.dense(cores).numpy() == pytest.approx(W, abs=1e-10)
    for batch in ((), (1,), (2, 3), (0,)):
        x = random(*batch, shape[1], seed=seed)
        assert spec.apply(x, cores).numpy() == pytest.approx(x.numpy() @ W.T, abs=1e-10)


def test_dense_agrees_with_quimb():
    quimb = pytest.importorskip("quimb.tensor")
    spec = Disentangled.for_shape(24, 30, 4, (2, 4, 3), (5, 2, 3), layers=2)
    cores = spec.random_cores(3, torch.float64)
    left, right = spec.circuits(cores)
    tensors = [
        quimb.Tensor(core.numpy(), (f"b{k}", f"o{k}.0", f"i{k}.0", f"b{k + 1}")) for k, core in enumerate(cores[:3])
    ]
    for name, circuit, digits in (("o", left, spec.out), ("i", right, spec.in_)):
        done = [0, 0, 0]
        for depth, first in ((1, 1), (0, 0)):  # the second layer, on digits 2 and 3, is next to the MPO
            gate = circuit[depth][0].numpy().reshape(digits[first], digits[first + 1], digits[first], digits[first + 1])
            inner = [f"{name}{k}.{done[k]}" for k in (first, first + 1)]
            done[first] += 1
            done[first + 1] += 1
            outer = [f"{name}{k}.{done[k]}" for k in (first, first + 1)]
            tensors.append(quimb.Tensor(gate, (*outer, *inner)))
    open_legs = [f"{name}{k}.{(1, 2, 1)[k]}" for name in "oi" for k in range(3)]
    theirs = quimb.TensorNetwork(tensors).contract(output_inds=["b0", *open_legs, "b3"]).data.reshape(24, 30)
    assert spec.dense(cores).numpy() == pytest.approx(theirs, abs=1e-10)


def test_apply_compiles_in_one_graph():
    spec = Disentangled.for_shape(12, 18, 3)
    cores, x = spec.random_cores(0, torch.float64), random(5, 18)
    compiled = torch.compile(lambda x, cores: spec.apply(x, cores), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, cores), x @ spec.dense(cores).T)


def test_the_inverse_undoes_a_circuit():
    digits = (3, 4, 2)
    places = brickwork(digits, 3)
    circuit = [[rotation(place.size, 7) for place in layer] for layer in places]
    W = random(5, 24, 6)
    there = turn(W, 5, circuit, places)
    assert there.numpy() == pytest.approx(np.einsum("xy,pyq->pxq", full_circuit(circuit, places, digits), W.numpy()))
    torch.testing.assert_close(turn(there, 5, circuit, places, inverse=True), W)


def test_multiply_adds_are_those_of_the_parts():
    spec = Disentangled.for_shape(64, 64, 4, (4, 4, 4), (4, 4, 4), layers=1)
    gates = 2 * (10 * 64 * 16 + 8 * 16**3)  # one gate of 16 a side, and the two exponentials
    assert spec.multiply_adds(10) == spec.mpo.multiply_adds(10) + gates


# Without layers.


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("sites", [2, 3])
def test_no_layers_is_mpo(which, sites):
    W, metric = random(24, 36), metric_of(which, 24, 36)
    mpo = Mpo.for_shape(24, 36, 5, sites=sites)
    spec = Disentangled.for_shape(24, 36, 5, mpo.out, mpo.in_, layers=0)
    assert spec.parameters == mpo.parameters and spec.core_shapes == mpo.core_shapes
    ours, theirs = spec.decompose(W, metric), mpo.decompose(W, metric)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert torch.equal(spec.dense(ours), mpo.dense(theirs))


# The fit.


def test_gate_updates_never_lower_the_overlap():
    digits, batch = (3, 4, 2), 5
    places = brickwork(digits, 3)
    A, B = random(batch * 24 * 7), random(batch * 24 * 7, seed=1)
    circuit = [[torch.eye(place.size, dtype=torch.float64) for place in layer] for layer in places]
    overlaps = []
    for _ in range(5):
        overlaps.append((A * turn(B, batch, circuit, places)).sum().item())
        circuit = sweep_gates(A, B, batch, circuit, places)
    assert all(after >= before - 1e-12 for before, after in itertools.pairwise(overlaps))
    assert overlaps[-1] > overlaps[0] + 1


@settings(max_examples=12, deadline=None)
@given(st.sampled_from([(24, 36), (32, 27), (16, 64)]), st.integers(1, 6), st.integers(1, 4), st.integers(0, 9))
def test_sweeps_never_raise_the_error(shape, chi, layers, seed):
    spec = Disentangled.for_shape(*shape, chi, layers=layers)
    W = random(*shape, seed=seed)
    left, right = ([[torch.eye(p.size, dtype=torch.float64) for p in layer] for layer in side] for side in spec.places)
    cores = spec.mpo.start(W)
    errors = [(W - spec.mpo.dense(cores)).square().sum().item()]
    for _ in range(6):
        cores, left, right, error = sweep(spec, W, cores, left, right)
        assert error == pytest.approx((W - spec.between(spec.mpo.dense(cores), left, right)).square().sum().item())
        errors.append(error)
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("which", METRICS)
def test_fit_is_never_over_the_plain_start_and_layers_pay(which):
    W, metric = random(24, 36), metric_of(which, 24, 36)
    errors = []
    for layers in (0, 1, 2):
        spec = Disentangled.for_shape(24, 36, 4, layers=layers)
        errors.append(metric.absolute(W - spec.dense(spec.fit(W, metric))))
        assert errors[-1] <= metric.absolute(W - spec.mpo.dense(spec.mpo.start(W))) * (1 + 1e-12)
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("shape", [(24, 36), (7, 30), (1, 16), (13, 11), (16, 1)])
def test_full_bonds_reproduce_the_weight(which, shape):
    W = random(*shape).float()
    spec = Disentangled.for_shape(*shape, 10**9)
    cores = spec.decompose(W, metric_of(which, *shape))
    assert (spec.dense(cores) - W).norm() <= 1e-5 * W.norm()


def planted(spec, seed=0):
    """Cores and angles, the angles of size one: gates far from the identity."""
    cores = [random(*shape, seed=seed + k) for k, shape in enumerate(spec.core_shapes)]
    weight = spec.dense(cores)
    cores[0] = cores[0] / weight.norm()
    return cores, weight / weight.norm()


@pytest.mark.parametrize("seed", range(3))
def test_a_planted_circuit_is_found_from_scratch(seed):
    """One layer of gates on digits of two around an MPO of bond 2: random starts, polar sweeps, refinement."""
    spec = Disentangled.for_shape(8, 8, 2, (2, 2, 2), (2, 2, 2), layers=1)
    _, W = planted(spec, 10 * seed)
    noise = random(8, 8, seed=99)
    noise = 1e-6 * noise / noise.norm()
    cores, errors = refine(spec.dense, spec.start(W + noise, Metric()), W + noise, Metric(), rounds=60, tolerance=0)
    assert errors[0] > 1e-5  # the sweeps come near, the refinement arrives
    assert (spec.dense(cores) - W).norm() < 2e-6
    plain = Mpo.for_shape(8, 8, 2, (2, 2, 2), (2, 2, 2))
    assert Metric().error(W, plain.dense(plain.fit(W, Metric()))) > 1e-3


@pytest.mark.parametrize("layers", [1, 2])
def test_planted_bonds_are_found_again_near_the_gates(layers):
    """Larger gates are found from near: the sweeps' problem has many local optima, the bonds given the gates none."""
    spec = Disentangled.for_shape(48, 36, 3, (4, 4, 3), (3, 4, 3), layers=layers)
    cores, W = planted(spec, 4)
    noise = random(48, 36, seed=9)
    W = W + 1e-6 * noise / noise.norm()
    near = [core + 0.01 * random(*core.shape, seed=5) for core in cores[3:]]
    left, right = spec.circuits([*cores[:3], *near])
    moved = spec.mpo.start(spec.undone(W, left, right))
    for _ in range(20):
        moved, left, right, error = sweep(spec, W, moved, left, right)
    angles = [angles_of(layer) for side in (left, right) for layer in side if layer]
    errors = refine(spec.dense, [*moved, *angles], W, Metric(), rounds=20, tolerance=0)[1]
    assert error < 1e-4 and errors[-1] < 1.01e-12
    smaller = spec.with_chi(2)
    assert (W - smaller.dense(smaller.fit(W, Metric()))).norm() > 1e-3


def test_the_same_weight_gives_the_same_network():
    spec, W = Disentangled.for_shape(24, 36, 3, layers=2), random(24, 36, seed=3)
    one, other = disentangle(spec, W), disentangle(spec, W.clone())
    assert one[3] == other[3] and all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize("which", ["weight", "loss"])
def test_curve_tells_what_decompose_reaches(which):
    W, metric = random(48, 64), metric_of(which, 48, 64)
    curve = Disentangled.curve(W, metric)
    assert np.all(np.diff(curve.error) <= 0) and curve.total == metric.absolute(W) and not curve.exact
    spec = Disentangled.for_shape(48, 64, int(curve.chi[2]))
    assert list(curve.parameters) == [spec.with_chi(int(chi)).parameters for chi in curve.chi]
    reached = metric.absolute(W - spec.dense(spec.fit(W, metric)))
    assert 0.75 < curve.at(spec.chi[0]) / reached < 1.35


# The veto.


def test_the_published_example_is_counted():
    """576 × 192, padded to ten and eight qubits (arXiv:2410.17397v2): gates over whole registers hold more numbers
    than the weight, and the table's MPO parameters are those of ten sites, a qubit of either side on the last eight."""
    assert angle_count(2**10) + angle_count(2**8) == 556_416 > 576 * 192
    counts = [Mpo.for_shape(1024, 256, chi, (2,) * 10, (1, 1, *(2,) * 8)).parameters for chi in (1, 2, 5, 10, 50, 256)]
    assert counts == [36, 132, 696, 2_356, 36_948, 401_956]
    spec = Disentangled.for_shape(1024, 256, 1, (2,) * 10, (1, 1, *(2,) * 8), layers=1)
    assert spec.mpo.parameters == 36 and spec.gate_parameters == (5 + 4) * angle_count(4)  # ours: on pairs of digits
    said = veto((576, 192), spec, gates=556_416)
    assert "36" in said and "556,416" in said and "110,592" in said
    assert veto((576, 192), spec) is None


def test_veto_where_lowrank_reaches_as_much_with_less():
    W = random(64, 3) @ random(3, 64, seed=1)  # rank 3: 384 numbers, less than the gates alone
    spec = Disentangled.for_shape(64, 64, 2, (4, 4, 4), (4, 4, 4), layers=2)
    said = veto(W, spec)
    assert "480" in said and "384" in said and "lowrank" in said
    assert veto(random(64, 64), spec) is None  # of full rank: nothing can be said before a run
    assert (
        veto(W, Disentangled.for_shape(64, 64, 2, (4, 4, 4), (4, 4, 4), layers=0)) is None
    )  # no gates, nothing to pay


def test_veto_where_the_plain_mpo_reaches_as_much_with_less():
    plain = Mpo.for_shape(64, 64, 2, (4, 4, 4), (4, 4, 4))
    W = plain.dense(plain.random_cores(0, torch.float64))
    said = veto(W, Disentangled.for_shape(64, 64, 2, (4, 4, 4), (4, 4, 4), layers=2))
    assert f"{plain.parameters:,}" in said and "mpo" in said


@settings(max_examples=15, deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([((2, 3, 2), (3, 2, 2)), ((4, 3, 1), (1, 1, 12)), ((2, 2, 3, 1), (1, 1, 2, 6))])
)
def test_no_network_has_a_rank_over_its_bound(chi, legs):
    spec = Disentangled.for_shape(12, 12, chi, *legs, layers=2)
    cores = spec.random_cores(1, torch.float64)
    assert np.linalg.matrix_rank(spec.dense(cores).numpy(), tol=1e-9) <= rank_bound(spec)


def test_the_bound_of_the_svd_is_its_rank():
    spec = Disentangled.for_shape(12, 12, 5, (12, 1), (1, 12))
    assert rank_bound(spec) == 5 and LowRank.for_shape(12, 12, 5).parameters == spec.parameters
