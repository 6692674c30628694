"""Where profiles, measurements, plans, runs and jobs live on disk.

    workspace/
      models/<fingerprint>/profiles/<key>/         profile.json, spectra.safetensors
                           curves/, moments/, calibration/, cores/   see study.py
                           sensitivity/                 see layer_sensitivity.py
      cache/<kind>/<key>.json                      what can be found again, such as fingerprints of files
      plans/<name>.json
      runs/<id>/run.json                           one point of the trade-off page
      jobs/<id>/                                   see jobs.py
      tasks/                                       items and finished benchmark tasks, see tasks.py

Keys come from `settings_key`: equal settings are found again, others never mixed up. Every file is written to a
temporary name and renamed, so that a reader, or the next start after a crash, sees a whole file or none.
"""

import hashlib
import json
import os
import platform
import re
import secrets
import shutil
import time
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from karipap_core.errors import InputError

RUN_FORMAT, RUN_VERSION = "karipap-run", 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


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


def new_id() -> str:
    """A name that sorts by time, such as 20260918-142233-5f0c1a."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


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
        if run.get("format") == RUN_FORMAT:
            runs.append(run | {"path": str(path)})
    return sorted(runs, key=lambda run: (run.get("created", 0), run["path"]))


class Workspace:
    """One folder for all of it: `root`, else $KARIPAP_WORKSPACE, else ./workspace. Folders are made when written to."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("KARIPAP_WORKSPACE") or "workspace").absolute()

    def _of_model(self, fingerprint: str, kind: str, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
            raise InputError(f"{fingerprint!r} is not a fingerprint (hexadecimal digits of SHA-256).")
        return self.root / "models" / fingerprint[:32] / kind / _name(name)

    def profile_dir(self, fingerprint: str, key: str) -> Path:
        return self._of_model(fingerprint, "profiles", key)

    def calibration_file(self, fingerprint: str, key: str) -> Path:
        return self._of_model(fingerprint, "calibration", f"{key}.json")

    def adopt(self, fingerprint: str, model: Path) -> None:
        """Take over what was measured on a model and ships in its folder as `karipap/` (profiles, curves, calibration,
        sensitivity, runs), so that nobody measures it again. Its `measured.json` names the model's fingerprint; another
        one is ignored."""
        shipped = Path(model) / "karipap"
        manifest = shipped / "measured.json"
        if not manifest.is_file() or read_json(manifest).get("fingerprint") != fingerprint:
            return
        home = self._of_model(fingerprint, "profiles", "any").parents[1]
        for source in sorted(path for path in shipped.rglob("*") if path.is_file() and path != manifest):
            target = home / source.relative_to(shipped)
            if not target.exists():
                with whole_file(target) as temporary:
                    shutil.copyfile(source, temporary)

    def cache_file(self, kind: str, key: str) -> Path:
        """A place for what can be found again if it is lost, such as the fingerprint of files by size and time."""
        return self.root / "cache" / _name(kind) / _name(f"{key}.json")

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    def plan_file(self, name: str) -> Path:
        return self.plans / _name(f"{name}.json")

    @property
    def jobs_dir(self) -> Path:
        return self.root / "jobs"

    @property
    def runs_dir(self) -> Path:
        return self.root / "runs"

    @property
    def runs(self) -> list[dict]:
        """The documents of all runs, oldest first, each with its `path`."""
        return read_runs(self.runs_dir)

    def new_run(self, run: dict, folder: str | Path | None = None) -> Path:
        """Write a run (plan, metrics, seconds …) as run.json in a folder of its own and return the file's path.

        Adds `format`, `version`, `id`, `created` (seconds since 1970) and `environment`. `folder` is where the run's
        folder is made, by default `runs_dir`.
        """
        name = new_id()
        document = {"format": RUN_FORMAT, "version": RUN_VERSION, "id": name, "created": round(time.time(), 3)}
        path = Path(folder or self.runs_dir) / name / "run.json"
        write_json(path, document | {"environment": environment()} | run)
        return path


def _name(name: str) -> str:
    """A file name that stays in its folder. Names reach here from web pages, so nothing else is let through."""
    if not NAME.fullmatch(name):
        raise InputError(f"{name!r} is not a name: letters, digits, '.', '_' and '-', at most 128.")
    return name
