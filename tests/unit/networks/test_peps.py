"""`peps`: its lattice, contraction, fit, norm and renormalization, against NumPy, quimb and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Metric, spec_from_json
from karipap_core.networks.contraction import contract, order, touch
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import to_sites
from karipap_core.networks.peps.fit import cut_start, fit, snake_start, sweep
from karipap_core.networks.peps.lattice import lattice, site_bonds, snake, snake_bonds
from karipap_core.networks.peps.network import Peps, apply_order, site_legs
from karipap_core.networks.peps.renormalize import bond_profile, cut_bond, norm, renormalize
from tests.helpers.contractions import walked
from tests.helpers.metrics import metric_of, random

METRICS = ["weight", "functional", "loss"]
GRIDS = [(1, 1), (1, 3), (2, 2), (2, 3), (3, 1), (3, 3)]
shapes = st.tuples(st.integers(1, 30), st.integers(1, 30))


def square(W):
    return W.square().sum().item()


# The lattice.


def test_bonds_are_in_the_stated_order():
    ring = [(bond.direction, bond.site, bond.other) for bond in lattice(2, 2)]
    assert ring == [("horizontal", 0, 1), ("horizontal", 2, 3), ("vertical", 0, 2), ("vertical", 1, 3)]
    assert lattice(2, 2, True) == lattice(2, 2)  # neighbours already
    assert [(bond.site, bond.other) for bond in lattice(1, 3, True)] == [(0, 1), (1, 2), (2, 0)]
    assert len(lattice(3, 3)) == 12 and len(lattice(3, 3, True)) == 18 and len(lattice(2, 2, tied=True)) == 8
    assert snake(2, 3) == [0, 1, 2, 5, 4, 3]
    assert [lattice(2, 3)[b][1::2][:2] for b in snake_bonds((2, 3), lattice(2, 3)).values()] == [
        (0, 1),
        (1, 2),
        (2, 5),
        (4, 5),
        (3, 4),
    ]


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(1, 40), st.sampled_from(GRIDS), st.booleans())
def test_sizes_of_any_shape(shape, chi, grid, periodic):
    spec = Peps.for_shape(*shape, chi, grid=grid, periodic=periodic)
    assert (spec.n_out, spec.n_in, spec.grid) == (*shape, grid)
    assert spec.parameters == sum(math.prod(core) for core in spec.core_shapes)
    assert spec_from_json(spec.to_json()) == spec and spec.with_chi(chi) == spec
    assert Peps.for_shape(*shape, spec.max_chi, grid=grid, periodic=periodic) == spec.with_chi(10**9)
    more = spec.with_chi(chi + 1)
    assert all(a <= b <= chi + 1 for a, b in zip(spec.chi, more.chi, strict=True))
    for core in spec.core_shapes:  # no bond is wider than the rest of its core
        assert all(core[leg] ** 2 <= math.prod(core) for leg in range(4))


def test_default_factorizations_are_stated():
    assert "4·1024·1·1 × 1·1·4·2752" in Peps.for_shape(4096, 11008, 60).describe()
    assert Peps.for_shape(11, 104723, 3).out == (1, 11, 1, 1) and Peps.for_shape(9, 6, 3).in_ == (1, 1, 2, 3)
    nine = Peps.for_shape(256, 256, 4, grid=(3, 3))
    assert nine.out[4] == nine.in_[4] == 1 and nine.out == (2, 2, 2, 2, 1, 2, 2, 2, 2)
    assert nine.chi == (4,) * 12


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"out": [4, 4, 1]}, "'out' has 3 factors: a grid of 2 × 2 has 4"),
        ({"chi": [2, 2]}, "'chi' has 2 bonds: this grid has 4"),
        ({"grid": [2]}, "'grid'"),
        ({"grid": [2, 0]}, "'grid'"),
        ({"periodic": 1}, "'periodic'"),
        ({"tied": True, "chi": [2, 2]}, "'tied' needs the same factors"),
    ],
)
def test_wrong_entries_are_refused(change, said):
    entry = {"network": "peps", "out": [4, 4, 1, 1], "in": [1, 1, 4, 4], "chi": [3, 3, 3, 3]}
    assert spec_from_json(entry).grid == (2, 2)
    with pytest.raises(InputError, match=said):
        spec_from_json(entry | change)


def test_a_factorization_of_another_weight_is_refused():
    with pytest.raises(InputError, match=r"'out' is \[4, 4, 2, 1\].*16"):
        Peps.for_shape(16, 16, 3, out=(4, 4, 2, 1))
    with pytest.raises(InputError, match="'in' has 2 factors"):
        Peps.for_shape(16, 16, 3, in_=(4, 4))
    with pytest.raises(InputError, match="'tied' needs equal factors: 16 × 15"):
        Peps.for_shape(16, 15, 3, tied=True)


# The contraction.


def test_dense_is_the_sum_by_hand():
    spec = Peps.for_shape(24, 30, 3, out=(3, 2, 2, 2), in_=(1, 5, 3, 2))
    cores = spec.random_cores(0, torch.float64)
    nw, ne, sw, se = (core.numpy() for core in cores)  # up, down, left, right, o, i
    by_hand = np.einsum("zatmei,ybmufj,apqrgk,bsrvhl->efghijkl", nw, ne, sw, se)
    assert spec.dense(cores).numpy() == pytest.approx(by_hand.reshape(24, 30), rel=1e-12)


@pytest.mark.parametrize(
    ("grid", "options"),
    [((2, 3), {}), ((3, 3), {"periodic": True}), ((2, 2), {"tied": True}), ((3, 1), {"periodic": True})],
)
def test_agrees_with_quimb(grid, options):
    quimb = pytest.importorskip("quimb.tensor", reason="quimb is not installed")
    n = grid[0] * grid[1]
    legs = {"out": (2, 1) * (n // 2) + (2,) * (n % 2), "in_": (1, 2) * (n // 2) + (1,) * (n % 2)}
    legs = {"out": (2,) * n, "in_": (2,) * n} if "tied" in options else legs
    spec = Peps.for_shape(math.prod(legs["out"]), math.prod(legs["in_"]), 2, grid=grid, **legs, **options)
    cores = spec.random_cores(1, torch.float64)
    tensors = []
    for k, core in enumerate(list(cores) * (n if spec.tied else 1)):
        names = [f"edge{k}{leg}" for leg in range(4)]
        for b, bond in enumerate(spec.bonds):
            for site, leg in bond.ends:
                if site == k:
                    names[leg] = f"bond{b}"
        core = core.numpy()
        empty = tuple(leg for leg in range(4) if names[leg].startswith("edge"))
        kept = [name for name in names if not name.startswith("edge")]
        tensors.append(quimb.Tensor(core.squeeze(empty), [*kept, f"o{k}", f"i{k}"]))
    open_legs = [f"{side}{k}" for side in "oi" for k in range(n)]
    wanted = quimb.TensorNetwork(tensors).contract(output_inds=open_legs).data.reshape(spec.n_out, spec.n_in)
    assert spec.dense(cores).numpy() == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.tuples(st.integers(1, 16), st.integers(1, 16)), st.integers(1, 4), st.sampled_from(GRIDS), st.booleans())
def test_apply_is_the_dense_product(shape, chi, grid, periodic):
    spec = Peps.for_shape(*shape, chi, grid=grid, periodic=periodic)
    cores = spec.random_cores(3, torch.float64)
    for batch in ((), (2, 3), (40,), (0,)):
        x = random(*batch, shape[1], seed=5)
        torch.testing.assert_close(spec.apply(x, cores), x @ spec.dense(cores).T)


def test_a_large_lattice_is_contracted_too():
    """25 sites: too many for the exact search, and more labels than the alphabet."""
    spec = Peps.for_shape(2**6, 2**5, 2, grid=(5, 5))
    cores = spec.random_cores(3, torch.float64)
    x = random(3, 2**5)
    torch.testing.assert_close(spec.apply(x, cores), x @ spec.dense(cores).T)


def cheapest(legs, size, output, banned):
    """Least cost over all orders, by brute force over pairs."""

    def least(tensors):
        if len(tensors) == 1:
            return 0
        best = math.inf
        for a, b in itertools.combinations(range(len(tensors)), 2):
            rest = [t for k, t in enumerate(tensors) if k not in (a, b)]
            (one, members), (two, others) = tensors[a], tensors[b]
            if members | others == banned:
                continue
            joined = (one | two) & set(output).union(*(t for t, _ in rest))
            now = math.prod(size[leg] for leg in one | two)
            now += sum(touch(math.prod(size[leg] for leg in part)) for part in (one, two, joined))
            if now < best:
                best = min(best, now + least([*rest, (joined, members | others)]))
        return best

    return least([(set(names), frozenset([k])) for k, names in enumerate(legs)])


@settings(max_examples=15, deadline=None)
@given(shapes, st.integers(1, 6), st.sampled_from([1, 7, 500]))
def test_the_order_is_the_cheapest_and_its_cost_is_what_its_steps_cost(shape, chi, batch):
    spec = Peps.for_shape(*shape, chi)
    x, bonds = 12, spec.bonds
    size = dict(enumerate((*spec.dims, *spec.out, *spec.in_, batch)))
    legs = [(x, *range(len(bonds) + 4, len(bonds) + 8)), *site_legs(spec)]
    found = apply_order(spec, batch)
    assert found.cost == spec.work(batch) == cheapest(legs, size, (x, 4, 5, 6, 7), frozenset([1, 2, 3, 4]))
    tensors = [tuple(size[leg] for leg in names) for names in legs]
    assert walked(found.steps, tensors) == (batch * spec.n_out, spec.multiply_adds(batch), found.cost)


def test_a_chain_of_matrices_is_contracted_from_its_thin_end():
    """(1 × 50)(50 × 50)(50 × 50): from the left 5,000 multiply-adds, from the right 127,500."""
    legs, sizes = ((0, 1), (1, 2), (2, 3)), ((0, 1), (1, 50), (2, 50), (3, 50))
    assert order(legs, sizes, (0, 3)).multiply_adds == 5000
    a, b, c = random(1, 50), random(50, 50, seed=1), random(50, 50, seed=2)
    torch.testing.assert_close(contract([a, b, c], legs, (3, 0)), (a @ b @ c).T)


# The fit.


@settings(max_examples=25, deadline=None)
@given(shapes, st.sampled_from(GRIDS), st.booleans(), st.sampled_from(METRICS))
def test_full_rank_reproduces_the_weight(shape, grid, periodic, which):
    W = random(*shape, seed=sum(shape)).float()
    spec = Peps.for_shape(*shape, 10**9, grid=grid, periodic=periodic)
    if spec.parameters > 10**6:  # nine sites of a large weight: an exact network of millions
        return
    cores = spec.decompose(W, metric_of(which, *shape))
    assert all(core.dtype == torch.float32 for core in cores)
    assert (spec.dense(cores) - W).norm() <= 1e-5 * W.norm()


@pytest.mark.parametrize("shape", [(1, 1), (13, 7), (1, 17), (19, 1), (37, 24), (31, 62)])
def test_primes_and_vectors(shape):
    W, metric = random(*shape), metric_of("loss", *shape)
    spec = Peps.for_shape(*shape, 3)
    assert math.isfinite(metric.error(W, spec.dense(spec.decompose(W, metric))))
    if 1 in shape:
        assert metric.error(W, spec.dense(spec.decompose(W, metric))) < 1e-9  # of rank one


def test_the_snake_is_the_tensor_train_and_the_cuts_are_the_svd():
    W = random(16, 24)
    spec = Peps.for_shape(16, 24, 5, grid=(1, 3))
    # Two cuts of a line are its two bonds: both starts truncate the same tensor there.
    sites = spec.lattice
    sigma = torch.linalg.svdvals(to_sites(W, spec.out, spec.in_).reshape(spec.legs[0], -1))
    one_bond = Peps(spec.out, spec.in_, (5, spec.max_chi), grid=(1, 3))
    for start in (snake_start(one_bond, W), cut_start(one_bond, W)):
        error = square(W - one_bond.dense(one_bond.shaped(start)))
        assert error == pytest.approx(sigma[5:].square().sum().item(), rel=2e-3)
    assert sites.shape(1) == (spec.chi[0], spec.chi[1], spec.legs[1])


@pytest.mark.parametrize("grid", [(2, 2), (2, 3)])
def test_sweeps_never_raise_the_error_and_each_core_is_at_its_least_squares_solution(grid):
    W = random(16, 36)
    spec = Peps.for_shape(16, 36, 3, grid=grid)
    sites, target = spec.lattice, to_sites(W, spec.out, spec.in_)
    cores, errors = snake_start(spec, W, 0.1), []
    for _ in range(12):
        errors.append(square(target - sites.contracted(cores)))
        cores = sweep(sites, cores, target)
    assert all(after <= before * (1 + 1e-12) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
    last = len(cores) - 1  # the one that was solved for last
    columns = []
    for unit in torch.eye(cores[last].numel(), dtype=torch.float64):
        columns.append(sites.contracted([*cores[:last], unit.reshape(cores[last].shape)]).flatten().numpy())
    basis = np.stack(columns, 1)
    solved = basis @ np.linalg.lstsq(basis, target.flatten().numpy(), rcond=None)[0]
    best = ((target.flatten().numpy() - solved) ** 2).sum()
    assert square(target - sites.contracted(cores)) == pytest.approx(best, rel=1e-6)


@pytest.mark.parametrize("which", METRICS)
def test_the_fit_never_raises_its_error_and_ends_below_the_snake(which):
    W, metric = random(24, 24), metric_of(which, 24, 24)
    spec = Peps.for_shape(24, 24, 4)
    cores, errors = fit(spec, W, metric)
    assert all(after < before for before, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(metric.absolute(W - spec.dense(cores)))
    assert errors[-1] < 0.9 * metric.absolute(W - spec.dense(spec.shaped(snake_start(spec, W))))


@pytest.mark.parametrize("which", METRICS)
@pytest.mark.parametrize("grid", [(2, 2), (2, 3)])
def test_error_falls_with_chi(which, grid):
    W, metric = random(24, 20), metric_of(which, 24, 20)
    spec = Peps.for_shape(24, 20, 1, grid=grid)
    errors = [metric.error(W, spec.with_chi(chi).dense(spec.with_chi(chi).decompose(W, metric))) for chi in (1, 2, 4)]
    errors.append(metric.error(W, spec.with_chi(40).dense(spec.with_chi(40).decompose(W, metric))))
    assert all(after < before for before, after in itertools.pairwise(errors))


@pytest.mark.parametrize("which", ["weight", "loss"])
@pytest.mark.parametrize(("grid", "chi"), [((2, 2), 3), ((2, 3), 2)])
def test_recovers_a_planted_network(which, grid, chi):
    n = grid[0] * grid[1]
    out, in_ = ((4, 4, 4, 4), (4, 4, 4, 4)) if n == 4 else ((3, 2, 3, 2, 2, 2), (2, 3, 2, 2, 3, 2))
    spec = Peps.for_shape(math.prod(out), math.prod(in_), chi, out=out, in_=in_, grid=grid)
    clean = spec.dense(spec.random_cores(5, torch.float64))
    noise = random(*clean.shape, seed=9)
    W = clean + 1e-6 * clean.norm() * noise / noise.norm()
    metric = metric_of(which, *clean.shape)
    found = spec.dense(spec.fit(W, metric))
    relative = math.sqrt(metric.error(W, found))
    level = math.sqrt(metric.absolute(W - clean) / metric.absolute(W))
    assert relative <= 1.05 * level
    below = spec.with_chi(chi - 1)
    assert metric.error(W, below.dense(below.fit(W, metric))) > 1e-4


def test_a_ring_keeps_more_of_a_gaussian_than_the_svd():
    W = random(384, 384)
    spec = Peps.for_shape(384, 384, 22, out=(6, 4, 4, 4), in_=(4, 4, 4, 6))
    assert spec.parameters <= 0.276 * W.numel()
    kept = 1 - square(W - spec.dense(spec.fit(W, Metric()))) / square(W)
    svd = LowRank.curve(W)
    rank = int(0.276 * W.numel() / 768)
    assert kept >= 0.49 and 1 - svd.at(rank) / svd.total < 0.45


def test_progress_is_told_and_may_cancel():
    class Stop(Exception):
        pass

    told = []

    def progress(stage, done, total, item="", message=""):
        told.append(stage)
        if stage == "refine":
            raise Stop

    with pytest.raises(Stop):
        Peps.for_shape(24, 24, 3).decompose(random(24, 24), metric_of("loss", 24, 24), progress)
    assert told[0] == "sweeps" and told[-1] == "refine"


@pytest.mark.parametrize("W", [torch.zeros(12, 12), torch.ones(12, 12)])
@pytest.mark.parametrize("which", METRICS)
def test_rank_deficient_weights(W, which):
    spec = Peps.for_shape(12, 12, 3)
    cores = spec.decompose(W, metric_of(which, 12, 12))
    torch.testing.assert_close(spec.dense(cores), W, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("which", ["weight", "loss"])
def test_the_curve_tells_what_decompose_reaches(which):
    W, metric = random(48, 64), metric_of(which, 48, 64)
    curve = Peps.curve(W, metric)
    spec = Peps.for_shape(48, 64, 1)
    assert not curve.exact and curve.chi[-1] == spec.break_even_chi and len(curve.chi) <= 6
    assert list(curve.parameters) == [spec.with_chi(int(chi)).parameters for chi in curve.chi]
    for chi in curve.chi[2:5]:
        at = spec.with_chi(int(chi))
        reached = metric.absolute(W - at.dense(at.decompose(W, metric)))
        assert 0.7 < curve.at(chi) / reached < 1.7


# One core everywhere.


def test_a_tied_lattice_repeats_its_core_and_finds_a_planted_one():
    spec = Peps.for_shape(16, 81, 2, tied=True)
    assert spec.core_shapes == [(2, 2, 2, 2, 2, 3)] and spec.parameters == 96 and spec_from_json(spec.to_json()) == spec
    planted = spec.random_cores(3, torch.float64)
    W = spec.dense(planted)
    shifted = to_sites(W, spec.out, spec.in_).permute(1, 0, 3, 2)
    torch.testing.assert_close(shifted, to_sites(W, spec.out, spec.in_))  # the lattice moved one site on
    x = random(5, 81)
    torch.testing.assert_close(spec.apply(x, planted), x @ W.T)
    assert Metric().error(W, spec.dense(spec.fit(W, Metric()))) < 0.05
    free = Peps.for_shape(16, 81, 4, out=spec.out, in_=spec.in_)
    V = random(16, 81)  # nothing about it is the same on every site
    tied, untied = (Metric().error(V, at.dense(at.fit(V, Metric()))) for at in (spec, free))
    assert tied > 1.5 * untied


# The norm.


@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((1, 1), {}),
        ((1, 3), {}),
        ((2, 2), {}),
        ((2, 3), {}),
        ((3, 3), {}),
        ((3, 3), {"periodic": True}),
        ((2, 2), {"tied": True}),
        ((4, 4), {}),
    ],
)
def test_norms_are_that_of_the_dense_weight(grid, options):
    n = grid[0] * grid[1]
    side = 2 ** min(n, 8)
    factors = {"out": (2,) * n, "in_": (2,) * n} if n <= 8 else {}
    spec = Peps.for_shape(side, side, 2, grid=grid, **options, **factors)
    cores = spec.random_cores(2, torch.float64)
    wanted = square(spec.dense(cores))
    assert norm(spec, cores) == pytest.approx(wanted, rel=1e-10)
    for method in ("trg", "hotrg"):  # with bonds that nothing is cut from
        assert norm(spec, cores, method, chi=16) == pytest.approx(wanted, rel=1e-8)


def test_the_error_of_a_renormalized_norm_falls_with_chi():
    spec = Peps.for_shape(256, 256, 2, grid=(4, 4), periodic=True)
    cores = spec.random_cores(0, torch.float64)
    exact = norm(spec, cores)
    for method, bound in (("trg", 1e-6), ("hotrg", 1e-6)):
        errors = [abs(norm(spec, cores, method, chi=chi) / exact - 1) for chi in (4, 16)]
        assert errors[1] < bound and errors[1] < errors[0]
    with pytest.raises(InputError, match="method: 'ctm'"):
        norm(spec, cores, "ctm")


# Renormalization.


@pytest.mark.parametrize(("grid", "bond"), [((2, 2), 0), ((2, 3), 1), ((3, 3), 4)])
def test_a_cut_bond_discards_what_it_says_and_little(grid, bond):
    W = random(36, 36)
    spec = Peps.for_shape(36, 36, 3, grid=grid)
    cores = spec.fit(W, Metric())
    whole = spec.dense(cores)
    smaller, cut, lost = cut_bond(spec, cores, bond, 2)
    assert smaller.chi == tuple(2 if b == bond else chi for b, chi in enumerate(spec.chi))
    assert square(whole - smaller.dense(cut)) / square(whole) == pytest.approx(lost, rel=1e-6)
    # No environment: the bond's own SVD. With it at most as much is lost, and no cut of one value can beat it by much.
    same, kept, nothing = cut_bond(spec, cores, bond, 3)
    assert same == spec and nothing < 1e-12
    torch.testing.assert_close(same.dense(kept), whole)
    blind = _blind_cut(spec, cores, bond, 2)
    assert lost <= square(whole - smaller.dense(blind)) / square(whole) * (1 + 1e-9)


def _blind_cut(spec, cores, bond, keep):
    """The bond's SVD after QR of both ends, without an environment."""
    where, five = spec.bonds[bond], [core.clone() for core in cores]
    rs = []
    for site, leg in where.ends:
        last = five[site].movedim(leg, -1)
        q, r = np.linalg.qr(last.reshape(-1, last.shape[-1]).numpy())
        five[site] = torch.from_numpy(q.reshape(*last.shape[:-1], -1))
        rs.append(r)
    u, s, vt = np.linalg.svd(rs[0] @ rs[1].T)
    factors = (u[:, :keep] * s[:keep], vt[:keep].T)
    for (site, leg), factor in zip(where.ends, factors, strict=True):
        five[site] = (five[site] @ torch.from_numpy(np.ascontiguousarray(factor))).movedim(-1, leg)
    return five


def test_a_bond_that_holds_nothing_is_cut_without_loss():
    """Cores with bonds of 2, padded to 3: the environment must find the empty direction, in any gauge."""
    spec = Peps.for_shape(36, 36, 3)
    small = spec.with_chi(2)
    cores = [torch.zeros(shape, dtype=torch.float64) for shape in spec.core_shapes]
    for core, filled in zip(cores, small.random_cores(1, torch.float64), strict=True):
        core[tuple(slice(0, size) for size in filled.shape)] = filled
    mix = random(3, 3, seed=8)
    bond = spec.bonds[2]
    for (site, leg), gauge in zip(bond.ends, (mix, torch.linalg.inv(mix).T), strict=True):
        cores[site] = torch.tensordot(cores[site], gauge, ([leg], [0])).movedim(-1, leg)
    assert cut_bond(spec, cores, 2, 2)[2] < 1e-10 and cut_bond(spec, cores, 2, 1)[2] > 1e-3


def test_sixteen_sites_take_their_environment_from_the_renormalized_norm():
    W = random(64, 64)
    spec = Peps.for_shape(64, 64, 2, grid=(4, 4))
    cores = spec.random_cores(5, torch.float64)
    whole = spec.dense(cores)
    smaller, cut, lost = cut_bond(spec, cores, 9, 1)
    assert square(whole - smaller.dense(cut)) / square(whole) == pytest.approx(lost) and lost < 1
    assert lost <= square(whole - smaller.dense(_blind_cut(spec, cores, 9, 1))) / square(whole) * 1.05
    assert W.shape == whole.shape


@pytest.mark.parametrize("which", ["weight", "loss"])
def test_the_flow_goes_down_to_the_budget_and_tells_of_every_step(which):
    W, metric = random(36, 36), metric_of(which, 36, 36)
    spec = Peps.for_shape(36, 36, 7)
    cores = spec.fit(W, metric)
    budget = 450
    smaller, found, flow = renormalize(spec, cores, W, metric, budget=budget)
    assert smaller.parameters <= budget and [tuple(core.shape) for core in found] == smaller.core_shapes
    assert flow[0]["bond"] is None and [row["step"] for row in flow] == list(range(len(flow)))
    kept = [row["kept"] for row in flow]
    assert all(after < before for before, after in itertools.pairwise(kept))
    assert kept[-2] * W.numel() > budget >= kept[-1] * W.numel() and kept[-1] == smaller.parameters / W.numel()
    assert all(0 <= row["discarded"] < 1 and row["D"] >= 1 for row in flow[1:])
    assert flow[-1]["error"] == pytest.approx(metric.error(W, smaller.dense(found))) and flow[-1]["error"] < 1
    assert flow[0]["error"] < flow[-1]["error"]
    again, _, longer = renormalize(spec, cores, W, metric, schedule=[5, 3])
    assert max(again.chi) <= 3 and {row["D"] for row in longer[1:]} <= {5, 3}


def test_settling_after_a_cut_never_raises_the_error():
    W = random(36, 36)
    spec = Peps.for_shape(36, 36, 6)
    cores = spec.fit(W, Metric())
    errors = [renormalize(spec, cores, W, schedule=[5], sweeps=sweeps)[2][-1]["error"] for sweeps in (0, 1, 3)]
    assert errors[2] <= errors[1] < errors[0]


def test_goals_that_make_no_sense_are_refused():
    W, spec = random(16, 16), Peps.for_shape(16, 16, 3)
    cores = spec.random_cores(0, torch.float64)
    with pytest.raises(InputError, match="schedule .* or a budget"):
        renormalize(spec, cores, W)
    with pytest.raises(InputError, match="budget: 3 parameters"):
        renormalize(spec, cores, W, budget=3)
    tied = Peps.for_shape(16, 16, 2, tied=True)
    with pytest.raises(InputError, match="'tied'"):
        renormalize(tied, tied.random_cores(0), W, budget=30)
    same, _, flow = renormalize(spec, cores, W, budget=10**6)
    assert same == spec and len(flow) == 1


# The lattice's cuts.


def test_entropies_of_the_cuts_are_those_of_the_unfoldings():
    W = random(36, 36)
    spec = Peps.for_shape(36, 36, 2, grid=(2, 3))
    rows = bond_profile(W, spec)
    assert [row["bond"] for row in rows] == list(range(7))
    tensor = to_sites(W, spec.out, spec.in_).numpy()
    for row in rows:
        near, far = row["cut"]
        assert sorted(near + far) == list(range(6))
        bond = spec.bonds[row["bond"]]
        assert row["direction"] == bond.direction and bond.site in near and bond.other in far
        unfolded = tensor.transpose(near + far).reshape(math.prod(spec.legs[k] for k in near), -1)
        p = np.linalg.svd(unfolded, compute_uv=False) ** 2
        p = p[p > 0] / p.sum()
        assert row["entropy"] == pytest.approx(-(p * np.log(p)).sum(), abs=1e-8)
        assert abs(row["entropy"] - row["null"]) < 0.1  # a Gaussian has no structure


def test_a_product_in_one_direction_has_no_entropy_there():
    """W = U ⊗ V over left and right: nothing across the vertical line, something across the horizontal one."""
    spec = Peps.for_shape(36, 36, 2, out=(3, 3, 2, 2), in_=(3, 3, 2, 2))
    left, right = random(9, 4), random(9, 4, seed=1)
    tensor = torch.einsum("ac,bd->abcd", left, right)
    W = tensor.reshape(3, 3, 3, 3, 2, 2, 2, 2).permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(36, 36)
    rows = bond_profile(W, spec)
    assert [row["entropy"] > 0.1 for row in rows] == [False, False, True, True]
    wrapped = bond_profile(W, Peps.for_shape(36, 36, 2, grid=(1, 3), periodic=True))
    assert wrapped[2]["cut"] == wrapped[0]["cut"]
    assert [len(site_bonds(lattice(1, 3, True), k)) for k in range(3)] == [2, 2, 2]
