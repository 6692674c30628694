"""A dashboard of its own, and a browser, for tests that a person could do by hand."""

import re
from contextlib import contextmanager
from pathlib import Path

from reliability.dashboard import served, to_page
from tests.helpers.paths import REPOSITORY

QUIET = ("404",)  # Streamlit looks for its own health address below each page's, and misses
UPGRADE = {  # headers that ask for a websocket
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
}

AT_REST = """() => {
  const app = document.querySelector("[data-testid=stApp]");
  const charts = [...document.querySelectorAll("[data-testid=stPlotlyChart]")];
  const still = app?.dataset.testScriptState === "notRunning" && !document.querySelector("[data-testid=stSkeleton]")
    && charts.every(chart => chart.querySelector(".main-svg"));
  if (!still) window.restsSince = null;
  return still && performance.now() - (window.restsSince ??= performance.now()) >= 250;
}"""

PATIENCE = 280_000  # milliseconds to wait for anything: how long it takes says how busy the machine is
REST = 6  # moments of 25 ms for which a finger rests: Chromium takes the speed from the last 100 ms
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


@contextmanager
def dashboard(script: Path | str, folder: Path, roots: str = "", flags: tuple[str, ...] = ()):
    """`served` for who needs its address alone."""
    with served(folder, script, roots, flags, REPOSITORY) as (address, _):
        yield address


class Reader:
    """A person at a browser: opens pages, waits until they stand still, and keeps what the console complained of."""

    def __init__(self, browser, address: str, **settings) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1400, "height": 950}} | settings)
        self.page, self.address, self.complaints = self.context.new_page(), address, []
        self.page.set_default_timeout(PATIENCE)
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def _heard(self, message) -> None:
        if message.type == "error" and not any(word in message.text for word in QUIET):
            self.complaints.append(message.text)

    def open(self, path: str = "/"):
        self.page.goto(self.address + path)
        self.still()
        if self.page.locator("[data-testid^=stTopNav]").count():  # on a busy machine the script may only begin now
            self.page.wait_for_selector(".k-title")
        return self.still()

    def still(self):
        """Waits until the script and all charts have been at rest for a moment, in which a click would have been heard;
        returns the page."""
        self.page.evaluate("window.restsSince = null")
        self.page.wait_for_function(AT_REST, polling=25)
        return self.page

    def go(self, page: str):
        to_page(self.page, page)
        return self.still()

    def text(self) -> str:
        return self.page.inner_text("[data-testid=stMain]")

    def click_cell(self, layer: int, role: int, layers: int, roles: int = 7) -> None:
        """A click in the middle of a cell of the profile's map."""
        plot = self.page.locator(".st-key-map .nsewdrag").first
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        at = box["x"] + box["width"] * (role + 0.5) / roles, box["y"] + box["height"] * (layer + 0.5) / layers
        self.page.mouse.move(*at)
        self.page.mouse.click(*at)
        self.still()

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self.context.close()


def value(slider) -> str:
    """Where a slider of the board stands; waits until it is drawn."""
    from playwright.sync_api import expect

    expect(slider).to_have_attribute("aria-valuenow", re.compile(r"\d"), timeout=PATIENCE)
    return slider.get_attribute("aria-valuenow")


def drag(page, slider, start: float, to: float) -> None:
    """Drags a slider of the board with the mouse, from one share of its width to another."""
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    middle = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + box["width"] * start, middle)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * to, middle, steps=8)
    page.mouse.up()


class Finger:
    """Real touches, as the browser's own gestures see them."""

    def __init__(self, page) -> None:
        self.page, self.chromium = page, page.context.new_cdp_session(page)

    def swipe(self, *places: tuple[float, float]) -> None:
        """The finger rests before it lifts, so that nothing slides on: who stops what slides taps nothing."""
        kinds = ["touchStart", *["touchMove"] * (len(places) + REST - 1)]
        for kind, (x, y) in zip(kinds, [*places, *[places[-1]] * REST], strict=True):
            self.chromium.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y}]})
            self.page.wait_for_timeout(25)
        self.chromium.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    def across(self, box: dict, dx: float, dy: float = 0, part: float = 0.5) -> None:
        x, y = box["x"] + part * box["width"], box["y"] + box["height"] / 2
        self.swipe(*((x + dx * k / 8, y + dy * k / 8) for k in range(9)))
