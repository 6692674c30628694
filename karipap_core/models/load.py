"""Models and tokenizers through transformers, dense or compressed."""

import codecs
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from karipap_core.checkpoint.files import has_tokenizer
from karipap_core.checkpoint.kinds import positions_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.roles import place
from karipap_core.checkpoint.tensorfile import FLOATS
from karipap_core.errors import InputError
from karipap_core.models import devices, running
from karipap_core.models.empty import empty_model, explained, live_config, quiet
from karipap_core.reading import named, open_file, read_json
from karipap_core.spectra.spectrum import pick_device

if TYPE_CHECKING:  # transformers is imported where a model is loaded
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

TEXT = "A tokenizer is tried on this."
TRIED = 4  # tokens that a model is tried on when it is loaded
# JSON that transformers reads beside the model, where it is there.
BESIDE: tuple[str, ...] = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
BESIDE += ("special_tokens_map.json", "added_tokens.json")


def check(checkpoint: Checkpoint) -> None:
    """Raises InputError for what loading the model of a checkpoint, or reading its tokenizer, would end with."""
    empty_model(checkpoint)
    load_tokenizer(checkpoint.home)
    buffers = checkpoint.buffers
    for tensor, info in checkpoint.tensors.items():
        read_later = len(info.shape) > 1 and place(tensor)[0] is not None  # weights of the blocks, one at a time
        if info.dtype not in FLOATS or read_later or tensor in buffers:
            continue
        if not checkpoint.read_tensor(tensor).isfinite().all():
            raise checkpoint.damaged(tensor)


def load_model(
    model: str | Path | Checkpoint, dtype: torch.dtype = torch.float32, device: str = "cpu", run: bool = True
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
    """(model in eval mode, its tokenizer or None) from a folder, file, hub id or open checkpoint, dense or compressed.

    Models that predict tokens with their head, others without (`class_of`). `run`: whether it has to run on text, which
    is tried on a few tokens (`try_model`); without, one that does not is loaded too.
    Nothing is executed from the
    folder and nothing but safetensors is read; `device` "auto" is CUDA where there is one, several where one is too
    small (`devices.put`). Raises InputError where
    config.json, tensors and tokenizer do not fit (`empty_model`), transformers cannot load or run them, or a parameter
    holds NaN or infinity.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, compressed=True)
    folder, device = checkpoint.home, pick_device(device)
    architecture = type(empty_model(checkpoint))
    tokenizer = load_tokenizer(folder)
    with quiet(), explained(f"{checkpoint.name} cannot be loaded by transformers"):
        config = live_config(checkpoint)
        config.return_dict = True  # whatever the file says: outputs are asked for by name
        if _unaligned_experts(checkpoint, dtype):
            config._experts_implementation = "eager"
        live = _filled(architecture, config, checkpoint, dtype)
    for name, parameter in live.named_parameters():
        if parameter.is_floating_point() and not parameter.isfinite().all():
            raise checkpoint.damaged(name)
    devices.put(live, device)
    live.eval()
    if run:
        try_model(live, checkpoint.name)
    return live, tokenizer


def _filled(
    architecture: "type[PreTrainedModel]", config: "PretrainedConfig", checkpoint: Checkpoint, dtype: torch.dtype
) -> "PreTrainedModel":
    """The model with its weights: read by transformers from the files, or given to it where the form was opened."""
    if checkpoint.form is not None:
        tensors = {name: checkpoint.read_tensor(name) for name in checkpoint.tensors}
        return architecture.from_pretrained(None, config=config, state_dict=tensors, dtype=dtype)
    config.transformers_weights = _weights_file(checkpoint)
    return architecture.from_pretrained(
        checkpoint.home,
        config=config,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
    )


def try_model(model: "PreTrainedModel", name: str) -> None:
    """Runs a model on a few tokens. Raises InputError where its config lets it be built but not run."""
    positions = positions_of(model.config.get_text_config()) or TRIED
    ids = torch.zeros(1, min(TRIED, positions), dtype=torch.long, device=model.device)
    with quiet(), torch.no_grad(), explained(f"{name} is built by its config.json and cannot be run by it"):
        check_outputs(running.output(model, ids), name)
        if running.predicts(model) and not running.two_parts(model) and running.sees_ahead(model, ids):
            raise InputError(
                f"What {name} puts out at a token depends on the tokens behind it: it has no loss of the next token, "
                "and only plans by its weights alone can be made (--metric weight --rule uniform)."
            )


def check_outputs(outputs: torch.Tensor, name: str) -> None:
    """Raises InputError where what a model puts out are no numbers, although its parameters are; −∞ may be meant."""
    if outputs.isnan().any() or outputs.isposinf().any():
        raise InputError(
            f"The outputs of {name} are NaN or infinite, although its weights are numbers: its config.json (rope, eps, "
            "dtype) does not fit them, or they are damaged."
        )


def _weights_file(checkpoint: Checkpoint) -> str:
    """The file that transformers is to begin with: the one that was opened, whatever the config says."""
    files = {info.file.name for info in checkpoint.tensors.values()}
    return files.pop() if len(files) == 1 else "model.safetensors.index.json"


def _unaligned_experts(checkpoint: Checkpoint, dtype: torch.dtype) -> bool:
    """Whether torch's grouped product, with which transformers runs experts, would refuse the rows' length."""
    sides = {side for weight in checkpoint.weights if weight.expert is not None for side in weight.shape}
    return any(dtype == torch.float64 or side * dtype.itemsize % 16 for side in sides)  # nor has it doubles


def load_tokenizer(folder: str | Path):
    """The tokenizer in a model's folder, None where there is none. Raises InputError where it cannot be read."""
    from transformers import AutoTokenizer

    folder = Path(folder)
    for name in BESIDE:
        if os.path.lexists(folder / name):
            _check_beside(folder / name)
    if not has_tokenizer(folder):
        return None
    with quiet(), explained(f"The tokenizer in {folder} cannot be read by transformers"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer(TEXT, add_special_tokens=False, verbose=False)  # some faults show only when it is used
        return tokenizer


def _check_beside(file: Path) -> None:
    """Raises InputError for what transformers would end with an error of its own for, or read as something else."""
    document = read_json(file, lenient=True)
    with open_file(file) as start:
        if start.read(3) == codecs.BOM_UTF8:
            raise InputError(f"File {file} begins with a byte order mark, which is not read: take it away.")
    wanted = {"model": dict, "added_tokens": list} if file.name == "tokenizer.json" else {}
    for field, kind in wanted.items():
        if not isinstance(document.get(field), kind):
            raise InputError(f"File {file}, field {field} is {named(document.get(field))}: it is no tokenizer.")
