"""Logs of failures that nobody foresaw: the traceback lies in a file, and the user sees a sentence with its path."""

import os
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from karipap_core.version import __version__
from karipap_core.workspace import Workspace, new_id
from karipap_core.workspace.runs import environment

KEPT = 20  # the newest ones


def keep_log(error: BaseException, command: Sequence[str]) -> Path | None:
    """Writes what is known of an error and returns the file's path: in the workspace's `logs/` or, where that cannot be
    written, in the system's folder for temporary files; None where neither can.

    The log holds the command's words, the versions of what it ran with, and the traceback. The newest `KEPT` stay.
    """
    text = "\n".join(
        (
            f"karipap {__version__}: {' '.join(map(repr, command))}",
            *(f"{name}: {value}" for name, value in environment().items()),
            "",
            "".join(traceback.format_exception(error)),
        )
    )
    for folder in (Workspace().root / "logs", Path(tempfile.gettempdir())):
        with suppress(OSError):
            return _write(folder, text)
    return None


def _write(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    # A name that nobody can guess, readable by this user alone: the folder may be everybody's.
    descriptor, name = tempfile.mkstemp(".log", f"karipap-{new_id()}-", folder)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:  # the disk is full
        Path(name).unlink(missing_ok=True)
        raise
    with suppress(OSError):  # another process may tidy up too
        for old in sorted(folder.glob("karipap-*.log"), key=lambda log: log.stat().st_mtime_ns)[:-KEPT]:
            old.unlink()
    return Path(name)
