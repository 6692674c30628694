"""Trade-off: every run and every baseline of the model on one chart, size against quality."""

import html
import re
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.evaluation import scores
from karipap_core.figures import axes
from karipap_core.figures import runs as figures_runs
from karipap_core.figures.methods import network_color
from karipap_core.figures.published import add_published
from karipap_core.plan.checks import rise_of
from karipap_core.statistics.pareto import pareto
from karipap_core.tradeoffs import published as anchors
from karipap_core.tradeoffs import ranking
from karipap_core.workspace.runs import stamp
from pages.parts import common, curve, model, naming, predicted, runs, terms, winner

SHOWN = {"tradeoff": "Size against quality", "predictions": "Predicted against measured"}
COLUMNS = {
    "label": ("Point", None),
    "kind": ("Kind", None),
    "bytes_kept": ("Bytes kept", "percent"),
    "kept": ("Parameters kept", "percent"),
    "kept_blocks": ("Blocks kept", "percent"),
    "rise": ("Rise", "%.4f"),
    "interval": ("95 % interval", None),
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


WORDS = (
    *("kept", "bytes_kept", "loss", "rise", "perplexity", "bits_per_byte", "kl", "top1", "interval", "pareto"),
    *("baseline", "calibrated", "cores", "qlr", "lowrank", "quantized", "heldout", "nats"),
)


def page() -> None:
    view = model.current()
    common.title(
        "Trade-off", "What compression costs: each point is one measured model, and rivals stand on the same axes."
    )
    st.html(Path(runs.__file__).with_name("tradeoff.css"))
    points = runs.of_model(view)
    shown = "tradeoff"
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center", key="k-head"):
        if points:
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
        curve.button(points)
    curve.form(view, points)
    if not points:
        st.info("Nothing has been measured on this model yet. Measure a curve, or compress a plan on the Plan page.")
    elif shown == "predictions":
        predicted.page(view)
    else:
        chart(view, same_conditions(points))
    runs.say_passed_over(runs.passed_over())
    terms.strip(*WORDS)


def same_conditions(points: list[dict]) -> list[dict]:
    """The runs measured on one text in one way; the reader chooses where there are several, and a point that is asked
    for brings its own."""
    groups: dict = {}
    for point in points:
        groups.setdefault(runs.conditions(point), []).append(point)
    ranked = sorted(groups.values(), key=len, reverse=True)
    if len(ranked) == 1:
        return ranked[0]
    names = {f"{i + 1}": f"{runs.say_conditions(group[0])} ({len(group)})" for i, group in enumerate(ranked)}
    point = st.session_state.get("point") or st.query_params.get("point")
    if point != st.session_state.get("measured_for"):  # once: where the reader goes on to another text, that one stays
        st.session_state.measured_for = point
        homes = [name for name, group in zip(names, ranked, strict=True) if point in [each["id"] for each in group]]
        if homes:
            st.session_state.measured = homes[0]
    chosen = common.choose(st.selectbox, "Measured on", list(names), "measured", "1", format_func=names.get)
    return ranked[int(chosen) - 1]


def chart(view, points: list[dict]) -> None:
    qualities = [key for key in axes.QUALITIES if any(point.get(key) is not None for point in points)]
    qualities += list(scores.keys(points))
    if not qualities:
        why = dict.fromkeys(note for point in points for note in point.get("notes", ()))
        st.info(common.plain(" ".join(["No quality was measured, so there is nothing to draw.", *why])))
        return
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-axes"):
        x = common.choose(
            st.selectbox,
            "Size",
            list(axes.SIZES),
            "x",
            "bytes_kept",
            width=230,
            filter_mode=None,
            format_func=lambda key: axes.SIZES[key].label,
        )
        y = common.choose(
            st.selectbox,
            "Quality",
            qualities,
            "y",
            qualities[0],
            width=230,
            filter_mode=None,
            format_func=lambda key: axes.quality(points, key).label,
        )
        scale = common.choose(st.segmented_control, "Scale", ["auto", "linear", "log"], "scale", "auto", required=True)
        published = with_published(x, y)
    line, rest = winner.told(points, x, y)
    st.html(f'<p class="k-verdict">{html.escape(line)}</p>')
    if rest != line:
        with st.expander("All comparisons", key="k-comparisons"):
            st.html(f'<p class="k-verdict">{html.escape(rest)}</p>')
    runs.warn_of_text(*points)
    log = {"auto": None, "linear": False, "log": True}[scale]
    picture(view, points, x, y, log, published)
    equal_bytes(points)


def published_axis(x: str, y: str) -> str | None:
    """What published points are called on these axes, None where to draw them would compare models with each other:
    their perplexity is that of another model on another text, only its rise can stand beside this one's."""
    name = y if y in axes.QUALITIES else y.rpartition(": ")[0]
    return name if (y == "rise" or y not in axes.QUALITIES) and anchors.on_axes(x, name) else None


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
    st.subheader("Every network in the same bytes", anchor=False)
    st.html(f'<p class="k-verdict">{html.escape(ranking.sentence(ranked))}</p>')
    what = "rise in loss, nats a token" if ranked.quality == "rise" else "relative output error"
    head = "".join(f'<th scope="col">{size:.0%}</th>' for size in ranking.SIZES)
    body = "".join(_ranked_row(ranked, index) for index in range(len(ranked.rows)))
    st.html(
        f'<div class="k-rank" role="region" aria-label="Every network in the same bytes" tabindex="0">'
        f'<table><thead><tr><th scope="col">{what}</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )
    st.html(
        '<p class="k-note">Columns are bytes kept of the blocks (16 bits for every number that is not quantized). Each '
        "cell is read off its method's own measured curve: a number in italics lies between two measured points, a "
        "dash beyond them: not measured. Bold: least, or no measurable difference to that. ≈ dense: no measurable "
        "difference to the dense model. Filled dots are networks, rings their rivals; rows are ordered by their "
        "places over all sizes."
        "</p>"
    )


def _ranked_row(ranked: ranking.Ranking, index: int) -> str:
    row = ranked.rows[index]
    cells = []
    for point, winners in zip(row.points, ranked.winners, strict=True):
        if point is None:
            cells.append("<td>–</td>")
            continue
        number = f"{point[ranked.quality]:z.4f}"  # no minus before a nought
        number = f"<b>{number}</b>" if index in winners else number
        number = f"<em>{number}</em>" if "between" in point else number
        small = "<small>≈ dense</small>" if axes.measurable(point, ranked.quality) is False else ""
        cells.append(f'<td title="{html.escape(point["label"], quote=True)}">{number}{small}</td>')
    color = network_color(row.method.split()[0].rstrip(",")) if row.network else "currentColor"
    mark = f'<i style="{"background" if row.network else "border-color"}:{color}"></i>'
    return f'<tr><th scope="row">{mark}{html.escape(row.method)}</th>{"".join(cells)}</tr>'


@model.fragment
def picture(view, points: list[dict], x: str, y: str, log: bool | None, published: bool) -> None:
    """Chart, chosen point and table; a click re-runs only this."""
    with common.plain_errors("drawing the trade-off"):
        _picture(view, points, x, y, log, published)


def _picture(view, points: list[dict], x: str, y: str, log: bool | None, published: bool) -> None:
    chosen = selected(points)
    what = tuple((point["id"], point["label"], stamp(Path(point["path"]))) for point in points)
    fig = drawn(what, points, x, y, log, chosen and chosen["id"], frozenset(runs.own(points)), published)
    with st.container(key="k-curve-published" if published else "k-curve-box"):
        common.figure(
            fig,
            "curve",
            "Size against quality of every measured model; the same numbers are in the table below.",
            "karipap-tradeoff",
            f"{axes.SIZES[x].label} against {axes.quality(points, y).label.lower()}",
            runs.say_conditions(points[0]),
            on_select=clicked,
            selection_mode="points",
            height="stretch",  # as tradeoff.css has it: the legend below the chart takes more lines on a narrow screen
        )
    size, quality = axes.SIZES[x], axes.quality(points, y)
    dense = (points[0].get("dense") or {}).get("loss")
    st.html(
        f'<p class="k-note"><b>{size.label}</b>: {size.says}. <b>{html.escape(quality.label)}</b>: {quality.says}. '
        f"Measured on {html.escape(runs.say_conditions(points[0]))}"
        f"{f'; dense loss {dense:.4f}' if dense is not None else ''}. Filled markers are tensor networks, hollow "
        f"ones baselines, stars your own runs; the wide band is the Pareto front. {bars(points, y)}"
        "Click a point for its plan, a name of the legend to hide its group.</p>"
    )
    if published:
        sources(x, y)
    if chosen:
        one_point(chosen)
    whole_table(view, points, x, y)


@st.cache_resource(max_entries=32, show_spinner=False)
def drawn(what: tuple, _points: list[dict], x: str, y: str, log, selected: str | None, own: frozenset, published: bool):
    """The figure, which is made once for points that stay as they are (`what`): that takes longer than all else here.
    Nobody may change it."""
    fig = figures_runs.tradeoff(_points, x, y, log, selected, own)
    return add_published(fig, x, published_axis(x, y)) if published else fig


def bars(points: list[dict], y: str) -> str:
    """What the bars are, and how many points have none or are left out, in HTML."""
    task = y not in axes.QUALITIES
    shown = scores.comparable(points, y) if task else [point for point in points if point.get(y) is not None]
    without = sum(axes.interval(point, y) is None for point in shown)
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
    if points and points[0].get("customdata"):  # the dense model has no plan
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
        described = f"<span>{html.escape(point['described'])}</span>" if point.get("described") else ""
        head.html(f'<p class="k-job"><b>{html.escape(point["label"])}</b>{described}</p>')
        with buttons.container(horizontal=True, horizontal_alignment="right", gap="small"):
            if point.get("plan"):
                if st.button("Open this plan on the board", key="to_board", type="primary", icon=":material/tune:"):
                    runs.open_on_board(point)
                if point["id"] in runs.own([point]) and st.button("Take it home", key="home", icon=":material/home:"):
                    st.session_state.run = point["id"]
                    query = {"model": st.session_state.model, "run": point["id"]}
                    st.switch_page("pages/run.py", query_params=query)
            else:
                st.caption("No plan: this baseline is not a tensor network.")
            if st.button("Close", key="point_close", type="tertiary"):
                st.session_state.pop("point", None)
                st.query_params.pop("point", None)
                st.rerun(scope="fragment")
        runs.facts(point)


def whole_table(view, points: list[dict], x: str, y: str) -> None:
    """Every point in a row, as on the chart; choosing a row is choosing its marker."""
    more = axes.quality(points, y).more
    tasks = scores.keys(points)
    for key in tasks:
        points = scores.with_score(points, key)
    front = {point["id"] for point in pareto(points, x, y, maximize=(y,) if more else ())}
    columns = COLUMNS | {key: (key, "percent" if up else "%.4f") for key, up in tasks.items()}
    rows = [
        {key: point.get(key) for key in columns}
        | {
            "interval": in_short(point),
            "rise_low": point.get("rise_low"),
            "rise_high": point.get("rise_high"),
            "predicted_rise": rise_of(point.get("predicted")),
            "to_dense": {False: "no measurable difference"}.get(axes.measurable(point, y)),
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
        common.csv_button(frame, naming.file_name(view.checkpoint.name, "tradeoff"), "tradeoff_csv")
    settings = common.columns(columns)
    settings["on_front"] = st.column_config.CheckboxColumn("Front", help="On the Pareto front of these two axes")
    event = st.dataframe(
        common.no_signed_zeros(frame, {key: form for key, (_, form) in columns.items()}),
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


def in_short(point: dict) -> str | None:
    """The interval of a point's rise, as a cell of the table has it."""
    found = axes.interval(point, "rise")
    return f"{found[0]:z.4f} to {found[1]:z.4f}" if found else None


with common.plain_errors("drawing the trade-off"):
    page()
