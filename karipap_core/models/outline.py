"""The weights of a model by its config.json alone: built empty, on torch's meta device, and read as a checkpoint is."""

from pathlib import Path
from typing import Any

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import FLOATS, ITEM_BYTES, TensorInfo
from karipap_core.models.empty import config_of, from_config

STORED = {dtype: word for word, dtype in FLOATS.items()}
PLACE = Path("config.json")


def of_config(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Of a config.json's contents: {"weights": a row each, as a profile has them, without spectra; "skipped",
    "parameters", "bytes"}. Where it gives no dtype, bfloat16 is assumed.

    Raises InputError where transformers cannot build what it describes.
    """
    config = config_of(document, name)
    live = from_config(config, document, name)
    given = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    word = STORED.get(str(given).removeprefix("torch."), "BF16")
    tensors = {
        key: TensorInfo(PLACE, word, tuple(value.shape), 0, value.numel() * ITEM_BYTES[word])
        for key, value in live.named_parameters()  # tied ones once
    }
    checkpoint = Checkpoint(name, PLACE, document | {"tie_word_embeddings": False}, tensors)
    rows: list[dict[str, Any]] = [
        weight.facts() | {"dtype": weight.dtype, "compressible": weight.compressible, "notes": [], "spectra": {}}
        for weight in checkpoint.weights
    ]
    return {
        "weights": rows,
        "skipped": checkpoint.skipped,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.bytes,
    }
