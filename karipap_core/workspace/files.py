"""Files written whole or not at all, and keys of settings."""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from karipap_core.errors import InputError, StorageError

FULL = {errno.ENOSPC, errno.EDQUOT}
FORBIDDEN = {errno.EACCES: "this user may not write there", errno.EPERM: "this user may not write there"}
FORBIDDEN |= {errno.EROFS: "the disk is mounted for reading alone"}
MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOENT}


def cannot_write(path: str | Path, error: OSError) -> InputError | StorageError:
    """What to raise where the system refused to write `path`, in a sentence: an InputError where the place is the wrong
    one, a StorageError where the machine has no room or fails."""
    if error.errno in FORBIDDEN:
        return InputError(f"{path} cannot be written, since {FORBIDDEN[error.errno]}: name another place.")
    if error.errno in MISPLACED:
        return InputError(f"{path} cannot be written ({os.strerror(error.errno)}): name another place.")
    if error.errno in FULL:
        return StorageError(f"{path} cannot be written, since the disk is full: make room and give the command again.")
    if error.errno == errno.EFBIG:
        why = "it would be larger than this process may write (ulimit -f)"
        return StorageError(f"{path} cannot be written, since {why}: raise that and give the command again.")
    return StorageError(f"{path} cannot be written: {error.strerror or error}.")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """For a block that writes `path`, or files below it: what the system refuses is raised as `cannot_write` says it.
    An error that names a file of another folder is not of writing, and passes."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | bytes | os.PathLike):
            named, folder = Path(os.fsdecode(error.filename)).absolute(), Path(path).absolute().parent
            if not (named.is_relative_to(folder) or folder.is_relative_to(named)):
                raise
        raise cannot_write(path, error) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to it when the block ends well and removed when it does not.

    For writers that want a path, such as safetensors' `save_file`. Makes missing folders; flushes to the disk. Raises
    InputError or StorageError, which name `path`, where it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            flush(temporary)
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Has the system write a file's bytes to the disk now, so that it is whole after a power failure."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_json(path: str | Path, document) -> None:
    """Write JSON whole. NaN and infinities are refused (ValueError): they are not JSON."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def settings_key(settings: dict) -> str:
    """16 hex digits that stand for a dictionary of JSON values; the order of its keys does not matter."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
