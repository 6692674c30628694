"""Files written whole or not at all, JSON read with a sentence for what is wrong, and keys of settings."""

import hashlib
import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

from karipap_core.errors import InputError


@contextmanager
def whole_file(path: str | Path):
    """Yields a temporary path beside `path`, renamed to it when the block ends well and removed when it does not.

    For writers that want a path, such as safetensors' `save_file`. Makes missing folders; flushes to the disk.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(3)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, document) -> None:
    """Write JSON whole. NaN and infinities are refused (ValueError): they are not JSON."""
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def read_json(path: str | Path) -> dict:
    """The JSON object in a file. Raises InputError that names the file when it is missing or no JSON object."""
    try:
        document = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise InputError(f"File {path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"File {path} is not valid JSON: {error}.") from None
    if not isinstance(document, dict):
        raise InputError(f"File {path} holds a JSON {type(document).__name__}, not an object.")
    return document


def settings_key(settings: dict) -> str:
    """16 hex digits that stand for a dictionary of JSON values; the order of its keys does not matter."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
