"""Trade-off: every run and every baseline of the model on one chart, size against quality."""

import html
import re
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.evaluation import scores
from karipap_core.evaluation.tasks.python import NAMES
from karipap_core.figures import runs as figures_runs
from karipap_core.figures.methods import network_color
from karipap_core.figures.published import add_published
from karipap_core.plan.document import RULES
from karipap_core.statistics.pareto import pareto
from karipap_core.tradeoffs import published as anchors
from karipap_core.tradeoffs import ranking
from karipap_core.workspace import Workspace
from pages.parts import common, job, model, plan_jobs, predicted, runs, tables, texts, winner

SHOWN = {"tradeoff": "Size against quality", "predictions": "Predicted against measured"}
COLUMNS = {
    "label": ("Point", None),
    "kind": ("Kind", None),
    "bytes_kept": ("Bytes kept", "percent"),
    "kept": ("Parameters kept", "percent"),
    "kept_blocks": ("Blocks kept", "percent"),
    "rise": ("Rise", "%.4f"),
    "rise_low": ("95 % from", "%.4f"),
    "rise_high": ("to", "%.4f"),
    "to_dense": ("To dense", None),
    "predicted_rise": ("Predicted", "%.4f"),
    "loss": ("Loss", "%.4f"),
    "perplexity": ("Perplexity", "%.3f"),
    "bits_per_byte": ("Bits/byte", "%.4f"),
    "kl": ("KL", "%.4f"),
    "top1_agreement": ("Top-1", "percent"),
    "relative_error": ("Output error", "%.4f"),
    "on_front": ("Front", None),
}


def page() -> None:
    view = model.current()
    common.title(
        "Trade-off", "What compression costs: each point is one measured model, and rivals stand on the same axes."
    )
    sweep_job = job.followed("sweep_job")
    if sweep_job is not None:
        job.panel(sweep_job, "sweep_job")
    points = runs.of_model(view)
    if not points:
        st.info("Nothing has been measured on this model yet. Start a sweep, or compress a plan on the Run page.")
    else:
        shown = common.choose(
            st.segmented_control,
            "Show",
            list(SHOWN),
            "show",
            "tradeoff",
            format_func=SHOWN.get,
            required=True,
            label_visibility="collapsed",
        )
        if shown == "predictions":
            predicted.page(view)
        else:
            chart(view, same_conditions(points))
    sweep_form(view, sweep_job, first=not points)
    runs.say_passed_over(runs.passed_over())


def same_conditions(points: list[dict]) -> list[dict]:
    """The runs measured on one text in one way; the reader chooses where there are several."""
    groups: dict = {}
    for point in points:
        groups.setdefault(runs.conditions(point), []).append(point)
    ranked = sorted(groups.values(), key=len, reverse=True)
    if len(ranked) == 1:
        return ranked[0]
    names = {f"{i + 1}": f"{runs.say_conditions(group[0])} ({len(group)})" for i, group in enumerate(ranked)}
    chosen = common.choose(st.selectbox, "Measured on", list(names), "measured", "1", format_func=names.get)
    return ranked[int(chosen) - 1]


def chart(view, points: list[dict]) -> None:
    qualities = [key for key in figures_runs.QUALITIES if any(point.get(key) is not None for point in points)]
    qualities += list(scores.keys(points))
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-axes"):
        x = common.choose(
            st.selectbox,
            "Size",
            list(figures_runs.SIZES),
            "x",
            "bytes_kept",
            width=230,
            filter_mode=None,
            format_func=lambda key: figures_runs.SIZES[key].label,
        )
        y = common.choose(
            st.selectbox,
            "Quality",
            qualities,
            "y",
            qualities[0],
            width=230,
            filter_mode=None,
            format_func=lambda key: figures_runs.quality(points, key).label,
        )
        scale = common.choose(st.segmented_control, "Scale", ["auto", "linear", "log"], "scale", "auto", required=True)
        published = with_published(x, y)
    st.html(f'<p class="k-verdict">{html.escape(winner.verdict(points, x, y))}</p>')
    runs.warn_of_text(*points)
    log = {"auto": None, "linear": False, "log": True}[scale]
    picture(view, points, x, y, log, published)
    equal_bytes(points)


def published_axis(x: str, y: str) -> str | None:
    """What published points are called on these axes, None where to draw them would compare models with each other:
    their perplexity is that of another model on another text, only its rise can stand beside this one's."""
    name = y if y in figures_runs.QUALITIES else y.rpartition(": ")[0]
    return name if (y == "rise" or y not in figures_runs.QUALITIES) and anchors.on_axes(x, name) else None


def with_published(x: str, y: str) -> bool:
    """The switch of the reference layer; kept in the URL. Off where these axes have no published point."""
    some = published_axis(x, y) is not None
    common.setting("published", [False, True], False)
    wanted = st.toggle(
        "Published points",
        key="published",
        persist_state="session",
        disabled=not some,
        help="Figures that papers report of other models, as a reference: published, not measured here. They have "
        "bytes or parameters kept, and a rise in loss or the accuracy of a task.",
    )
    common.share("published", False)
    return wanted and some


def equal_bytes(points: list[dict]) -> None:
    """Every network and every rival in the same bytes of the blocks, the winner of each size marked."""
    ranked = ranking.rank(points)
    if not ranked.rows:
        return
    st.html(Path(runs.__file__).with_name("tradeoff.css"))
    st.subheader("Every network in the same bytes", anchor=False)
    st.html(f'<p class="k-verdict">{html.escape(ranking.sentence(ranked))}</p>')
    what = "rise in loss, nats a token" if ranked.quality == "rise" else "relative output error"
    head = "".join(f'<th scope="col">{size:.0%}</th>' for size in ranking.SIZES)
    body = "".join(_ranked_row(ranked, index) for index in range(len(ranked.rows)))
    st.html(
        f'<div class="k-rank"><table><thead><tr><th scope="col">{what}</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )
    st.html(
        '<p class="k-note">Columns are bytes kept of the blocks (16 bits for every number that is not quantized). Each '
        "cell is the measured point nearest to its size and not above it; where that is much smaller, its own size "
        "stands beside. Bold: least, or no measurable difference to that. ≈ dense: no measurable difference to the "
        "dense model. Filled dots are networks, rings their rivals; rows are ordered by their places over all sizes."
        "</p>"
    )


def _ranked_row(ranked: ranking.Ranking, index: int) -> str:
    row = ranked.rows[index]
    cells = []
    for size, point, winners in zip(ranking.SIZES, row.points, ranked.winners, strict=True):
        if point is None:
            cells.append("<td>–</td>")
            continue
        number = f"{point[ranked.quality]:.4f}"
        number = f"<b>{number}</b>" if index in winners else number
        number += " <small>≈ dense</small>" if figures_runs.measurable(point, ranked.quality) is False else ""
        own = point["bytes_kept_blocks"]
        small = f" <small>at {own:.0%}</small>" if own < size - ranking.BESIDE else ""
        cells.append(f'<td title="{html.escape(point["label"], quote=True)}">{number}{small}</td>')
    color = network_color(row.method.split()[0].rstrip(",")) if row.network else "currentColor"
    mark = f'<i style="{"background" if row.network else "border-color"}:{color}"></i>'
    return f'<tr><th scope="row">{mark}{html.escape(row.method)}</th>{"".join(cells)}</tr>'


@model.fragment
def picture(view, points: list[dict], x: str, y: str, log: bool | None, published: bool) -> None:
    """Chart, chosen point and table; a click re-runs only this."""
    with common.plain_errors("drawing the trade-off"):
        _picture(points, x, y, log, published)


def _picture(points: list[dict], x: str, y: str, log: bool | None, published: bool) -> None:
    chosen = selected(points)
    fig = figures_runs.tradeoff(points, x, y, log, chosen and chosen["id"])
    if published:
        add_published(fig, x, published_axis(x, y)).update_layout(height=680)  # room for the longer legend
    common.figure(
        fig,
        "curve",
        "Size against quality of every measured model; the same numbers are in the table below.",
        "karipap-tradeoff",
        on_select=clicked,
        selection_mode="points",
    )
    size, quality = figures_runs.SIZES[x], figures_runs.quality(points, y)
    dense = (points[0].get("dense") or {}).get("loss")
    st.html(
        f'<p class="k-note"><b>{size.label}</b>: {size.says}. <b>{html.escape(quality.label)}</b>: {quality.says}. '
        f"Measured on {html.escape(runs.say_conditions(points[0]))}"
        f"{f'; dense loss {dense:.4f}' if dense is not None else ''}. Filled markers are tensor networks, hollow "
        f"ones baselines; the wide band is the Pareto front. {bars(points, y)}Click a point for its plan.</p>"
    )
    if published:
        sources(x, y)
    if chosen:
        one_point(chosen)
    whole_table(points, x, y)


def bars(points: list[dict], y: str) -> str:
    """What the bars are, and how many points have none or are left out, in HTML."""
    task = y not in figures_runs.QUALITIES
    shown = scores.comparable(points, y) if task else [point for point in points if point.get(y) is not None]
    without = sum(figures_runs.interval(point, y) is None for point in shown)
    if without == len(shown):
        said = "No bars: these points were measured without intervals. " if y in scores.LOSSES else ""
    else:
        what = "paired bootstrap of the difference to dense over "
        what += "the items" if task else "documents, or windows of a short text"
        said = f"Bars: 95 % intervals, {what}. "
        if without:
            said += f"{without} of {len(shown)} points were measured before intervals were kept and have none. "
    if task:
        held, rest = scores.of(shown[0], y)[0], sum(scores.of(point, y) is not None for point in points) - len(shown)
        shots = held.get("shots")
        said += f"{held.get('items') or 'All'} items{f', {shots} shots' if shots is not None else ''}; the same "
        said += "items for every point. "
        if rest:
            said += f"{rest} more points were scored on other items or with other shots and are left out. "
    return said


def sources(x: str, y: str) -> None:
    """Which published points are drawn, of which models, and where each is from."""
    drawn = anchors.on_axes(x, published_axis(x, y))
    models = ", ".join(dict.fromkeys(f"{row['model']} on {row['dataset']}" for row in drawn))
    by_source: dict[str, list[str]] = {}
    for row in drawn:
        methods = by_source.setdefault(row["source"], [])
        if row["method"] not in methods:
            methods.append(row["method"])
    listed = "; ".join(f"{', '.join(methods)} ({linked(source)})" for source, methods in by_source.items())
    st.html(
        f'<p class="k-note" id="published"><b>{anchors.LABEL[0].upper() + anchors.LABEL[1:]}</b>: the thin hollow '
        f"markers are of {html.escape(models)}, another model, text and context than this chart's. They say what is "
        f"usual, and count neither for the front nor for any sentence here. Sources: {listed}.</p>"
    )


def linked(source: str) -> str:
    """A source, in HTML, with a link where it is on arXiv."""
    number = re.search(r"arXiv (\d{4}\.\d{4,5})", source)
    said = html.escape(source)
    return f'<a href="https://arxiv.org/abs/{number[1]}" target="_blank" rel="noopener">{said}</a>' if number else said


def clicked() -> None:
    points = st.session_state.curve["selection"]["points"]
    if points:
        st.session_state.point = points[0]["customdata"]


def selected(points: list[dict]) -> dict | None:
    """The point in view, from this session or the URL."""
    known = {point["id"]: point for point in points}
    chosen = known.get(st.session_state.get("point") or st.query_params.get("point"))
    if chosen is None:
        if gone := common.missing("point", known):
            st.warning(common.plain(f"The point {common.showable(gone)} is not on this chart: choose another."))
        st.query_params.pop("point", None)
    elif st.query_params.get("point") != chosen["id"]:
        st.query_params["point"] = chosen["id"]
    return chosen


def one_point(point: dict) -> None:
    with st.container(border=True, key="k-point"):
        head, buttons = st.columns([3, 2], vertical_alignment="center")
        head.html(f'<p class="k-job"><b>{html.escape(point["label"])}</b></p>')
        with buttons.container(horizontal=True, horizontal_alignment="right", gap="small"):
            if point.get("plan"):
                if st.button("Open this plan on the board", key="to_board", type="primary", icon=":material/tune:"):
                    runs.open_on_board(point)
            else:
                st.caption("No plan: this baseline is not a tensor network.")
            if st.button("Close", key="point_close", type="tertiary"):
                st.session_state.pop("point", None)
                st.query_params.pop("point", None)
                st.rerun(scope="fragment")
        runs.facts(point)


def whole_table(points: list[dict], x: str, y: str) -> None:
    """Every point in a row, as on the chart; choosing a row is choosing its marker."""
    more = figures_runs.quality(points, y).more
    tasks = scores.keys(points)
    for key in tasks:
        points = scores.with_score(points, key)
    front = {point["id"] for point in pareto(points, x, y, maximize=(y,) if more else ())}
    columns = COLUMNS | {key: (key, "percent" if up else "%.4f") for key, up in tasks.items()}
    rows = [
        {key: point.get(key) for key in columns}
        | {
            "predicted_rise": (point.get("predicted") or {}).get("rise"),
            "to_dense": {False: "no measurable difference"}.get(figures_runs.measurable(point, y)),
            "on_front": point["id"] in front,
            "id": point["id"],
        }
        for point in sorted(points, key=lambda point: (point[x], point["label"]))
    ]
    frame = pd.DataFrame(rows)
    frame = frame[[column for column in frame.columns if frame[column].notna().any()]]
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("All points", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame, "karipap-tradeoff", "tradeoff_csv")
    settings = {
        key: st.column_config.TextColumn(label) if form is None else st.column_config.NumberColumn(label, format=form)
        for key, (label, form) in columns.items()
    }
    settings["on_front"] = st.column_config.CheckboxColumn("Front", help="On the Pareto front of these two axes")
    event = st.dataframe(
        frame,
        column_order=[c for c in columns if c in frame.columns],
        column_config=settings,
        hide_index=True,
        height=min(460, 38 + 35 * len(frame)),
        placeholder="",
        key="points",
        on_select="rerun",
        selection_mode="single-row",
        alt="All measured points",
    )
    picked = event["selection"]["rows"]
    if picked and rows[picked[0]]["id"] != st.session_state.get("row"):
        st.session_state.row = st.session_state.point = rows[picked[0]]["id"]
        st.rerun(scope="fragment")


def sweep_form(view, running, first: bool) -> None:
    """Start a sweep: many plans, each measured, beside the baselines."""
    with st.expander("Measure more: a sweep of plans and baselines", expanded=first, key="k-sweep"):
        left, middle, right = st.columns(3, gap="large")
        with left:
            networks = st.multiselect(
                "Networks",
                ["all", *tables.networks()],
                ["lowrank"],
                key="sweep_networks",
                format_func=lambda name: {"all": "all of them"}.get(name) or plan_jobs.NETWORK_SAYS.get(name, name),
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
        if st.button("Start the sweep", type="primary", key="sweep_start", disabled=not ready):
            argv = ["sweep", view.source, "--networks", ",".join(networks), "--rules", ",".join(rules)]
            argv += ["--budgets", budgets, "--scope", scope]
            argv += ["--quantize", stored] if stored != "none" else []
            argv += ["--embedding", embedding] if embedding != "dense" else []
            argv += ["--out", str(Workspace().root), *text, *chosen]
            job.start(argv, f"Sweep {view.checkpoint.name}", "sweep_job")
            st.rerun()
        st.caption(
            "Points appear on the chart as they are measured. Rivals: plain SVD, SVD-LLM's uniform rule, "
            "integers of 8 to 2 bits rounded and by GPTQ, magnitude pruning."
        )


def sweep_tasks(view) -> tuple[list[str], str]:
    """(options of the command line, problem) of the benchmark tasks that every point of a sweep gets besides."""
    there = find_spec("lm_eval") is not None
    causal = view.checkpoint.kind == "causal"
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


with common.plain_errors("drawing the trade-off"):
    page()
