"""Jobs, with a small program in place of karipap_core: what counts here are processes, locks and files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from karipap_core import jobs
from karipap_core.errors import InputError
from karipap_core.jobs import job as job_module
from karipap_core.jobs import queue
from karipap_core.workspace import Workspace
from tests.helpers.paths import REPOSITORY

# argv: what to do. Writes its process id to the file `pids`, one a line, so that tests can kill it and count starts.
PROGRAM = """
import json, os, signal, subprocess, sys, time
from karipap_core.jobs.job import hold_work
hold_work()
def line(done, seconds):
    entry = {"stage": "work", "done": done, "total": 100, "item": f"w{done}", "seconds": seconds, "message": ""}
    print(json.dumps(entry), file=sys.stderr, flush=True)
with open("pids", "a") as file:
    file.write(f"{os.getpid()}\\n")
verb = sys.argv[1]
if verb == "ok":
    line(1, 0.5); line(2, 1.0)
    print("a warning of some library", file=sys.stderr)
    print(json.dumps({"argv": sys.argv[1:], "workspace": os.environ["KARIPAP_WORKSPACE"], "cwd": os.getcwd()}))
elif verb == "bad":
    print("error: Weight x holds NaN.", file=sys.stderr)
    sys.exit(2)
elif verb == "verdict":
    print('{"ok": false}' if sys.argv[2] == "whole" else '{"ok": fal')
    sys.exit(1)
elif verb == "crash":
    os.kill(os.getpid(), signal.SIGSEGV)
elif verb == "sleep":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    line(10, 2.0); line(20, 4.0)
    while not os.path.exists("go"):
        time.sleep(0.02)
    print('{"went": true}')
elif verb == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    with open("pids", "a") as file:
        file.write(f"{helper.pid}\\n")
    line(1, 0.1)
    time.sleep(600)
"""


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder to work in; what still runs at the end of a test is killed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(queue, "GRACE", 0.5)
    yield tmp_path
    for job in jobs.list_jobs():
        document = job.document()
        if document["state"] == "running" and document["pid"]:
            job_module.signal_group(document["pid"], signal.SIGKILL)
        job.cancel()
    wait_for(lambda: all(job.status()["state"] in jobs.ENDED for job in jobs.list_jobs()))


def start(*argv: str, title="a job") -> jobs.Job:
    return jobs.start([*argv], title, program=(sys.executable, os.path.abspath("program.py")))


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return value


def ended(job: jobs.Job) -> dict:
    return wait_for(lambda: (status := job.status())["state"] in jobs.ENDED and status)


def running(job: jobs.Job) -> dict:
    return wait_for(lambda: (status := job.status())["state"] == "running" and status["progress"] and status)


def pids() -> list[int]:
    return [int(line) for line in Path("pids").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def keeper_of(job: jobs.Job) -> int:
    return next(keeper.pid for folder, keeper in job_module.keepers if folder == job.folder)


def test_a_job_keeps_its_result_its_log_and_its_command(work, workspace_folder):
    job = start("ok", "two words", title="Compress")
    status = ended(job)
    assert (status["state"], status["exit"], status["reason"]) == ("done", 0, None)
    assert status["title"] == "Compress"
    assert status["queued"] <= status["started"] <= status["finished"]
    assert status["progress"]["done"] == 2
    assert "a warning of some library" in status["log_tail"]
    assert "work 2/100 w2" in status["log_tail"]
    expected = ["ok", "two words", "--progress", "json", "--json"]
    assert job.result() == {"argv": expected, "workspace": str(workspace_folder), "cwd": str(work)}
    assert job.command == "karipap ok 'two words'"
    assert jobs.get(job.id).status() == status, "another process sees the same"


def test_the_real_program_runs_from_any_folder(work):
    """With a verb that does not exist: argparse says so at once, without torch."""
    status = ended(jobs.start(["no-such-verb"], "typo"))
    assert (status["state"], status["exit"]) == ("failed", 2)
    assert "no-such-verb" in status["reason"]


def test_failures_say_why(work):
    bad, crash = ended(start("bad")), ended(start("crash"))
    assert (bad["state"], bad["exit"], bad["reason"]) == ("failed", 2, "Weight x holds NaN.")
    assert (crash["state"], crash["exit"]) == ("failed", -signal.SIGSEGV)
    assert "SIGSEGV" in crash["reason"]
    missing = ended(jobs.start(["x"], "no program", program=("/no/such/program",)))
    assert missing["state"] == "failed"
    assert "/no/such/program" in missing["reason"]


def test_a_verdict_of_not_ok_is_a_result_and_no_failure(work):
    job = start("verdict", "whole")
    status = ended(job)
    assert (status["state"], status["exit"], job.result()) == ("done", 1, {"ok": False})
    assert ended(start("verdict", "cut short"))["state"] == "failed"


def test_a_job_killed_for_memory_fails_and_resumes(work):
    job = start("sleep")
    running(job)
    os.kill(pids()[0], signal.SIGKILL)
    status = ended(job)
    assert (status["state"], status["exit"]) == ("failed", -signal.SIGKILL)
    assert "memory" in status["reason"]
    with pytest.raises(InputError, match="not done"):
        job.result()

    assert jobs.resume(job.id) == job
    status = running(job)
    assert (status["exit"], status["reason"], status["finished"]) == (None, None, None)
    Path("go").touch()
    assert ended(job)["state"] == "done"
    assert job.result() == {"went": True}
    assert len(pids()) == 2
    with pytest.raises(InputError, match="nothing to resume"):
        job.resume()


def test_cancel_lets_the_command_end_itself(work):
    job = start("sleep")
    running(job)
    jobs.cancel(job.id)
    status = job.status()
    assert status["state"] == "cancelled" or status["cancelling"]
    assert (ended(job)["state"], job.status()["exit"]) == ("cancelled", 130)
    job.cancel()
    assert job.status()["state"] == "cancelled"
    job.resume()
    assert running(job)["cancelling"] is False


def test_cancel_kills_a_command_that_will_not_end_with_all_its_processes(work):
    job = start("stubborn")
    running(job)
    job.cancel()
    status = ended(job)
    assert (status["state"], status["exit"]) == ("cancelled", -signal.SIGKILL)
    wait_for(lambda: len(pids()) == 2 and not any(map(alive, pids())))


def test_one_runs_and_the_others_wait_in_order(work):
    first = start("sleep")
    running(first)
    second, third, fourth = start("ok"), start("ok"), start("ok")
    assert [job.status()["position"] for job in (first, second, third, fourth)] == [None, 1, 2, 3]
    assert {job.status()["state"] for job in (second, third, fourth)} == {"queued"}
    assert [job.id for job in jobs.list_jobs()] == [job.id for job in (fourth, third, second, first)]
    wait_for(lambda: job_module.held(third.keeper_lock))
    os.kill(keeper_of(third), signal.SIGSTOP)  # it has not yet seen that it is to end
    third.cancel()
    assert fourth.status()["position"] == 2
    os.kill(keeper_of(third), signal.SIGCONT)
    assert ended(third)["state"] == "cancelled"
    assert ended(third)["started"] is None
    assert fourth.status()["position"] == 2
    Path("go").touch()
    assert [ended(job)["state"] for job in (first, second, fourth)] == ["done"] * 3
    assert first.status()["finished"] <= second.status()["started"]
    assert second.status()["finished"] <= fourth.status()["started"]
    assert len(pids()) == 3


def test_a_server_that_is_killed_takes_nothing_with_it(work, workspace_folder):
    """A second Python process plays the server; its death leaves a running and a queued job, and both end well."""
    server = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; sys.path.insert(0, sys.argv[1]); from karipap_core import jobs\n"
            "for verb in ('sleep', 'ok'):\n"
            "    print(jobs.start([verb], verb, program=(sys.executable, 'program.py')).id, flush=True)\n"
            "time.sleep(600)",
            str(REPOSITORY),
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    first, second = (jobs.get(server.stdout.readline().strip()) for _ in range(2))
    running(first)
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    server.stdout.close()
    assert first.status()["state"] == "running"
    assert second.status()["position"] == 1
    Path("go").touch()
    assert ended(first)["state"] == "done"
    assert first.result() == {"went": True}
    assert ended(second)["state"] == "done"


def test_a_machine_that_restarts_fails_what_ran_and_goes_on_with_the_queue(work):
    """Nothing survives a restart: keeper and command die at once, and so does the keeper of a queued job."""
    ran, waits = start("sleep"), start("ok")
    running(ran)
    for pid in (keeper_of(waits), keeper_of(ran), pids()[0]):
        os.kill(pid, signal.SIGKILL)
    status = wait_for(lambda: (status := ran.status())["state"] == "failed" and status)
    assert "restarted" in status["reason"]
    assert waits.status()["state"] == "queued"
    assert [job.id for job in jobs.list_jobs()] == [waits.id, ran.id]  # somebody looks: the queue goes on
    assert ended(waits)["state"] == "done"
    ran.resume()
    running(ran)


def test_a_lost_keeper_loses_neither_the_result_nor_the_turn(work):
    job, other = start("sleep"), start("ok")
    running(job)
    os.kill(keeper_of(job), signal.SIGKILL)
    wait_for(lambda: not job_module.held(job.keeper_lock))
    assert job.status()["state"] == "running"
    assert other.status()["state"] == "queued"
    Path("go").touch()
    assert ended(job)["state"] == "done"
    assert job.result() == {"went": True}
    assert ended(other)["state"] == "done"


def test_cancel_works_without_a_keeper(work):
    job = start("sleep")
    running(job)
    os.kill(keeper_of(job), signal.SIGKILL)
    wait_for(lambda: not job_module.held(job.keeper_lock))
    job.cancel()
    assert ended(job)["state"] == "cancelled"
    assert not alive(pids()[0])


def test_a_keeper_told_to_stop_records_it(work):
    """As at the shutdown of a container: the job is not cancelled, it can be resumed."""
    job = start("sleep")
    running(job)
    os.kill(keeper_of(job), signal.SIGTERM)
    status = ended(job)
    assert (status["state"], status["reason"]) == ("failed", jobs.LOST)
    assert not alive(pids()[0])


def test_many_resumes_at_once_start_one_process(work):
    job = start("bad")
    ended(job)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from karipap_core import jobs; jobs.resume(sys.argv[2])"
    package = str(REPOSITORY)
    document = json.loads(job.file.read_text())
    job.file.write_text(json.dumps(document | {"argv": ["sleep"]}))
    servers = [subprocess.Popen([sys.executable, "-c", code, package, job.id]) for _ in range(4)]
    assert [server.wait() for server in servers] == [0] * 4
    running(job)
    time.sleep(0.3)
    assert len(pids()) == 2


def test_time_left_is_what_the_last_line_said_less_the_time_since(work, monkeypatch):
    folder = Workspace().jobs_dir / "0"
    folder.mkdir(parents=True)
    (folder / "job.log").touch()
    written = (folder / "job.log").stat().st_mtime
    monkeypatch.setattr(job_module.time, "time", lambda: written + 4)
    eta = jobs.Job(folder).eta
    assert eta({"left": 16.0}) == pytest.approx(12)
    assert eta({"left": 3}) == 0, "never less than nothing"
    assert [eta(line) for line in ({"left": None}, {}, {"left": "soon"})] == [None] * 3


def test_what_somebody_has_seen_stays_seen_until_it_is_resumed(work):
    job = start("bad")
    ended(job)
    assert not job.seen
    job.see()
    assert jobs.get(job.id).seen
    job.resume()
    assert not job.seen


def test_a_long_list_reads_no_job_that_has_ended_twice(work, monkeypatch):
    job = start("ok")
    ended(job)
    for number in range(50):
        copy = Workspace().jobs_dir / f"20260101-000000-{number:06x}"
        copy.mkdir()
        (copy / "job.json").write_text(job.file.read_text())
    assert len(jobs.list_jobs()) == 51
    monkeypatch.setattr(job_module.schemas, "read", lambda *_: pytest.fail("read again"))
    assert [each.brief()["state"] for each in jobs.list_jobs()] == ["done"] * 51
    monkeypatch.undo()
    document = json.loads(job.file.read_text())
    job_module.write_json(job.file, document | {"title": "renamed"})
    assert job.brief()["title"] == "renamed"


def test_progress_of_an_earlier_start_is_not_shown_as_this_one(work):
    job = Workspace().jobs_dir / "0"
    job.mkdir(parents=True)
    entry = {"stage": "work", "done": 7, "total": 9, "item": "", "seconds": 1, "message": ""}
    lines = ["--- started 1", json.dumps(entry), '{"not": "progress"}', "[1, 2]", "--- started 2", "a\rb\rc"]
    (job / "job.log").write_text("\n".join(lines) + "\n")
    texts, progress = jobs.Job(job).log()
    assert progress == []
    assert texts[1] == "work 7/9"
    assert texts[-1] == "c"


def test_the_tail_of_a_long_log_begins_with_a_whole_line(work):
    job = Workspace().jobs_dir / "0"
    job.mkdir(parents=True)
    (job / "job.log").write_text("".join(f"line {number} of many\n" for number in range(40_000)))
    texts, _ = jobs.Job(job).log()
    assert texts[-1] == "line 39999 of many"
    assert texts[0].startswith("line ")
    assert 5_000 < len(texts) < 20_000


@pytest.mark.parametrize("name", ["", "..", "../../etc", "0/1", "nope", "20260101-000000-abcdef"])
def test_ids_from_web_addresses_find_jobs_and_nothing_else(work, name):
    with pytest.raises(InputError, match="no job"):
        jobs.get(name)
