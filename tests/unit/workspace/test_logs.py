"""Logs of failures that nobody foresaw."""

import tempfile
from pathlib import Path

import pytest

from karipap_core.cli import frame, registry
from karipap_core.version import __version__
from karipap_core.workspace import logs


def failure() -> ValueError:
    try:
        raise ValueError("somewhere")
    except ValueError as error:
        return error


def test_a_log_holds_command_versions_and_traceback(workspace_folder):
    file = logs.keep_log(failure(), ["karipap", "plan", "a b"])
    text = file.read_text()
    assert file.parent == workspace_folder / "logs"
    assert text.startswith(f"karipap {__version__}: 'karipap' 'plan' 'a b'\n")
    assert "python: " in text and "Traceback" in text and text.rstrip().endswith("ValueError: somewhere")
    assert file.stat().st_mode & 0o077 == 0


def test_the_newest_logs_stay(workspace_folder, monkeypatch):
    monkeypatch.setattr(logs, "KEPT", 3)
    (workspace_folder / "logs").mkdir()
    (workspace_folder / "logs" / "notes.log").touch()  # somebody else's
    written = [logs.keep_log(failure(), []) for _ in range(5)]
    assert len([*(workspace_folder / "logs").glob("karipap-*.log")]) == 3
    assert written[-1].exists() and (workspace_folder / "logs" / "notes.log").exists()


def test_without_a_workspace_logs_go_to_the_temporary_folder(workspace_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    workspace_folder.rmdir()
    workspace_folder.touch()  # no folder can be made below a file
    assert logs.keep_log(failure(), []).parent == tmp_path
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(workspace_folder / "nowhere"))
    assert logs.keep_log(failure(), []) is None


def test_a_verb_that_fails_names_its_log(workspace_folder, capsys, monkeypatch):
    monkeypatch.setattr(registry, "VERBS", dict(registry.VERBS))

    def trial(args, progress):
        raise KeyError("gone")

    registry.verb("tries", "example", str)(trial)
    assert frame.main(["trial"]) == 1
    said = capsys.readouterr().err
    (log,) = (workspace_folder / "logs").iterdir()
    assert said == f"error: KeyError: 'gone' (unforeseen: please report it with the log {log})\n"
    assert "'karipap' 'trial'" in log.read_text() and "KeyError: 'gone'" in log.read_text()


@pytest.mark.parametrize("written", [True, False])
def test_the_sentence_stays_one_line_without_a_log(written, workspace_folder, tmp_path, monkeypatch):
    if not written:
        monkeypatch.setattr(logs, "_write", _full)
    assert "\n" not in frame._in_a_line(ValueError("a\nb"), [])


def _full(folder: Path, text: str) -> Path:
    raise OSError("No space left on device")
