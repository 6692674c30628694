"""The chip of jobs on every page, and the page of all jobs."""

import sys
import time

import pytest

from karipap_core import jobs, schemas
from karipap_core.workspace import Workspace
from pages.parts import job_chip
from tests.helpers.app_page import words
from tests.helpers.opened import opened, sound

FAILS = (sys.executable, "-c", "import sys; print('error: the file is damaged.', file=sys.stderr); sys.exit(2)")
DONE = (sys.executable, "-c", 'print(\'{"id": "run-1", "folder": "/here/model"}\')')
LINE = (
    '{"stage": "refining", "done": 3, "total": 9, "item": "q", "seconds": 60, "message": "", '
    '"overall": 0.42, "left": 130.0}'
)
RUNS = (sys.executable, "-c", f"import sys, time; print('{LINE}', file=sys.stderr, flush=True); time.sleep(60)")


def ended(started: jobs.Job) -> jobs.Job:
    deadline = time.monotonic() + 60
    while started.brief()["state"] not in jobs.ENDED:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return started


@pytest.fixture
def mixed(profiled, tiny):
    """One job that failed, one that is done, one that runs and one that waits."""
    failed = ended(jobs.start(["verify", "folder"], "Verify <b>it</b>", program=FAILS))
    done = ended(jobs.start(["run", str(tiny), "--plan", "p.json"], "A run", program=DONE))
    runs = jobs.start(["plan", str(tiny), "--out", "x.json"], "A search", program=RUNS)
    waits = jobs.start(["claims", str(tiny)], "A claim", program=DONE)
    deadline = time.monotonic() + 60
    while runs.status()["overall"] is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    yield {"failed": failed, "done": done, "running": runs, "queued": waits}
    for each in jobs.list_jobs():
        each.cancel()
    for each in jobs.list_jobs():
        ended(each)


def test_the_chip_counts_what_is_active_and_what_ended_unseen(mixed):
    label = job_chip.label(job_chip.news(job_chip.looked_at()))
    assert label == ":material/error: 1 running · 1 waiting · 1 failed · 1 done"
    assert [each.id for each, _ in job_chip.news(job_chip.looked_at())][:2] == [mixed["running"].id, mixed["queued"].id]
    mixed["failed"].see()
    mixed["done"].see()
    assert job_chip.label(job_chip.news(job_chip.looked_at())) == ":material/progress_activity: 1 running · 1 waiting"


def test_without_jobs_it_says_so_little(profiled):
    assert job_chip.label(job_chip.news(job_chip.looked_at())) == ":material/task_alt: Jobs"


def test_every_page_has_the_chip_and_it_opens_what_matters(mixed):
    app = sound(opened("networks"))
    app.session_state["jobs_open"] = True
    app.run()
    said = words(app)
    assert "42% · about 3 min left" in said and 'value="0.4200"' in said
    assert "the file is damaged." in said and "Next in line." in words(app, ("caption", "markdown"))
    assert "Verify &lt;b&gt;it&lt;/b&gt;" in said and "<b>it</b>" not in said
    assert mixed["failed"].seen and mixed["done"].seen and not mixed["running"].seen
    labels = {each.label for each in app.button}
    assert {"See its point", "Open Plan", "Open Claims", "All jobs"} <= labels


def test_all_jobs_are_listed_the_newest_first_and_by_state(mixed):
    app = sound(opened("jobs"))
    table = app.dataframe[0].value
    assert list(table["title"]) == ["A claim", "A search", "A run", "Verify <b>it</b>"]
    assert list(table["state"]) == ["Waiting (1)", "Running", "Done", "Failed"]
    assert list(table["progress"])[1:3] == [0.42, 1.0]
    assert "A search" in words(app), "what runs is shown in full"
    app.session_state["state"] = "failed"
    assert list(sound(app.run()).dataframe[0].value["title"]) == ["Verify <b>it</b>"]


def test_a_failed_job_says_why_first_and_a_done_one_where_its_result_is(mixed):
    app = opened("jobs", listed_job=mixed["failed"].id)
    assert [error.value for error in app.error] == ["the file is damaged."]
    assert app.button(key="listed_job_resume")
    app = sound(opened("jobs", listed_job=mixed["done"].id))
    assert "/here/model" in words(app)
    assert app.button(key="listed_job_go").label == "See its point"
    assert mixed["done"].seen


def test_of_jobs_that_have_ended_no_file_is_read_twice(profiled, monkeypatch):
    first = ended(jobs.start(["run", "x"], "One", program=DONE))
    for number in range(400):
        folder = Workspace().jobs_dir / f"20260101-000000-{number:06x}"
        folder.mkdir()
        (folder / "job.json").write_text(first.file.read_text())
    first_look = job_chip.looked_at()
    reads = []
    monkeypatch.setattr(schemas, "read", lambda file, _name: reads.append(file))
    assert [brief for _, brief in job_chip.looked_at()] == [brief for _, brief in first_look]
    assert len(first_look) == 401 and not reads
