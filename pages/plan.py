"""Plan: the χ board, a table and the spectrum beside it, and what leads on from them."""

from pathlib import Path

import streamlit as st

from karipap_core.plan.kind import PREFIXES
from karipap_core.spectra.spectrum import METRICS
from pages.parts import chi_board, common, draft, model, plan_jobs, plan_session, plan_side, profiles, tables, terms

WORDS = (
    *("chi", "break_even", "kept", "bytes_kept", "budget", "dense", "locked", "cores", "damage", "rule", "calibrated"),
    *("predicted", "metric", "kfac", "lowrank", "mpo", "tree", "peps", "disentangled", "qlr", "auto", "quantized"),
    *("tt_embedding", "nats"),
)


def page() -> None:
    view = model.current(weights=False)
    common.title("Plan", "What every weight becomes. Drag a cell, a heading or the budget; all the figures follow.")
    if why := profiles.no_board(view):
        st.info(common.plain(why))
        return
    plan_jobs.follow_search(view)
    history = plan_session.opened(view)
    if gone := plan_session.state().get("gone"):
        st.error(common.plain(gone))
        st.button("Go on without it", key="without", on_click=plan_session.without)
        return
    if history is None:
        plan_jobs.nothing_yet(view)
        return
    st.html(Path(plan_side.__file__).with_name("plan.css"))
    workbench(view)
    terms.strip(*WORDS)


@model.fragment
def workbench(view) -> None:
    """Controls, board, table, spectrum. A release of the board, or an edit, re-runs only this."""
    with common.plain_errors("drawing the plan"):
        mine = plan_session.state()
        history = mine["history"]
        now = history.now
        found = tables.of(view, now)
        totals = chi_board.totals(found.rows, found.model, now.chi)
        controls(view, now, found)
        actions(view, history, found, totals)
        if error := mine.pop("error", None):
            st.error(common.plain(error))
        if said := mine.pop("said", None):
            st.info(said)
        with st.container(key="k-plan-columns"):
            left, right = st.columns([13, 8], gap="large")
        with left:
            board(history, found)
            plan_side.notes(view, now, found)
        with right:
            selected = plan_side.selected_row(found)
            plan_side.one_weight(view, now, found, selected)
            plan_side.table(history, found)
        plan_session.remember(view, now)


def controls(view, now: draft.Draft, found: tables.Tables) -> None:
    """The network, and folded behind a line that tells them the error, the formats, the rule and what the budget
    counts. They show the draft and write into it."""

    def chosen(field: str):
        def change() -> None:
            value = st.session_state[f"board_{field}"]
            value = None if value == "none" else value
            if value != getattr(plan_session.state()["history"].now, field):
                plan_session.rework(view, **{field: value})

        return change

    def widget(draw, label: str, options, field: str, **more) -> None:
        st.session_state[f"board_{field}"] = getattr(now, field) or "none"
        draw(label, options, key=f"board_{field}", on_change=chosen(field), **more)

    with st.container(horizontal=True, vertical_alignment="bottom", gap="small", key="k-plan-controls"):
        names = plan_session.NETWORK_SAYS
        widget(
            st.selectbox,
            "Network",
            tables.networks(),
            "network",
            width=190,
            filter_mode=None,
            format_func=lambda name: names.get(name, name),
            help=plan_jobs.NETWORK_HELP,
        )
        folded = st.expander(plan_side.settings_line(now), key="k-plan-settings")
    with folded, st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
        widget(
            st.segmented_control,
            "Error of",
            METRICS,
            "metric",
            format_func=plan_side.METRIC_SAYS.get,
            required=True,
            help="What χ singular values leave out is an error of the weights, of the layer's outputs on text, or "
            "(K-FAC) of the loss. Cores are fitted to it.",
        )
        widget(
            st.selectbox,
            "Store cores in",
            tables.FORMATS,
            "quantize",
            width=130,
            filter_mode=None,
            format_func=lambda name: "as stored" if name == "none" else name,
            help="What the numbers of cores, and of weights that stay whole, are rounded to; auto: whatever pays. A "
            "quantized number counts as its bits / 16.",
        )
        widget(
            st.selectbox,
            "Embedding",
            tables.EMBEDDINGS,
            "embedding",
            width=130,
            filter_mode=None,
            help="What the tables of tokens may become: as they are, low rank, or a tensor train.",
        )
        if now.metric != "weight" or found.calibration:  # a text is read
            widget(
                st.segmented_control,
                "Fitted behind",
                PREFIXES,
                "prefix",
                format_func=plan_side.PREFIX_SAYS.get,
                required=True,
                help="Each weight is fitted to what the dense model gives it, or to what it is given behind the "
                "weights cut before it, so that it makes good what these lose; compressing then runs the model. "
                "Auto: the second where numbers are stored in less than 8 bits. Predictions know nothing of it.",
            )
        rules = found.rules if now.rule in found.rules else (now.rule, *found.rules)
        widget(st.selectbox, "Rule", rules, "rule", width=150, filter_mode=None, help=plan_side.RULE_SAYS.get(now.rule))
        widget(
            st.segmented_control,
            "Budget counts",
            chi_board.UNITS,
            "unit",
            required=True,
            help="Kept parameters over parameters before, or bytes as stored over bytes before.",
        )
        widget(
            st.segmented_control,
            "of",
            plan_session.scopes(view),
            "scope",
            required=True,
            format_func=lambda scope: plan_side.SCOPE_SAYS.get(scope, scope),
            help="The whole model counts embedding, head and norms, which stay dense; the blocks are the weights here; "
            "with one tower's budget all other weights stay dense.",
        )
    if missing := plan_session.state().get("missing"):
        plan_jobs.not_measured(view, missing)


def actions(view, history: draft.History, found: tables.Tables, totals: dict) -> None:
    """Undo, redo, reset, locks; the file in and out; and the one step that most lead to."""
    now = history.now
    quiet = {"type": "tertiary", "width": "content"}
    with st.container(horizontal=True, vertical_alignment="center", gap="small", key="k-plan-actions"):
        first, last = history.at == 0, history.at + 1 == len(history.drafts)
        st.button("Undo", icon=":material/undo:", key="undo", on_click=history.undo, disabled=first, **quiet)
        st.button("Redo", icon=":material/redo:", key="redo", on_click=history.redo, disabled=last, **quiet)
        st.button(
            "Reset",
            icon=":material/restart_alt:",
            key="reset",
            on_click=plan_session.reset,
            args=(found,),
            help="Sets every χ by the rule at the last budget. Locks and choices made by hand are dropped.",
            **quiet,
        )
        st.button(
            "Unlock all" if now.locked else "Lock all",
            key="lock_all",
            on_click=plan_session.lock_all,
            args=(found,),
            icon=":material/lock_open:" if now.locked else ":material/lock:",
            help="A locked weight stays as it is when a heading or the budget is dragged.",
            **quiet,
        )
        st.space("stretch")
        plan_jobs.search(view, now, found)
        plan_jobs.import_plan(view)
        name = plan_jobs.name_box(view, now)
        st.download_button(
            "Export",
            lambda: plan_jobs.exported(view, now, found, totals, name),
            f"{name}.plan.json",
            "application/json",
            key="export_plan",
            on_click="ignore",
            icon=":material/download:",
            help="The plan as a file, under the name beside, as the command line reads it",
            **quiet,
        )
        # One primary button: where nothing was measured yet it is the one that measures.
        measured = found.calibration is not None and not plan_session.state().get("missing")
        weight = "primary" if measured else "secondary"
        if st.button("Compress & evaluate", type=weight, key="compress", icon=":material/play_arrow:"):
            plan_jobs.compress(view, now, found, totals, name)


def board(history: draft.History, found: tables.Tables) -> None:
    now = history.now
    shown = chi_board.board_state(
        found.rows,
        now,
        rule=found.kind,
        selected=st.session_state.get("weight"),
        told=plan_side.told(now, found),
        seq=history.seq,
        revision=history.revision,
    )

    def released() -> None:
        release = chi_board.read_release(st.session_state.board.get("board"), found.rows)
        if release is None or release.seq <= history.seq:
            return
        history.seq = release.seq
        if release.selected:
            st.session_state.weight = release.selected
        history.push(draft.released(history.now, release))

    def step(way: str) -> None:
        (history.undo if way == "undo" else history.redo)()

    chi_board.chi_board(found.table, shown, key="board", on_release=released, on_history=step)


with common.plain_errors("drawing the plan"):
    page()
