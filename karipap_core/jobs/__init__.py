"""Long work in processes of its own: start, follow, cancel, resume. Nothing is lost when a server dies.

A job is a folder, `workspace/jobs/<id>/`:

    job.json      title, argv, working folder, times, state, exit status
    job.log       what the command wrote on stderr: progress lines, warnings, errors
    result.json   what it wrote on stdout: one JSON document
    cancel        present once somebody asked to stop
    seen          present once somebody has seen how it ended
    keeper.lock   held by the job's keeper while it lives
    work.lock     held by the command itself while it runs

Three roles, one file each. A **job** (`job.py`) is that folder, read by any process and asked to stop or to go on.
The **queue** (`queue.py`) is all jobs of a workspace: one runs at a time, in the order of asking, however many servers
look on. The **keeper** (`keeper.py`) is a small process beside each job, in a session of its own: it waits for the
job's turn, runs the command in a process group of its own, ends the group when asked to cancel, and writes down the
exit status. So the queue moves on and results are kept with no server at all.

Whether somebody lives is asked of the kernel through the locks and not of process ids: a lock goes with its holder, be
it killed or the machine restarted.
"""

from karipap_core.jobs.job import ENDED, LOST, Job
from karipap_core.jobs.queue import cancel, get, list_jobs, resume, start

__all__ = ["ENDED", "LOST", "Job", "cancel", "get", "list_jobs", "resume", "start"]
