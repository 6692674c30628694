"""`onnx`: a folder for ONNX Runtime, a graph with a cache of keys and values and its weights beside it.

Low-rank pairs are two products (`MatMul`). Whole numbers of up to 4 bits are the node `MatMulNBits`, with the same
codes, scales and zero points; of more bits, a byte a code, which ONNX Runtime makes a matrix when it loads the model.
A network whose cores cost less than its matrix stays its cores, contracted in the order that Karipap takes. Everything
else is dense in the type that it is stored in. All sums are float32.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from karipap_core.compressed.folder import fill_beside, with_progress
from karipap_core.exports.adapter import adapter_pair
from karipap_core.exports.exporter import Exporter, Line, Wanted, dense_line, error_of, register
from karipap_core.exports.source import MATRIX, Part, Source
from karipap_core.progress import Progress

if TYPE_CHECKING:  # torch's exporter takes seconds to import
    from karipap_core.exports.onnx_model import Plain


@register
class Onnx(Exporter):
    name = "onnx"
    title = "ONNX Runtime"
    library = "onnxruntime"
    packages = ("onnx", "onnxscript")
    engine = "onnxruntime"
    script = "with_onnxruntime.py"

    def lines(self, source: Source, wanted: Wanted) -> Iterator[Line]:
        plain = self.plain(source)
        for part in source.parts():
            if why := plain.why_dense(part):
                yield dense_line(source, part, part.held.dtype, why)
            elif part.form == MATRIX:
                yield Line(
                    part.name, part.says, f"{source.spec(part.name).network}, its cores", 0.0, part.bytes, part.bytes
                )
            else:
                yield stored_line(source, part)

    def write(self, source: Source, wanted: Wanted, folder: Path, progress: Progress) -> None:
        from karipap_core.exports.onnx_graph import graph_of, write_graph

        model = self.plain(source).filled()
        del source.worked_out[self.name]  # the model has its layers in their parts now
        progress("graph", 0, 1, "torch.onnx")
        graph = graph_of(model, source.checkpoint.name)
        fill_beside(folder, source.checkpoint, source.config)
        pieces = with_progress(list(model.pieces.values()), progress, "export")
        write_graph(graph, dict(zip(model.pieces, pieces, strict=True)), folder)

    def plain(self, source: Source) -> "Plain":
        """The ordinary model without numbers, built once for what asks and what writes."""
        from karipap_core.exports.onnx_model import Plain

        if self.name not in source.worked_out:
            source.worked_out[self.name] = Plain(source)
        return source.worked_out[self.name]

    def commands(self, source: Source, out: Path) -> str:
        return COMMANDS.format(folder=out.name)

    def notes(self, source: Source, wanted: Wanted) -> list[str]:
        parts = [part for part in source.parts() if part.form != MATRIX]
        stored = {word for part in parts for word in kinds_of(part)}
        return [note for kind, note in NOTES.items() if any(kind in word for word in stored)]


NOTES = {
    "two MatMuls": "Low-rank pairs stay two products in ONNX Runtime: fewer bytes and fewer multiplications at once.",
    "MatMulNBits": "MatMulNBits multiplies float32 activations (accuracy_level 1), so that the loss is the measured "
    "one. With accuracy_level 4 ONNX Runtime rounds activations to 8 bits: several times as fast for one token, and "
    "each product off by about half a percent.",
    "a byte a code": "Codes of more than 4 bits save bytes on the disk only: ONNX Runtime makes float32 of them when "
    "it loads the model, as its exact products of 8 bits unpack the whole matrix for every token.",
}


def kinds_of(part: Part) -> list[str]:
    """How the grid and the pair of a weight are stored, those that it has, in a few words each."""
    from karipap_core.exports.onnx_layers import blocks_of

    found = []
    if part.grid is not None:
        blocks = blocks_of(part.grid.bits, part.grid.group, part.shape[1])
        found.append("a byte a code, a matrix once loaded" if blocks is None else "MatMulNBits of 4 bits")
    return found + (["two MatMuls"] if part.pair is not None else [])


def stored_line(source: Source, part: Part) -> Line:
    """The line of a weight that is stored in its parts."""
    import torch

    from karipap_core.exports.onnx_model import grid_tensors

    stored, size = torch.zeros(part.shape, dtype=torch.float64), 0
    if part.grid is not None:
        stored += part.grid.dense()
        size += sum(tensor.nbytes for tensor in grid_tensors(part).values())
    if part.pair is not None:
        left, right = adapter_pair(part, part.rank)
        stored += left.double() @ right.double()
        size += left.nbytes + right.nbytes
    error = error_of(stored, source.exact(part.name))
    why = "factors of few bits become float16" if part.packed and part.pair is not None else ""
    return Line(part.name, part.says, " + ".join(kinds_of(part)), error, size, part.bytes, part.rank, why)


COMMANDS = """\
import numpy as np
import onnxruntime
from tokenizers import Tokenizer

session = onnxruntime.InferenceSession({folder!r} + "/model.onnx")
tokenizer = Tokenizer.from_file({folder!r} + "/tokenizer.json")
ids = np.array([tokenizer.encode("Once upon a time").ids])
feeds = {{
    each.name: np.zeros([1, each.shape[1], 0, each.shape[3]], np.float32)
    for each in session.get_inputs()
    if each.name.startswith("past")
}}
names = [each.name for each in session.get_inputs()]
written, seen = ids[0].tolist(), 0
for _ in range(40):
    places = np.arange(seen, seen + ids.shape[1])[None]
    feeds |= {{"input_ids": ids, "attention_mask": np.ones((1, seen + ids.shape[1]), np.int64), "position_ids": places}}
    logits, *present = session.run(None, {{name: feeds[name] for name in names}})
    feeds |= dict(zip([name for name in names if name.startswith("past")], present))
    seen += ids.shape[1]
    ids = logits[:, -1:].argmax(-1)
    written.append(int(ids[0, 0]))
print(tokenizer.decode(written))"""
