"""What another program made of a model's weights, handed over as a folder, as a baseline beside our own.

A folder holds `handover.json` (`schemas/handover.schema.json`: package, version, method, bits, and for each weight what
is stored of it) and `weights.safetensors`: Ŵ (out, in) of each of these weights under the model's own name for it, as
the package reads it back from what it stores. Nothing else of the folder is read, and nothing of it is run. Our own
evaluation measures the matrices, so that every point of a curve was measured alike (bench/peers.py makes such folders).
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

from karipap_core import schemas
from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.tensorfile import FLOATS, TensorInfo, read_header, read_stored
from karipap_core.errors import InputError
from karipap_core.reading import open_file
from karipap_core.tradeoffs.baselines import Baseline, Replacement

DOCUMENT, WEIGHTS = "handover.json", "weights.safetensors"
HANDOVER_FORMAT, HANDOVER_VERSION = "karipap-handover", 1
SAME_SIZE = 0.005  # what a package adds to pack whole words: no difference to tell of


def handed_over(folder: str | Path, checkpoint: Checkpoint) -> Baseline:
    """The baseline of a folder that a package handed over for this very checkpoint.

    Its bytes are those of the document's "bytes": codes at their number of bits, scales, zero points and whatever else
    the package stores for a weight. Where the package itself takes more room than that ("stored_bytes", such as 3 bits
    kept in 4), a note of the baseline says how much. Weights that it does not hand over stay as they are.

    Raises InputError, one sentence, where the document is not what its schema says, was made from another checkpoint,
    or where a weight is missing, unknown, of another shape or no plain floating-point matrix.
    """
    folder = Path(folder)
    document = schemas.read(folder / DOCUMENT, "handover")
    source = f"Folder {folder}"
    if document["model"] != checkpoint.identity:
        raise InputError(f"{source} was made from another model than {checkpoint.name}: quantize this one anew.")
    rows = {row["name"]: row for row in document["weights"]}
    weights = {weight.name: weight for weight in checkpoint.weights if weight.compressible}
    header = read_header(folder / WEIGHTS)
    _check(folder / WEIGHTS, header, rows, weights, checkpoint.name)
    sizes = [sum(row[key] for row in rows.values()) for key in ("bytes", "stored_bytes")]
    dense = 2 * sum(weights[name].parameters for name in rows)
    notes = list(document.get("notes", ()))
    if sizes[1] - sizes[0] > SAME_SIZE * dense:
        notes.append(f"As the package stores them, these weights take {sizes[1] / dense:.3f} of their 16-bit bytes.")
    if left := len(weights) - len(rows):
        notes.append(f"{left} of {len(weights)} weights were not handed over and count 16 bits a number.")
    settings = {key: document.get(key) for key in ("bits", "group", "rank", "package")}
    with open_file(folder / WEIGHTS) as file:
        settings |= {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    settings |= {"package_version": document["package_version"]}
    method = f"{document['package']} {document['package_version']} {document['method']}"
    group = f" g{document['group']}" if document["group"] else ""

    def make() -> Iterator[Replacement]:
        for name, row in rows.items():
            matrix = read_stored(header[name])
            if not matrix.isfinite().all():
                raise InputError(f"File {folder / WEIGHTS}: weight {name} holds NaN or infinity.")
            yield Replacement(name, matrix, row["bytes"], row.get("parameters", weights[name].parameters))

    label = f"{method} int{document['bits']}{group}"
    return Baseline(method, label, settings, make, None, tuple(notes), document.get("seconds", 0.0))


def _check(
    file: Path, header: dict[str, TensorInfo], rows: dict[str, dict], weights: dict[str, Weight], model: str
) -> None:
    """Raises InputError where the file's tensors are not the weights that the document names."""
    if unsaid := sorted(header.keys() ^ rows.keys()):
        where = DOCUMENT if unsaid[0] in header else WEIGHTS
        raise InputError(f"Folder {file.parent}: weight {unsaid[0]} is missing in {where}.")
    for name, info in header.items():
        if name not in weights:
            raise InputError(f"File {file}: {name} is none of the weights of {model} that can be compressed.")
        if tuple(info.shape) != weights[name].shape:
            theirs, ours = (" × ".join(map(str, shape)) for shape in (info.shape, weights[name].shape))
            raise InputError(f"File {file}: weight {name} is {theirs}, and {ours} in {model}.")
        if info.dtype not in FLOATS:
            raise InputError(f"File {file}: weight {name} is stored as {info.dtype}, not as BF16, F16 or F32.")
