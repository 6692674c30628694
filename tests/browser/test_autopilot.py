"""The Autopilot page in a real browser: a small search started by its button, told while it runs, and cancelled."""

import shutil

import pytest

from tests.helpers import browser as shared


@pytest.fixture(scope="module")
def place(demo_model, tmp_path_factory):
    """A dashboard on a copy of the demo model, with what was measured on it."""
    folder = tmp_path_factory.mktemp("autopilot")
    shutil.copytree(demo_model, folder / "models" / "small", ignore=shutil.ignore_patterns("training"))
    with shared.dashboard(shared.REPOSITORY / "app.py", folder, str(folder / "models")) as address:
        yield address


def test_a_search_starts_tells_its_steps_and_can_be_cancelled(browser, place):
    with shared.Reader(browser, place) as reader:
        page = reader.open("/autopilot?model=small&evaluations=6")
        assert "Say what quality must hold" in reader.text()
        page.get_by_role("button", name="Find the plan").click()
        page.locator(".k-job").get_by_text("Autopilot for").wait_for()
        page.locator(".k-steps").get_by_text("Smallest size that is predicted to meet the line").wait_for()
        assert "autopilot_job=" in page.url
        page.get_by_role("button", name="Cancel").click()
        page.locator(".k-job").get_by_text("Cancelled").wait_for()
        assert "Screened" in page.locator(".k-steps").inner_text()
    assert not reader.complaints


def test_on_a_narrow_screen_nothing_is_wider_than_the_screen(browser, place):
    with shared.Reader(browser, place) as reader:
        reader.page.set_viewport_size({"width": 420, "height": 900})
        page = reader.open("/autopilot?model=small")
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('[data-testid=stMain] .stElementContainer')]"
            ".map(e => e.getBoundingClientRect().right))"
        )
        assert widest <= 420
    assert not reader.complaints
