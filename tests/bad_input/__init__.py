"""The catalogue of bad input: what strangers may give, the command that meets it, and the exact sentence it ends with.

A file of this folder is a kind (checkpoints.py, plans.py …) and holds `CASES`; a new file is found by itself. Each case
makes its input in an empty folder, which is then the current one, and runs one verb in this process. It holds if the
verb ends with exit status 2, says its sentence and nothing else on stderr and nothing on stdout, leaves the folder as
it was (but for the workspace's cache), and takes at most `LIMIT` seconds. `python -m tests.bad_input` prints how many
cases of each kind hold.

No case may hold what would crash or hang other people's software: guards against size, depth and count are tried with
harmless input or a lowered limit (`Case.limits`).
"""

import atexit
import contextlib
import functools
import importlib
import io
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

LIMIT = 60  # seconds; a case takes well under one, but the machine may be busy with other things
BAD_INPUT = 2


@dataclass(frozen=True)
class Case:
    """`make(folder)` writes the input; `command` is what a person types after "karipap", its paths as seen from the
    folder; `sentence` is what follows "error: ". `limits` lowers constants while the verb runs: {"module:NAME": value}.
    """

    name: str
    make: Callable[[Path], object]
    command: str
    sentence: str
    limits: dict[str, int] = field(default_factory=dict)

    @property
    def argv(self) -> list[str]:
        return [*shlex.split(self.command), "--progress", "off"]


@dataclass(frozen=True)
class Outcome:
    """How a verb ended: exit status, what it printed (paths as seen from its folder), files that it left or changed."""

    status: int
    stdout: str
    stderr: str
    left: tuple[str, ...]
    seconds: float

    def wrong(self, case: Case) -> str | None:
        """What keeps `case` from holding, None where it holds."""
        if self.status != BAD_INPUT:
            return f"ended with exit status {self.status}: {self.stderr.strip()}"
        if self.stderr != f"error: {case.sentence}\n":
            return f"said {self.stderr!r}"
        if self.stdout:
            return f"wrote {self.stdout[:60]!r} to stdout"
        return f"left {', '.join(self.left)}" if self.left else None


class _TooLong(BaseException):
    """Not an Exception: no verb may take it for a failure of its own."""


def run(case: Case, folder: Path, command: Callable[[list[str]], tuple[int, str, str]] | None = None) -> Outcome:
    """Makes the case in `folder`, which is empty, and tries it: in this process, or by `command(argv)`."""
    case.make(folder)
    before, began = _files(folder), time.monotonic()
    with _inside(folder), _limits(case.limits):
        status, stdout, stderr = (command or _here)(case.argv)
    after = _files(folder)
    left = tuple(sorted(name for name in before | after if before.get(name) != after.get(name)))
    place = f"{folder.resolve()}{os.sep}"
    return Outcome(status, stdout.replace(place, ""), stderr.replace(place, ""), left, time.monotonic() - began)


def _here(argv: list[str]) -> tuple[int, str, str]:
    from karipap_core.cli.frame import main

    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            with _alarm():
                status = main(argv)
        except SystemExit as end:  # argparse: an option that it refuses
            status = int(end.code or 0)
        except _TooLong:
            return -1, stdout.getvalue(), f"{stderr.getvalue()}no end after {LIMIT} s\n"
    return status, stdout.getvalue(), stderr.getvalue()


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_):
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    settings = {"KARIPAP_WORKSPACE": str(folder / "workspace")}
    with contextlib.chdir(folder), mock.patch.dict(os.environ, settings):
        yield


@contextlib.contextmanager
def _limits(limits: dict[str, int]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in limits.items():
            module, _, constant = name.partition(":")
            stack.enter_context(mock.patch.object(importlib.import_module(module), constant, value))
        yield


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of all that lies in a folder; what the workspace caches may come and go."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(place, name)
            inside = path.relative_to(folder)
            if inside.parts[:2] != ("workspace", "cache") and str(inside) != "workspace":
                status = path.lstat()
                found[str(inside)] = (status.st_size, status.st_mtime_ns) if name in files else (0, 0)
    return found


def kinds() -> dict[str, list[Case]]:
    """The cases of each kind."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    names = [file.stem for file in files if not file.stem.startswith("test_")]
    return {name: importlib.import_module(f"tests.bad_input.{name}").CASES for name in names}


def warm() -> None:
    """Imports what is imported but once, so that it is no case's time."""
    for name in ("transformers", "karipap_core.tradeoffs.run", "lm_eval.tasks"):
        with contextlib.suppress(ImportError):  # lm-eval is of the extra `tasks`
            importlib.import_module(name)


# What cases are made of.


@functools.cache
def _made(architecture: str, settings: str) -> Path:
    from tests.helpers.architectures import make

    folder = Path(tempfile.mkdtemp(prefix="karipap-bad-input-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return make(architecture, folder / "model", **json.loads(settings))


def model(folder: Path, architecture: str = "llama", name: str = "model", **settings) -> Path:
    """A good model (of `tests.helpers.architectures`), made once and copied into `folder`, to be broken."""
    shutil.copytree(_made(architecture, json.dumps(settings, sort_keys=True)), folder / name)
    return folder / name


def changed(file: Path, **fields) -> None:
    """Sets fields of a JSON file; `...` takes one away."""
    document = json.loads(file.read_text())
    document |= fields
    file.write_text(json.dumps({name: value for name, value in document.items() if value is not ...}))


def real_command(argv: list[str]) -> tuple[int, str, str]:
    """The same as a program of its own: for `run`."""
    import subprocess

    repository = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "karipap_core", *argv],
        env=os.environ | {"PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=6 * LIMIT,
    )
    return done.returncode, done.stdout, done.stderr
