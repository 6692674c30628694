"""Plotly figure of predicted against measured rises in loss (predictions.py). See style.py for the manners of all."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.evaluation.scores import NORMAL
from karipap_core.figures.methods import RIVALS, network_color
from karipap_core.figures.style import BELOW, FAINT, GREY, ORANGE, escape, log_ticks
from karipap_core.plan.predictions import CURVE, Pair

# How a prediction was made and where it was held against: name, symbol.
KINDS = {
    "held out": ("on held-out text", "circle"),
    "calibration": ("on calibration text", "square-open"),
    "itself": ("measured itself before", "diamond-open"),
}
FLOOR = 1e-4  # nats: below lies noise, which would stretch the axes


def kind(pair: Pair) -> str:
    """Which of `KINDS` a pair is."""
    if pair.source != CURVE:
        return "itself"
    return "calibration" if pair.text is None else "held out"


def drawn(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that these axes can show."""
    return [pair for pair in pairs if min(pair.predicted, pair.measured) >= FLOOR]


def scatter(pairs: Sequence[Pair], error: float | None = None, selected: str | None = None) -> go.Figure:
    """Predicted against measured rise, nats a token, log-log, with the diagonal and a band of ± `error` round it.

    Colours are networks, symbols `KINDS`, bars 95 % of the measuring (±1.96 standard errors); pairs within their own
    noise (`Pair.above_noise`) are pale, and those below `FLOOR` are not drawn. Every marker's `customdata` is its run's
    id.
    """
    shown = drawn(pairs)
    figure = go.Figure()
    values = [value for pair in shown for value in (pair.predicted, pair.measured)] or [0.01, 1.0]
    ends = np.array([min(values) / 1.6, max(values) * 1.6])
    if error is not None:
        # Off by no more than e: measured between predicted / (1 + e) and predicted / (1 − e).
        above = 1 / max(1 - error, 0.05)
        for factor, fill in ((1 / (1 + error), None), (above, "tonexty")):
            figure.add_scatter(
                x=_array(ends),
                y=_array(ends * factor),
                mode="lines",
                line_width=0,
                fill=fill,
                showlegend=False,
                fillcolor="rgba(128,134,140,0.16)",
                hoverinfo="skip",
            )
    figure.add_scatter(
        x=_array(ends), y=_array(ends), mode="lines", line=dict(color=GREY, width=1), hoverinfo="skip", showlegend=False
    )
    for method in sorted({pair.method for pair in shown}):
        for each, (says, symbol) in KINDS.items():
            if members := [pair for pair in shown if pair.method == method and kind(pair) == each]:
                figure.add_trace(_markers(members, method, each, says, symbol, ends[0]))
    for pair in shown:
        if selected is not None and pair.id == selected:
            figure.add_scatter(
                x=_array([pair.predicted]),
                y=_array([pair.measured]),
                mode="markers",
                hoverinfo="skip",
                showlegend=False,
                marker=dict(symbol="circle-open", size=20, color=ORANGE, line=dict(width=2.5)),
            )
    figure.update_layout(
        height=560,
        margin=dict(l=8, r=8, t=8, b=8),
        hovermode="closest",
        legend=BELOW,
    )
    axis = dict(type="log", gridcolor=FAINT, zeroline=False, automargin=True)
    axis |= log_ticks(min(values), max(values))
    figure.update_xaxes(title_text="predicted rise, nats a token", **axis)
    figure.update_yaxes(title_text="measured rise, nats a token", **axis)
    return figure


def _markers(members: list[Pair], method: str, each: str, says: str, symbol: str, floor: float) -> go.Scatter:
    color = RIVALS[method].color if method in RIVALS else network_color(method)
    reach = [NORMAL * pair.error if pair.error else math.nan for pair in members]
    down = [min(r, pair.measured - floor) for r, pair in zip(reach, members, strict=True)]
    return go.Scatter(
        x=_array(pair.predicted for pair in members),
        y=_array(pair.measured for pair in members),
        mode="markers",
        name=method if each == "held out" else f"{method}, {says}",
        customdata=[pair.id for pair in members],
        hovertext=[_hover(pair, says) for pair in members],
        hovertemplate="%{hovertext}<extra></extra>",
        error_y=dict(
            type="data",
            symmetric=False,
            array=_array(reach),
            arrayminus=_array(down),
            color=color,
            thickness=1,
            width=3,
        ),
        marker=dict(
            symbol=symbol,
            size=9,
            color=color,
            opacity=[1.0 if pair.above_noise else 0.35 for pair in members],
            line=dict(width=1.6 if symbol.endswith("open") else 0),
        ),
    )


def _hover(pair: Pair, says: str) -> str:
    lines = [f"<b>{escape(pair.label)}</b>", f"predicted {pair.predicted:.4f}, measured {pair.measured:.4f}"]
    if pair.error:
        lines[-1] += f" ± {pair.error:.2g}"
    lines.append(f"predicted / measured {pair.predicted / pair.measured:.3f}")
    if pair.stated is not None:
        lines[-1] += f"; ±{pair.stated:.0%} was stated"
    lines.append(escape(f"{says}{f': {pair.text}' if pair.text and pair.source == CURVE else ''}"))
    if not pair.above_noise:
        lines.append("within its own noise: not counted")
    return "<br>".join(lines)


def _array(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)
