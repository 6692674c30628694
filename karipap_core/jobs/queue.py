"""The jobs of a workspace: put a command into the queue, list them, find one by its id."""

import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from karipap_core.errors import InputError
from karipap_core.jobs.job import FRESH, Job, held, jobs_in, starting
from karipap_core.workspace import Workspace, new_id
from karipap_core.workspace.files import write_json

PROGRAM = (sys.executable, "-m", "karipap_core")
GRACE = 10.0  # seconds between asking a command to stop and killing it


def start(
    argv: list[str],
    title: str,
    *,
    workspace: Workspace | None = None,
    program: Sequence[str] = PROGRAM,
    owner: str | None = None,
) -> Job:
    """Queue the command `karipap ARGV --progress json --json`; it runs as soon as no other job does.

    argv : begins with the verb. title : what people see of it. program : what is run in place of `karipap`, found by
    this very Python, so that it works without the script on PATH. The command sees this process's working folder,
    environment and workspace. owner : what tells who asked for it, for `Job.owner`.
    """
    workspace = workspace or Workspace()
    job = Job(workspace.jobs_dir / new_id())
    job.folder.mkdir(parents=True)
    document: dict = {"owner": owner} if owner else {}
    document |= {"title": title, "argv": [*map(str, argv)], "program": [*program], "cwd": os.getcwd(), "grace": GRACE}
    write_json(job.file, document | {"workspace": str(workspace.root), "queued": time.time()} | FRESH)
    job.keep()
    return job


def get(job_id: str, workspace: Workspace | None = None) -> Job:
    """A job by its id, which may come from a web address. Raises InputError where there is none."""
    job = Job((workspace or Workspace()).jobs_dir / job_id)
    if not re.fullmatch(r"[0-9a-f-]{1,64}", job_id) or not job.file.is_file():
        raise InputError(f"There is no job {job_id!r} in this workspace.")
    job.document()  # one that is damaged is told of here
    return job


def list_jobs(workspace: Workspace | None = None) -> list[Job]:
    """All jobs, the one queued last first. Queued jobs that lost their keeper (a restart) get a new one."""
    found = []
    for job in jobs_in((workspace or Workspace()).jobs_dir):
        with suppress(InputError):  # its folder was removed meanwhile
            document, state, _ = job.look()
            found.append((document["queued"], job.id, job))
            if state == "queued" and not held(job.keeper_lock) and not starting(job):
                job.keep()
    return [job for *_, job in sorted(found, reverse=True, key=lambda entry: entry[:2])]


def cancel(job_id: str, workspace: Workspace | None = None) -> None:
    """See `Job.cancel`."""
    get(job_id, workspace).cancel()


def resume(job_id: str, workspace: Workspace | None = None) -> Job:
    """See `Job.resume`."""
    return get(job_id, workspace).resume()
