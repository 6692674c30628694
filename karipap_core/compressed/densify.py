"""An ordinary dense folder made from a compressed one."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import Piece, copied, raw_bytes
from karipap_core.compressed.folder import (
    CORE,
    SHARD_BYTES,
    computed,
    fill_folder,
    in_natural_order,
    new_folder,
    with_progress,
)
from karipap_core.compressed.saved_again import WORDS, as_saved, entry_of, names_on_disk
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:  # torch takes a second to import
    import torch


def densify(
    folder: str | Path,
    out: str | Path,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress = silent,
) -> dict:
    """Writes a compressed folder as an ordinary dense one, with the original's names and dtypes; of a folder that was
    saved again in another dtype, in that.

    Returns {"folder", "weights" (how many were made dense), "parameters", "bytes"} of what was written. W = the
    network's dense form in float64 from the stored cores, rounded once to the original's dtype. Raises
    InputError where `folder` is no compressed folder or `out` exists (unless `overwrite`).
    """
    checkpoint = open_checkpoint(folder, compressed=True)
    settings = checkpoint.config.get("quantization_config") or {}
    if settings.get("quant_method") != "karipap":
        raise InputError(f"{folder} is not a model compressed by Karipap: there is nothing to make dense.")
    settings = as_saved(checkpoint, settings)
    original, disk = settings["original"], names_on_disk(checkpoint, settings)
    slices: dict[str, dict[int, str]] = {}  # tensor of a stack → number of a slice → the slice's name
    pieces: dict[str, Piece] = {}
    for tensor, info in in_natural_order(checkpoint.tensors):
        core = CORE.fullmatch(tensor)
        name = core[1] if core else tensor.removesuffix(".weight")
        stack = _stack_of(name, original["stacks"])
        if stack:
            slices.setdefault(stack, {})[int(name.rpartition(".")[2])] = name
        elif core:
            piece = _dense_piece(checkpoint, name, settings, disk)
            pieces[piece.name] = piece
        else:
            pieces[tensor] = copied(tensor, info)
    for stack, members in slices.items():
        names = [members[index] for index in sorted(members)]
        pieces[stack] = _stack_piece(checkpoint, stack, names, settings, disk)
    added = {"quantization_config", *original.get("config", ())}
    config = {key: value for key, value in checkpoint.config.items() if key not in added}
    with only_writer(out, "densify"), new_folder(out, checkpoint.path, overwrite) as target:
        fill_folder(target, checkpoint, config, with_progress(list(pieces.values()), progress, "densify"), shard_bytes)
    dense = open_checkpoint(out)
    return {"folder": str(out), "weights": len(disk), "parameters": dense.parameters, "bytes": dense.bytes}


def _dense(checkpoint: Checkpoint, name: str, settings: dict, disk: dict[str, str]) -> "torch.Tensor":
    """W (out, in) of a compressed weight, or of a slice that stayed dense, in the original's dtype.

    `disk` gives the names that the plan's weights have in the folder.
    """
    import torch

    from karipap_core.layers.cores import read_cores
    from karipap_core.networks import spec_from_json

    if f"{name}.weight" in checkpoint.tensors:
        return checkpoint.read_tensor(f"{name}.weight")

    def read(owner: str, core: str) -> torch.Tensor:
        if owner != name and owner not in disk:
            raise InputError(f"The folder lacks the cores of {owner}, which {name} shares: write it anew.")
        return checkpoint.read_tensor(f"{name if owner == name else disk[owner]}.{core}")

    known, entry = entry_of(name, settings)
    spec = spec_from_json(entry)
    dtype = settings["original"]["dtypes"].get(known, settings["original"]["dtype"])
    return spec.dense(read_cores(spec, name, read)).to(getattr(torch, dtype))


def _dense_piece(checkpoint: Checkpoint, name: str, settings: dict, disk: dict[str, str]) -> Piece:
    from karipap_core.networks import spec_from_json

    known, entry = entry_of(name, settings)
    spec, original = spec_from_json(entry), settings["original"]
    word = WORDS[original["dtypes"].get(known, original["dtype"])]
    turned = original["transposed"] and known not in original.get("tables", ())
    usual = {
        "tensor": f"{known}.weight",
        "shape": (spec.n_in, spec.n_out) if turned else (spec.n_out, spec.n_in),
        "transposed": turned,
    }
    held = original.get("others", {}).get(known, usual)
    if math.prod(held["shape"]) != spec.n_out * spec.n_in:
        raise InputError(f"{checkpoint.name}: {known} was stored as {held['shape']}, which its plan does not fit.")

    def stored() -> "torch.Tensor":
        W = _dense(checkpoint, name, settings, disk)
        return (W.T if held["transposed"] else W).reshape(held["shape"])

    # Under the name that it has here: saved again, a model's prefix may have come or gone.
    return computed(name + held["tensor"].removeprefix(known), word, held["shape"], stored)


def _stack_of(name: str, stacks: dict[str, bool]) -> str | None:
    """The stacked tensor that a weight is a slice of."""
    base, _, number = name.rpartition(".")
    for stack in (base, f"{base}.weight"):
        if number.isdigit() and stack in stacks:
            return stack
    return None


def _stack_piece(checkpoint: Checkpoint, stack: str, names: list[str], settings: dict, disk: dict[str, str]) -> Piece:
    first = _dense(checkpoint, names[0], settings, disk)
    transposed = settings["original"]["stacks"][stack]

    def write(file: BinaryIO) -> None:
        for name in names:
            W = _dense(checkpoint, name, settings, disk)
            file.write(raw_bytes(W.T if transposed else W))

    rows, columns = first.shape[::-1] if transposed else first.shape
    flat = stack in settings["original"].get("flat", ())
    shape = (len(names) * rows, columns) if flat else (len(names), rows, columns)
    return Piece(stack, WORDS[str(first.dtype).removeprefix("torch.")], shape, write)
