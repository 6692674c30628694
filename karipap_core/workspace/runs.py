"""Measured runs on disk: their format, how they are listed, and the environment that they note."""

import os
import platform
from importlib import metadata
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.kept import SEAL, intact

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


def read_runs(folder: str | Path) -> list[dict]:
    """Every readable `*/run.json` under a folder, oldest first, each with its `path` added.

    A file that is damaged, or is no run, is passed over: one of them must not empty the trade-off page.
    """
    runs = []
    for path in Path(folder).glob("*/run.json"):
        try:
            run = read_json(path)
        except InputError:
            continue
        if run.get("format") == RUN_FORMAT and intact(run):
            run.pop(SEAL, None)
            runs.append(run | {"path": str(path)})
    return sorted(runs, key=lambda run: (run.get("created", 0), run["path"]))
