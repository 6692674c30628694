"""One job: a folder that any process may read, ask to stop, or start again."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.files import write_json

ENDED = ("done", "failed", "cancelled")
FRESH = {"state": "queued", "started": None, "finished": None, "exit": None, "reason": None, "pid": None}
TAIL = 256 * 1024  # bytes at the end of a log that are read
STARTED = "--- started "  # a line in the log at each start: progress before it belongs to an earlier attempt
LOST = "The process was lost (killed, or the machine was restarted). Resume goes on from what is on disk."

GLANCE = 0.02  # seconds for which a lock is tried before it counts as held
LONGEST_WAIT = 2.0  # seconds for which a new holder waits for one that ends
STARTING = 10.0  # seconds that a keeper may take to start on a busy machine
WORK_LOCK = "KARIPAP_WORK_LOCK"  # tells a command which lock to hold

keepers: list[tuple[Path, subprocess.Popen]] = []  # those that this process started, with their jobs' folders
held_for_life: list[FileLock] = []
documents: dict[Path, tuple[tuple, dict]] = {}  # of job.json as read last, with the file's number, size and time
MOST_DOCUMENTS = 10_000


@dataclass(frozen=True)
class Job:
    """One job, by its folder. Everything it knows is on disk, so any process may hold any number of these."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def command(self) -> str:
        """The command as a person would type it."""
        return shlex.join(["karipap", *self.document()["argv"]])

    @property
    def owner(self) -> str | None:
        """What `start` was given as its owner."""
        return self.document().get("owner")

    def brief(self) -> dict:
        """Where the job stands, without its log: what `status` says but for `progress`, `overall`, `eta_seconds` and
        `log_tail`. Of a job that has ended no file is read twice, so that long lists of them stay fast."""
        document, state, reason = self.look()
        brief = {key: document[key] for key in ("title", "argv", "queued", "started", "finished", "exit")}
        return brief | {
            "id": self.id,
            "state": state,
            "reason": reason,
            "position": self.position(document) if state == "queued" else None,
            "cancelling": state in ("queued", "running") and self.cancel_file.exists(),
        }

    def status(self) -> dict:
        """Where the job stands, from a few small reads.

        `id`, `title`, `argv`; `state`: queued, running, done, failed or cancelled; `position` in the queue (1 is next)
        while queued; `progress`: the last progress line, as `progress.json_lines` writes it; `overall`: the fraction of
        the whole job that is done, `eta_seconds` to its end; `log_tail`: the last lines, as text; `exit`: status
        (negative: killed by that signal); `reason`: why it failed, in a sentence; `cancelling`: asked to stop, not yet
        stopped; `queued`, `started`, `finished`: seconds since 1970. What is not known is None.
        """
        brief = self.brief()
        texts, progress = self.log()
        running = brief["state"] == "running" and bool(progress)
        return brief | {
            "progress": progress[-1] if progress else None,
            "overall": progress[-1].get("overall") if progress else None,
            "eta_seconds": self.eta(progress[-1]) if running else None,
            "log_tail": "\n".join(texts[-200:]),
        }

    def see(self) -> None:
        """Notes that somebody has seen how the job ended."""
        with suppress(OSError):  # a workspace to read alone
            self.seen_file.touch()

    @property
    def seen(self) -> bool:
        """Whether somebody has seen how it ended: `see`, since the last `resume`."""
        return self.seen_file.exists()

    def result(self) -> dict:
        """The JSON document that the command printed. Raises InputError unless the job is done."""
        if self.look()[1] != "done":
            raise InputError(f"Job {self.id} is not done: it has no result.")
        return read_json(self.result_file)

    def cancel(self) -> None:
        """Ask the job to stop: its process group gets SIGTERM and, some seconds later (`queue.GRACE`), SIGKILL.

        Returns at once. A job that has ended stays as it is.
        """
        document, state, _ = self.look()
        if state in ENDED:
            return
        self.cancel_file.touch()
        if held(self.work_lock) and not held(self.keeper_lock):  # its keeper was killed: nobody else will
            signal_group(document["pid"], signal.SIGKILL)

    def resume(self) -> "Job":
        """Queue the same command again; it goes on from what is on disk. Raises InputError for a job that is done."""
        with queue_lock(self.folder.parent):
            document, state, _ = self.look()
            if state == "done":
                raise InputError(f"Job {self.id} is done: there is nothing to resume.")
            if state not in ENDED:  # somebody else was quicker
                return self
            self.cancel_file.unlink(missing_ok=True)
            self.seen_file.unlink(missing_ok=True)
            write_json(self.file, document | FRESH | {"queued": time.time()})
        self.keep()
        return self

    # The rest is between jobs, keepers and the queue.

    @property
    def file(self) -> Path:
        return self.folder / "job.json"

    @property
    def log_file(self) -> Path:
        return self.folder / "job.log"

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def cancel_file(self) -> Path:
        return self.folder / "cancel"

    @property
    def seen_file(self) -> Path:
        return self.folder / "seen"

    @property
    def keeper_lock(self) -> Path:
        return self.folder / "keeper.lock"

    @property
    def work_lock(self) -> Path:
        return self.folder / "work.lock"

    def document(self) -> dict:
        """What job.json says: title, argv, program, times, and the state that was written last."""
        try:
            status = self.file.stat()
        except OSError:
            return schemas.read(self.file, "job")  # says what is wrong
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        known = documents.get(self.file)
        if known is None or known[0] != stamp:
            if len(documents) >= MOST_DOCUMENTS:
                documents.clear()
            known = documents[self.file] = stamp, schemas.read(self.file, "job")
        return dict(known[1])

    def look(self) -> tuple[dict, str, str | None]:
        """The document, the true state, and why the job failed."""
        document = self.document()
        if document["state"] not in ENDED and not held(self.keeper_lock) and not held(self.work_lock):
            document = self.document()  # it may have ended between the two looks
            if document["state"] not in ENDED:
                return document, *self._orphaned(document)
        return document, document["state"], document["reason"]

    def _orphaned(self, document: dict) -> tuple[str, str | None]:
        """State and reason of a job that has not ended and that nobody keeps."""
        if document["started"] and self.result_file.is_file():
            with suppress(InputError):  # commands print their result when all is done
                read_json(self.result_file)
                return "done", None
        if self.cancel_file.exists():
            return "cancelled", None
        return ("failed", LOST) if document["started"] else ("queued", None)

    def position(self, document: dict) -> int:
        """Place in the queue of this job, whose document is given: 1 is next. Who was asked to stop does not count: it
        may have a keeper that has not yet seen that."""
        ahead = 1
        for other in jobs_in(self.folder.parent):
            with suppress(InputError):  # its folder was removed meanwhile
                theirs, state, _ = other.look()
                waits = state == "queued" and not other.cancel_file.exists()
                ahead += waits and (theirs["queued"], other.id) < (document["queued"], self.id)
        return ahead

    def log(self) -> tuple[list[str], list[dict]]:
        """The last lines of the log as text, and the progress lines among them that belong to the last start."""
        try:
            with self.log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                lines = file.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return [], []
        texts: list[str] = []
        progress: list[dict] = []
        for line in lines[size > TAIL :]:  # the first may be cut in two
            line = line.rsplit("\r", 1)[-1].rstrip()  # progress bars of libraries write over themselves
            if line.startswith(STARTED):
                progress = []
            if entry := _progress_line(line):
                progress.append(entry)
                line = "{stage} {done}/{total} {item} {message}".format_map(entry).rstrip()
            if line:
                texts.append(line)
        return texts, progress

    def eta(self, last: dict) -> float | None:
        """Seconds to the end of the job, by its last progress line and the time since; None where it says nothing."""
        left = last.get("left")
        if not isinstance(left, int | float):
            return None
        return max(0.0, left - max(0.0, time.time() - self.log_file.stat().st_mtime))

    def keep(self) -> None:
        """Start a keeper. Where the job has one that lives, the new one finds its lock taken and ends."""
        self.keeper_lock.touch()  # see `kept`
        with self.log_file.open("ab") as log:
            keeper = subprocess.Popen(
                [sys.executable, "-m", "karipap_core.jobs.keeper", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )
        alive = [(folder, old) for folder, old in keepers if old.poll() is None]  # polled so that none stays a zombie
        keepers[:] = [(self.folder, keeper), *alive]

    def kept(self) -> bool:
        """Whether the job has a keeper, or had one started so lately that it may not have taken its lock yet."""
        if held(self.keeper_lock):
            return True
        with suppress(FileNotFoundError):
            return abs(time.time() - self.keeper_lock.stat().st_mtime) < STARTING
        return False


def jobs_in(jobs_dir: Path) -> Iterator[Job]:
    """Every job of a workspace's folder of jobs, in no order."""
    for path in jobs_dir.glob("*/job.json"):
        yield Job(path.parent)


def held(path: Path) -> bool:
    """Whether some process holds this lock. It is tried for some milliseconds: those who only look hold it for less."""
    if not path.exists():
        return False
    try:
        with FileLock(path, timeout=GLANCE, poll_interval=GLANCE / 5):
            return False
    except Timeout:
        return True
    except OSError:  # the folder was removed meanwhile, or is one to read alone, in which nothing can run
        return False


def starting(job: Job) -> bool:
    """Whether this process has started a keeper of the job that still lives."""
    return any(folder == job.folder and keeper.poll() is None for folder, keeper in keepers)


def hold_work() -> None:
    """For a command: where it was started by a keeper, hold the job's work lock for as long as this process lives."""
    if place := os.environ.pop(WORK_LOCK, None):
        lock = FileLock(place, thread_local=False)
        with suppress(Timeout):  # its keeper was killed, and another start was quicker
            lock.acquire(timeout=LONGEST_WAIT)
        held_for_life.append(lock)


@contextmanager
def queue_lock(jobs_dir: Path) -> Iterator[None]:
    """For changes of the queue: one process at a time."""
    with FileLock(jobs_dir / "queue.lock"):
        yield


def signal_group(group: int, number: int) -> None:
    """Send a signal to a process group; nothing happens where it has ended."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def environment() -> dict[str, str]:
    """This process's environment, with this very package first on the module path, whatever the working folder."""
    package = str(Path(__file__).parents[2])
    paths = [package, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _progress_line(line: str) -> dict | None:
    """A line of a log as a progress entry, None for any other line."""
    if not line.startswith("{"):
        return None
    with suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and {"stage", "done", "total", "item", "seconds", "message"} <= entry.keys():
            return entry
    return None
