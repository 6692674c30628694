"""Plotly figures of a `peps`: the flow of its renormalization, and its lattice with what each bond carries.

They draw the rows of `networks/peps/renormalize.py` (`renormalize` and `bond_profile`) and import no torch. See
style.py for the manners of all figures.
"""

import math
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.figures.ising import array, decades
from karipap_core.figures.style import BLUE, FAINT, GREY, ORANGE, quiet

THINNEST, THICKEST = 1.5, 14.0  # pixels of the bonds with the least and the most entropy
FLOOR = 1e-12  # parts below this are drawn on it


def flow(rows: Sequence[dict], names: Sequence[str] = ()) -> go.Figure:
    """What each cut of a bond took from ‖Ŵ‖² and the error after the cores had settled, by what is kept.

    rows: the flow of `renormalize`; names: what to call each bond (default: its number).
    """
    rows = list(rows)
    figure = go.Figure()
    says = [_says(row, names) for row in rows]
    for key, name, color, symbol in (
        ("error", "error after settling", ORANGE, "circle"),
        ("discarded", "discarded by the cut", BLUE, "diamond"),
    ):
        shown = [(row, text) for row, text in zip(rows, says, strict=True) if key == "error" or row["bond"] is not None]
        figure.add_scatter(
            x=array(row["kept"] for row, _ in shown),
            y=array(max(row[key], FLOOR) for row, _ in shown),
            mode="lines+markers",
            name=name,
            line=dict(color=color, width=2),
            marker=dict(symbol=symbol, size=8),
            hovertext=[text for _, text in shown],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    quiet(figure, 380)
    decades(figure, [row["error"] for row in rows] + [row["discarded"] for row in rows[1:]])
    figure.update_yaxes(title_text="Part of the squared norm")
    figure.update_xaxes(title_text="Kept: parameters over the weight's", autorange="reversed", tickformat=".0%")
    return figure


def lattice(rows: Sequence[dict], grid: Sequence[int], sites: Sequence[str] = ()) -> go.Figure:
    """The sites and their bonds, a bond as thick as the entropy of its cut over the null's.

    rows: of `bond_profile`; grid: [R, C]; sites: what to write on each site, such as "4·1" (default: its number). A
    bond that wraps round the lattice is drawn as a stub on either side.
    """
    height, width = grid
    place = [(k % width, -(k // width)) for k in range(height * width)]
    figure = go.Figure()
    for direction, color, dash in (("horizontal", BLUE, "solid"), ("vertical", ORANGE, "solid")):
        shown = [row for row in rows if row["direction"] == direction]
        for first, (row, (a, b)) in enumerate(zip(shown, _ends(shown, grid), strict=True)):
            text = (
                f"<b>bond {row['bond'] + 1}, {direction}</b><br>S = {row['entropy']:.3f} nats across its cut<br>"
                f"{row['null']:.3f} for a Gaussian, excess {row['null'] - row['entropy']:.3f}"
            )
            for x, y in _lines(place[a], place[b]):
                figure.add_scatter(
                    x=array(x),
                    y=array(y),
                    mode="lines",
                    name=direction,
                    legendgroup=direction,
                    showlegend=first == 0 and x[0] == place[a][0],
                    line=dict(color=color, width=_width(row), dash=dash),
                    hovertext=text,
                    hovertemplate="%{hovertext}<extra></extra>",
                )
                figure.add_scatter(  # a line can be touched at its points only: give it a middle
                    x=array([float(np.mean(x))]),
                    y=array([float(np.mean(y))]),
                    mode="markers+text",
                    marker=dict(size=_width(row), color="rgba(0,0,0,0)"),  # keeps the number off the bond
                    text=[f"{row['entropy']:.2f}"],
                    textposition="top center" if direction == "horizontal" else "middle right",
                    showlegend=False,
                    hovertext=text,
                    hovertemplate="%{hovertext}<extra></extra>",
                    textfont=dict(size=12),
                )
    figure.add_scatter(
        x=array(x for x, _ in place),
        y=array(y for _, y in place),
        mode="markers+text",
        showlegend=False,
        marker=dict(size=34, color=GREY, line=dict(width=1, color=FAINT)),
        textfont=dict(size=11, color="white"),
        text=list(sites) or [str(k + 1) for k in range(len(place))],
        hoverinfo="skip",
    )
    quiet(figure, 120 + 130 * height)
    figure.update_xaxes(visible=False, range=[-0.7, width - 0.3])
    figure.update_yaxes(visible=False, range=[-height + 0.4, 0.6])
    return figure


def _says(row: dict, names: Sequence[str]) -> str:
    if row["bond"] is None:
        return f"<b>before</b><br>kept {row['kept']:.1%}<br>error {row['error']:.3g}"
    name = names[row["bond"]] if names else f"bond {row['bond'] + 1}"
    return (
        f"<b>step {row['step']}: {name} to {row['D']}</b><br>kept {row['kept']:.1%}<br>"
        f"discarded {row['discarded']:.3g}<br>error {row['error']:.3g}"
    )


def _ends(rows: Sequence[dict], grid: Sequence[int]) -> list[tuple[int, int]]:
    """The two sites of each bond of one direction, in the order that bonds have (see `networks/peps/lattice.py`)."""
    height, width = grid
    flat = bool(rows) and rows[0]["direction"] == "horizontal"
    side, lines = (width, height) if flat else (height, width)
    wraps = len(rows) == side * lines
    found = []
    for r in range(height):
        for c in range(width):
            at = c if flat else r
            if at < side - 1 or wraps:
                other = (r, (c + 1) % width) if flat else ((r + 1) % height, c)
                found.append((r * width + c, other[0] * width + other[1]))
    return found


def _lines(a: tuple[int, int], b: tuple[int, int]) -> list[tuple[list[float], list[float]]]:
    """From a to b, or, where they are not neighbours, a stub outwards from each."""
    if math.dist(a, b) <= 1:
        return [([a[0], b[0]], [a[1], b[1]])]
    out = [0.45 * (one - other) / math.dist(a, b) for one, other in zip(a, b, strict=True)]
    return [([a[0], a[0] + out[0]], [a[1], a[1] + out[1]]), ([b[0], b[0] - out[0]], [b[1], b[1] - out[1]])]


def _width(row: dict) -> float:
    part = row["entropy"] / row["null"] if row["null"] > 0 else 0.0
    return THINNEST + (THICKEST - THINNEST) * min(1.0, max(0.0, part))
