"""Run: compress a plan and measure what came out, as a job that outlives this page; and all past runs."""

import html
import re
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.checkpoint.form import beside
from karipap_core.errors import InputError
from karipap_core.figures import predictions as figures_predictions
from karipap_core.figures import runs as figures_runs
from karipap_core.plan import predictions
from karipap_core.plan.checks import rise_in_words, rise_of
from karipap_core.plan.document import Plan
from karipap_core.plan.foretold import words
from karipap_core.workspace import Workspace
from karipap_core.workspace.names import Names, clean, plan_key
from pages.parts import common, draft, job, model, naming, plan_jobs, runs, take_home, terms, texts

TOKENS = [2048, 4096, 8192, 16384, 32768, 65536, 131072]


WORDS = (
    "kept",
    "bytes_kept",
    "rise",
    "perplexity",
    "bits_per_byte",
    "kl",
    "top1",
    "heldout",
    "predicted",
    "fingerprint",
)


def page() -> None:
    view = model.current()
    common.title("Run", "Turn a plan into a compressed Hugging Face folder, and measure it beside the dense model.")
    st.html(Path(runs.__file__).with_name("run.css"))
    running = job.followed("job")
    finished = False
    if running is not None:
        job.panel(running, "job")
        finished = show_result_of(view, running)
    new_run(view, running, finished)
    past(view)
    runs.say_passed_over(runs.passed_over())
    terms.strip(*WORDS)


def show_result_of(view, running) -> bool:
    """What came out of a job that is done, in a sentence, and the button that leads on; its run is put in view, here
    and on the trade-off, once. Whether there was something to show."""
    if running.status()["state"] != "done":
        return False
    try:
        run = running.result()
    except InputError:
        return False
    if not {"id", "kept", "label"} <= run.keys():
        return False
    mine = (run.get("model") or {}).get("fingerprint") == view.checkpoint.fingerprint
    if mine and st.session_state.get("shown_job") != running.id:
        st.session_state.shown_job = running.id
        st.session_state.run = st.session_state.point = run["id"]
    said = f"{run['kept']:.1%} of the parameters and {run['bytes_kept']:.1%} of the bytes are kept"
    if run.get("rise") is not None:
        predicted = rise_in_words(run.get("predicted"))
        said += f"; the loss {'rose' if run['rise'] >= 0 else 'fell'} by {abs(run['rise']):.4f} nats a token"
        if predicted:
            said += f"; predicted: {'a rise of ' if predicted[0].isdigit() else ''}{predicted}"
    st.html(f'<p class="k-verdict">{html.escape(said)}.</p>')
    runs.warn_of_text(run)  # it says whether the figure above means anything
    see(view, run, "see_result", "primary")
    return True


def see(view, run: dict, key: str, weight: str) -> None:
    """The button that leads to a run's point."""
    if st.button("See it on the trade-off", key=key, type=weight, icon=":material/show_chart:"):
        st.session_state.point = run["id"]
        st.switch_page("pages/tradeoff.py", query_params={"model": view.alias, "point": run["id"]})


def new_run(view, running, finished: bool) -> None:
    """Plan, text, tokens, name and the button, which is the page's first one until a run has finished."""
    st.subheader("Compress and evaluate", anchor=False)
    found = runs.plans(view)
    left, right = st.columns([3, 2], gap="large")
    with left:
        if not found:
            if gone := common.missing("plan", found):
                common.say_gone("plan", gone)
            st.html('<p class="k-note">No plan for this model yet.</p>')
            with st.container(horizontal=True, vertical_alignment="center"):
                if st.button("Make one on the χ board", key="to_plan", type="primary", icon=":material/tune:"):
                    st.switch_page("pages/plan.py", query_params={"model": view.alias})
                if not import_plan(view):
                    return
            st.rerun()
        choice, upload = st.columns([5, 2], vertical_alignment="bottom")
        with upload:
            if import_plan(view):
                found = runs.plans(view)
        names = Names().all()
        asked = st.query_params.get("plan", "")
        if asked and asked not in found:
            with suppress(InputError):
                st.query_params["plan"] = Workspace().find_plan(asked).stem
        name, gone = common.asked(
            choice.selectbox,
            "Plan",
            list(found),
            "plan",
            next(iter(found)),
            "plan",
            format_func=lambda key: f"{runs.shown(key, names)}: {runs.describe(found[key])}",
        )
        if not gone:
            promise(found[name])
            naming.rename(plan_key(found[name].to_json()), called(found[name], names), "plan")
    with right:
        text = texts.choose("run", "held-out")
        seen = texts.images(view, "run")
        if not gone:
            texts.warn_of_overlap(view, text, found[name].calibration)
        tokens = common.choose(
            st.select_slider,
            "Tokens to score, at most",
            TOKENS,
            "tokens",
            16384,
            format_func="{:,}".format,
            help="Runs share a chart only where text, windows and tokens are the same. A sweep scores 16,384.",
        )
        papers = view.checkpoint.predicts and st.checkbox(
            "Perplexity as papers give it",
            key="papers",
            persist_state="session",
            help="Also measures the whole text, however many tokens are chosen above, which takes longer: in "
            "windows of 2,048 tokens that do not overlap (GPTQ, SVD-LLM), sliding (Hugging Face), rolling (lm-eval).",
        )
        own_name = naming.box("Name", "run_name", called(found[name], names) if not gone else "run")
        busy = running is not None and running.status()["state"] not in job.ENDED
        pressed = st.button(
            texts.label("Compress & evaluate", text),
            type="secondary" if finished else "primary",
            key="start",
            icon=":material/play_arrow:",
            disabled=text is None or busy or gone,
            width="stretch",
        )
        if busy:
            st.caption("One run at a time from this page; the running one is above.")
        if pressed:
            # The file of an older name may yet be another plan.
            kept = Workspace().keep_plan(found[name].to_json(), name)
            argv = ["run", view.source, "--plan", str(Workspace().plan_file(kept)), "--max-tokens", str(tokens)]
            argv += ["--conventions"] if papers else []
            argv += ["--name", own_name]
            job.start(argv + text + seen, f"{own_name} on {view.checkpoint.name}", "job")
            st.rerun()


def import_plan(view) -> str | None:
    """A plan from a file, checked field by field, kept in the workspace under its own name."""
    with st.popover("Import", icon=":material/upload:", key="k-import"):
        file = st.file_uploader("plan.json", type=["json"], key="plan_file", max_upload_size=common.MOST_UPLOADED)
        if file is None:
            return None
        with common.plain_errors("reading the plan"), st.spinner("Checking the plan …"):
            plan = plan_jobs.of_this_model(view, Plan.parse(file.getvalue(), file.name), "force")
            if plan is None:
                return None
            draft.check(plan, view.checkpoint)
            stem = runs.keep(plan, plan.name or clean(re.sub(r"(\.plan)?\.json$", "", file.name), otherwise="plan"))
        if st.session_state.get("imported") != file.file_id:
            st.session_state.imported, st.session_state.plan = file.file_id, stem
        st.success(f"Imported as {common.plain(runs.shown(stem))}.")
        return stem


def called(plan: Plan, names: dict[str, str]) -> str:
    """The name of a stored plan: what it was given, or what it would be."""
    return names.get(plan_key(plan.to_json())) or plan.called


def promise(plan: Plan) -> None:
    """What the plan says of itself before anything is measured."""
    predicted = plan.predicted or {}
    entries = plan.weights.values()
    touched = sum(entry["network"] != "dense" or bool(entry.get("quantize")) for entry in entries)
    items = [("Weights to compress", f"{touched} of {len(entries)}"), ("Metric", plan.metric), ("Rule", plan.rule)]
    if predicted.get("kept") is not None:
        items += [
            ("Parameters kept", f"{predicted['kept']:.1%}"),
            ("Bytes kept", f"{predicted.get('bytes_kept', 1):.1%}"),
        ]
    if (stored := plan.model.get("stored")) and predicted.get("bytes"):
        items.append(("Beside the files", f"{beside(stored, predicted['bytes'])} ({stored['form']})"))
    if predicted.get("beyond"):
        items.append(("Predicted rise in loss", words(predicted)))
    elif rise := rise_in_words(predicted):
        items.append(("Predicted rise in loss", f"{rise} nats a token, {words(predicted)}"))
    if plan.calibration:
        items.append(("Calibrated on", plan.calibration["text"]))
    common.listing(items)


def past(view) -> None:
    """All runs of this model that went through the button or `run`; a row opens it."""
    mine = runs.of_model(view)
    found = [run for run in reversed(mine) if run.get("folder")]
    points = [run for run in mine if run["kind"] == "network"]
    st.subheader("Past runs", anchor=False)
    if not found:
        st.caption("None yet. Sweeps of many plans are on the Trade-off page.")
        return
    rows = pd.DataFrame(
        {
            "label": run["label"],
            "when": pd.Timestamp(run["created"], unit="s", tz="UTC"),
            "kept": run["kept"],
            "bytes_kept": run["bytes_kept"],
            "predicted": rise_of(run.get("predicted")),
            "rise": run.get("rise"),
            "perplexity": run.get("perplexity"),
            "kl": run.get("kl"),
            "tokens": run.get("tokens"),
            "text": (run.get("text") or {}).get("name"),
            "id": run["id"],
        }
        for run in found
    )
    event = st.dataframe(
        common.no_signed_zeros(rows, dict.fromkeys(("predicted", "rise", "kl"), "%.4f")),
        hide_index=True,
        key="past",
        on_select="rerun",
        selection_mode="single-row",
        placeholder="",
        height=min(320, 38 + 35 * len(rows)),
        alt="Past runs of this model",
        column_order=[column for column in rows.columns if column != "id"],
        column_config={
            "label": "Run",
            "when": st.column_config.DatetimeColumn("When", format="distance"),
            "kept": st.column_config.NumberColumn("Kept", format="percent"),
            "bytes_kept": st.column_config.NumberColumn("Bytes kept", format="percent"),
            "predicted": st.column_config.NumberColumn("Predicted rise", format="%.4f"),
            "rise": st.column_config.NumberColumn("Rise", format="%.4f"),
            "perplexity": st.column_config.NumberColumn("Perplexity", format="%.3f"),
            "kl": st.column_config.NumberColumn("KL", format="%.4f"),
            "tokens": st.column_config.NumberColumn("Tokens", format="localized"),
            "text": "Text",
        },
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(rows, naming.file_name(view.checkpoint.name, "runs"), "runs_csv")
    picked = event["selection"]["rows"]
    if picked and found[picked[0]]["id"] != st.session_state.get("run_row"):
        st.session_state.run_row = st.session_state.run = found[picked[0]]["id"]
    if gone := common.missing("run", [run["id"] for run in found]):
        common.say_gone("run", gone)
        return
    wanted = st.session_state.get("run") or st.query_params.get("run")
    run = next((run for run in found if run["id"] == wanted), found[0])
    st.query_params["run"] = run["id"]
    one_run(view, run, points)


def one_run(view, run: dict, points: list[dict]) -> None:
    """Everything about one run: figures, prediction against measurement, what each weight lost, what to do next."""
    with st.container(horizontal=True, vertical_alignment="center", horizontal_alignment="distribute"):
        st.subheader(common.plain(run["label"]), anchor=False, width="content")
        with st.container(horizontal=True, gap="small", width="content"):
            naming.rename(run["id"], run.get("name") or Plan.from_json(run["plan"], run["id"]).called, "run")
            if st.button("Open this plan on the board", key="to_board", icon=":material/tune:"):
                runs.open_on_board(run)
            see(view, run, "see", "secondary")
    runs.facts(run)
    when = time.strftime("%d %b %Y %H:%M", time.localtime(run["created"]))
    spent = run.get("seconds") or {}
    note = (
        f"Measured on {runs.say_conditions(run)}, on {run.get('device', 'cpu')} in "
        f"{run.get('dtype', 'float32')}, {when}; compressed in "
        f"{common.seconds(spent.get('compress'))}, measured in {common.seconds(spent.get('measure'))}."
    )
    st.html(f'<p class="k-note">{html.escape(" ".join([note, *run.get("notes", [])]))}</p>')
    runs.warn_of_text(run)
    if run["id"] in runs.own([run]):
        take_home.page(view, run)
    left, right = st.columns(2, gap="large")
    with left:
        st.markdown("**Predicted against measured**")
        pairs = predictions.as_predicted(points)
        if pairs:
            error = (run.get("predicted") or {}).get("error")
            fig = figures_predictions.scatter(pairs, error, run["id"]).update_layout(height=340, showlegend=False)
            alt = "Predicted against measured rise in loss of all runs"
            common.figure(fig, "promise", alt, "karipap-prediction")
            band = f"; the band is ±{error:.0%}, the error stated with this one" if error else ""
            st.html(f'<p class="k-note">All measured plans of this model, this one ringed{band}.</p>')
        else:
            st.caption("No plan of this model carried a prediction: calibrated and refined plans do.")
    with right:
        st.markdown("**What each weight lost**")
        rows = run.get("weights") or []
        field = "functional_error" if any(row.get("functional_error") is not None for row in rows) else "weight_error"
        weights = [
            {"name": w.name, "layer": w.layer, "role": w.role, "shape": w.shape}
            for w in view.checkpoint.weights
            if w.compressible
        ]
        fig = figures_runs.lost(weights, rows, field)
        what = "outputs on calibration text" if field == "functional_error" else "weights"
        heading = f"Relative squared error of each weight's {what}: {run['label']}"
        common.figure(fig, "lost", "Relative squared error of each weight", "karipap-errors", heading)
        st.html(f'<p class="k-note">Relative squared error of the {what}, cores as stored; coloured by decades.</p>')


with common.plain_errors("drawing the run"):
    page()
