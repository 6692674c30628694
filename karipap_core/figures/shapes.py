"""The map of a model whose weights are not here: what the shape of each weight says by itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from karipap_core.figures.map import Numbers, weight_map

SHAPES = {  # quantity → how it is called, its unit, how it is written, what it is
    "null_entropy": (
        "Entropy of noise",
        "nats",
        ".2f",
        "The entropy that a Gaussian random matrix of this shape has. A trained weight lies below it: the difference, "
        "its excess, is what training put in.",
    ),
    "break_even": (
        "Break-even χ",
        "",
        ".0f",
        "Two factors with this χ have as many parameters as the weight: out · in / (out + in). Only below it is "
        "anything saved.",
    ),
    "parameters": ("Parameters", "", ",.0f", "Numbers in the weight, out · in."),
    "bytes": ("Bytes", "", ",.0f", "What the weight takes as the config says that it is stored."),
}


def shape_map(rows: Sequence[Mapping[str, Any]], quantity: str = "null_entropy") -> go.Figure:
    """Layers down, roles across, one of `SHAPES` a weight; rows as `profiles.outline.numbers_of_shapes` gives them."""
    label, unit, form, _ = SHAPES[quantity]
    values = {row["name"]: float(row[quantity]) for row in rows}
    return weight_map([dict(row) for row in rows], Numbers(values, label, unit, form))
