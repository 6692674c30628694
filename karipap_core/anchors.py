"""Published points as a reference layer on the trade-off. None of them was measured here, and every one says so.

anchors.json holds them: method, model, metric, y, the dense model's own y, where it stands in size (`kept`, parameters;
`bytes_kept`, against 16-bit weights), source, note. Models, texts and contexts are the papers' own, so a published
point stands beside a measured one and never decides which is better.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import plotly.graph_objects as go

from karipap_core.errors import InputError
from karipap_core.figures import GREEN, GREY, PURPLE, escape, log_ticks
from karipap_core.workspace.files import read_json

FORMAT, VERSION = "karipap-anchors", 1
FILE = Path(__file__).with_name("anchors.json")
LABEL = "published, not measured here"
METRICS = ("perplexity", "accuracy", "accuracy drop")
TEXTS = ("method", "family", "model", "metric", "dataset", "source")
STYLES = {"low rank": (GREY, "triangle-up-open"), "quantization": (PURPLE, "square-open")}
STYLES |= {"tensor network": (GREEN, "star-open")}


@lru_cache(maxsize=4)
def load(file: Path = FILE) -> tuple[dict, ...]:
    """The published points. Raises InputError that names the point and the field where the file is not right."""
    document = read_json(file)
    if document.get("format") != FORMAT or document.get("version") != VERSION:
        raise InputError(f"{file} is no list of anchors of version {VERSION} (fields 'format', 'version').")
    for number, anchor in enumerate(document.get("anchors") or ()):
        _check(anchor, f"{file.name}, anchor {number + 1}")
    return tuple(document["anchors"])


def _check(anchor: dict, where: str) -> None:
    for key in TEXTS:
        if not isinstance(anchor.get(key), str) or not anchor[key].strip():
            raise InputError(f"{where}: field {key} must be a text.")
    if anchor["metric"] not in METRICS:
        raise InputError(f"{where}: field metric is {anchor['metric']!r}, not one of {', '.join(METRICS)}.")
    for key, most in (("y", math.inf), ("dense", math.inf), ("kept", 1.0), ("bytes_kept", 1.0)):
        value = anchor.get(key)
        if value is None and key in ("kept", "bytes_kept"):
            continue
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most or value == math.inf:
            raise InputError(f"{where}: field {key} is {value!r}: it must be a number from 0 to {most:g}.")
    if anchor.get("kept") is None and anchor.get("bytes_kept") is None:
        raise InputError(f"{where}: fields kept and bytes_kept are both missing.")
    if anchor["metric"] == "perplexity" and min(anchor["y"], anchor["dense"]) < 1:
        raise InputError(f"{where}: field y: no perplexity is below 1.")


def value(anchor: dict, y: str) -> float | None:
    """A published point on an axis of the trade-off, None where it has no such number.

    "perplexity" as printed, "loss" = ln perplexity, "rise" = ln(perplexity / the dense model's), nats a token; the name
    of a data set in lower case, such as "hellaswag", gives its accuracy.
    """
    if anchor["metric"] == "perplexity":
        known = {"perplexity": anchor["y"], "loss": math.log(anchor["y"])}
        return (known | {"rise": math.log(anchor["y"] / anchor["dense"])}).get(y)
    return anchor["y"] if anchor["metric"] == "accuracy" and anchor["dataset"].lower() == y.lower() else None


def on_axes(x: str, y: str, anchors: Iterable[dict] | None = None) -> list[dict]:
    """The anchors with a number on both axes, each with "at" = (x, y)."""
    found = []
    for anchor in load() if anchors is None else anchors:
        at = anchor.get(x) if x in ("kept", "bytes_kept") else None, value(anchor, y)
        if None not in at:
            found.append(anchor | {"at": at})
    return found


def add_anchors(
    figure: go.Figure, x: str = "bytes_kept", y: str = "rise", anchors: Iterable[dict] | None = None
) -> go.Figure:
    """Adds the published points to a trade-off figure, in place, and returns it: thin hollow markers in a group of the
    legend that is titled "published, not measured here", a dotted line through one method on one model.

    On a logarithmic axis, points of 0 or less are left out and the ticks are widened to hold the layer. Axes that no
    published point is on leave the figure as it is.
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
            x=[anchor["at"][0] for anchor in members], y=[anchor["at"][1] for anchor in members],
            name=f"{method}, {model}", mode="lines+markers", opacity=0.75, legendgroup="anchors",
            legendgrouptitle_text=LABEL, line=dict(color=color, width=1, dash="dot"),
            marker=dict(symbol=symbol, size=9, color=color, line=dict(width=1.5)),
            hovertext=[_hover(anchor) for anchor in members], hovertemplate="%{hovertext}<extra></extra>",
        )  # fmt: skip
    if groups and log:
        heights = [float(h) for trace in figure.data for h in (() if trace.y is None else trace.y) if h and h > 0]
        figure.update_yaxes(**log_ticks(min(heights), max(heights)))
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


def table(x: str | None = None, y: str | None = None) -> list[dict]:
    """The published points as flat rows for a screen, a report or a CSV; those on two axes alone where these are
    given."""
    rows = load() if x is None or y is None else on_axes(x, y)
    return [
        {key: row.get(key) for key in (*TEXTS, "context", "y", "dense", "kept", "bytes_kept", "note")} for row in rows
    ]
