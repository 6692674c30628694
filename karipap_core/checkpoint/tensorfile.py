"""Headers of safetensors files, read in plain Python and distrusted: nothing is loaded, no torch is imported.

Format: 8 bytes little-endian length, a JSON object of that length, then the tensors' bytes
(https://huggingface.co/docs/safetensors/index#format).
"""

import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from karipap_core.errors import InputError
from karipap_core.reading import instead, open_file, parse_json

if TYPE_CHECKING:  # torch takes a second to import
    import torch

HEADER_CAP = 100_000_000
LONGEST_NAME = 512  # characters of a tensor's name
ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1}
ITEM_BYTES |= {"U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4}
ITEM_BYTES |= {"U64": 8, "I64": 8, "F64": 8, "C64": 8}
ITEM_BITS = {word: 8 * size for word, size in ITEM_BYTES.items()} | {"F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
ITEM_BITS |= {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}  # packed: a shape counts numbers, not bytes
FLOATS = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
TORCH = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64", "F64": "float64"}
TORCH |= {"U16": "uint16", "U32": "uint32", "U64": "uint64"}
TORCH |= FLOATS | {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"}


def bytes_of(dtype: str, shape: tuple[int, ...]) -> int:
    """What a tensor of this dtype (safetensors' word) and shape takes in a file."""
    return -(-math.prod(shape) * ITEM_BITS[dtype] // 8)


def word_of(dtype: object) -> str:
    """The file's word for a torch dtype: "U8" for `torch.uint8`. Raises KeyError for one that they lack."""
    name = str(dtype).removeprefix("torch.")
    return {known: word for word, known in TORCH.items()}[name]


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `dtype` is the file's own word ("BF16"), `start` and `size` are bytes in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int

    @property
    def items(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class OpenedTensor(TensorInfo):
    """A tensor that is made from stored ones of another form (packed integers and their scales …) when it is read.

    `make(index)` gives it in the dtype of `dtype`, whole for None, else the slice `index` of its first dimension.
    `size` is what it takes once made; `file` is where its first part lies.
    """

    make: "Callable[[int | None], torch.Tensor]"


def opened(
    parts: TensorInfo, shape: tuple[int, ...], make: "Callable[[int | None], torch.Tensor]", dtype: str = "BF16"
) -> OpenedTensor:
    """The tensor of that shape and dtype (safetensors' word) that `make` makes; `parts` is the first of what it is made
    from."""
    return OpenedTensor(parts.file, dtype, tuple(shape), 0, bytes_of(dtype, shape), make)


def read_stored(info: TensorInfo) -> "torch.Tensor":
    """A tensor as its file stores it. Types that torch packs or lacks (4- and 6-bit floats) come as their bytes, uint8,
    one-dimensional. Raises InputError where the file has become shorter."""
    import torch

    data = torch.frombuffer(bytearray().join(chunks(info)) or bytearray(1), dtype=torch.uint8)[: info.size]
    if info.dtype not in TORCH:
        return data
    return data.view(getattr(torch, TORCH[info.dtype])).reshape(info.shape)


def raw_bytes(tensor: "torch.Tensor") -> memoryview:
    """The bytes of a tensor on the CPU as safetensors stores them: row by row, without gaps."""
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, in the order of their bytes.

    Raises InputError where the file is cut short, is no safetensors file, or its header claims bytes that are
    outside the file, overlap, leave gaps, or do not fit the shape.
    """
    with open_file(path) as file:
        total = os.fstat(file.fileno()).st_size
        head = file.read(8)
        length = int.from_bytes(head, "little")
        if len(head) < 8 or length == 0 or length > total - 8:
            if other := instead(head + file.read(200)):
                raise InputError(f"{path} {other}.")
            raise InputError(f"{path} is cut short or is not a safetensors file: fetch it again.")
        if length > HEADER_CAP:
            raise InputError(f"{path} claims a header of {length:,} bytes; more than {HEADER_CAP:,} is not read.")
        try:
            text = file.read(length).decode()
        except UnicodeDecodeError:
            raise InputError(f"{path} has no readable safetensors header: fetch it again.") from None
    header = parse_json(text, f"The header of {path}")
    if not isinstance(header, dict):
        raise InputError(f"{path} has a safetensors header that is not a table of tensors: fetch it again.")
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise InputError(f"{path}: __metadata__ of its header is not a table of strings: save the model again.")
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].start, item[1].size)))
    end = 8 + length
    for name, info in ordered.items():
        if info.start != end:
            raise InputError(f"{path}: the bytes of tensor {name} overlap another's or leave a gap: fetch it again.")
        end += info.size
    if end != total:
        raise InputError(f"{path} has {total:,} bytes where its header accounts for {end:,}: fetch it again.")
    return ordered


def _entry(path: Path, name: str, entry, base: int) -> TensorInfo:
    """One checked entry of a header whose data begin at byte `base`."""
    if not name.isprintable() or not 0 < len(name) <= LONGEST_NAME:
        what = "unprintable characters" if not name.isprintable() else f"{len(name):,} characters"
        raise InputError(f"{path}: the name of tensor {name[:40]!r} has {what}: rename it.")
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise InputError(f"{path}: tensor {name} has no dtype, shape and data_offsets: fetch it again.") from None
    numbers = [*shape, begin, end] if isinstance(shape, list) else [None]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers) or end < begin:
        raise InputError(f"{path}: tensor {name} has a malformed dtype, shape or data_offsets: fetch it again.")
    if dtype not in ITEM_BITS:
        raise InputError(
            f"{path}: tensor {name} has the dtype {dtype[:20]}, which no safetensors file has: fetch it again."
        )
    if end - begin != bytes_of(dtype, shape):
        raise InputError(f"{path}: tensor {name} has {end - begin} bytes, not what {dtype} {shape} takes.")
    return TensorInfo(path, dtype, tuple(shape), base + begin, end - begin)


def chunks(info: TensorInfo) -> Iterator[bytes]:
    """A tensor's bytes, at most a megabyte at a time. Raises InputError where the file has become shorter."""
    if isinstance(info, OpenedTensor):
        made = raw_bytes(info.make(None))
        yield from (bytes(made[start : start + (1 << 20)]) for start in range(0, len(made), 1 << 20))
        return
    with open_file(info.file) as file:
        file.seek(info.start)
        left = info.size
        while left:
            data = file.read(min(left, 1 << 20))
            if not data:
                raise InputError(f"{info.file} became shorter while it was read: fetch it again.")
            yield data
            left -= len(data)


@dataclass(frozen=True)
class Piece:
    """One tensor to be written: `write(file)` puts exactly its bytes into an open binary file when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    write: Callable[[BinaryIO], None]

    @property
    def size(self) -> int:
        return bytes_of(self.dtype, self.shape)


def copied(name: str, info: TensorInfo) -> Piece:
    """A tensor copied byte for byte from another file, a megabyte at a time."""

    def write(target: BinaryIO) -> None:
        for data in chunks(info):
            target.write(data)

    return Piece(name, info.dtype, info.shape, write)


def write_file(path: Path, pieces: list[Piece]) -> None:
    """Writes a safetensors file, one tensor in memory at a time. The same pieces give the same bytes."""
    header: dict = {"__metadata__": {"format": "pt"}}
    # Wide types first, so that every tensor begins at a multiple of its item size.
    ordered = sorted(pieces, key=lambda piece: (-ITEM_BITS[piece.dtype], piece.name))
    end = 0
    for piece in ordered:
        header[piece.name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [end, end + piece.size]}
        end += piece.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for piece in ordered:
            began = file.tell()
            piece.write(file)
            if file.tell() - began != piece.size:
                raise ValueError(f"Tensor {piece.name} wrote {file.tell() - began} bytes where {piece.size} were due.")


def write_model(folder: Path, pieces: list[Piece], shard_bytes: int) -> None:
    """Writes a model's tensors as model.safetensors or, above `shard_bytes`, as shards with their index."""
    shards: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if shards[-1] and filled + piece.size > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(piece)
        filled += piece.size
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_file(folder / file, shard)
        weight_map |= {piece.name: file for piece in shard}
    index = {"metadata": {"total_size": sum(piece.size for piece in pieces)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf-8")
