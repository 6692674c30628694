"""Writes a GGUF file, one tensor in memory at a time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # torch takes a second to import
    import torch

FLOAT_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file: its name, sides in torch's order, ggml's word for its type, and what makes its bytes,
    (…, bytes of a row) uint8."""

    name: str
    shape: tuple[int, ...]
    kind: str
    make: Callable[[], np.ndarray]

    @property
    def row_bytes(self) -> int:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        block, size = GGML_QUANT_SIZES[GGMLQuantizationType[self.kind]]
        return self.shape[-1] // block * size


def float_bytes(tensor: "torch.Tensor", kind: str) -> np.ndarray:
    """The numbers of a tensor in one of `FLOAT_BYTES`, (…, bytes of a row) uint8."""
    import torch

    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    return tensor.to(dtype).contiguous().view(torch.uint8).numpy()


def write_file(path: Path, entries: dict[str, Any], tensors: Iterable[Tensor], done: Callable[[str], None]) -> None:
    """entries : name → value; a float is stored in 32 bits, a whole number as unsigned of 32, a list by its first
    element (of whole numbers: signed). "general.architecture" has to be among them. done : is told each name."""
    from gguf import GGUFWriter
    from gguf.constants import GGMLQuantizationType

    entries, tensors = dict(entries), list(tensors)
    writer = GGUFWriter(path, entries.pop("general.architecture"))
    add: dict[type, Callable[[str, Any], None]]
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    for key, value in entries.items():
        add.get(type(value), writer.add_array)(key, value)
    for tensor in tensors:
        sides = (*tensor.shape[:-1], tensor.row_bytes)
        size = int(np.prod(sides, dtype=np.int64))
        writer.add_tensor_info(tensor.name, sides, np.dtype(np.uint8), size, GGMLQuantizationType[tensor.kind])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            data = tensor.make()
            assert data.shape == (*tensor.shape[:-1], tensor.row_bytes), tensor.name
            writer.write_tensor_data(data)
            done(tensor.name)
    finally:
        writer.close()
