"""`qlr` against its parts: GPTQ alone, the SVD of what Q leaves in NumPy, and its own promises about χ and bytes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.networks import spec_from_json
from karipap_core.networks.dense import Dense
from karipap_core.networks.qlr import Qlr
from karipap_core.networks.stored import quantize_cores, values
from karipap_core.quantization.formats import Format
from karipap_core.spectra.metric import Metric
from tests.helpers.metrics import damped, gaussian, metrics, plain_error


def alone(W, metric, bits):
    """The metric error of Q without any repair."""
    spec = Dense.for_shape(*W.shape, quantize=bits)
    return plain_error(metric, (W - values(spec, quantize_cores(spec, [W], W, metric), torch.float64)[0]).numpy())


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
@pytest.mark.parametrize("shape", [(40, 28), (28, 40)])
def test_the_repair_is_the_svd_of_what_q_leaves(measure, shape):
    W, metric = gaussian(*shape), metrics(*shape)[measure]
    A = np.eye(shape[0]) if metric.G is None else np.linalg.cholesky(damped(metric.G)).T
    B = np.eye(shape[1]) if metric.C is None else np.linalg.cholesky(damped(metric.C))
    curve = Qlr.curve(W, metric)
    for chi in (1, 4, 9):
        spec = Qlr.for_shape(*shape, chi)
        Q, left, right = spec.fit(W, metric)
        assert (
            Format.parse("int3").on_grid(Q) is not None
            and left.shape == (shape[0], chi)
            and right.shape == (chi, shape[1])
        )
        sigma = np.linalg.svd(A @ (W - Q).numpy() @ B, compute_uv=False)
        error = plain_error(metric, (W - spec.dense([Q, left, right])).numpy())
        assert error == pytest.approx((sigma[chi:] ** 2).sum(), rel=1e-8)
        assert curve.exact and curve.at(chi) == pytest.approx(error, rel=1e-8)


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
def test_error_starts_below_quantization_alone_and_falls_to_nothing(measure):
    W, metric = gaussian(48, 64), metrics(48, 64)[measure]
    curve = Qlr.curve(W, metric)
    assert list(curve.chi) == list(range(1, 49)) and curve.error[0] < alone(W, metric, "int3")
    assert np.all(np.diff(curve.error) <= 0) and curve.error[-1] <= 1e-12 * curve.total
    full = Qlr.for_shape(48, 64, 10**6)
    found = full.dense(full.decompose(W.float(), metric)).double()
    assert (found - W).norm().item() < 1e-5 * W.norm().item()


@pytest.mark.parametrize("measure", ["functional", "loss"])
@pytest.mark.parametrize("form", ["int4", "int8", "fp8"])
def test_stored_cores_beat_quantization_alone_and_are_stored_again_as_they_are(measure, form):
    W, metric = gaussian(64, 96), metrics(64, 96)[measure]
    spec = Qlr.for_shape(64, 96, 4, quantize=form)
    cores = spec.decompose(W.float(), metric)
    error = plain_error(metric, (W - spec.dense([core.double() for core in cores])).numpy())
    assert error < alone(W, metric, "int3")
    stored = quantize_cores(spec, cores, W, metric)
    assert all(torch.equal(a, b) for a, b in zip(values(spec, stored), cores, strict=True))
    assert sum(each.bytes for each in stored) == spec.bytes(2) == spec.bytes(4)
    # From the cores of the unquantized fit it arrives at the same.
    plain = Qlr.for_shape(64, 96, 4).decompose(W.float(), metric)
    again = values(spec, quantize_cores(spec, plain, W, metric), torch.float64)
    assert plain_error(metric, (W - spec.dense(again)).numpy()) <= error * (1 + 1e-5)


def test_turns_gain_on_a_single_pass():
    """W with a few strong directions: fitted first, they leave Q less to round; an L R from Q's rest alone does not."""
    directions = gaussian(96, 3, 7) @ gaussian(3, 128, 8)
    W, metric = gaussian(96, 128) * 0.2 + directions, metrics(96, 128)["functional"]
    spec = Dense.for_shape(96, 128, quantize="int3")
    Q = values(spec, quantize_cores(spec, [W], W, metric), torch.float64)[0]
    B = np.linalg.cholesky(damped(metric.C))
    single = (np.linalg.svd((W - Q).numpy() @ B, compute_uv=False)[6:] ** 2).sum()
    for form in (None, "int4"):
        found = Qlr.for_shape(96, 128, 6, quantize=form)
        error = plain_error(metric, (W - found.dense(found.fit(W, metric))).numpy())
        assert error < 0.5 * single


def test_a_curve_of_stored_cores_is_measured_on_them():
    W, metric = gaussian(64, 96), metrics(64, 96)["functional"]
    curve = Qlr.curve(W, metric, quantize="int4", levels=[2, 6])
    assert not curve.exact and list(curve.chi) == [2, 6] and curve.error[1] < curve.error[0]
    for chi in (2, 6):
        spec = Qlr.for_shape(64, 96, chi, quantize="int4")
        cores = [core.double() for core in spec.decompose(W.float(), metric)]
        assert curve.at(chi) == pytest.approx(plain_error(metric, (W - spec.dense(cores)).numpy()), rel=1e-3)
        assert curve.parameters[list(curve.chi).index(chi)] == spec.parameters


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 300), st.sampled_from(["int2", "int3", "int4"]), st.sampled_from([None, "int4"])
)
def test_break_even_is_where_the_bytes_are_those_of_the_dense_weight(out, n_in, bits, form):
    spec = Qlr.for_shape(out, n_in, 1, quantize=form, bits=bits)
    sizes = [spec.with_chi(chi).bytes(2) for chi in range(1, spec.max_chi + 1)]
    assert sizes == sorted(sizes)
    assert spec.break_even_chi == sum(size < 2 * out * n_in for size in sizes)
    assert spec.with_chi(1).bits == bits and spec_from_json(spec.to_json()) == spec


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.sampled_from([None, "int4", "fp8"]))
def test_any_shape_is_fitted_and_no_worse_than_without_repair(out, n_in, chi, form):
    W, metric = gaussian(out, n_in), metrics(out, n_in)["loss"]
    spec = Qlr.for_shape(out, n_in, chi, quantize=form)
    error = plain_error(metric, (W - spec.dense(spec.fit(W, metric))).numpy())
    assert error <= alone(W, metric, "int3") * (1 + 1e-9) + 1e-12


def test_bytes_by_hand():
    spec = Qlr.for_shape(256, 1024, 13, quantize="int4")
    Q = 256 * 1024 * 3 // 8 + 256 * 16 * 3 // 8 + 256 * 16 * 2
    L = 256 * 13 * 4 // 8 + 256 * 4 // 8 + 256 * 2
    R = 13 * 1024 * 4 // 8 + 13 * 16 * 4 // 8 + 13 * 16 * 2
    assert spec.bytes(2) == Q + L + R and spec.parameters == 256 * 1024 + 13 * (256 + 1024)
    assert Qlr.for_shape(256, 1024, 13).bytes(2) == Q + 2 * 13 * (256 + 1024)
    assert spec.formats == ["int3", "int4", "int4"] and Format.parse("int3").bytes(256, 1024) == Q


@pytest.mark.parametrize(
    "entry, field",
    [
        ({"bits": "fp8"}, "bits"),
        ({"bits": "int5"}, "int5"),
        ({"bits": None}, "None"),
        ({"chi": [9]}, "chi"),
        ({"chi": [1, 1]}, "chi"),
        ({"quantize": "int5"}, "int5"),
    ],
)
def test_a_wrong_entry_is_told_in_one_sentence(entry, field):
    with pytest.raises(InputError, match=field) as caught:
        spec_from_json({"network": "qlr", "out": [8], "in": [8], "chi": [2]} | entry)
    assert "\n" not in str(caught.value)


def test_rows_are_those_of_the_matrix():
    spec = Qlr.for_shape(30, 12, 3)
    cores, at = spec.random_cores(0), torch.tensor([[0, 29], [7, 7]])
    torch.testing.assert_close(spec.rows(at, cores), spec.dense(cores)[at])


def test_weight_metric_needs_no_moments():
    W = gaussian(32, 48)
    errors = [
        Metric("weight").error(W, spec.dense(spec.fit(W, Metric("weight"))))
        for spec in (Qlr.for_shape(32, 48, chi) for chi in (1, 4, 16))
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] < alone(W, Metric("weight"), "int3") / W.square().sum()
