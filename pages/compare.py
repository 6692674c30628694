"""Compare: two plans, runs or the dense model side by side; and the report of all runs."""

import html

import pandas as pd
import streamlit as st

from karipap_core.cli.tables import compare
from karipap_core.errors import InputError
from karipap_core.tradeoffs import compare as core
from karipap_core.tradeoffs import sides
from pages.parts import common, model, naming, runs

DENSE = "dense"


def page() -> None:
    view = model.current()
    common.title(
        "Compare", "Two plans or measured models side by side: every weight, every figure with its interval, and texts."
    )
    measured, plans = runs.of_model(view), runs.plans(view)
    runs.say_passed_over(runs.passed_over())
    options = choices(measured, plans)
    if len(options) < 2:
        for gone in filter(None, (common.missing(name, options) for name in "ab")):
            common.say_gone("plan or run", gone)
        st.info("Nothing to compare yet. Save a plan on the Plan page, or measure one on the Run page.")
        return
    left, right = st.columns(2, gap="large")
    names = list(options)
    third = names[min(2, len(names) - 1)]
    a, gone_a = common.asked(left.selectbox, "A", names, "a", names[1], "plan or run", format_func=options.get)
    b, gone_b = common.asked(right.selectbox, "B", names, "b", third, "plan or run", format_func=options.get)
    if gone_a or gone_b:
        pass  # said above
    elif a == b:
        st.info("A and B are the same: choose two.")
    else:
        with common.plain_errors("comparing"):
            both(core.compare(side(a, view, measured, plans), side(b, view, measured, plans)))
    if measured:
        report(view, measured)


def choices(measured: list[dict], plans: dict) -> dict[str, str]:
    """Key (in the URL) → words of everything that can be chosen: the dense model, newest runs, plans."""
    found = {DENSE: "Dense model"}
    found |= {f"run:{run['id']}": f"Run: {run['label']}" for run in reversed(measured) if run.get("plan")}
    found |= {f"plan:{name}": f"Plan: {runs.shown(name)} ({runs.describe(plan)})" for name, plan in plans.items()}
    return found


def side(chosen: str, view, measured: list[dict], plans: dict) -> sides.Side:
    kind, _, name = chosen.partition(":")
    if kind == DENSE:
        return sides.of_checkpoint(view.checkpoint)
    if kind == "plan":
        return sides.of_plan(name, plans[name])
    return sides.of_run(next(run for run in measured if run["id"] == name))


def both(document: dict) -> None:
    st.html(f'<p class="k-verdict">{html.escape(core.verdict(document))}</p>')
    figures(document)
    weights(document)
    prompts(document)
    for note in document["notes"]:
        st.html(f'<p class="k-note">{html.escape(note)}</p>')


def figures(document: dict) -> None:
    """Every figure of both, the difference and its interval."""
    rows = [
        {
            "figure": row["label"],
            **{key: row[key] for key in compare.COLUMNS},
            "interval": compare.said(row),
            "better": (row["better"] or "").upper(),
        }
        for row in document["metrics"]
    ]
    if not rows:
        return
    shown = [row | {key: compare.figure(row, key) for key in compare.COLUMNS} for row in document["metrics"]]
    table(
        pd.DataFrame(rows).assign(**{key: [row[key] for row in shown] for key in compare.COLUMNS}),
        "Figures",
        "compare-figures",
        {
            "figure": "",
            "a": "A",
            "b": "B",
            "difference": "B − A",
            "interval": "95 % interval of B − A",
            "better": "Better",
        },
        "Intervals are paired: both were measured on the same tokens, and documents are resampled. One that holds 0 is "
        "no measurable difference.",
        pd.DataFrame(rows),
    )


def weights(document: dict) -> None:
    """A row a weight: what each makes of it, sizes and damage."""
    only = st.toggle(
        f"Only the {document['totals']['changed']} of {len(document['layers'])} weights that differ", True, key="differ"
    )
    rows = []
    for row in document["layers"]:
        if only and row["same"]:
            continue
        a, b = ({"parameters": None, "bytes": None, "damage": None} | (row[key] or {}) for key in "ab")
        sizes = (a["parameters"], b["parameters"])
        rows.append(
            {
                "name": row["name"],
                "layer": row["layer"],
                "role": row["role"],
                "a": compare.what(row["a"] or {}),
                "b": compare.what(row["b"] or {}),
                "parameters_a": a["parameters"],
                "parameters_b": b["parameters"],
                "change": None if None in sizes else sizes[1] - sizes[0],
                "bytes_a": a["bytes"],
                "bytes_b": b["bytes"],
                "damage_a": a["damage"],
                "damage_b": b["damage"],
            }
        )
    if not rows:
        st.html('<p class="k-note">Both make the same of every weight.</p>')
        return
    table(
        pd.DataFrame(rows),
        "Weights",
        "compare-weights",
        {
            "name": "Weight",
            "layer": "Layer",
            "role": "Role",
            "a": "A",
            "b": "B",
            "parameters_a": "Parameters A",
            "parameters_b": "Parameters B",
            "change": "B − A",
            "bytes_a": "Bytes A",
            "bytes_b": "Bytes B",
            "damage_a": "Damage A",
            "damage_b": "Damage B",
        },
        "Bytes: 2 for each number that is not quantized. Damage: predicted divergence when this weight alone changes, "
        "nats a token, where this model has been calibrated.",
    )


FORMATS = {"parameters": "localized", "change": "localized", "bytes": "bytes", "damage": "%.4f"}


def table(
    frame: pd.DataFrame, heading: str, file: str, labels: dict[str, str], says: str, data: pd.DataFrame | None = None
) -> None:
    """A table with its heading, its CSV (of `data` where the table shows words) and a line that defines its columns;
    empty columns are left out."""
    frame = frame[[column for column in frame.columns if frame[column].notna().any()]]
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader(heading, anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame if data is None else data, f"karipap-{file}", f"{file}-csv")
    form = {
        column: st.column_config.NumberColumn(labels[column], format=FORMATS.get(column.rpartition("_")[0] or column))
        if pd.api.types.is_numeric_dtype(frame[column])
        else st.column_config.TextColumn(labels[column])
        for column in frame.columns
    }
    st.dataframe(
        frame,
        column_config=form,
        hide_index=True,
        height=min(460, 38 + 35 * len(frame)),
        placeholder="",
        key=file,
        alt=heading,
    )
    st.html(f'<p class="k-note">{html.escape(says)}</p>')


def prompts(document: dict) -> None:
    """What the dense model, A and B write after the same prompt, where shadow runs are on file."""
    if not document["prompts"]:
        return
    st.subheader("Prompts", anchor=False)
    for row in document["prompts"]:
        st.code(row["prompt"], language=None, wrap_lines=True)
        for column, (name, text) in zip(
            st.columns(3), (("Dense", row["dense"]), ("A", row["a"]), ("B", row["b"])), strict=True
        ):
            column.caption(name)
            column.code(text if text is not None else "no shadow run", language=None, wrap_lines=True)


def report(view, measured: list[dict]) -> None:
    """The report of every run of this model, made when it is asked for."""

    def written() -> str:
        from karipap_core.plan.document import measured_model
        from karipap_core.reports.html import page as whole
        from karipap_core.reports.report import describe, profile_of

        try:
            return whole(describe(measured), profile_of(measured_model(view.checkpoint)))
        except InputError as error:
            return f"<!DOCTYPE html><title>No report</title><p>{html.escape(str(error))}</p>"

    st.subheader("Report", anchor=False)
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.download_button(
            "Download the report",
            written,
            f"karipap-{naming.file_name(view.checkpoint.name, 'report')}.html",
            "text/html",
            key="report",
            on_click="ignore",
            icon=":material/description:",
        )
        many = len(measured)
        st.html(
            f'<p class="k-note">The {many} measured model{"" if many == 1 else "s"} of this checkpoint as one file of '
            "5 MB that opens without a network: figures, plans, data hashes and commands. "
            "<code>karipap report</code> also writes CSV, JSON and the plans.</p>"
        )


with common.plain_errors("drawing the comparison"):
    page()
