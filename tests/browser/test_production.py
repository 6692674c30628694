"""The Production page in a real browser: from red to green by its own buttons, on jobs that really run."""

import pytest

from karipap_core.compressed.records import record
from karipap_core.reading import read_json
from karipap_core.workspace import Workspace
from tests.helpers import browser as shared
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of, plan_for


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A dashboard with one small model and one compressed folder, evaluated; shadow run and fallback are to do."""
    root = tmp_path_factory.mktemp("production")
    dense = make("llama", root / "models" / "tiny")
    folder = folder_of(dense, root / "run-a" / "model")
    plan = plan_for(dense)
    fine = {"text": {"name": "t", "sha256": "0" * 64}, "window": 32, "tokens": 64, "rise": 0.1}
    record(folder, "evaluation", fine, read_json(folder / "verify.json")["of"]["dense"])
    run = {
        "id": "run-a",
        "kind": "network",
        "method": "lowrank",
        "label": "lowrank, kept 0.8",
        "folder": str(folder),
        "model": plan.model,
        "plan": plan.to_json(),
        "kept": 0.8,
        "bytes_kept": 0.8,
    }
    Workspace(root / "workspace").new_run(run)
    with shared.dashboard(shared.REPOSITORY / "app.py", root, str(root / "models")) as address:
        yield address


def test_from_red_to_green_by_the_pages_own_buttons(browser, place):
    with shared.Reader(browser, place) as reader:
        page = reader.open("/checklist?model=tiny")
        assert "Not ready: 3 of 8" in reader.text()
        page.get_by_role("button", name="Test the fallback").click()
        page.get_by_text("5 steps passed").wait_for()
        reader.still()
        page.locator(".st-key-prompts textarea").fill("def main():\nx = 1")
        page.locator(".st-key-prompts textarea").press("Control+Enter")
        reader.still()
        page.get_by_role("button", name="Run both models").click()
        page.get_by_text("Ready: all items are green.").wait_for()  # several verbs run for it
        reader.still()
        assert page.locator(".k-items .k-green").count() == 8
        assert page.locator(".k-shadow").count() == 2 and page.locator(".k-shadow mark").count() > 0
    assert not reader.complaints


def test_on_a_narrow_screen_nothing_is_wider_than_the_screen(browser, place):
    with shared.Reader(browser, place, color_scheme="dark") as reader:
        reader.page.set_viewport_size({"width": 420, "height": 900})
        page = reader.open("/checklist?model=tiny")
        widest = page.evaluate(
            "Math.max(...[...document.querySelectorAll('[data-testid=stMain] .stElementContainer, .k-items *, "
            ".k-shadow *')].map(e => e.getBoundingClientRect().right))"
        )
        assert widest <= 420
    assert not reader.complaints
