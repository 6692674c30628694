"""Long work as the pages see it: start a command, follow it, cancel it, resume it. The job's id lives in the URL."""

import hashlib
import html
import re
import secrets
import time

import streamlit as st

from karipap_core import jobs
from karipap_core.errors import InputError
from karipap_core.jobs import ENDED
from pages.parts import common

JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")
WORDS = {
    "queued": "Waiting for its turn",
    "running": "Running",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


def me() -> str:
    """What tells this session from others on the jobs that it starts. The hash alone is written down: who reads a job's
    document cannot act as its starter."""
    name = st.session_state.setdefault("session_name", secrets.token_urlsafe(32))
    return hashlib.sha256(name.encode()).hexdigest()


def start(argv: list[str], title: str, name: str) -> None:
    """Starts a command as a job and puts its id in the URL as `name`; the job outlives this browser and this server."""
    try:
        job = jobs.start(argv, title, owner=me())
    except InputError as error:
        st.error(common.plain(error))
        return
    st.session_state[name] = job.id
    st.query_params[name] = job.id


def latest(argv: list[str]):
    """The job that was asked for last with exactly this command, or None: two browsers share one piece of work."""
    for job in jobs.list_jobs():
        if job.status()["argv"] == argv:
            return job
    return None


def followed(name: str):
    """The job whose id this session or the URL gives as `name`, or None. An id that is none is dropped."""
    job_id = st.session_state.get(name) or st.query_params.get(name, "")
    if JOB_ID.fullmatch(job_id) and job_id != st.session_state.get(f"{name}_closed"):
        try:
            job = jobs.get(job_id)
        except InputError:
            job = None
        if job is not None:
            st.session_state[name] = job_id
            if st.query_params.get(name) != job_id:
                st.query_params[name] = job_id
            return job
    forget(name)
    return None


def forget(name: str) -> None:
    """Stops following; the job itself goes on."""
    st.session_state.pop(name, None)
    st.query_params.pop(name, None)


def panel(job, name: str) -> None:
    """Progress, time left, log and the buttons of one job. Polls once a second while it runs; when the job ends, the
    whole page is drawn anew, once, so that it can show what came out."""
    state = job.status()["state"]
    st.fragment(_draw, run_every=None if state in ENDED else 1.0)(job, name, state)


def _draw(job, name: str, drawn_as: str) -> None:
    status = job.status()
    state = status["state"]
    if state in ENDED and drawn_as not in ENDED:
        st.rerun()
    with st.container(border=True, key=f"k-job-{name}"):
        progress = status["progress"] or {}
        head, buttons = st.columns([3, 2], vertical_alignment="center")
        head.html(_headline(status))
        with buttons.container(horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"):
            if state not in ENDED:
                _cancel_button(job, name, status["cancelling"])
            else:
                if state != "done" and st.button(
                    "Resume",
                    key=f"{name}_resume",
                    icon=":material/replay:",
                    help="Goes on from the finished weights on disk.",
                ):
                    job.resume()
                    st.rerun()
                if st.button("Close", key=f"{name}_close", type="tertiary"):
                    st.session_state[f"{name}_closed"] = job.id  # a fragment's rerun still sees the old URL
                    st.rerun()
        if state == "running":
            total = progress.get("total") or 0
            share = min(max(progress.get("done", 0) / total, 0.0), 1.0) if total else 0.0
            st.progress(share)
            st.html(_line(progress, status))
        elif state == "queued":
            ahead = (status["position"] or 1) - 1
            st.caption(f"One heavy job runs at a time; {ahead} before this one." if ahead else "Next in line.")
        elif state == "failed":
            st.error(common.plain(status["reason"] or "It ended without a reason; the end of its log is below."))
        elif state == "cancelled":
            st.caption("Stopped. Finished weights are on disk, and Resume goes on from there.")
        with st.expander("Log and command", key=f"{name}_log"):
            st.code(job.command, language="bash", wrap_lines=True)
            with st.container(height=230, border=False, autoscroll=True):
                st.code(status["log_tail"] or "Nothing yet.", language=None)
            st.caption("The job runs in a process of its own: reloading or closing this page does not stop it.")


def _cancel_button(job, name: str, cancelling: bool) -> None:
    """Cancels at once for who started the job, after a question for others: they may be looking at somebody's work."""
    asking = st.session_state.get(f"{name}_asking") == job.id and not cancelling
    if asking:
        st.markdown("Started by another session. Cancel it all the same?")
        if st.button("Cancel it", key=f"{name}_cancel_sure", icon=":material/stop_circle:"):
            job.cancel()
            st.rerun()
        if st.button("Let it go on", key=f"{name}_cancel_not", type="tertiary"):
            del st.session_state[f"{name}_asking"]
            st.rerun()
    elif st.button(
        "Cancelling …" if cancelling else "Cancel",
        key=f"{name}_cancel",
        icon=":material/stop_circle:",
        disabled=cancelling,
    ):
        if job.owner == me():
            job.cancel()
            st.rerun()
        st.session_state[f"{name}_asking"] = job.id
        st.rerun()


def _headline(status: dict) -> str:
    spent = ""
    if status["started"]:
        spent = common.seconds((status["finished"] or time.time()) - status["started"])
    state = status["state"]
    return (
        f'<p class="k-job k-{state}"><b>{html.escape(status["title"])}</b>'
        f"<span>{WORDS[state]}{', ' + spent if spent else ''}</span></p>"
    )


def _line(progress: dict, status: dict) -> str:
    """Stage, count and item on the left, time left on the right."""
    if not progress:
        return '<p class="k-progress"><span>Starting …</span></p>'
    stage, item = html.escape(str(progress.get("stage", ""))), html.escape(str(progress.get("item", "")))
    total = progress.get("total") or 0
    counted = f" {progress.get('done', 0):,} of {total:,}" if total else ""
    message = html.escape(str(progress.get("message", "")))
    left = status["eta_seconds"]
    remaining = "" if left is None else f"about {common.seconds(left)} left in this stage"
    return f'<p class="k-progress"><span>{stage}{counted}<i>{item}</i> {message}</span><span>{remaining}</span></p>'
