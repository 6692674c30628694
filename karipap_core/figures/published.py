"""Published figures as points beside measured ones."""

from collections.abc import Iterable

import plotly.graph_objects as go

from karipap_core.figures.style import GREEN, GREY, PURPLE, escape
from karipap_core.tradeoffs.published import LABEL, on_axes

STYLES = {"low rank": (GREY, "triangle-up-open"), "quantization": (PURPLE, "square-open")}
STYLES |= {"tensor network": (GREEN, "star-open")}


def add_published(
    figure: go.Figure, x: str = "bytes_kept", y: str = "rise", anchors: Iterable[dict] | None = None
) -> go.Figure:
    """Adds the published points to a trade-off figure, in place, and returns it: thin hollow markers in a group of the
    legend that is titled "published, not measured here", a dotted line through one method on one model.

    On a logarithmic axis, points of 0 or less are left out. Axes that no published point is on leave the figure as it
    is.
    """
    log = figure.layout.yaxis.type == "log"
    groups: dict = {}
    for anchor in on_axes(x, y, anchors):
        if not log or anchor["at"][1] > 0:
            groups.setdefault((anchor["family"], anchor["method"], anchor["model"]), []).append(anchor)
    for (family, method, model), members in sorted(groups.items()):
        color, symbol = STYLES.get(family, (GREY, "circle-open"))
        members.sort(key=lambda anchor: anchor["at"])
        figure.add_scatter(
            x=[anchor["at"][0] for anchor in members],
            y=[anchor["at"][1] for anchor in members],
            name=f"{method}, {model}",
            mode="lines+markers",
            opacity=0.75,
            legendgroup="anchors",
            legendgrouptitle_text=LABEL,
            line=dict(color=color, width=1, dash="dot"),
            marker=dict(symbol=symbol, size=9, color=color, line=dict(width=1.5)),
            hovertext=[_hover(anchor) for anchor in members],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    if groups:
        figure.update_layout(legend_traceorder="grouped")  # for the group's title
    return figure


def _hover(anchor: dict) -> str:
    context = f", context {anchor['context']}" if anchor.get("context") else ""
    shares = [(anchor.get("kept"), "parameters"), (anchor.get("bytes_kept"), "16-bit bytes")]
    lines = [
        f"<b>{escape(anchor['method'])}</b> on {escape(anchor['model'])}",
        f"<i>{LABEL}</i>: {escape(anchor['source'])}",
        f"{escape(anchor['dataset'])}{context}: {anchor['metric']} {anchor['y']:g}, dense {anchor['dense']:g}",
        ", ".join(f"{share:.1%} of the {what} kept" for share, what in shares if share is not None),
    ]
    return "<br>".join([*lines, *_wrapped(anchor.get("note") or "")])


def _wrapped(note: str, width: int = 70) -> list[str]:
    import textwrap

    return [escape(line) for line in textwrap.wrap(note, width)]
