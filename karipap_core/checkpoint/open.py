"""Opens a checkpoint: a folder, a .safetensors or .gguf file or a hub id becomes a `Checkpoint`."""

import os
from pathlib import Path

from karipap_core.checkpoint import hub
from karipap_core.checkpoint.files import GGUF, PICKLES, SHARD, files_of, gguf_files, names_in, refuse_adapter
from karipap_core.checkpoint.form import opened
from karipap_core.checkpoint.gguf.open import open_gguf
from karipap_core.checkpoint.lora.adapter import WEIGHTS as ADAPTER_WEIGHTS
from karipap_core.checkpoint.lora.adapter import is_adapter
from karipap_core.checkpoint.lora.open import joined, open_merged, open_update, parted
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.reach import know
from karipap_core.checkpoint.tensorfile import TensorInfo, read_header
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.reading import named, open_file, read_json

TYPES = {  # of fields of config.json
    "model_type": (str, "a name"),
    "architectures": (list, "a list of names"),
    "quantization_config": (dict, "a table"),
    "quantization_config.quant_method": (str, "a name"),
    "text_config": (dict, "a table"),
    "tie_word_embeddings": (bool, "true or false"),
}


def open_checkpoint(model: str | Path, compressed: bool = False, progress: Progress = silent) -> Checkpoint:
    """Opens a model from its headers: a folder, one .safetensors or .gguf file, or a hub id ("owner/name"); the folder
    of an adapter as the update that it is, and "BASE+ADAPTER" as the model with it.

    A hub model is fetched into the hub's own cache unless it is there, and `progress` is told of the bytes;
    HF_HUB_OFFLINE is honoured. `compressed` allows a folder that Karipap wrote. Raises InputError where there is
    nothing to open, where the weights are pickled (pickle can execute code, so it is never read), where an adapter lies
    beside them, and for damaged files.
    """
    path, name = Path(model).expanduser(), str(model)
    if not path.exists():
        if (both := parted(str(model))) is not None:
            return _merged(*both, progress)
        if os.path.islink(path):
            open_file(path)  # says where it leads
        path = _from_hub(str(model), progress)
    else:
        name = path.resolve().name
    if (other := _of_another_kind(path, name)) is not None:
        return other
    files: dict[Path, list[str] | None]
    if path.is_dir():
        files, folder = files_of(path), path
    else:
        if path.suffix in PICKLES:
            raise InputError(f"{path} is a pickle, which can execute code and is never read: save it as .safetensors.")
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is neither a .safetensors nor a .gguf file: name one, or the folder it is in.")
        if (numbered := SHARD.fullmatch(path.name)) and int(numbered[3]) > 1:
            raise InputError(f"{path} is one of the {int(numbered[3])} files of a model: name the folder they are in.")
        names_in(path.parent)
        files, folder, name = (
            {path: None},
            path.parent,
            path.stem if path.stem != "model" else path.resolve().parent.name,
        )
    refuse_adapter(folder)
    config = _config(folder / "config.json")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "karipap" and not compressed:
        raise InputError(f"{path} is a model compressed by Karipap: give the original, or `densify` this one first.")
    tensors = _tensors_of(files)
    if not tensors:
        raise InputError(f"{path} holds no tensors: fetch it again.")
    found = opened(config, tensors, name)
    return _known(Checkpoint(name, path, found.config, found.tensors, found.form))


def _known(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint, narrowed to what is known to be reachable where that was found out before."""
    if not checkpoint.compressed:
        know(checkpoint)
    return checkpoint


def _of_another_kind(path: Path, name: str) -> Checkpoint | None:
    """The checkpoint of GGUF files, or of an adapter alone; None where the path is neither."""
    if packed := gguf_files(path):
        name = name if path.is_dir() else path.stem
        found, home = open_gguf(packed, name)
        return _known(Checkpoint(name, path, found.config, found.tensors, found.form, home))
    if is_adapter(folder := path.parent if path.name == ADAPTER_WEIGHTS else path):
        update = open_update(folder)
        return Checkpoint(folder.resolve().name, folder, update.config, update.tensors, update.form)
    return None


def _merged(model: str, adapter: Path, progress: Progress) -> Checkpoint:
    base = open_checkpoint(model, progress=progress)
    found, home = open_merged(base, adapter)
    path = Path(joined(adapter, base.path))
    return _known(Checkpoint(f"{base.name}+{adapter.name}", path, found.config, found.tensors, found.form, home))


def _tensors_of(files: dict[Path, list[str] | None]) -> dict[str, TensorInfo]:
    """The tensors of a model's files, which have to be those that an index names."""
    tensors: dict[str, TensorInfo] = {}
    for file, expected in files.items():
        for tensor, info in read_header(file).items():
            if tensor in tensors:
                raise InputError(
                    f"Tensor {tensor} is in both {tensors[tensor].file.name} and {file.name} of {file.parent}."
                )
            tensors[tensor] = info
        missing = sorted(set(expected or ()) - tensors.keys())
        if missing:
            raise InputError(f"{file} lacks tensor {missing[0]}, which the index says is there: fetch the model again.")
    return tensors


def _config(path: Path) -> dict:
    """The contents of config.json, {} where there is none."""
    if not os.path.lexists(path):
        return {}
    config = read_json(path, lenient=True)
    beside = path.with_name("hf_quant_config.json")  # where Model Optimizer says it, older versions there alone
    if "quantization_config" not in config and os.path.lexists(beside):
        told = read_json(beside, lenient=True).get("quantization")
        if isinstance(told, dict) and told.get("quant_algo"):
            config["quantization_config"] = told | {"quant_method": "modelopt"}
    check_types(config, f"File {path}")
    return config


def check_types(config: dict, source: str) -> None:
    """Raises InputError where a field of a config.json that is looked at is of another type than it is for; `source`
    begins the sentence."""
    for place, (kind, words) in TYPES.items():
        table, _, field = place.rpartition(".")
        holder = config.get(table) if table else config
        value = holder.get(field) if isinstance(holder, dict) else None
        if value is not None and not isinstance(value, kind):
            raise InputError(f"{source}, field {place} is {named(value)}, not {words}: correct it.")
    names = config.get("architectures")
    if names is not None and not (names and all(isinstance(name, str) for name in names)):
        raise InputError(f"{source}, field architectures is not a list of names: correct it.")


def _from_hub(model: str, progress: Progress) -> Path:
    """The local folder or file of a hub model, fetched if need be."""
    file = model.endswith((*PICKLES, ".safetensors", GGUF))
    if not hub.HUB_ID.fullmatch(model) if model.endswith(GGUF) else file or not hub.ANY_ID.fullmatch(model):
        raise InputError(f"{model} does not exist: name a folder, a .safetensors file or a hub id such as owner/name.")
    return hub.fetch(model, progress)
