"""Calibrated cores: the second moments by probing against their formulas, the refit against NumPy's least squares, and
the error in the metric against plain rounding."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS, Metric, spec_from_json
from karipap_core.networks.dense import Dense
from karipap_core.networks.lowrank import LowRank, rotation
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.stored import column_moment, quantize_cores, values
from karipap_core.quantization.float8 import Float8
from karipap_core.quantization.formats import Format
from karipap_core.quantization.gptq import columns_of
from karipap_core.quantization.packing import Quantized
from karipap_core.quantization.rounding import quantize_gptq, quantize_rtn
from tests.helpers.metrics import damped, gaussian, metrics, plain_error

FORMATS = ["int4", "int3g16", "int2"]


def error(spec, stored, W, metric) -> float:
    return plain_error(metric, (W - spec.dense(values(spec, stored, torch.float64))).numpy())


# ---- what flows into a core


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
def test_probed_moments_converge_to_those_of_lowrank(measure):
    metric, spec = metrics(20, 28)[measure], LowRank.for_shape(20, 28, 6)
    left, right = spec.fit(gaussian(20, 28), metric)
    C = np.eye(28) if metric.C is None else damped(metric.C)
    G = np.eye(20) if metric.G is None else damped(metric.G)
    L, R = left.numpy(), right.numpy()
    for index, exact in ((0, np.trace(G) * R @ C @ R.T), (1, np.trace(L.T @ G @ L) * C)):
        off = [
            np.linalg.norm(column_moment(spec, [left, right], index, metric, probes).numpy() - exact)
            / np.linalg.norm(exact)
            for probes in (16, 4096)
        ]
        assert off[1] < 0.04 and off[1] < 0.3 * off[0]


def test_a_probed_moment_is_the_mean_square_of_the_change_in_the_output():
    """From its meaning alone, for any network: a row d of a change in one core costs dᵀ H d, summed over rows."""
    metric, spec = metrics(12, 16)["loss"], Mpo.for_shape(12, 16, 3, sites=3)
    cores = spec.fit(gaussian(12, 16), metric)
    for index in range(3):
        H = column_moment(spec, cores, index, metric, probes=3000).numpy()
        columns = len(H)
        rows = cores[index].numel() // columns
        change = np.random.default_rng(0).standard_normal(columns)
        exact = 0.0
        for row in range(rows):
            moved = [core.clone() for core in cores]
            matrix = torch.zeros(rows, columns, dtype=torch.float64)
            matrix[row] = torch.from_numpy(change)
            moved[index] += matrix.reshape(moved[index].shape)
            exact += plain_error(metric, (spec.dense(moved) - spec.dense(cores)).numpy())
        assert change @ H @ change == pytest.approx(exact, rel=0.1)


def test_the_factor_of_the_inputs_is_kept_and_is_the_inverse():
    metric = metrics(12, 20)["functional"]
    U = columns_of(metric, torch.device("cpu")).in_order()
    assert columns_of(metric, torch.device("cpu")).in_order() is U
    assert torch.equal(U, U.triu()) and (U.T @ U).numpy() == pytest.approx(np.linalg.inv(damped(metric.C)), rel=1e-8)
    assert columns_of(Metric("weight"), torch.device("cpu")) is None


# ---- low rank


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
@pytest.mark.parametrize("form", FORMATS)
def test_calibrated_cores_of_lowrank_beat_rounding(measure, form):
    W, metric = gaussian(64, 96), metrics(64, 96)[measure]
    spec = LowRank.for_shape(64, 96, 20, quantize=form)
    cores = spec.decompose(W, metric)
    stored, rounded = (quantize_cores(spec, cores, W, metric, method) for method in ("gptq", "rtn"))
    assert all(isinstance(each, Quantized) for each in stored)
    assert sum(each.bytes for each in stored) == spec.bytes(4) == sum(each.bytes for each in rounded)
    cut = error(spec, cores, W, metric)
    gain = (error(spec, stored, W, metric) - cut) / (error(spec, rounded, W, metric) - cut)
    assert gain < (1 if measure == "weight" else 0.9)
    plain = [Format.parse(form).rounded(core.reshape(spec.core_matrix(k))) for k, core in enumerate(cores)]
    assert all(torch.equal(a.dense(), b.dense()) for a, b in zip(rounded, plain, strict=True))


@dataclass(frozen=True)
class HalfStored(LowRank):
    """A lowrank of which only R is quantized: what L is refitted to can be seen."""

    network: ClassVar[str] = "half stored"

    @property
    def formats(self):
        return [None, self.quantize]


@pytest.mark.parametrize("measure", ["weight", "functional", "loss"])
def test_the_refit_is_least_squares_under_the_inputs(measure):
    W, metric = gaussian(24, 40), metrics(24, 40)[measure]
    spec = HalfStored.for_shape(24, 40, 8, quantize="int3")
    left, right = quantize_cores(spec, spec.decompose(W, metric), W, metric)
    assert isinstance(left, torch.Tensor) and isinstance(right, Quantized)
    B = np.eye(40) if metric.C is None else np.linalg.cholesky(damped(metric.C))
    expected = np.linalg.lstsq((right.dense().double().numpy() @ B).T, (W.numpy() @ B).T, rcond=None)[0].T
    assert left.double().numpy() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_second_core_is_rounded_under_what_the_first_lets_through():
    """By hand: GPTQ of R under C, least squares for L, GPTQ of L under R̂ C R̂ᵀ."""
    W, metric = gaussian(48, 64), metrics(48, 64)["functional"]
    spec = LowRank.for_shape(48, 64, 32, quantize="int3")
    cores = spec.decompose(W, metric)
    left, right = quantize_cores(spec, cores, W, metric)
    C = torch.from_numpy(damped(metric.C))
    R = quantize_gptq(rotation(32).T @ cores[1].double(), 3, 64, C, damping=0)
    assert torch.equal(right.dense(), R.dense())
    R = R.dense().double()
    H = R @ C @ R.T
    L = quantize_gptq(W @ C @ R.T @ torch.linalg.inv(H), 3, 64, H, damping=1e-6)
    assert (left.codes.reshape(L.codes.shape) != L.codes).float().mean().item() < 0.01


def test_mixed_components_are_rounded_far_better():
    """Components of very different strength, as trained weights have them; GPTQ without the rotation by hand."""
    U, V = (torch.linalg.qr(gaussian(n, n, 1)).Q for n in (96, 128))
    W = U * torch.logspace(0, -3, 96, dtype=torch.float64) @ V[:96]
    metric = metrics(96, 128)["functional"]
    T = rotation(40)
    assert (T.T @ T - torch.eye(40)).abs().max() < 1e-12 and torch.equal(T, rotation(40))
    spec = LowRank.for_shape(96, 128, 40, quantize="int4")
    left, right = spec.fit(W, metric)
    C = torch.from_numpy(damped(metric.C))
    R = quantize_gptq(right, 4, 64, C, damping=0).dense().double()
    H = R @ C @ R.T
    plain = quantize_gptq(W @ C @ R.T @ torch.linalg.inv(H), 4, 64, H, damping=1e-6).dense().double() @ R
    stored = quantize_cores(spec, [left, right], W, metric)
    assert error(spec, stored, W, metric) < 0.5 * plain_error(metric, (W - plain).numpy())


# ---- any network


@pytest.mark.parametrize("network", list(NETWORKS))
@pytest.mark.parametrize("measure", ["weight", "loss"])
def test_no_network_comes_out_worse_than_rounded(network, measure):
    W, metric = gaussian(12, 16), metrics(12, 16)[measure]
    for form in ("int3", "fp8"):
        spec = NETWORKS[network].for_shape(12, 16, 4, quantize=form)
        cores = spec.decompose(W, metric)
        stored, rounded = (quantize_cores(spec, cores, W, metric, method) for method in ("gptq", "rtn"))
        assert error(spec, stored, W, metric) <= error(spec, rounded, W, metric)
        for kept, wanted in zip(stored, spec.formats, strict=True):
            kind = torch.Tensor if wanted in (None, "index") else Float8 if wanted == "fp8" else Quantized
            assert isinstance(kept, kind)
        packed = sum(each.bytes for each in stored if not isinstance(each, torch.Tensor))
        index = sum(4 * each.numel() for each, f in zip(stored, spec.formats, strict=True) if f == "index")
        assert spec.stored[1] == packed + index


@pytest.mark.parametrize("sites", [2, 3])
def test_calibrated_cores_of_an_mpo_beat_rounding(sites):
    W, metric = gaussian(36, 48), metrics(36, 48)["loss"]
    spec = Mpo.for_shape(36, 48, 10, sites=sites, quantize="int3")
    cores = spec.decompose(W, metric)
    calibrated, rounded = (
        error(spec, quantize_cores(spec, cores, W, metric, method), W, metric) for method in ("gptq", "rtn")
    )
    assert calibrated < 0.8 * rounded


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["lowrank", "mpo"]), st.integers(1, 13), st.integers(1, 13), st.integers(1, 6))
def test_any_shape_can_be_stored(network, out, n_in, chi):
    W, metric = gaussian(out, n_in), metrics(out, n_in)["loss"]
    spec = NETWORKS[network].for_shape(out, n_in, chi, quantize="int3")
    cores = spec.decompose(W, metric)
    stored = quantize_cores(spec, cores, W, metric)
    assert all(torch.isfinite(core).all() for core in values(spec, stored))
    assert sum(each.bytes for each in stored) == spec.bytes(2)
    assert error(spec, stored, W, metric) <= error(spec, quantize_cores(spec, cores, W, metric, "rtn"), W, metric)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_what_is_stored_already_is_stored_again_as_it_is(form):
    W, metric = gaussian(32, 48), metrics(32, 48)["functional"]
    spec = LowRank.for_shape(32, 48, 8, quantize=form)
    cores = values(spec, quantize_cores(spec, spec.decompose(W, metric), W, metric))
    again = values(spec, quantize_cores(spec, cores, W, metric))
    assert all(torch.equal(a, b) for a, b in zip(cores, again, strict=True))


@dataclass(frozen=True)
class Picked(Mpo):
    """A network whose rows are picked by an integer core, and which a group may share."""

    group: tuple[str, ...] = ()
    network: ClassVar[str] = "picked"

    @property
    def members(self):
        return self.group

    @property
    def core_shapes(self):
        return [(self.n_out,), *super().core_shapes]

    @property
    def formats(self):
        return ["index", *[self.quantize] * (len(self.core_shapes) - 1)]

    def dense(self, cores):
        return super().dense(cores[1:])[cores[0].long()]


def test_integer_cores_stay_and_shared_ones_are_rounded():
    W, metric = gaussian(20, 36), metrics(20, 36)["functional"]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(0)).int()
    plain = Mpo.for_shape(20, 36, 6)
    cores = [order, *plain.decompose(W[order.long().argsort()], metric)]
    alone = Picked(plain.out, plain.in_, plain.chi, "int3")
    stored, rounded = (quantize_cores(alone, cores, W, metric, method) for method in ("gptq", "rtn"))
    assert torch.equal(stored[0], order) and error(alone, stored, W, metric) < 0.9 * error(alone, rounded, W, metric)
    shared = Picked(plain.out, plain.in_, plain.chi, "int3", group=("a", "b"))
    kept = quantize_cores(shared, cores, W, metric)
    for k in (1, 2):
        matrix = cores[k].reshape(shared.core_matrix(k))
        assert torch.equal(kept[k].codes, quantize_rtn(matrix, 3, 64).codes)


# ---- a dense weight


@pytest.mark.parametrize("form", FORMATS)
def test_a_dense_weight_is_rounded_under_its_inputs(form):
    W, metric = gaussian(24, 80), metrics(24, 80)["functional"]
    spec = spec_from_json({"network": "dense", "out": [24], "in": [80], "chi": [], "quantize": form})
    assert isinstance(spec, Dense) and spec_from_json(spec.to_json()) == spec and spec.parameters == W.numel()
    (stored,) = quantize_cores(spec, spec.decompose(W, metric), W, metric)
    (rounded,) = quantize_cores(spec, [W], W, metric, "rtn")
    assert stored.bytes == spec.bytes(2) == rounded.bytes
    assert error(spec, [stored], W, metric) < 0.7 * error(spec, [rounded], W, metric)
    x = torch.randn(3, 80)
    torch.testing.assert_close(spec.apply(x, [stored.dense()]), x @ stored.dense().T)


def test_what_cannot_be_is_refused():
    W, spec = gaussian(8, 8), LowRank.for_shape(8, 8, 2, quantize="int4")
    with pytest.raises(InputError, match="Method 'best'"):
        quantize_cores(spec, spec.decompose(W), W, method="best")
    with pytest.raises(InputError, match="Cores are"):
        quantize_cores(spec, spec.decompose(W)[:1], W)
    for entry in ({"chi": [1]}, {"out": [2, 4]}, {"quantize": "int5"}):
        with pytest.raises(InputError, match="Field|Format"):
            spec_from_json({"network": "dense", "out": [8], "in": [8], "chi": [], "quantize": "int4"} | entry)
    with pytest.raises(InputError, match="'network' is 'dense'"):
        spec_from_json({"network": "dense"})
