"""Jobs: all long work of this workspace, the newest first, and one of them in full."""

import pandas as pd
import streamlit as st

from karipap_core.jobs import ENDED
from pages.parts import common, job, job_chip

FILTERS = {
    "all": "All",
    "running": "Running",
    "queued": "Waiting",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


def page() -> None:
    common.title(
        "Jobs",
        "Long work runs in processes of its own, one at a time, whatever page or browser is open. All of it is here, "
        "with its log, its result, and the very command.",
    )
    found = job_chip.looked_at()
    if not found:
        st.info("No job yet. What you measure, compress, heal or search for is listed here.")
        return
    chosen = job.followed("listed_job")
    if chosen is None:  # the one that runs, unless it was closed
        closed = st.session_state.get("listed_job_closed")
        chosen = next((each for each, brief in found if brief["state"] == "running" and each.id != closed), None)
    if chosen is not None:
        job.panel(chosen, "listed_job")
    states = [brief["state"] for _, brief in found]
    wanted = common.choose(
        st.segmented_control,
        "State",
        list(FILTERS),
        "state",
        "all",
        required=True,
        format_func=lambda key: f"{FILTERS[key]} {states.count(key) if key != 'all' else len(states)}",
        label_visibility="collapsed",
    )
    active = any(state not in ENDED for state in states)
    st.fragment(table, run_every=3.0 if active else None)(wanted)


def table(wanted: str) -> None:
    """The jobs of a state, a row each; a row that is pressed is shown in full above."""
    found = [pair for pair in job_chip.looked_at() if wanted in ("all", pair[1]["state"])]
    if not found:
        st.caption("None of them.")
        return
    rows = pd.DataFrame([_row(each, brief) for each, brief in found])
    ids = [each.id for each, _ in found]
    st.session_state["jobs_listed"] = ids
    st.dataframe(
        rows,
        hide_index=True,
        key=f"jobs_{wanted}",
        on_select=lambda: _pick(wanted),
        selection_mode="single-row",
        placeholder="",
        height=min(640, 38 + 35 * len(rows)),
        alt="All jobs of this workspace",
        column_config={
            "title": st.column_config.TextColumn("Job", width="medium"),
            "state": st.column_config.TextColumn("State", width="small"),
            "progress": st.column_config.ProgressColumn("Done", format="percent", min_value=0.0, max_value=1.0),
            "when": st.column_config.DatetimeColumn("Asked for", format="distance"),
            "took": st.column_config.TextColumn("Took", width="small"),
            "command": st.column_config.TextColumn("Command", width="large"),
        },
    )


def _row(each, brief: dict) -> dict:
    state = brief["state"]
    overall = round(each.status()["overall"] or 0.0, 2) if state == "running" else 1.0 if state == "done" else None
    said = f"Waiting ({brief['position']})" if state == "queued" else job.WORDS[state]
    return {
        "title": brief["title"],
        "state": said,
        "progress": overall,
        "when": pd.Timestamp(brief["queued"], unit="s", tz="UTC"),
        "took": job.took(brief),
        "command": each.command,
    }


def _pick(wanted: str) -> None:
    """Shows the row that was pressed in full."""
    rows = st.session_state[f"jobs_{wanted}"].selection.rows
    if rows and rows[0] < len(st.session_state["jobs_listed"]):
        st.session_state["listed_job"] = st.session_state["jobs_listed"][rows[0]]
        st.session_state.pop("listed_job_closed", None)


with common.plain_errors("drawing the jobs"):
    page()
