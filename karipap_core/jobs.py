"""Long work in processes of its own: start, follow, cancel, resume. Nothing is lost when a server dies.

A job is a folder, `workspace/jobs/<id>/`:

    job.json      title, argv, working folder, times, state, exit status
    job.log       what the command wrote on stderr: progress lines, warnings, errors
    result.json   what it wrote on stdout: one JSON document
    cancel        present once somebody asked to stop
    keeper.lock   held by the job's keeper while it lives
    work.lock     held by the keeper and by the command while the command runs

The **keeper** (`python -m karipap_core.jobs FOLDER`) is a small process in a session of its own. It waits for the
job's turn, runs the command in a process group of its own, ends the group when asked to cancel, and writes down the
exit status: so the queue moves on and results are kept with no server at all. Whether somebody lives is asked of the
kernel through the locks and not of process ids: a lock goes with its holder, be it killed or the machine restarted.
One job runs at a time, in the order of asking, however many servers look on.
"""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.workspace import Workspace, new_id
from karipap_core.workspace.files import read_json, write_json

PROGRAM = (sys.executable, "-m", "karipap_core")
OPTIONS = ("--progress", "json", "--json")
ENDED = ("done", "failed", "cancelled")
POLL = 0.2  # seconds between two looks of a keeper at its job
GRACE = 10.0  # seconds between asking a command to stop and killing it
TAIL = 256 * 1024  # bytes at the end of a log that are read
ETA_LINES = 20  # progress lines behind a time estimate: two or three layers, so that it follows a change of pace
STARTED = "--- started "  # a line in the log at each start: progress before it belongs to an earlier attempt
LOST = "The process was lost (killed, or the machine was restarted). Resume goes on from what is on disk."

_keepers: list[subprocess.Popen] = []


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
        return shlex.join(["python", "-m", "karipap_core", *self._document()["argv"]])

    def status(self) -> dict:
        """Where the job stands, from a few small reads.

        `id`, `title`, `argv`; `state`: queued, running, done, failed or cancelled; `position` in the queue (1 is next)
        while queued; `progress`: the last progress line {"stage", "done", "total", "item", "seconds", "message"};
        `eta_seconds` to the end of that stage; `log_tail`: the last lines, as text; `exit`: status (negative: killed by
        that signal); `reason`: why it failed, in a sentence; `cancelling`: asked to stop, not yet stopped; `queued`,
        `started`, `finished`: seconds since 1970. What is not known is None.
        """
        document, state, reason = self._look()
        texts, progress = self._log()
        status = {key: document[key] for key in ("title", "argv", "queued", "started", "finished", "exit")}
        return status | {
            "id": self.id,
            "state": state,
            "reason": reason,
            "position": self._position(document) if state == "queued" else None,
            "progress": progress[-1] if progress else None,
            "eta_seconds": self._eta(progress) if state == "running" else None,
            "log_tail": "\n".join(texts[-200:]),
            "cancelling": state in ("queued", "running") and self._cancel.exists(),
        }

    def result(self) -> dict:
        """The JSON document that the command printed. Raises InputError unless the job is done."""
        if self._look()[1] != "done":
            raise InputError(f"Job {self.id} is not done: it has no result.")
        return read_json(self._result)

    def cancel(self) -> None:
        """Ask the job to stop: its process group gets SIGTERM and, `GRACE` seconds later, SIGKILL.

        Returns at once. A job that has ended stays as it is.
        """
        document, state, _ = self._look()
        if state in ENDED:
            return
        self._cancel.touch()
        if _held(self._work_lock) and not _held(self._keeper_lock):  # its keeper was killed: nobody else will
            _signal_group(document["pid"], signal.SIGKILL)

    def resume(self) -> "Job":
        """Queue the same command again; it goes on from what is on disk. Raises InputError for a job that is done."""
        with _queue_lock(self.folder.parent):
            document, state, _ = self._look()
            if state == "done":
                raise InputError(f"Job {self.id} is done: there is nothing to resume.")
            if state not in ENDED:  # somebody else was quicker
                return self
            self._cancel.unlink(missing_ok=True)
            write_json(self._file, document | _FRESH | {"queued": time.time()})
        self._keep()
        return self

    # The rest is between this module, its keepers and other servers.

    @property
    def _file(self) -> Path:
        return self.folder / "job.json"

    @property
    def _log_file(self) -> Path:
        return self.folder / "job.log"

    @property
    def _result(self) -> Path:
        return self.folder / "result.json"

    @property
    def _cancel(self) -> Path:
        return self.folder / "cancel"

    @property
    def _keeper_lock(self) -> Path:
        return self.folder / "keeper.lock"

    @property
    def _work_lock(self) -> Path:
        return self.folder / "work.lock"

    def _document(self) -> dict:
        return read_json(self._file)

    def _look(self) -> tuple[dict, str, str | None]:
        """The document, the true state, and why the job failed."""
        document = self._document()
        if document["state"] not in ENDED and not _held(self._keeper_lock) and not _held(self._work_lock):
            document = self._document()  # it may have ended between the two looks
            if document["state"] not in ENDED:
                return document, *self._orphaned(document)
        return document, document["state"], document["reason"]

    def _orphaned(self, document: dict) -> tuple[str, str | None]:
        """State and reason of a job that has not ended and that nobody keeps."""
        if document["started"] and self._result.is_file():
            with suppress(InputError):  # commands print their result when all is done
                read_json(self._result)
                return "done", None
        if self._cancel.exists():
            return "cancelled", None
        return ("failed", LOST) if document["started"] else ("queued", None)

    def _position(self, document: dict) -> int:
        ahead = 1
        for other in _folders(self.folder.parent):
            with suppress(InputError):  # its folder was removed meanwhile
                theirs, state, _ = other._look()
                ahead += state == "queued" and (theirs["queued"], other.id) < (document["queued"], self.id)
        return ahead

    def _log(self) -> tuple[list[str], list[dict]]:
        """The last lines of the log as text, and the progress lines among them that belong to the last start."""
        try:
            with self._log_file.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL))
                lines = file.read().decode(errors="replace").split("\n")
        except FileNotFoundError:
            return [], []
        texts, progress = [], []
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

    def _eta(self, progress: list[dict]) -> float | None:
        """Seconds to the end of the present stage at the pace of its last lines; None while there is no pace."""
        stage = [line for line in progress[-ETA_LINES:] if line["stage"] == progress[-1]["stage"]]
        if len(stage) < 2 or stage[-1]["done"] <= stage[0]["done"]:
            return None
        pace = (stage[-1]["seconds"] - stage[0]["seconds"]) / (stage[-1]["done"] - stage[0]["done"])
        since = max(0.0, time.time() - self._log_file.stat().st_mtime)
        return max(0.0, pace * (stage[-1]["total"] - stage[-1]["done"]) - since)

    def _keep(self) -> None:
        """Start the job's keeper unless it has one. The lock is taken here and handed over: at no moment is it free."""
        with self._keeper_lock.open("ab") as lock:
            for _ in range(100):  # those who only look hold it for microseconds, a keeper that ends for milliseconds
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.01)
            else:
                return
            with self._log_file.open("ab") as log:
                keeper = subprocess.Popen(
                    [sys.executable, "-m", "karipap_core.jobs", str(self.folder)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=log,
                    env=_environment(),
                    pass_fds=[lock.fileno()],
                    start_new_session=True,
                )
        _keepers[:] = [keeper, *(old for old in _keepers if old.poll() is None)]  # polled so that none stays a zombie

    def _take_turn(self, work) -> bool:
        """Whether this job, kept by the caller, is the one to run now; if so, it counts as started from here on."""
        with _queue_lock(self.folder.parent):
            document = self._document()
            for other in _folders(self.folder.parent):
                if other.folder == self.folder:
                    continue
                if _held(other._work_lock):
                    return False
                with suppress(InputError):  # its folder was removed meanwhile
                    theirs = other._document()
                    earlier = (theirs["queued"], other.id) < (document["queued"], self.id)
                    if earlier and theirs["state"] == "queued" and _held(other._keeper_lock):
                        return False
            fcntl.flock(work, fcntl.LOCK_EX)
            write_json(self._file, document | {"state": "running", "started": time.time()})
            return True

    def _run(self, work, stopping: list) -> None:
        """Run the command to its end, whatever that is, and write it down. The caller holds both locks."""
        document = self._document()
        with self._log_file.open("ab") as log, self._result.open("wb") as result:
            log.write(f"{STARTED}{time.strftime('%Y-%m-%d %H:%M:%S')}: {self.command}\n".encode())
            log.flush()
            try:
                child = subprocess.Popen(
                    [*document["program"], *document["argv"], *OPTIONS],
                    stdin=subprocess.DEVNULL,
                    stdout=result,
                    stderr=log,
                    cwd=document["cwd"],
                    env=_environment() | {"KARIPAP_WORKSPACE": document["workspace"]},
                    pass_fds=[work.fileno()],
                    start_new_session=True,
                )
            except OSError as error:
                self._finish("failed", None, f"The command could not be started: {error}.")
                return
        write_json(self._file, document | {"pid": child.pid})
        # Where memory runs out, the system should end the command rather than the server or this keeper.
        with suppress(OSError):
            Path(f"/proc/{child.pid}/oom_score_adj").write_text("500")
        asked = None
        while True:
            with suppress(subprocess.TimeoutExpired):
                code = child.wait(POLL)
                break
            if asked is None and (stopping or self._cancel.exists()):
                asked = time.monotonic()
                _signal_group(child.pid, signal.SIGTERM)
            elif asked is not None and time.monotonic() - asked > document["grace"]:
                _signal_group(child.pid, signal.SIGKILL)
        _signal_group(child.pid, signal.SIGKILL)  # helpers that the command left behind
        if code == 0 or (code == 1 and self._answered()):
            self._finish("done", code, None)
        elif self._cancel.exists() or (code == 130 and not stopping):
            self._finish("cancelled", code, None)
        else:
            self._finish("failed", code, LOST if stopping else self._why(code))

    def _answered(self) -> bool:
        """Whether the command printed its document: with status 1 that is a verdict of not ok, and no failure."""
        with suppress(InputError):
            return isinstance(read_json(self._result).get("ok"), bool)
        return False

    def _finish(self, state: str, code: int | None, reason: str | None) -> None:
        ending = {"state": state, "exit": code, "reason": reason, "finished": time.time()}
        write_json(self._file, self._document() | ending)

    def _why(self, code: int) -> str:
        """Why the command failed: the system's signal, or its own last words."""
        if code == -signal.SIGKILL:
            return "The system killed the process (SIGKILL), most likely because memory ran out. Resume tries again."
        if code < 0:
            return f"The process died of {signal.Signals(-code).name}. Resume tries again."
        for line in reversed(self._log()[0]):
            if words := re.search(r"(?:^|: )error: (.+)", line):
                return words[1]
            if line.startswith(STARTED):
                break
        return f"The command ended with status {code}: see its log."


_FRESH = {"state": "queued", "started": None, "finished": None, "exit": None, "reason": None, "pid": None}


def start(argv: list[str], title: str, *, workspace: Workspace | None = None, program=PROGRAM) -> Job:
    """Queue `python -m karipap_core <argv> --progress json --json`; it runs as soon as no other job does.

    `argv` begins with the verb. The command sees this process's working folder, environment and workspace.
    """
    workspace = workspace or Workspace()
    job = Job(workspace.jobs_dir / new_id())
    job.folder.mkdir(parents=True)
    document = {"title": title, "argv": [*map(str, argv)], "program": [*program], "cwd": os.getcwd(), "grace": GRACE}
    write_json(job._file, document | {"workspace": str(workspace.root), "queued": time.time()} | _FRESH)
    job._keep()
    return job


def get(job_id: str, workspace: Workspace | None = None) -> Job:
    """A job by its id, which may come from a web address. Raises InputError where there is none."""
    job = Job((workspace or Workspace()).jobs_dir / job_id)
    if not re.fullmatch(r"[0-9a-f-]{1,64}", job_id) or not job._file.is_file():
        raise InputError(f"There is no job {job_id!r} in this workspace.")
    return job


def list_jobs(workspace: Workspace | None = None) -> list[Job]:
    """All jobs, the one queued last first. Queued jobs that lost their keeper (a restart) get a new one."""
    found = []
    for job in _folders((workspace or Workspace()).jobs_dir):
        with suppress(InputError):  # its folder was removed meanwhile
            document, state, _ = job._look()
            found.append((document["queued"], job.id, job))
            if state == "queued" and not _held(job._keeper_lock):
                job._keep()
    return [job for *_, job in sorted(found, reverse=True, key=lambda entry: entry[:2])]


def cancel(job_id: str, workspace: Workspace | None = None) -> None:
    """See `Job.cancel`."""
    get(job_id, workspace).cancel()


def resume(job_id: str, workspace: Workspace | None = None) -> Job:
    """See `Job.resume`."""
    return get(job_id, workspace).resume()


def _folders(jobs_dir: Path) -> Iterator[Job]:
    for path in jobs_dir.glob("*/job.json"):
        yield Job(path.parent)


def _held(path: Path) -> bool:
    """Whether some process holds this lock. A shared lock is tried, so that those who look do not see one another."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@contextmanager
def _queue_lock(jobs_dir: Path) -> Iterator[None]:
    """For changes of the queue: one process at a time."""
    with (jobs_dir / "queue.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _signal_group(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _environment() -> dict:
    """This process's environment, with this very package first on the module path, whatever the working folder."""
    package = str(Path(__file__).parent.parent)
    paths = [package, *(path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path)]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _progress_line(line: str) -> dict | None:
    if not line.startswith("{"):
        return None
    with suppress(ValueError):
        entry = json.loads(line)
        if isinstance(entry, dict) and {"stage", "done", "total", "item", "seconds", "message"} <= entry.keys():
            return entry
    return None


def _keeper(folder: Path) -> None:
    """The keeper's life. Its lock came with the process and goes with it."""
    stopping = []
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    job = Job(folder)
    with job._work_lock.open("ab") as work:
        while not job._cancel.exists():
            if job._take_turn(work):
                job._run(work, stopping)
                return
            time.sleep(POLL)
            if stopping:  # stays queued, and gets a new keeper from whoever looks next
                return
        job._finish("cancelled", None, None)


if __name__ == "__main__":
    _keeper(Path(sys.argv[1]))
