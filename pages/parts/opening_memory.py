"""What the dashboard remembers of opening models: the folders that somebody permitted outside the roots, and the models
that were chosen last. One document of the workspace, so that a reload and a restart know it too."""

import time
from collections.abc import Callable
from pathlib import Path

from karipap_core.progress import silent
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

FORMAT, VERSION = "karipap-opening", 1
MOST_PERMITTED, MOST_RECENT = 200, 60


def file() -> Path:
    return Workspace().root / "opening.json"


def _read() -> dict:
    """The document; an empty one where there is none, or a damaged one: then the reader is asked again."""
    return kept_json(file(), "opening") or {"format": FORMAT, "version": VERSION, "permitted": [], "recent": []}


def permitted() -> list[Path]:
    """Folders outside the roots that may be opened, with all that is below them and nothing above."""
    return [Path(place) for place in _read()["permitted"]]


def recent() -> list[str]:
    """Folders and hub ids of the models that were chosen, the last one first."""
    return [entry["place"] for entry in _read()["recent"]]


def permit(folder: Path) -> None:
    """Remembers that this folder may be opened: its real path, so that a link put in its place later leads nowhere."""

    def change(document: dict) -> None:
        others = [place for place in document["permitted"] if place != str(folder)]
        document["permitted"] = [*others, str(folder)][-MOST_PERMITTED:]

    _change(change)


def forget(folder: Path) -> None:
    """Takes a permission back."""
    _change(lambda document: document["permitted"].remove(str(folder)))


def remember(place: str) -> None:
    """Puts a model first among those that were chosen."""

    def change(document: dict) -> None:
        others = [entry for entry in document["recent"] if entry["place"] != place]
        document["recent"] = [{"place": place, "time": round(time.time(), 3)}, *others][:MOST_RECENT]

    _change(change)


def _change(change: Callable[[dict], None]) -> None:
    """Changes the document under a lock: several tabs, or servers, may do so at once."""
    path = file()
    with only_writer(path, "opening", waiting=silent):
        document = _read()
        change(document)
        keep_json(path, document)
