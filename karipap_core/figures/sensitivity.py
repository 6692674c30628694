"""Plotly figures of a sensitivity measurement (studies/sensitivity): map, scatter, ρ of every measure, layers.

See style.py for the manners of all figures. `quality` is what was measured: "rise" in loss or "kl" to the dense
model, nats a token, or an encoder's "relative_error" of the output. On logarithmic axes what is at or below the floor
is drawn on the floor (of a rise: noise on a few thousand tokens); hovering gives the true number.
"""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.checkpoint.roles import ORDER
from karipap_core.figures.map import Numbers, weight_map
from karipap_core.figures.style import BELOW, BLUE, FAINT, GOLD, GREEN, GREY, ORANGE, PURPLE, escape, log_ticks
from karipap_core.studies.sensitivity.foretell import MEASURES, in_words

LABELS = {"rise": "rise in loss", "kl": "KL divergence", "relative_error": "output error"}
UNITS = {"rise": ", nats a token", "kl": ", nats a token", "relative_error": ""}
FLOORS = {"rise": 1e-4, "kl": 1e-9, "relative_error": 1e-9}
WIDE = 3.0
STYLES = (
    (BLUE, "circle"),
    (ORANGE, "diamond"),
    (GREEN, "triangle-up"),
    (PURPLE, "square"),
    (GOLD, "pentagon"),
    (GREY, "star"),
    ("#b8336a", "hexagon"),
    ("#3a8f9c", "cross"),
)


def sensitivity_map(weights: Sequence[dict], rows: Sequence[dict], quality: str = "rise", selected: str | None = None):
    """Layers down, roles across, what each weight lost alone, by decades; the same look and clicks as the profile's.

    `weights`: the model's, dictionaries with name, layer, role, shape; rows as measured. The members of a group have
    what the group lost. A weight that was not measured has no colour.
    """
    values = {name: row[quality] for row in rows if row[quality] is not None for name in row["members"]}
    unit = UNITS[quality].removeprefix(", ")
    return weight_map(weights, Numbers(values, LABELS[quality], unit, log=True, floor=FLOORS[quality]), selected)


def scatter(
    rows: Sequence[dict], measure: str, quality: str = "rise", found: dict | None = None, selected: str | None = None
) -> go.Figure:
    """A measure against what was measured, a point a part, its interval upright; ρ and its interval in the title.

    Both axes run by decades, but for a measure that spans less than a factor of `WIDE` or reaches zero. A colour and a
    symbol for each role; every marker's `customdata` is the name of the part.
    """
    floor = FLOORS[quality]
    known = [row for row in rows if row.get(measure) is not None and row[quality] is not None]
    values = [row[measure] for row in known] or [1.0]
    by_decades = min(values) > 0 and max(values) >= WIDE * min(values)
    figure = go.Figure()
    roles = sorted({row["role"] for row in known}, key=lambda role: ORDER.index(role) if role in ORDER else 99)
    for number, role in enumerate(roles):
        color, symbol = STYLES[number % len(STYLES)]
        mine = [row for row in known if row["role"] == role]
        y = np.array([max(row[quality], floor) for row in mine], np.float32)
        low, high = (
            np.array([max(_end(row, key, quality), floor) for row in mine], np.float32)
            for key in ("rise_low", "rise_high")
        )
        figure.add_scatter(
            x=np.array([row[measure] for row in mine], np.float32),
            y=y,
            mode="markers",
            name=role or "layers",
            customdata=[row["name"] for row in mine],
            hovertext=[_hover(row, measure, quality) for row in mine],
            hovertemplate="%{hovertext}<extra></extra>",
            marker=dict(color=color, symbol=symbol, size=10),
            error_y=dict(
                type="data",
                array=np.maximum(high - y, 0),
                arrayminus=np.maximum(y - low, 0),
                thickness=1,
                width=0,
                color=color,
                visible=quality == "rise",
            ),
            selectedpoints=[i for i, row in enumerate(mine) if row["name"] == selected],
            selected_marker_opacity=1,
            unselected_marker_opacity=1,
        )
    for row in known:
        if row["name"] == selected:
            figure.add_scatter(
                x=[row[measure]],
                y=[max(row[quality], floor)],
                mode="markers",
                hoverinfo="skip",
                showlegend=False,
                marker=dict(symbol="circle-open", size=20, color=ORANGE, line_width=2.5),
            )
    _frame(figure, MEASURES[measure].label, _capital(LABELS[quality]) + UNITS[quality], 460)
    said = in_words(found) if found else f"{len(known)} measured: too few for ρ"
    figure.update_layout(
        clickmode="event+select",
        title=dict(text=said, font_size=13, x=0, xref="paper"),
        margin_t=44,
        legend=BELOW,
        showlegend=len(roles) > 1,
        uirevision=measure,
        selectionrevision=str(selected),
    )
    heights = [max(row[quality], floor) for row in known] or [1.0]
    figure.update_yaxes(type="log", **log_ticks(min(heights), max(heights)))
    if by_decades:
        figure.update_xaxes(type="log", **log_ticks(min(values), max(values)))
    if known and min(row[quality] for row in known) < floor:
        figure.add_annotation(
            x=1,
            xref="paper",
            y=np.log10(floor),
            text=f"at or below {floor:g}",
            showarrow=False,
            xanchor="right",
            yanchor="top",
            font=dict(size=11, color=GREY),
        )
    return figure


def _end(row: dict, key: str, quality: str) -> float:
    """An end of the interval; KL and output errors have none."""
    return row[key] if quality == "rise" and row.get(key) is not None else row[quality]


def _hover(row: dict, measure: str, quality: str) -> str:
    lines = [f"<b>{escape(row['name'])}</b>", f"{MEASURES[measure].label.lower()} {row[measure]:.4g}"]
    lines.append(f"{LABELS[quality]} {row[quality]:.4g}")
    if quality == "rise" and row.get("rise_low") is not None:
        lines[-1] += f" ({row['rise_low']:.4g} to {row['rise_high']:.4g})"
    return "<br>".join(lines)


def forest(spearman: dict[str, dict]) -> go.Figure:
    """ρ of every measure with its interval: over all parts, and within roles. What reaches over 0 tells nothing."""
    keys = list(spearman)
    figure = go.Figure()
    both = (("all", BLUE, "circle", -0.16), ("within roles", ORANGE, "diamond", 0.16))
    for name, color, symbol, shift in both:
        shown = [(place, spearman[key] if name == "all" else spearman[key]["within"]) for place, key in enumerate(keys)]
        shown = [(place, found) for place, found in shown if found]
        if not shown:
            continue
        rho, low, high = (np.array([found[k] for _, found in shown], np.float32) for k in ("rho", "low", "high"))
        figure.add_scatter(
            x=rho,
            y=np.array([place + shift for place, _ in shown], np.float32),
            mode="markers",
            name=name,
            error_x=dict(type="data", array=high - rho, arrayminus=rho - low, thickness=2, width=0, color=color),
            marker=dict(color=color, symbol=symbol, size=10),
            hovertext=[
                f"<b>{MEASURES[keys[place]].label}</b>, {name}<br>{in_words(found)}<br>n = {found['n']}"
                for place, found in shown
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    figure.add_vline(0, line=dict(color=GREY, width=1.2, dash="dash"))
    _frame(figure, "Spearman's ρ, 95 % interval", "", 70 + 38 * max(len(keys), 3))
    figure.update_xaxes(range=[-1.05, 1.05], gridcolor=FAINT)
    figure.update_yaxes(
        tickvals=list(range(len(keys))),
        ticktext=[MEASURES[key].label for key in keys],
        showgrid=False,
        range=[len(keys) - 0.5, -0.5],
    )
    return figure


def layers(rows: Sequence[dict], quality: str = "rise") -> go.Figure:
    """What the model loses when all weights of one layer are compressed, layer by layer: CompactifAI's figure."""
    shown = [row for row in rows if row[quality] is not None]
    y = np.array([row[quality] for row in shown], np.float32)
    more = {}
    if shown and quality == "rise" and all(row.get("rise_low") is not None for row in shown):
        low, high = (np.array([row[key] for row in shown], np.float32) for key in ("rise_low", "rise_high"))
        more["error_y"] = dict(type="data", array=high - y, arrayminus=y - low, thickness=1.5, width=4, color=GREY)
    figure = go.Figure()
    figure.add_bar(
        x=[row["name"].removeprefix("layer ") for row in shown],
        y=y,
        marker_color=BLUE,
        hoverinfo="text",
        hovertext=[
            f"<b>{escape(row['name'])}</b>, {len(row['members'])} weights<br>{LABELS[quality]} {row[quality]:.4g}"
            for row in shown
        ],
        **more,
    )
    _frame(figure, "layer, compressed alone", _capital(LABELS[quality]) + UNITS[quality])
    figure.update_layout(bargap=0.35)
    figure.update_xaxes(type="category")
    return figure


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _frame(figure: go.Figure, x: str, y: str, height: int = 320) -> None:
    """Quiet axes, the legend above the plot."""
    figure.update_layout(
        height=height,
        margin=dict(l=8, r=12, t=36, b=8),
        hovermode="closest",
        legend=dict(orientation="h", x=0, y=1.02, xanchor="left", yanchor="bottom", title_text=""),
    )
    figure.update_xaxes(title_text=x, gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y, gridcolor=FAINT, zeroline=False, automargin=True)
