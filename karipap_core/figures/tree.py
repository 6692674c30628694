"""Plotly figures of trees over layers: the entropy of every edge, and the error against per-layer low rank.

Drawn from plain rows and arrays, as `networks/tree` gives them (edges.py, `group_curve`). See style.py for
the manners of all figures.
"""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.checkpoint.roles import place
from karipap_core.figures.style import BLUE, FAINT, GREY, ORANGE, POINTS, escape, log_ticks

WIDEST = 26  # pixels of the edge with the largest entropy there is in the figure, where there are no more than …
THINNER = 12  # … leaves: of more of them all edges are as much thinner, and leaves stay apart
NAMED = 6  # leaves that have their numbers under them
SAYS = {
    "in": "basis of the inputs, all layers stacked",
    "out": "basis of the outputs, all layers stacked",
    "layer": "layer index: whole layers alike, entry by entry",
    "own": "this layer alone: what low rank cuts",
}


def tree(rows: Sequence[dict], share: str | None = None) -> go.Figure:
    """A group as a tree: inputs, outputs and the layer index as branches, the layers as leaves.

    rows : `group_profile`'s, {"edge", "entropy", "null", "members"}. An edge is as thick as its entropy; the pale band
    behind is as thick as the entropy of a Gaussian of the same cut, so a band that shows is structure. `share` ("in",
    "out" or "both") draws the branches that the group stores once in orange and says so.
    """
    leaves = [row for row in rows if row["edge"] == "own"]
    spread = np.linspace(-1, 1, len(leaves)) if len(leaves) > 1 else np.zeros(1)
    ends = {"in": (-1.0, 1.0), "out": (1.0, 1.0), "layer": (0.0, -0.4)}
    shared = {"in", "out"} if share in ("both", "all") else {share}
    widest = max([max(row["entropy"], row["null"]) for row in rows] + [1e-9]) * max(1, len(leaves) / THINNER)
    x, y, hover = [], [], []
    bands: list[dict] = []
    edges: list[dict] = []
    for row in rows:
        once = row["edge"] in shared
        if row["edge"] == "own":
            start, end = ends["layer"], (float(spread[leaves.index(row)]), -1.4)
        else:
            start, end = (0.0, 0.3), ends[row["edge"]]
        for lines, size, color in ((bands, row["null"], FAINT), (edges, row["entropy"], ORANGE if once else BLUE)):
            lines.append(
                go.Scatter(
                    x=np.array([start[0], end[0]], np.float32),
                    y=np.array([start[1], end[1]], np.float32),
                    mode="lines",
                    line=dict(color=color, width=max(0.5, WIDEST * size / widest)),
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
        x.append((start[0] + 2 * end[0]) / 3)
        y.append((start[1] + 2 * end[1]) / 3)
        name = escape(row["members"][0]) if row["edge"] == "own" else f"{len(row['members'])} layers"
        hover.append(
            f"<b>{SAYS[row['edge']]}</b>{' (stored once)' if once else ''}<br>{name}<br>S {row['entropy']:.3f} nats, "
            f"Gaussian {row['null']:.3f}, excess {row['null'] - row['entropy']:.3f}"
        )
    figure = go.Figure([*bands, *edges])
    figure.add_scatter(
        x=np.array(x, np.float32),
        y=np.array(y, np.float32),
        mode="markers",
        hovertext=hover,
        showlegend=False,
        hovertemplate="%{hovertext}<extra></extra>",
        marker=dict(size=22, color="rgba(0,0,0,0)"),
    )
    for text, edge in (("inputs", "in"), ("outputs", "out")):
        color = ORANGE if edge in shared else BLUE
        row = next(row for row in rows if row["edge"] == edge)
        label = f"{text}{', stored once' if edge in shared else ''}<br>S {row['entropy']:.2f} of {row['null']:.2f}"
        _label(figure, ends[edge][0], 1.12, label, color, "center", "bottom")
    row = next(row for row in rows if row["edge"] == "layer")
    _label(figure, 0.12, -0.05, f"layers S {row['entropy']:.2f} of {row['null']:.2f}", GREY, "left", "middle")
    step = max(1, math.ceil(len(leaves) / NAMED))
    for at in range(0, len(leaves), step):
        layer = place(leaves[at]["members"][0])[0]
        name = leaves[at]["members"][0] if layer is None else f"layer {layer}" if len(leaves) <= 4 else str(layer)
        _label(
            figure, float(spread[at]), -1.45, f"{escape(name)}<br>{leaves[at]['entropy']:.2f}", GREY, "center", "top"
        )
    figure.update_layout(
        height=380, margin=dict(l=8, r=8, t=24, b=8), hovermode="closest", dragmode=False, uirevision="keep"
    )
    figure.update_xaxes(visible=False, range=[-1.45, 1.45], fixedrange=True)
    figure.update_yaxes(visible=False, range=[-2.0, 1.8], fixedrange=True)
    return figure


def against_lowrank(parameters, error, total, lowrank_parameters, lowrank_error, dense: int) -> go.Figure:
    """Relative metric error of a tree against its size, over per-layer low rank at one price: equal parameters.

    parameters (levels,), error (levels,) or (levels, members), total a number or (members,): of a `GroupCurve`.
    lowrank_parameters, lowrank_error : `lowrank_line`'s.  dense : numbers in the dense group; what is larger is left
    out.
    """
    total = float(np.sum(total))
    parameters, error = np.asarray(parameters), np.asarray(error, dtype=np.float64)
    error = error.sum(axis=1) if error.ndim == 2 else error
    line, bar = np.asarray(lowrank_parameters), np.asarray(lowrank_error, dtype=np.float64)
    shown = (line < dense) & (line > 0) & (bar > 1e-12 * total)
    line, bar = line[shown], bar[shown]
    pick = np.unique(np.linspace(0, max(len(line) - 1, 0), min(POINTS, len(line))).round().astype(int))
    figure = go.Figure()
    figure.add_scatter(
        x=np.asarray(line[pick] / dense, np.float32),
        y=np.asarray(bar[pick] / total, np.float32),
        mode="lines",
        name="low rank, each layer",
        line=dict(color=GREY, width=2, dash="dash"),
        hovertemplate="%{y:.3g}<extra>low rank, each layer</extra>",
    )
    figure.add_scatter(
        x=np.asarray(parameters / dense, np.float32),
        y=np.asarray(error / total, np.float32),
        mode="lines+markers",
        name="tree over the layers",
        line=dict(color=ORANGE, width=2),
        marker=dict(size=8, symbol="diamond"),
        hovertemplate="%{y:.3g}<extra>tree over the layers</extra>",
    )
    values = np.concatenate([bar, error[error > 0]]) / total if total else np.ones(1)
    low = max(float(values.min(initial=1.0)), 1e-8)
    figure.update_layout(
        height=320,
        margin=dict(l=8, r=12, t=36, b=8),
        hovermode="x unified",
        uirevision="keep",
        legend=dict(orientation="h", x=0, y=1.02, xanchor="left", yanchor="bottom", title_text=""),
    )
    figure.update_xaxes(
        title_text="parameters kept of the group",
        tickformat=".0%",
        range=[0, 1],
        gridcolor=FAINT,
        zeroline=False,
        automargin=True,
    )
    figure.update_yaxes(
        title_text="relative error in the metric",
        type="log",
        gridcolor=FAINT,
        zeroline=False,
        automargin=True,
        **log_ticks(low, 1.0),
    )
    return figure


def _label(figure, x, y, text, color, xanchor, yanchor) -> None:
    figure.add_annotation(
        x=x,
        y=y,
        text=text,
        showarrow=False,
        font=dict(size=12, color=color),
        xanchor=xanchor,
        yanchor=yanchor,
        align=xanchor if xanchor != "center" else "center",
    )
