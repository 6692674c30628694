import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.errors import InputError
from karipap_core.quantization.float8 import quantize_fp8
from karipap_core.quantization.formats import Format, from_tensors
from karipap_core.quantization.packing import Quantized, pack, unpack
from karipap_core.quantization.rounding import (
    SHRINKS,
    SMALLEST,
    inverse_factor,
    quantize_by_factor,
    quantize_gptq,
    quantize_rtn,
)


def weight(n_out=24, n_in=50, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_out, n_in, generator=generator) * torch.rand(1, n_in, generator=generator)


def moment(n_in=50, seed=1, rows=400):
    """A second moment with strong correlations and very different sizes, as activations have."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(n_in, n_in, generator=generator) * torch.logspace(0, -2, n_in)
    x = torch.randn(rows, n_in, generator=generator) @ mix.T
    return (x.T @ x / rows).double()


def slow_grid(values, bits, shrink):
    """float16 scale and integer zero of one group by the definition."""
    low, high = min(values.min(), 0) * shrink, max(values.max(), 0) * shrink
    scale = float(np.float16((high - low) / (2**bits - 1))) or 1.0
    return scale, min(max(np.round(-low / scale), 0), 2**bits - 1)


def slow_round(value, scale, zero, bits):
    return min(max(np.round(value / scale + zero), 0), 2**bits - 1)


def slow_search(values, bits, clip, weights=None):
    weights, best = np.ones(len(values)) if weights is None else weights, None
    for shrink in np.linspace(1, SMALLEST, SHRINKS) if clip else [1.0]:
        scale, zero = slow_grid(values, bits, shrink)
        error = sum(
            w * (scale * (slow_round(v, scale, zero, bits) - zero) - v) ** 2
            for v, w in zip(values, weights, strict=True)
        )
        if best is None or error < best[0]:
            best = error, scale, zero
    return best[1:]


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("columns", [7, 32, 300])
def test_no_range_that_wins_is_left_out(bits, columns):
    """Ranges are looked at in float32 first: against all of them in float64, on entries of every size and shape."""
    generator = torch.Generator().manual_seed(bits)
    W = torch.randn(300, columns, generator=generator, dtype=torch.float64)
    W[::3] = W[::3] ** 5
    W[1::7, 1:] *= 1e-4
    W = (W * torch.logspace(-12, 45, 300, dtype=torch.float64)[:, None]).clamp(-3e38, 3e38)
    W[5], W[6, 1:] = 0, 0
    low, high = W.amin(1).clamp(max=0).numpy(), W.amax(1).clamp(min=0).numpy()
    tried = []
    for shrink in np.linspace(1, SMALLEST, SHRINKS):
        scale = np.minimum((high * shrink - low * shrink) / (2**bits - 1), 65504).astype(np.float16).astype(float)
        scale[scale == 0] = 1
        zero = np.clip(np.round(-low * shrink / scale), 0, 2**bits - 1)
        codes = np.clip(np.round(W.numpy() / scale[:, None] + zero[:, None]), 0, 2**bits - 1)
        left = scale[:, None] * (codes - zero[:, None]) - W.numpy()
        tried.append(((left**2).sum(1), scale, zero))
    errors, scales, zeros = (np.stack(each) for each in zip(*tried, strict=True))
    found = quantize_rtn(W, bits, None)
    at = (scales == found.scales[:, 0].double().numpy()) & (zeros == found.zeros[:, 0].numpy())
    ours = np.where(at, errors, np.inf).min(0)
    assert (ours <= errors.min(0) * (1 + 1e-12)).all()


def slow_rtn(W, bits, group, clip):
    result = np.empty_like(W)
    for i, row in enumerate(W):
        for start in range(0, len(row), group):
            part = row[start : start + group]
            scale, zero = slow_search(part, bits, clip)
            result[i, start : start + group] = [scale * (slow_round(v, scale, zero, bits) - zero) for v in part]
    return result


def conditional_variances(H, columns):
    """Of each column, in this order, given those that come after it: what an error there costs when they are free."""
    found = np.zeros(len(columns))
    for place, j in enumerate(columns):
        free = columns[place:]
        found[j] = 1 / np.linalg.inv(H[np.ix_(free, free)])[0, 0]
    return found


def slow_gptq(W, bits, group, C, damping, order, weigh):
    """Optimal brain surgeon by its definition, a row at a time: the inverse of the still free part of the Hessian is
    computed anew for every column, no Cholesky factor is used."""
    n = W.shape[1]
    H = C + damping * np.diag(C).mean() * np.eye(n)
    columns = np.argsort(-np.diag(C), kind="stable") if order else np.arange(n)
    result, weights = np.empty_like(W), conditional_variances(H, columns) if weigh else np.ones(n)
    groups = [slice(start, start + group) for start in range(0, n, group)]
    for i in range(len(W)):
        row, grids = W[i].copy(), {}
        if order:
            grids = {g: slow_search(W[i, each], bits, True, weights[each]) for g, each in enumerate(groups)}
        free = list(columns)
        while free:
            j = free[0]
            if j // group not in grids:
                grids[j // group] = slow_search(row[j : j + group], bits, True, weights[j : j + group])
            scale, zero = grids[j // group]
            result[i, j] = scale * (slow_round(row[j], scale, zero, bits) - zero)
            inverse = np.linalg.inv(H[np.ix_(free, free)])
            row[free] -= (row[j] - result[i, j]) / inverse[0, 0] * inverse[0]
            free = free[1:]
    return result


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("group", "clip"), [(16, True), (50, True), (7, False)])
def test_rounding_equals_a_plain_loop(bits, group, clip):
    W = weight(6)
    found = quantize_rtn(W, bits, group, clip).dense().numpy()
    np.testing.assert_allclose(found, slow_rtn(W.double().numpy(), bits, group, clip), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weigh", [False, True])
@pytest.mark.parametrize("order", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(2, 8), (3, 20), (4, 50)])
def test_gptq_equals_optimal_brain_surgeon_by_definition(bits, group, order, weigh):
    W, C = weight(4), moment()
    found = quantize_gptq(W, bits, group, C, damping=0.01, order=order, weigh=weigh).dense().numpy()
    expected = slow_gptq(W.double().numpy(), bits, group, C.numpy(), 0.01, order, weigh)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group", [16, None])
def test_gptq_beats_rounding_where_it_counts(bits, group):
    W, C = weight(), moment()

    def error(quantized):
        D = W.double() - quantized.dense().double()
        return torch.einsum("oi,ij,oj->", D, C, D).item()

    rounded, plain = error(quantize_rtn(W, bits, group)), error(quantize_rtn(W, bits, group, clip=False))
    for order in (False, True):
        assert error(quantize_gptq(W, bits, group, C, order=order)) < 0.7 * min(rounded, plain)


@pytest.mark.parametrize("shape", [(1, 50), (24, 50), (3, 1)])
def test_the_weight_that_comes_in_is_left_as_it_is(shape):
    W = weight(*shape).double()
    before = W.clone()
    quantize_gptq(W, 3, 16, moment(shape[1]))
    quantize_rtn(W, 3, 16)
    assert torch.equal(W, before)


def test_gptq_with_uncorrelated_inputs_is_rounding():
    W = weight()
    quantized = quantize_gptq(W, 3, 16, torch.eye(50, dtype=torch.float64) * 3)
    assert torch.equal(quantized.codes, quantize_rtn(W, 3, 16).codes)


@pytest.mark.parametrize("group", [5, 40, None])
def test_pieces_of_a_row_share_scales_and_no_errors(group):
    """Three rows of 10 in one: as GPTQ of the whole row under the block-diagonal moment, its scales being those of the
    uncorrected weights."""
    W, C = weight(8, 30), moment(10)
    whole = torch.block_diag(C, C, C)
    U = inverse_factor(C, 0.01)
    pieces = quantize_by_factor(W, 3, group, U)
    expected = quantize_by_factor(W, 3, group, inverse_factor(whole, 0.01), permutation=torch.arange(30))
    assert torch.equal(pieces.codes, expected.codes) and torch.equal(pieces.scales, expected.scales)
    with pytest.raises(InputError, match="divisor"):
        quantize_by_factor(weight(8, 31), 3, group, U)


def test_clip_never_does_worse_and_outliers_need_it():
    W = torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    W[:, ::64] *= 12
    with_clip, without = ((W - quantize_rtn(W, 2, 64, clip).dense()).square().sum(-1) for clip in (True, False))
    assert (with_clip <= without * (1 + 1e-6)).all() and with_clip.sum() < 0.9 * without.sum()


def test_bytes_count_codes_scales_and_zero_points():
    W = torch.randn(256, 1024)
    per_weight = {(4, 64): 4 + 20 / 64, (3, 64): 3 + 19 / 64, (3, 128): 3 + 19 / 128, (2, 32): 2 + 18 / 32}
    for (bits, group), expected in per_weight.items():
        quantized = quantize_rtn(W, bits, group)
        assert quantized.bytes * 8 == expected * W.numel()
        stored = pack(quantized.codes, bits), pack(quantized.zeros, bits), quantized.scales
        assert sum(tensor.numel() * tensor.element_size() for tensor in stored) == quantized.bytes
    assert quantize_rtn(torch.randn(3, 5), 3, 2).bytes == 6 + 4 + 2 * 9  # 45 bits; 9 groups: 27 bits


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_packing_gives_back_every_code(data):
    bits = data.draw(st.sampled_from([2, 3, 4, 8]))
    shape = (data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)))
    size = shape[0] * shape[1]
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=size, max_size=size))
    codes = torch.tensor(codes, dtype=torch.uint8).reshape(shape)
    packed = pack(codes, bits)
    assert packed.numel() == -(-size * bits // 8) and torch.equal(unpack(packed, bits, shape), codes)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_matrix_comes_back_finite_in_range_and_near(data):
    shape = data.draw(st.tuples(st.integers(1, 8), st.integers(1, 20)))
    bits, group = data.draw(st.sampled_from([2, 3, 4, 8])), data.draw(st.sampled_from([None, 1, 5]))
    scale = data.draw(st.sampled_from([0.0, 1e-3, 1.0, 1e4]))
    W = scale * torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    C = moment(shape[1]) * data.draw(st.sampled_from([0.0, 1e-8, 1.0]))
    for quantized in (quantize_rtn(W, bits, group), quantize_gptq(W, bits, group, C)):
        assert int(quantized.codes.max()) < 2**bits and int(quantized.zeros.max()) < 2**bits
        assert torch.isfinite(quantized.dense()).all() and quantized.dense().shape == shape
    step = (W.amax(1).clamp(min=0) - W.amin(1).clamp(max=0)) / (2**bits - 1)
    plain = quantize_rtn(W, bits, group, clip=False).dense()
    coarse = 2**-24 * (2**bits - 1)  # float16 scales below 6e-5 are that coarse
    assert ((W - plain).abs() <= 1.01 * step[:, None] + coarse).all()


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(InputError, match="9 bits"):
        quantize_rtn(weight(), 9)
    with pytest.raises(InputError, match="matrix"):
        quantize_rtn(torch.zeros(3), 4)
    with pytest.raises(InputError, match="at least 1"):
        quantize_rtn(weight(), 4, 0)
    with pytest.raises(InputError, match="50 inputs"):
        quantize_gptq(weight(), 4, 16, moment(20))


def test_dense_by_hand():
    quantized = Quantized(
        torch.tensor([[0, 1, 3]], dtype=torch.uint8),
        torch.tensor([[0.5, 2.0]]).half(),
        torch.tensor([[1, 2]], dtype=torch.uint8),
        2,
        2,
    )
    assert quantized.dense().tolist() == [[-0.5, 0.0, 2.0]]
    assert quantized.bytes == 1 + 1 + 4


def test_int8_is_as_near_as_torchaos():
    quantization = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    W = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    linear = torch.nn.Linear(256, 64, bias=False)
    linear.weight.data = W.clone()
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    theirs = linear.weight.dequantize()
    ours = quantize_rtn(W, 8, None).dense()
    error = [((W - each).norm() / W.norm()).item() for each in (ours, theirs)]
    assert error[0] < 1.05 * error[1] and error[0] == pytest.approx(error[1], rel=0.5)
    assert ((ours - theirs).norm() / W.norm()).item() < 2 * error[1]


# ---- on disk

FORMATS = ["int8", "int4", "int3", "int2", "int4g128", "int3g5", "int2g7", "int8g16", "fp8"]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 130), (64, 64), (1, 257), (257, 1)])
def test_a_format_knows_its_bytes_and_the_tensors_give_the_matrix_back(name, shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    quantized = Format.parse(name).rounded(W)
    tensors = quantized.tensors()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert stored == quantized.bytes == Format.parse(name).bytes(*shape)
    assert {k: (tuple(t.shape), t.dtype) for k, t in tensors.items()} == Format.parse(name).shapes(*shape)
    assert torch.equal(from_tensors(name, *shape, tensors).dense(), quantized.dense())


@pytest.mark.parametrize("name", ["int3", "fp8"])
def test_tensors_of_another_matrix_are_refused_by_name(name):
    tensors = Format.parse(name).rounded(weight()).tensors()
    with pytest.raises(InputError, match="'scales' .* is missing"):
        from_tensors(name, 24, 50, {"codes": tensors["codes"]})
    with pytest.raises(InputError, match="'codes' of a matrix 24 × 40"):
        from_tensors(name, 24, 40, tensors)
    with pytest.raises(InputError, match="'scales' .*float16"):
        from_tensors(name, 24, 50, tensors | {"scales": tensors["scales"].float()})


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 100])
def test_unpacking_in_torch_is_numpys(bits, count):
    codes = torch.randint(0, 2**bits, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits))
    packed = pack(codes, bits)
    numpys = np.packbits(np.unpackbits(packed.numpy(), count=count * bits).reshape(count, bits), axis=1)[:, 0]
    assert np.array_equal(unpack(packed, bits, (count,)).numpy(), numpys >> (8 - bits))
    assert np.array_equal(numpys >> (8 - bits), codes.numpy())


# ---- e4m3


def test_fp8_is_torchs_cast_at_the_best_of_its_scales():
    W = weight()
    quantized = quantize_fp8(W)
    scales = quantized.scales.double()
    theirs = (W.double() / scales).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(quantized.codes.view(torch.uint8), theirs.view(torch.uint8))
    plain = (W.double().abs().amax(1, keepdim=True) / 448).half().double()
    cast = plain * (W.double() / plain).clamp(-448, 448).to(torch.float8_e4m3fn).double()
    error = (quantized.dense().double() - W).square().sum(1)
    assert (error <= (cast - W).square().sum(1) * (1 + 1e-12)).all() and error.sum() < (cast - W).square().sum()


def test_fp8_rounds_to_the_nearest_number_of_e4m3():
    """The 253 finite numbers of e4m3, written out from its definition."""
    grid = [(8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)]
    grid = np.array(sorted({s * v for s in (1, -1) for v in [*grid, *(m * 2.0**-9 for m in range(8))]}))
    assert len(grid) == 253 and grid.max() == 448
    quantized = quantize_fp8(weight())
    scaled = weight().double().numpy() / quantized.scales.double().numpy()
    nearest = np.abs(np.clip(scaled, -448, 448)[..., None] - grid).min(-1)
    assert np.abs(quantized.codes.double().numpy() - scaled) == pytest.approx(
        np.maximum(nearest, np.abs(scaled) - 448), rel=1e-6, abs=1e-6
    )


@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_fp8_stays_finite_at_any_size(size):
    W = size * weight()
    found = quantize_fp8(W).dense()
    assert torch.isfinite(found).all()
    if 1e-2 < size < 1e7:
        assert ((found - W).norm() / W.norm()).item() < 0.04


# ---- storing what is stored already


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_dequantized_matrix_is_stored_again_without_loss(data):
    shape = data.draw(st.tuples(st.integers(1, 6), st.integers(1, 40)))
    name = data.draw(st.sampled_from(["int8", "int4g8", "int3g16", "int2g4", "int3", "fp8"]))
    W = torch.randn(shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 99))))
    W = W * data.draw(st.sampled_from([0.0, 1e-4, 1.0, 1e3])) + data.draw(st.sampled_from([0.0, 2.0]))
    dense = Format.parse(name).rounded(W).dense()
    again = Format.parse(name).on_grid(dense)
    assert again is not None and torch.equal(again.dense(), dense)
    assert again.bytes == Format.parse(name).bytes(*shape)
    assert torch.equal(Format.parse(name).rounded(dense).dense(), dense)  # which a search for a clip need not give


def test_what_is_on_no_grid_is_told_from_what_is():
    int3, int4, fp8 = (Format.parse(name) for name in ("int3", "int4", "fp8"))
    dense = int3.rounded(weight()).dense()
    assert int3.on_grid(dense) is not None and int3.on_grid(weight()) is None
    assert int3.on_grid(int4.rounded(weight()).dense()) is None
    assert fp8.on_grid(fp8.rounded(weight()).dense()) is not None and fp8.on_grid(weight()) is None
    dense[3, 7] += 1e-4
    assert int3.on_grid(dense) is None
    tiny = fp8.rounded(torch.tensor([[4.4728e-06, 1e-7]])).dense()  # whose scale is the smallest that there is
    assert tiny[0, 0] > 0 and torch.equal(fp8.on_grid(tiny).dense(), tiny)


@pytest.mark.parametrize("largest", [208, 224, 240, 256, 288, 320, 352, 384, 416, 448])
def test_a_row_of_fp8_is_known_by_any_largest_code(largest):
    """Beside the smallest number of e4m3, which no other scale holds."""
    dense = 0.375 * torch.tensor([[largest, 2.0**-9, -(2.0**-6)]])
    found = Format.parse("fp8").on_grid(dense)
    assert found is not None and torch.equal(found.dense(), dense) and found.scales.item() == 0.375


def test_the_factor_of_a_large_moment_is_that_of_its_inverse():
    """More columns than are inverted at once, an odd number of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 601, generator=generator, dtype=torch.float64)
    C = x.T @ x / len(x)
    U = inverse_factor(C, 0.01)
    assert torch.equal(U, U.triu())
    damped = C + 0.01 * C.diagonal().mean() * torch.eye(601, dtype=torch.float64)
    torch.testing.assert_close(U.T @ U @ damped, torch.eye(601, dtype=torch.float64), rtol=0, atol=1e-9)
