"""Where profiles, measurements, plans, runs and jobs live on disk.

    workspace/
      models/<fingerprint>-<identity>/profiles/<key>/   profile.json, spectra.safetensors
                                       curves/, moments/, calibration/, cores/   see plan/study.py
                                       plans/                       those of sweeps
                                       sensitivity/   see studies/sensitivity
      cache/<kind>/<key>.json                      what can be found again, such as fingerprints of files
      plans/<name>-<key>.json                      key: of the plan's content
      runs/<id>/run.json                           one point of the trade-off page
      jobs/<id>/                                   see karipap_core/jobs
      tasks/                                       items and finished benchmark tasks, see evaluation/tasks

Keys come from `settings_key`: equal settings are found again, others never mixed up. Every file is written to a
temporary name and renamed, so that a reader, or the next start after a crash, sees a whole file or none.
"""

import os
import re
import secrets
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.schemas import checked_name
from karipap_core.workspace.files import settings_key, whole_file, write_json
from karipap_core.workspace.kept import keep_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION, environment, read_runs

MODEL_KEY = re.compile(r"[0-9a-f]{32}-[0-9a-f]{16}")
MANIFEST = "measured.json"


class Identified(Protocol):
    """What the workspace asks of a model: see `Checkpoint`."""

    @property
    def home(self) -> Path: ...
    @property
    def identity(self) -> str: ...
    @property
    def key(self) -> str: ...
    @property
    def settings_files(self) -> list[Path]: ...


def shipped(model: Identified) -> Path | None:
    """The folder `karipap/` beside a model's tensors, with profiles, curves, calibration, sensitivity and runs, where
    its measured.json says that they were measured on this very model (`identity`); None where there is none."""
    manifest = model.home / "karipap" / MANIFEST
    try:
        ours = schemas.read(manifest, "measured")["identity"] == model.identity
    except InputError:  # there is none, or nobody can say whose it is
        return None
    return manifest.parent if ours else None


def new_id() -> str:
    """A name that sorts by time, such as 20260918-142233-5f0c1a."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


class Workspace:
    """One folder for all of it: `root`, else $KARIPAP_WORKSPACE, else ./workspace. Folders are made when written to."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("KARIPAP_WORKSPACE") or "workspace").absolute()

    def model_dir(self, key: str) -> Path:
        """The folder of what was measured on a model, by the model's `Checkpoint.key`."""
        if not MODEL_KEY.fullmatch(key):
            raise InputError(f"{key!r} is not the key of a model: 32 hexadecimal digits, '-' and 16 more.")
        return self.root / "models" / key

    def profile_dir(self, key: str, name: str) -> Path:
        return self.model_dir(key) / "profiles" / checked_name(name)

    def calibration_file(self, key: str, name: str) -> Path:
        return self.model_dir(key) / "calibration" / checked_name(f"{name}.json")

    def key_of(self, model: dict) -> str | None:
        """The key that a run's `model` field names. One written before runs held an identity: that of the only model
        here with these tensors; None where there is none, or several."""
        start = str(model.get("fingerprint") or "")[:32]
        if identity := model.get("identity"):
            return f"{start}-{identity}" if MODEL_KEY.fullmatch(f"{start}-{identity}") else None
        folders = (self.root / "models").glob(f"{start}-*") if re.fullmatch(r"[0-9a-f]{32}", start) else ()
        keys = [folder.name for folder in folders if MODEL_KEY.fullmatch(folder.name)]
        return keys[0] if len(keys) == 1 else None

    def adopt(self, model: Identified) -> None:
        """Take over what was measured on a model before, so that nobody measures it again: what ships in its folder
        (`shipped`), and what an earlier version of Karipap kept in the workspace."""
        self._adopt_earlier(model)
        source = shipped(model)
        if source is None:
            return
        for file in sorted(path for path in source.rglob("*") if path.is_file()):
            if not file.resolve().is_relative_to(source.resolve()):
                continue  # a link in a stranger's folder could bring any file that this user may read
            target = self.model_dir(model.key) / file.relative_to(source)
            if file.name != MANIFEST and not target.exists():
                with whole_file(target) as temporary:
                    shutil.copyfile(file, temporary)

    def _adopt_earlier(self, model: Identified) -> None:
        """Versions before 0.3 named a model's folder by the fingerprint alone. It is this model's where nothing that
        decides about the outputs (config.json, the tokenizer) has changed since the first file was written there."""
        earlier, now = self.root / "models" / model.key[:32], self.model_dir(model.key)
        if not earlier.is_dir() or now.exists():
            return
        measured = [path.stat().st_mtime for path in earlier.rglob("*") if path.is_file()]
        settled = max((file.stat().st_mtime for file in model.settings_files), default=0.0)
        if measured and settled <= min(measured):
            with suppress(OSError):  # read-only, or another process was first: then it is measured anew
                earlier.rename(now)

    def cache_file(self, kind: str, key: str) -> Path:
        """A place for what can be found again if it is lost, such as the fingerprint of files by size and time."""
        return self.root / "cache" / checked_name(kind) / checked_name(f"{key}.json")

    @property
    def plans(self) -> Path:
        return self.root / "plans"

    def plan_file(self, name: str) -> Path:
        return self.plans / checked_name(f"{name}.json")

    def find_plan(self, name: str) -> Path:
        """The file of a stored plan by its name, or by what it was called before its content was put into the name
        (see `keep_plan`): of several the newest. Raises InputError where there is none."""
        file = self.plan_file(name)
        if file.is_file():
            return file
        named = re.compile(re.escape(name) + r"-[0-9a-f]{16}\.json")
        files = (path for path in self.plans.glob("*.json") if named.fullmatch(path.name) and path.is_file())
        found = max(files, key=lambda path: path.stat().st_mtime, default=None)
        if found is None:
            raise InputError(f"The workspace has no plan {name!r}.")
        return found

    def keep_plan(self, plan: dict, name: str) -> str:
        """Stores a plan's JSON under `name` and the first digits of its content's SHA-256, and returns that name.

        So no plan takes the place of another one, and whoever was told a name finds the same plan under it later. What
        a name cannot have becomes "-".
        """
        key = settings_key(plan)
        stem = re.sub(r"[^A-Za-z0-9._+-]+", "-", name.removesuffix(f"-{key}")).strip("-.+")[:100] or "plan"
        found = f"{stem}-{key}"
        try:
            there = settings_key(read_json(self.plan_file(found))) == key
        except InputError:  # there is none, or a damaged one
            there = False
        if not there:
            write_json(self.plan_file(found), plan)
        return found

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
        keep_json(path, document | {"environment": environment()} | run)
        return path
