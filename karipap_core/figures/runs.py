"""Plotly figures of measured runs: the trade-off, and what each weight lost.

A point is a run as `points.Points` and `run.run` write it: a flat dictionary with "id", "kind", "method", "label",
"settings", sizes and figures. See style.py for the manners of all figures.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from karipap_core.evaluation import scores
from karipap_core.figures.map import Numbers, weight_map
from karipap_core.figures.methods import DASHES, SYMBOLS, network_color, rival
from karipap_core.figures.style import FAINT, GOLD, GREY, ORANGE, escape, log_ticks
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known, pareto
from karipap_core.tradeoffs.ranking import method_of


@dataclass(frozen=True)
class Axis:
    """A number of a point: its key, label, how it is written, whether more is better, whether decades suit it."""

    key: str
    label: str
    form: str
    says: str
    more: bool = False
    log: bool = False


SIZES = {
    axis.key: axis
    for axis in (
        Axis(
            "bytes_kept",
            "Bytes kept",
            ".1%",
            "bytes of the whole model, 16 bits for every number that is not "
            "quantized, over the same of the dense model; scales and zero points counted",
        ),
        Axis("bytes_kept_blocks", "Bytes kept, blocks", ".1%", "the same over the compressible weights alone"),
        Axis(
            "kept",
            "Parameters kept",
            ".1%",
            "parameters of the whole model, embedding and head included, over those of the dense model",
        ),
        Axis("kept_blocks", "Parameters kept, blocks", ".1%", "the same over the compressible weights alone"),
    )
}
QUALITIES = {
    axis.key: axis
    for axis in (
        Axis("rise", "Rise in loss", "z.4f", "loss minus the dense model's, nats a token", log=True),
        Axis("loss", "Loss", ".4f", "mean of −ln p of the next token, nats a token"),
        Axis("perplexity", "Perplexity", ".3f", "exp of the loss", log=True),
        Axis(
            "bits_per_byte",
            "Bits per byte",
            ".4f",
            "the loss in bits, per byte of the text: comparable across tokenizers",
        ),
        Axis("kl", "KL divergence", "z.4f", "mean KL(dense ‖ compressed) of the next token, nats a token", log=True),
        Axis("top1_agreement", "Top-1 agreement", ".1%", "share of tokens that both models put first", more=True),
        Axis(
            "relative_error", "Output error", ".4f", "Σ‖h − h_dense‖² / Σ‖h_dense‖² of the last hidden states", log=True
        ),
    )
}


def quality(points: Iterable[dict], y: str) -> Axis:
    """The axis of a figure of these points: one of `QUALITIES`, or a score of a task such as "hellaswag: acc_norm".
    Raises KeyError for what is neither."""
    if y in QUALITIES:
        return QUALITIES[y]
    more = scores.keys(points)[y]
    return Axis(y, y, ".1%" if more else ".4f", "score of a benchmark task, as lm-evaluation-harness names it", more)


def interval(point: dict, y: str) -> tuple[float, float] | None:
    """Where a figure of a point lies by its 95 % interval, None where it has none.

    That of the rise is paired to the dense model on the same tokens (`bootstrap.rise_of`), so those of what follows
    from the loss are: loss = dense + rise, perplexity = dense · exp(rise), bits per byte = dense · (loss / dense loss).
    Of a task see `scores.interval`.
    """
    if y not in QUALITIES:
        return scores.interval(point, y)
    found, dense = uncertainty.rise_of(point), point.get("dense") or {}
    if found is None or y not in scores.LOSSES:
        return None
    ends = (found.low, found.high)
    if y == "rise":
        return ends
    if not known(dense, "loss") or not known(dense, y):
        return None
    if y == "loss":
        return tuple(dense["loss"] + end for end in ends)
    if y == "perplexity":
        return tuple(dense["perplexity"] * math.exp(end) for end in ends)
    return tuple(dense["bits_per_byte"] * (1 + end / dense["loss"]) for end in ends)


def measurable(point: dict, y: str) -> bool | None:
    """Whether a point differs from the dense model by a figure, None where no interval tells."""
    if y in QUALITIES and y not in scores.LOSSES:
        return None
    found = uncertainty.rise_of(point) if y in scores.LOSSES else scores.to_dense(point, y)
    return None if found is None else found.measurable


def tradeoff(
    points: Sequence[dict],
    x: str = "bytes_kept",
    y: str = "rise",
    log: bool | None = None,
    selected: str | None = None,
) -> go.Figure:
    """Size against quality: a line for each method of networks and rivals, and the Pareto front of them all.

    y is a key of `QUALITIES` or a score of a task (`scores.keys`); then points alone that were scored in one way are
    drawn. Bars are 95 % intervals (`interval`). Every marker's `customdata` is the point's id. On a logarithmic axis,
    numbers at or below the noise floor (a ten-thousandth of a nat, or the smallest number of the scale) are drawn on
    the floor, which then says so; hovering gives the true number.
    """
    size, axis = SIZES[x], quality(points, y)
    score = y not in QUALITIES
    points = scores.with_score(points, y) if score else points
    log = axis.log if log is None else log
    drawn = [point for point in points if known(point, x) and known(point, y)]
    figure = go.Figure()
    floor = 1e-4 if y in ("rise", "kl") else 1e-6

    def height(point: dict) -> float:
        return max(point[y], floor) if log else point[y]

    front = pareto(drawn, x, y, maximize=(y,) if axis.more else ())
    if len(front) > 1:
        figure.add_scatter(
            x=_array(point[x] for point in front),
            y=_array(map(height, front)),
            mode="lines",
            name="Pareto front",
            line=dict(color=GOLD, width=9),
            opacity=0.4,
            hoverinfo="skip",
        )
    for name, members, style in _series(drawn):
        members = sorted(members, key=lambda point: point[x])
        figure.add_scatter(
            x=_array(point[x] for point in members),
            y=_array(map(height, members)),
            name=name,
            mode="lines+markers",
            customdata=[point["id"] for point in members],
            hovertext=[_hover(point, size, y) for point in members],
            error_y=_bars(members, y, height, floor if log else -math.inf, style["color"]),
            hovertemplate="%{hovertext}<extra></extra>",
            line=dict(color=style["color"], width=style["width"], dash=style["dash"]),
            marker=dict(
                symbol=style["symbol"],
                size=style["size"],
                color=style["color"],
                line=dict(width=2 if "open" in style["symbol"] else 0),
            ),
            selected_marker_opacity=1,
            unselected_marker_opacity=1,
            selectedpoints=[i for i, p in enumerate(members) if p["id"] == selected],
        )
    chosen = next((point for point in drawn if point["id"] == selected), None)
    if chosen:
        figure.add_scatter(
            x=_array([chosen[x]]),
            y=_array([height(chosen)]),
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker=dict(symbol="circle-open", size=20, color=ORANGE, line=dict(width=2.5)),
        )
    dense = next((p["dense"][y] for p in drawn if y in (p.get("dense") or {})), None)
    levels = {"dense": (scores.dense(points, y) if score else dense, "dot")}
    levels |= {"chance": (scores.chance(points, y), "dash")} if score else {}
    for word, (at, dash) in levels.items():
        if at is None or (log and at <= 0):
            continue
        figure.add_hline(at, line=dict(color=GREY, width=1, dash=dash))
        label = f"{word} {at:{axis.form}}" if score else word
        figure.add_annotation(
            x=0,
            xref="paper",
            y=math.log10(at) if log else at,
            text=label,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font=dict(size=11, color=GREY),
        )
    figure.update_layout(
        height=520,
        margin=dict(l=8, r=8, t=8, b=8),
        hovermode="closest",
        hoverdistance=24,
        clickmode="event+select",
        dragmode="zoom",
        uirevision=f"{x}{y}{log}",
        selectionrevision=str(selected),
        legend=dict(orientation="v", x=1.01, y=1, xanchor="left", yanchor="top", title_text="", tracegroupgap=4),
    )
    figure.update_xaxes(title_text=size.label, tickformat=".0%", gridcolor=FAINT, zeroline=False, automargin=True)
    unit = ", nats a token" if y in ("rise", "loss", "kl") else ""
    figure.update_yaxes(title_text=escape(axis.label) + unit, gridcolor=FAINT, zeroline=False, automargin=True)
    if score and axis.more and not log:
        figure.update_yaxes(tickformat=".0%")
    if log and any(point[y] < floor for point in drawn):
        figure.add_annotation(
            x=1,
            xref="paper",
            y=math.log10(floor),
            text=f"at or below {floor:g}",
            showarrow=False,
            xanchor="right",
            yanchor="top",
            font=dict(size=11, color=GREY),
        )
    if log:
        figure.update_yaxes(type="log", **log_ticks(*_ends(map(height, drawn))))
    return figure


def _bars(members: Sequence[dict], y: str, height, floor: float, color: str) -> dict | None:
    """Error bars from the marker's place, nothing (NaN) for points without an interval. An end that a logarithmic axis
    cannot show stops at the floor."""
    found = [interval(point, y) for point in members]
    if not any(found):
        return None
    up, down = [], []
    for point, ends in zip(members, found, strict=True):
        at = height(point)
        up.append(max(ends[1] - at, 0.0) if ends else math.nan)
        down.append(max(at - max(ends[0], floor), 0.0) if ends else math.nan)
    return dict(
        type="data", symmetric=False, array=_array(up), arrayminus=_array(down), color=color, thickness=1.3, width=4
    )


def _ends(values: Iterable[float]) -> tuple[float, float]:
    values = [value for value in values if value > 0] or [1.0]
    return min(values), max(values)


def _series(points: Iterable[dict]) -> Iterator[tuple[str, list[dict], dict]]:
    """(name, points, style) of each line: networks by network, what they are stored in, and rule; rivals by method."""
    groups: dict[tuple[bool, str, str | None], list[dict]] = {}
    for point in points:
        rule = (point.get("settings") or {}).get("rule")
        network = point["kind"] == "network"
        key = (not network, point["method"], f"{method_of(point)}, {rule}" if network else None)
        groups.setdefault(key, []).append(point)
    rules: dict[str, int] = {}
    for is_rival, method, line in sorted(groups, key=str):
        members = groups[is_rival, method, line]
        if is_rival:
            look = rival(method)
            yield look.name, members, dict(color=look.color, symbol=look.symbol, dash=look.dash, width=1.2, size=10)
            continue
        number = rules[method] = rules.get(method, -1) + 1
        style = dict(color=network_color(method), symbol=SYMBOLS[number % len(SYMBOLS)], width=2.2, size=10)
        yield line or method, members, style | {"dash": DASHES[number % len(DASHES)]}


def _hover(point: dict, size: Axis, y: str) -> str:
    lines = [f"<b>{escape(point['label'])}</b>", f"{size.label.lower()} {point[size.key]:{size.form}}"]
    if y not in QUALITIES:
        axis, ends = quality([point], y), scores.interval(point, y)
        span = f" (95 % {ends[0]:{axis.form}} to {ends[1]:{axis.form}})" if ends else ""
        lines.append(f"{escape(y)} {point[y]:{axis.form}}{span}")
    for axis in QUALITIES.values():
        if known(point, axis.key):
            lines.append(f"{axis.label.lower()} {point[axis.key]:{axis.form}}")
            if axis.key != "rise":
                continue
            ends, error = interval(point, "rise"), point.get("rise_error")
            lines[-1] += f" (95 % {ends[0]:+.4f} to {ends[1]:+.4f})" if ends else f" ± {error:.2g}" if error else ""
    if measurable(point, y) is False:
        lines.append("<b>no measurable difference</b> to dense")
    predicted = (point.get("predicted") or {}).get("rise")
    if predicted is not None:
        lines.append(f"predicted rise {predicted:.4f}")
    return "<br>".join(lines)


def lost(weights: Sequence[dict], rows: Sequence[dict], field: str = "functional_error") -> go.Figure:
    """What each weight lost, as a map: relative squared error of the stored cores, by decades.

    `weights` are the model's (dictionaries with name, layer, role, shape), `rows` those of `compress`; a weight that
    stayed dense has no colour.
    """
    values = {row["name"]: row[field] for row in rows if row.get(field) is not None}
    label = {"functional_error": "error of the outputs", "weight_error": "error of the weights"}[field]
    return weight_map(weights, Numbers(values, label, log=True, absent="dense"))


def _array(values: Iterable[float]) -> np.ndarray:
    return np.fromiter(values, np.float32)
