"""A failure of a page that nobody foresaw: a sentence and the path of a log, where a traceback would stand."""

from pages.parts import model
from tests.helpers import app_page


def test_a_page_that_fails_names_its_log(only_llama, workspace_folder, monkeypatch):
    def fails():
        raise KeyError("gone")

    monkeypatch.setattr(model, "bar", fails)
    app = app_page.at("pages/networks.py", 60, {})
    said = app.error[0].value.replace("\\", "")
    assert "Something went wrong while drawing the page Networks: KeyError. Please report it with the log" in said
    newest = sorted((workspace_folder / "logs").iterdir(), key=lambda log: log.stat().st_mtime_ns)[-1]
    assert newest.name in said and "KeyError: 'gone'" in newest.read_text()
    assert app.exception  # so that a test which looks for one finds it
