import numpy as np
import pytest
import torch

from karipap_core.errors import InputError
from karipap_core.networks.dense import Dense
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.qlr import Qlr
from karipap_core.networks.stored import quantize_cores, values
from karipap_core.quantization import two_sided
from karipap_core.quantization.gptq import rows_of
from karipap_core.quantization.rounding import Columns, inverse_factor, quantize_by_factor, quantize_rtn
from karipap_core.quantization.two_sided import Rows, quantize_two_sided, refitted
from karipap_core.spectra.metric import Metric
from tests.unit.quantization.test_rounding import conditional_variances, moment, slow_round, slow_search, weight

HEIGHT = 32  # of the tiles of so small a weight


def damped(n, seed):
    C = moment(n, seed)
    C.diagonal().add_(0.01 * C.diagonal().mean())
    return C


def loss(G, C, D):
    return torch.einsum("oi,ij,pj,op->", D, C, D, G).item()


def by_weight(weights, group):
    """Columns by the falling weight of their groups, which stay together (a short one last), then by their own."""
    groups = [list(range(start, min(start + group, len(weights)))) for start in range(0, len(weights), group)]
    groups.sort(key=lambda each: (len(each) < min(group, len(weights)), -sum(weights[each])))
    return np.array([column for each in groups for column in sorted(each, key=lambda column: -weights[column])])


def by_conditional_means(W, bits, group, C, G):
    """Every entry is rounded from what it would be if all that are not rounded yet were free to make good what was, by
    solving for them in G ⊗ C; the grid of a group is searched on such values as its tile of rows is reached."""
    H = np.kron(G, C)
    n_out, n_in = W.shape
    left, known = np.zeros(n_out * n_in), np.zeros(n_out * n_in, dtype=bool)
    result, grids, weights = np.zeros_like(W), {}, conditional_variances(C, np.arange(n_in))

    def wanted(entries, given):
        free = np.flatnonzero(~given)
        found = np.zeros_like(left)
        found[free] = -np.linalg.solve(H[np.ix_(free, free)], H[np.ix_(free, given)] @ left[given])
        return W.ravel()[entries] - found[entries]

    places = [
        (i, j)
        for top in range(0, n_out, HEIGHT)
        for start in range(0, n_in, group)
        for i, j in (
            (i, j) for j in range(start, min(start + group, n_in)) for i in range(top, min(top + HEIGHT, n_out))
        )
    ]
    for i, j in places:
        top, start = i // HEIGHT * HEIGHT, j // group * group
        if (i, start) not in grids:
            for row in range(top, min(top + HEIGHT, n_out)):
                columns = np.arange(start, min(start + group, n_in))
                values = wanted(row * n_in + columns, known)
                grids[row, start] = slow_search(values, bits, True, weights[columns])
        scale, zero = grids[i, start]
        # What lies below or to the right is not known to this entry, whatever the order.
        rows, columns = np.indices(W.shape)
        before = known & ((rows <= i) & (columns <= j)).ravel()
        at = i * n_in + j
        value = wanted(np.array([at]), before)[0]
        result[i, j] = scale * (slow_round(value, scale, zero, bits) - zero)
        left[at], known[at] = W[i, j] - result[i, j], True
    return result


@pytest.mark.parametrize(("bits", "group"), [(2, 4), (3, 5), (4, 3)])
def test_it_is_nearest_plane_rounding_in_the_kronecker_product(bits, group):
    W, C, G = weight(35, 8).double(), damped(8, 1), damped(35, 2)
    found = quantize_two_sided(W, bits, group, Columns.of(C, 0), Rows.of(G, 0))
    down, across = np.argsort(-G.diagonal().numpy()), by_weight(C.diagonal().numpy(), group)
    ordered = W.numpy()[np.ix_(down, across)], C.numpy()[np.ix_(across, across)], G.numpy()[np.ix_(down, down)]
    expected = by_conditional_means(ordered[0], bits, group, *ordered[1:])
    np.testing.assert_allclose(found.dense().numpy()[np.ix_(down, across)], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("width", "group"), [(8, 3), (12, 4), (7, 7), (5, 9)])
def test_groups_stay_together_and_what_weighs_most_comes_first(width, group):
    C = damped(width, 3)
    U, order = Columns.of(C, 0.01).by_weight(min(group, width))
    assert order.tolist() == by_weight(C.diagonal().numpy(), group).tolist()
    assert torch.equal(U, inverse_factor(C[order][:, order], 0.01))


def test_rows_go_by_falling_weight_and_no_more_is_stored_for_it():
    """Of independent moments, where the order is all that differs, the heavier rows first lose less."""
    W, C, G = weight(64, 48).double(), damped(48, 1), damped(64, 2)
    heavy = torch.logspace(-1, 1, 64, dtype=torch.float64).sqrt()
    G = heavy[:, None] * G * heavy  # the last rows weigh most
    rows, columns = Rows.of(G, 0), Columns.of(C, 0)
    assert torch.equal(G.diagonal()[rows.order], G.diagonal().sort(descending=True).values)
    as_they_are = Rows(G, inverse_factor(G, 0), torch.arange(64))
    by_weight, in_order = (quantize_two_sided(W, 2, 16, columns, each) for each in (rows, as_they_are))
    assert loss(G, C, W - by_weight.dense()) < loss(G, C, W - in_order.dense())
    assert by_weight.bytes == in_order.bytes


@pytest.mark.parametrize("shape", [(1, 50), (70, 50), (24, 300), (130, 7), (3, 1)])
@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 64), (4, 200), (4, None)])
def test_without_a_second_side_it_is_gptq_bit_for_bit(shape, bits, group):
    W, columns = weight(*shape), Columns.of(moment(shape[1]), 0.01)
    one = torch.eye(shape[0], dtype=torch.float64)
    rows = Rows(one / 9, 3 * one, torch.arange(shape[0]))
    found = quantize_two_sided(W, bits, group, columns, rows)
    U, order = columns.by_weight(min(group or shape[1], shape[1]))
    expected = quantize_by_factor(W[:, order], bits, group, U, weigh=True)
    assert torch.equal(found.dense()[:, order], expected.dense()) and torch.equal(found.codes[:, order], expected.codes)


@pytest.mark.parametrize("shape", [(60, 50), (24, 300), (130, 40)])
@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 32), (4, None)])
def test_the_second_side_wins(shape, bits, group):
    W, C, G = weight(*shape).double(), damped(shape[1], 1), damped(shape[0], 2)
    columns, rows = Columns.of(C, 0), Rows.of(G, 0)
    two, one, none = (
        loss(G, C, W - q.dense())
        for q in (
            quantize_two_sided(W, bits, group, columns, rows),
            quantize_by_factor(W, bits, group, columns.in_order()),
            quantize_rtn(W, bits, group),
        )
    )
    assert two < 0.8 * one and one < none


def test_the_weight_and_the_factors_that_come_in_are_left_as_they_are():
    W, C, rows = weight(70, 50).double(), damped(50, 1), Rows.of(damped(70, 2), 0)
    given = W, C, rows.G, rows.V, rows.order
    before = [each.clone() for each in given]
    columns = Columns.of(C, 0.01)
    refitted(W, quantize_two_sided(W, 3, 16, columns, rows), columns, rows)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 32), (4, None)])
@pytest.mark.parametrize("shape", [(6, 20), (12, 17)])
def test_scales_are_fitted_to_the_codes(shape, bits, group, monkeypatch):
    """With steps enough it is the least squares solution in all scales at once, A (W − Ŵ) B written out."""
    W, C, G = weight(*shape).double(), damped(shape[1], 1), damped(shape[0], 2)
    columns, rows = Columns.of(C, 0), Rows.of(G, 0)
    found = quantize_two_sided(W, bits, group, columns, rows)
    few = refitted(W, found, columns, rows)
    monkeypatch.setattr(two_sided, "STEPS", 200)
    many = refitted(W, found, columns, rows)
    A, B = np.linalg.cholesky(G.numpy()).T, np.linalg.cholesky(C.numpy())
    steps = (found.codes.double() - found.zeros.double().repeat_interleave(found.group, 1)[:, : shape[1]]).numpy()
    design = []
    for row, part in np.ndindex(*found.scales.shape):
        each = np.zeros(shape)
        columns_of = slice(part * found.group, (part + 1) * found.group)
        each[row, columns_of] = steps[row, columns_of]
        design.append((A @ each @ B).ravel())
    solved = np.linalg.lstsq(np.array(design).T, (A @ W.numpy() @ B).ravel(), rcond=None)[0]
    assert (solved > 0).all()
    np.testing.assert_allclose(many.scales.double().numpy().ravel(), solved, rtol=2e-3)
    before, after, least = (loss(G, C, W - each.dense()) for each in (found, few, many))
    assert least <= after * 1.001 and after < before  # scales are of 16 bits
    for each in (few, many):
        assert torch.equal(each.codes, found.codes) and torch.equal(each.zeros, found.zeros)


def test_scales_stay_where_nothing_is_left_over():
    W, columns, rows = torch.zeros(8, 12).double(), Columns.of(damped(12, 1), 0), Rows.of(damped(8, 2), 0)
    found = quantize_two_sided(W, 3, 4, columns, rows)
    assert refitted(W, found, columns, rows) is found


@pytest.mark.parametrize(("wrong", "name"), [(0, "U"), (1, "V")])
def test_factors_of_another_size_are_refused(wrong, name):
    moments = [torch.eye(50).double(), torch.eye(20).double()]
    moments[wrong] = torch.eye(7).double()
    with pytest.raises(InputError, match=f"factor {name}"):
        quantize_two_sided(
            weight(20, 50), 3, 16, Columns.of(moments[0], 0), Rows(moments[1], moments[1], torch.arange(20))
        )


@pytest.mark.parametrize(
    "spec",
    [
        Dense.for_shape(48, 40, quantize="int3g8"),
        Qlr.for_shape(48, 40, 4, bits="int2"),
        Qlr.for_shape(48, 40, 4, bits="int3", quantize="int4"),
        LowRank.for_shape(48, 40, 12, quantize="int3g8"),
    ],
    ids=str,
)
def test_networks_in_few_bits_lose_less_under_the_loss_metric(spec):
    W, C, G = weight(48, 40).double(), damped(40, 1), damped(48, 2)

    def error(both):
        metric = Metric("loss", C, G, rounds_under_G=both)
        stored = quantize_cores(spec, spec.fit(W, metric), W, metric)
        return metric.absolute(W - spec.dense(values(spec, stored, torch.float64)))

    assert error(True) < 0.95 * error(False)


def test_rows_that_know_nothing_of_one_another_have_no_second_side():
    C, G = damped(8, 1), torch.diag(torch.rand(6).double() + 0.1)
    assert rows_of(Metric("loss", C, G), torch.device("cpu")) is None
    assert rows_of(Metric("functional", C), torch.device("cpu")) is None
    full = Metric("loss", C, damped(6, 2))
    assert rows_of(full, torch.device("cpu")) is not None
    assert rows_of(Metric("loss", C, damped(6, 2), rounds_under_G=False), torch.device("cpu")) is None
