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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karipap_core.checkpoint.beside import FORMS, MODULE, MOST_DEPTH, MOST_TENSORS, TEMPLATES, TENSORS, TEXTS
from karipap_core.checkpoint.files import PICKLES, files_of
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.reading import MOST_BYTES
from karipap_core.terminal import size

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
ANY_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")  # the hub's oldest models have no owner
COMMIT = re.compile(r"[0-9a-f]{40}")
KINDS = (TENSORS, *TEXTS)
INDEX = "model.safetensors.index.json"
VARIANT = re.compile(r"model\.\w+(-\d{5}-of-\d{5})?\.safetensors")
PROCESSORS = {"tokenizer.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"}
PATIENCE = 15.0  # seconds for the hub's answer to what a repository holds
EVERY = 0.25  # seconds between two reports of a download
LAST = "config.json"
MOST_CACHED = 2_000  # repositories of the cache that are looked at


def cache() -> Path:
    """The hub's cache on this machine (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser()


def snapshot(hub_id: str) -> Path | None:
    """The folder of a hub model that is whole in the cache, else None: one whose download was broken off counts as not
    there. Never goes to the network."""
    if not ANY_ID.fullmatch(hub_id):
        return None
    return _whole(cache() / f"models--{hub_id.replace('/', '--')}")


def _whole(repository: Path) -> Path | None:
    try:
        commit = (repository / "refs" / "main").read_text("ascii").strip()
        folder = repository / "snapshots" / commit
        if not COMMIT.fullmatch(commit) or not (folder / "config.json").is_file():
            return None
        return folder if all(file.is_file() for file in files_of(folder)) else None
    except (OSError, ValueError, InputError):
        return None


def cached() -> dict[str, str]:
    """Hub id → folder of every whole model in the cache, by name."""
    try:
        names = sorted(name for name in os.listdir(cache()) if name.startswith("models--"))[:MOST_CACHED]
    except OSError:
        return {}
    ids = [name.removeprefix("models--").replace("--", "/", 1) for name in names]
    return {hub_id: str(folder) for hub_id in ids if (folder := snapshot(hub_id)) is not None}


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
    """Asks the hub what a model has that would be fetched. Raises InputError where there is no such model, it has no
    safetensors, or the hub cannot be reached."""
    from huggingface_hub import HfApi

    with _explained(hub_id):
        found = HfApi().model_info(hub_id, files_metadata=True, timeout=PATIENCE)
    names = {file.rfilename: file.size or 0 for file in found.siblings or ()}
    files = {name: names[name] for name in wanted(names)}
    if not any(name.endswith(TENSORS) and "/" not in name for name in files):
        pickled = next((name for name in names if name.endswith(PICKLES)), None)
        why = (
            f"only pickled weights ({pickled}), which can execute code and are never read" if pickled else "no weights"
        )
        raise InputError(f"{hub_id} has no .safetensors file on the hub, {why}: choose a repository that has one.")
    return Offer(hub_id, found.sha or "main", files)


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
    """The folder of a hub model in the cache, fetched if need be; `progress` counts bytes.

    Raises InputError as `offer` does. Broken off, it leaves what is finished, and goes on from there.
    """
    if (here := snapshot(hub_id)) is not None:
        return here
    from huggingface_hub import hf_hub_download

    what = offer(hub_id)
    bar, done = _counting(what, progress), 0
    names = sorted(what.files, key=lambda name: (name == LAST, name))
    for name in names:
        bar.begin(name, done)
        # The last one without a commit: that writes down which one the cache holds as the newest.
        commit = None if name == names[-1] else what.commit
        with _explained(hub_id):
            path = hf_hub_download(hub_id, name, revision=commit, tqdm_class=bar)
        done += what.files[name]
    progress("fetch", max(what.bytes, 1), max(what.bytes, 1), hub_id)
    if (here := snapshot(hub_id)) is None:
        if Path(path).parent.name == what.commit:
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
