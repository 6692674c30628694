"""What of a checkpoint a plan can reach, in one place: budgets, profiles, coverage and boards all count it.

Headers alone say which weights look like linear maps; whether the model computes with them as such, only the model
itself says (`models.sites.find_reach`, which takes seconds). The answer is kept beside the fingerprint, by the files'
paths, sizes and times, and known from then on whenever the checkpoint is opened.
"""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from karipap_core.checkpoint.model import BUFFER, Checkpoint
from karipap_core.checkpoint.roles import EMBEDDINGS, role_of
from karipap_core.errors import InputError, StorageError
from karipap_core.version import __version__
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

RULES = 5  # of what can be reached: counted up where they change
OUTSIDE = "outside the blocks (projections between parts, poolers, heads of tasks)"
ROUTERS = "routers, which choose experts"
VECTORS = "norms, biases and other vectors"
HIGHER = "convolutions and other tensors of three and more dimensions"
OTHERS = "parameters of no linear layer"


def know(checkpoint: Checkpoint) -> bool:
    """Narrows a checkpoint to what is known to be reachable; whether anything is known."""
    if checkpoint.left_out is None and (found := kept_json(_file(checkpoint), "reach")) is not None:
        narrow(checkpoint, found["left"], found["tables"], found["buffers"], found["not_run"])
    return checkpoint.left_out is not None


def keep(
    checkpoint: Checkpoint, left: dict[str, str], tables: list[str], buffers: list[str], not_run: str | None
) -> None:
    """Narrows a checkpoint to what was found out (see `narrow`), and keeps that."""
    file = _file(checkpoint)
    narrow(checkpoint, left, tables, buffers, not_run)
    with suppress(InputError, StorageError):  # a workspace that cannot be written only costs the time to ask again
        keep_json(file, {"left": left, "tables": tables, "buffers": buffers, "not_run": not_run})


def narrow(
    checkpoint: Checkpoint,
    left: dict[str, str],
    tables: Iterable[str],
    buffers: Iterable[str],
    not_run: str | None = None,
) -> None:
    """Takes what no plan can reach out of what is `compressible`.

    left : such weights, with the reason.  tables : tables of tokens that a plan can reach.  buffers : tensors that are
    no parameters of the model; they take their bytes all the same.  not_run : why the model cannot be run on text.
    """
    checkpoint.left_out, checkpoint.reachable_tables = dict(left), tuple(tables)
    checkpoint.not_run = not_run
    held = (set(buffers) & checkpoint.tensors.keys()) - checkpoint.buffers
    for info in (checkpoint.tensors[tensor] for tensor in held):
        checkpoint.parameters -= info.items if "F" in info.dtype else 0
    checkpoint.skipped = [entry for entry in checkpoint.skipped if entry["name"] not in held]
    checkpoint.skipped += [{"name": tensor, "why": BUFFER} for tensor in held]
    checkpoint.skipped.sort(key=lambda entry: entry["name"])
    kept = [weight for weight in checkpoint.weights if weight.tensor not in held]
    checkpoint.weights_are([replace(each, compressible=False) if each.name in left else each for each in kept])


def _file(checkpoint: Checkpoint) -> Path:
    files = sorted({info.file for info in checkpoint.stored.values()})
    settings = [file for file in checkpoint.settings_files if file.name == "config.json"]
    facts = [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in (*files, *settings)]
    try:
        library = metadata.version("transformers")
    except metadata.PackageNotFoundError:
        library = ""
    recipe = checkpoint.form.recipe if checkpoint.form else None
    rules = {"recipe": recipe, "rules": RULES, "karipap": __version__, "transformers": library}
    return Workspace().cache_file("reach", settings_key({"files": facts} | rules))


def coverage(checkpoint: Checkpoint) -> dict[str, Any]:
    """{"share": of the parameters outside tables of tokens and positions, those that a plan can reach; "left": the
    others, [{"why", "parameters"}], most first}."""
    left, reached = Counter[str](), checkpoint.block_parameters
    for weight in checkpoint.weights:
        if not weight.compressible and weight.role not in EMBEDDINGS:
            usual = ROUTERS if weight.role == "router" else OUTSIDE
            left[(checkpoint.left_out or {}).get(weight.name, usual)] += weight.parameters
    for entry in checkpoint.skipped:
        info = checkpoint.tensors.get(entry["name"])
        counted = info is not None and entry["why"] != BUFFER and entry["name"] not in checkpoint.tied
        if info is None or not counted:
            continue
        dimensions = len(info.shape)
        if dimensions != 2 or role_of(entry["name"].removesuffix(".weight"), False) not in EMBEDDINGS:
            left[VECTORS if dimensions < 2 else HIGHER if dimensions > 2 else OTHERS] += info.items
    whole = reached + left.total()
    return {
        "share": reached / whole if whole else 0.0,
        "left": [{"why": why, "parameters": count} for why, count in left.most_common()],
    }


def in_words(found: dict[str, Any], most: int = 4) -> str:
    """A `coverage` in a sentence."""
    left = [f"{row['why']} {row['parameters']:,}" for row in found["left"][:most]]
    more = len(found["left"]) - most
    said = "; ".join(left) + (f" and {more} more kinds" if more > 0 else "")
    return f"covers {found['share']:.1%} of the parameters outside embeddings" + (f"; left out: {said}" if said else "")
