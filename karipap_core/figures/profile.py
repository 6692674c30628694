"""Plotly figures from the core's own objects: `figures.heatmap(profile)` draws in a notebook as on the dashboard.

Every function returns a new `go.Figure`. Arrays are float32 and no line has more than 512 points. Colours are Okabe
and Ito's, kept to tones that stand out on white and on near-black alike; nothing is told by colour alone. Backgrounds
and text colours are left to the template, so a figure follows the theme of whatever shows it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from karipap_core.checkpoint.roles import ORDER
from karipap_core.figures.style import BLUE, GREY, ORANGE, POINTS, SCALE, escape, frame, line, log_ticks
from karipap_core.spectra.null import bulk_deviation, bulk_edge, null_tail
from karipap_core.spectra.spectrum import chi_at_error, tail, thin


@dataclass(frozen=True)
class Quantity:
    """A number that a heatmap can show for a weight: how it is called, written, defined and found.

    `value(profile, weight, metric, error)` gives the number, or None where the profile does not have it.
    """

    label: str
    unit: str
    form: str
    says: str
    value: Callable
    limits: tuple[float, float] | None = None


def _stored(field: str) -> Callable:
    return lambda profile, weight, metric, error: weight["spectra"].get(metric, {}).get(field)


def _chi(profile, weight, metric, error):
    if metric not in weight["spectra"]:
        return None
    return chi_at_error(profile.sigma(weight["name"], metric), error)


def _kept(profile, weight, metric, error):
    chi = _chi(profile, weight, metric, error)
    return None if chi is None else chi / break_even(weight["shape"])


QUANTITIES: dict[str, Quantity] = {
    "entropy": Quantity(
        "Entropy S",
        "nats",
        ".2f",
        "S = −Σ p ln p with p = σ² / Σσ² over the singular values σ; natural logarithm.",
        _stored("entropy"),
    ),
    "normalized_entropy": Quantity(
        "Normalized entropy",
        "",
        ".3f",
        "S divided by its largest possible value, ln min(out, in): 1 is a flat spectrum, 0 a rank-one matrix.",
        _stored("normalized_entropy"),
        (0, 1),
    ),
    "excess": Quantity(
        "Excess over noise",
        "nats",
        ".3f",
        "Entropy of a Gaussian random matrix of the same shape, minus S. It is the "
        "structure that training put in; near 0 the weight looks like noise and will not compress.",
        _stored("excess"),
    ),
    "effective_rank": Quantity(
        "Effective rank",
        "",
        ".0f",
        "exp S: how many equal singular values would have this entropy.",
        _stored("effective_rank"),
    ),
    "stable_rank": Quantity(
        "Stable rank",
        "",
        ".1f",
        "Σσ² / σ₁²: how many times the largest singular value's weight there is in all.",
        _stored("stable_rank"),
    ),
    "chi": Quantity(
        "χ at error",
        "",
        ".0f",
        "The smallest number χ of singular values whose left-out weight is at most the chosen part of Σσ².",
        _chi,
    ),
    "kept": Quantity(
        "Kept at error",
        "",
        ".0%",
        "Parameters of two factors with that χ over the weight's own, χ (out + in) / "
        "(out · in). Above 100 % the weight is smaller dense.",
        _kept,
        (0, 1),
    ),
}


def break_even(shape) -> float:
    """The χ at which two factors (out × χ), (χ × in) have as many parameters as the weight: out·in / (out + in)."""
    n_out, n_in = shape
    return n_out * n_in / (n_out + n_in)


def cells(profile, quantity: str = "entropy", metric: str = "weight", error: float = 0.01) -> dict:
    """(layer, role) → {"value", "weights"}: the quantity of each cell of the map, the mean over folded experts.

    Weights outside the blocks (embedding, head) have no cell, unless there are no blocks. A cell whose weights lack
    the quantity has the value None.
    """
    grid: dict = {}
    inside = [weight for weight in profile.weights if weight["layer"] is not None] or profile.weights
    for weight in sorted(inside, key=lambda weight: ORDER.index(weight["role"]) if weight["role"] in ORDER else 99):
        cell = grid.setdefault((weight["layer"], weight["role"]), {"values": [], "weights": []})
        cell["weights"].append(weight)
        value = QUANTITIES[quantity].value(profile, weight, metric, error)
        if value is not None:
            cell["values"].append(value)
    for cell in grid.values():
        values = cell.pop("values")
        cell["value"] = float(np.mean(values)) if values else None
    return grid


def heatmap(
    profile,
    quantity: str = "entropy",
    metric: str = "weight",
    error: float = 0.01,
    selected: str | None = None,
    fixed: bool = False,
    values: dict[str, float] | None = None,
    label: str = "",
    log: bool = False,
    absent: str = "not in this profile",
) -> go.Figure:
    """Layers down, roles across, one number a weight; experts of one layer and role are folded into their mean.

    `selected` is the weight with a frame round it. `fixed` colours by the quantity's natural limits instead of the
    model's own, so that two models compare. `values` (weight name → number) with its `label` replaces the quantity,
    for numbers that come from elsewhere, such as measured sensitivities; `log` colours them by decades.
    `absent` is what a cell without a number says.

    The second trace holds an invisible marker per cell, because a heatmap answers no clicks; its `customdata` is
    (weight name of the cell's first weight, how many weights).
    """
    kind = QUANTITIES[quantity]
    grid = cells(profile, quantity, metric, error)
    if values is not None:
        for cell in grid.values():
            known = [values[w["name"]] for w in cell["weights"] if w["name"] in values]
            cell["value"] = float(np.mean(known)) if known else None
    rows = sorted({layer for layer, _ in grid}, key=lambda layer: (layer is not None, layer))
    columns = list(dict.fromkeys(role for _, role in grid))
    z = np.full((len(rows), len(columns)), np.nan, np.float32)
    x, y, custom, hover, picked = [], [], [], [], []
    form, unit = (".2g", "") if values is not None else (kind.form, kind.unit)
    name = label or kind.label
    for (layer, role), cell in grid.items():
        i, j = rows.index(layer), columns.index(role)
        if cell["value"] is not None:
            z[i, j] = cell["value"]
        weights = cell["weights"]
        first = weights[0]["name"] if len(weights) == 1 else f"{len(weights)} experts, mean"
        number = absent if cell["value"] is None else f"{cell['value']:{form}} {unit}"
        n_out, n_in = weights[0]["shape"]
        x.append(j)
        y.append(i)
        custom.append([weights[0]["name"], len(weights)])
        hover.append(f"<b>{escape(first)}</b><br>{n_out:,} × {n_in:,}<br>{name} {number}")
        if any(weight["name"] == selected for weight in weights):
            picked.append(len(x) - 1)
    text = [["" if math.isnan(value) else f"{value:{form}}" for value in line] for line in z.tolist()]
    z = np.log10(np.where(z > 0, z, np.nan)) if log else z
    low, high = _limits(z, kind, fixed and values is None)
    ticks = {}
    if log:
        decades = np.arange(math.floor(low), math.ceil(high) + 1)
        ticks = dict(tickvals=decades, ticktext=[f"{10.0**k:g}" for k in decades])
    figure = go.Figure()
    figure.add_heatmap(
        z=z,
        x=np.arange(len(columns), dtype=np.float32),
        y=np.arange(len(rows), dtype=np.float32),
        colorscale=SCALE,
        zmin=low,
        zmax=high,
        xgap=2,
        ygap=2,
        hoverinfo="skip",
        hoverongaps=False,
        text=text,
        texttemplate="%{text}" if len(rows) <= 16 else None,
        textfont_size=12,
        colorbar=dict(thickness=10, outlinewidth=0, tickformat=form, len=1, ticks="", nticks=6, **ticks),
    )
    figure.add_scatter(
        x=np.array(x, np.float32),
        y=np.array(y, np.float32),
        mode="markers",
        customdata=custom,
        hovertext=hover,
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        marker=dict(symbol="square", size=14, color="rgba(0,0,0,0)"),
        selectedpoints=picked,
        selected_marker_opacity=0,
        unselected_marker_opacity=0,
    )
    for point in picked:
        j, i = x[point], y[point]
        box = dict(type="rect", x0=j - 0.49, x1=j + 0.49, y0=i - 0.49, y1=i + 0.49, fillcolor="rgba(0,0,0,0)")
        figure.add_shape(**box, line=dict(color="#ffffff", width=5))
        figure.add_shape(**box, line=dict(color=ORANGE, width=2.5))
    each = min(50, max(14, 620 / max(len(rows), 1)))
    figure.update_layout(
        height=int(each * len(rows) + 70),
        margin=dict(l=8, r=8, t=36, b=8),
        hovermode="closest",
        hoverdistance=-1,
        clickmode="event+select",
        dragmode=False,
        uirevision="map",
        selectionrevision=str(selected),
    )
    step = 1 if len(rows) <= 40 else 4
    shown = [row for row in range(len(rows)) if row % step == 0]
    figure.update_xaxes(
        side="top",
        tickvals=list(range(len(columns))),
        ticktext=columns,
        range=[-0.5, len(columns) - 0.5],
        showgrid=False,
        zeroline=False,
        fixedrange=True,
        ticks="",
    )
    figure.update_yaxes(
        tickvals=shown,
        ticktext=["outside" if rows[i] is None else f"layer {rows[i]}" for i in shown],
        zeroline=False,
        range=[len(rows) - 0.5, -0.5],
        showgrid=False,
        fixedrange=True,
        ticks="",
        automargin=True,
    )
    return figure


def _limits(z: np.ndarray, kind: Quantity, fixed: bool) -> tuple[float, float]:
    """The colour scale's ends: the quantity's own limits where `fixed`, else those of the numbers."""
    known = z[np.isfinite(z)]
    if not known.size:
        return 0.0, 1.0
    if fixed:
        return kind.limits or (0.0, float(known.max()) or 1.0)
    low, high = float(known.min()), float(known.max())
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def spectrum(profile, name: str, metric: str = "weight", chi: int | None = None) -> go.Figure:
    """Singular values of one weight against their number, log-log, over those of a Gaussian matrix of its shape.

    In the metric `weight` the noise has the deviation that fits the bulk, and the line marks the bulk's edge: what
    stands above it is signal. In the other metrics the noise has the same Σσ², as the inputs have scales of their own.
    """
    weight = profile.weight(name)
    sigma, shape = np.asarray(profile.sigma(name, metric)), weight["shape"]
    m, n = sorted(shape)
    index, values = thin(sigma, POINTS)
    deviation = bulk_deviation(sigma, shape) if metric == "weight" else math.sqrt(float((sigma**2).sum()) / (m * n))
    noise = np.sqrt(np.maximum(-np.diff(null_tail(m, n)), 0) * m * n) * deviation
    noise_index, noise = thin(noise, POINTS)
    figure = go.Figure()
    line(figure, noise_index, noise, "Gaussian of this shape", GREY, dash="dot", form="σ %{y:.3g}")
    line(figure, index, values, "σ of this weight", BLUE, form="σ %{y:.4g}")
    if metric == "weight" and deviation > 0:
        edge = bulk_edge(sigma, shape)
        figure.add_hline(edge, line=dict(color=ORANGE, width=1.2, dash="dash"))
        figure.add_annotation(
            x=0.01,
            xref="paper",
            y=math.log10(edge),
            text="edge of the bulk",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font=dict(size=11, color=ORANGE),
        )
    _cut(figure, chi, shape, log=True)
    positive = values[values > 0]
    low = max(float(positive.min()), float(positive.max()) * 1e-4) if positive.size else 1e-3
    high = float(positive.max()) if positive.size else 1.0
    frame(figure, "number i of the singular value", "σ")
    figure.update_xaxes(type="log", **log_ticks(1, m))
    figure.update_yaxes(type="log", range=[math.log10(low / 1.3), math.log10(high * 1.4)], **log_ticks(low, high))
    return figure


def cumulative(profile, name: str, metric: str = "weight", chi: int | None = None) -> go.Figure:
    """The part of Σσ² that χ singular values keep, over what they would keep of a Gaussian matrix of that shape.

    One minus this is the relative squared error in the metric. The upright line is the break-even χ: beyond it two
    factors are larger than the weight.
    """
    weight = profile.weight(name)
    sigma, shape = np.asarray(profile.sigma(name, metric)), weight["shape"]
    left = tail(sigma)
    kept = 1 - left / left[0] if left[0] > 0 else np.ones_like(left)
    pick = np.unique(np.linspace(0, len(kept) - 1, min(POINTS, len(kept))).round().astype(int))
    noise = 1 - null_tail(*shape)
    figure = go.Figure()
    line(figure, pick, noise[pick], "Gaussian of this shape", GREY, dash="dot", form="%{y:.1%} kept")
    line(figure, pick, kept[pick], "this weight", BLUE, form="%{y:.2%} kept")
    _cut(figure, chi, shape)
    frame(figure, "χ, singular values kept", "weight kept")
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def bonds(profile, name: str, metric: str = "weight") -> go.Figure:
    """Entropy across each bond of a weight's matrix product operator, beside the Gaussian null of the same cut."""
    found = [bond for bond in profile.weight(name)["bonds"] if metric in bond["spectra"]]
    labels = [f"bond {bond['bond']}<br>{bond['dims'][0]:,} × {bond['dims'][1]:,}" for bond in found]
    figure = go.Figure()
    for field, color, label, pattern in (
        ("null_entropy", GREY, "Gaussian of this cut", "/"),
        ("entropy", BLUE, "this weight", ""),
    ):
        figure.add_bar(
            x=labels,
            y=np.array([bond["spectra"][metric][field] for bond in found], np.float32),
            name=label,
            marker_color=color,
            marker_pattern_shape=pattern,
            hovertemplate="%{x}: %{y:.3f} nats<extra>" + label + "</extra>",
        )
    frame(figure, "", "entropy (nats)")
    figure.update_layout(barmode="group", bargap=0.35, bargroupgap=0.08)
    return figure


def _cut(figure, chi, shape, log: bool = False) -> None:
    """Upright lines: the break-even χ, and the chosen χ where there is one."""
    marks = [(break_even(shape), "break-even", GREY, "dash")]
    if chi:
        marks.append((chi, f"χ = {chi}", ORANGE, "solid"))
    for place, text, color, dash in marks:
        figure.add_vline(place, line=dict(color=color, width=1.2, dash=dash))
        figure.add_annotation(
            x=math.log10(place) if log else place,
            y=0.02,
            yref="paper",
            yanchor="bottom",
            xanchor="right",
            text=text,
            showarrow=False,
            textangle=-90,
            font=dict(size=11, color=color),
        )
