"""The plotly figure of an autopilot's search: every plan tried, the line, and the way that was accepted.

It draws the document of autopilot.py, finished or not. See style.py for the manners of all figures.
"""

import numpy as np
import plotly.graph_objects as go

from karipap_core.figures.style import BLUE, FAINT, GOLD, GREY, ORANGE, PURPLE, escape

TALL = 4.0  # lines: points that lose more are drawn at the upper edge, with their true number on hovering


def search(document: dict) -> go.Figure:
    """Bytes kept against rise in loss (an encoder's output error) of all plans tried, with 95 % intervals: accepted
    plans filled and joined in the order they were found, others hollow; the verdict's own measurements are diamonds,
    rivals squares. The line, or the size, that was asked for is dashed."""
    line, quality = document["line"], document["quality"]
    unit = "nats a token" if quality == "rise" else "relative"
    rows = [row for row in document["tried"] if row["rise"] is not None]
    rivals = [row | {"low": row["rise_low"], "high": row["rise_high"]} for row in document["rivals"]]
    top = _top(line, [*rows, *rivals])
    figure = go.Figure()
    searched = [row for row in rows if row["text"] == "search"]
    kept = [row for row in searched if row["accepted"]]
    _add(figure, kept, "accepted", dict(symbol="circle", size=11, color=BLUE), top, unit, joined=True)
    others = [row for row in searched if not row["accepted"]]
    _add(figure, others, "not taken", dict(symbol="circle-open", size=10, color=ORANGE, line_width=2), top, unit)
    judged = [row for row in rows if row["text"] == "verdict"]
    _add(figure, judged, "verdict, on text of its own", dict(symbol="diamond", size=14, color=GOLD), top, unit)
    _add(figure, rivals, "rivals", dict(symbol="square-open", size=10, color=PURPLE, line_width=2), top, unit)
    if "max_rise" in line:
        figure.add_hline(line["max_rise"], line=dict(color=GREY, width=1.5, dash="dash"))
        figure.add_annotation(
            x=0,
            xref="paper",
            y=line["max_rise"],
            text=f"the line, {line['max_rise']:.4g}",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font=dict(size=12, color=GREY),
        )
    elif document["settings"]["scope"] == "model":
        figure.add_vline(line["bytes_kept"], line=dict(color=GREY, width=1.5, dash="dash"))
    figure.update_layout(
        height=430,
        margin=dict(l=8, r=8, t=8, b=8),
        hovermode="closest",
        legend=dict(orientation="h", x=0, y=1.02, yanchor="bottom", title_text=""),
    )
    scope = " of the blocks" if document["settings"]["scope"] == "blocks" else ""
    figure.update_xaxes(
        title_text=f"Bytes kept{scope}", tickformat=".1%", gridcolor=FAINT, zeroline=False, automargin=True
    )
    what = "Rise in loss" if quality == "rise" else "Output error"
    figure.update_yaxes(
        title_text=f"{what}, {unit}", gridcolor=FAINT, zeroline=True, zerolinecolor=FAINT, automargin=True
    )
    if top is not None:
        lowest = min([0.0, *(row["low"] if row["low"] is not None else row["rise"] for row in [*rows, *rivals])])
        figure.update_yaxes(range=[lowest - 0.05 * top, 1.05 * top])
    return figure


def _top(line: dict, rows: list[dict]) -> float | None:
    """The upper edge: nothing is cut unless a point lies far above the line."""
    highest = max((row["high"] if row["high"] is not None else row["rise"] for row in rows), default=0.0)
    if "max_rise" not in line:
        return None
    return min(max(highest, 1.2 * line["max_rise"]), TALL * line["max_rise"])


def _add(figure, rows: list[dict], name: str, marker: dict, top: float | None, unit: str, joined: bool = False) -> None:
    if not rows:
        return
    heights = [row["rise"] if top is None else min(row["rise"], top) for row in rows]
    above = [0.0 if row["high"] is None else max(row["high"] - y, 0.0) for row, y in zip(rows, heights, strict=True)]
    below = [0.0 if row["low"] is None else max(y - row["low"], 0.0) for row, y in zip(rows, heights, strict=True)]
    figure.add_scatter(
        x=np.array([row["bytes_kept"] for row in rows], np.float32),
        y=np.array(heights, np.float32),
        name=name,
        mode="lines+markers" if joined else "markers",
        marker=marker,
        line=dict(color=marker["color"], width=1.5),
        error_y=dict(type="data", symmetric=False, array=above, arrayminus=below, thickness=1.2, width=4),
        customdata=[row["id"] for row in rows],
        hovertext=[_hover(row, unit) for row in rows],
        hovertemplate="%{hovertext}<extra></extra>",
    )


def _hover(row: dict, unit: str) -> str:
    lines = [f"<b>{escape(row['label'])}</b>", f"{row['rise']:+z.4f} {unit}"]
    if row["low"] is not None and row["high"] is not None:
        lines.append(f"95 % interval {row['low']:+z.4f} to {row['high']:+z.4f}")
    if row.get("predicted") is not None:
        lines.append(f"predicted {row['predicted']:.4f}")
    return "<br>".join(lines)
