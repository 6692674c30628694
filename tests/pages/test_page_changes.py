"""Requests of a page that is being left, given to Streamlit's own queue in the order in which they come."""

from types import SimpleNamespace

import pytest
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData, ScriptRequests, ScriptRequestType

from pages.parts import page_changes

CHIP = {"fragment_id": "chip", "is_auto_rerun": True}


@pytest.fixture
def queue(monkeypatch):
    """A queue of requests, at whose other end the page "run" has been drawn."""
    monkeypatch.setattr(ScriptRequests, "request_rerun", ScriptRequests.request_rerun)
    monkeypatch.setattr(ScriptRequests, "on_scriptrunner_ready", ScriptRequests.on_scriptrunner_ready)
    page_changes.hold()
    page_changes.hold()  # whoever imports app.py calls it: nothing is wrapped twice
    drawn = SimpleNamespace(page_script_hash="run")
    monkeypatch.setattr(page_changes, "get_script_run_ctx", lambda suppress_warning: drawn)
    return ScriptRequests()


def test_a_click_on_a_page_is_not_undone_by_a_look_of_the_page_before(queue):
    assert queue.request_rerun(RerunData(page_script_hash="profile"))
    assert queue.request_rerun(RerunData(page_script_hash="tradeoff", **CHIP))
    asked = queue.on_scriptrunner_yield()
    assert asked.rerun_data.page_script_hash == "profile" and not asked.rerun_data.fragment_id_queue
    assert queue.on_scriptrunner_yield() is None


def test_a_click_on_a_page_is_not_undone_by_a_script_that_draws_its_own_page_anew(queue):
    """`st.rerun` where a job has ended: what waits is the click, and stays it."""
    assert queue.request_rerun(RerunData(page_script_hash="profile"))
    assert queue.request_rerun(RerunData(page_script_hash="run"))
    assert queue.on_scriptrunner_yield().rerun_data.page_script_hash == "profile"


def test_a_script_may_lead_to_another_page_while_a_press_on_its_own_waits(queue):
    assert queue.request_rerun(RerunData(page_script_hash="run"))
    assert queue.request_rerun(RerunData(page_script_hash="plan"))
    assert queue.on_scriptrunner_yield().rerun_data.page_script_hash == "plan"


def test_of_two_clicks_the_later_one_counts(queue, monkeypatch):
    """Also where it leads back: a browser asks outside of any script."""
    monkeypatch.setattr(page_changes, "get_script_run_ctx", lambda suppress_warning: None)
    assert queue.request_rerun(RerunData(page_script_hash="profile"))
    assert queue.request_rerun(RerunData(page_script_hash="run"))
    assert queue.on_scriptrunner_yield().rerun_data.page_script_hash == "run"


def test_a_look_of_the_page_before_is_dropped_once_another_page_is_drawn(queue):
    assert queue.request_rerun(RerunData(page_script_hash="plan", **CHIP))
    assert queue.on_scriptrunner_ready().type is ScriptRequestType.STOP


def test_looks_of_the_page_in_view_and_changes_of_page_go_through(queue):
    assert queue.request_rerun(RerunData(page_script_hash="run", **CHIP))
    assert queue.request_rerun(RerunData(page_script_hash="run", fragment_id="panel"))
    asked = queue.on_scriptrunner_ready()
    assert asked.type is ScriptRequestType.RERUN and asked.rerun_data.fragment_id_queue == ["chip", "panel"]
    assert queue.request_rerun(RerunData(page_script_hash="plan"))
    assert queue.on_scriptrunner_ready().rerun_data.page_script_hash == "plan"


@pytest.mark.parametrize("look", [CHIP, {}], ids=["a look", "st.rerun"])
def test_without_it_streamlit_loses_the_click(look):
    """What `hold` is for; where this fails, a newer Streamlit needs it no more."""
    queue = ScriptRequests()
    request = getattr(ScriptRequests.request_rerun, "__wrapped__", ScriptRequests.request_rerun)
    request(queue, RerunData(page_script_hash="profile"))
    request(queue, RerunData(page_script_hash="tradeoff", **look))
    asked = queue.on_scriptrunner_yield().rerun_data
    assert (asked.page_script_hash, asked.fragment_id_queue) == ("tradeoff", [])
