"""The map of a model: layers down, roles across, one number a weight."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import plotly.graph_objects as go

from karipap_core.checkpoint.roles import ORDER
from karipap_core.figures.style import ORANGE, SCALE, escape


@dataclass(frozen=True)
class Numbers:
    """One number a weight, and how a map writes and colours them.

    values : weight name → number; a weight that is not in it has no colour, and its cell says `absent`.
    label, unit, form : what the number is called, its unit, how it is written (a format specification).
    log : colour by decades. limits : ends of the colour scale, the upper one None for the largest number; by default
    the smallest and the largest number.
    """

    values: Mapping[str, float]
    label: str
    unit: str = ""
    form: str = ".2g"
    log: bool = False
    absent: str = "not measured"
    limits: tuple[float, float | None] | None = None


@dataclass
class Cell:
    """The weights of one layer and role (more than one where a layer has experts), and the mean of their numbers."""

    weights: list[dict] = field(default_factory=list)
    value: float | None = None


def cells(weights: Sequence[dict], values: Mapping[str, float]) -> dict[tuple[int | None, str], Cell]:
    """(layer, role) → cell; `weights` are dictionaries with name, layer, role, shape.

    Weights outside the blocks (embedding, head) have no cell, unless there are no blocks. A cell none of whose weights
    has a number has the value None.
    """
    grid: dict[tuple[int | None, str], Cell] = {}
    inside = [weight for weight in weights if weight["layer"] is not None] or weights
    for weight in sorted(inside, key=lambda weight: ORDER.index(weight["role"]) if weight["role"] in ORDER else 99):
        grid.setdefault((weight["layer"], weight["role"]), Cell()).weights.append(weight)
    for cell in grid.values():
        known = [values[weight["name"]] for weight in cell.weights if weight["name"] in values]
        cell.value = float(np.mean(known)) if known else None
    return grid


def weight_map(weights: Sequence[dict], numbers: Numbers, selected: str | None = None) -> go.Figure:
    """Layers down, roles across, one number a weight; experts of one layer and role are folded into their mean.

    `selected` is the name of the weight with a frame round it. The second trace holds an invisible marker per cell,
    because a heatmap answers no clicks; its `customdata` is (name of the cell's first weight, how many weights).
    """
    grid = cells(weights, numbers.values)
    rows = sorted({layer for layer, _ in grid}, key=lambda layer: (layer is not None, layer))
    columns = list(dict.fromkeys(role for _, role in grid))
    places = {key: (rows.index(key[0]), columns.index(key[1])) for key in grid}
    z = np.full((len(rows), len(columns)), np.nan, np.float32)
    for key, cell in grid.items():
        z[places[key]] = math.nan if cell.value is None else cell.value
    figure = go.Figure()
    _colours(figure, z, numbers)
    picked = [i for i, cell in enumerate(grid.values()) if any(weight["name"] == selected for weight in cell.weights)]
    figure.add_scatter(
        x=np.array([j for _, j in places.values()], np.float32),
        y=np.array([i for i, _ in places.values()], np.float32),
        mode="markers",
        customdata=[[cell.weights[0]["name"], len(cell.weights)] for cell in grid.values()],
        hovertext=[_hover(cell, numbers) for cell in grid.values()],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        marker=dict(symbol="square", size=14, color="rgba(0,0,0,0)"),
        selectedpoints=picked,
        selected_marker_opacity=0,
        unselected_marker_opacity=0,
    )
    for point in picked:
        i, j = [*places.values()][point]
        box = dict(type="rect", x0=j - 0.49, x1=j + 0.49, y0=i - 0.49, y1=i + 0.49, fillcolor="rgba(0,0,0,0)")
        figure.add_shape(**box, line=dict(color="#ffffff", width=5))
        figure.add_shape(**box, line=dict(color=ORANGE, width=2.5))
    _axes(figure, rows, columns)
    figure.update_layout(selectionrevision=str(selected))
    return figure


def _hover(cell: Cell, numbers: Numbers) -> str:
    weight = cell.weights[0]
    name = weight["name"] if len(cell.weights) == 1 else f"{len(cell.weights)} experts, mean"
    n_out, n_in = weight["shape"]
    number = numbers.absent if cell.value is None else f"{cell.value:{numbers.form}} {numbers.unit}"
    return f"<b>{escape(name)}</b><br>{n_out:,} × {n_in:,}<br>{numbers.label} {number}"


def _colours(figure: go.Figure, z: np.ndarray, numbers: Numbers) -> None:
    """The coloured cells, with their numbers in them where there are few rows."""
    text = [["" if math.isnan(value) else f"{value:{numbers.form}}" for value in line] for line in z.tolist()]
    z = np.log10(np.where(z > 0, z, np.nan)) if numbers.log else z
    low, high = _limits(z, numbers.limits)
    ticks = {}
    if numbers.log:
        decades = np.arange(math.floor(low), math.ceil(high) + 1)
        ticks = dict(tickvals=decades, ticktext=[f"{10.0**k:g}" for k in decades])
    figure.add_heatmap(
        z=z,
        x=np.arange(z.shape[1], dtype=np.float32),
        y=np.arange(z.shape[0], dtype=np.float32),
        colorscale=SCALE,
        zmin=low,
        zmax=high,
        xgap=2,
        ygap=2,
        hoverinfo="skip",
        hoverongaps=False,
        text=text,
        texttemplate="%{text}" if len(z) <= 16 else None,
        textfont_size=12,
        colorbar=dict(thickness=10, outlinewidth=0, tickformat=numbers.form, len=1, ticks="", nticks=6, **ticks),
    )


def _limits(z: np.ndarray, limits: tuple[float, float | None] | None) -> tuple[float, float]:
    """The ends of the colour scale: those given, else the smallest and the largest number."""
    known = z[np.isfinite(z)]
    if not known.size:
        return 0.0, 1.0
    if limits is not None:
        return limits[0], float(known.max()) or 1.0 if limits[1] is None else limits[1]
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _axes(figure: go.Figure, rows: Sequence[int | None], columns: Iterable[str]) -> None:
    """The names of roles and layers, and a height that suits the number of layers."""
    columns = list(columns)
    each = min(50, max(14, 620 / max(len(rows), 1)))
    figure.update_layout(
        height=int(each * len(rows) + 70),
        margin=dict(l=8, r=8, t=36, b=8),
        hovermode="closest",
        hoverdistance=-1,
        clickmode="event+select",
        dragmode=False,
        uirevision="map",
    )
    quiet = dict(showgrid=False, zeroline=False, fixedrange=True, ticks="")
    figure.update_xaxes(
        side="top",
        tickvals=list(range(len(columns))),
        ticktext=columns,
        range=[-0.5, len(columns) - 0.5],
        **quiet,
    )
    shown = range(0, len(rows), 1 if len(rows) <= 40 else 4)
    figure.update_yaxes(
        tickvals=list(shown),
        ticktext=["outside" if rows[i] is None else f"layer {rows[i]}" for i in shown],
        range=[len(rows) - 0.5, -0.5],
        automargin=True,
        **quiet,
    )
