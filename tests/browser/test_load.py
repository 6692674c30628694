"""Several people at one dashboard, a short run of `make load`: three tabs, six reruns, a job running."""

import pytest

from reliability import load


def test_three_sessions_keep_their_drafts_and_nobody_cancels_anothers_job_unasked(chromium, tmp_path):
    found = load.measure(tmp_path, 3, 6, chromium, tell=lambda _: None)
    assert found.held(), found
    assert [reruns for reruns, _, _ in found.rows] == [3, 6]


def test_what_did_not_hold_is_said():
    """Each of the things that are looked for makes the run fail."""
    good = load.Findings(rows=[(100, 1.0, 100), (500, 2.0, 119)], asked=True)
    assert good.held() and good.growth() == pytest.approx(0.19)
    assert not load.Findings(rows=[(100, 1.0, 100), (500, 2.0, 121)], asked=True).held()
    assert not load.Findings(rows=good.rows, asked=False).held()
    assert not load.Findings(rows=good.rows, asked=True, mixed=["x"]).held()
    assert not load.Findings(rows=good.rows, asked=True, log=["x"]).held()
    line = "2026-01-01 ValueError: no"
    assert load.COMPLAINTS.search(line) and not load.COMPLAINTS.search("  You can now view your Streamlit app")
