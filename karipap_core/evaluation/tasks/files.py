"""Tasks of the user's own: YAML of lm-eval in a folder, read so that nothing in it is executed.

The harness would import Python for a `!function`, fetch a metric's code from the hub for a name that it does not know,
and render templates that can reach Python's internals. The first two are refused here; templates run in Jinja's
sandbox (`sandboxed`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from karipap_core.errors import InputError

FILES = ("json", "csv", "parquet", "text")  # what a task's items may be read from; other names are the hub's
FORBIDDEN = ("trust_remote_code", "class", "custom_dataset", "unsafe_code", "hf_evaluate")


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
        return {one for one in tasks if isinstance(one, str)} if isinstance(tasks, list) else {tasks}

    @property
    def local(self) -> bool:
        """Whether the items are files: not so where `dataset_path` names a set on the hub."""
        return self.settings.get("dataset_path", FILES[0]) in FILES

    def check_files(self) -> None:
        """Raises InputError where a data file is missing."""
        for file in _data_files(self.settings):
            if not _is_there(Path(file)):
                raise InputError(f"{self.path}: data file {file} does not exist (nor in {Path.cwd()}).")

    def entry(self):
        """For the harness's index. It holds the settings themselves, so that the harness reads no file again."""
        from lm_eval.tasks._index import TaskIndex

        return TaskIndex.entry_from_config(self.settings)


def read_folder(folder: str | Path) -> dict[str, TaskFile]:
    """{name: TaskFile} of every `*.yaml` under a folder that names a task or a group.

    Relative paths in `data_files` are looked for beside the YAML that has them, then where we run. Raises InputError,
    naming the file, for YAML that cannot be read or that would run code; for a name that is there twice; and for a
    folder without tasks. Whether the data files are there says `TaskFile.check_files`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"Task folder {folder} does not exist.")
    found: dict[str, TaskFile] = {}
    for path in sorted(folder.rglob("*.yaml")):
        settings = _merged(path, ())
        name = settings.get("group") or settings.get("task")
        if not isinstance(name, str):
            continue  # settings that others include
        if name in found:
            raise InputError(f"Task {name} is both in {found[name].path} and in {path}: rename one.")
        _check(settings, path)
        found[name] = TaskFile(name, settings, path)
    if not found:
        raise InputError(f"Folder {folder} holds no task of lm-eval: *.yaml with a field `task` or `group`.")
    return found


class _Loader(yaml.SafeLoader):
    """Plain YAML: every tag of its own is an error."""


def _function(loader, node):
    raise yaml.constructor.ConstructorError(None, None, "!function", node.start_mark)


_Loader.add_constructor("!function", _function)


def _merged(path: Path, within: tuple[Path, ...]) -> dict:
    path = path.resolve()
    if path in within:
        raise InputError(f"{path} includes itself.")
    try:
        settings = yaml.load(path.read_text("utf-8"), Loader=_Loader)  # noqa: S506 (a SafeLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Task file {path} cannot be read: {error}.") from None
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f"{path}, line {line + 1}" if line is not None else str(path)
        if getattr(error, "problem", None) == "!function":
            raise InputError(f"{where}: !function would run Python from that folder. Write it as a template.") from None
        raise InputError(f"{where}: not plain YAML ({getattr(error, 'problem', error)}).") from None
    if not isinstance(settings, dict):
        raise InputError(f"{path} holds no YAML mapping: a task is one.")
    _find_files(settings, path)
    included = settings.pop("include", [])
    merged: dict = {}
    for other in included if isinstance(included, list) else [included]:
        more = _merged(path.parent / str(other), (*within, path))
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
    places = [root / Path(str(files)).expanduser() for root in (path.parent, Path.cwd())]
    return str(next((place for place in places if _is_there(place)), places[0]).absolute())


def _is_there(file: Path) -> bool:
    return file.is_file() or (any(sign in file.name for sign in "*?[") and any(file.parent.glob(file.name)))


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


def _check(value, path: Path) -> None:
    """Refuses what would run code that is not the harness's own."""
    from lm_eval.api import metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import METRIC_REGISTRY

    if isinstance(value, list):
        for one in value:
            _check(one, path)
        return
    if not isinstance(value, dict):
        return
    for key in FORBIDDEN:
        if value.get(key):
            raise InputError(f"{path}: field {key} would run code that is not lm-eval's own. Take it out.")
    metric = value.get("metric")
    if isinstance(metric, str) and metric not in METRIC_REGISTRY:
        raise InputError(f"{path}: metric {metric} is none of lm-eval's own, and others' code is not fetched.")
    dataset = value.get("dataset_path")
    if isinstance(dataset, str) and Path(dataset).suffix == ".py":
        raise InputError(f"{path}: dataset_path {dataset} is a program. Give its items as one of {', '.join(FILES)}.")
    for one in value.values():
        _check(one, path)


@contextmanager
def sandboxed() -> Iterator[None]:
    """The harness renders templates in Jinja's sandbox, with its own settings and filters."""
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils

    plain = utils.env
    safe = SandboxedEnvironment(undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline)
    safe.filters.update(plain.filters)
    utils.env = safe
    try:
        yield
    finally:
        utils.env = plain
