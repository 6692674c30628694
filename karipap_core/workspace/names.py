"""Names that people give to runs and plans: `names/<key>.json` in the workspace, one file each.

The documents that were measured stay as they are: a run is known by its id, a plan by the key of its content
(`plan_key`), and a name only says what either is called. Several may be called the same, and are told apart where they
are shown.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.schemas import checked_name
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.runs import stamp

FORMAT, VERSION = "karipap-name", 1
LONGEST = 60


def clean(text: str, otherwise: str | None = None) -> str:
    """What somebody typed as a name that any file system and address takes: letters of ASCII, digits, '.', '_', '+' and
    '-', all else a '-', cut at `LONGEST`. Where nothing is left: `otherwise`, or InputError.

    >>> clean("  My plan: 70 % (v2)")
    'My-plan-70-v2'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    found = re.sub(r"[^A-Za-z0-9._+-]+", "-", plain)[: 4 * LONGEST]
    found = re.sub(r"-{2,}", "-", found).strip("-.+_")[:LONGEST].rstrip("-.+_")
    if not found and otherwise is not None:
        return otherwise
    if not found:
        raise InputError("A name needs a letter from A to Z or a digit; '.', '_', '+' and '-' may stand between them.")
    return found


def plan_key(plan: dict) -> str:
    """The key of a plan's content (`Plan.to_json`), which `Workspace.keep_plan` puts into the name of its file."""
    return settings_key(plan)


class Names:
    """The names of a workspace."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        self.folder = (workspace or Workspace()).root / "names"

    def all(self) -> dict[str, str]:
        """Key → name of everything that has one."""
        found = {file.stem: _read(str(file), stamp(file)) for file in sorted(self.folder.glob("*.json"))}
        return {key: name for key, name in found.items() if name}

    def of(self, key: str) -> str | None:
        """The name of a run, by its id, or of a plan, by its key."""
        file = self.folder / f"{checked_name(key)}.json"
        return _read(str(file), stamp(file))

    def give(self, key: str, name: str) -> str:
        """Call a run or a plan `name`, made `clean`, and return that. InputError for what is no name."""
        found = clean(name)
        if self.of(key) != found:
            keep_json(self.folder / f"{checked_name(key)}.json", {"format": FORMAT, "version": VERSION, "name": found})
        return found


@lru_cache(maxsize=2000)
def _read(file: str, stamp: tuple[int, ...]) -> str | None:
    """A name from its file, which has this stamp: pages ask for all of them at every click."""
    document = kept_json(Path(file), "name") if stamp else None
    return document["name"] if document else None


def apart(named: Mapping[str, str]) -> dict[str, str]:
    """Key → name, with the last digits of the key where several have that name.

    >>> apart({"run-1a2b3c4d": "mine", "run-5e6f7a8b": "mine", "run-9c0d1e2f": "other"})
    {'run-1a2b3c4d': 'mine (2b3c4d)', 'run-5e6f7a8b': 'mine (6f7a8b)', 'run-9c0d1e2f': 'other'}
    """
    many = Counter(named.values())
    return {key: f"{name} ({key[-6:]})" if many[name] > 1 else name for key, name in named.items()}
