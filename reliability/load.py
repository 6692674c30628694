"""Twenty people at one dashboard: `make load`, or `python -m reliability.load [--sessions 20] [--reruns 500]`.

Starts the real dashboard with a workspace of its own, and so many tabs of Chromium, five to a browser's context, each
a session to Streamlit. Another starts a job and watches it; each then makes a draft of its own on the χ board, changes
it, leaves the page and comes back, in turns, while the job runs. A rerun is one such action, which makes Streamlit run
the page, or a part of it, for that session; parts that poll the job run besides and are not counted. Ends with status 1
where a session saw another's draft, the server's memory grew by 20 % or more from rerun 100 to the last, its log has an
error, or a job could be cancelled unasked.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from karipap_core import jobs
from karipap_core.reading import read_json
from karipap_core.workspace import Workspace
from reliability.dashboard import served, to_page

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WARM = 100  # reruns after which memory is compared: every page was drawn, and caches are full
MOST_GROWTH = 0.20
COMPLAINTS = re.compile(r"Traceback|Exception|Error\b|CRITICAL")
MODEL = "demo"
TABS = 5  # of one browser


@dataclass
class Findings:
    """What was seen: rows of the table (reruns, seconds, memory in bytes), and what was wrong."""

    rows: list[tuple[int, float, int]] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    asked: bool = False
    job: str = ""

    def growth(self, warm: int = WARM) -> float | None:
        """Growth of the server's memory from rerun `warm` to the last, as a fraction; None for too short a run."""
        before = next((memory for reruns, _, memory in self.rows if reruns >= warm), None)
        return None if before is None or len(self.rows) < 2 else self.rows[-1][2] / before - 1

    def held(self) -> bool:
        growth = self.growth()
        return not self.mixed and not self.log and self.asked and (growth is None or growth < MOST_GROWTH)


class Session:
    """One person's tab, and a draft at a size that nobody else has."""

    def __init__(self, context, address: str, number: int, drafts: Path):
        self.page = context.new_page()
        self.page.set_default_timeout(180_000)
        self.address, self.number, self.drafts = address, number, drafts
        self.budget = f"{0.5 + number / 100:.4f}"
        self.turn = 0

    def still(self) -> None:
        """Waits until the script has come to rest."""
        self.page.wait_for_timeout(100)
        self.page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]")

    def open(self, path: str) -> None:
        self.page.goto(self.address + path)
        self.page.wait_for_selector(".k-title")
        self.still()

    def go(self, title: str) -> None:
        to_page(self.page, title)
        self.page.wait_for_function("t => document.title.startsWith(t)", arg=title)
        self.still()

    def press(self, key: str) -> None:
        self.page.locator(f".st-key-{key} button").first.click()
        self.still()

    def act(self) -> None:
        """The next of a round of actions, each one rerun."""
        steps = (
            lambda: self.open(f"/plan?model={MODEL}&rule=uniform&budget={self.budget}"),
            lambda: self.press("lock_all"),
            lambda: self.press("undo"),
            lambda: self.press("redo"),
            lambda: self.go("Run"),
            lambda: self.go("Plan"),
            lambda: self.press("lock_all"),
            lambda: self.press("lock_all"),
        )
        steps[self.turn % len(steps) if self.turn < len(steps) else 1 + (self.turn - 1) % (len(steps) - 1)]()
        self.turn += 1

    def wrong(self, others: list["Session"]) -> list[str]:
        """What in this session's board is not its own."""
        if "/plan?" not in self.page.url:
            return []
        mine = asked(self.page.url, "budget")
        found = (
            [] if mine == self.budget else [f"session {self.number} sees a budget of {mine}, its own is {self.budget}"]
        )
        draft = asked(self.page.url, "draft")
        if draft:
            budget = read_json(self.drafts / f"{draft}.json")["budget"]
            if f"{budget:.4f}" != self.budget:
                found.append(f"session {self.number}'s draft {draft} has a budget of {budget}")
            if draft in {asked(other.page.url, "draft") for other in others if other is not self}:
                found.append(f"session {self.number} has a draft that another has too: {draft}")
        return found


def asked(url: str, name: str) -> str | None:
    found = re.search(rf"[?&]{name}=([^&]+)", url)
    return found[1] if found else None


def start_job(session: Session) -> str:
    """A real job from the page that starts it, of some minutes; its id."""
    session.open(f"/sensitivity?model={MODEL}&sens_tokens=32768")
    session.page.get_by_role("button", name="New measurement").click()
    session.page.locator(".st-key-sens_start button").click()
    session.page.wait_for_function("() => location.search.includes('sensitivity_job=')")
    session.still()
    return asked(session.page.url, "sensitivity_job") or ""


def cancelled_only_after_a_question(session: Session, job: jobs.Job) -> bool:
    """Whether a session that did not start the job is asked before it is cancelled, and can then."""
    session.open(f"/sensitivity?model={MODEL}&sensitivity_job={job.id}")
    session.press("sensitivity_job_cancel")
    session.page.get_by_text("Started by another session. Cancel it all the same?").wait_for()
    if job.cancel_file.exists() or job.status()["state"] not in ("queued", "running"):
        return False
    session.press("sensitivity_job_cancel_sure")
    for _ in range(100):
        if job.cancel_file.exists():
            return True
        time.sleep(0.1)
    return False


def measure(folder: Path, sessions: int, reruns: int, chromium: str, tell=print) -> Findings:
    """The whole of it, with what it leaves in `folder`."""
    from playwright.sync_api import sync_playwright

    found = Findings()
    workspace = Workspace(folder / "workspace")
    with served(folder) as (address, server), sync_playwright() as playwright:
        memory = psutil.Process(server.pid).memory_info
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        drafts = workspace.root / "drafts"
        size = {"viewport": {"width": 1300, "height": 900}}
        contexts = [browser.new_context(**size) for _ in range(-(-sessions // TABS))]
        people = [Session(contexts[number // TABS], address, number, drafts) for number in range(sessions)]
        first = Session(browser.new_context(**size), address, sessions, drafts)
        found.job = start_job(first)
        first.open(f"/run?model={MODEL}&job={found.job}")  # where the job alone is watched
        began = time.monotonic()
        for rerun in range(1, reruns + 1):
            person = people[rerun % sessions]
            person.act()
            found.mixed += person.wrong(people)
            if rerun % max(1, min(WARM, reruns // 2)) == 0 or rerun == reruns:
                found.rows.append((rerun, time.monotonic() - began, memory().rss))
                tell(f"{rerun:>7} {found.rows[-1][1]:>9.0f} {found.rows[-1][2] / 1e6:>9.0f}")
        for person in people:  # what each sees at the end, after all that the others did
            person.go("Plan")
            found.mixed += person.wrong(people)
        job = jobs.get(found.job, workspace)
        if job.status()["state"] not in ("queued", "running"):  # a quick machine
            found.job = start_job(first)
            job = jobs.get(found.job, workspace)
        found.asked = cancelled_only_after_a_question(people[0], job)
        browser.close()
    found.log = [
        line for line in (folder / "server.log").read_text("utf-8", "replace").splitlines() if COMPLAINTS.search(line)
    ]
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--reruns", type=int, default=500)
    given = parser.parse_args(arguments)
    names = (os.environ.get("KARIPAP_CHROMIUM"), *BROWSERS)
    chromium = next((path for name in names if name and (path := shutil.which(name))), None)
    if chromium is None:
        print("error: no Chromium here (apt-get install chromium, or name one in KARIPAP_CHROMIUM)", file=sys.stderr)
        return 2
    print(f"{given.sessions} sessions in Chromium, {given.reruns} reruns, a job running")
    print(" reruns   seconds  server MB")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = measure(Path(folder), given.sessions, given.reruns, chromium)
    growth = found.growth()
    print(f"drafts of others seen: {len(found.mixed)}", *found.mixed[:5], sep="\n  ")
    print("memory grew by " + ("(too short a run)" if growth is None else f"{growth:.1%} from rerun {WARM} on"))
    print(f"errors in the server's log: {len(found.log)}", *found.log[:5], sep="\n  ")
    print("a job of another session was " + ("cancelled after a question only" if found.asked else "cancelled unasked"))
    print("held" if found.held() else "did not hold")
    return 0 if found.held() else 1


if __name__ == "__main__":
    sys.exit(main())
