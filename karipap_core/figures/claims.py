"""Plotly figures of claims (claims.py) and of a network's size over χ. See style.py for the manners of all."""

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.figures.style import BELOW, BLUE, FAINT, GOLD, GREEN, GREY, ORANGE, PURPLE, log_ticks, wrapped

COLORS = (BLUE, ORANGE, GREEN, PURPLE, GOLD, "#5b5fc7", "#b0487a", GREY)
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
BY_DECADES = ("Million parameters", "Rows drawn over the rows there are")  # x axes that are logarithmic
FLOOR = 1e-9  # what is drawn on a logarithmic axis for 0 and less


def chart(document: dict) -> go.Figure:
    """A chart of a claim's document: {"kind" ("lines", "points" or "bars"), "title", "x", "y", "log", "series"}.

    No series is told from another by colour alone. A series' values that cannot stand on a logarithmic axis are drawn
    at its lowest positive value of all.
    """
    figure, log = go.Figure(), document["log"]
    positive = [value for series in document["series"] for value in series["y"] if value > 0]
    floor = min(positive, default=FLOOR)
    for number, series in enumerate(document["series"]):
        color, symbol = COLORS[number % len(COLORS)], SYMBOLS[number % len(SYMBOLS)]
        y = np.array([max(value, floor) if log else value for value in series["y"]], np.float32)
        if document["kind"] == "bars":
            figure.add_bar(
                x=series["x"],
                y=y,
                name=series["name"],
                marker=dict(color=color),
                text=[_short(v) for v in series["y"]],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{x}: %{y:.4g}<extra></extra>",
            )
            continue
        figure.add_scatter(
            x=series["x"],
            y=y,
            name=series["name"],
            mode="markers" if document["kind"] == "points" else "lines+markers",
            marker=dict(color=color, symbol=symbol, size=8 if len(y) < 60 else 5),
            line=dict(color=color, width=2, dash=DASHES[number // len(COLORS) % len(DASHES)]),
            hovertemplate="%{x}: %{y:.4g}<extra>" + series["name"] + "</extra>",
        )
    _frame(figure, document["title"], document["x"], document["y"], log)
    if log and positive:
        figure.update_yaxes(**log_ticks(min(positive), max(positive)))
    if document["kind"] == "bars" or len(document["series"]) == 1:
        figure.update_layout(showlegend=False)
    if document["x"] == "Layer":
        figure.update_xaxes(dtick=1 if max(map(len, (s["x"] for s in document["series"]))) <= 16 else None)
    places = [x for series in document["series"] for x in series["x"] if isinstance(x, int | float) and x > 0]
    if document["x"] in BY_DECADES and places:
        figure.update_xaxes(type="log", **log_ticks(min(places), max(places)))
    if "kept" in document["x"] or "Removed" in document["x"]:
        figure.update_xaxes(tickformat=".0%")
    return figure


def size_curve(chi: Sequence[int], kept: Sequence[float], adds: Sequence[float], chosen: int) -> go.Figure:
    """Bytes and multiply-adds of a network over those of the dense weight, by χ, on logarithmic axes."""
    figure = go.Figure()
    lines = (("bytes", kept, BLUE, "circle", "solid"), ("multiply-adds a token", adds, ORANGE, "square", "dash"))
    for name, values, color, symbol, dash in lines:
        figure.add_scatter(
            x=list(chi),
            y=np.array(values, np.float32),
            name=name,
            mode="lines+markers",
            line=dict(color=color, width=2, dash=dash),
            marker=dict(symbol=symbol, size=6),
            hovertemplate="χ = %{x}: %{y:.3g} times dense<extra>" + name + "</extra>",
        )
    figure.add_hline(1, line=dict(color=GREY, width=1.2, dash="dot"))
    figure.add_annotation(
        xref="paper",
        x=0,
        xanchor="left",
        y=0,
        yanchor="bottom",
        text=" dense",
        showarrow=False,  # y = 0 is 10⁰
        font=dict(size=12, color=GREY),
    )
    figure.add_vline(chosen, line=dict(color=GREEN, width=1.5))
    _frame(figure, "", "χ", "Over dense", True, 260)
    figure.update_xaxes(type="log", **log_ticks(min(chi), max(chi)))
    figure.update_yaxes(**log_ticks(min(*kept, *adds), max(*kept, *adds)))
    return figure


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _frame(figure: go.Figure, title: str, x: str, y: str, log: bool, height: int = 360) -> None:
    words = wrapped(title)
    figure.update_layout(
        height=height + 18 * max(0, len(figure.data) - 2),  # a line of the legend each, where the page is narrow
        margin=dict(l=8, r=8, t=30 + 20 * words.count("<br>") + 8 if title else 12, b=8),
        hovermode="closest",
        title=dict(text=words, font=dict(size=15), x=0, xanchor="left", y=1, yanchor="top", pad=dict(t=18))
        if title
        else None,
        legend=BELOW,
        uirevision="claims",
    )
    figure.update_xaxes(title_text=x, gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y, gridcolor=FAINT, zeroline=False, automargin=True)
    if log:
        figure.update_yaxes(type="log")
