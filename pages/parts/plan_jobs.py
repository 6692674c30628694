"""What leads on from the board: the plan's file in and out, jobs that measure, and the run."""

import json

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.plan.budget import SCOPES
from karipap_core.plan.document import Plan
from karipap_core.workspace import Workspace, new_id
from karipap_core.workspace.names import clean
from pages.parts import common, draft, job, naming, plan_session, plan_side, profiles, runs, tables, texts

NETWORK_HELP = (
    "What a weight becomes. auto lets every weight, or group of weights, have the network and the format that lose "
    "least for their bytes."
)
MEASURES = {"gradients": "from gradients", "all": "every weight"}
MEASURE_HELP = (
    "From gradients: one pass forwards and backwards estimates what every cut costs, and a handful of cuts is measured "
    "to set the scale; minutes. Every weight: each cut at four sizes is run through the model, 6,144 tokens each time; "
    "hours where the other takes minutes, to check it."
)
SEARCHES = {"refined": "refine the calibrated plan", "best": "try every rule, keep the best"}


def exported(view, now: draft.Draft, found: tables.Tables, totals: dict, name: str) -> str:
    plan = draft.to_plan(now, view.checkpoint, found, totals)
    plan.name = name
    return json.dumps(plan.named(), indent=1)


def name_box(view, now: draft.Draft) -> str:
    """The box with the plan's name, beside what saves and runs it."""
    stored = [now.quantize] if now.quantize else []
    model = naming.file_name(view.checkpoint.name.rpartition("/")[2].lower())[:28]
    start = naming.file_name(model, f"{now.budget or 1:.2g}", now.network, *stored)
    return naming.box("Name", "plan_name", start, width=230, label_visibility="collapsed")


def of_this_model(view, plan: Plan, key: str) -> Plan | None:
    """The plan, where it was made for the model in view. One of another checkpoint is made this one's where somebody
    ticks that; None until then. Raises InputError where it does not fit."""
    if plan.model["fingerprint"] == view.checkpoint.fingerprint:
        return plan
    st.warning(
        f"This plan was made for {common.plain(plan.model['name'])}, another checkpoint than "
        f"{common.plain(view.checkpoint.name)}: its χ were chosen for other weights. Its predictions are left out."
    )
    return plan.adopted(view.checkpoint) if st.checkbox("Use it all the same", key=key) else None


def import_plan(view) -> None:
    """A plan from a file, checked field by field, put on the board as one step."""
    with st.popover("Import", icon=":material/upload:", key="k-plan-import", type="tertiary"):
        file = st.file_uploader("plan.json", type=["json"], key="board_file", max_upload_size=common.MOST_UPLOADED)
        if file is None:
            return
        mine = plan_session.state()
        if mine.get("imported") != file.file_id:
            mine["import_error"] = None
            try:
                with st.spinner("Checking the plan …"):
                    plan = of_this_model(view, Plan.parse(file.getvalue(), file.name), "board_force")
                    if plan is None:
                        return
                    mine["imported"] = file.file_id
                    plan_session.open_plan(view, plan, file.name)
            except InputError as error:
                mine["imported"], mine["import_error"] = file.file_id, str(error)
            else:
                if plan.name:
                    st.session_state.plan_name = clean(plan.name)
                st.rerun()
        if problem := mine["import_error"]:
            st.error(common.plain(problem))


def compress(view, now: draft.Draft, found: tables.Tables, totals: dict, name: str) -> None:
    """Keeps the plan in the workspace, starts its run and leaves for the Run page."""
    source = view.source  # where the weights are not here it says so, before anything is written
    with st.spinner("Writing the plan …"):
        plan = draft.to_plan(now, view.checkpoint, found, totals)
        stem = runs.keep(plan, name)
    argv = ["run", source, "--plan", str(Workspace().plan_file(stem)), "--max-tokens", "16384", "--name", name]
    argv += texts.offered(view, "held-out")
    job.start(argv, f"{runs.shown(stem)} on {view.checkpoint.name}", "job")
    st.session_state.plan = stem
    query = {"model": view.alias, "plan": stem}
    if job_id := st.session_state.get("job"):
        query["job"] = job_id
    st.switch_page("pages/run.py", query_params=query)


def plan_argv(view, what: tables.What, rule: str, budget: float, unit: str, scope: str) -> list[str]:
    """The command that measures what a rule needs and writes its plan to the workspace."""
    size = ["--budget-bytes" if unit == "bytes" else "--budget", f"{budget:.4g}"]
    size += ["--scope", scope] if unit != "bytes" or scope not in SCOPES else []
    more = ["--quantize", what.quantize] if what.quantize else []
    more += ["--embedding", what.embedding] if what.embedding != "dense" else []
    # A name that no other job has: what one of them writes stays as it is while others are queued.
    name = "-".join([what.network, what.metric, *more[1::2], rule, f"{budget:.4g}", unit, scope, new_id()])
    argv = ["plan", view.source, *size, "--network", what.network, *more, "--metric", what.metric, "--rule", rule]
    return [*argv, "--out", str(Workspace().plan_file(name))]


def measure(key: str) -> list[str]:
    """The choice of how damages are found, as words of the command."""
    chosen = st.radio("Damages", list(MEASURES), key=key, format_func=MEASURES.get, horizontal=True, help=MEASURE_HELP)
    return ["--measure", "all"] if chosen == "all" else []


def search(view, now: draft.Draft, found: tables.Tables) -> None:
    """Rules that measure, at the present budget, as a job; the measurement itself where there is none."""
    if view.checkpoint.not_run:
        return  # what the board says below it is that nothing is predicted, and why
    calibrated = found.calibration is not None
    label = "Search by measuring" if calibrated else "Measure the damages"
    mine = plan_session.state()
    # One primary button: where a network was chosen that is not measured yet, it is the one beside that sentence.
    weight = "tertiary" if calibrated or mine.get("missing") else "primary"
    name = f"k-search-{mine.get('searches', 0)}"  # another after each start, since a new one is closed
    with st.popover(label, icon=":material/science:", key=name, type=weight):
        if calibrated:
            rule = st.radio(
                "How", list(SEARCHES), key="search_rule", format_func=lambda key: SEARCHES[key].capitalize()
            )
            st.caption(
                "Passes over the text, minutes on a small model. Locks and hand-made choices are not used. "
                "The plan comes onto the board when it is done."
            )
            how = ["--measure", "all"] if found.calibration.gradients is None else []
        else:
            rule = "calibrated"
            st.caption(
                "Finds what cutting each weight alone to a few sizes does to the model's outputs, and measures a few "
                "whole plans. Then losses can be predicted."
            )
            how = measure("search_measure")
        text = texts.choose("search", "calibration")
        seen = texts.images(view, "search")
        if st.button(texts.label("Start", text), key="search_start", type="primary", disabled=text is None):
            budget = now.budget if now.budget is not None else plan_session.START_AT[0]
            argv = plan_argv(view, now.what, rule, budget, now.unit, now.scope)
            job.start(
                argv + how + text + seen,
                f"{SEARCHES.get(rule, 'measure damages').capitalize()}, {view.checkpoint.name}",
                "plan_job",
            )
            mine["searches"] = mine.get("searches", 0) + 1
            st.rerun()


def follow_search(view) -> None:
    """The search's progress; when it is done its plan goes onto the board, once."""
    running = job.followed("plan_job")
    if running is None:
        return
    status = running.status()
    argv = status["argv"]
    mine = plan_session.state()
    ours = argv[:2] == ["plan", view.place]
    if status["state"] == "done" and ours and mine.get("taken") != running.id:
        plan_session.opened(view)
        mine["taken"] = running.id
        mine.pop("missing", None)
        try:
            plan_session.open_plan(view, Plan.load(_given(argv, "--out")), running.id, _made_of(argv))
        except InputError as error:
            mine["error"] = str(error)
        job.forget("plan_job")
    else:
        job.panel(running, "plan_job")


def _given(argv: list[str], flag: str, default: str | None = None) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else default


def _made_of(argv: list[str]) -> tables.What:
    """What the plans of this command are made of."""
    return tables.What(
        _given(argv, "--network", "lowrank"),
        _given(argv, "--metric", "loss"),
        _given(argv, "--quantize"),
        _given(argv, "--embedding", "dense"),
    )


def not_measured(view, what: tables.What) -> None:
    """Says what is missing for these choices, and offers to measure it."""
    with st.container(border=True, key="k-missing"):
        words = f"{plan_session.says(what)} with the error of {plan_side.METRIC_SAYS[what.metric]}"
        kept = " The board stays as it is until it was." if "history" in plan_session.state() else ""
        st.markdown(f"**{words}** has not been measured on this model yet.{kept}")
        text = texts.choose("missing", "calibration")
        seen = texts.images(view, "missing")
        how = measure("missing_measure")
        with st.container(horizontal=True):
            if st.button(texts.label("Measure it", text), type="primary", key="missing_start", disabled=text is None):
                now = plan_session.state()["history"].now if "history" in plan_session.state() else None
                budget = now.budget if now and now.budget else plan_session.START_AT[0]
                argv = plan_argv(view, what, "calibrated", budget, "parameters", "model")
                plan_session.state().pop("missing", None)
                job.start(
                    argv + how + text + seen,
                    f"Measure {plan_session.says(what)}, {what.metric}, {view.checkpoint.name}",
                    "plan_job",
                )
                st.rerun()
            if "history" in plan_session.state() and st.button("Not now", key="missing_close", type="tertiary"):
                plan_session.state().pop("missing", None)
                st.rerun()


def nothing_yet(view) -> None:
    """No spectra at all: the profile is made first, as on the Profile page."""
    st.info("The board needs the spectra of this model; they are being computed.")
    if profiles.current(view) is not None:
        st.rerun()
