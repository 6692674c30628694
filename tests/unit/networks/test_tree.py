"""`tree`: groups of weights that share a basis, against NumPy, tensorly's Tucker and per-layer low rank."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.checkpoint.model import Weight
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.networks import Metric, spec_from_json
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.tree.edges import edge_spectra, group_profile
from karipap_core.networks.tree.fit import price, settle, start, sweep
from karipap_core.networks.tree.groups import group_names, side_of
from karipap_core.networks.tree.network import SHARES, Tree, fit_group, group_curve, group_specs
from karipap_core.spectra.spectrum import entropy

METRICS = ["weight", "functional", "loss"]


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(n, seed, scale=1.0):
    X = random(3 * n, n, seed=seed) * torch.logspace(0, -1.2, n) @ random(n, n, seed=seed // 7)
    return scale * X.T @ X / len(X)


def metrics_of(which, shape, layers, seed=0):
    """Moments of their own for every member, alike but not equal."""
    return [
        Metric(
            which,
            C=None if which == "weight" else moment(shape[1], seed + layer),
            G=moment(shape[0], seed + 50 + layer, 10.0**-layer) if which == "loss" else None,
        )
        for layer in range(layers)
    ]


def names(layers):
    return [f"model.layers.{layer}.self_attn.q_proj" for layer in range(layers)]


def weights(layers, shape, seed=0):
    return [random(*shape, seed=seed + layer) for layer in range(layers)]


def made_to_share(layers, shape, chi, noise=0.0, seed=0):
    """Weights whose rows lie in one χ-dimensional space."""
    V = torch.linalg.qr(random(shape[1], chi, seed=seed)).Q.T
    return [
        random(shape[0], chi, seed=seed + 1 + k) @ V / math.sqrt(chi) + noise * random(*shape, seed=seed + 60 + k)
        for k in range(layers)
    ]


def plain_error(metric, D):
    """tr(Dᵀ G D C) with the damped moments, from the definition, in NumPy."""
    C, G = (
        np.eye(size) if M is None else M.numpy() + 0.01 * np.trace(M.numpy()) / size * np.eye(size)
        for M, size in ((metric.C, D.shape[1]), (metric.G, D.shape[0]))
    )
    D = D.numpy()
    return float(np.trace(D.T @ G @ D @ C))


def group_error(specs, cores, Ws, metrics):
    group = zip(specs, cores, Ws, metrics, strict=True)
    return sum(plain_error(metric, W - spec.dense(mine)) for spec, mine, W, metric in group)


# Sizes and entries.


@st.composite
def groups(draw):
    side = st.sampled_from([1, 2, 3, 5, 7, 8, 12, 17])
    shape, layers, share = (draw(side), draw(side)), draw(st.integers(1, 4)), draw(st.sampled_from(SHARES))
    return shape, layers, share, draw(st.integers(1, 20))


@settings(max_examples=60, deadline=None)
@given(groups())
def test_entries_are_complete_and_shared_cores_are_counted_once(group):
    shape, layers, share, chi = group
    specs = group_specs(names(layers), shape, chi, share)
    cores = fit_group(specs, weights(layers, shape), [Metric()] * layers)
    stored = {}
    for spec, mine in zip(specs, cores, strict=True):
        assert spec_from_json(json.loads(json.dumps(spec.to_json()))) == spec
        assert [tuple(core.shape) for core in mine] == spec.core_shapes
        assert sum(core.numel() for core, own in zip(mine, spec.owned, strict=True) if own) == spec.parameters
        for core in mine:
            stored[id(core)] = core.numel()
        x = random(2, 3, shape[1], seed=chi)
        torch.testing.assert_close(spec.apply(x, mine), x @ spec.dense(mine).T)
    assert sum(spec.parameters for spec in specs) == sum(stored.values())


@settings(max_examples=60, deadline=None)
@given(groups())
def test_parameters_never_fall_with_chi_and_stop_at_the_largest(group):
    shape, layers, share, _ = group
    largest = group_specs(names(layers), shape, 10**9, share)[0].max_chi
    sizes = [sum(s.parameters for s in group_specs(names(layers), shape, chi, share)) for chi in range(1, largest + 2)]
    assert all(after >= before for before, after in zip(sizes, sizes[1:], strict=False)) and sizes[-1] == sizes[-2]


def test_ranks_of_their_own_and_the_one_core_where_two_would_be_larger():
    specs = group_specs(names(3), (20, 30), (12, 3, 7, 8))
    assert specs[0].core_shapes == [(12, 30), (20, 3), (3, 12)]
    assert specs[1].core_shapes == [(12, 30), (20, 7), (7, 12)]  # 7 (20 + 12) < 20 · 12 …
    assert specs[2].core_shapes == [(12, 30), (20, 12)]  # … and 8 (20 + 12) is not
    assert [spec.owned for spec in specs] == [[True] * 3, [False, True, True], [False, True]]
    turned = group_specs(names(3), (30, 20), (12, 3, 7, 8), "out")
    assert turned[0].core_shapes == [(30, 12), (12, 3), (3, 20)]
    assert [s.parameters for s in turned] == [s.parameters for s in specs]
    assert specs[1].with_chi(4).members == specs[1].members and specs[1].with_chi(4).at == 1
    assert specs[0].multiply_adds(5) == 5 * (12 * 30 + 20 * 3 + 3 * 12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"share": "sideways"}, "'share'"),
        ({"at": 2}, "'at' is 2"),
        ({"at": True}, "'at'"),
        ({"members": "ab"}, "'members'"),
        ({"members": ["a", "a"]}, "'members' names a weight twice"),
        ({"chi": [4, 2]}, "'chi' has 2 bonds: share 'in' in a group of 2 has 3"),
        ({"chi": [13, 2, 2]}, "'chi'.*no more than"),
        ({"chi": [4, 5, 2]}, "'chi'.*no more than"),
        ({"out": [2, 4]}, "'out'"),
        ({"share": "all", "chi": [4, 4, 3]}, "'chi'.*no more than"),
    ],
)
def test_wrong_entries_are_refused(change, said):
    entry = {"network": "tree", "out": [8], "in": [12], "chi": [4, 2, 2], "share": "in", "members": ["a", "b"], "at": 0}
    assert spec_from_json(entry).parameters == 4 * 12 + 2 * 8 + 2 * 4
    with pytest.raises(InputError, match=said):
        spec_from_json(entry | change)


def test_members_that_do_not_belong_together_are_refused():
    specs, Ws = group_specs(names(2), (8, 12), 3), weights(2, (8, 12))
    with pytest.raises(InputError, match="all of them at once"):
        specs[0].decompose(Ws[0])
    with pytest.raises(InputError, match="a spec, a weight and a metric each"):
        fit_group(specs, Ws[:1], [Metric()] * 2)
    with pytest.raises(InputError, match="Member 1 of the group"):
        fit_group([specs[0], specs[0]], Ws, [Metric()] * 2)
    with pytest.raises(InputError, match="Weight 1 of the group"):
        fit_group(specs, [Ws[0], Ws[1].T], [Metric()] * 2)


# The fit.


@settings(max_examples=30, deadline=None)
@given(groups(), st.sampled_from(METRICS))
def test_full_bonds_reproduce_every_weight(group, which):
    shape, layers, share, seed = group
    Ws = weights(layers, shape, seed)
    specs = group_specs(names(layers), shape, 10**9, share)
    for spec, W, mine in zip(specs, Ws, fit_group(specs, Ws, metrics_of(which, shape, layers, seed)), strict=True):
        assert (spec.dense([core.float() for core in mine]) - W).norm() <= 1e-5 * W.norm()


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize(
    ("share", "chi"), [("in", (12, 3, 5, 12)), ("out", (9, 4, 9, 2)), ("both", (6, 7)), ("all", (6, 7, 2))]
)
def test_sweeps_never_raise_the_error_and_the_cores_have_it(which, share, chi):
    Ws, metrics = weights(3, (20, 30)), metrics_of(which, (20, 30), 3)
    specs = group_specs(names(3), (20, 30), chi, share)
    state, errors = sweep(start(share, chi, Ws, metrics), tolerance=0.0)
    assert len(errors) > 2 and all(after <= before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 0.999 * errors[0]
    assert group_error(specs, state.cores(share), Ws, metrics) == pytest.approx(errors[-1], rel=1e-9)
    assert state.errors() == pytest.approx(
        [plain_error(m, W - s.dense(c)) for m, W, s, c in zip(metrics, Ws, specs, state.cores(share), strict=True)]
    )


def test_the_shared_core_is_stationary_when_the_sweeps_end():
    """The gradient of the group's error by V, from its definition, vanishes against its size at the start."""
    Ws, metrics = weights(3, (20, 30)), metrics_of("loss", (20, 30), 3)
    specs = group_specs(names(3), (20, 30), (8, 8, 8, 8))
    began = start("in", specs[0].chi, Ws, metrics)

    def slope(state):
        cores = state.cores("in")
        V = cores[0][0].clone().requires_grad_()
        D = [W - spec.dense([V, *mine[1:]]) for W, spec, mine in zip(Ws, specs, cores, strict=True)]
        error = sum((d * (m.damped("G") @ d @ m.damped("C"))).sum() for d, m in zip(D, metrics, strict=True))
        return torch.autograd.grad(error, V)[0].norm().item()

    assert slope(sweep(began, sweeps=200, tolerance=1e-9)[0]) < 2e-3 * slope(began)


@pytest.mark.parametrize("share", ["in", "out"])
def test_with_one_metric_basis_sharing_is_the_svd_of_the_stack(share):
    """Equal moments and one core a member: W_l = B_l V_g stacked is a low-rank matrix, so its SVD is the optimum."""
    Ws = weights(3, (14, 18))
    C = moment(18 if share == "in" else 14, 3)
    if share == "in":
        metrics = [Metric("functional", C)] * 3
        stack = np.concatenate([W.numpy() for W in Ws])
    else:
        metrics = [Metric("loss", C=torch.eye(18, dtype=torch.float64), G=C, damping=0.01)] * 3
        stack = np.concatenate([W.numpy().T for W in Ws]) * math.sqrt(1.01)
    B = np.linalg.cholesky(C.numpy() + 0.01 * np.trace(C.numpy()) / len(C) * np.eye(len(C)))
    sigma = np.linalg.svd(stack @ B, compute_uv=False)
    specs = group_specs(names(3), (14, 18), 6, share)
    cores = fit_group(specs, Ws, metrics)
    assert group_error(specs, cores, Ws, metrics) == pytest.approx((sigma[6:] ** 2).sum(), rel=1e-9)


def test_the_start_is_within_the_bounds_of_the_hierarchical_svd():
    """error ≤ Σ_e discarded weight at edge e, and each of those is ≤ the best error, so ≤ edges × best."""
    Ws = weights(3, (14, 18))
    T = np.stack([W.numpy() for W in Ws])
    for share, chi in (("both", (5, 6)), ("all", (5, 6, 2)), ("in", (6, 3, 2, 3))):
        tails = [
            np.linalg.svd(T.transpose(2, 0, 1).reshape(18, -1), compute_uv=False)[chi[0 if share == "in" else 1] :]
        ]
        if share == "in":
            tails += [np.linalg.svd(W, compute_uv=False)[r:] for W, r in zip(T, chi[1:], strict=True)]
        else:
            tails.append(np.linalg.svd(T.transpose(1, 0, 2).reshape(14, -1), compute_uv=False)[chi[0] :])
        if share == "all":
            tails.append(np.linalg.svd(T.reshape(3, -1), compute_uv=False)[chi[2] :])
        discarded = sum(float((tail**2).sum()) for tail in tails)
        state, errors = sweep(start(share, chi, Ws, [Metric()] * 3), sweeps=60, tolerance=1e-9)
        assert errors[0] <= discarded * (1 + 1e-9)
        assert errors[0] <= len(tails) * errors[-1] * (1 + 1e-9)  # the best is no better than its edges' tails / edges
        assert errors[-1] >= max(float((tail**2).sum()) for tail in tails) * (1 - 1e-9) or share == "in"


@pytest.mark.parametrize(("share", "chi"), [("both", (5, 6)), ("all", (5, 6, 2))])
def test_tucker_is_as_good_as_tensorlys(share, chi):
    tensorly = pytest.importorskip("tensorly")
    from tensorly.decomposition import partial_tucker, tucker

    Ws = weights(4, (14, 18), seed=3)
    T = np.stack([W.numpy() for W in Ws])
    if share == "both":
        (core, factors), _ = partial_tucker(T, rank=list(chi), modes=[1, 2], n_iter_max=500, tol=1e-10)
        theirs = tensorly.tenalg.multi_mode_dot(core, factors, modes=[1, 2])
    else:
        theirs = tensorly.tucker_to_tensor(tucker(T, rank=[chi[2], chi[0], chi[1]], n_iter_max=500, tol=1e-10))
    _, errors = sweep(start(share, chi, Ws, [Metric()] * 4), sweeps=300, tolerance=1e-8)
    assert errors[-1] <= ((T - theirs) ** 2).sum() * (1 + 5e-3)


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize(
    ("share", "chi"), [("in", (9, 2, 5, 3)), ("out", (9, 2, 5, 3)), ("both", (4, 5)), ("all", (4, 5, 2))]
)
def test_a_planted_tree_is_found_again_to_the_noise(which, share, chi):
    specs = group_specs(names(3), (24, 26), chi, share)
    cores = [spec.random_cores(seed=at, dtype=torch.float64) for at, spec in enumerate(specs)]
    planted = [
        spec.dense([*cores[0][: spec.shared], *mine[spec.shared :]]) for spec, mine in zip(specs, cores, strict=True)
    ]
    planted = [W / W.norm() for W in planted]
    noisy = [W + 1e-6 * random(24, 26, seed=90 + k) / math.sqrt(24 * 26) for k, W in enumerate(planted)]
    found = fit_group(specs, noisy, metrics_of(which, (24, 26), 3))
    for spec, mine, W in zip(specs, found, planted, strict=True):
        assert (spec.dense(mine) - W).norm().item() < 5e-6


@pytest.mark.parametrize("which", METRICS)
def test_a_tree_of_one_weight_is_lowrank(which):
    W, metric = random(20, 33), metrics_of(which, (20, 33), 1)[0]
    for share in ("in", "out"):
        spec, lowrank = Tree.for_shape(20, 33, 7, share=share), LowRank.for_shape(20, 33, 7)
        assert spec.parameters == lowrank.parameters
        one, other = spec.dense(spec.decompose(W, metric)), lowrank.dense(lowrank.decompose(W, metric))
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_bonds_have_even_ends():
    Ws, metrics = weights(3, (20, 30)), metrics_of("loss", (20, 30), 3)
    _, U, C = fit_group(group_specs(names(3), (20, 30), (8, 3, 3, 3)), Ws, metrics)[1]
    assert U.norm(dim=0).numpy() == pytest.approx(C.norm(dim=1).numpy(), rel=1e-6)
    for share, axis in (("in", 1), ("out", 0)):
        cores = fit_group(group_specs(names(3), (20, 30), 8, share), Ws, metrics)
        own = torch.stack([mine[1].norm(dim=1 - axis) for mine in cores]).mean(0)
        assert cores[0][0].norm(dim=axis).numpy() == pytest.approx(own.numpy(), rel=1e-6)


@pytest.mark.parametrize(
    ("share", "chi"), [("in", (8, 3, 8)), ("out", (8, 3, 8)), ("both", (8, 7)), ("all", (8, 7, 2))]
)
def test_members_are_layers_like_any_other(share, chi):
    specs = group_specs(names(2), (24, 36), chi, share)
    Ws = [W.bfloat16() for W in weights(2, (24, 36))]
    for spec, cores in zip(specs, fit_group(specs, Ws, [Metric()] * 2), strict=True):
        layer = TensorNetworkLinear(spec)
        layer.set_cores(cores)
        x = random(5, 36).float()
        torch.compiler.reset()
        y = torch.compile(layer, backend="eager", fullgraph=True)(x)
        torch.testing.assert_close(y, x @ spec.dense(cores).float().T, atol=1e-4, rtol=1e-4)
        y.square().sum().backward()
        assert all(core.grad.abs().sum() > 0 for core in layer.cores)


@pytest.mark.parametrize(
    ("share", "chi"), [("in", (40, 9, 40)), ("out", (40, 9, 40)), ("both", (20, 30)), ("all", (20, 30, 2))]
)
def test_random_members_keep_the_variance(share, chi):
    for spec in group_specs(names(2), (96, 120), chi, share):
        x = random(200, 120).float()
        spread = [spec.apply(x, spec.random_cores(seed)).var().item() for seed in range(20)]
        assert np.mean(spread) == pytest.approx(1, abs=0.3)


# A group's curve.


@pytest.mark.parametrize("which", METRICS)
def test_it_beats_lowrank_at_equal_parameters_on_weights_made_to_share_a_basis(which):
    shape, layers = (32, 48), 4
    Ws, metrics = made_to_share(layers, shape, 12, noise=0.02), metrics_of(which, shape, layers)
    curve = group_curve(names(layers), Ws, metrics, levels=[1200, 2200])
    squares = np.sort(
        np.concatenate(
            [np.linalg.svd(m.whiten(W).numpy(), compute_uv=False) ** 2 for W, m in zip(Ws, metrics, strict=True)]
        )
    )[::-1]
    # The best ranks over the layers, rounded up; 2,112 numbers hold the planted basis and what the layers make of it.
    lowrank = [squares[math.ceil(size / sum(shape)) :].sum() for size in curve.parameters]
    assert curve.error[0].sum() < 0.9 * lowrank[0] and curve.error[1].sum() < 0.5 * lowrank[1]


def test_a_curves_levels_are_what_the_fit_reaches():
    shape, layers = (16, 24), 3
    Ws, metrics = weights(layers, shape), metrics_of("loss", shape, layers)
    said = []
    curve = group_curve(names(layers), Ws, metrics, progress=lambda *a, **k: said.append(a[0]))
    assert np.all(np.diff(curve.parameters) > 0) and np.all(np.diff(curve.error.sum(axis=1)) <= 0)
    assert curve.parameters[-1] < layers * 16 * 24 and set(said) == {"levels"}
    assert curve.total == pytest.approx([plain_error(m, W) for m, W in zip(metrics, Ws, strict=True)])
    for specs, size, errors in zip(curve.specs, curve.parameters, curve.error, strict=True):
        assert sum(spec.parameters for spec in specs) == size
        reached = group_error(specs, fit_group(specs, Ws, metrics), Ws, metrics)
        assert reached == pytest.approx(errors.sum(), rel=0.05)


def test_the_curve_of_a_group_of_one_is_lowranks():
    W, (metric,) = random(20, 33), metrics_of("loss", (20, 33), 1)
    lowrank = LowRank.curve(W, metric)
    for levels in (None, [200, 400]):
        curve = group_curve(["model.layers.0.mlp.down_proj"], [W], [metric], levels=levels)
        assert curve.total == pytest.approx([lowrank.total])
        for (spec,), size, (error,) in zip(curve.specs, curve.parameters, curve.error, strict=True):
            assert spec.parameters == size < 20 * 33 and spec.members == () and spec.share == "out"
            assert error == pytest.approx(lowrank.at(spec.chi[0]), rel=1e-9)
            assert plain_error(metric, W - spec.dense(spec.fit(W, metric))) == pytest.approx(error, rel=1e-6)
    assert list(curve.parameters) == [3 * 53, 7 * 53]
    with pytest.raises(InputError, match="too small"):
        group_curve(["model.layers.0.mlp.down_proj"], [W], [metric], levels=[50])


def test_levels_too_small_and_sides_without_a_curve_are_refused():
    Ws, metrics = weights(2, (8, 12)), [Metric()] * 2
    assert len(group_curve(names(2), Ws, metrics, levels=[10, 100]).specs) == 1
    with pytest.raises(InputError, match="too small for a group of 2"):
        group_curve(names(2), Ws, metrics, levels=[10])
    with pytest.raises(InputError, match="'share' is 'both'"):
        group_curve(names(2), Ws, metrics, share="both")


def test_two_site_steps_lower_the_error_within_the_size():
    shape, layers, budget = (16, 24), 3, 500
    Ws, metrics = weights(layers, shape), metrics_of("functional", shape, layers)
    state = start("in", (4, 4, 4, 4), Ws, metrics)
    settled = settle(state, [2, 4, 8, 12, 16, 20, 24], budget)
    chi = (len(settled.V), *settled.ranks)
    assert sum(spec.parameters for spec in group_specs(names(layers), shape, chi)) <= budget
    assert chi[0] > 4 and sum(settled.errors()) < 0.9 * sum(state.errors())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(10, 400), st.integers(0, 99))
def test_ranks_by_price_fit_and_are_near_the_best_there_are(own, chi, budget, seed):
    rng = np.random.default_rng(seed)
    squares = [np.sort(rng.exponential(size=min(own, chi)) ** 3)[::-1] for _ in range(3)]

    def cost(rank):
        return min(rank * (own + chi), own * chi)

    best = -1.0
    options = range(1, min(own, chi) + 1)
    for ranks in ((a, b, c) for a in options for b in options for c in options):
        if sum(map(cost, ranks)) <= budget:
            kept = sum(s.sum() if cost(r) == own * chi else s[:r].sum() for s, r in zip(squares, ranks, strict=True))
            best = max(best, kept)
    found = price(squares, [own] * 3, chi, budget)
    if best < 0:
        assert found is None
        return
    ranks, kept = found
    assert sum(map(cost, ranks)) <= budget
    total = sum(s.sum() for s in squares)
    assert kept <= best * (1 + 1e-12)
    largest = max(s.sum() - s[0] for s in squares)  # greedy by price misses at most one step, and a jump is one step
    assert total - kept <= total - best + largest + 1e-12


# Groups by name.


def weight(layer, role, shape=(8, 8), expert=None, dtype="bfloat16", compressible=True):
    middle = "" if expert is None else f"experts.{expert}."
    name = f"model.layers.{layer}.{middle}{role}"
    return Weight(name, name + ".weight", layer, role, shape, dtype, False, expert, None, compressible)


def test_groups_are_runs_of_one_role_and_shape():
    found = group_names([weight(layer, role) for layer in range(3) for role in ("q", "o", "gate")])
    assert found == [
        [f"model.layers.{k}.q" for k in range(3)],
        ["model.layers.0.o"],
        [f"model.layers.{k}.gate" for k in range(3)],
        ["model.layers.1.o"],
        ["model.layers.2.o"],
    ]


def test_gaps_shapes_and_routers_part_a_group():
    row = [
        weight(0, "q"),
        weight(1, "q"),
        weight(3, "q"),
        weight(4, "q", (8, 16)),
        weight(5, "q", (8, 16)),
        weight(5, "router", compressible=False),
    ]
    assert [[name.split(".")[2] for name in group] for group in group_names(row)] == [["0", "1"], ["3"], ["4", "5"]]
    long = group_names([weight(k, "k") for k in range(14)])
    assert [len(group) for group in long] == [6, 6, 2] and len({name for group in long for name in group}) == 14


def test_experts_share_with_the_same_number_alone():
    row = [weight(layer, "up", expert=expert) for layer in range(2) for expert in range(3)]
    assert group_names(row) == [[f"model.layers.{k}.experts.{e}.up" for k in range(2)] for e in range(3)]


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("model.layers.0.self_attn.q_proj", "in"),
        ("model.layers.0.mlp.down_proj", "out"),
        ("transformer.h.3.attn.c_attn", "in"),
        ("transformer.h.3.mlp.c_proj", "out"),
        ("model.layers.2.self_attn.o_proj", "out"),
        ("model.layers.2.mlp.shared_expert.down_proj", "out"),
    ],
)
def test_the_side_on_the_residual_stream_is_shared(name, side):
    assert side_of(name) == side


# Edges.


@pytest.mark.parametrize(
    ("share", "chi"), [("in", (9, 2, 9, 3)), ("out", (9, 2, 9, 3)), ("both", (6, 7)), ("all", (6, 7, 2))]
)
def test_edge_spectra_are_those_of_the_dense_tensor(share, chi):
    Ws = weights(3, (14, 16))
    specs = group_specs(names(3), (14, 16), chi, share)
    cores = fit_group(specs, Ws, [Metric()] * 3)
    T = np.stack([spec.dense(mine).numpy() for spec, mine in zip(specs, cores, strict=True)])
    expected = {
        "in": [T.transpose(2, 0, 1).reshape(16, -1)],
        "out": [T.transpose(1, 0, 2).reshape(14, -1)],
        "layer": [T.reshape(3, -1)],
        "own": list(T),
    }
    found = edge_spectra(specs, cores)
    assert found.keys() == expected.keys()
    for edge, matrices in expected.items():
        for sigma, matrix in zip(found[edge], matrices, strict=True):
            full = np.linalg.svd(matrix, compute_uv=False)
            assert sigma == pytest.approx(full[: len(sigma)], rel=1e-6, abs=1e-6 * full[0])
            assert full[len(sigma) :] == pytest.approx(0, abs=1e-6 * full[0])
    assert len(found["out" if share == "out" else "in"][0]) <= chi[0 if share != "both" and share != "all" else 1]


def test_group_profile_tells_weights_that_share_from_those_that_do_not():
    shape = (24, 32)
    alike, strange = made_to_share(4, shape, 8, noise=0.01), weights(4, shape)
    shared = {row["edge"]: row for row in group_profile(names(4), alike, [Metric()] * 4)}
    apart = {row["edge"]: row for row in group_profile(names(4), strange, [Metric()] * 4)}
    assert shared["in"]["entropy"] < shared["in"]["null"] - 1 and shared["in"]["members"] == names(4)
    assert apart["in"]["entropy"] == pytest.approx(apart["in"]["null"], abs=0.02)
    for row in (shared["layer"], apart["layer"]):  # no layer is like another, element by element
        assert row["entropy"] == pytest.approx(math.log(4), abs=0.05)


@pytest.mark.parametrize("which", METRICS)
def test_group_profile_is_the_entropy_of_the_whitened_cuts(which):
    shape, Ws = (10, 12), weights(3, (10, 12))
    metrics = metrics_of(which, shape, 3)
    rows = group_profile(names(3), Ws, metrics)
    assert [row["edge"] for row in rows] == ["in", "out", "layer", "own", "own", "own"]
    own = [row for row in rows if row["edge"] == "own"]
    for row, name, W, metric in zip(own, names(3), Ws, metrics, strict=True):
        sigma = np.linalg.svd(metric.whiten(W).numpy(), compute_uv=False)
        assert row["entropy"] == pytest.approx(entropy(sigma), rel=1e-6) and row["members"] == [name]

    def damped(side):
        size = shape[side == "C"]
        given = [getattr(m, side) for m in metrics]
        return [np.eye(size) if M is None else M.numpy() + 0.01 * np.trace(M) / size * np.eye(size) for M in given]

    F = np.linalg.cholesky(sum(damped("C")) / 3)
    stack = np.concatenate([np.linalg.cholesky(G).T @ W.numpy() @ F for G, W in zip(damped("G"), Ws, strict=True)])
    assert rows[0]["entropy"] == pytest.approx(entropy(np.linalg.svd(stack, compute_uv=False)), rel=1e-6)
