"""Autopilot: a quality line or a size, and the plan that is found for it, with every step reported as it happens."""

import html
import json
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.figures import autopilot as figures_autopilot
from karipap_core.plan.document import Plan, is_of
from karipap_core.workspace import Workspace
from pages.parts import common, job, model, plan_session, runs, tables, texts

AIMS = {"rise": "Rise in loss", "perplexity": "Rise of perplexity", "bytes": "Bytes kept"}
EVALUATIONS = [6, 8, 12, 16, 24, 32]


def page() -> None:
    view = model.current()
    common.title(
        "Autopilot",
        "Say what quality must hold, or how small the model must be. Plans are chosen by prediction, then measured "
        "step by step until one meets the line even at the upper end of its uncertainty.",
    )
    st.html(Path(texts.__file__).with_name("autopilot.css"))
    running = job.followed("autopilot_job")
    busy = False
    if running is not None:
        job.panel(running, "autopilot_job")
        state = running.status()["state"]
        busy = state not in job.ENDED
        if state != "done":
            model.fragment(live, run_every=3.0 if busy else None)(view, running)
        elif st.session_state.get("autopilot_shown") != running.id:
            st.session_state.autopilot_shown = running.id
            remember(running)
    form(view, busy)
    past(view)


def remember(running) -> None:
    """Puts what a finished job found in view, once."""
    try:
        key = running.result().get("key")
    except InputError:
        return
    if isinstance(key, str):
        st.session_state.autopilot = key


def found(view, bad: list[str] | None = None) -> dict[str, dict]:
    """Key → document of the autopilots of this model, newest first. Damaged files are passed over: why, in `bad`."""
    documents = {}
    files = sorted((Workspace().root / "autopilot").glob("*/autopilot.json"), key=lambda f: -f.lstat().st_mtime)
    for file in files:
        try:
            document = schemas.read(file, "autopilot")
        except InputError as error:
            if bad is not None:
                bad.append(str(error))
            continue
        if is_of(document["model"], view.checkpoint):
            documents[document["key"]] = document | {"touched": file.stat().st_mtime}
    return documents


def live(view, running) -> None:
    """The chart and the sentences so far of the job that runs, or of one that was stopped."""
    began = running.status()["started"] or 0
    document = next((d for d in found(view).values() if d["state"] == "running" and d["touched"] >= began - 1), None)
    if document is not None:
        chart(document, "live")
        steps(document)


def chart(document: dict, key: str) -> None:
    if not document["tried"]:
        return
    alt = f"{len(document['tried'])} measured plans, bytes kept against {document['quality'].replace('_', ' ')}"
    text = common.text_name({"text": document["texts"]["search"]})
    common.figure(figures_autopilot.search(document), f"autopilot_{key}", alt, "karipap-autopilot", text=text)


def steps(document: dict) -> None:
    """The log, a numbered sentence for each step."""
    items = []
    for step in document["log"]:
        told = step["says"].removesuffix(step["decision"]).strip()
        decision = f"<em>{html.escape(step['decision'])}</em>" if step["decision"] else ""
        kind = ' class="k-no"' if step["accepted"] is False else ""
        items.append(f"<li{kind}><b>{step['step']}</b><p>{html.escape(told)} {decision}</p></li>")
    st.html(f'<ol class="k-steps">{"".join(items)}</ol>')


def form(view, busy: bool) -> None:
    """What is asked for, and the button."""
    documents = st.expander("Start an autopilot", expanded=not busy and not found(view), key="k-autopilot-form")
    with documents:
        left, middle, right = st.columns(3, gap="large")
        with left:
            causal = view.checkpoint.kind != "encoder"
            names = [name for name in AIMS if causal or name != "perplexity"]
            aim = common.choose(
                st.segmented_control,
                "What must hold",
                names,
                "aim",
                "rise",
                required=True,
                format_func=lambda name: AIMS[name] if causal or name != "rise" else "Output error",
            )
            if aim == "rise":
                value = st.number_input(
                    "At most, nats a token" if causal else "At most, relative squared error",
                    0.0001,
                    10.0,
                    0.03,
                    0.005,
                    format="%.4f",
                    key="autopilot_rise",
                    persist_state="session",
                    help="The upper end of the 95 % interval of the rise over the dense model has to be under it.",
                )
                argv = ["--max-rise", f"{value:g}"]
            elif aim == "perplexity":
                value = st.number_input(
                    "At most, percent",
                    0.01,
                    1000.0,
                    3.0,
                    0.5,
                    key="autopilot_percent",
                    persist_state="session",
                    help="3 % is a rise in loss of ln 1.03 = 0.0296 nats.",
                )
                argv = ["--max-perplexity", f"{value:g}%"]
            else:
                value = st.number_input(
                    "Percent of the bytes to keep",
                    1.0,
                    100.0,
                    50.0,
                    1.0,
                    key="autopilot_bytes",
                    persist_state="session",
                    help="16 bits for every number not quantized.",
                )
                argv = ["--budget-bytes", f"{value:g}%"]
            scope = st.radio(
                "Size counts",
                ["model", "blocks"],
                key="autopilot_scope",
                horizontal=True,
                persist_state="session",
                help="The whole model, or the weights that can be compressed.",
            )
        with middle:
            networks = st.multiselect(
                "Networks to try",
                ["all", *tables.networks()],
                ["lowrank"],
                key="autopilot_networks",
                persist_state="session",
                format_func=lambda name: {"all": "all of them"}.get(name) or plan_session.NETWORK_SAYS.get(name, name),
                help="The three with the best predictions are measured. A network whose curves this model does not "
                "have yet is measured first, which takes long.",
            )
            stored = st.selectbox(
                "Store cores in", tables.FORMATS, key="autopilot_quantize", filter_mode=None, persist_state="session"
            )
            most = common.choose(
                st.select_slider,
                "Plans to measure, at most",
                EVALUATIONS,
                "evaluations",
                12,
                help="Each takes one pass over the text. The verdict and its rivals are measured in addition.",
            )
        with right:
            text = texts.choose("autopilot", "held-out")
            st.caption("Half of its documents are searched on; the verdict comes from the other half.")
        command = ["autopilot", view.source, *argv, "--networks", ",".join(networks), "--scope", scope]
        command += ["--quantize", stored] if stored != "none" else []
        command += ["--max-evaluations", str(most), *(text or [])]
        ready = bool(networks) and text is not None and not busy
        if st.button(
            texts.label("Find the plan", text),
            type="primary",
            key="autopilot_start",
            icon=":material/flight_takeoff:",
            disabled=not ready,
        ):
            st.session_state.pop("autopilot_shown", None)
            job.start(command, f"Autopilot for {view.checkpoint.name}", "autopilot_job")
            st.rerun()


def past(view) -> None:
    """The finished autopilots of this model; the last one, or the one chosen, in full."""
    bad: list[str] = []
    documents = {key: document for key, document in found(view, bad).items() if document["state"] == "done"}
    runs.say_passed_over(bad)
    if not documents:
        return
    first = next(iter(documents))
    key = first
    if len(documents) > 1 or common.missing("autopilot", documents):
        key, gone = common.asked(
            st.selectbox,
            "Found before",
            list(documents),
            "autopilot",
            first,
            "autopilot's result",
            format_func=lambda each: describe(documents[each]),
        )
        if gone:
            return
    with common.plain_errors("drawing the autopilot's result"):
        show(view, documents[key])


def describe(document: dict) -> str:
    line, settings = document["line"], document["settings"]
    stored = f" in {settings['quantize']}" if settings.get("quantize") else ""
    aim = f"at most {line['max_rise']:.4g}" if "max_rise" in line else f"{line['bytes_kept']:.1%} of the bytes"
    verdict = "met" if document["met"] else "not met"
    return f"{aim}, {', '.join(settings['networks'])}{stored}: {document['bytes_kept']:.1%} kept, {verdict}"


def show(view, document: dict) -> None:
    """The verdict, the figures, the plan, and how it was found."""
    st.subheader("The verdict", anchor=False)
    for sentence in document["verdict"]:
        st.html(f'<p class="k-verdict">{html.escape(sentence)}</p>')
    line = document["line"]
    low, high = document["rise_low"], document["rise_high"]
    span = f"95 % interval {low:+z.4f} to {high:+z.4f}" if low is not None else "no interval"
    items = [
        ("Bytes kept", f"{document['bytes_kept']:.1%}", "of the whole model, 16 bits a number not quantized"),
        ("Rise in loss" if document["quality"] == "rise" else "Output error", f"{document['rise']:+z.4f}", span),
    ]
    if "perplexity_rise" in document:
        items.append(("Perplexity", f"{document['perplexity_rise']:+z.1%}", f"now {document['perplexity']:.3f}"))
    if "max_rise" in line:
        sure = {True: "outside the uncertainty", False: "not outside the uncertainty", None: "no interval to go by"}
        held = "met" if document["met"] else "not met"
        items.append(("The line", held, f"{line['max_rise']:.4g}; {sure[document['outside_uncertainty']]}"))
    items.append(("Plans measured", str(document["evaluations"]), f"in {common.seconds(document['seconds'])}"))
    common.facts(items)
    chart(document, document["key"])
    plan = Plan.from_json(document["plan"], "the autopilot's plan")
    with st.container(horizontal=True, gap="small"):
        if st.button("Open on the board", key="autopilot_board", icon=":material/tune:", type="primary"):
            runs.open_on_board({"plan": document["plan"], "label": "autopilot", "id": f"autopilot-{document['key']}"})
        st.download_button(
            "Download the plan",
            lambda: json.dumps(plan.to_json(), indent=1),
            "plan.json",
            "application/json",
            key="autopilot_plan",
            on_click="ignore",
            icon=":material/download:",
        )
        st.download_button(
            "Download the log",
            lambda: json.dumps(document, indent=1),
            "autopilot.json",
            "application/json",
            key="autopilot_log",
            on_click="ignore",
            icon=":material/download:",
            type="tertiary",
        )
        st.page_link(
            "pages/tradeoff.py",
            label="See it on the trade-off",
            icon=":material/show_chart:",
            query_params={"model": view.alias, "point": document["id"]},
        )
    st.html(f'<p class="k-note">{html.escape(runs.describe(plan))}. {html.escape(texts_used(document))}</p>')
    st.subheader("How it was found", anchor=False)
    steps(document)
    frame = pd.DataFrame(document["tried"])
    with st.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame, "karipap-autopilot", "autopilot_csv")


def texts_used(document: dict) -> str:
    used = document["texts"]
    return (
        f"Searched on {used['search']['name']} ({used['search']['documents']} documents), judged on "
        f"{used['verdict']['name']} ({used['verdict']['documents']}), calibrated on {used['calibration']['name']}. "
        f"{document['criterion']}"
    )


with common.plain_errors("drawing the autopilot"):
    page()
