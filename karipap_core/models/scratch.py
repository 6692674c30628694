"""Tensors between the blocks of a model, kept on disk in 16 bits while a pass over the blocks is under way."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from karipap_core.errors import InputError
from karipap_core.workspace.kept import keep_json, keep_tensors, kept_json, kept_tensors

TOP = 14  # exponent that the largest number of a tensor is stored with: float16 ends at 2**16


def halved(tensor: torch.Tensor) -> tuple[torch.Tensor, int]:
    """(t · 2**e in float16, e) of floats, with e such that the largest lies just below the type's end: 11 bits of all
    that is within 2**28 of the largest. What has 16 bits already stays as it is (e = 0). Raises InputError for NaN
    and infinity."""
    if tensor.dtype.itemsize == 2:
        return tensor.detach().cpu(), 0
    largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
    if not largest < float("inf"):
        raise InputError("What a block of the model puts out is NaN or infinite, although its weights are numbers.")
    exponent = TOP - int(torch.tensor(largest).frexp().exponent) if largest > 0 else 0
    return torch.ldexp(tensor.detach(), torch.tensor(exponent)).to(torch.float16).cpu(), exponent


def whole(half: torch.Tensor, exponent: int, dtype: torch.dtype, device: str) -> torch.Tensor:
    """The tensor that `halved` was given, as far as 16 bits hold it."""
    if half.dtype == dtype:
        return half.to(device)
    return torch.ldexp(half.to(device=device, dtype=dtype), torch.tensor(-exponent))


class Scratch:
    """A folder of files, each with tensors under keys; those put in last are written by `write`, the two files that
    were asked for last stay in memory. And notes, one a kind and number."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str):
        self.folder, self.dtype, self.device = folder, dtype, device
        self._open: dict[str, dict[str, tuple[torch.Tensor, int]]] = {}  # put in and not yet written
        self._read: OrderedDict[str, dict[str, tuple[torch.Tensor, int]]] = OrderedDict()

    def put(self, file: str, key: str, tensor: torch.Tensor) -> torch.Tensor:
        """Keeps a tensor; returns it as it will be found."""
        kept = self._open.setdefault(file, {})[key] = halved(tensor)
        return whole(*kept, tensor.dtype, self.device)

    def get(self, file: str, key: str) -> torch.Tensor:
        """A tensor that was put into a file, written or not. Raises InputError where it is gone."""
        if key in self._open.get(file, {}):
            return whole(*self._open[file][key], self.dtype, self.device)
        if file not in self._read:
            while len(self._read) > 1:
                self._read.popitem(last=False)
            found = kept_tensors(self._path(file))
            if found is None:
                raise InputError(f"File {self._path(file)} is missing or damaged: remove its folder and begin again.")
            exponents = json.loads(found[1]["exponents"])
            self._read[file] = {key: (tensor, exponents[key]) for key, tensor in found[0].items()}
        return whole(*self._read[file][key], self.dtype, self.device)

    def write(self) -> None:
        """Writes all that was put in, each file whole or not at all."""
        for file, tensors in self._open.items():
            exponents = json.dumps({key: exponent for key, (_, exponent) in tensors.items()})
            halves = {key: half.contiguous() for key, (half, _) in tensors.items()}
            keep_tensors(self._path(file), halves, {"exponents": exponents})
        self._open = {}

    def has(self, file: str) -> bool:
        """Whether a file was written."""
        return self._path(file).exists()

    def bytes(self, file: str) -> int:
        """Of a file on disk."""
        return self._path(file).stat().st_size if self.has(file) else 0

    def drop(self, file: str) -> None:
        """Removes a file."""
        self._read.pop(file, None)
        self._path(file).unlink(missing_ok=True)

    def note(self, kind: str, number: int, document: dict[str, Any]) -> None:
        """Keeps a note."""
        keep_json(self.folder / f"{kind}-{number}.json", document)

    def noted_numbers(self, kind: str) -> dict[int, dict[str, Any]]:
        """The notes of a kind that are there, by number."""
        files = {int(file.stem.partition("-")[2]): file for file in self.folder.glob(f"{kind}-*.json")}
        found = {number: kept_json(file) for number, file in files.items()}
        return {number: note for number, note in found.items() if note is not None}

    def _path(self, file: str) -> Path:
        return self.folder / f"{file}.safetensors"
