"""The map of a model: layers down, roles across, one number a weight."""

import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import plotly.graph_objects as go

from karipap_core.checkpoint.roles import LAYER, ORDER, TOWERS
from karipap_core.figures.style import DARK, LIGHT, ORANGE, SCALE, decade_ticks, escape, even_ticks, inks, short

CROSS = re.compile(r"EncDecAttention|encoder_attn|cross_?attn|cross_?attention", re.IGNORECASE)
TALLEST, USUAL, LOWEST = 50, 620, 10  # pixels: of a row, of all rows, of a row that still makes the map taller
HIGHEST = 860  # pixels of all rows, however many there are
WRITTEN = 18  # pixels of a row that has room for numbers
LONGEST = 16  # signs of a role's name
EMPTY = [[0, "rgba(0,0,0,0)"], [1, "rgba(0,0,0,0)"]]


@dataclass(frozen=True)
class Numbers:
    """One number a weight, and how a map writes and colours them.

    values : weight name → number; a weight that is not in it has no colour, and its cell says `absent`.
    label, unit, form : what the number is called, its unit, how it is written (a format specification).
    log : colour by decades; what is at or below `floor` has the floor's colour. limits : ends of the colour scale, the
    upper one None for the largest number; by default the smallest and the largest number.
    """

    values: Mapping[str, float]
    label: str
    unit: str = ""
    form: str = ".2g"
    log: bool = False
    absent: str = "not measured"
    limits: tuple[float, float | None] | None = None
    floor: float = 0.0

    def write(self, value: float) -> str:
        return short(value) if self.log else f"{value:{self.form}}"


@dataclass
class Cell:
    """The weights of one layer and role (more than one where a layer has experts), and the mean of their numbers."""

    weights: list[dict] = field(default_factory=list)
    value: float | None = None
    low: float | None = None
    high: float | None = None


def seats(weights: Sequence[dict]) -> list[tuple[Hashable, str]]:
    """(row, column) of each weight. A row is its layer's number, None outside the blocks; where a model has more than
    one stack of layers, such as an encoder and a decoder, (what tells the stacks apart, number). A column is its role,
    "cross q" and so on for attention to another stack's outputs."""
    quick = {weight["name"].partition(f".{weight['layer']}.")[0] for weight in weights}
    stack_of = (
        [_stack(weight) for weight in weights] if len(quick) > 1 else []
    )  # many experts: words are slow to search
    stacks = {stack for stack in stack_of if stack}
    if len(stacks) < 2:
        return [(weight["layer"], weight["role"]) for weight in weights]
    towers = {stack: weight.get("tower") for stack, weight in zip(stack_of, weights, strict=True) if stack}
    one_each = all(towers.values()) and len(set(towers.values())) == len(towers)
    called = towers if one_each else _apart(sorted(stacks))
    places: list[tuple[Hashable, str]] = []
    for weight, stack in zip(weights, stack_of, strict=True):
        role = f"cross {weight['role']}" if CROSS.search(weight["name"]) else weight["role"]
        places.append(((called[stack], weight["layer"]) if stack else weight["layer"], role))
    return places


def _stack(weight: dict) -> str:
    """What stands before the number of a weight's layer in its name, "" where that has none."""
    match = LAYER.search(weight["name"]) if weight["layer"] is not None else None
    return weight["name"][: match.start(1)].strip(".") if match else ""


def row_name(row: Hashable) -> str:
    """What a row is called: "layer 3", "encoder 3", or "outside" (the blocks)."""
    stack, layer = row if isinstance(row, tuple) else ("layer", row)
    return "outside" if layer is None else f"{stack} {layer}"


def _apart(names: Sequence[str]) -> dict[str, str]:
    """Dotted names without the words that all of them begin or end with."""
    words = [name.split(".") for name in names]
    fewest = min(map(len, words))
    first = next((i for i in range(fewest) if len({each[i] for each in words}) > 1), fewest)
    last = next((i for i in range(fewest - first) if len({each[-1 - i] for each in words}) > 1), fewest - first)
    return {name: ".".join(each[first : len(each) - last]) or name for name, each in zip(names, words, strict=True)}


def cells(weights: Sequence[dict], values: Mapping[str, float]) -> dict[tuple[Hashable, str], Cell]:
    """Seat (see `seats`) → cell; `weights` are dictionaries with name, layer, role, shape.

    Tables and heads outside the blocks have no cell, unless there are no blocks. A cell none of whose weights
    has a number has the value None.
    """
    grid: dict[tuple[Hashable, str], Cell] = {}
    inside = [weight for weight in weights if weight["layer"] is not None or weight.get("compressible")] or weights
    for seat, weight in zip(seats(inside), inside, strict=True):
        if (cell := grid.get(seat)) is None:
            cell = grid[seat] = Cell()
        cell.weights.append(weight)
    for cell in grid.values():
        known = [values[weight["name"]] for weight in cell.weights if weight["name"] in values]
        if known:
            cell.value, cell.low, cell.high = math.fsum(known) / len(known), min(known), max(known)
    rank = {role: at for at, role in enumerate(ORDER)} | {f"cross {role}": ORDER.index("o") + 0.5 for role in ORDER}
    return dict(sorted(grid.items(), key=lambda item: rank.get(item[0][1], len(rank))))


def weight_map(weights: Sequence[dict], numbers: Numbers, selected: str | None = None) -> go.Figure:
    """Layers down, roles across, one number a weight; experts of one layer and role are folded into their mean.

    `selected` is the name of the weight with a frame round it. The second trace holds an invisible marker per cell,
    because a heatmap answers no clicks; its `customdata` is (name of the cell's first weight, how many weights).
    `layout.meta.room` is the width in pixels below which the numbers in the cells would touch each other.
    """
    grid = cells(weights, numbers.values)
    rows = sorted({row for row, _ in grid}, key=_order)
    columns = list(dict.fromkeys(role for _, role in grid))
    at_row, at_column = ({name: at for at, name in enumerate(names)} for names in (rows, columns))
    places = [(at_row[row], at_column[role]) for row, role in grid]
    z = np.full((len(rows), len(columns)), np.nan, np.float32)
    for place, cell in zip(places, grid.values(), strict=True):
        z[place] = math.nan if cell.value is None else cell.value
    each = _row_height(len(rows))
    figure = go.Figure()
    low, high = _colours(figure, z, numbers, each)
    holding = (at for at, cell in enumerate(grid.values()) if any(w["name"] == selected for w in cell.weights))
    picked = list(islice(holding, 1))
    figure.add_scatter(
        x=np.array([j for _, j in places], np.float32),
        y=np.array([i for i, _ in places], np.float32),
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
        i, j = places[point]
        box = dict(type="rect", x0=j - 0.49, x1=j + 0.49, y0=i - 0.49, y1=i + 0.49, fillcolor="rgba(0,0,0,0)")
        figure.add_shape(**box, line=dict(color="#ffffff", width=5))
        figure.add_shape(**box, line=dict(color=ORANGE, width=2.5))
    _axes(figure, rows, columns, each)
    if each >= WRITTEN:
        text = [[numbers.write(value) if math.isfinite(value) else "" for value in line] for line in z.tolist()]
        _write(figure, text, (_scaled(z, numbers) - low) / (high - low), 12 if each >= 22 else 11)
    figure.update_layout(selectionrevision=str(selected))
    return figure


def _order(row: Hashable) -> tuple:
    stack, layer = row if isinstance(row, tuple) else ("", row)
    return stack != "encoder", TOWERS.index(stack) if stack in TOWERS else 0, stack, layer is not None, layer


def _hover(cell: Cell, numbers: Numbers) -> str:
    weight = cell.weights[0]
    n_out, n_in = weight["shape"]
    what, mean = weight["name"], ""
    if len(cell.weights) > 1:
        kind = "experts" if weight.get("expert") is not None else "weights"
        what, mean = f"{len(cell.weights)} {kind}: mean and range", "mean "
    number = numbers.absent
    if cell.value is not None:
        number = f"{mean}{cell.value:{numbers.form}}"
        if mean:
            number += f", {cell.low:{numbers.form}} to {cell.high:{numbers.form}}"
        number += f" {numbers.unit}"
    return f"<b>{escape(what)}</b><br>{n_out:,} × {n_in:,}<br>{numbers.label} {number}"


def _row_height(rows: int) -> float:
    """Pixels of a row: 50 where there are few; all of them never take more than `HIGHEST`."""
    return min(TALLEST, max(USUAL, min(LOWEST * rows, HIGHEST)) / max(rows, 1))


def _scaled(z: np.ndarray, numbers: Numbers) -> np.ndarray:
    """What the colours are of: the numbers, or their decades."""
    if not numbers.log:
        return z
    if numbers.floor:
        z = np.maximum(z, numbers.floor)  # keeps NaN
    return np.log10(np.where(z > 0, z, np.nan))


def _colours(figure: go.Figure, z: np.ndarray, numbers: Numbers, each: float) -> tuple[float, float]:
    """The coloured cells and the bar that says what the colours mean, below the map; returns the scale's ends."""
    z = _scaled(z, numbers)
    low, high = _limits(z, numbers.limits)
    percent = numbers.form.endswith("%")
    first = numbers.label[:1]
    title = f"{first.upper() if first.isascii() else first}{numbers.label[1:]}"  # χ stays small
    title += f" ({numbers.unit})" if numbers.unit else ""
    figure.add_heatmap(
        z=z,
        x=np.arange(z.shape[1], dtype=np.float32),
        y=np.arange(z.shape[0], dtype=np.float32),
        colorscale=SCALE,
        zmin=low,
        zmax=high,
        xgap=2 if each >= 12 else 1,
        ygap=2 if each >= 12 else 1,
        hoverinfo="skip",
        hoverongaps=False,
        colorbar=dict(
            orientation="h",
            thickness=10,
            outlinewidth=0,
            len=1,
            x=0.5,
            y=0,
            yanchor="top",
            xpad=0,
            ypad=8,
            ticks="",
            title=dict(text=escape(title), side="top", font_size=12),
            **(decade_ticks(low, high) if numbers.log else even_ticks(low, high, percent)),
        ),
    )
    return low, high


def _write(figure: go.Figure, text: list[list[str]], parts: np.ndarray, size: int) -> None:
    """The numbers in the cells, in the ink that stands out on each: a trace without colours for either ink, as a
    heatmap has one ink for all its cells."""
    figure.data[0].text = text
    ink = inks(parts)
    for color in (DARK, LIGHT):
        mine = (ink == color) & np.isfinite(parts)
        if mine.any():
            figure.add_heatmap(
                z=np.where(mine, 0, np.nan).astype(np.float32),
                text=[
                    [word if shown else "" for word, shown in zip(*line, strict=True)]
                    for line in zip(text, mine, strict=True)
                ],
                x=figure.data[0].x,
                y=figure.data[0].y,
                texttemplate="%{text}",
                textfont=dict(size=size, color=color),
                colorscale=EMPTY,
                showscale=False,
                hoverinfo="skip",
                hoverongaps=False,
            )
    longest = max((len(word) for line in text for word in line), default=0)
    figure.update_layout(meta=dict(room=round(110 + parts.shape[1] * (longest * 0.58 * size + 5))))


def _limits(z: np.ndarray, limits: tuple[float, float | None] | None) -> tuple[float, float]:
    """The ends of the colour scale: those given, else the smallest and the largest number."""
    known = z[np.isfinite(z)]
    if not known.size:
        return 0.0, 1.0
    if limits is not None:
        return limits[0], float(known.max()) or 1.0 if limits[1] is None else limits[1]
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _axes(figure: go.Figure, rows: Sequence[Hashable], columns: Iterable[str], each: float) -> None:
    """The names of roles and of as many layers as have room, and a height that suits the number of layers."""
    columns = list(columns)
    figure.update_layout(
        height=int(each * len(rows) + 98),
        margin=dict(l=8, r=8, t=36, b=8),
        hovermode="closest",
        hoverdistance=-1,
        clickmode="event+select",
        dragmode=False,
        uirevision="map",
    )
    quiet = dict(showgrid=False, zeroline=False, fixedrange=True, ticks="", automargin=True)
    figure.update_xaxes(
        side="top",
        tickvals=list(range(len(columns))),
        ticktext=[name if len(name) <= LONGEST else name[: LONGEST - 1] + "…" for name in columns],
        autotickangles=[0, -90],
        range=[-0.5, len(columns) - 0.5],
        **quiet,
    )
    step = next((step for step in (1, 2, 5, 10, 20, 50) if step * each >= 15), 100)
    numbers: list = [row[1] if isinstance(row, tuple) else row for row in rows]
    shown = [i for i, layer in enumerate(numbers) if layer is None or layer % step == 0]
    figure.update_yaxes(
        tickvals=shown,
        ticktext=[escape(row_name(rows[i])) for i in shown],
        range=[len(rows) - 0.5, -0.5],
        **quiet,
    )
