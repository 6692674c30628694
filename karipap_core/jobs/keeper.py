"""The process beside a job: `python -m karipap_core.jobs.keeper FOLDER` waits for its turn and runs its command."""

import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from karipap_core.errors import InputError
from karipap_core.jobs.job import (
    LONGEST_WAIT,
    LOST,
    STARTED,
    WORK_LOCK,
    Job,
    environment,
    held,
    jobs_in,
    queue_lock,
    signal_group,
)
from karipap_core.reading import read_json
from karipap_core.workspace.files import write_json

OPTIONS = ("--progress", "json", "--json")
POLL = 0.2  # seconds between two looks of a keeper at its job


def main(folder: Path) -> None:
    """The keeper's life. Its lock goes with it; where another keeper has that, there is nothing to do."""
    stopping: list[bool] = []  # not empty once the keeper itself was asked to end
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    job = Job(folder)
    with suppress(Timeout), FileLock(job.keeper_lock, timeout=LONGEST_WAIT, poll_interval=0.01):
        if job.document()["state"] != "queued" or held(job.work_lock):
            return  # another keeper was quicker, and is done
        while not job.cancel_file.exists():
            if take_turn(job):
                run(job, stopping)
                return
            time.sleep(POLL)
            if stopping:  # stays queued, and gets a new keeper from whoever looks next
                return
        finish(job, "cancelled", None, None)


def take_turn(job: Job) -> bool:
    """Whether this job, kept by the caller, is the one to run now; if so, it counts as started from here on."""
    with queue_lock(job.folder.parent):
        document = job.document()
        for other in jobs_in(job.folder.parent):
            if other.folder == job.folder:
                continue
            with suppress(InputError):  # its folder was removed meanwhile
                theirs = other.document()
                # The keeper first: one that was killed a moment ago has left a command that has its lock by now.
                if theirs["state"] == "running" and held(other.keeper_lock) or held(other.work_lock):
                    return False
                earlier = (theirs["queued"], other.id) < (document["queued"], job.id)
                if earlier and theirs["state"] == "queued" and other.kept():
                    return False
        write_json(job.file, document | {"state": "running", "started": time.time()})
        return True


def run(job: Job, stopping: list[bool]) -> None:
    """Run the command to its end, whatever that is, and write it down. The caller holds the keeper's lock, the command
    will take that of the work."""
    document = job.document()
    with job.log_file.open("ab") as log, job.result_file.open("wb") as result:
        log.write(f"{STARTED}{time.strftime('%Y-%m-%d %H:%M:%S')}: {job.command}\n".encode())
        log.flush()
        try:
            child = subprocess.Popen(
                [*document["program"], *document["argv"], *OPTIONS],
                stdin=subprocess.DEVNULL,
                stdout=result,
                stderr=log,
                cwd=document["cwd"],
                env=environment() | {"KARIPAP_WORKSPACE": document["workspace"], WORK_LOCK: str(job.work_lock)},
                start_new_session=True,
            )
        except OSError as error:
            finish(job, "failed", None, f"The command could not be started: {error}.")
            return
    write_json(job.file, document | {"pid": child.pid})
    # Where memory runs out, the system should end the command rather than the server or this keeper.
    with suppress(OSError):
        Path(f"/proc/{child.pid}/oom_score_adj").write_text("500")
    asked = None
    while True:
        with suppress(subprocess.TimeoutExpired):
            code = child.wait(POLL)
            break
        if asked is None and (stopping or job.cancel_file.exists()):
            asked = time.monotonic()
            signal_group(child.pid, signal.SIGTERM)
        elif asked is not None and time.monotonic() - asked > document["grace"]:
            signal_group(child.pid, signal.SIGKILL)
    signal_group(child.pid, signal.SIGKILL)  # helpers that the command left behind
    if code == 0 or (code == 1 and printed_verdict(job)):
        finish(job, "done", code, None)
    elif job.cancel_file.exists() or (code == 130 and not stopping):
        finish(job, "cancelled", code, None)
    else:
        finish(job, "failed", code, LOST if stopping else why_failed(job, code))


def printed_verdict(job: Job) -> bool:
    """Whether the command printed its document: with status 1 that is a verdict of not ok, and no failure."""
    with suppress(InputError):
        return isinstance(read_json(job.result_file).get("ok"), bool)
    return False


def finish(job: Job, state: str, code: int | None, reason: str | None) -> None:
    """Write down how the job ended: "done", "failed" or "cancelled", the exit status, and why it failed."""
    ending = {"state": state, "exit": code, "reason": reason, "finished": time.time()}
    write_json(job.file, job.document() | ending)


def why_failed(job: Job, code: int) -> str:
    """Why the command failed: the system's signal, or its own last words."""
    if code == -signal.SIGKILL:
        return "The system killed the process (SIGKILL), most likely because memory ran out. Resume tries again."
    if code < 0:
        return f"The process died of {signal.Signals(-code).name}. Resume tries again."
    for line in reversed(job.log()[0]):
        if words := re.search(r"(?:^|: )error: (.+)", line):
            return words[1]
        if line.startswith(STARTED):
            break
    return f"The command ended with status {code}: see its log."


if __name__ == "__main__":
    main(Path(sys.argv[1]))
