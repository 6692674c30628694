"""What was computed and is kept to be found again: files that carry the SHA-256 of what was written into them.

A kept file counts only while its sum confirms it. One that is cut short or has a flipped bit is told of (a warning of
the logger `karipap`) and counts as not there: whoever needs it makes it again. Files from before there were sums are
taken as they are where they can be read at all.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.reading import open_file
from karipap_core.schemas import SEAL, sum_of
from karipap_core.workspace.files import whole_file, write_json

NOTE = "karipap"  # the one entry of a safetensors file's metadata: several would be written in an order of chance
BLANK = "0" * 64  # stands in a file for its sum while that is taken
BEGINNING = '{"sha256":'  # of the entry's text
MOST_HEADER = 100_000_000
_SUM = re.compile(rb'"karipap":"\{\\"sha256\\":\\"([0-9a-f]{64})\\"')
_log = logging.getLogger("karipap")


def keep_json(path: str | Path, document: dict) -> None:
    """Write a JSON object whole, with its sum in the field `seal`."""
    write_json(path, document | {SEAL: sum_of(document)})


def kept_json(path: str | Path, schema: str | None = None) -> dict[str, Any] | None:
    """The JSON object that was kept in a file, without its seal; None where there is none, it is damaged, or it is not
    what `schema` (see `schemas`) says."""
    if not Path(path).exists():
        return None
    try:
        return schemas.read(path, schema)
    except InputError as error:
        _log.warning("%s It counts as not there.", error)
        return None


def keep_tensors(path: str | Path, tensors: Mapping[str, Any], note: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file whole: tensors of torch or arrays of numpy, what there is to say of them as strings, and
    the file's sum. Equal contents give equal bytes."""
    from safetensors import SafetensorError

    numpy = all(type(tensor).__module__.startswith("numpy") for tensor in tensors.values())
    if numpy:
        from safetensors.numpy import save_file
    else:
        from safetensors.torch import save_file  # type: ignore[assignment]  # the same function for other arrays
    said = json.dumps({"sha256": BLANK} | dict(sorted((note or {}).items())), separators=(",", ":"))
    with whole_file(path) as temporary:
        try:
            save_file(dict(tensors), temporary, metadata={NOTE: said})
        except SafetensorError as error:  # it hides the system's error in its words
            number = re.search(r"\(os error (\d+)\)", str(error))
            raise OSError(int(number[1]), str(error)) if number else error from error
        found, place = _sum(temporary)
        with temporary.open("rb+") as file:
            file.seek(place)
            file.write(found.encode())


def has_tensors(path: str | Path) -> bool:
    """Whether a safetensors file is there as it was written. Costs a reading of the whole file."""
    return kept_note(path) is not None


def kept_note(path: str | Path) -> dict[str, str] | None:
    """What was said of the tensors in a kept file; None where there is none or it is damaged."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as handle:
            metadata = handle.metadata() or {}
        if NOTE not in metadata and not any(value.startswith(BEGINNING) for value in metadata.values()):
            return metadata  # of before there were sums
        note = json.loads(metadata[NOTE])
        if note.pop("sha256") == _sum(path)[0]:
            return note
        why = "its SHA-256 differs"
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, InputError) as error:
        why = str(error)
    _log.warning("File %s is damaged (%s): it counts as not there.", path, why)
    return None


def kept_tensors(path: str | Path, framework: str = "pt") -> tuple[dict[str, Any], dict[str, str]] | None:
    """(tensors, what was said of them) of a kept file, for torch ("pt") or numpy; None where there is none or it is
    damaged."""
    from safetensors import safe_open

    note = kept_note(path)
    if note is None:
        return None
    with safe_open(path, framework=framework) as handle:
        return {name: handle.get_tensor(name) for name in handle.keys()}, note  # noqa: SIM118 (no mapping)


def _sum(path: Path) -> tuple[str, int]:
    """(SHA-256 of a file with `BLANK` where it holds its sum, the place of that in the file)."""
    with open_file(path) as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        header = file.read(8 + min(length, MOST_HEADER))
        found = _SUM.search(header)
        if found is None:
            raise ValueError("it holds no sum")
        digest = hashlib.sha256(header[: found.start(1)] + BLANK.encode() + header[found.end(1) :])
        buffer = memoryview(bytearray(1 << 18))  # one that stays in the processor's cache
        while read := file.readinto(buffer):
            digest.update(buffer[:read])
    return digest.hexdigest(), found.start(1)
