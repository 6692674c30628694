"""What the audit of dependencies says, and how it ends: pip-audit's answers are made up here."""

import pytest

from reliability import audit

OFFLINE = ["pip-audit: its data cannot be reached from here: nothing was audited."]
CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
SKIPPED = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.13.0)"}
HOLE = {"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": "x"}


@pytest.mark.parametrize("found", [None, [], [SKIPPED, SKIPPED]])
def test_without_data_it_says_so_and_goes_on(found):
    """An index without data answers "not found" for all, which pip-audit calls no known vulnerabilities."""
    assert audit.verdict(found) == (OFFLINE, 0)


def test_what_is_known_fails_and_is_named():
    lines, status = audit.verdict([CLEAN, SKIPPED, {"name": "bad", "version": "2.0", "vulns": [HOLE]}])
    assert status == 1
    assert lines == [
        "bad 2.0: PYSEC-2026-1, mended in 2.1",
        "pip-audit: 2 packages audited, 1 known vulnerabilities; not in its data: torch",
    ]


def test_clean_packages_pass():
    assert audit.verdict([CLEAN]) == (["pip-audit: 1 packages audited, 0 known vulnerabilities"], 0)


@pytest.mark.parametrize("printed", ["", "no json", "{}", '{"dependencies": [{"name": "pip", "skip_reason": "x"}]}'])
def test_a_probe_that_learns_nothing_means_no_data(monkeypatch, capsys, printed):
    class Done:
        stdout = printed

    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: Done)
    assert audit.main() == 0 and capsys.readouterr().out.splitlines() == OFFLINE


def test_a_vulnerability_ends_the_command_with_1(monkeypatch, capsys):
    answers = ['{"dependencies": [{"name": "pip", "version": "24.0", "vulns": []}]}']
    answers.append('{"dependencies": [{"name": "bad", "version": "1", "vulns": [{"id": "X-1", "fix_versions": []}]}]}')

    class Done:
        def __init__(self, stdout: str) -> None:
            self.stdout = stdout

    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: Done(answers.pop(0)))
    assert audit.main() == 1
    assert "bad 1: X-1, mended in no release" in capsys.readouterr().out
