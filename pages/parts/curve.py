"""Measuring a curve: the form of a sweep, what it will take, and the job that it becomes."""

import re
from importlib.util import find_spec

import streamlit as st

from karipap_core.evaluation.tasks.python import NAMES
from karipap_core.plan.document import RULES
from karipap_core.tradeoffs import effort
from karipap_core.tradeoffs.effort import AUTO_RISES
from karipap_core.workspace import Workspace
from pages.parts import common, job, plan_session, tables, texts

FIRST = "lowrank"  # the network that the form begins with


def button(points: list[dict]) -> None:
    """Opens and closes the form; where nothing was measured yet (no points) it is open."""
    if points:
        asked = will_take(points, [FIRST], ["calibrated"], "auto")
        st.button("Measure a curve", key="sweep_form", icon=":material/add_chart:", on_click=turned, help=asked)


def turned() -> None:
    st.session_state.sweep_open = not st.session_state.get("sweep_open")


def form(view, points: list[dict]) -> None:
    """The sweep that runs, and the form that starts one: many plans, each measured, beside the baselines."""
    running = job.followed("sweep_job")
    if running is not None:
        job.panel(running, "sweep_job")
    if points and not st.session_state.get("sweep_open"):
        return
    with st.container(border=True, key="k-sweep"):
        left, middle, right = st.columns(3, gap="large")
        with left:
            networks = st.multiselect(
                "Networks",
                ["all", *tables.networks()],
                [FIRST],
                key="sweep_networks",
                format_func=lambda name: {"all": "all of them"}.get(name) or plan_session.NETWORK_SAYS.get(name, name),
            )
            rules = st.multiselect(
                "Rules",
                RULES,
                ["calibrated"],
                key="sweep_rules",
                help="How a budget is divided among the weights; calibrated and refined measure the model first.",
            )
        with middle:
            auto = st.toggle("Budgets where this model's curve bends", True, key="sweep_auto")
            typed = st.text_input("Kept, separated by commas", "0.9, 0.8, 0.7, 0.5", key="sweep_budgets", disabled=auto)
            scope = st.radio(
                "Kept counts",
                ["model", "blocks"],
                key="sweep_scope",
                horizontal=True,
                help="The whole model, or the weights that can be compressed.",
            )
            with st.container(horizontal=True):
                stored = st.selectbox("Store cores in", tables.FORMATS, key="sweep_quantize", filter_mode=None)
                embedding = st.selectbox("Embedding", tables.EMBEDDINGS, key="sweep_embedding", filter_mode=None)
        with right:
            text = texts.choose("sweep", "held-out")
            chosen, problem_of_tasks = sweep_tasks(view)
        problem, budgets = ("", "auto") if auto else _budgets(typed)
        problem = problem or problem_of_tasks
        if problem:
            st.error(problem)
        busy = running is not None and running.status()["state"] not in job.ENDED
        ready = networks and rules and budgets and text is not None and not busy and not problem
        if st.button(texts.label("Start measuring", text), type="primary", key="sweep_start", disabled=not ready):
            argv = ["sweep", view.source, "--networks", ",".join(networks), "--rules", ",".join(rules)]
            argv += ["--budgets", budgets, "--scope", scope]
            argv += ["--quantize", stored] if stored != "none" else []
            argv += ["--embedding", embedding] if embedding != "dense" else []
            argv += ["--out", str(Workspace().root), *text, *chosen]
            job.start(argv, f"Curve of {view.checkpoint.name}", "sweep_job")
            st.session_state.sweep_open = False
            st.rerun()
        st.caption(
            f"{will_take(points, networks, rules, budgets)} "
            "Points appear on the chart as they are measured. Rivals: plain SVD, SVD-LLM's uniform rule, "
            "integers of 8 to 2 bits rounded and by GPTQ, magnitude pruning."
        )


def will_take(points: list[dict], networks: list[str], rules: list[str], budgets: str) -> str:
    """How many models the form asks for, and how long that is by what earlier ones took on this machine."""
    count = len(AUTO_RISES) if budgets == "auto" else len(budgets.split(","))
    plans, rivals = effort.models(networks, len(rules), count)
    here = {run["id"] for run in Workspace().runs}
    mine = [run for run in points if run["id"] in here]
    each = effort.seconds_each(mine)
    long = "how long is unknown yet: none was measured on this machine"
    if each is not None:
        many = "one that was" if len(mine) == 1 else f"the {len(mine)} that were"
        long = f"about {common.seconds(each * (plans + rivals))} on this machine, by {many} measured here"
    return f"At most {plans + rivals} models ({plans} plan{'' if plans == 1 else 's'}, {rivals} rivals): {long}."


def sweep_tasks(view) -> tuple[list[str], str]:
    """(options of the command line, problem) of the benchmark tasks that every point of a sweep gets besides."""
    there = find_spec("lm_eval") is not None
    causal = view.checkpoint.predicts
    names = st.multiselect(
        "Tasks",
        NAMES,
        [],
        key="sweep_tasks",
        accept_new_options=True,
        disabled=not (there and causal),
        placeholder="none, or a name of lm-eval" if there else "needs lm-eval: pip install lm-eval",
        help="Benchmark tasks, scored by EleutherAI's lm-eval on every model and on the dense one. The two here need "
        "no network; other names of lm-eval, such as hellaswag, take their items from the Hugging Face hub.",
    )
    if not names or not (there and causal):
        return [], ""
    limit = st.number_input("Items of each task, at most", 1, None, None, key="sweep_limit", placeholder="all")
    wrong = [name for name in names if not re.fullmatch(r"\w[\w.+-]{0,99}", name)]
    if wrong:
        return [], f"{wrong[0][:40]} is not the name of a task: letters, digits, '_', '-', '.', '+'."
    return ["--tasks", ",".join(names), *(["--limit", str(limit)] if limit else [])], ""


def _budgets(typed: str) -> tuple[str, str]:
    """(problem, budgets as the command line takes them)."""
    parts = [part.strip() for part in typed.split(",") if part.strip()]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        return "Budgets are numbers such as 0.9, 0.7.", ""
    if not values or not all(0 < value <= 1 for value in values):
        return "Each budget is a fraction to keep: above 0 and at most 1.", ""
    return "", ",".join(f"{value:g}" for value in values)
