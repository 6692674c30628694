"""Exports for ONNX Runtime: what stands in the graph for each weight, and that the engine's logits are ours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from karipap_core.errors import InputError
from karipap_core.exports.export import export, plan_of
from karipap_core.exports.onnx_layers import Blocks, Network, blocks_of, contracts, in_blocks
from karipap_core.exports.source import Source
from karipap_core.models.load import load_model
from karipap_core.networks import NETWORKS
from karipap_core.quantization.packing import Quantized
from tests.helpers.architectures import make
from tests.helpers.plans import by_role

onnx = pytest.importorskip("onnx", reason="onnx is not installed here")


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path, dict]:
    """(compressed folder, export, what `export` returned) of a Llama with biases and a tied head."""
    root = tmp_path_factory.mktemp("onnx")
    model = make("llama_biases", root / "model")
    folder = by_role(model, root / "compressed")
    return folder, root / "onnx", export(folder, "onnx", root / "onnx")


def numbers(grid: Quantized, blocks: Blocks, stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """Ŵ as ONNX Runtime's documentation of MatMulNBits has it, entry by entry."""
    rows, columns = grid.codes.shape
    found = torch.zeros(rows, columns)
    for row in range(rows):
        for column in range(columns):
            block, place = divmod(column, blocks.size)
            code = int(stored["codes"][row, block, place // 2]) >> 4 * (place % 2) & 15
            zero = int(stored["zeros"][row, block // 2]) >> 4 * (block % 2) & 15
            found[row, column] = (code - zero) * stored["scales"][row, block].float()
    return found


@pytest.mark.parametrize(("bits", "group", "columns"), [(4, 64, 128), (3, 48, 48), (2, 32, 96), (4, 100, 100)])
def test_blocks_hold_the_same_numbers(bits, group, columns):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randint(0, 1 << bits, shape, generator=generator, dtype=torch.uint8)

    groups = -(-columns // group)
    scales = torch.randn(3, groups, generator=generator).half()
    grid = Quantized(draw(3, columns), scales, draw(3, groups), bits, group)
    blocks = blocks_of(bits, group, columns)
    stored = in_blocks(grid, blocks)
    assert torch.equal(numbers(grid, blocks, stored), grid.dense())
    assert stored["codes"].shape == (3, blocks.count, blocks.size // 2) and stored["codes"].dtype == torch.uint8


def test_blocks_are_those_that_take_the_fewest_bytes():
    assert blocks_of(4, 64, 640) == Blocks(64, 10)
    assert blocks_of(4, 1024, 1024) == Blocks(256, 4)  # one group for the row: the fewest scales
    assert blocks_of(4, 576, 576) == Blocks(64, 9)  # 256 would fill up a third more
    assert blocks_of(4, 24, 48) is None and blocks_of(8, 64, 640) is None  # no such block; slow


def graph_nodes(out: Path):
    return onnx.load(out / "model.onnx", load_external_data=False).graph


def test_every_weight_has_the_nodes_that_its_line_says(exported):
    folder, out, document = exported
    graph = graph_nodes(out)
    kinds = {line["weight"]: line["stored"] for line in document["weights"]}
    by_input = {name: node for node in graph.node for name in node.input}
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == sum("MatMulNBits" in kind for kind in kinds.values()) == 6  # q, v and up of two layers
    for node in nodes:
        settings = {each.name: each.i for each in node.attribute}
        assert settings["bits"] == 4 and settings["accuracy_level"] == 1 and node.domain == "com.microsoft"
    tensors = {each.name: each for each in graph.initializer}
    for weight, kind in kinds.items():
        assert (f"{weight}.grid.codes" in tensors) == ("MatMulNBits" in kind or "byte" in kind)
        assert (f"{weight}.pair.left" in tensors) == (f"{weight}.pair.right" in tensors) == ("two MatMuls" in kind)
        assert (f"{weight}.weight" in tensors) == kind.startswith("dense")
        if "MatMulNBits" in kind:
            assert by_input[f"{weight}.grid.codes"].op_type == "MatMulNBits"
    assert sum(node.op_type == "Attention" for node in graph.node) == 2
    assert {each.name for each in graph.input} == {"input_ids", "attention_mask", "position_ids"} | {
        f"past_key_values.{layer}.{kind}" for layer in (0, 1) for kind in ("key", "value")
    }


def test_what_lies_beside_the_graph_is_what_the_folder_holds(exported):
    folder, out, _ = exported
    source = Source(folder)
    model = onnx.load(out / "model.onnx")  # with the weights
    tensors = {each.name: onnx.numpy_helper.to_array(each) for each in model.graph.initializer}
    grid = source.part("model.layers.0.self_attn.q_proj").grid
    blocks = blocks_of(grid.bits, grid.group, grid.codes.shape[1])
    name = "model.layers.0.self_attn.q_proj.grid"
    stored = {key: torch.tensor(tensors[f"{name}.{key}"]) for key in in_blocks(grid, blocks)}
    assert torch.equal(numbers(grid, blocks, stored), grid.dense())
    left, right = (tensors[f"model.layers.0.self_attn.o_proj.pair.{side}"] for side in ("left", "right"))
    exact = source.exact("model.layers.0.self_attn.o_proj").numpy()
    np.testing.assert_allclose(left.astype(np.float64) @ right.astype(np.float64), exact, rtol=0, atol=1e-12)
    tied = [name for name, tensor in tensors.items() if tensor.shape == (263, 48)]
    assert len(tied) == 1, "an embedding and the head tied to it are stored once"


def test_the_table_and_head_that_are_tied_take_their_bytes_once(exported):
    folder, out, document = exported
    stored = sum(line["bytes"] for line in document["weights"])
    rest = Source(folder)
    others = rest.checkpoint.bytes - sum(line["source_bytes"] for line in document["weights"])
    data = (out / "model.onnx.data").stat().st_size
    assert stored + others <= data <= stored + others + 64 * 100  # what stands between tensors


def test_the_engine_gives_our_logits_with_and_without_a_past(exported):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")
    from karipap_core.exports.engines.with_onnxruntime import Engine

    folder, out, _ = exported
    ids = torch.randint(0, 250, (1, 40), generator=torch.Generator().manual_seed(0))
    live, _ = load_model(folder)
    with torch.no_grad():
        wanted = live(ids).logits[0].double()
    window = ids[0].tolist()
    engine = Engine(out, {"threads": 1})
    whole, _ = engine.step(window)
    np.testing.assert_allclose(whole, wanted.numpy(), rtol=0, atol=2e-5)
    cache, rows = None, []
    for begin, end in ((0, 7), (7, 8), (8, 9), (9, 38), (38, 40)):
        logits, cache = engine.step(window[begin:end], cache)
        rows.append(logits)
    np.testing.assert_allclose(np.concatenate(rows), wanted.numpy(), rtol=0, atol=2e-5)
    scores = wanted[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(engine.logprobs(window), scores.numpy(), rtol=0, atol=2e-5)
    with torch.no_grad():
        greedy = live.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    behind = greedy[0, 40:].tolist()
    assert engine.write(window, 8)[0][: len(behind)] == behind


def test_rows_of_a_batch_may_be_filled_up_on_the_left(exported):
    """As optimum and others run a batch: zeros of attention_mask, places counted without them."""
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed here")
    folder, out, _ = exported
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    short, long = [5, 6, 7], [9, 8, 7, 6, 5]
    empty = {
        each.name: np.zeros((2, each.shape[1], 0, each.shape[3]), np.float32)
        for each in session.get_inputs()
        if each.name.startswith("past")
    }
    logits = session.run(
        ["logits"],
        empty
        | {
            "input_ids": np.array([[0, 0, *short], long]),
            "attention_mask": np.array([[0, 0, 1, 1, 1], [1] * 5]),
            "position_ids": np.array([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]),
        },
    )[0]
    live, _ = load_model(folder)
    with torch.no_grad():
        for row, ids in ((logits[0, 2:], short), (logits[1], long)):
            np.testing.assert_allclose(row, live(torch.tensor([ids])).logits[0].numpy(), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("architecture", "says"), [("mixtral", "which is no matrix"), ("bert", "only those that predict the next token")]
)
def test_what_cannot_be_exported_says_so_before_anything_is_written(tmp_path, architecture, says):
    model = make(architecture, tmp_path / "model")
    folder = by_role(model, tmp_path / "compressed")
    with pytest.raises(InputError, match=says):
        plan_of(folder, "onnx", tmp_path / "out")
    with pytest.raises(InputError, match=says):
        export(folder, "onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("network", ["mpo", "peps"])
def test_a_network_stays_its_cores_in_a_graph_for_any_batch(network):
    spec = NETWORKS[network].for_shape(128, 256, 4)
    assert contracts(spec)
    layer, cores = Network(spec), spec.random_cores(seed=0)
    any_size = torch.export.Dim.DYNAMIC
    example = (torch.zeros(2, 3, 256),)
    program = torch.export.export(layer, example, dynamic_shapes=({0: any_size, 1: any_size},), strict=False)
    x = torch.randn(5, 7, 256, generator=torch.Generator().manual_seed(1))
    traced = program.module()
    traced.load_state_dict({f"cores.{k}": core for k, core in enumerate(cores)}, assign=True)
    torch.testing.assert_close(traced(x), x @ spec.dense(cores).T, rtol=1e-4, atol=1e-5)


def test_cores_that_cost_more_than_their_matrix_or_are_packed_do_not_stay():
    assert not contracts(NETWORKS["mpo"].for_shape(128, 256, 128))
    assert not contracts(NETWORKS["mpo"].for_shape(128, 256, 4, quantize="int4"))
