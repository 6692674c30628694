"""Opens a checkpoint: a folder, a .safetensors file or a hub id becomes a `Checkpoint`."""

import json
import re
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import TensorInfo, read_header
from karipap_core.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def open_checkpoint(model: str | Path, compressed: bool = False) -> Checkpoint:
    """Opens a model from its headers: a folder, one .safetensors file, or a hub id ("owner/name").

    A hub model is fetched into the hub's own cache (with its progress bar) unless it is there; HF_HUB_OFFLINE is
    honoured. `compressed` allows a folder that Karipap wrote. Raises InputError where there is nothing to open, where
    the weights are pickled (pickle can execute code, so it is never read), and for damaged files.
    """
    path, name = Path(model).expanduser(), str(model)
    if not path.exists():
        path = _from_hub(str(model))
    else:
        name = path.resolve().name
    if path.is_dir():
        files = _files_of(path)
        folder = path
    else:
        if path.suffix in PICKLES:
            raise InputError(f"{path} is a pickle, which can execute code and is never read: save it as .safetensors.")
        if path.suffix != ".safetensors":
            raise InputError(f"{path} is not a .safetensors file: name one, or the folder it is in.")
        files, folder, name = (
            {path: None},
            path.parent,
            path.stem if path.stem != "model" else path.resolve().parent.name,
        )
    config = _config(folder / "config.json")
    method = (config.get("quantization_config") or {}).get("quant_method")
    if method == "karipap" and not compressed:
        raise InputError(f"{path} is a model compressed by Karipap: give the original, or `densify` this one first.")
    tensors: dict[str, TensorInfo] = {}
    for file, expected in files.items():
        for tensor, info in read_header(file).items():
            if tensor in tensors:
                raise InputError(f"Tensor {tensor} is in both {tensors[tensor].file.name} and {file.name} of {folder}.")
            tensors[tensor] = info
        missing = sorted(set(expected or ()) - tensors.keys())
        if missing:
            raise InputError(f"{file} lacks tensor {missing[0]}, which the index says is there: fetch the model again.")
    return Checkpoint(name, path, config, tensors)


def _config(path: Path) -> dict:
    try:
        config = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        raise InputError(f"{path} is not valid JSON: fetch it again.") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a table of settings: fetch it again.")
    return config


def _files_of(folder: Path) -> dict[Path, list[str] | None]:
    """The safetensors files that make up a folder's model, each with the tensors that an index says it holds."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return {folder / "model.safetensors": None}
    if index.is_file():
        weight_map = _config(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise InputError(f"{index} has no weight_map: fetch it again.")
        named: dict[Path, list[str]] = {}
        for tensor, file in sorted(weight_map.items()):
            if not isinstance(file, str) or Path(file).name != file:
                raise InputError(f"{index} points outside its folder for tensor {tensor}.")
            if not (folder / file).is_file():
                raise InputError(f"{folder} lacks {file}, which its index names: fetch the model again.")
            named.setdefault(folder / file, []).append(tensor)
        return {**named}
    found = sorted(folder.glob("*.safetensors"))
    if found:
        return dict.fromkeys(found)
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles:
        raise InputError(
            f"{folder} holds only pickled weights ({pickles[0]}), which can execute code and are never read: "
            "save the model with safetensors first."
        )
    raise InputError(f"{folder} holds no .safetensors file: name a folder or file with a model in it.")


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
