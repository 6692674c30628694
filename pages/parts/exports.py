"""Export for an engine: a run's folder as what vLLM, llama.cpp … load without Karipap, and what that changed."""

import html
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.exports import TARGETS
from karipap_core.exports.card import measured_in_words
from karipap_core.exports.export import record_of
from karipap_core.exports.exporter import exporter_named
from pages.parts import common, job

JOB = "take_job"  # shared with what else is written from a run: one at a time
DENSE = "dense"


def title(target: str) -> str:
    return "any engine, dense" if target == DENSE else exporter_named(target).title


def section(run: dict, folder: Path, zipped) -> None:
    """The choice of an engine, the button that writes for it, and what was written. zipped : draws the link to a folder
    of a run."""
    st.markdown("**Export for an engine**")
    with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
        target = st.selectbox(
            "Engine", [*TARGETS, DENSE], format_func=title, key="export_to", label_visibility="collapsed", width=330
        )
        there = folder.with_name(DENSE if target == DENSE else f"export-{target}")
        running = job.followed(JOB)
        busy = running is not None and running.status()["state"] not in job.ENDED
        pressed = st.button(
            "Write anew" if there.is_dir() and target != DENSE else "Export",
            key="export_write",
            icon=":material/output:",
            disabled=busy or (target == DENSE and there.is_dir()),
        )
    missing = None if target == DENSE else exporter_named(target).missing()
    if missing:
        st.caption(f"Writing it needs {' and '.join(missing)}: `pip install karipap[export]`.")
    measure = target != DENSE and st.checkbox(
        "Measure it in its engine",
        key="export_check",
        value=False,
        disabled=not exporter_named(target).runs_here(),
        help=_measuring(target),
    )
    if pressed:
        _start(run, folder, target, there, measure)
    if running is not None:
        job.panel(running, JOB)
    if not busy and there.is_dir():
        _written(run, target, there, zipped)


def _measuring(target: str) -> str:
    exporter = exporter_named(target)
    if exporter.runs_here():
        return "Loss on held-out text in that engine, beside Karipap's own folder on the same tokens."
    return (
        f"{exporter.engine} is not installed here. Where it is in an environment of its own: "
        "karipap export … --check --python FILE."
    )


def _start(run: dict, folder: Path, target: str, there: Path, measure: bool) -> None:
    if target == DENSE:
        argv = ["densify", str(folder), "--out", str(there)]
    else:
        argv = ["export", str(folder), "--to", target, "--out", str(there)]
        argv += ["--force"] if there.is_dir() else []
    argv += ["--check"] if measure else []
    job.start(argv, f"Export of {run['label']} for {title(target)}", JOB)
    st.rerun()


def _written(run: dict, target: str, there: Path, zipped) -> None:
    """What a folder that was written holds: sizes, what changed, what its engine said, how to run it."""
    if target == DENSE:
        st.caption("As large as the original, as good as this: for engines that no export is for.")
        zipped(run, DENSE, "Download the dense folder")
        st.code(str(there), language=None, wrap_lines=True)
        return
    found = record_of(there)
    if found is None:
        st.caption("What was written there does not say what it is: write it anew.")
        return
    measured = found.get("measured")
    said = [
        f"{common.size(found['bytes'])} of weights; {common.size(found['source_bytes'])} in Karipap's folder, "
        f"{common.size(found['dense_bytes'])} dense.",
        *found["summary"],
        *found["notes"],
        measured_in_words(measured, found["title"]) if measured else f"Not measured in {found['title']}.",
    ]
    st.html("".join(f'<p class="k-note">{html.escape(line)}</p>' for line in said))
    st.code(found["commands"], language=None, wrap_lines=True)
    zipped(run, there.name, "Download the export")
    with st.expander("Weight by weight", key="export_weights"):
        _weights(found["weights"])


def _weights(lines: list[dict]) -> None:
    rows = pd.DataFrame(
        {
            "Weight": [line["weight"] for line in lines],
            "As compressed": [line["says"] for line in lines],
            "In the engine": [line["stored"] for line in lines],
            "Rank": [line["rank"] or None for line in lines],
            "Error": [line["error"] for line in lines],
            "Bytes": [line["bytes"] for line in lines],
        }
    )
    st.dataframe(
        rows,
        hide_index=True,
        height=min(320, 38 + 35 * len(rows)),
        alt="How the export stores each weight",
        column_config={
            "Error": st.column_config.NumberColumn(format="%.1e", help="Relative error of the stored weight"),
            "Bytes": st.column_config.NumberColumn(format="localized"),
        },
    )
