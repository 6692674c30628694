"""What a plan gives each weight, over the layers of the model."""

from collections.abc import Iterable

import plotly.graph_objects as go

from karipap_core.figures.methods import SYMBOLS
from karipap_core.figures.style import BELOW, BLUE, FAINT, GOLD, GREEN, GREY, ORANGE, PURPLE, escape

ROLE_COLORS = (BLUE, ORANGE, GREEN, PURPLE, GOLD, GREY, "#5b5fc7")
DASHES = ("solid", "dash", "dot")


def chi_by_layer(rows: Iterable[dict]) -> go.Figure:
    """χ (the largest bond) of each weight over the model's layers, a line a role; experts of a role by their mean."""
    roles: dict[str, dict[int, list[int]]] = {}
    for row in rows:
        if row["chi"] and row["layer"] is not None:
            role = f"{row['tower']} {row['role']}" if row.get("tower") else row["role"]
            roles.setdefault(role, {}).setdefault(row["layer"], []).append(max(row["chi"]))
    figure = go.Figure()
    for number, (role, layers) in enumerate(roles.items()):
        at = sorted(layers)
        figure.add_scatter(
            x=at,
            y=[sum(layers[layer]) / len(layers[layer]) for layer in at],
            name=role,
            mode="lines+markers",
            line=dict(color=ROLE_COLORS[number % len(ROLE_COLORS)], dash=DASHES[number // len(ROLE_COLORS) % 3]),
            marker=dict(size=7, symbol=SYMBOLS[number % len(SYMBOLS)]),
            hovertemplate=f"{escape(role)}, layer %{{x}}: χ %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(
        height=340, margin=dict(l=8, r=8, t=8, b=8), hovermode="closest", showlegend=True, legend=BELOW
    )
    last = max((layer for layers in roles.values() for layer in layers), default=0)
    figure.update_xaxes(dtick=1 if last <= 12 else None)
    figure.update_xaxes(title_text="layer", gridcolor=FAINT, zeroline=False, automargin=True, tickformat="d")
    figure.update_yaxes(title_text="χ", gridcolor=FAINT, zeroline=False, automargin=True, rangemode="tozero")
    return figure
