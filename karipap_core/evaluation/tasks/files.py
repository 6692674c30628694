"""Tasks of the user's own: YAML of lm-eval in a folder, read so that nothing in it is executed.

The harness would import Python for a `!function`, fetch a metric's code from the hub for a name that it does not know,
and render templates that can reach Python's internals. The first two are refused here; templates run in Jinja's
sandbox (`templates.sandboxed`).
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.evaluation.tasks.fields import FILES, check_task
from karipap_core.evaluation.tasks.plain_yaml import read_yaml
from karipap_core.reading import open_file

MOST_FILES = 20_000  # of YAML under a folder; the harness itself has 14,000
MOST_INCLUDED = 100  # files that a task is put together from


@dataclass(frozen=True)
class TaskFile:
    """A task or group: its settings with includes merged and data files found."""

    name: str
    settings: dict
    path: Path

    @property
    def members(self) -> set[str]:
        """Names of the tasks of a group that are defined elsewhere."""
        tasks = self.settings["task"] if "group" in self.settings else []
        return {one for one in tasks if isinstance(one, str)}

    @property
    def local(self) -> bool:
        """Whether the items are files: not so where `dataset_path` names a set on the hub."""
        return self.settings.get("dataset_path", FILES[0]) in FILES

    def check_files(self) -> None:
        """Raises InputError where a data file is missing, is no regular file or may not be read."""
        for file in _data_files(self.settings):
            if not _is_there(file):
                raise InputError(f"{self.path}: data file {file} does not exist (nor in {Path.cwd()}).")
            for one in [file] if os.path.exists(file) else Path(file).parent.glob(Path(file).name):
                with open_file(one) as data:
                    if not os.fstat(data.fileno()).st_size:
                        raise InputError(f"{self.path}: data file {one} is empty: a task needs an item.")

    def entry(self):
        """For the harness's index. It holds the settings themselves, so that the harness reads no file again."""
        from lm_eval.tasks._index import TaskIndex

        return TaskIndex.entry_from_config(self.settings)


def read_folder(folder: str | Path) -> dict[str, TaskFile]:
    """{name: TaskFile} of every `*.yaml` under a folder that names a task or a group.

    Relative paths in `data_files` are looked for beside the YAML that has them, then where we run. Raises InputError,
    naming the file, for YAML that cannot be read, that is no task's (see `fields.check_task`) or that would run code;
    for a name that is there twice; and for a folder without tasks. Whether the data files are there says
    `TaskFile.check_files`.
    """
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise InputError(f"Task folder {folder} does not exist.")
    files = list(islice(folder.rglob("*.yaml"), MOST_FILES + 1))
    if len(files) > MOST_FILES:
        raise InputError(f"Task folder {folder} holds more than {MOST_FILES:,} YAML files: name a smaller one.")
    found: dict[str, TaskFile] = {}
    for path in sorted(files):
        settings = _Merging(folder.resolve()).merged(path.absolute(), ())
        name = settings.get("group") or settings.get("task")
        if name is None:
            continue  # settings that others include
        if not isinstance(name, str):
            raise InputError(f"{path}: the name of a task or group must be a string, it is {name!r}.")
        if name in found:
            raise InputError(f"Task {name} is both in {found[name].path} and in {path}: rename one.")
        settings = {key: value for key, value in settings.items() if value is not None}
        check_task(settings, path)
        if isinstance(settings.get("task"), str) and "group" in settings:
            settings["task"] = [settings["task"]]  # the harness takes a group of one name as one of none
        found[name] = TaskFile(name, settings, path)
    if not found:
        raise InputError(f"Folder {folder} holds no task of lm-eval: *.yaml with a field `task` or `group`.")
    return found


class _Merging:
    """One task's settings with those that it includes, all of them within `root`."""

    def __init__(self, root: Path) -> None:
        self.root, self.read = root, 0

    def merged(self, path: Path, within: tuple[Path, ...]) -> dict:
        self.read += 1
        if self.read > MOST_INCLUDED:
            raise InputError(f"{within[0]} is put together from more than {MOST_INCLUDED} files: include fewer.")
        settings = read_yaml(path)
        _find_files(settings, path)
        included = settings.pop("include", None) or []
        merged: dict = {}
        for other in included if isinstance(included, list) else [included]:
            if not isinstance(other, str):
                raise InputError(f"{path}: field include must be a file or a list of files, it is {other!r}.")
            there = Path(os.path.realpath(path.parent / other))
            if not there.is_relative_to(self.root):
                raise InputError(f"{path} includes {other}, which is not in {self.root}: put it there.")
            if there in (*within, path.resolve()):
                raise InputError(f"{path} includes itself.")
            more = self.merged(there, (*within, path.resolve()))
            more.pop("task_list", None)
            merged |= more
        return merged | settings


def _find_files(value, path: Path) -> None:
    """Makes the paths in every `data_files` absolute, in place."""
    if isinstance(value, list):
        for one in value:
            _find_files(one, path)
    elif isinstance(value, dict):
        for key, one in value.items():
            if key == "data_files":
                value[key] = _absolute(one, path)
            else:
                _find_files(one, path)


def _absolute(files, path: Path):
    if isinstance(files, dict):
        return {split: _absolute(one, path) for split, one in files.items()}
    if isinstance(files, list):
        return [_absolute(one, path) for one in files]
    if not isinstance(files, str):
        return files  # `check_task` says that it is none
    places = [os.path.join(root, os.path.expanduser(files)) for root in (path.parent, Path.cwd())]
    return os.path.abspath(next((place for place in places if _is_there(place)), places[0]))


def _is_there(file: str) -> bool:
    if os.path.exists(file):
        return True
    parent, name = os.path.split(file)
    return any(sign in name for sign in "*?[") and os.path.isdir(parent) and any(Path(parent).glob(name))


def _files(value) -> Iterator[str]:
    """The paths in every `data_files` of some settings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for one in value if isinstance(value, list) else value.values():
            yield from _files(one)


def _data_files(settings) -> Iterator[str]:
    if isinstance(settings, list | dict):
        for key, one in settings.items() if isinstance(settings, dict) else enumerate(settings):
            yield from _files(one) if key == "data_files" else _data_files(one)
