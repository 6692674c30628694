"""How long a person waits at the dashboard, in a browser, here and at another checkout of this project, by turns.

    python -m bench.pages [--against FOLDER] [--rounds 9]

Each server starts on the bundled model with an empty workspace of its own. By the clock, from the click or release to
the last of what it draws: first paint of a new browser, Profile → Plan, a click on the map, a released cell, a released
budget, Run → Trade-off. Behind each median stand the server's seconds of processor time, which a busy machine does not
stretch as much. The two checkouts take turns, round by round, so that both meet the same machine.
"""

import argparse
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from bench.chi_board import browser
from reliability.dashboard import ROOT, served, to_page

STILL = "document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"
NO_SKELETON = "!document.querySelector('[data-testid=stSkeleton]')"
DRAWN = {
    "map": "['map', 'detail'].every(key => document.querySelector(`.st-key-${key} .main-svg`))",
    "board": """[...document.querySelectorAll('.st-key-board *')].some(
        host => host.shadowRoot?.querySelectorAll('[role=slider][aria-valuenow]').length > 40)""",
    "curve": "document.querySelectorAll('.st-key-curve .scatterlayer .point').length > 50",
    "run": "document.querySelector('.k-title h1')?.innerText === 'Run'",
}


class Person:
    """One browser at one server, and how long each of its acts takes."""

    def __init__(self, browser, address: str, server: psutil.Process) -> None:
        self.browser, self.address, self.server = browser, address, server
        self.seconds: dict[str, list[float]] = {}
        self.cpu: dict[str, list[float]] = {}

    def waits(self, name: str, act, until: str) -> None:
        times = self.server.cpu_times()
        began = time.monotonic()
        act()
        self.page.wait_for_function(f"{STILL} && {NO_SKELETON} && ({until})", timeout=120_000)
        self.seconds.setdefault(name, []).append(time.monotonic() - began)
        after = self.server.cpu_times()
        self.cpu.setdefault(name, []).append(after.user + after.system - times.user - times.system)
        self.page.wait_for_timeout(600)  # what is drawn later is no part of the next act

    def drag(self, slider, to: float) -> None:
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        at = (
            float(slider.get_attribute("aria-valuenow")) / 100
            if slider.get_attribute("aria-label") == "budget"
            else 0.5
        )
        y = box["y"] + box["height"] / 2
        self.page.mouse.move(box["x"] + box["width"] * at, y)
        self.page.mouse.down()
        self.page.mouse.move(box["x"] + box["width"] * to, y, steps=6)

    def round(self, turn: int) -> None:
        context = self.browser.new_context(viewport={"width": 1400, "height": 950})
        self.page = page = context.new_page()
        page.set_default_timeout(120_000)
        self.waits("first paint", lambda: page.goto(self.address), DRAWN["map"])
        self.click_on_the_map(turn)
        self.waits("Profile → Plan", lambda: to_page(self.page, "Plan"), DRAWN["board"])
        for name, label, to in (("cell release", "layer 1 gate", 0.3), ("budget release", "budget", 0.55)):
            self.drag(page.get_by_role("slider", name=label, exact=True), to + 0.02 * (turn % 4))
            address = page.url
            self.waits(name, page.mouse.up, f"location.href !== {address!r}")
        to_page(page, "Run")
        page.wait_for_function(f"{STILL} && {DRAWN['run']}")
        page.wait_for_timeout(600)
        self.waits("Run → Trade-off", lambda: to_page(page, "Trade-off"), DRAWN["curve"])
        context.close()

    def click_on_the_map(self, turn: int) -> None:
        box = self.page.locator(".st-key-map .nsewdrag").first.bounding_box()
        at = box["x"] + box["width"] * (turn % 5 + 1.5) / 7, box["y"] + box["height"] * (turn % 4 + 0.5) / 6
        name = self.page.locator(".k-name").inner_text()
        self.page.mouse.move(*at)
        opened = f"document.querySelector('.k-name').innerText !== {name!r} && ({DRAWN['map']})"
        self.waits("map click", lambda: self.page.mouse.click(*at), opened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", type=Path, help="another checkout of this project")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    folders = {"this": ROOT} | ({"other": options.against.resolve()} if options.against else {})
    with ExitStack() as stack, browser() as chromium:
        people = {}
        for name, folder in folders.items():
            place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            address, server = stack.enter_context(served(place, checkout=folder))
            people[name] = Person(chromium, address, psutil.Process(server.pid))
        for person in people.values():  # the first look imports what later ones find
            person.round(0)
            person.cold = {name: times.pop() for name, times in person.seconds.items()}
            person.cpu.clear()
        for turn in range(1, options.rounds + 1):
            for person in people.values():
                person.round(turn)
        show(people, options.rounds)


def show(people: dict[str, Person], rounds: int) -> None:
    print(f"Median of {rounds} rounds, seconds by the clock (server's processor seconds; first time on a new server)")
    print(f"{'':18}" + "".join(f"{name:>32}" for name in people))
    for act in next(iter(people.values())).seconds:
        cells = []
        for person in people.values():
            wait, cpu = (statistics.median(each[act]) for each in (person.seconds, person.cpu))
            cells.append(f"{wait:.2f} ({cpu:.2f}; {person.cold[act]:.2f})")
        print(f"{act:18}" + "".join(f"{cell:>32}" for cell in cells))


if __name__ == "__main__":
    main()
