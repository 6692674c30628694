"""Where profiles, measurements, plans, runs and jobs live on disk.

    workspace/
      models/<fingerprint>/profiles/<key>/         profile.json, spectra.safetensors
                           curves/, moments/, calibration/, cores/   see plan/study.py
                           sensitivity/                 see studies/sensitivity
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
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.files import settings_key, whole_file, write_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION, environment, read_runs

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")


def checked_name(name: object, where: str = "") -> str:
    """The name itself, which is one that stays in its folder as a file, and is no option on a command line.

    Names and ids reach here from files and web pages; `where` they are from begins the sentence ("run.json, field id").
    Raises InputError for anything else.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        said = f"{where}: " if where else ""
        raise InputError(
            f"{said}{str(name)[:60]!r} is not a name: letters, digits, '.', '_', '+' and '-', at most 128."
        )
    return name


def new_id() -> str:
    """A name that sorts by time, such as 20260918-142233-5f0c1a."""
    return time.strftime("%Y%m%d-%H%M%S-") + secrets.token_hex(3)


class Workspace:
    """One folder for all of it: `root`, else $KARIPAP_WORKSPACE, else ./workspace. Folders are made when written to."""

    def __init__(self, root: str | Path | None = None):
        self.root = Path(root or os.environ.get("KARIPAP_WORKSPACE") or "workspace").absolute()

    def _of_model(self, fingerprint: str, kind: str, name: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
            raise InputError(f"{fingerprint!r} is not a fingerprint (hexadecimal digits of SHA-256).")
        return self.root / "models" / fingerprint[:32] / kind / checked_name(name)

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
        write_json(path, document | {"environment": environment()} | run)
        return path
