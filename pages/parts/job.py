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
from karipap_core.terminal import about
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
        if job.document()["argv"] == argv:
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
    st.session_state.pop(f"{name}_closing", None)
    st.query_params.pop(name, None)


def panel(job, name: str) -> None:
    """Progress, time left, log and the buttons of one job, and where its result is. Polls once a second while it runs;
    when the job ends, the whole page is drawn anew, once, so that it can show what came out."""
    state = job.brief()["state"]
    st.fragment(_draw, run_every=None if state in ENDED else 1.0)(job, name, state)


def _draw(job, name: str, drawn_as: str) -> None:
    if st.session_state.pop(f"{name}_closing", False):
        st.rerun()
    status = job.status()
    state = status["state"]
    if state in ENDED:
        if drawn_as not in ENDED:
            st.rerun()
        job.see()
    with st.container(border=True, key=f"k-job-{name}"):
        head, buttons = st.columns([3, 2], vertical_alignment="center")
        head.html(headline(status))
        key = f"k-{'ended' if state in ENDED else 'going'}-{name}"
        with buttons.container(
            key=key, horizontal=True, horizontal_alignment="right", vertical_alignment="center", gap="small"
        ):
            if state not in ENDED:
                _cancel_button(job, name, status["cancelling"])
            else:
                _buttons_of_ended(job, name, status)
        if state == "failed":
            st.error(common.plain(why(status)))
        say_state(status)
        if state == "done":
            _where(job, status)
        with st.expander("Log and command", key=f"{name}_log"):
            st.code(job.command, language="bash", wrap_lines=True)
            with st.container(height=230, border=False, autoscroll=True):
                st.code(status["log_tail"] or "Nothing yet.", language=None)
            st.caption("The job runs in a process of its own: reloading or closing this page does not stop it.")


def _buttons_of_ended(job, name: str, status: dict) -> None:
    """Close, and before it, which the style sheet turns round, Resume and the page with the result: Close takes the
    place of Cancel, which stays on the screen until the page is drawn, and would move what a pointer is on."""
    from pages.parts import results  # it knows the models, whose page follows jobs

    st.button("Close", key=f"{name}_close", type="tertiary", on_click=_close, args=(job.id, name))
    if status["state"] != "done" and st.button(
        "Resume", key=f"{name}_resume", icon=":material/replay:", help="Goes on from the finished weights on disk."
    ):
        job.resume()
        st.rerun()
    to = results.place(job, status)
    here = to is not None and name in to.query  # its own page, which shows the result below
    if to is not None and not here and st.button(to.label, key=f"{name}_go", icon=":material/arrow_forward:"):
        results.go(to)


def _close(job_id: str, name: str) -> None:
    """Before anything is drawn: what looked for the job's end may ask for the whole page first, and a click would be
    lost."""
    st.session_state[f"{name}_closed"] = job_id  # a fragment's rerun still sees the old URL
    st.session_state[f"{name}_closing"] = True


def _where(job, status: dict) -> None:
    """The path of what a finished job wrote."""
    from pages.parts import results

    if path := results.path(job, status):
        st.html(f'<p class="k-note">On disk: <span class="k-name">{html.escape(path)}</span></p>')


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


# ---- one job in words -------------------------------------------------------------------------------------------


def took(status: dict) -> str:
    """For how long it has run, or ran; "" where it never did."""
    if not status["started"]:
        return ""
    return common.seconds((status["finished"] or time.time()) - status["started"])


def headline(status: dict) -> str:
    """Its title, its state in words and how long it took."""
    state, spent = status["state"], took(status)
    said = "Cancelling" if status["cancelling"] else WORDS[state]
    return (
        f'<p class="k-job k-{state}"><b>{html.escape(status["title"])}</b>'
        f"<span>{said}{', ' + spent if spent else ''}</span></p>"
    )


def why(status: dict) -> str:
    """Why a job failed, in a sentence."""
    return status["reason"] or "It ended without a reason; the end of its log says more."


def say_state(status: dict) -> None:
    """The bar of a job that runs, the place of one that waits, what to do about one that was stopped."""
    if status["state"] == "running":
        st.html(bar(status))
    elif status["state"] == "queued":
        ahead = (status["position"] or 1) - 1
        st.caption(f"One heavy job runs at a time; {ahead} before this one." if ahead else "Next in line.")
    elif status["state"] == "cancelled":
        st.caption("Stopped. Finished weights are on disk, and Resume goes on from there.")


def bar(status: dict) -> str:
    """One bar for the whole job, which never goes back: below it the stage on the left, the time left on the right.

    While nothing says how long the work will be, the bar moves without an end.
    """
    overall, left = status["overall"], status["eta_seconds"]
    progress = status["progress"] or {}
    share = "" if overall is None else f' value="{overall:.4f}"'
    percent = "" if overall is None else f"{overall:.0%}"
    remaining = " · ".join(filter(None, (percent, "" if left is None else f"about {about(left)} left")))
    return (
        f'<progress class="k-bar" max="1"{share} aria-label="Progress of {html.escape(status["title"])}"></progress>'
        f'<p class="k-progress"><span>{stage(progress)}</span><span>{remaining}</span></p>'
    )


def stage(progress: dict) -> str:
    """The present stage, its count and its item, as HTML."""
    if not progress:
        return "Starting …"
    total = progress.get("total") or 0
    counted = f" {progress.get('done', 0):,} of {total:,}" if total else ""
    item, message = (html.escape(str(progress.get(key, ""))) for key in ("item", "message"))
    return f"{html.escape(str(progress.get('stage', '')))}{counted}<i>{item}</i> {message}"
