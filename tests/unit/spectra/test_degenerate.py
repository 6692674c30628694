"""Matrices that are zero, of low rank, tiny, huge or a single row: numbers as NumPy has them in float64, and words."""

import json
import math
import warnings

import numpy as np
import pytest
import torch

from karipap_core import figures
from karipap_core.cli.tables import profile as profile_table
from karipap_core.networks.lowrank import LowRank
from karipap_core.profiles.document import Profile
from karipap_core.spectra.describe import describe, in_words
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.spectrum import singular_values

RANDOM = np.random.default_rng(0)


def gaussian(*shape) -> np.ndarray:
    return RANDOM.normal(size=shape)


def single(n_out: int, n_in: int) -> np.ndarray:
    matrix = np.zeros((n_out, n_in))
    matrix[3, 5] = -2.5
    return matrix


MATRICES = {
    "zero": (np.zeros((40, 64)), 0),
    "zero, large": (np.zeros((260, 300)), 0),
    "one element": (single(40, 64), 1),
    "one element, large": (single(260, 300), 1),
    "rank 1": (np.outer(gaussian(40), gaussian(64)), 1),
    "constant rows": (np.ones((40, 1)) * gaussian(1, 64), 1),
    "constant": (np.full((40, 64), 0.1), 1),
    "doubled rows": (np.repeat(gaussian(20, 64), 2, axis=0), 20),
    "doubled rows, large": (np.repeat(gaussian(130, 300), 2, axis=0), 130),
    "rank 5, large": (gaussian(260, 5) @ gaussian(5, 300), 5),
    "tiny": (gaussian(40, 64) * 1e-30, 40),
    "tiny, large": (gaussian(260, 300) * 1e-30, 260),
    "subnormal": (gaussian(40, 64) * 1e-41, 40),
    "huge": (gaussian(40, 64) * 1e30, 40),
    "huge, large": (gaussian(260, 300) * 1e30, 260),
    "the largest there is": (np.sign(gaussian(40, 64)) * 3.4e38, 40),
    "one row": (gaussian(1, 64), 1),
    "one column": (gaussian(64, 1), 1),
    "one row of zeros": (np.zeros((1, 64)), 0),
    "one number": (np.ones((1, 1)), 1),
}


@pytest.fixture(params=MATRICES)
def matrix(request) -> tuple[torch.Tensor, int]:
    values, rank = MATRICES[request.param]
    return torch.tensor(values, dtype=torch.float32), rank


def test_every_number_is_numpys_in_float64(matrix):
    W, rank = matrix
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no division by zero, no overflow
        sigma = singular_values(W, "cpu")
        found = describe(sigma, tuple(W.shape))
    exact = np.linalg.svd(W.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(sigma, exact, rtol=1e-6, atol=1e-7 * exact.max())
    json.dumps(found, allow_nan=False)
    assert found["rank"] == rank
    assert found["sigma_max"] == pytest.approx(exact[0], rel=1e-9)
    p = (exact / exact[0]) ** 2 if exact[0] else exact
    assert found["total"] == pytest.approx(float((exact**2).sum()), rel=1e-6)
    if not rank:
        assert {found[key] for key in ("entropy", "effective_rank", "stable_rank", "chi_at_1pct", "spikes")} == {0}
        assert found["excess"] is None
        return
    p = p / p.sum()
    entropy = -sum(value * math.log(value) for value in p if value > 0)
    assert found["entropy"] == pytest.approx(entropy, rel=1e-6, abs=1e-9)
    assert found["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-6)
    assert found["stable_rank"] == pytest.approx(1 / p[0], rel=1e-6)
    assert found["excess"] == pytest.approx(found["null_entropy"] - entropy, abs=1e-6)
    kept = np.cumsum(p)
    assert found["chi_at_1pct"] == int(np.argmax(kept >= 0.99 * (1 - 1e-12)) + 1)


def test_what_they_are_is_said(matrix):
    W, rank = matrix
    said = in_words(describe(singular_values(W, "cpu"), tuple(W.shape)), tuple(W.shape))
    if not rank:
        assert said == "All its numbers are zero: there is no spectrum to speak of, and every network holds it exactly."
    elif rank < min(W.shape):
        assert said == (
            f"Its rank is {rank} of {min(W.shape)}, to the rounding of float32: low rank with χ = {rank} holds it "
            "exactly."
        )
    else:
        assert said is None


@pytest.mark.parametrize("metric", ["weight", "loss"])
def test_low_rank_of_the_rank_that_is_said_holds_them(matrix, metric):
    W, rank = matrix
    n_out, n_in = W.shape
    if min(n_out, n_in) == 1:
        pytest.skip("a vector is no matrix that is compressed")
    if W.abs().max() > 1e38:
        pytest.skip("sums of such numbers are beyond float32, whatever the cores")
    C, G = (np.cov(gaussian(n, 4 * n)) for n in (n_in, n_out))
    of = Metric() if metric == "weight" else Metric("loss", torch.tensor(C), torch.tensor(G))
    spec = LowRank.for_shape(n_out, n_in, chi=max(1, rank))
    back = spec.dense(spec.decompose(W, of)).double()
    assert torch.isfinite(back).all()
    if not rank:
        assert not back.any() and of.error(W, back) == 0.0
    else:
        np.testing.assert_allclose(back.numpy(), W.double().numpy(), atol=2e-5 * float(W.double().abs().max()) + 1e-43)


def test_infinities_are_told_with_the_name():
    cast = torch.full((4, 4), 1e6).half()  # beyond float16
    with pytest.raises(ValueError, match="^q_proj has NaN or Inf among its entries; a spectrum needs finite numbers.$"):
        singular_values(cast, "cpu", "q_proj")


def test_they_are_shown_for_what_they_are():
    rows, spectra = [], {}
    for name in ("zero", "rank 1", "tiny"):
        W = torch.tensor(MATRICES[name][0], dtype=torch.float32)
        sigma = singular_values(W, "cpu")
        numbers = describe(sigma, tuple(W.shape))
        spectra[f"{name}|weight"] = sigma
        row = {"name": name, "layer": 0, "role": name, "expert": None, "shape": list(W.shape), "parameters": W.numel()}
        notes = [said] if (said := in_words(numbers, tuple(W.shape))) else []
        rows.append(row | {"compressible": True, "notes": notes, "spectra": {"weight": numbers}, "bonds": []})
    document = {"model": "m", "fingerprint": "f", "parameters": 1, "weights": rows, "settings": {"metrics": ["weight"]}}
    table = profile_table.table(document)
    assert "zero: All its numbers are zero" in table and "rank 1: Its rank is 1 of 40" in table
    assert "tiny:" not in table and "nan" not in table.lower()
    profile = Profile(document, spectra)
    for name in spectra:
        for draw in (figures.spectrum, figures.cumulative):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert "NaN" not in draw(profile, name.partition("|")[0]).to_json()
    for quantity in ("entropy", "excess", "normalized_entropy", "chi", "kept", "stable_rank"):
        assert figures.heatmap(profile, quantity).data
