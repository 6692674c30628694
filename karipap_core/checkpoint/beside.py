"""What lies beside a model's tensors and belongs to it: in the folder itself and in its sub-folders.

transformers keeps further chat templates in `additional_chat_templates/` and a processor's second tokenizer in a folder
of its own; sentence-transformers keeps a folder for each module after the model (`1_Pooling`, `2_Dense` …), some with
weights, and names them in modules.json. All of that goes with the model: small texts and safetensors. A sub-folder
goes as a whole or stays behind with a reason: one that holds another model, the model in another form, or work of
Karipap's is none of the model's parts.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from karipap_core.checkpoint.files import PICKLES, READ_BY_LIBRARIES, SETTINGS
from karipap_core.checkpoint.tensorfile import read_header
from karipap_core.errors import InputError
from karipap_core.reading import MOST_BYTES, open_file, parse_json, read_bytes, read_json
from karipap_core.workspace import Workspace

TEXTS = READ_BY_LIBRARIES
TENSORS = ".safetensors"
LICENCES = ("LICENSE", "NOTICE")
MODULES = "modules.json"
TEMPLATES = "additional_chat_templates"
MODULE = re.compile(r"\d+_\w[\w.-]*")  # how sentence-transformers names a module's folder
FORMS = {"onnx", "openvino", "original", "coreml", "flax", "tf", "gguf", "metal", "mlx", "tensorrt"}
MOST_ENTRIES, MOST_DEPTH = 100, 3  # of one sub-folder
MOST_TENSORS = 1 << 30  # bytes of one file of tensors beside the model's own
FOR_PEOPLE = {".md", ".csv", ".tsv", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".pdf", ".rst"}
CODE = PICKLES + (".py", ".pyc", ".so", ".joblib", ".npy", ".npz", ".h5")  # what could execute code when it is loaded
IS_CODE = "it could execute code when it is loaded, and is never taken along"
OF_KARIPAP = b'"karipap-'  # begins the "format" of each of its documents


@dataclass
class Beside:
    """`files`: what goes with a model, by its name below the folder ("1_Pooling/config.json"). `left_out`: what stays
    behind although it might be thought to belong to the model, each with the reason; sub-folders end with "/"."""

    files: dict[str, Path] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def beside(folder: Path, own: Collection[str], tensors: Collection[str], whole: bool = True) -> Beside:
    """What lies beside the files `own` (names in `folder`) of a model with the tensors `tensors`.

    whole: whether all of the folder is the model's; else, where one file of it was opened, only the sub-folders that
    the model names are looked at, and no other tensors.
    """
    found = Beside()
    for entry in _entries(folder):
        name = entry.name
        if entry.is_dir():
            if whole or name == TEMPLATES or name in modules(folder):
                _below(entry, folder, found)
        elif name not in own and not _is_index(name):
            _at_top(entry, folder, tensors if whole else None, found)
    for name in modules(folder):
        if not (folder / name).is_dir():
            found.left_out[f"{name}/"] = f"{MODULES} names it, and it is not here: fetch the model again"
    return found


def modules(folder: Path) -> list[str]:
    """The sub-folders with files that modules.json of sentence-transformers names, by their first step. A `Normalize`
    has no files, so its folder is mostly not there."""
    try:
        rows = parse_json(read_bytes(folder / MODULES), MODULES, lenient=True)
    except InputError:
        return []
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    paths = [row.get("path") for row in rows if not str(row.get("type")).endswith("Normalize")]
    names = [path.replace("\\", "/").split("/")[0] for path in paths if isinstance(path, str)]
    return [name for name in dict.fromkeys(names) if name not in ("", ".", "..")]


def sub_folder_files(folder: Path) -> dict[str, Path]:
    """The files in the sub-folders of a folder that Karipap wrote, which are all of its own making, by name."""
    found = Beside()
    for entry in _entries(folder):
        if entry.is_dir():
            _below(entry, folder, found)
    return found.files


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, but what is hidden and what has a name that is no text, which no document could hold."""
    return sorted(entry for entry in folder.iterdir() if entry.name[0] != "." and entry.name.isprintable())


def _is_index(name: str) -> bool:
    return name.endswith(".index.json")


def _at_top(file: Path, folder: Path, tensors: Collection[str] | None, found: Beside) -> None:
    """A file beside the model's own."""
    name = file.name
    if file.suffix in TEXTS or name.startswith(LICENCES):
        if name in SETTINGS or _stays(file, folder):  # the former are read with the model, wherever they lie
            if file.is_file():
                found.files[name] = file
        else:
            found.left_out[name] = "a link that leads out of the folder"
    elif file.suffix == ".py":
        found.left_out[name] = IS_CODE
    elif file.suffix == TENSORS and tensors is not None and not name.startswith(("consolidated", "adapter_")):
        try:
            if not read_header(file).keys() & set(tensors):  # else the model's own again
                _add(file, folder, found)
        except InputError as error:
            found.left_out[name] = str(error)


def _below(sub: Path, folder: Path, found: Beside) -> None:
    """A sub-folder: its files, or why it stays behind."""
    if sub.name == "karipap":  # measurements of the dense model, see `Workspace.adopt`
        return
    try:
        inside = list(islice(_walk(sub, 1), MOST_ENTRIES + 1))
        why = _why_not(sub, inside)
    except OSError as error:
        why = f"it cannot be read ({error.strerror})"
    if why:
        found.left_out[f"{sub.name}/"] = why
        return
    for file in inside:
        _add(file, folder, found)


def _walk(sub: Path, depth: int) -> Iterator[Path]:
    """The files below a folder, links to folders among them, and the folders that lie too deep to be looked into."""
    for entry in _entries(sub):
        if entry.is_dir() and not entry.is_symlink() and depth < MOST_DEPTH:
            yield from _walk(entry, depth + 1)
        else:
            yield entry


def _why_not(sub: Path, inside: list[Path]) -> str | None:
    """Why no part of a sub-folder goes with the model."""
    if sub.is_symlink():
        return "a link to a folder"
    if sub.name in FORMS:
        return "the model in another form"
    if len(inside) > MOST_ENTRIES or any(file.is_dir() and not file.is_symlink() for file in inside):
        return f"more than {MOST_ENTRIES} files, or folders more than {MOST_DEPTH} deep"
    ours = any(_begins_as_karipaps(file) for file in inside if file.suffix == ".json")
    if ours or Workspace().root.resolve().is_relative_to(sub.resolve()):
        return "work of Karipap's"
    weights = any(file.suffix == TENSORS or file.suffix in PICKLES for file in inside)
    if weights and any(_describes_a_model(file) for file in inside if file.name == "config.json"):
        return "a model of its own"
    return None


def _begins_as_karipaps(file: Path) -> bool:
    try:
        with open_file(file) as opened:
            return OF_KARIPAP in opened.read(200)
    except InputError:
        return False


def _describes_a_model(file: Path) -> bool:
    try:
        config = read_json(file, lenient=True)
    except InputError:
        return False
    return "model_type" in config or "architectures" in config


def _add(file: Path, folder: Path, found: Beside) -> None:
    """One file, or why it stays behind."""
    name = file.relative_to(folder).as_posix()
    most = MOST_TENSORS if file.suffix == TENSORS else MOST_BYTES
    if file.suffix in FOR_PEOPLE:
        return
    if not _stays(file, folder):
        found.left_out[name] = "a link that leads out of the folder"
    elif file.suffix.lower() in CODE:
        if not any(other.suffix == TENSORS for other in file.parent.iterdir()):  # else it holds the same again
            found.left_out[name] = IS_CODE
    elif file.suffix not in (*TEXTS, TENSORS) and not file.name.startswith(LICENCES):
        found.left_out[name] = "neither text, JSON nor safetensors"
    elif not file.is_file():
        found.left_out[name] = "no regular file"
    elif file.stat().st_size > most:
        found.left_out[name] = f"larger than {most:,} bytes"
    else:
        found.files[name] = file


def _stays(file: Path, folder: Path) -> bool:
    """Whether a path leads to a place in the folder, or into the hub's cache, whose folders are links to its blobs."""
    if not file.is_symlink() and not any(parent.is_symlink() for parent in _between(file, folder)):
        return True
    target = Path(os.path.realpath(file))
    blobs = target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")
    return blobs or target.is_relative_to(os.path.realpath(folder))


def _between(file: Path, folder: Path) -> list[Path]:
    return [parent for parent in file.parents if parent != folder and parent.is_relative_to(folder)]
