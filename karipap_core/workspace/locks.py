"""One writer at a time: a lock beside what is written, which says who holds it.

The lock is the operating system's (filelock): it goes with its holder, however that ends, so a file that a killed
process has left behind locks nothing and is used by whoever comes next.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from karipap_core.errors import InputError
from karipap_core.progress import Progress
from karipap_core.workspace.files import writing

POLL = 0.2  # seconds between two tries of one who waits
LONGEST_HOLDER = 1000  # bytes of a lock's file that are read


@contextmanager
def only_writer(path: str | Path, what: str, waiting: Progress | None = None) -> Iterator[None]:
    """For a block that writes `path`, a file or a folder: no other process is in such a block meanwhile.

    what : what the block is, for others to read ("compress"). waiting : where another process holds the lock, wait for
    it and tell this. Without, InputError says who holds it. Nothing is left behind when the block ends.
    """
    path = Path(os.path.realpath(path))
    place = path.with_name(f".{path.name}.lock")
    told = False
    while (taken := _take(place)) is None:
        if waiting is None:
            raise InputError(f"{path} is being written by {_holder(place)}: wait for its end, or name another place.")
        if not told:
            waiting("waiting", 0, 1, path.name, f"for {_holder(place)}")
            told = True
        time.sleep(POLL)
    if told and waiting is not None:
        waiting("waiting", 1, 1, path.name)
    lock, descriptor = taken
    try:
        said = json.dumps({"pid": os.getpid(), "what": what, "since": time.strftime("%Y-%m-%d %H:%M:%S")})
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, said.encode())
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file: there it stays
            place.unlink()
        lock.release()


def _take(place: Path) -> tuple[FileLock, int] | None:
    """The lock and its file's descriptor, None where another holds it."""
    while True:
        held: list[int] = []
        lock = FileLock(place, thread_local=False, on_acquired=held.append)
        with writing(place):
            place.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(blocking=False)
            except Timeout:
                return None
        with suppress(FileNotFoundError):
            if os.path.samestat(place.stat(), os.fstat(held[-1])):
                return lock, held[-1]
        lock.release()  # of a file that its last holder has removed meanwhile: there is a new one, or none


def _holder(place: Path) -> str:
    """Who holds a lock, in words."""
    for _ in range(10):  # who has just taken it has yet to sign
        with suppress(OSError, ValueError, KeyError, TypeError):
            with place.open("rb") as file:
                said = json.loads(file.read(LONGEST_HOLDER))
            return f"{said['what']} (process {said['pid']}, since {said['since']})"
        time.sleep(0.01)
    return "another process"
