"""A model that vanishes under an open page, broken folders beside it, and another site that frames our pages."""

import functools
import http.server
import json
import os
import shutil
import threading

import pytest

from karipap_core import jobs
from karipap_core.workspace import Workspace
from tests.helpers import browser as shared


@pytest.fixture
def place(demo_model, tmp_path):
    """(address, folder of models, workspace): two copies of the demo model, and what breaks pages."""
    models = tmp_path / "models"
    for name in ("mine", "other"):
        shutil.copytree(demo_model, models / name, ignore=shutil.ignore_patterns("*.py"))
    (models / "deep").mkdir()
    (models / "deep" / "config.json").write_text('{"a":' * 70 + "1" + "}" * 70)
    shutil.copy(demo_model / "model.safetensors", models / "deep")
    (models / "way-out").symlink_to("/etc")
    (models / "pipe").mkdir()
    os.mkfifo(models / "pipe" / "model.safetensors")
    with shared.dashboard(shared.REPOSITORY / "app.py", tmp_path, str(models)) as address:
        yield address, models, Workspace(tmp_path / "workspace")


def test_a_vanished_model_keeps_its_name_and_the_next_click_starts_nothing(browser, place):
    address, models, workspace = place
    with shared.Reader(browser, address) as reader:
        page = reader.open("/plan?model=mine")
        shutil.rmtree(models / "mine")
        page.locator(".st-key-compress button").first.click()
        page.get_by_text("The model mine is gone: no folder of KARIPAP_MODEL_ROOTS has it.").wait_for()
        reader.still()
        assert jobs.list_jobs(workspace) == [] and not workspace.plans.exists()
        assert "mine (gone)" in page.locator(".st-key-k-bar").inner_text() and "model=mine" in page.url
        for title in ("Run", "Trade-off", "Deploy"):
            reader.go(title)
            assert "The model mine is gone" in reader.text() and "mine (gone)" in reader.text()
        page.get_by_role("button", name="mine (gone)").click()
        said = page.get_by_test_id("stCaptionContainer").filter(has_text="3 left out:").inner_text()
        assert "nests values more than 64 deep" in said and "leads out of the folders" in said and "named pipe" in said
        page.get_by_role("combobox", name="Model").click()
        page.get_by_role("option", name="other").click()
        page.wait_for_function("() => location.search.includes('model=other')")
        reader.still()
        assert "is gone" not in reader.text()
    assert not reader.complaints


def test_no_other_site_frames_a_page_or_opens_its_websocket(browser, place, tmp_path):
    """The other site is another port of this machine, as another person's would be."""
    address, *_ = place
    site = tmp_path / "site"
    site.mkdir()
    (site / "index.html").write_text(
        f"<iframe src='{address}/'></iframe><script>const s = new WebSocket('{address.replace('http', 'ws')}"
        "/_stcore/stream'); s.onopen = () => document.title = 'open'; s.onerror = () => document.title = 'refused'"
        "</script>"
    )
    quiet = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(site))
    quiet.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), quiet) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        page = browser.new_page()
        heard = []
        page.on("console", lambda message: heard.append(message.text))
        page.goto(f"http://127.0.0.1:{other.server_port}/")
        page.wait_for_function("() => document.title === 'refused'")
        for _ in range(50):
            if any("frame-ancestors" in text for text in heard):
                break
            page.wait_for_timeout(100)
        assert any("frame-ancestors" in text for text in heard), json.dumps(heard)
        page.close()
        other.shutdown()
