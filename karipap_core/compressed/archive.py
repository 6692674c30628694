"""A compressed folder as one ZIP file, made while it is sent: nothing is written to the disk, or held in memory.

Files are stored and not deflated, since weights do not get smaller, so the size is known before the first byte. Each
file is read twice, first for its CRC-32: then its header is complete, and every program can unpack the archive while
it still arrives. Offsets and sizes beyond 32 bits are written as ZIP64 (PKWARE's APPNOTE 6.3.9, 4.3 and 4.5.3).
"""

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from karipap_core.checkpoint.beside import sub_folder_files
from karipap_core.checkpoint.kinds import kind_of, loader_of
from karipap_core.errors import InputError
from karipap_core.reading import open_file, read_json

CHUNK = 1 << 20
LIMIT = ONES = 0xFFFFFFFF  # from LIMIT on a number of 32 bits is written as ones, and itself as ZIP64
UTF8 = 0x800  # of the flags: names are UTF-8
DATE = 0x21  # 1980-01-01, so that equal folders give equal archives
EXPORTED = "karipap-export.json"  # of a folder for another engine, which may have no config.json
OWNER = 0o100644 << 16  # an ordinary file of Unix that all may read


@dataclass(frozen=True)
class Member:
    """One file of the archive: its name there, and its bytes, or where they lie."""

    name: bytes
    content: Path | bytes
    size: int


def members(folder: str | Path, name: str, more: Mapping[str, bytes] | None = None) -> list[Member]:
    """What the archive of a folder holds, below a folder `name`: its files, those of its sub-folders that belong to the
    model, and those of `more`. Links and hidden files are left out. Raises InputError where `folder` is no model that
    Karipap wrote."""
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("config.json", EXPORTED)):
        raise InputError(f"{folder} is no folder of a model.")
    files = {file.name: file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")}
    found = [
        Member(f"{name}/{below}".encode(), file, file.stat().st_size)
        for below, file in sorted((files | sub_folder_files(folder)).items())
        if not file.is_symlink()
    ]
    return found + [Member(f"{name}/{key}".encode(), data, len(data)) for key, data in (more or {}).items()]


def how_to_load(folder: Path, name: str) -> str:
    """The text that goes with the archive of a folder: lines that load what is unpacked of it as `name`."""
    config = read_json(folder / "config.json", lenient=True)
    lines = two_lines(name, loader_of(config, kind_of(config, True)))
    if "quantization_config" not in config:
        lines = lines.replace("karipap_core, ", "")
        return f"{name}: an ordinary dense model, written from a compressed one by Karipap.\n\n{lines}\n"
    return (
        f"{name}: a model compressed by Karipap, which has to be installed where it is loaded. In Python:\n\n"
        f"{lines}\n\n"
        "For engines that know nothing of Karipap (vLLM; gguf for llama.cpp, onnx for ONNX Runtime):\n\n"
        f"karipap export {name} --to vllm --out {name}-vllm\n"
    )


def two_lines(folder: str | Path, loader: str = "AutoModelForCausalLM") -> str:
    """Python that loads a compressed folder; loader: see `kinds.loader_of`.

    >>> print(two_lines("mine"))
    import karipap_core, transformers
    model = transformers.AutoModelForCausalLM.from_pretrained('mine')
    """
    return f"import karipap_core, transformers\nmodel = transformers.{loader}.from_pretrained({str(folder)!r})"


def size(files: list[Member]) -> int:
    """The bytes of the archive of these files."""
    offset = total = 0
    for file in files:
        head, entry = len(_local(file, 0)), len(_central(file, 0, offset))
        offset += head + file.size
        total += head + file.size + entry
    return total + len(_end(len(files), total - offset, offset))


def stream(files: list[Member]) -> Iterator[bytes]:
    """The archive, piece by piece. Raises InputError where a file is no longer as large as it was."""
    offset, directory = 0, []
    for file in files:
        crc = 0
        for chunk in _chunks(file):
            crc = zlib.crc32(chunk, crc)
        head = _local(file, crc)
        directory.append(_central(file, crc, offset))
        yield head
        yield from _chunks(file)
        offset += len(head) + file.size
    entries = b"".join(directory)
    yield entries
    yield _end(len(files), len(entries), offset)


def _chunks(file: Member) -> Iterator[bytes]:
    if isinstance(file.content, bytes):
        yield file.content
        return
    left = file.size
    with open_file(file.content) as opened:
        while left and (chunk := opened.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk
    if left:
        raise InputError(f"{file.content} was changed while it was read.")


def _local(file: Member, crc: int) -> bytes:
    """The header before a file's bytes."""
    big = file.size >= LIMIT
    extra = struct.pack("<HHQQ", 1, 16, file.size, file.size) if big else b""
    shown = ONES if big else file.size
    fixed = (b"PK\3\4", 45 if big else 20, UTF8, 0, 0, DATE, crc, shown, shown, len(file.name), len(extra))
    return struct.pack("<4s5H3I2H", *fixed) + file.name + extra


def _central(file: Member, crc: int, offset: int) -> bytes:
    """A file's entry in the directory at the end."""
    big = file.size >= LIMIT
    numbers = [file.size, file.size] if big else []
    numbers += [offset] if offset >= LIMIT else []
    extra = struct.pack(f"<HH{len(numbers)}Q", 1, 8 * len(numbers), *numbers) if numbers else b""
    shown, version = ONES if big else file.size, 45 if numbers else 20
    fixed = (b"PK\1\2", 3 << 8 | version, version, UTF8, 0, 0, DATE, crc, shown, shown, len(file.name), len(extra))
    last = (0, 0, 0, OWNER, ONES if offset >= LIMIT else offset)
    return struct.pack("<4s6H3I5H2I", *fixed, *last) + file.name + extra


def _end(count: int, length: int, offset: int) -> bytes:
    """What closes the archive: where its directory lies, and how long it is."""
    found = b""
    if offset >= LIMIT or length >= LIMIT or count >= 0xFFFF:
        found = struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 3 << 8 | 45, 45, 0, 0, count, count, length, offset)
        found += struct.pack("<4sIQI", b"PK\6\7", 0, offset + length, 1)
    entries = min(count, 0xFFFF)
    size, place = (ONES if value >= LIMIT else value for value in (length, offset))
    short = (b"PK\5\6", 0, 0, entries, entries, size, place, 0)
    return found + struct.pack("<4s4H2IH", *short)
