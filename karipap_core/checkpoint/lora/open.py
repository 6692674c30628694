"""Opens adapters: alone, as the update that they are, or with the model that they belong to."""

import hashlib
from pathlib import Path
from typing import Any

from karipap_core.checkpoint import hub
from karipap_core.checkpoint.files import ADAPTER, SETTINGS, TOKENIZERS
from karipap_core.checkpoint.form import Form, Opened
from karipap_core.checkpoint.lora.adapter import WEIGHTS, Adapter, is_adapter, read_adapter
from karipap_core.checkpoint.lora.merged import form_of, merge
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.tensorfile import TensorInfo, opened
from karipap_core.errors import InputError
from karipap_core.reading import read_bytes, read_json
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key, whole_file

TOKENIZER_FILES = tuple(name for name in SETTINGS if name not in ("config.json", "generation_config.json"))
ALONE = ", update alone"  # behind what an adapter is, where it is opened without its base
JOIN = "+"  # between a model and an adapter of it, where both are one word


def parted(model: str) -> tuple[str, Path] | None:
    """(base, adapter's folder) of "BASE+ADAPTER"; None for a word that is none."""
    places = [place for place, sign in enumerate(model) if sign == JOIN]
    for place in places:
        if model[:place] and is_adapter(adapter := _folder(model[place + 1 :])):
            return model[:place], adapter
    return None


def _folder(adapter: str | Path) -> Path:
    """The folder of an adapter, or of the hub id of one in the cache."""
    path = Path(adapter).expanduser()
    return path if path.exists() else hub.snapshot(str(adapter)) or path


def joined(adapter: str | Path, base: str | Path | None = None) -> str:
    """The one word for an adapter on its base, for whatever takes a model: "BASE+ADAPTER", both in full.

    base : the model that it belongs to (default: the one that its config names, where that is a folder, beside it or
    not, or a hub model on this machine). Raises InputError where the adapter is none, or its base is not here.
    """
    folder = _folder(adapter)
    if not is_adapter(folder):
        raise InputError(f"{adapter} is no folder of an adapter alone ({ADAPTER} and {WEIGHTS}).")
    return f"{_full(base) if base is not None else base_of(folder)}{JOIN}{folder.absolute()}"


def base_of(folder: Path) -> str:
    """The base that an adapter's config names, where it is on this machine."""
    name = read_json(folder / ADAPTER, lenient=True).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise InputError(f"{folder / ADAPTER} names no base model: name it (--base).")
    for path in (folder / name, Path(name).expanduser()):
        if path.is_dir() and not is_adapter(path) or path.is_file():
            return str(path.resolve())
    if hub.snapshot(name) is not None:
        return name
    raise InputError(
        f"{folder} belongs to the model {name[:200]}, which is not on this machine: fetch it (`karipap fetch`), or "
        "name the folder that it is in (--base)."
    )


def _full(base: str | Path) -> str:
    path = Path(base).expanduser()
    return str(path.resolve()) if path.exists() else str(base)


def open_update(folder: Path) -> Opened:
    """An adapter alone: each weight is its update s B A, and none is a model's."""
    adapter = read_adapter(folder)
    tensors: dict[str, TensorInfo] = {
        f"{module}.weight": opened(part.left, part.shape, _update(part), "F32")
        for module, part in adapter.parts.items()
    }
    said = base_named(adapter)
    update = (
        f"{folder.name} is an adapter ({adapter.words}) of {said}, and what is shown is its update s B A alone: for "
        f"the model with it, add --merge, or name both as BASE{JOIN}ADAPTER."
    )
    form = Form(f"{adapter.words}{ALONE}", adapter.stored, adapter.recipe, update, _factors(adapter))
    return Opened({}, tensors, form)


def base_named(adapter: Adapter) -> str:
    name: Any = adapter.settings.get("base_model_name_or_path")
    return name[:200] if isinstance(name, str) and name else "a model that it does not name"


def _update(part):
    return lambda index: part.update() if index is None else part.update()[index]


def _factors(adapter: Adapter):
    return {f"{module}.weight": part.factors for module, part in adapter.parts.items()}


def open_merged(base: Checkpoint, folder: Path) -> tuple[Opened, Path]:
    """(a model with an adapter merged into it, the folder of what lies beside its tensors)."""
    if base.compressed:
        raise InputError(f"{base.name} is compressed by Karipap: merge the adapter into the dense model first.")
    if base.form is not None and base.form.update:
        raise InputError(f"{base.name} is an adapter itself: name the model that both belong to.")
    adapter = read_adapter(folder)
    tensors, said = merge(base, adapter)
    return Opened(base.config | said if base.config else {}, tensors, form_of(base, adapter)), _home(base, folder)


def _home(base: Checkpoint, folder: Path) -> Path:
    """The base's folder; where the adapter brings another tokenizer (trained with more tokens), one in the workspace
    with the base's files and that."""
    own = {name: read_bytes(folder / name) for name in TOKENIZER_FILES if (folder / name).is_file()}
    if not any(name in TOKENIZERS for name in own):
        return base.home
    theirs = {file.name: read_bytes(file) for file in base.settings_files}
    if all(theirs.get(name) == data for name, data in own.items() if name in TOKENIZERS):
        return base.home
    files = {name: data for name, data in theirs.items() if name not in TOKENIZER_FILES} | own
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    home = Workspace().root / "cache" / "merged" / settings_key(sums)
    for name, data in files.items():
        if not (home / name).is_file():
            with whole_file(home / name) as temporary:
                temporary.write_bytes(data)
    return home
