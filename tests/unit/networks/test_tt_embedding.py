"""`tt_embedding`: both forms, their look-up and their head, against NumPy, einsum, tensorly and the definition."""

import math
import string

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core import InputError
from karipap_core.networks import Metric, spec_from_json
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.tt_embedding import RowWeighted, TtEmbedding, frequency_metric, padded

FORMS = ("table", "token")
QUICK = settings(max_examples=40, deadline=None)
tables = st.tuples(st.integers(1, 40), st.integers(1, 24))


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(n, seed=0):
    basis = torch.linalg.qr(random(n, n, seed=seed)).Q
    return basis * torch.arange(1, n + 1, dtype=torch.float64) ** -1.5 @ basis.T


def counts(n, seed=0):
    """Zipf's law with some tokens never met."""
    generator = torch.Generator().manual_seed(seed)
    met = 1000 / torch.arange(1, n + 1, dtype=torch.float64)
    met[3 * n // 4 :] = 0
    return met[torch.randperm(n, generator=generator)].floor()


def table_by_einsum(spec, cores):
    """The padded TT-matrix, straight from its definition, in one einsum."""
    n = len(cores)
    bonds, outs, ins = (
        string.ascii_letters[: n + 1],
        string.ascii_letters[13 : 13 + n],
        string.ascii_letters[26 : 26 + n],
    )
    terms = [bonds[k] + outs[k] + ins[k] + bonds[k + 1] for k in range(n)]
    tensor = np.einsum(",".join(terms) + "->" + outs + ins, *(core.numpy() for core in cores))
    return tensor.reshape(math.prod(spec.out), spec.n_in)


# ---- look-up, head and table


@QUICK
@given(tables, st.sampled_from(FORMS), st.integers(1, 6), st.integers(2, 4), st.integers(0, 99))
def test_rows_head_and_table_agree_for_any_shape(table, form, chi, sites, seed):
    V, d = table
    spec = TtEmbedding.for_shape(V, d, chi, form=form, sites=sites)
    assert (spec.n_out, spec.n_in) == (V, d) and math.prod(spec.in_) == d
    cores = spec.random_cores(seed, torch.float64)
    assert spec.parameters == sum(core.numel() for core in cores)
    dense = spec.dense(cores)
    assert dense.shape == (V, d)
    ids = torch.randint(V, (3, 5), generator=torch.Generator().manual_seed(seed))
    assert spec.rows(ids, cores).numpy() == pytest.approx(dense[ids].numpy(), rel=1e-9, abs=1e-12)
    assert spec.rows(ids[:0], cores).shape == (0, 5, d)
    x = random(2, 3, d, seed=seed)
    assert spec.apply(x, cores).numpy() == pytest.approx(x.numpy() @ dense.numpy().T, rel=1e-9, abs=1e-11)
    assert spec_from_json(spec.to_json()) == spec
    assert spec.with_chi(chi) == spec


@pytest.mark.parametrize("sites", [2, 3, 4])
def test_a_table_is_the_tt_matrix_of_its_definition(sites):
    spec = TtEmbedding.for_shape(53, 24, 5, sites=sites)
    cores = spec.random_cores(0, torch.float64)
    assert math.prod(spec.out) > 53
    assert spec.dense(cores).numpy() == pytest.approx(table_by_einsum(spec, cores)[:53], rel=1e-9, abs=1e-13)


def test_no_index_reaches_the_padding():
    spec = TtEmbedding.for_shape(53, 24, 4)
    cores = spec.random_cores(0)
    for wrong in (53, math.prod(spec.out) - 1, -1):
        with pytest.raises(IndexError, match="0 … 52"):
            spec.rows(torch.tensor([1, wrong]), cores)
    assert spec.apply(torch.ones(24), cores).shape == (53,)


@pytest.mark.parametrize("V", [1, 7, 509, 32003, 50257, 151936])
@pytest.mark.parametrize("sites", [2, 3, 4])
def test_padding_is_slight(V, sites):
    out = padded(V, sites)
    assert len(out) == sites and math.prod(out) >= V
    assert V < 1000 or math.prod(out) <= 1.04 * V


def test_two_sites_by_default_and_a_third_for_a_table_too_large_for_them():
    assert [len(TtEmbedding.for_shape(V, d, 8).out) for V, d in ((4096, 256), (32003, 512), (32003, 4096))] == [2, 2, 3]
    large = TtEmbedding.for_shape(50257, 768, 10**6, form="token")
    assert large.in_ == (24, 32) and large.core_shapes == [(50257, 1, 24, 24), (50257, 24, 32, 1)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_any_float_dtype(form, dtype, tolerance):
    spec = TtEmbedding.for_shape(97, 32, 4, form=form)
    cores = spec.random_cores(1, torch.float64)
    ids, x = torch.arange(0, 97, 7), random(4, 32)
    own = [core.to(dtype) for core in cores]
    rows, y = spec.rows(ids, own), spec.apply(x.to(dtype), own)
    assert rows.dtype == y.dtype == dtype
    for got, wanted in ((rows, spec.rows(ids, cores)), (y, spec.apply(x, cores))):
        assert (got.double() - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("form", FORMS)
def test_look_up_and_head_are_one_graph_each(form):
    spec = TtEmbedding.for_shape(53, 24, 3, form=form)
    cores, ids, x = spec.random_cores(0), torch.arange(0, 53, 5), torch.randn(2, 24)
    for use, taken in ((spec.rows, ids), (spec.apply, x)):
        compiled = torch.compile(use, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(taken, cores), use(taken, cores))


@pytest.mark.parametrize("form", FORMS)
def test_gradients_reach_every_core_through_look_up_and_head(form):
    spec = TtEmbedding.for_shape(30, 12, 3, form=form)
    for use in (lambda cores: spec.rows(torch.arange(30), cores), lambda cores: spec.apply(random(2, 12), cores)):
        cores = [core.requires_grad_() for core in spec.random_cores(0, torch.float64)]
        use(cores).square().sum().backward()
        assert all(core.grad.abs().sum() > 0 for core in cores)


# ---- the fit


@QUICK
@given(tables, st.sampled_from(FORMS), st.integers(2, 4))
def test_full_rank_is_the_table_itself(table, form, sites):
    W = random(*table)
    spec = TtEmbedding.for_shape(*table, 10**6, form=form, sites=sites)
    assert max(spec.chi) == spec.max_chi == spec.with_chi(spec.max_chi).chi[spec.chi.index(spec.max_chi)]
    assert spec.dense(spec.decompose(W)).numpy() == pytest.approx(W.numpy(), abs=1e-5 * W.abs().max().item())


def test_the_token_form_is_a_tt_svd_of_each_token_alone():
    spec = TtEmbedding.for_shape(11, 24, 2, in_=(4, 3, 2), form="token")
    W = random(11, 24)
    ours = spec.dense(cores := spec.start(W)).numpy()
    assert [tuple(core.shape) for core in cores] == [(11, 1, 4, 2), (11, 2, 3, 2), (11, 2, 2, 1)]
    for v, vector in enumerate(W.numpy()):
        U, s, Vt = np.linalg.svd(vector.reshape(4, 6))
        rest = (s[:2, None] * Vt[:2]).reshape(6, 2)
        U2, s2, Vt2 = np.linalg.svd(rest, full_matrices=False)
        theirs = U[:, :2] @ ((U2[:, :2] * s2[:2]) @ Vt2[:2]).reshape(2, 6)
        assert ours[v] == pytest.approx(theirs.reshape(-1), abs=1e-10)


def test_the_token_form_agrees_with_tensorly():
    pytest.importorskip("tensorly")
    import tensorly
    from tensorly.decomposition import tensor_train

    W = random(5, 36)
    spec = TtEmbedding.for_shape(5, 36, 2, in_=(4, 3, 3), form="token")
    for ours, vector in zip(spec.dense(spec.start(W)).numpy(), W.numpy(), strict=True):
        theirs = tensorly.tt_to_tensor(tensor_train(vector.reshape(4, 3, 3), rank=[1, 2, 2, 1]))
        assert ours == pytest.approx(theirs.reshape(-1), abs=1e-9)


def test_rank_one_stores_the_sum_of_the_factors():
    # GPT-2's 768 = 2^7 · 6 gives the paper's 38.4 = 768 / 20.
    spec = TtEmbedding.for_shape(50257, 768, 1, in_=(2,) * 7 + (6,), form="token")
    assert 50257 * 768 / spec.parameters == 38.4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sites", [2, 3])
def test_planted_bonds_are_found_again_to_the_noise(form, sites):
    spec = TtEmbedding.for_shape(53, 24, 2, form=form, sites=sites)
    planted = spec.dense(spec.random_cores(3, torch.float64))
    planted = planted / planted.norm()
    noise = 1e-6 * random(53, 24, seed=5) / math.sqrt(53 * 24)
    for metric in (Metric("weight"), Metric("functional", moment(24)), frequency_metric(counts(53))):
        cores = spec.decompose(planted + noise, metric)
        if form == "table":  # a cut of the padded table sees more than the V rows: the start is only near
            assert metric.error(planted, spec.dense([core.double() for core in cores])) < 1e-9
        else:
            assert (spec.dense([core.double() for core in cores]) - planted).norm().item() < 3e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "metric",
    [
        Metric("weight"),
        Metric("functional", moment(24)),
        Metric("loss", moment(24), moment(53, 1)),
        frequency_metric(counts(53)),
        frequency_metric(counts(53), moment(24)),
    ],
    ids=["weight", "functional", "loss", "frequency", "frequency C"],
)
def test_the_fit_never_ends_above_its_start_and_falls_with_chi(form, metric):
    W = random(53, 24)
    errors = []
    for chi in (1, 2, 4, 8):
        spec = TtEmbedding.for_shape(53, 24, chi, form=form)
        error = metric.absolute(W - spec.dense(spec.fit(W, metric)))
        assert error <= metric.absolute(W - spec.dense(spec.start(W))) * (1 + 1e-9) + 1e-20
        errors.append(error)
    assert all(after <= before * (1 + 1e-6) for before, after in zip(errors, errors[1:], strict=False))
    curve = TtEmbedding.curve(W, metric, form=form)
    assert np.all(np.diff(curve.error) <= 0) and np.all(np.diff(curve.parameters) >= 0)
    assert curve.total == pytest.approx(metric.absolute(W))


def test_a_curve_that_says_exact_is():
    W = random(53, 24)
    for metric in (Metric("weight"), frequency_metric(counts(53))):
        curve = TtEmbedding.curve(W, metric, form="token", sites=2)
        assert curve.exact and list(curve.chi) == [1, 2, 3, 4]
        for chi in curve.chi:
            spec = TtEmbedding.for_shape(53, 24, int(chi), form="token", sites=2)
            reached = metric.absolute(W - spec.dense(spec.fit(W, metric)))
            assert curve.at(chi) == pytest.approx(reached, rel=1e-6, abs=1e-12)


# ---- frequencies


def test_the_frequency_metric_is_its_definition():
    W, W_hat, met, C = random(53, 24), random(53, 24, seed=1), counts(53), moment(24)
    p = met.numpy() / met.sum().item()
    p = p + 0.1 / 53
    D = (W - W_hat).numpy()
    assert frequency_metric(met).absolute(W - W_hat) == pytest.approx((p * (D**2).sum(1)).sum(), rel=1e-12)
    damped = C.numpy() + 0.1 * np.trace(C.numpy()) / 24 * np.eye(24)
    metric = frequency_metric(met, C)
    assert metric.absolute(W - W_hat) == pytest.approx(np.einsum("v,vi,ij,vj", p, D, damped, D), rel=1e-10)
    whitened = metric.whiten(W)
    assert metric.unwhiten_right(metric.unwhiten_left(whitened)).numpy() == pytest.approx(W.numpy(), rel=1e-8, abs=1e-9)
    full = Metric("loss", C, torch.diag(met / met.sum()), damping=0.1)
    assert metric.error(W, W_hat) == pytest.approx(full.error(W, W_hat), rel=1e-10)


@pytest.mark.parametrize("V, d", [(40, 12), (12, 40)])
def test_lowrank_is_the_optimum_of_the_frequency_metric(V, d):
    W, metric = random(V, d), frequency_metric(counts(V), moment(d))
    sigma = np.linalg.svd(metric.whiten(W).numpy(), compute_uv=False)
    cores = LowRank.for_shape(V, d, 5).fit(W, metric)
    assert metric.absolute(W - cores[0] @ cores[1]) == pytest.approx((sigma[5:] ** 2).sum(), rel=1e-8)


@pytest.mark.parametrize("kind, options", [(LowRank, {}), (TtEmbedding, {}), (TtEmbedding, {"sites": 3})])
def test_frequency_weighting_lowers_the_weighted_error(kind, options):
    W, metric = random(60, 24), frequency_metric(counts(60))
    spec = kind.for_shape(60, 24, 6, **options)
    weighted, plain = (metric.error(W, spec.dense(spec.fit(W, m))) for m in (metric, Metric("weight")))
    assert weighted < 0.8 * plain


def test_a_vocabulary_of_151936_needs_no_square_matrix():
    V, d = 151936, 4
    metric = frequency_metric(torch.ones(V))
    W = random(V, d)
    assert metric.error(W, torch.zeros_like(W)) == pytest.approx(1)
    left, right = LowRank.for_shape(V, d, 4).fit(W, metric)
    assert (left @ right)[-1].numpy() == pytest.approx(W[-1].numpy(), abs=1e-9)


@pytest.mark.parametrize("wrong", [[0.0, 0.0], [1.0, -1.0], [1.0, math.nan], [[1.0]]])
def test_counts_that_weigh_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="rows"):
        frequency_metric(torch.tensor(wrong))
    with pytest.raises(InputError, match="row weights"):
        RowWeighted(G=torch.ones(3)).whiten(random(4, 2))


# ---- storage and bad entries


@pytest.mark.parametrize("form", FORMS)
def test_bytes_count_every_core_in_its_format(form):
    spec = TtEmbedding.for_shape(53, 24, 3, form=form, quantize="int8")
    assert all(math.prod(spec.core_matrix(k)) == math.prod(shape) for k, shape in enumerate(spec.core_shapes))
    rows = sum(spec.core_matrix(k)[0] for k in range(len(spec.core_shapes)))
    assert spec.bytes(4) == spec.parameters + 3 * rows  # a byte a number, scale and zero point a row
    assert TtEmbedding.for_shape(53, 24, 3, form=form).bytes(2) == 2 * spec.parameters


GOOD = {"network": "tt_embedding", "out": [4, 14], "in": [4, 6], "chi": [3], "form": "table", "vocabulary": 53}


@pytest.mark.parametrize(
    "changed, field",
    [
        ({"form": "row"}, "form"),
        ({"vocabulary": 57}, "vocabulary"),
        ({"vocabulary": 0}, "vocabulary"),
        ({"vocabulary": 53.0}, "vocabulary"),
        ({"in": [24]}, "in"),
        ({"out": [56]}, "out"),
        ({"chi": [17]}, "chi"),
        ({"chi": []}, "chi"),
        ({"form": "token"}, "out"),
        ({"form": "token", "out": [53], "chi": [5]}, "chi"),
    ],
)
def test_a_wrong_entry_is_one_sentence_that_names_the_field(changed, field):
    assert spec_from_json(GOOD).n_out == 53
    with pytest.raises(InputError, match=f"[Ff]ields? .*'{field}'") as caught:
        spec_from_json(GOOD | changed)
    assert "\n" not in str(caught.value)
