"""Whether a model's blocks can be run apart, as far as it was tried (blockpass.py) and kept."""

from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json


def known(checkpoint: Checkpoint) -> bool | None:
    """What was found, None where it was not tried."""
    found = kept_json(_file(checkpoint))
    return None if found is None else bool(found["apart"])


def may_run(checkpoint: Checkpoint) -> bool:
    """Whether nothing speaks against it so far: the model reads text, and was not found to be run whole alone."""
    return checkpoint.not_run is None and known(checkpoint) is not False


def keep(checkpoint: Checkpoint, apart: bool) -> None:
    keep_json(_file(checkpoint), {"apart": apart})


def _file(checkpoint: Checkpoint) -> Path:
    return Workspace().cache_file("apart", settings_key({"model": checkpoint.key, "rule": 2}))
