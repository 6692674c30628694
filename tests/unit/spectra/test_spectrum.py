"""Spectra against an independent float64 SVD, analytic cases, and noise simulated here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.spectra import describe, null, spectrum

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.standard_normal(shape)


def reference_sigma(matrix):
    return np.linalg.svd(np.asarray(matrix, dtype=np.float64), compute_uv=False)


def reference_entropy(sigma):
    """-sum p ln p with p_1 ln p_1 through log1p, term by term with exact summation: no code shared with the core."""
    squares = sorted(((float(s) / float(max(sigma))) ** 2 for s in sigma), reverse=True) if max(sigma) > 0 else []
    if not squares:
        return 0.0
    rest = math.fsum(squares[1:])
    p = [square / (1 + rest) for square in squares[1:] if square > 0]
    return math.log1p(rest) / (1 + rest) - math.fsum(x * math.log(x) for x in p)


def decaying(decades, n=300):
    u, _ = np.linalg.qr(normal(n, n))
    v, _ = np.linalg.qr(normal(n, n))
    return (u * np.logspace(0, -decades, n)) @ v


CASES = {
    "wide": normal(260, 700),
    "tall": normal(700, 260),
    "small": normal(20, 30),
    "rank 5": normal(400, 5) @ normal(5, 300),
    "rank 5, small": normal(40, 5) @ normal(5, 30),
    "rank 1": np.outer(normal(400), normal(300)),
    "rank 1 and noise 1e-3": np.outer(normal(400), normal(300)) + 1e-3 * normal(400, 300),
    "rank 1 and noise 1e-5": np.outer(normal(400), normal(300)) + 1e-5 * normal(400, 300),
    "decay 1e-6": decaying(6),
    "decay 1e-20": decaying(20),
    "zero rows": np.vstack([normal(200, 300), np.zeros((200, 300))]),
    "duplicate columns": np.repeat(normal(400, 100), 3, axis=1),
    "one huge entry": np.where(np.arange(120_000).reshape(400, 300) == 77, 1e8, normal(400, 300)),
    "1 x n": normal(1, 5000),
    "n x 1": normal(5000, 1),
    "1 x 1": [[-3.0]],
    "huge aspect": normal(3, 100_000),
    "huge aspect, tall": normal(100_000, 3),
    "zeros": np.zeros((300, 400)),
    "scale 1e-20": 1e-20 * normal(260, 300),
    "scale 1e20": 1e20 * normal(260, 300),
    "scale 1e37": 1e37 * normal(260, 300),
    "denormal": 1e-43 * normal(260, 300),
}


@pytest.mark.parametrize("name", CASES)
def test_entropy_and_rank_match_a_float64_svd(name):
    matrix = np.asarray(CASES[name], dtype=np.float32)
    sigma = spectrum.singular_values(matrix, "cpu")
    reference = reference_sigma(matrix)
    assert sigma.dtype == np.float64 and sigma.shape == reference.shape
    assert np.all(np.diff(sigma) <= 0) and np.all(sigma >= 0)
    assert spectrum.entropy(sigma) == pytest.approx(reference_entropy(reference), rel=1e-9, abs=1e-24)
    assert np.abs(sigma - reference).max() <= 1e-7 * reference[0]
    tolerance = max(matrix.shape) * np.finfo(np.float32).eps * reference[0]
    assert spectrum.rank(sigma, matrix.shape) == int((reference > tolerance).sum())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_every_stored_type_is_read_exactly(dtype):
    matrix = torch.from_numpy(normal(300, 280)).to(dtype)
    assert spectrum.singular_values(matrix, "cpu") == pytest.approx(reference_sigma(matrix.double().numpy()), rel=1e-10)


@pytest.mark.parametrize("kind", ["gram", "exact"])
def test_blocks_of_rows_give_the_same_as_one(kind, monkeypatch):
    matrix = normal(2000, 60) if kind == "gram" else np.outer(normal(2000), normal(60)) + 1e-4 * normal(2000, 60)
    whole = spectrum.singular_values(matrix, "cpu")
    monkeypatch.setattr(spectrum, "BLOCK_BYTES", 60 * 8 * 333)
    assert spectrum.singular_values(matrix, "cpu") == pytest.approx(whole, rel=1e-9)
    assert spectrum.singular_values(matrix.T, "cpu") == pytest.approx(whole, rel=1e-9)


def test_gram_of_several_panels():
    matrix = normal(700, 600)
    assert spectrum.singular_values(matrix, "cpu") == pytest.approx(reference_sigma(matrix), rel=1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite_is_an_error_that_names_the_weight(bad):
    matrix = normal(30, 20)
    matrix[3, 4] = bad
    with pytest.raises(InputError, match="model.layers.3.mlp.up_proj"):
        spectrum.singular_values(matrix, "cpu", "model.layers.3.mlp.up_proj")


def test_shapes_that_are_no_matrix():
    with pytest.raises(InputError, match="two dimensions"):
        spectrum.singular_values(np.zeros(5), "cpu")
    assert spectrum.singular_values(np.zeros((0, 5)), "cpu").shape == (0,)


def test_a_failing_accelerator_falls_back_and_says_so():
    # without Apple hardware torch refuses "mps"; with it, "mps" has no float64
    told = []
    matrix = normal(30, 20)
    assert spectrum.singular_values(matrix, "mps", "a weight", told.append) == pytest.approx(reference_sigma(matrix))
    assert len(told) == 1 and "a weight" in told[0] and "mps" in told[0] and "CPU" in told[0]


def test_devices():
    assert spectrum.pick_device("cpu") == "cpu"
    assert spectrum.pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(InputError, match="abacus"):
        spectrum.pick_device("abacus")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA"):
            spectrum.pick_device("cuda:0")


@pytest.mark.gpu
def test_cuda_gives_what_the_cpu_gives():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    told = []
    for name, case in CASES.items():
        matrix = np.asarray(case, dtype=np.float32)
        sigma = spectrum.singular_values(matrix, "cuda", name, told.append)
        expected = spectrum.entropy(spectrum.singular_values(matrix, "cpu"))
        assert spectrum.entropy(sigma) == pytest.approx(expected, rel=1e-6, abs=1e-20), name
    assert not told


# ---- numbers of a spectrum ------------------------------------------------------------------------------------------


def test_identity_is_maximally_entangled():
    sigma = spectrum.singular_values(3 * np.eye(300), "cpu")
    assert spectrum.entropy(sigma) == pytest.approx(math.log(300), rel=1e-14)
    assert spectrum.renyi2(sigma) == pytest.approx(math.log(300), rel=1e-14)
    assert spectrum.effective_rank(sigma) == pytest.approx(300)
    assert spectrum.stable_rank(sigma) == pytest.approx(300)
    assert spectrum.normalized_entropy(sigma, (300, 300)) == pytest.approx(1)


def test_rank_one_has_no_entropy():
    sigma = spectrum.singular_values(np.ones((40, 50)), "cpu")
    assert spectrum.entropy(sigma) == pytest.approx(0, abs=1e-20)
    assert spectrum.effective_rank(sigma) == 1 and spectrum.rank(sigma, (40, 50)) == 1


def test_two_levels_by_hand():
    # p = 0.8, 0.2
    assert spectrum.entropy([1, 2]) == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), rel=1e-14)
    assert spectrum.renyi2([2, 1]) == pytest.approx(-math.log(0.68), rel=1e-14)
    assert spectrum.stable_rank([2, 1]) == 1.25
    assert spectrum.tail([2, 1]).tolist() == [5, 1, 0]


def test_nearly_pure_entropy_keeps_its_digits():
    # to first order in d = 1e-14: S = d (1 - ln d)
    d = 1e-14
    assert spectrum.entropy([1, math.sqrt(d)]) == pytest.approx(d * (1 - math.log(d)), rel=1e-10)


def test_zero_matrix():
    sigma = np.zeros(5)
    numbers = describe.describe(sigma, (5, 8))
    assert {field for field, value in numbers.items() if value != 0} == {"null_entropy", "null_deviation", "excess"}
    assert spectrum.tail(sigma).tolist() == [0] * 6


def test_single_row_is_normalized_to_zero_without_nan():
    numbers = describe.describe(spectrum.singular_values(normal(1, 9), "cpu"), (1, 9))
    assert numbers["normalized_entropy"] == 0 and numbers["null_entropy"] == 0 and numbers["excess"] == 0
    assert all(math.isfinite(value) for value in numbers.values())


spectra = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(spectra, st.floats(1e-12, 1e12))
def test_bounds_and_invariances(values, scale):
    s = spectrum.entropy(values)
    nonzero = sum(value > 0 for value in values)
    assert -1e-12 <= s <= math.log(max(nonzero, 1)) + 1e-9
    assert -1e-12 <= spectrum.renyi2(values) <= s + 1e-9
    assert spectrum.entropy(values[::-1]) == s
    assert spectrum.entropy([value * scale for value in values]) == pytest.approx(s, rel=1e-6, abs=1e-12)
    assert spectrum.stable_rank(values) <= math.exp(spectrum.renyi2(values)) * (1 + 1e-9)
    left = spectrum.tail(values)
    assert len(left) == len(values) + 1 and left[-1] == 0 and np.all(np.diff(left) <= 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 24), st.integers(1, 24), st.integers(0, 2**31), st.sampled_from([1e-20, 1.0, 1e20]))
def test_permutation_scale_and_transposition(m, n, seed, scale):
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((m, n))
    expected = spectrum.entropy(reference_sigma(matrix))
    for variant in (scale * matrix, matrix.T, matrix[rng.permutation(m)][:, rng.permutation(n)]):
        sigma = spectrum.singular_values(variant, "cpu")
        assert spectrum.entropy(sigma) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_tail_is_the_error_of_truncation():
    matrix = normal(30, 20)
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    errors = [np.linalg.norm(matrix - (u[:, :chi] * s[:chi]) @ vt[:chi]) ** 2 for chi in range(21)]
    assert spectrum.tail(spectrum.singular_values(matrix, "cpu")) == pytest.approx(errors, abs=1e-10)


@settings(max_examples=100, deadline=None)
@given(spectra, st.floats(0, 1))
def test_chi_at_error_is_the_smallest(values, allowed):
    chi = spectrum.chi_at_error(values, allowed)
    squares = sorted(((v / max(values)) ** 2 for v in values), reverse=True) if max(values) > 0 else []
    total = math.fsum(squares)
    assert math.fsum(squares[chi:]) <= allowed * total * (1 + 1e-9)
    if chi:
        assert math.fsum(squares[chi - 1 :]) >= allowed * total * (1 - 1e-9)


def test_thin_keeps_ends_and_at_most_the_asked_points():
    sigma = np.sort(RNG.random(4096))[::-1]
    index, values = spectrum.thin(sigma)
    assert len(index) <= 512 and index[0] == 1 and index[-1] == 4096
    assert np.array_equal(values, sigma[index - 1]) and np.all(np.diff(index) > 0)
    assert spectrum.thin(sigma[:10])[0].tolist() == list(range(1, 11))


# ---- noise ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "known"), [((64, 64), 3.6529), ((384, 384), 5.4497), ((384, 1536), 5.8251)])
def test_null_entropy_meets_the_published_simulation(shape, known):
    assert null.null_entropy(*shape) == pytest.approx(known, abs=3e-4)
    assert null.null_entropy(*shape[::-1]) == null.null_entropy(*shape)


@pytest.mark.parametrize(
    ("m", "n", "draws"),
    [
        (2, 2, 20000),
        (2, 30, 4000),
        (5, 7, 8000),
        (16, 16, 2000),
        (17, 17, 2000),
        (17, 400, 300),
        (40, 60, 600),
        (128, 128, 60),
    ],
)
def test_null_against_draws_of_its_own(m, n, draws):
    rng = np.random.default_rng(11)
    p = np.linalg.svd(rng.standard_normal((draws, m, n)), compute_uv=False) ** 2
    p /= p.sum(axis=1, keepdims=True)
    entropies = -(p * np.log(p)).sum(axis=1)
    spread = entropies.std()
    assert abs(null.null_entropy(m, n) - entropies.mean()) < 4 * spread / math.sqrt(draws) + 5e-4
    assert null.null_deviation(m, n) == pytest.approx(spread, rel=0.3 if draws < 100 else 0.15)
    left = 1 - np.cumsum(p, axis=1).mean(axis=0)
    assert null.null_tail(m, n)[1:] == pytest.approx(left, abs=0.12 / m + 1e-3)


def test_null_tail_ends_and_known_points():
    for m, n in [(1, 1), (1, 10**6), (3, 5), (17, 10**7), (512, 512), (4096, 11008)]:
        left = null.null_tail(m, n)
        assert len(left) == m + 1 and left[0] == pytest.approx(1) and left[-1] == pytest.approx(0, abs=1e-12)
        assert np.all(np.diff(left) < 0)
    # retained energy at a fraction of the parameters, simulated elsewhere: (side, side, fraction, retained)
    known = [(1000, 1000, 0.1, 0.172), (1000, 1000, 0.3, 0.433), (1000, 1000, 0.7, 0.760), (1000, 4000, 0.3, 0.413)]
    for m, n, fraction, retained in known:
        chi = round(fraction * m * n / (m + n))
        assert 1 - null.null_tail(m, n)[chi] == pytest.approx(retained, abs=3e-3)


def test_marchenko_pastur_is_a_density_and_fits_a_histogram():
    for m, n in [(300, 300), (200, 800)]:
        grid = np.linspace(0, 2.1 * math.sqrt(n), 20001)
        density = null.marchenko_pastur(grid, (m, n), 1.0)
        step = grid[1] - grid[0]
        assert density.sum() * step == pytest.approx(1, abs=2e-3)
        assert (grid**2 * density).sum() * step == pytest.approx(n, rel=1e-3)  # mean of sigma^2 is n
        sigma = reference_sigma(normal(m, n))
        for low, high in [(0.5, 0.9), (0.9, 1.3)]:
            inside = (grid >= low * math.sqrt(n)) & (grid < high * math.sqrt(n))
            share = np.mean((sigma >= low * math.sqrt(n)) & (sigma < high * math.sqrt(n)))
            assert density[inside].sum() * step == pytest.approx(share, abs=0.02)
    assert np.all(null.marchenko_pastur(np.linspace(0, 3, 5), (4, 5), 0.0) == 0)


def test_planted_signals_are_the_spikes():
    m, n, deviation = 300, 500, 0.02
    u, _ = np.linalg.qr(normal(m, 4))
    v, _ = np.linalg.qr(normal(n, 4))
    noise = deviation * normal(m, n)
    edge = deviation * (math.sqrt(m) + math.sqrt(n))
    sigma = spectrum.singular_values(noise + (u * (3 * edge)) @ v.T, "cpu")
    count, share = null.spikes(sigma, (m, n))
    assert count == 4
    assert share == pytest.approx((sigma[:4] ** 2).sum() / (sigma**2).sum())
    assert null.bulk_deviation(sigma, (m, n)) == pytest.approx(deviation, rel=0.02)
    assert null.bulk_edge(sigma, (m, n)) == pytest.approx(edge, rel=0.02)


def test_the_edge_parts_spikes_from_bulk():
    m, n = 300, 500
    sigma = np.sqrt(-np.diff(null.null_tail(m, n)) * m * n)  # noise of deviation 1 as expected, all below the edge
    edge = math.sqrt(m) + math.sqrt(n)
    assert null.bulk_edge(sigma, (m, n)) == pytest.approx(edge, rel=1e-9)
    counts = [null.spikes([factor * edge, *sigma[1:]], (n, m))[0] for factor in (1.0, 1.005, 1.02, 1.1)]
    assert counts == [0, 0, 1, 1]  # the 99 % fluctuation of the largest is 1.2 % of the edge at this size


def test_noise_has_no_spikes():
    counts = [null.spikes(reference_sigma(normal(60, 90)), (60, 90))[0] for _ in range(100)]
    assert np.mean(counts) < 0.1


def test_without_a_bulk_everything_but_rounding_stands_out():
    matrix = normal(400, 5) @ normal(5, 300)
    sigma = spectrum.singular_values(matrix, "cpu")
    assert null.spikes(sigma, matrix.shape) == (5, pytest.approx(1))
