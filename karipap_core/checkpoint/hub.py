"""Models of the Hugging Face hub: those that are in its cache on this machine, and fetching others with progress.

Fetched are the .safetensors, JSON and tokenizer files of a repository's first level, and of its sub-folders those that
belong to the model (chat templates, a processor's tokenizers, modules of sentence-transformers): never pickles, and no
copies of the weights in other formats or precisions. A model counts as there once all its files are. config.json comes
last, so a download that was broken off never reads as a whole model; the next one goes on with the files that are
missing.
"""

import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karipap_core.checkpoint.beside import FORMS, MODULE, MOST_DEPTH, MOST_TENSORS, TEMPLATES, TENSORS, TEXTS
from karipap_core.checkpoint.files import GGUF, PICKLES, files_of, gguf_files, gguf_models, parts_of, several
from karipap_core.checkpoint.lora.adapter import WEIGHTS as ADAPTER_WEIGHTS
from karipap_core.checkpoint.lora.adapter import is_adapter
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.reading import MOST_BYTES
from karipap_core.terminal import size

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
# A repository, or one of its GGUF files: owner/name/file.gguf
HUB_ID = re.compile(rf"({REPOSITORY.pattern})((?:/[A-Za-z0-9][\w.-]{{0,127}}){{1,3}}\.gguf)?", re.ASCII)
ANY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # the hub's oldest models have no owner
COMMIT = re.compile(r"[0-9a-f]{40}")
KINDS = (TENSORS, *TEXTS)
INDEX = "model.safetensors.index.json"
VARIANT = re.compile(r"model\.\w+(-\d{5}-of-\d{5})?\.safetensors")
PROCESSORS = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}
PATIENCE = 15.0  # seconds for the hub's answer to what a repository holds
EVERY = 0.25  # seconds between two reports of a download
LAST = ("config.json", "adapter_config.json")
MOST_CACHED = 2_000  # repositories of the cache that are looked at


def cache() -> Path:
    """The hub's cache on this machine (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot(hub_id: str) -> Path | None:
    """The folder of a hub model that is whole in the cache, or the (first) file of one in GGUF, else None: one whose
    download was broken off counts as not there. Never goes to the network."""
    named = HUB_ID.fullmatch(hub_id)
    if named is None and not ANY_ID.fullmatch(hub_id):
        return None
    repository, file = (named[1], named[2]) if named else (hub_id, None)
    return _whole(cache() / f"models--{repository.replace('/', '--')}", file)


def _whole(repository: Path, file: str | None = None) -> Path | None:
    try:
        folder = _newest(repository)
        if file is not None:
            parts = gguf_files(folder / file.lstrip("/"))
            return parts[0] if all(part.is_file() for part in parts) else None
        if is_adapter(folder):
            return folder if (folder / ADAPTER_WEIGHTS).is_file() else None
        if packed := gguf_files(folder):
            return packed[0] if all(part.is_file() for part in packed) else None
        return folder if (folder / "config.json").is_file() and all(map(Path.is_file, files_of(folder))) else None
    except (OSError, ValueError, InputError):
        return None


def _newest(repository: Path) -> Path:
    """The folder of the commit that the cache holds as the newest. Raises OSError or ValueError where there is none."""
    commit = (repository / "refs" / "main").read_text("ascii").strip()
    if not COMMIT.fullmatch(commit):
        raise ValueError(commit)
    return repository / "snapshots" / commit


def cached() -> dict[str, str]:
    """Hub id → folder or file of every whole model in the cache, by name."""
    try:
        names = sorted(name for name in os.listdir(cache()) if name.startswith("models--"))[:MOST_CACHED]
    except OSError:
        return {}
    found: dict[str, str] = {}
    for name in names:
        hub_id = name.removeprefix("models--").replace("--", "/", 1)
        if (place := snapshot(hub_id)) is not None:
            found[hub_id] = str(place)
            continue
        with suppress(OSError, ValueError):  # of several in GGUF each is one
            for each in gguf_models(os.listdir(_newest(cache() / name))):
                if (place := snapshot(f"{hub_id}/{each}")) is not None:
                    found[f"{hub_id}/{each}"] = str(place)
    return found


def repository_of(path: Path) -> str | None:
    """The hub id whose folder in the cache a path lies in, by its letters alone; else None."""
    root = Path(os.path.abspath(cache()))
    if not path.is_relative_to(root) or path == root:
        return None
    name = path.relative_to(root).parts[0]
    return name.removeprefix("models--").replace("--", "/", 1) if name.startswith("models--") else None


@dataclass(frozen=True)
class Offer:
    """What fetching a hub model would bring: files → bytes (0 where the hub does not say), at one commit."""

    hub_id: str
    commit: str
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def offer(hub_id: str) -> Offer:
    """Asks the hub what a model has that would be fetched. Raises InputError where there is no such model, it has
    neither safetensors nor one model in GGUF, or the hub cannot be reached."""
    from huggingface_hub import HfApi

    named = HUB_ID.fullmatch(hub_id)
    repository, file = (named[1], (named[2] or "").lstrip("/")) if named else (hub_id, "")
    with _explained(repository):
        found = HfApi().model_info(repository, files_metadata=True, timeout=PATIENCE)
    names = {each.rfilename: each.size or 0 for each in found.siblings or ()}
    files = {name: names[name] for name in wanted(names)}
    if file or not any(name.endswith(TENSORS) and "/" not in name for name in files):
        files = {name: names[name] for name in _packed(repository, file, list(names))}
    return Offer(hub_id, found.sha or "main", files)


def _packed(repository: str, file: str, names: list[str]) -> list[str]:
    """The files of a repository that are one model in GGUF: the one that is named, or the only one that there is."""
    if file:
        if file not in names:
            raise InputError(f"{repository} has no file {file} on the hub: check its letters.")
        return parts_of(file, names)
    models = gguf_models([name for name in names if "/" not in name])
    if len(models) > 1:
        raise InputError(f"{repository} holds {several(models)}: name one of them, as {repository}/{models[0]}.")
    if models:
        return parts_of(models[0], names)
    pickled = next((name for name in names if name.endswith(PICKLES)), None)
    why = f"only pickled weights ({pickled}), which can execute code and are never read" if pickled else "no weights"
    raise InputError(f"{repository} has no .safetensors file on the hub, {why}: choose a repository that has one.")


def wanted(names: Mapping[str, int]) -> list[str]:
    """Those of a repository's files (name → bytes) that are fetched."""
    whole = {"model.safetensors", INDEX} & names.keys()
    tops: dict[str, list[str]] = {}
    for name in names:
        tops.setdefault(name.partition("/")[0], []).append(name)
    own = [name for name in names if "/" not in name and _needed(name, bool(whole))]
    return own + [
        name
        for top, files in tops.items()
        if _part_of_the_model(top, files)
        for name in files
        if name.count("/") in range(1, MOST_DEPTH + 1) and _small(name, names[name])
    ]


def _needed(name: str, whole: bool) -> bool:
    """Whether a file of a repository's first level is of the model; `whole`: whether that is named as usual. What is
    "consolidated" or another precision (model.fp16.safetensors) is the same weights again."""
    if not name.endswith(KINDS) or name.startswith((".", "consolidated")):
        return False
    return not (whole and VARIANT.fullmatch(name)) and (name == INDEX or not name.endswith(".index.json"))


def _part_of_the_model(top: str, files: list[str]) -> bool:
    """Whether a sub-folder is one of a model's parts: it is named so, or it holds a tokenizer or a processor and no
    weights."""
    if top == TEMPLATES or MODULE.fullmatch(top):
        return True
    here = {name.removeprefix(f"{top}/") for name in files}
    weights = any(name.endswith((TENSORS, *PICKLES, ".onnx", ".gguf", ".xml")) for name in here)
    return top not in FORMS and bool(here & PROCESSORS) and not weights


def _small(name: str, count: int) -> bool:
    hidden = any(step.startswith(".") for step in name.split("/"))
    return not hidden and name.endswith(KINDS) and count <= (MOST_TENSORS if name.endswith(TENSORS) else MOST_BYTES)


def fetch(hub_id: str, progress: Progress = silent) -> Path:
    """The folder of a hub model in the cache (of one in GGUF its file), fetched if need be; `progress` counts bytes.

    Raises InputError as `offer` does. Broken off, it leaves what is finished, and goes on from there.
    """
    if (here := snapshot(hub_id)) is not None:
        return here
    from huggingface_hub import hf_hub_download

    what = offer(hub_id)
    named = HUB_ID.fullmatch(hub_id)
    repository = named[1] if named else hub_id
    bar, done = _counting(what, progress), 0
    names = sorted(what.files, key=lambda name: (name in LAST, name))
    for name in names:
        bar.begin(name, done)
        # The last one without a commit: that writes down which one the cache holds as the newest.
        commit = None if name == names[-1] else what.commit
        with _explained(hub_id):
            path = hf_hub_download(repository, name, revision=commit, tqdm_class=bar)
        done += what.files[name]
    progress("fetch", max(what.bytes, 1), max(what.bytes, 1), hub_id)
    if (here := snapshot(hub_id)) is None:
        if Path(path).parent.name == what.commit and not path.endswith(GGUF):
            files_of(Path(path).parent)  # says what is missing
        raise InputError(f"{hub_id} changed on the hub while it was fetched, or is not whole there: fetch it again.")
    return here


def _counting(what: Offer, progress: Progress) -> Any:
    """A class in the place of the hub library's progress bars that tells `progress` of the bytes of all files."""
    from tqdm.auto import tqdm

    class Bytes(tqdm):
        name, before, told = "", 0, 0.0

        @classmethod
        def begin(cls, name: str, before: int) -> None:
            cls.name, cls.before = name, before
            cls.tell(0)

        @classmethod
        def tell(cls, count: float) -> None:
            cls.told = time.monotonic()
            done = min(cls.before + int(count), what.bytes)
            said = f"{size(done)} of {size(what.bytes)}"
            progress("fetch", done, max(what.bytes, 1), cls.name, said)

        def __init__(self, *args: Any, **settings: Any) -> None:
            settings.pop("name", None)
            self.count = settings.get("initial") or 0
            super().__init__(*args, **settings | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            self.count += n or 0
            if time.monotonic() - self.told > EVERY:
                self.tell(self.count)

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which are fewer where parts are here already: those written are what counts."""

    return Bytes


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """One sentence for what goes wrong between here and the hub."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    offline = InputError(
        f"{hub_id} is neither a path here nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE is "
        "set): name a local folder or go online."
    )
    try:
        yield
    except GatedRepoError:
        raise InputError(
            f"{hub_id} is given only to those who accepted its terms: do so there, and log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise InputError(f"The hub has no model {hub_id}, or it is a private one: check the id's letters.") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise offline from None
    except (HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"The hub does not give {hub_id}: {(str(error).splitlines() or ['no reason'])[0]}") from None
    except Exception as error:
        if type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
            raise offline from None
        raise
