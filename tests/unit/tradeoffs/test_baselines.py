import numpy as np
import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.perplexity import perplexity
from karipap_core.evaluation.scoring import Scoring
from karipap_core.models.load import load_model
from karipap_core.plan.budget import Budget
from karipap_core.plan.planner import Planner
from karipap_core.quantization.rounding import quantize_gptq, quantize_rtn
from karipap_core.tradeoffs.baselines import (
    WAYS,
    Baseline,
    Replacement,
    baselines,
    integers,
    measure_baseline,
    prune,
    sizes,
)
from tests.helpers.architectures import make
from tests.helpers.studies import squares, study_of

HELD_OUT = squares(60)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def study(request, tmp_path_factory):
    return study_of(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def bench(study):
    model, tokenizer = study.model
    return InPlace(model, tokenizer, study.checkpoint, HELD_OUT, Scoring(32, 32))


def test_in_place_is_the_model_with_other_weights_and_goes_back(study, bench):
    weight = next(w for w in study.checkpoint.weights if w.compressible)
    W = study.checkpoint.read(weight.name) * 0.5
    other, tokenizer = load_model(study.checkpoint)
    module = InPlace(other, tokenizer, study.checkpoint, HELD_OUT, Scoring(32, 32)).sites[weight.name].module
    module.weight.data = W.T.contiguous() if weight.transposed else W
    expected = perplexity(other, tokenizer, HELD_OUT, Scoring(32, 32))
    before = bench.measure([])
    assert before["rise"] == before["kl"] == 0.0
    found = bench.measure([(weight.name, W)])
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-6) and found["kl"] > 1e-5
    assert bench.measure([]) == before
    with pytest.raises(InputError, match="cannot be replaced"):
        bench.measure([(weight.name, W), ("no.such.weight", W)])
    assert bench.measure([]) == before


def test_every_baseline_costs_what_it_says_and_leaves_the_model_alone(study, bench):
    before = bench.measure([])
    blocks = study.checkpoint.block_parameters
    compressible = [weight for weight in study.checkpoint.weights if weight.compressible]
    found = {}
    for baseline in baselines(study, kept=(0.6,), quantized=((8, None), (4, 16), (2, 16)), sparsities=(0.5,)):
        point = measure_baseline(baseline, bench, study.checkpoint)
        found[baseline.method, baseline.settings.get("bits")] = point
        stored = list(baseline.make())
        assert {item.name for item in stored} <= {weight.name for weight in compressible}
        left = blocks - sum(w.parameters for w in compressible if w.name in {item.name for item in stored})
        assert point["bytes_kept_blocks"] * 2 * blocks == pytest.approx(sum(i.bytes for i in stored) + 2 * left)
        assert point["kept_blocks"] * blocks == pytest.approx(sum(i.parameters for i in stored) + left)
        assert bench.measure([]) == before
    groups = sum(w.shape[0] * -(-w.shape[1] // 16) for w in compressible)
    for method in ("rtn", "gptq"):
        # Packing rounds up to whole bytes once a weight for codes and once for zero points.
        exact = (4 * blocks + 20 * groups) / (16 * blocks)
        assert found[method, 4]["bytes_kept_blocks"] == pytest.approx(exact, rel=1e-3)
    assert found["magnitude", None]["bytes_kept_blocks"] == pytest.approx(0.5 + 1 / 16, rel=1e-3)
    assert (
        0.5 < found["svd", None]["bytes_kept_blocks"] == found["svd-llm", None]["kept_blocks"] <= 0.65
    )  # of this weight; of the model, 0.6
    assert found["gptq", 2]["kl"] < found["rtn", 2]["kl"] and found["rtn", 8]["kl"] < found["rtn", 4]["kl"] * 0.1
    assert all(np.isfinite(point["loss"]) and point["kl"] > 0 for point in found.values())


def test_svd_baseline_is_numpys_truncated_svd(study):
    baseline = next(b for b in baselines(study, kept=(0.6,), quantized=(), sparsities=()) if b.method == "svd")
    for item in baseline.make():
        W = study.checkpoint.read(item.name).double().numpy()
        chi = baseline.plan.spec(item.name).chi[0]
        assert 0.5 < chi * sum(W.shape) / W.size <= 0.65  # of this weight; of the model, 0.6
        U, s, Vt = np.linalg.svd(W)
        np.testing.assert_allclose(item.matrix.numpy(), U[:, :chi] * s[:chi] @ Vt[:chi], atol=2e-5)
    made = Planner(study, "lowrank", "weight").make(Budget(0.6, scope="blocks"), "uniform")
    assert made.weights == baseline.plan.weights
    sizes = baseline.plan.predicted
    assert made.predicted["rise"] and "rise" not in sizes, "a pass that nobody asked for"
    assert sizes["kept"] < 1 and sizes == {key: made.predicted[key] for key in sizes}


def test_rtn_baseline_is_rounding_of_each_weight(study):
    baseline = next(b for b in baselines(study, quantized=((3, 8),), sparsities=()) if b.method == "rtn")
    for item in baseline.make():
        quantized = quantize_rtn(study.checkpoint.read(item.name), 3, 8)
        assert torch.equal(item.matrix, quantized.dense()) and item.bytes == quantized.bytes


def test_a_weight_keeps_the_best_of_three_ways_of_gptq(study):
    """In the first block, which stands behind nothing that is quantized."""
    found = {item.name: item.matrix for item in integers(study, "gptq", 2, 16).make()}
    first = [weight.name for weight in study.checkpoint.weights if ".0." in weight.name and weight.name in found]
    taken = set()
    for name in first:
        W, C = study.checkpoint.read(name), study.moments.metric(name, "functional").C
        ways = [quantize_gptq(W, 2, 16, C, order=order, clip=clip, weigh=True).dense() for order, clip in WAYS]
        errors = [torch.einsum("oi,ij,oj->", D, C.double(), D).item() for D in (W.double() - way for way in ways)]
        best = int(np.argmin(errors))
        assert torch.equal(found[name], ways[best]), name
        taken.add(best)
    assert len(taken) > 1  # no one way is the best of every weight


def test_pruning_against_numpy():
    W = torch.randn(13, 21, generator=torch.Generator().manual_seed(0))
    pruned, n_bytes = prune(W, 0.3)
    zeros = round(0.3 * W.numel())
    threshold = np.sort(np.abs(W.numpy()), axis=None)[zeros]
    np.testing.assert_array_equal(pruned.numpy(), np.where(np.abs(W.numpy()) >= threshold, W.numpy(), 0))
    assert n_bytes == 2 * (W.numel() - zeros) + -(-W.numel() // 8)
    assert torch.equal(prune(W, 0.0)[0], W) and not prune(W, 1.0)[0].any()


def test_sizes_of_the_untouched_model_are_one_whatever_its_dtype(tmp_path):
    for dtype in ("float32", "bfloat16"):
        checkpoint = open_checkpoint(make("llama", tmp_path / dtype, dtype=dtype))
        blocks = checkpoint.block_parameters
        whole = sizes(checkpoint, 2 * blocks, blocks)
        fractions = [value for key, value in whole.items() if "kept" in key]
        assert fractions == [1.0] * 4 and whole["bytes"] == 2 * checkpoint.parameters
        half = sizes(checkpoint, blocks, blocks)
        assert half["bytes"] == whole["bytes"] - blocks and half["bytes_kept_blocks"] == 0.5
        assert half["bytes_kept"] == half["bytes"] / whole["bytes"] > 0.5 and half["kept"] == 1.0


def test_weights_that_a_baseline_leaves_alone_cost_two_bytes_a_number(study, bench):
    weight = next(w for w in study.checkpoint.weights if w.compressible)
    half = Replacement(weight.name, study.checkpoint.read(weight.name), weight.parameters, weight.parameters)
    point = measure_baseline(Baseline("rtn", "one weight", {}, lambda: iter([half])), bench, study.checkpoint)
    assert point["bytes"] == 2 * study.checkpoint.parameters - weight.parameters and point["kl"] == 0.0
