"""Plotly figures of healing: the loss over the steps, and where the point of the trade-off has gone.

They draw a curve as `heal.heal` gives it, or as `curve_of_log` reads it from the log of a job that still runs. See
style.py for the manners of all figures.
"""

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.figures.style import BLUE, FAINT, GREEN, GREY, ORANGE, POINTS

TOLD = re.compile(r"loss ([0-9.]+)(?:, validation ([0-9.]+))?")
SMOOTHED = 20  # steps of the running mean


def curve_of_log(lines: Iterable[str], stage: str = "heal") -> list[dict]:
    """[{"step", "loss", "validation" at every look}] from the progress lines of a job, the last attempt's number of a
    step that was taken twice; [] while no step has been taken."""
    found = {}
    for line in lines:
        if not line.startswith("{"):
            continue
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line that is being written
        told = TOLD.search(str(entry.get("message", ""))) if isinstance(entry, dict) else None
        if told and entry.get("stage") == stage:
            step = {"step": int(entry["done"]), "loss": float(told[1])}
            found[step["step"]] = step | ({"validation": float(told[2])} if told[2] else {})
    return [found[step] for step in sorted(found)]


def loss_curve(curve: Sequence[dict], before: float | None = None, dense: float | None = None) -> go.Figure:
    """Loss of each step's own tokens (dots) with its running mean, and of the validation text at every look, in nats a
    token. `before` is the validation loss of the folder that came in, `dense` the dense model's."""
    figure = go.Figure()
    steps, losses = (np.array([point[key] for point in curve], np.float32) for key in ("step", "loss"))
    thin = np.linspace(0, len(steps) - 1, min(len(steps), POINTS)).round().astype(int)
    figure.add_scatter(
        x=steps[thin],
        y=losses[thin],
        mode="markers",
        name="each step's tokens",
        marker=dict(size=4, color=GREY),
        opacity=0.45,
        hovertemplate="step %{x}: %{y:.4f}<extra>each step's tokens</extra>",
    )
    figure.add_scatter(
        x=steps[thin],
        y=running_mean(losses)[thin],
        mode="lines",
        name=f"mean of the last {SMOOTHED}",
        line=dict(color=BLUE, width=2),
        hovertemplate="step %{x}: %{y:.4f}<extra>mean</extra>",
    )
    looks = [(0, before)] if before is not None else []
    looks += [(point["step"], point["validation"]) for point in curve if "validation" in point]
    if looks:
        figure.add_scatter(
            x=[step for step, _ in looks],
            y=np.array([loss for _, loss in looks], np.float32),
            name="validation text",
            mode="lines+markers",
            line=dict(color=ORANGE, width=2, dash="dash"),
            marker=dict(symbol="diamond", size=9),
            hovertemplate="step %{x}: %{y:.4f}<extra>validation text</extra>",
        )
    if dense is not None:
        figure.add_hline(dense, line=dict(color=GREEN, width=1.5, dash="dot"))
        figure.add_annotation(
            x=1,
            xref="paper",
            y=dense,
            text="dense, validation text",
            showarrow=False,
            xanchor="right",
            yanchor="bottom",
            font=dict(size=11, color=GREEN),
        )
    _frame(figure, "Step", "Loss, nats a token")
    return figure


def block_errors(blocks: Sequence[dict]) -> go.Figure:
    """The error of each block's outputs against the dense block's on the validation text, mean over tokens of
    ‖ŷ − y‖² / ‖y‖², before and after its scales and factors were healed: rows "blocks" of `by_block.heal_scales`."""
    figure = go.Figure()
    names = [block["block"] for block in blocks]
    for key, name, color, symbol in (("before", "before", ORANGE, "x"), ("after", "healed", GREEN, "circle")):
        figure.add_scatter(
            x=np.arange(len(blocks)),
            y=np.array([block[key] for block in blocks], np.float32),
            name=name,
            mode="lines+markers",
            line=dict(color=color, width=2),
            marker=dict(symbol=symbol, size=9),
            hovertext=names,
            hovertemplate="%{hovertext}: %{y:.4g}<extra>" + name + "</extra>",
        )
    _frame(figure, "Block", "Relative error of its outputs")
    figure.update_yaxes(rangemode="tozero")
    return figure


def running_mean(values: np.ndarray, last: int = SMOOTHED) -> np.ndarray:
    """Mean of the last `last` values up to and with each one (fewer at the beginning)."""
    sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(ends - last, 0)
    return ((sums[ends] - sums[begins]) / np.maximum(ends - begins, 1)).astype(np.float32)


def moved(before: dict, after: dict, others: Sequence[dict] = ()) -> go.Figure:
    """Bytes kept against the rise in loss: an arrow from the point before healing to the one after, other runs of the
    same conditions faint beside. A healed model has the size that it had, so the arrow is upright."""
    figure = go.Figure()
    others = [run for run in others if run["id"] not in (before["id"], after["id"]) and run.get("rise") is not None]
    figure.add_scatter(
        x=np.array([run["bytes_kept"] for run in others], np.float32),
        y=np.array([run["rise"] for run in others], np.float32),
        mode="markers",
        name="other runs",
        marker=dict(color=GREY, size=7, symbol="circle-open"),
        opacity=0.7,
        hovertext=[run["label"] for run in others],
        hovertemplate="%{hovertext}: %{y:.4f}<extra></extra>",
    )
    for run, name, color, symbol in ((before, "before", ORANGE, "x"), (after, "after", GREEN, "circle")):
        figure.add_scatter(
            x=np.array([run["bytes_kept"]], np.float32),
            y=np.array([run["rise"]], np.float32),
            name=name,
            mode="markers+text",
            text=[f"{run['rise']:z.4f}"],
            textposition="middle right",
            hoverinfo="skip",
            marker=dict(color=color, size=12, symbol=symbol),
        )
    figure.add_annotation(
        x=after["bytes_kept"],
        y=after["rise"],
        ax=before["bytes_kept"],
        ay=before["rise"],
        xref="x",
        yref="y",
        axref="x",
        ayref="y",
        showarrow=True,
        arrowhead=2,
        arrowwidth=2,
        arrowcolor=GREEN,
        standoff=8,
        startstandoff=8,
        text="",
    )
    _frame(figure, "Bytes kept", "Rise in loss, nats a token")
    figure.update_xaxes(tickformat=".0%")
    return figure


def _frame(figure: go.Figure, x: str, y: str) -> None:
    figure.update_layout(
        height=360,
        margin=dict(l=8, r=8, t=8, b=8),
        hovermode="closest",
        uirevision="heal",
        legend=dict(orientation="h", y=1.02, yanchor="bottom", x=0, title_text=""),
    )
    figure.update_xaxes(title_text=x, gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(title_text=y, gridcolor=FAINT, zeroline=False, automargin=True)
