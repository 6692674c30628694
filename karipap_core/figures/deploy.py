"""Plotly figures of a deployment: what fills the GPU, and how the KV cache grows with the text.

They draw documents of `deploy.deploy` and caches of `kv`. See style.py for the manners of all figures.
"""

import numpy as np
import plotly.graph_objects as go

from karipap_core.deployment.kv import Cache
from karipap_core.deployment.verdict import ordered
from karipap_core.figures.style import BELOW, BLUE, FAINT, GREEN, GREY, ORANGE, PURPLE
from karipap_core.terminal import size

PALE = "rgba(255,255,255,0.6)"
FAR = 20  # times the longest bar: a line further out would leave the bars too short to be seen
PARTS = (("weights", BLUE, ""), ("KV cache", ORANGE, "/"), ("activations", GREEN, "x"))
DTYPES = {"fp16": (ORANGE, "solid"), "fp8": (BLUE, "dash"), "int8": (BLUE, "dash"), "int4": (PURPLE, "dot")}


def memory(document: dict) -> go.Figure:
    """A bar for each of the four ways that has figures, stacked from weights, cache and activations, beside the line
    that the GPU ends at (unless it lies far out); the recommended way on top."""
    rows = [row for row in ordered(document) if row["total_bytes"] is not None]
    names = [row["way"] for row in rows]
    activations = [document["activation_bytes"]] * len(rows)
    rest = [row["total_bytes"] - row["weights_bytes"] for row in rows]
    # a smaller model has a cache and activations of its own: there the two stand together, as cache
    other = [row["way"] == "smaller dense model" for row in rows]
    parts = {
        "weights": [row["weights_bytes"] for row in rows],
        "KV cache": [r if o else r - a for r, a, o in zip(rest, activations, other, strict=True)],
        "activations": [0 if o else a for a, o in zip(activations, other, strict=True)],
    }
    largest = max(row["total_bytes"] for row in rows)
    unit, power, one = ("GB", "⁹", 1e9) if largest >= 1e9 else ("MB", "⁶", 1e6)
    figure = go.Figure()
    for name, color, pattern in PARTS:
        values = parts[name]
        figure.add_bar(
            y=names,
            x=np.array(values, np.float32) / np.float32(one),
            orientation="h",
            name=name,
            marker=dict(color=color, pattern=dict(shape=pattern, fillmode="overlay", fgcolor=PALE, size=6)),
            hovertext=[f"{way}: {name} {size(value)}" for way, value in zip(names, values, strict=True)],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    if document["usable_bytes"] and document["usable_bytes"] < FAR * largest:
        end = document["usable_bytes"] / one
        figure.add_vline(end, line=dict(color=GREY, width=2, dash="dash"))
        figure.add_annotation(
            x=end,
            y=1,
            yref="paper",
            yanchor="bottom",
            showarrow=False,
            text="may be filled",
            font=dict(size=12, color=GREY),
        )
    _frame(figure, 110 + 52 * len(rows))
    figure.update_layout(barmode="stack", bargap=0.35, legend_traceorder="normal")
    figure.update_xaxes(title_text=f"Memory, in {unit} (10{power} bytes)", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def cache(model: Cache, document: dict, longest: int) -> go.Figure:
    """Bytes of the KV cache by tokens, both logarithmic, a line a format at the document's batch; the load at hand, and
    the room that the GPU has beside the weights that the document places the cache with."""
    load = document["load"]
    last = max(longest, load["tokens"])
    tokens = np.unique(np.geomspace(max(1, min(256, last // 100)), last, 60).round().astype(int))
    figure = go.Figure()
    eight = "fp8" if (document["gpu"] or {}).get("fp8") else "int8"
    for dtype in ("fp16", eight, "int4"):
        values = [model.bytes(int(n), load["batch"], dtype, load["keep"]) for n in tokens]
        color, dash = DTYPES[dtype]
        figure.add_scatter(
            x=tokens.astype(np.float32),
            y=np.array(values, np.float64).astype(np.float32) / np.float32(1e9),
            mode="lines",
            name=dtype,
            line=dict(color=color, width=2, dash=dash),
            hovertext=[f"{n:,} tokens: {size(value)}" for n, value in zip(tokens, values, strict=True)],
            hovertemplate="%{hovertext}<extra>" + dtype + "</extra>",
        )
    figure.add_scatter(
        x=np.array([load["tokens"]], np.float32),
        y=np.array([document["kv_bytes"] / 1e9], np.float32),
        mode="markers",
        name="this load",
        marker=dict(symbol="circle-open", size=15, color=GREEN, line=dict(width=2.5)),
        hovertext=[f"{load['tokens']:,} tokens: {size(document['kv_bytes'])}"],
        hovertemplate="%{hovertext}<extra>this load</extra>",
    )
    if (room := document["cache_room_bytes"]) and room > 0:
        figure.add_hline(room / 1e9, line=dict(color=GREY, width=2, dash="dash"))
        figure.add_annotation(
            x=0,
            xref="paper",
            xanchor="left",
            y=np.log10(room / 1e9),
            yanchor="bottom",
            showarrow=False,
            text=f" room beside {document['placed_beside']}",
            font=dict(size=12, color=GREY),
        )
    _frame(figure, 330)
    figure.update_xaxes(title_text="Tokens of each sequence", type="log", dtick=1)
    figure.update_yaxes(
        title_text=f"KV cache of {load['batch']} sequences, in GB", type="log", dtick=1, exponentformat="none"
    )
    return figure


def _frame(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        height=height,
        margin=dict(l=8, r=16, t=24, b=8),
        hovermode="closest",
        uirevision="keep",
        legend=BELOW,
    )
    figure.update_xaxes(gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=FAINT, zeroline=False, automargin=True)
