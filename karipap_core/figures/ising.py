"""Plotly figures of the Ising check: the thermodynamic curve, the error by χ, the renormalization flow.

They draw documents of `ising.solve`. See style.py for the manners of all figures.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from karipap_core.figures.style import BLUE, GREEN, GREY, ORANGE, quiet
from karipap_core.studies.ising import CRITICAL, DIMENSIONS, exact

NAMES = {"trg": "TRG", "hotrg": "HOTRG"}
COLORS = {"trg": BLUE, "hotrg": ORANGE}
SYMBOLS = {"trg": "circle", "hotrg": "diamond"}
QUANTITIES = {"free": "Free energy per site f, in J", "ln_z": "ln Z per site"}
FLOOR = 1e-12  # relative errors below this are drawn on it: nothing is told apart there
TOP = 2.2  # levels above this are left out of the flow: no scaling dimension there is resolved


def curve(points: Iterable[dict], chosen: dict, quantity: str = "free") -> go.Figure:
    """The exact curve over T with the computed points on it, and below them their relative errors by decades.

    points: documents of one method and χ at several temperatures; chosen: the one with a ring round it.
    """
    points = sorted(points, key=lambda point: point["temperature"])
    method, chi = chosen["method"], points[0]["chi"] if points else chosen["chi"]
    ends = [point["temperature"] for point in [*points, chosen]]
    temperatures = np.linspace(min(ends), max(ends) + 1e-9, 240)
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.55, 0.45])

    def height(temperature: float, ln_z: float) -> float:
        return -temperature * ln_z if quantity == "free" else ln_z

    figure.add_scatter(
        x=array(temperatures),
        y=array(height(t, exact(t)) for t in temperatures),
        mode="lines",
        hoverinfo="skip",
        name="exact (Onsager)",
        line=dict(color=GREY, width=2),
        row=1,
        col=1,
    )
    ring = dict(symbol="circle-open", size=19, color=GREEN, line=dict(width=2.5))
    for shown, name, marker in (
        (points, f"{NAMES[method]}, χ = {chi}", dict(symbol=SYMBOLS[method], size=8, color=COLORS[method])),
        ([chosen], f"chosen, χ = {chosen['chi']}", ring),
    ):
        style = dict(
            x=array(point["temperature"] for point in shown),
            mode="markers",
            name=name,
            legendgroup=name,
            hovertext=[_says(point, height) for point in shown],
            hovertemplate="%{hovertext}<extra></extra>",
            marker=marker,
        )
        heights = array(height(point["temperature"], point["ln_z_per_site"]) for point in shown)
        figure.add_scatter(y=heights, row=1, col=1, **style)
        errors = array(max(point["relative_error"], FLOOR) for point in shown)
        figure.add_scatter(y=errors, row=2, col=1, showlegend=False, **style)
    figure.add_vline(CRITICAL, line=dict(color=GREY, width=1.2, dash="dot"))
    figure.add_annotation(
        x=CRITICAL,
        y=1,
        yref="y domain",
        yanchor="top",
        xanchor="left",
        text=" T<sub>c</sub>",
        showarrow=False,
        font=dict(size=12, color=GREY),
    )
    quiet(figure, 430)
    figure.update_yaxes(title_text=QUANTITIES[quantity], row=1, col=1)
    decades(figure, [point["relative_error"] for point in [*points, chosen]], row=2, col=1)
    figure.update_yaxes(title_text="Relative error", row=2, col=1)
    figure.update_xaxes(title_text="Temperature T, in J/k<sub>B</sub>", row=2, col=1)
    return figure


def convergence(documents: Sequence[dict], chosen: dict) -> go.Figure:
    """Relative error by χ on logarithmic axes, a line a method."""
    figure = go.Figure()
    for method in NAMES:
        line = sorted((entry for entry in documents if entry["method"] == method), key=lambda entry: entry["chi"])
        text = [f"χ = {entry['chi']}, {entry['relative_error']:.1e}, {entry['seconds']:.2g} s" for entry in line]
        figure.add_scatter(
            x=array(entry["chi"] for entry in line),
            y=array(max(entry["relative_error"], FLOOR) for entry in line),
            mode="lines+markers",
            name=NAMES[method],
            line=dict(color=COLORS[method], width=2),
            marker=dict(symbol=SYMBOLS[method], size=8),
            hovertext=text,
            hovertemplate="%{hovertext}<extra>" + NAMES[method] + "</extra>",
        )
    figure.add_scatter(
        x=array([chosen["chi"]]),
        y=array([max(chosen["relative_error"], FLOOR)]),
        mode="markers",
        hoverinfo="skip",
        name="chosen",
        marker=dict(symbol="circle-open", size=19, color=GREEN, line=dict(width=2.5)),
    )
    quiet(figure, 430)
    ticks = sorted({entry["chi"] for entry in documents})
    figure.update_xaxes(title_text="Bond dimension χ", type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
    decades(figure, [entry["relative_error"] for entry in documents])
    figure.update_yaxes(title_text="Relative error of ln Z per site")
    return figure


def flow(document: dict) -> go.Figure:
    """The two lowest levels of a block's transfer matrix by the side of the block, and the exact dimensions at T_c."""
    figure, last = go.Figure(), 0
    for index, (name, color, symbol) in enumerate((("spin", BLUE, "circle"), ("energy", ORANGE, "diamond"))):
        known = [(entry["block"], entry["levels"][index]) for entry in document["flow"]]
        known = [(block, level) for block, level in known if level is not None and level <= TOP]
        last = max([last, *(block for block, _ in known)])
        figure.add_scatter(
            x=array(block for block, _ in known),
            y=array(level for _, level in known),
            mode="lines+markers",
            name=f"level {index + 1} ({name})",
            line=dict(color=color, width=2),
            marker=dict(symbol=symbol, size=8),
            hovertemplate="block of %{x:.0f} × %{x:.0f}: %{y:.4f}<extra>" + name + "</extra>",
        )
    quiet(figure, 360)
    powers = range(max(1, int(math.log2(max(last, 2)))) + 1)
    ticks = [2**k for k in powers if k % (2 if len(powers) > 8 else 1) == 0]
    figure.update_xaxes(
        title_text="Side of the block that has become one tensor, in sites",
        type="log",
        tickvals=ticks,
        ticktext=[f"{tick:,}" for tick in ticks],
        range=[-0.1, math.log10(2) * (powers[-1] + 0.4)],
    )
    for index, dimension in enumerate(DIMENSIONS):
        figure.add_scatter(
            x=array([ticks[0] / 2, 4 * ticks[-1]]),
            y=array([dimension] * 2),
            mode="lines",
            hoverinfo="skip",
            name="exact at T<sub>c</sub>: 1/8 and 1",
            showlegend=index == 0,
            line=dict(color=GREY, width=1.5, dash="dash"),
        )
    figure.update_yaxes(
        title_text="ln(λ₀ / λᵢ) / 2π", range=[-0.06, TOP], tickvals=[0, *DIMENSIONS, 2], ticktext=["0", "1/8", "1", "2"]
    )
    return figure


def _says(point: dict, height) -> str:
    found, known = (height(point["temperature"], point[key]) for key in ("ln_z_per_site", "exact"))
    return (
        f"<b>T = {point['temperature']:.4g}, χ = {point['chi']}</b><br>{found:.10f}<br>exact {known:.10f}<br>"
        f"relative error {point['relative_error']:.1e}"
    )


def decades(figure: go.Figure, errors: Sequence[float], **where) -> None:
    """A logarithmic axis with a tick every power of ten, or every few where there are many."""
    low, high = (math.log10(max(bound(errors), FLOOR)) for bound in (min, max))
    low, high = math.floor(low), math.ceil(high + 0.05)
    ticks = range(low, high + 1, max(1, (high - low) // 5))
    figure.update_yaxes(
        type="log",
        range=[low - 0.3, high + 0.1],
        tickvals=[10.0**k for k in ticks],
        ticktext=[f"10<sup>{k}</sup>".replace("-", "−") for k in ticks],
        **where,
    )


def array(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)
