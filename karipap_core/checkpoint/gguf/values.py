"""Values of a GGUF file's tensors: plain floats as they are, blocks unpacked by the gguf package, a piece at a time."""

from typing import TYPE_CHECKING

from karipap_core.checkpoint.tensorfile import FLOATS, TensorInfo, read_stored
from karipap_core.errors import InputError
from karipap_core.reading import open_file

if TYPE_CHECKING:  # torch takes a second to import
    import torch

PIECE = 1 << 24  # numbers that are unpacked at once
OPENED = "BF16"  # what blocks are opened to


def dtype_of(info: TensorInfo) -> str:
    """The dtype that a tensor opens to. Raises InputError for a type that cannot be opened."""
    import numpy as np
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    if info.dtype in FLOATS:
        return info.dtype
    kind = GGMLQuantizationType[info.dtype]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        raise InputError(
            f"{info.file} holds tensors of ggml's type {info.dtype}, which the gguf package does not unpack: give the "
            "model in another quantization."
        ) from None
    return OPENED


def read_values(info: TensorInfo) -> "torch.Tensor":
    """A tensor's values in the dtype of `dtype_of`, in its shape. Raises InputError where the file became shorter."""
    import numpy as np
    import torch
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    if info.dtype in FLOATS:
        return read_stored(info)
    kind = GGMLQuantizationType[info.dtype]
    block, size = GGML_QUANT_SIZES[kind]
    values = torch.empty(info.items, dtype=getattr(torch, FLOATS[OPENED]))
    blocks, done = PIECE // block, 0
    with open_file(info.file) as file:
        file.seek(info.start)
        while done < info.items:
            count = min(blocks, (info.items - done) // block)
            data = file.read(count * size)
            if len(data) != count * size:
                raise InputError(f"{info.file} became shorter while it was read: fetch it again.")
            with np.errstate(
                all="ignore"
            ):  # a damaged scale gives what is no number, which is told of where it is used
                unpacked = dequantize(np.frombuffer(data, np.uint8).reshape(count, size), kind)
            values[done : done + count * block] = torch.from_numpy(np.ascontiguousarray(unpacked).reshape(-1))
            done += count * block
    return values.reshape(info.shape)
