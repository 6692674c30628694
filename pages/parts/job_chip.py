"""Jobs seen from everywhere: a chip in the top bar of every page, and what it opens."""

import html
import time
from pathlib import Path

import streamlit as st

from karipap_core import jobs
from karipap_core.errors import InputError
from karipap_core.jobs import ENDED
from pages.parts import job, results

OFTEN, SELDOM = 2.0, 6.0  # seconds between two looks: while something is active, and else
FORGOTTEN = 24 * 3600.0  # seconds after which a job that ended unseen is no news
MOST_SHOWN = 6
ORDER = ("running", "queued", "failed", "done")
SAID = {"running": "running", "queued": "waiting", "failed": "failed", "done": "done"}


def chip() -> None:
    """How many jobs run, wait, and have ended unseen. Looks by itself, often only while something is active."""
    st.html(Path(__file__).with_name("jobs.css"))
    active = any(brief["state"] not in ENDED for _, brief in looked_at())
    with st.container(key="k-jobs"):
        st.fragment(_draw, run_every=OFTEN if active else SELDOM)()


def looked_at() -> list[tuple[jobs.Job, dict]]:
    """Every job of the workspace with its `brief`, the one asked for last first."""
    found = []
    for each in jobs.list_jobs():
        try:
            found.append((each, each.brief()))
        except InputError:  # its folder was removed meanwhile
            continue
    return found


def news(found: list[tuple[jobs.Job, dict]]) -> list[tuple[jobs.Job, dict]]:
    """Those that are active, in the order in which they will end, then those that ended lately and nobody has seen."""
    active = [(each, brief) for each, brief in found if brief["state"] not in ENDED]
    lately = time.time() - FORGOTTEN
    ended = [
        (each, brief)
        for each, brief in found
        if brief["state"] in ("done", "failed") and (brief["finished"] or 0.0) > lately and not each.seen
    ]
    return [*sorted(active, key=lambda pair: pair[1]["position"] or 0), *ended]


def _draw() -> None:
    found = looked_at()
    fresh = news(found)
    with st.popover(label(fresh), key="jobs_open", on_change="rerun", type="tertiary") as opened:
        if opened.open:
            _content(found, fresh)


def label(fresh: list[tuple[jobs.Job, dict]]) -> str:
    """The counts in words: "1 running · 2 waiting"; "Jobs" where there is nothing to tell."""
    states = [brief["state"] for _, brief in fresh]
    counted = [f"{states.count(state)} {SAID[state]}" for state in ORDER if state in states]
    sign = "error" if "failed" in states else "progress_activity" if "running" in states else "task_alt"
    return f":material/{sign}: {' · '.join(counted) or 'Jobs'}"


def _content(found: list[tuple[jobs.Job, dict]], fresh: list[tuple[jobs.Job, dict]]) -> None:
    """The jobs that matter now; what has ended counts as seen from here on, and stays in the list while it is open."""
    shown = st.session_state.setdefault("jobs_shown", [])
    shown[:] = [each.id for each, _ in fresh] + [name for name in shown if name not in {each.id for each, _ in fresh}]
    by_id = {each.id: (each, brief) for each, brief in found}
    mine = [by_id[name] for name in shown if name in by_id][:MOST_SHOWN]
    mine = mine or found[:3]
    if not mine:
        st.caption("No job yet. Long work that you start is listed here, on every page.")
    for each, brief in mine:
        _one(each, brief)
    if st.button("All jobs", key="jobs_all", icon=":material/list:", type="tertiary"):
        alias = st.session_state.get("model")
        st.switch_page("pages/jobs.py", query_params={"model": alias} if alias else {})


def _one(each: jobs.Job, brief: dict) -> None:
    state = brief["state"]
    with st.container(key=f"k-chip-{each.id}", gap="xxsmall"):
        st.html(job.headline(brief))
        if state == "running":
            st.html(job.bar(each.status()))
        elif state == "failed":
            st.html(f'<p class="k-note k-reason">{html.escape(job.why(brief))}</p>')
        else:
            job.say_state(brief)
        if state in ENDED:
            each.see()
        if (to := results.place(each, brief)) is not None:
            sign = ":material/arrow_forward:"
            if st.button(to.label, key=f"chip_{each.id}", type="tertiary", icon=sign):
                results.go(to)
