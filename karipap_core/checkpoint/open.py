"""Opens a checkpoint: a folder, a .safetensors file or a hub id becomes a `Checkpoint`."""

import json
import os
import re
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import TensorInfo, read_header
from karipap_core.errors import InputError
from karipap_core.reading import named, open_file, read_json

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
READ_BY_LIBRARIES = (".json", ".jinja", ".model", ".txt", ".tiktoken")
SHARD = re.compile(r"(.*)-([0-9]{5})-of-([0-9]{5})\.safetensors")
TYPES = {  # of fields of config.json
    "model_type": (str, "a name"),
    "architectures": (list, "a list of names"),
    "quantization_config": (dict, "a table"),
    "quantization_config.quant_method": (str, "a name"),
    "text_config": (dict, "a table"),
    "tie_word_embeddings": (bool, "true or false"),
}


def open_checkpoint(model: str | Path, compressed: bool = False) -> Checkpoint:
    """Opens a model from its headers: a folder, one .safetensors file, or a hub id ("owner/name").

    A hub model is fetched into the hub's own cache (with its progress bar) unless it is there; HF_HUB_OFFLINE is
    honoured. `compressed` allows a folder that Karipap wrote. Raises InputError where there is nothing to open, where
    the weights are pickled (pickle can execute code, so it is never read), and for damaged files.
    """
    path, name = Path(model).expanduser(), str(model)
    if not path.exists():
        if os.path.islink(path):
            open_file(path)  # says where it leads
        path = _from_hub(str(model))
    else:
        name = path.resolve().name
    files: dict[Path, list[str] | None]
    if path.is_dir():
        files, folder = _files_of(path), path
    else:
        if path.suffix in PICKLES:
            raise InputError(f"{path} is a pickle, which can execute code and is never read: save it as .safetensors.")
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is not a .safetensors file: name one, or the folder it is in.")
        if (numbered := SHARD.fullmatch(path.name)) and int(numbered[3]) > 1:
            raise InputError(f"{path} is one of the {int(numbered[3])} files of a model: name the folder they are in.")
        _names(path.parent)
        files, folder, name = (
            {path: None},
            path.parent,
            path.stem if path.stem != "model" else path.resolve().parent.name,
        )
    config = _config(folder / "config.json")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "karipap" and not compressed:
        raise InputError(f"{path} is a model compressed by Karipap: give the original, or `densify` this one first.")
    tensors = _tensors_of(files)
    if not tensors:
        raise InputError(f"{path} holds no tensors: fetch it again.")
    return Checkpoint(name, path, config, tensors)


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


def _files_of(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files that make up a folder's model, each with the tensors that an index says it holds."""
    index, names = folder / "model.safetensors.index.json", _names(folder)
    if os.path.lexists(folder / "model.safetensors"):  # also a link that leads nowhere: it says so when it is opened
        return {folder / "model.safetensors": None}
    if os.path.lexists(index):
        return _shards(folder, index)
    found = [name for name in names if name.endswith(".safetensors") and not name.startswith("adapter_")]
    found = [name for name in found if not name.startswith("consolidated")] or found
    if found:
        _complete(folder, found)
        return dict.fromkeys(folder / name for name in found)
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        raise InputError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can execute code and are never read: "
            "save the model with safetensors first."
        )
    if any(name.startswith("adapter_") for name in names):
        raise InputError(f"{folder} holds an adapter without the model it belongs to: save the two merged.")
    raise InputError(f"{folder} holds no .safetensors file: name a folder or file with a model in it.")


def _names(folder: Path) -> list[str]:
    """The names in a folder. Raises InputError for what is no file where a library would take it for one, and wait."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be read: {error.strerror}.") from None
    for name in names:
        if name.endswith(READ_BY_LIBRARIES) and not os.path.isfile(folder / name):
            open_file(folder / name).close()
    return names


def _shards(folder: Path, index: Path) -> dict[Path, list[str] | None]:
    """The files that an index names, each with the tensors that it says are there."""
    weight_map = read_json(index, lenient=True).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map: fetch it again.")
    named: dict[Path, list[str] | None] = {}
    for tensor, file in sorted(weight_map.items()):
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise InputError(
                f"{index} names {json.dumps(file)[:80]} for tensor {tensor}, which is no .safetensors file beside it."
            )
        if not os.path.lexists(folder / file):
            raise InputError(f"{folder} lacks {file}, which its index names: fetch the model again.")
        tensors = named.setdefault(folder / file, [])
        if tensors is not None:
            tensors.append(tensor)
    return named


def _complete(folder: Path, names: list[str]) -> None:
    """Refuses shards without an index of which some are missing."""
    for name in names:
        if numbered := SHARD.fullmatch(name):
            stem, _, count = numbered.groups()
            for number in range(1, min(int(count), len(names) + 1) + 1):
                if f"{stem}-{number:05d}-of-{count}.safetensors" not in names:
                    raise InputError(f"{folder} lacks {stem}-{number:05d}-of-{count}.safetensors: fetch it again.")


def _from_hub(model: str) -> Path:
    """The local folder of a hub model, fetched if need be."""
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model) or model.endswith(PICKLES + (".safetensors",)):
        raise InputError(f"{model} does not exist: name a folder, a .safetensors file or a hub id such as owner/name.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    wanted = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
    try:
        # Sub-folders and "consolidated" files hold the same weights again in other formats.
        return Path(snapshot_download(model, allow_patterns=wanted, ignore_patterns=["*/*", "consolidated*"]))
    except LocalEntryNotFoundError:
        raise InputError(
            f"{model} is neither a path here nor in the hub's cache, and the hub cannot be reached "
            "(or HF_HUB_OFFLINE is set): name a local folder or go online."
        ) from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(
            f"{model} is not a path here and the hub does not give it: {str(error).splitlines()[0]}"
        ) from None
