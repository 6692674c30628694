"""Headers of GGUF files, read in plain Python and distrusted: every count and size is held against the file before it
is believed, and no tensor is read.

Format: "GGUF", a version, the number of tensors and of entries, the entries (a name, a type, a value), the table of
tensors (a name, sides beginning with the fastest, a type, an offset), then from the next multiple of the alignment on
the tensors' bytes, one behind the other (see the GGUF specification of ggml-org/ggml).
"""

import hashlib
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from karipap_core.checkpoint.files import MAGIC
from karipap_core.checkpoint.tensorfile import LONGEST_NAME, TensorInfo
from karipap_core.errors import InputError
from karipap_core.reading import instead, open_file

VERSIONS = (2, 3)
MOST_HEADER = 256 << 20  # bytes; a vocabulary of 262,144 tokens with its merges takes 20 MB
MOST_ENTRIES = 1 << 16
MOST_SIDES = 4
STEP = 1 << 20  # bytes that are read at once
ALIGNMENT = 32  # where the file names none
STRING, ARRAY = 8, 9
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself: its `entries` (name → number, string, or list of these), its `tensors` by their
    names in the file (dtype: ggml's word, such as "Q4_K"), and the SHA-256 of it all."""

    file: Path
    entries: dict[str, Any]
    tensors: dict[str, TensorInfo]
    sum: str


def read_header(path: Path) -> Header:
    """The header of a GGUF file. Raises InputError where the file is none, is cut short, or its header claims what does
    not fit it."""
    with open_file(path) as file:
        reader = _Reader(path, file)
        if reader.take(4) != MAGIC:
            file.seek(0)
            if other := instead(file.read(200)):
                raise InputError(f"{path} {other}.")
            raise InputError(f"{path} is not a GGUF file, whatever its name: fetch it again.")
        version = reader.number("I")
        if version not in VERSIONS:
            if version >> 16:
                raise InputError(f"{path} is a GGUF file for big-endian machines, which is not read here.")
            raise InputError(f"{path} is of GGUF's version {version}; read are {VERSIONS[0]} and {VERSIONS[1]}.")
        tensors, entries = reader.number("Q"), reader.number("Q")
        if entries > MOST_ENTRIES:
            raise InputError(f"{path} claims {entries:,} entries; more than {MOST_ENTRIES:,} are not read.")
        found: dict[str, Any] = {}
        for _ in range(entries):
            key = reader.string()
            if key in found:
                raise InputError(f"{path} has the entry {key[:60]!r} twice: fetch it again.")
            found[key] = reader.value(key)
        table = [reader.tensor() for _ in range(reader.bounded(tensors, 24, "tensors"))]
        return Header(path, found, _placed(path, table, reader, found), reader.digest.hexdigest())


def read_parts(files: list[Path]) -> Header:
    """The header of a model that lies in several GGUF files: the entries of the first, the tensors of all. Raises
    InputError where these are no parts of one model."""
    headers = [read_header(file) for file in files]
    tensors: dict[str, TensorInfo] = {}
    for number, header in enumerate(headers):
        said = [header.entries.get(f"split.{what}") for what in ("no", "count")]
        if len(files) > 1 and said != [number, len(files)]:
            raise InputError(
                f"{header.file} does not say that it is part {number + 1} of {len(files)}: fetch it again."
            )
        if twice := sorted(tensors.keys() & header.tensors.keys()):
            raise InputError(f"Tensor {twice[0]} is in both {tensors[twice[0]].file.name} and {header.file.name}.")
        tensors |= header.tensors
    count = headers[0].entries.get("split.tensors.count", len(tensors))
    if count != len(tensors):
        raise InputError(f"{files[0]} has {len(tensors):,} tensors with its other parts, and says {count}.")
    whole = "".join(header.sum for header in headers)
    return Header(files[0], headers[0].entries, tensors, hashlib.sha256(whole.encode()).hexdigest())


class _Reader:
    """Takes a header apart from its beginning; nothing is taken that the file does not have."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file
        self.total = os.fstat(file.fileno()).st_size
        self.place = 0  # of what is taken next, in the file
        self.digest = hashlib.sha256()
        self._held, self._begin = b"", 0

    def take(self, count: int) -> bytes:
        if count > self.total - self.place:
            raise InputError(f"{self.path} is cut short or is not a GGUF file: fetch it again.")
        if self.place + count > MOST_HEADER:
            raise InputError(f"{self.path} claims a header of more than {MOST_HEADER:,} bytes, which is not read.")
        if self._begin + count > len(self._held):
            rest = self._held[self._begin :]
            self._held, self._begin = rest + self.file.read(max(count - len(rest), STEP)), 0
        data = self._held[self._begin : self._begin + count]
        if len(data) != count:
            raise InputError(f"{self.path} became shorter while it was read: fetch it again.")
        self._begin += count
        self.place += count
        self.digest.update(data)
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack("<" + kind, self.take(struct.calcsize("<" + kind)))[0]

    def string(self) -> str:
        data = self.take(self.number("Q"))
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise InputError(f"{self.path} has a string that is not UTF-8 before byte {self.place:,}.") from None

    def bounded(self, count: int, least: int, what: str) -> int:
        """`count`, which has to fit into what is left of the file where each takes at least `least` bytes."""
        if count * least > self.total - self.place:
            raise InputError(f"{self.path} claims {count:,} {what}, for which it is too short: fetch it again.")
        return count

    def value(self, key: str) -> Any:
        kind = self.number("I")
        if kind in NUMBERS:
            return self._finite(key, self.number(NUMBERS[kind]))
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            raise InputError(f"{self.path}: entry {key[:60]!r} is of the type {kind}, which GGUF does not have.")
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            return [self.string() for _ in range(self.bounded(count, 8, "strings"))]
        if kind not in NUMBERS:
            raise InputError(f"{self.path}: entry {key[:60]!r} is a list of the type {kind}, which is not read.")
        size = struct.calcsize("<" + NUMBERS[kind])
        data = self.take(size * self.bounded(count, size, "numbers"))
        return [value for (value,) in struct.iter_unpack("<" + NUMBERS[kind], data)]

    def _finite(self, key: str, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self.path}: entry {key[:60]!r} is {value}, which is no number: fetch it again.")
        return value

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """(name, shape in the order of torch, type, offset) of the next row of the table."""
        name = self.string()
        if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
            what = "unprintable characters" if not name.isprintable() else f"{len(name):,} characters"
            raise InputError(f"{self.path}: the name of tensor {name[:40]!r} has {what}: fetch it again.")
        sides = self.number("I")
        if sides > MOST_SIDES:
            raise InputError(f"{self.path}: tensor {name} has {sides:,} dimensions, and GGUF at most {MOST_SIDES}.")
        shape = tuple(self.number("Q") for _ in range(sides))[::-1]
        return name, shape, self.number("I"), self.number("Q")


def _placed(path: Path, table: list, reader: _Reader, entries: dict[str, Any]) -> dict[str, TensorInfo]:
    """The tensors of a table, which have to lie one behind the other and within the file."""
    step = entries.get("general.alignment", ALIGNMENT)
    if not isinstance(step, int) or not 8 <= step <= 1 << 20 or step & (step - 1):
        raise InputError(f"{path}: general.alignment is {str(step)[:40]}, not a power of two from 8 on.")
    begin, due = -(-reader.place // step) * step, 0
    tensors: dict[str, TensorInfo] = {}
    for name, shape, kind, offset in table:
        if name in tensors:
            raise InputError(f"{path} has the tensor {name} twice: fetch it again.")
        word, size = _size(path, name, shape, kind)
        if offset != due:
            raise InputError(f"{path}: the bytes of tensor {name} overlap another's or leave a gap: fetch it again.")
        if begin + offset + size > reader.total:
            raise InputError(f"{path} is cut short: tensor {name} ends behind its last byte. Fetch it again.")
        tensors[name] = TensorInfo(path, word, shape, begin + offset, size)
        due = -(-(offset + size) // step) * step
    return tensors


def _size(path: Path, name: str, shape: tuple[int, ...], kind: int) -> tuple[str, int]:
    """(ggml's word for a type, the bytes that a tensor of it takes)."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if kind not in list(GGMLQuantizationType):
        raise InputError(f"{path}: tensor {name} is of ggml's type {kind}, which this version of gguf does not know.")
    word = GGMLQuantizationType(kind)
    block, size = GGML_QUANT_SIZES[word]
    if shape and shape[-1] % block:
        raise InputError(
            f"{path}: the rows of tensor {name} have {shape[-1]:,} numbers, and {word.name} packs {block}."
        )
    return word.name, math.prod(shape) // block * size
