"""Measured runs on disk: their format, how they are listed, and the environment that they note."""

import os
import platform
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from karipap_core import schemas
from karipap_core.errors import InputError

RUN_FORMAT, RUN_VERSION = "karipap-run", 1


def environment() -> dict:
    """What a result depends on besides its inputs: versions, machine, threads."""
    versions = {}
    for package in ("torch", "transformers", "numpy", "safetensors"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": int(threads) if threads.isdigit() else None,
        "versions": versions,
    }


def read_run(path: str | Path) -> dict:
    """The document of a run.json. Raises InputError, one sentence that names the file and the field."""
    run = schemas.read(path, "run")
    for key, value in run.items():
        if isinstance(value, int) and value > 2**53:  # a perplexity written in digits: no column of a table takes it
            run[key] = float(value)
    units = run.get("units")
    if units and len({len(units[key]) for key in ("ids", "tokens", "rise")}) > 1:
        raise InputError(f"File {path}: field units: ids, tokens and rise must be equally long.")
    return run


@lru_cache(maxsize=1000)
def _read_once(path: str, stamp: tuple[int, ...]) -> dict:
    """`read_run` of a file of this stamp: pages list all runs again at every click."""
    return read_run(path)


def stamp(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written anew; () where there is none to ask."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns


def read_runs(folder: str | Path, passed_over: list[str] | None = None) -> list[dict]:
    """Every readable `*/run.json` under a folder, oldest first, each with its `path` added.

    A file that is damaged, or is no run, is passed over: one of them must not empty the trade-off page. Why it was is a
    sentence more in `passed_over`. What is inside the documents is shared with later calls: nobody may change it.
    """
    runs = []
    for path in sorted(Path(folder).glob("*/run.json")):
        try:
            runs.append(_read_once(str(path), stamp(path)) | {"path": str(path)})
        except InputError as error:
            if passed_over is not None:
                passed_over.append(str(error))
    return sorted(runs, key=lambda run: (run.get("created", 0), run["path"]))
