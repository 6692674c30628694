"""Files written whole or not at all, and keys of settings."""

import hashlib
import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path


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


def settings_key(settings: dict) -> str:
    """16 hex digits that stand for a dictionary of JSON values; the order of its keys does not matter."""
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
