"""The graph of a causal model with its cache, taken by `torch.onnx`, and the file of its weights.

Inputs and outputs are named as optimum and onnxruntime-genai have it: `input_ids`, `attention_mask`, `position_ids`,
`past_key_values.N.key` / `.value` → `logits`, `present.N.key` / `.value`. Everything is computed in float32; weights
lie in `model.onnx.data` as they are stored in 16 bits, and ONNX Runtime makes float32 of them once, when it loads.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import nn
from transformers import DynamicCache

from karipap_core.checkpoint.tensorfile import Piece
from karipap_core.exports.onnx_model import OPSET, Model
from karipap_core.models.empty import explained, quiet

FILE, DATA = "model.onnx", "model.onnx.data"
ALIGNED = 64  # bytes at whose multiples a tensor begins
BATCH, TOKENS, PAST = 2, 3, 5  # of the example that is traced; none is 1, which would be taken for a fixed size
TYPES = {
    "F64": ir.DataType.DOUBLE,
    "F32": ir.DataType.FLOAT,
    "F16": ir.DataType.FLOAT16,
    "BF16": ir.DataType.BFLOAT16,
    "U8": ir.DataType.UINT8,
}


class _Decoder(nn.Module):
    """A model whose cache is an argument like others."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, position_ids, past):
        places = {} if position_ids is None else {"position_ids": position_ids}
        out = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            past_key_values=DynamicCache(past),
            use_cache=True,
            **places,
        )
        return out.logits, [(layer.keys, layer.values) for layer in out.past_key_values.layers]


def graph_of(model: Model, name: str) -> ir.Model:
    """The graph, its weights still inputs by the names of the model's parameters. Raises InputError where torch cannot
    take it; `name` is the model's."""
    past = [
        tuple(torch.zeros(BATCH, heads, PAST, width) for width in (keys, values)) for heads, keys, values in model.cache
    ]
    ids, mask = torch.zeros(BATCH, TOKENS, dtype=torch.long), torch.ones(BATCH, PAST + TOKENS, dtype=torch.long)
    any_length = torch.export.Dim.DYNAMIC
    rows = {0: any_length, 1: any_length}
    with quiet(), _silent(), torch.no_grad(), explained(f"torch cannot take the graph of {name}"):
        program = torch.export.export(
            _Decoder(model.live),
            (ids, mask, ids.clone() if model.positions else None, past),
            dynamic_shapes=(
                rows,
                rows,
                rows if model.positions else None,
                [({0: any_length, 2: any_length},) * 2] * len(past),
            ),
            strict=False,
        )
        inputs = ["input_ids", "attention_mask", *(["position_ids"] if model.positions else [])]
        found = torch.onnx.export(
            program,
            args=(),
            input_names=[*inputs, *cache_names("past_key_values", len(past))],
            output_names=["logits", *cache_names("present", len(past))],
            opset_version=OPSET,
            optimize=False,
            verbose=False,
        )
        assert found is not None
        _take_out(found.model.graph, model)
        optimizer.optimize_ir(found.model)
    _tidy(found.model)
    return found.model


def cache_names(stem: str, layers: int) -> list[str]:
    return [f"{stem}.{layer}.{kind}" for layer in range(layers) for kind in ("key", "value")]


def _take_out(graph: ir.Graph, model: Model) -> None:
    """Makes weights inputs, by the names in `model.pieces`: constants without numbers would be computed with."""
    held = dict(model.live.named_parameters(remove_duplicate=False))
    names = {id(held[name]): name for name in model.pieces}
    for name in list(graph.initializers):
        parameter = held.get(name.removeprefix("model."))
        if parameter is not None:
            value = graph.initializers.pop(name)
            value.const_value, value.name = None, names[id(parameter)]
            graph.inputs.append(value)


def _tidy(model: ir.Model) -> None:
    """Names for the sizes of inputs and outputs; what torch noted of every node goes."""
    for values in (model.graph.inputs, model.graph.outputs):
        for value in values:
            name = str(value.name)
            if name in ("input_ids", "position_ids", "logits"):
                sizes = {0: "batch_size", 1: "sequence_length"}
            elif name == "attention_mask":
                sizes = {0: "batch_size", 1: "total_sequence_length"}
            elif name.startswith(("past_key_values.", "present.")):
                length = "past_sequence_length" if name.startswith("past") else "total_sequence_length"
                sizes = {0: "batch_size", 2: length}
            else:
                continue
            assert value.shape is not None
            value.shape = ir.Shape([sizes.get(axis, size) for axis, size in enumerate(value.shape)])
    kept = {*model.graph.inputs, *model.graph.outputs}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value not in kept:
                value.shape = value.type = None
    passes.ClearMetadataAndDocStringPass()(model)
    model.producer_name, model.producer_version = "karipap", None


def write_graph(graph: ir.Model, pieces: dict[str, Piece], folder: Path) -> None:
    """`model.onnx` and `model.onnx.data`, one tensor in memory at a time."""
    places: dict[str, ir.ExternalTensor] = {}
    with (folder / DATA).open("wb") as file:
        for name, piece in pieces.items():
            file.write(b"\0" * (-file.tell() % ALIGNED))
            start = file.tell()
            piece.write(file)
            shape = ir.Shape(piece.shape)
            places[name] = ir.ExternalTensor(
                DATA, start, piece.size, TYPES[piece.dtype], shape=shape, name=name, base_dir=folder
            )
    _fill(graph.graph, places)
    ir.save(graph, folder / FILE)


def _fill(graph: ir.Graph, places: dict[str, ir.ExternalTensor]) -> None:
    """Weights as constants in their stored types, each made float32 by a node where the model computes with that."""
    for value in [value for value in graph.inputs if value.name in places]:
        graph.inputs.remove(value)
        tensor = places[str(value.name)]
        constant = ir.Value(
            name=value.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        computed = value.dtype
        if computed is not None and computed != tensor.dtype:
            node = ir.node("Cast", [constant], {"to": computed})
            node.outputs[0].name = f"{value.name}.{computed.name.lower()}"
            value.replace_all_uses_with(node.outputs[0])
            graph.insert_before(graph[0], node)
        else:
            value.replace_all_uses_with(constant)
        graph.register_initializer(constant)


@contextmanager
def _silent() -> Iterator[None]:
    """Without what torch's exporter logs of packages that are not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
