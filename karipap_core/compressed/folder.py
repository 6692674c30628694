"""Compressed model folders on disk, written from a checkpoint, a plan and cores.

A folder is the original's (config, tokenizer, generation settings, every tensor byte for byte), but that the tensor
`<weight>.weight` of a compressed weight is replaced by `<weight>.cores.0`, `<weight>.cores.1` … and config.json
carries the plan. A core in a format of few bits is `<weight>.cores.0.codes`, `.scales` and `.zeros`; cores that a
group shares are stored with its first member. The same inputs give the same bytes.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from karipap_core.checkpoint.beside import Beside, beside
from karipap_core.checkpoint.files import files_of
from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.quantized import SAID_BESIDE
from karipap_core.checkpoint.roles import TABLES
from karipap_core.checkpoint.tensorfile import (
    FLOATS,
    Piece,
    TensorInfo,
    copied,
    raw_bytes,
    read_header,
    word_of,
    write_model,
)
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.workspace.files import flush, writing

if TYPE_CHECKING:  # torch takes a second to import
    import torch

SHARD_BYTES = 4_000_000_000
SHOWN = 8
CORE = re.compile(r"(.+)\.cores\.(\d+)(?:\.[a-z]+)?")  # the tensors of a core in a format: codes, scales …
TIED = ("contract", "untie")
# Of one folder alone: not taken along, and no part of the model that anybody vouches for.
RECORDS = {"karipap.json", "verify.json", "evaluation.json", "shadow.json", "fallback.json", "README.md"}
WORDS = {name: word for word, name in FLOATS.items()}  # "bfloat16" → "BF16"


def write_compressed(
    checkpoint: Checkpoint,
    plan: dict,
    core_files: dict[str, Path],
    out: str | Path,
    cores_dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
    mend: bool = False,
) -> Path:
    """Writes the folder of `checkpoint` compressed by `plan` and returns it.

    `plan` is the plan's JSON form; `core_files` gives, for every weight that the plan does not leave as it is, a
    safetensors file with the cores that the weight stores under the names that they have on disk ("cores.0",
    "cores.1" …, "cores.0.codes" …), in the shapes that the plan's entry states. Plain cores are stored as
    `cores_dtype` ("bfloat16" …), by default as the weight was; packed ones and indices as they are. Everything is
    written beside `out` under another name, then renamed. The head of an embedding that the model ties to it is
    contracted with the same cores; with `plan["embedding"] = {"tied": "untie"}` it stays dense and is stored. `mend`:
    of what an `out` to be overwritten holds only the model's own files are replaced. Raises InputError where plan,
    cores and checkpoint do not fit, or `out` exists (unless `overwrite`).
    """
    if not checkpoint.config:
        raise InputError(f"{checkpoint.name} has no config.json, so no model can be made of it: add the file.")
    entries = {
        name: entry for name, entry in plan["weights"].items() if entry["network"] != "dense" or entry.get("quantize")
    }
    lacking = sorted(entries.keys() ^ core_files.keys())
    if lacking:
        raise InputError(f"Weight {lacking[0]} is in one of plan and cores but not in the other.")
    weights = [checkpoint.weight(name) for name in entries]
    cores = {weight.name: _checked_cores(weight, entries, core_files[weight.name]) for weight in weights}
    stacks = {weight.tensor: weight.transposed for weight in weights if weight.index is not None}  # others stay whole
    compressed = {weight.tensor: weight for weight in weights if weight.index is None}

    pieces: list[Piece] = []
    for tensor, info in in_natural_order(checkpoint.tensors):
        if tensor in stacks:
            for weight in (weight for weight in checkpoint.weights if weight.tensor == tensor):
                found = cores.get(weight.name)
                pieces += _core_pieces(weight, found, cores_dtype) if found else [_slice_piece(checkpoint, weight)]
        elif tensor in compressed:
            pieces += _core_pieces(compressed[tensor], cores[compressed[tensor].name], cores_dtype)
        elif tensor not in checkpoint.tied:
            pieces.append(copied(tensor, info))
    config = {key: value for key, value in checkpoint.config.items() if key != "transformers_weights"}
    untied = _untied(checkpoint, plan, weights)
    pieces += [copied(f"{head}.weight", checkpoint.tensors[table]) for head, table in untied.items()]
    if untied or _stored_heads(checkpoint, weights):
        config |= {"tie_word_embeddings": False}
    original = _original(checkpoint, weights, stacks)
    if flat := sorted(stack for stack in stacks if len(checkpoint.tensors[stack].shape) == 2):
        original |= {"flat": flat}  # stacks of two dimensions: their slices stand below one another
    if "dtype" not in config and "torch_dtype" not in config and original["dtype"]:
        # Without it transformers would take the dtype of the first floating tensor, which may be a scale.
        config |= {"dtype": original["dtype"]}
        original |= {"config": ["dtype"]}
    settings = {"quant_method": "karipap", "plan": plan, "original": original}
    with new_folder(out, checkpoint.home, overwrite, mend) as folder:
        fill_folder(
            folder,
            checkpoint,
            config | {"quantization_config": settings},
            with_progress(pieces, progress, "write"),
            shard_bytes,
        )
    return Path(out)


def _checked_cores(weight: Weight, entries: dict[str, dict], file: Path) -> dict[str, TensorInfo]:
    """The cores in a weight's file, checked against its entry in the plan."""
    from karipap_core.layers.cores import stored_tensors
    from karipap_core.layers.embedding import looked_up
    from karipap_core.networks import spec_from_json

    complaint = f"Plan, weight {weight.name}:"
    if not weight.compressible and weight.role not in TABLES:
        raise InputError(f"{complaint} a weight of role {weight.role} stays dense.")
    found, spec = read_header(Path(file)), spec_from_json(entries[weight.name])
    if weight.role == "embed" and not looked_up(spec):
        raise InputError(f"{complaint} a {spec.network!r} cannot be looked up in row by row: choose another.")
    if not all(spec.owned) and spec.members[0] not in entries:
        raise InputError(f"{complaint} it shares cores with {spec.members[0]}, which has no entry.")
    wanted = stored_tensors(spec)
    fits = found.keys() == wanted.keys() and all(
        info.shape == wanted[name][0] and info.dtype in _words(wanted[name][1]) for name, info in found.items()
    )
    if (spec.n_out, spec.n_in) != weight.shape or not fits:
        raise InputError(f"{complaint} the cores in {file} are not those of {spec.describe()}.")
    return dict(in_natural_order(found))


def _words(dtype) -> set[str]:
    """The words of safetensors for a torch dtype; None is any that a weight may have."""
    return {*FLOATS, "F64"} if dtype is None else {word_of(dtype)}


def _core_pieces(weight: Weight, cores: dict[str, TensorInfo], dtype: str | None) -> list[Piece]:
    """A weight's cores as stored: plain numbers cast to `dtype` (default: the weight's), all else byte for byte."""
    word = WORDS[dtype or weight.dtype]
    pieces = []
    for core, info in cores.items():
        name = f"{weight.name}.{core}"
        plain = core.count(".") == 1 and info.dtype in _words(None)
        read = partial(_read_as, info, core, FLOATS[word])
        pieces.append(computed(name, word, info.shape, read) if plain else copied(name, info))
    return pieces


def _untied(checkpoint: Checkpoint, plan: dict, weights: list[Weight]) -> dict[str, str]:
    """Heads to be stored dense beside a compressed embedding that the model ties them to: head → the table's tensor."""
    wanted = (plan.get("embedding") or {}).get("tied", TIED[0])
    if wanted not in TIED:
        raise InputError(f"Plan, field embedding.tied is {wanted!r}: it must be one of {', '.join(TIED)}.")
    tables = [weight for weight in weights if weight.role in TABLES]
    if not tables or wanted != "untie":
        return {}
    from karipap_core.models.sites import tied_tables

    tied = tied_tables(checkpoint)
    return {head: weight.tensor for weight in tables for head in tied.get(weight.name, ())}


def _stored_heads(checkpoint: Checkpoint, weights: list[Weight]) -> bool:
    """Whether embedding and head are two weights, one of them compressed: a config that ties them would be wrong."""
    roles = {weight.role for weight in checkpoint.weights}
    return {"embed", "head"} <= roles and any(weight.role in TABLES for weight in weights)


def _read_as(info: TensorInfo, name: str, dtype: str) -> "torch.Tensor":
    """The tensor `name` of a file of cores, rounded to a dtype."""
    import torch
    from safetensors import safe_open

    with safe_open(info.file, framework="pt") as source:
        return source.get_tensor(name).to(getattr(torch, dtype))


def computed(name: str, dtype: str, shape: Sequence[int], tensor: Callable[[], "torch.Tensor"]) -> Piece:
    """A piece of a folder that holds the bytes of `tensor()`, which is asked for only when the piece is written.

    dtype: safetensors' word for the tensor's dtype, such as "BF16".
    """

    def write(file: BinaryIO) -> None:
        file.write(raw_bytes(tensor()))

    return Piece(name, dtype, tuple(shape), write)


def _slice_piece(checkpoint: Checkpoint, weight: Weight) -> Piece:
    """A slice of an expert stack that stays dense, as a weight of its own."""
    read = partial(checkpoint.read, weight.name)
    return computed(f"{weight.name}.weight", WORDS[weight.dtype], weight.shape, read)


def _original(checkpoint: Checkpoint, weights: list[Weight], stacks: dict[str, bool]) -> dict:
    """What densify must know of how the compressed weights were stored."""
    counts = Counter(weight.dtype for weight in weights)
    usual = max(counts, key=lambda dtype: counts[dtype], default=None)
    whole = [weight for weight in weights if weight.index is None]
    others = {
        weight.name: {
            "tensor": weight.tensor,
            "shape": list(checkpoint.tensors[weight.tensor].shape),
            "transposed": weight.transposed,
        }
        for weight in whole
        if weight.tensor != f"{weight.name}.weight" or len(checkpoint.tensors[weight.tensor].shape) != 2
    }
    return {
        "dtype": usual,
        "dtypes": {weight.name: weight.dtype for weight in weights if weight.dtype != usual},
        "transposed": any(weight.transposed for weight in whole if weight.name not in others),
        "stacks": stacks,
        "tables": [weight.name for weight in weights if weight.role in TABLES],
        **({"others": others} if others else {}),
    }


def in_natural_order(tensors: dict[str, TensorInfo]) -> list[tuple[str, TensorInfo]]:
    """Tensors by name, numbers in names as numbers."""

    def key(name: str) -> list[tuple[int, int, str]]:
        return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in name.split(".")]

    return sorted(tensors.items(), key=lambda item: key(item[0]))


def with_progress(pieces: list[Piece], progress: Progress, stage: str) -> list[Piece]:
    """The same pieces, each of which tells `progress` when it has been written."""

    def wrapped(number: int, piece: Piece) -> Piece:
        def write(file: BinaryIO) -> None:
            piece.write(file)
            progress(stage, number, len(pieces), piece.name)

        return Piece(piece.name, piece.dtype, piece.shape, write)

    return [wrapped(number, piece) for number, piece in enumerate(pieces, 1)]


def side_files(checkpoint: Checkpoint) -> Beside:
    """What goes into a folder with the tensors of a model, and what stays behind."""
    home = checkpoint.home
    whole = not checkpoint.path.is_file() and any(info.file.parent == home for info in checkpoint.tensors.values())
    own = {file.name for file in files_of(home)} if whole else {checkpoint.path.name}
    return beside(home, own | RECORDS | SAID_BESIDE | {"config.json"}, checkpoint.tensors, whole)


def stayed_behind(result: dict) -> str:
    """A sentence for the "left_out" of `compress`, "" where nothing was."""
    said = [f"{each['name']} ({each['why']})" for each in result.get("left_out", ())]
    more = f" and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return f"Not taken along: {', '.join(said[:SHOWN])}{more}." if said else ""


def fill_folder(
    folder: Path, checkpoint: Checkpoint, config: dict, pieces: list[Piece], shard_bytes: int = SHARD_BYTES
) -> None:
    """Fills a new folder with `fill_beside`, and with the tensors of `pieces`."""
    fill_beside(folder, checkpoint, config)
    write_model(folder, pieces, shard_bytes)


def fill_beside(folder: Path, checkpoint: Checkpoint, config: dict) -> None:
    """Puts into a new folder what lies beside the checkpoint's tensors (tokenizer, generation settings, licence,
    further modules), with `config` as its config.json."""
    for name, file in side_files(checkpoint).files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


@contextmanager
def new_folder(out: str | Path, source: Path, overwrite: bool, mend: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `out` that becomes `out` when the block ends well, and is removed when it does not.

    Hidden entries of an existing `out` (work in progress) are no model: they do not stand in the way, and stay. With
    `mend` all else that is there stays too, but tensors that the new folder does not have. Raises InputError or
    StorageError where the folder cannot be written.
    """
    out = Path(out).absolute()
    if out.resolve() == source.resolve():
        raise InputError(f"{out} is the model itself: name another folder.")
    if out.exists() and not overwrite and not (out.is_dir() and all(file.name[0] == "." for file in out.iterdir())):
        raise InputError(f"{out} already exists: name another folder, or allow it to be replaced (--force).")
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    with writing(out):
        try:
            partial.mkdir(parents=True)
            yield partial
            for file in files_below(partial):
                flush(file)
            if out.exists():
                _move_into(out, partial, mend)
            else:
                partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _move_into(out: Path, partial: Path, mend: bool) -> None:
    """Puts the files of `partial` in the place of what `out` holds. Whoever is killed here leaves a folder that its
    report, which is first, does not confirm, or that has no config.json, which is last."""
    new = [str(file.relative_to(partial)) for file in files_below(partial)]
    if not mend:
        (out / "config.json").unlink(missing_ok=True)
    for old in [file for file in out.iterdir() if file.name[0] != "." and file.name not in new]:
        if old.is_dir() and not old.is_symlink():
            if not mend:
                shutil.rmtree(old)
        elif not mend or old.name.endswith((".safetensors", ".safetensors.index.json")):
            old.unlink()
    for name in sorted(new, key=lambda name: (name == "config.json") - (name == "karipap.json")):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (partial / name).replace(out / name)


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]
