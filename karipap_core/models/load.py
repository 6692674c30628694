"""Models and tokenizers through transformers, dense or compressed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from karipap_core.checkpoint.model import TOKENIZERS, Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.spectra.spectrum import pick_device

if TYPE_CHECKING:  # transformers is imported where a model is loaded
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_model(
    model: str | Path | Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """(model in eval mode, its tokenizer or None) from a folder, file, hub id or open checkpoint, dense or compressed.

    Causal models with their head (`AutoModelForCausalLM`), others without (`AutoModel`). Nothing is executed from the
    folder and nothing but safetensors is read; `device` "auto" is CUDA where there is one. Raises InputError where
    transformers cannot load it, or the files lack parameters of the model.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, compressed=True)
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    if not checkpoint.config:
        raise InputError(f"{checkpoint.name} has no config.json, so no model can be made of it: add the file.")
    device = pick_device(device)
    auto = AutoModelForCausalLM if checkpoint.kind == "causal" else AutoModel
    with quiet(), explained(checkpoint.name):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if checkpoint.path.is_file():
            config.transformers_weights = checkpoint.path.name
        if _unaligned_experts(checkpoint, dtype):
            config._experts_implementation = "eager"
        loaded = auto.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        live, info = cast("tuple[PreTrainedModel, dict[str, Any]]", loaded)  # a pair, since it was asked for
    # A checkpoint of a model with a head often has no pooler; nothing here looks at what comes out of it.
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing:
        raise InputError(f"{checkpoint.name} lacks parameter {missing[0]} of a {type(live).__name__}: fetch it again.")
    live.to(device)  # type: ignore[arg-type]  # transformers' wrapper of Module.to does not look like a method
    return live.eval(), load_tokenizer(folder)


def _unaligned_experts(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product, with which transformers runs experts, would refuse the rows' length."""
    sides = {side for weight in checkpoint.weights if weight.expert is not None for side in weight.shape}
    return any(side * dtype.itemsize % 16 for side in sides)


def load_tokenizer(folder: str | Path):
    """The tokenizer in a model's folder, None where there is none. Raises InputError where it cannot be read."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    with explained(f"The tokenizer in {folder}"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Turns what transformers raises for a model that it cannot load into one sentence."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, OSError, ImportError, AttributeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{name} cannot be loaded by transformers: {reason}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no report of unused parameters: standard error belongs to our own progress."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
