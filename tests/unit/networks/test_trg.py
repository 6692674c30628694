"""TRG and HOTRG against exact contraction: our own transfer matrices, quimb, and lattices whose number is known."""

import functools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import Cancelled, InputError
from karipap_core.networks.peps import trg
from karipap_core.networks.peps.trg import METHODS, contract, rounds

both = pytest.mark.parametrize("method", METHODS)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lattice(rows: int, cols: int, seed: int = 0, sizes=(2,)) -> list[list[torch.Tensor]]:
    """Random tensors without any symmetry, each bond with a size of its own out of `sizes`."""
    draw = random.Random(seed)
    up, left = ([[draw.choice(sizes) for _ in range(cols)] for _ in range(rows)] for _ in range(2))
    return [
        [
            randn(up[r][c], up[(r + 1) % rows][c], left[r][c], left[r][(c + 1) % cols], seed=seed + 97 * r + c)
            for c in range(cols)
        ]
        for r in range(rows)
    ]


def exact(grid) -> float:
    """Z by transfer matrices from row to row, of size 2^columns and more: nothing is shared with the engine."""
    rows: dict = {}
    for row in grid:
        if (key := tuple(map(id, row))) not in rows:
            strip = row[0]
            for t in row[1:]:
                strip = torch.einsum("UDak,udkb->UuDdab", strip, t).flatten(2, 3).flatten(0, 1)
            rows[key] = torch.einsum("UDaa->UD", strip)
    return functools.reduce(torch.matmul, (rows[tuple(map(id, row))] for row in grid)).trace().item()


def turned(grid):
    return [[t.permute(2, 3, 0, 1) for t in column] for column in zip(*grid, strict=True)]


def value(found: trg.Contraction) -> float:
    return found.sign * math.exp(found.ln_z)


# ---- exact where nothing is cut -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("rows, cols", [(1, 1), (1, 4), (2, 1), (2, 2), (4, 2), (4, 4), (8, 4)])
def test_small_lattices_of_tensors_without_symmetry_are_exact(method, rows, cols):
    grid = lattice(rows, cols, seed=rows + cols, sizes=(1, 2, 3))
    found = contract(grid, 81, method=method)
    assert value(found) == pytest.approx(exact(grid), rel=1e-10)
    assert found.sites == rows * cols and found.discarded_weight < 1e-25


@both
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.sampled_from([2, 4]), cols=st.sampled_from([2, 4]))
def test_exact_on_any_shapes_and_blind_to_turning_the_lattice(method, seed, rows, cols):
    grid = lattice(rows, cols, seed, sizes=(1, 2))
    known = exact(grid)
    size = math.exp(sum(math.log(t.norm()) for row in grid for t in row))  # Z may be near 0 by cancellation
    assert value(contract(grid, 16, method=method)) == pytest.approx(known, rel=1e-10, abs=1e-12 * size)
    assert value(contract(turned(grid), 16, method=method)) == pytest.approx(known, rel=1e-10, abs=1e-12 * size)


@both
def test_against_quimb(method):
    import quimb.tensor as quimb

    grid = lattice(4, 4, seed=3, sizes=(2, 3))
    tensors = [
        quimb.Tensor(t.numpy(), (f"v{r}{c}", f"v{(r + 1) % 4}{c}", f"h{r}{c}", f"h{r}{(c + 1) % 4}"))
        for r, row in enumerate(grid)
        for c, t in enumerate(row)
    ]
    known = quimb.TensorNetwork(tensors).contract(all, optimize="greedy")
    assert value(contract(grid, 81, method=method)) == pytest.approx(known, rel=1e-10)


@both
@pytest.mark.parametrize("height, width", [(1, 1), (2, 2), (1, 2), (4, 2)])
def test_a_repeated_cell_is_the_lattice_written_out(method, height, width):
    cell = lattice(height, width, seed=5)
    written_out = [[cell[r % height][c % width] for c in range(8)] for r in range(8)]
    found = contract(cell, 16, 8, 8, method)
    assert value(found) == pytest.approx(exact(written_out), rel=1e-9)
    copies = [[t.clone() for t in row] for row in written_out]  # 64 tensors of their own
    assert contract(copies, 16, method=method).ln_z == pytest.approx(found.ln_z, rel=1e-12)


@both
def test_bonds_wider_than_their_rank_cost_nothing(method):
    """A lattice of bond 2 hidden in bonds of 4 by random gauges is exact at the χ of bond 2."""
    grid = lattice(4, 4, seed=11)
    up, left = ([[randn(4, 2, seed=50 + 16 * k + 4 * r + c) for c in range(4)] for r in range(4)] for k in range(2))
    wide = [
        [
            torch.einsum(
                "udlr,Uu,dD,Ll,rR->UDLR",
                t,
                up[r][c],
                torch.linalg.pinv(up[(r + 1) % 4][c]),
                left[r][c],
                torch.linalg.pinv(left[r][(c + 1) % 4]),
            )
            for c, t in enumerate(row)
        ]
        for r, row in enumerate(grid)
    ]
    found = contract(wide, 4, method=method)
    assert value(found) == pytest.approx(exact(grid), rel=1e-10)
    assert found.discarded_weight < 1e-20


# ---- lattices whose number is known -------------------------------------------------------------------------------


@both
def test_product_states_are_exact_at_chi_one(method):
    legs = [torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) + 0.1 for k in range(4)]
    tensor = torch.einsum("u,d,l,r->udlr", *legs)
    per_site = math.log((legs[0] @ legs[1]).item() * (legs[2] @ legs[3]).item())
    assert contract(tensor, 1, 2**15, 2**15, method).ln_z_per_site == pytest.approx(per_site, rel=1e-12)


@both
def test_degenerate_singular_values(method):
    """All singular values of these are equal: even parity has 2^(N+1) configurations, equal colours D."""
    bits = torch.arange(2)
    total = bits[:, None, None, None] + bits[:, None, None] + bits[:, None] + bits
    parity = (total % 2 == 0).double()
    found = contract(parity, 2, 2**10, 2**10, method)
    assert found.ln_z == pytest.approx((2**20 + 1) * math.log(2), rel=1e-13)
    equal = torch.zeros(3, 3, 3, 3, dtype=torch.float64)
    equal[range(3), range(3), range(3), range(3)] = 1
    assert contract(equal, 3, 2**10, 2**10, method).ln_z == pytest.approx(math.log(3), rel=1e-6)
    crossing = torch.einsum("ud,lr->udlr", torch.eye(2), torch.eye(2))  # loops of two colours, rows and columns
    assert value(contract(crossing, 16, 4, 8, method)) == pytest.approx(2**12, rel=1e-12)


@both
def test_signs_zeros_and_scales(method):
    grid = lattice(4, 4, seed=2)
    known = contract(grid, 16, method=method)
    grid[1][2] = -grid[1][2]
    assert contract(grid, 16, method=method).sign == -known.sign != 0
    zero = contract(torch.zeros(2, 2, 2, 2), 4, 8, 8, method)
    assert (zero.sign, zero.ln_z) == (0, -math.inf)
    tensor = randn(2, 2, 2, 2, seed=9).abs()
    plain = contract(tensor, 8, 64, 64, method)
    for scale in (1e-200, 1e200):
        found = contract(tensor * scale, 8, 64, 64, method)
        assert found.ln_z_per_site == pytest.approx(plain.ln_z_per_site + math.log(scale), rel=1e-12)
    assert contract(tensor.float(), 8, 64, 64, method).ln_z_per_site == pytest.approx(plain.ln_z_per_site, rel=1e-6)


# ---- truncation ---------------------------------------------------------------------------------------------------


def open_peps(bond: int, physical: int, seed: int) -> list[list[torch.Tensor]]:
    """4 × 4 random PEPS with open boundaries, A[up, down, left, right, physical]; legs across the rim have size 1."""

    def size(first: bool, last: bool):
        return 1 if first else bond, 1 if last else bond

    return [
        [randn(*size(r == 0, r == 3), *size(c == 0, c == 3), physical, seed=seed + 4 * r + c) for c in range(4)]
        for r in range(4)
    ]


def norm_lattice(peps):
    """⟨Ψ|Ψ⟩ as a lattice of double tensors, bonds squared."""
    return [
        [torch.einsum("udlrp,UDLRp->uUdDlLrR", a, a).reshape([n * n for n in a.shape[:4]]) for a in r] for r in peps
    ]


def test_peps_norms_against_quimb_and_better_with_chi():
    import quimb.tensor as quimb

    peps = open_peps(2, 8, seed=21)
    arrays = [[a.permute(0, 3, 1, 2, 4).squeeze().numpy() for a in row] for row in peps]
    network = quimb.PEPS(arrays, shape="drulp")  # quimb counts rows upwards: our up is its down
    known = (network.H & network).contract(all, optimize="greedy")
    double = norm_lattice(peps)
    for method in METHODS:
        assert value(contract(double, 16, method=method)) == pytest.approx(known, rel=1e-11)
        errors = [abs(value(contract(double, chi, method=method)) / known - 1) for chi in (2, 4, 8, 12)]
        assert errors[0] > errors[1] > errors[2] > errors[3]
        assert errors[2] < (0.1 if method == "trg" else 0.01)


def test_hotrg_looks_at_both_sides_of_a_bond():
    """On tensors without mirror symmetry an isometry from one side alone has errors of 1e-3 here at χ = 4."""
    grid = [[randn(2, 2, 2, 2, seed=8 * r + c).abs() for c in range(8)] for r in range(8)]
    known = exact(grid)
    assert abs(value(contract(grid, 4, method="hotrg")) / known - 1) < 1e-4
    assert abs(value(contract(grid, 8, method="hotrg")) / known - 1) < 1e-5
    assert abs(value(contract(grid, 8, method="trg")) / known - 1) < 1e-3


@both
def test_steps_say_what_was_cut(method):
    found = contract(randn(2, 2, 2, 2, seed=1).abs(), 6, 64, 64, method)
    assert [step.tensors for step in found.steps] == [2**k for k in range(11, 1, -1)]
    assert all(step.chi <= 6 and 0 <= step.discarded_weight < 1 for step in found.steps)
    cut = [step.discarded_weight for step in found.steps if step.chi == 6]
    assert max(cut) == found.discarded_weight > 0
    more = contract(randn(2, 2, 2, 2, seed=1).abs(), 12, 64, 64, method)
    assert more.discarded_weight < found.discarded_weight


@both
def test_the_flow_keeps_the_number_in_every_round(method):
    flow = list(rounds(randn(2, 2, 2, 2, seed=1).abs(), 16, 8, 8, method))
    assert [(state.rows, state.cols, len(state.cell)) for state in flow] == [(8, 8, 1), (4, 4, 1), (2, 2, 1)]
    known = exact([[flow[0].cell[0][0]] * 8] * 8) * math.exp(64 * flow[0].ln_norms)
    last = flow[-1]
    assert max(t.abs().max() for row in last.cell for t in row) == 1
    assert exact([[last.cell[0][0]] * 2] * 2) * math.exp(64 * last.ln_norms) == pytest.approx(known, rel=1e-9)


def test_the_solver_may_fail_once(monkeypatch):
    real, failed = torch.linalg.svd, []

    def svd(matrix, **more):
        if len(failed) % 2 == 0:
            failed.append(matrix.shape)
            raise torch.linalg.LinAlgError("did not converge")
        failed.append(None)
        return real(matrix, **more)

    grid = lattice(4, 4, seed=4, sizes=(2, 3))
    monkeypatch.setattr(torch.linalg, "svd", svd)
    assert value(contract(grid, 81, method="trg")) == pytest.approx(exact(grid), rel=1e-10)
    assert failed


@pytest.mark.gpu
@both
def test_the_same_on_cuda(method):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    tensor = randn(2, 2, 2, 2, seed=1).abs()
    here, there = (contract(t, 8, 256, 256, method).ln_z_per_site for t in (tensor, tensor.cuda()))
    assert there == pytest.approx(here, rel=1e-10)


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, says",
    [
        (dict(method="hosvd"), "method: 'hosvd' is not one of trg, hotrg"),
        (dict(chi=0), "chi: 0 is not a whole number of at least 1"),
        (dict(chi=2.5), "chi: 2.5"),
        (dict(rows=6), "rows: 6 for a cell of 1; both must be powers of two"),
        (dict(cols=0), "cols: 0"),
        (dict(cell=[[torch.ones(2, 2, 2, 2)] * 3], cols=6), "cols: 6 for a cell of 3"),
        (dict(cell=[[torch.ones(2, 2, 2, 2)] * 4], cols=2), "cols: 2 for a cell of 4"),
        (dict(cell=[]), "rows of equally many"),
        (dict(cell=[[torch.ones(2, 2, 2, 2)], []]), "rows of equally many"),
        (dict(cell=torch.ones(2, 2, 2)), "entry (0, 0) must be a real tensor of four legs"),
        (dict(cell=torch.ones(2, 2, 2, 2, dtype=torch.complex128)), "entry (0, 0) must be a real tensor"),
        (dict(cell=torch.full((2, 2, 2, 2), math.nan)), "entry (0, 0) has NaN or Inf"),
        (dict(cell=torch.ones(2, 3, 2, 2)), "leg down of entry (0, 0) is 3 wide, its neighbour's is 2"),
        (dict(cell=[[torch.ones(2, 2, 2, 3), torch.ones(2, 2, 4, 2)]]), "leg right of entry (0, 0) is 3 wide"),
    ],
)
def test_errors_name_what_is_wrong(arguments, says):
    settings = dict(cell=torch.ones(2, 2, 2, 2), chi=4) | arguments
    with pytest.raises(InputError) as raised:
        contract(**settings)
    assert says in str(raised.value)


def test_progress_is_told_and_may_cancel():
    told = []
    contract(torch.ones(2, 2, 2, 2), 2, 16, 16, progress=lambda *words: told.append(words))
    assert told == [("trg", done, 3) for done in range(4)]

    def cancel(stage, done, total):
        raise Cancelled

    with pytest.raises(Cancelled):
        contract(torch.ones(2, 2, 2, 2), 2, 16, 16, progress=cancel)
