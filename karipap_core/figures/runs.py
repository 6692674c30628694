"""Plotly figures of measured runs: the trade-off, and what each weight lost.

A point is a run as `points.Points` and `run.run` write it: a flat dictionary with "id", "kind", "method", "label",
"settings", sizes and figures. See style.py for the manners of all figures.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import plotly.graph_objects as go

from karipap_core.evaluation import scores
from karipap_core.figures.axes import NO_LOSS, QUALITIES, SIZES, UNITS, Axis, interval, measurable, of_dense, quality
from karipap_core.figures.map import Numbers, weight_map
from karipap_core.figures.methods import DASHES, RIVALS, SYMBOLS, network_color, rival
from karipap_core.figures.style import FAINT, GOLD, GREY, ORANGE, escape
from karipap_core.statistics.pareto import known, pareto
from karipap_core.tradeoffs.equal import method_of

FAMILIES = {"gptq": "integers", "rtn": "integers", "torchao": "integers", "svd": "plain SVD", "svd-llm": "plain SVD"}
YOURS = "Your runs"
MOST_NAMED = 6  # of one's own runs, the newest: more names would cover each other


def tradeoff(
    points: Sequence[dict],
    x: str = "bytes_kept",
    y: str = "rise",
    log: bool | None = None,
    selected: str | None = None,
    own: Collection[str] = (),
) -> go.Figure:
    """Size against quality: a line for each method of networks and rivals, and the Pareto front of them all.

    log : None chooses, linear where no number is above the floor.

    y is a key of `QUALITIES` or a score of a task (`scores.keys`); then points alone that were scored in one way are
    drawn. Bars are 95 % intervals (`interval`). Every marker's `customdata` is the point's id. On a logarithmic axis,
    numbers at or below the noise floor (a ten-thousandth of a nat, or the smallest number of the scale) are drawn on
    the floor, which then says so; hovering gives the true number. The dense model is a point too: all of its bytes,
    and what it scores, or no rise at all.

    own : ids of points that are a series of their own, with stars and names. selected : the id of the point that is
    ringed and named. A click on a name of the legend, which stands below the chart, hides or shows its group.
    """
    size, axis = SIZES[x], quality(points, y)
    score = y not in QUALITIES
    points = scores.with_score(points, y) if score else points
    drawn = [point for point in points if known(point, x) and known(point, y)]
    figure = go.Figure()
    floor = 1e-4 if y in ("rise", "kl") else 1e-6
    above = any(point[y] > floor for point in drawn)
    log = axis.log and above if log is None else log

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
    dense = of_dense(points, y)
    if drawn and dense is not None:
        figure.add_scatter(
            x=_array([1.0]),
            y=_array([height({y: dense})]),
            mode="markers",
            name="Dense model",
            marker=dict(symbol="diamond", size=12, color=GREY),
            hovertext=[
                f"<b>the dense model</b><br>all of its bytes and parameters<br>{escape(axis.label)} {dense:{axis.form}}"
            ],
            hovertemplate="%{hovertext}<extra></extra>",
        )
    mine = [point for point in drawn if point["id"] in own]
    for name, members, style in [*_series([p for p in drawn if p["id"] not in own]), *_yours(mine)]:
        members = sorted(members, key=lambda point: point[x])
        figure.add_scatter(
            x=_array(point[x] for point in members),
            y=_array(map(height, members)),
            name=name,
            legendgroup=style["family"],
            mode="lines+markers" if style["width"] else "markers",
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
    _name(figure, drawn, mine, selected, x, height, log)
    _levels(figure, points, y, axis, dense, log)
    figure.update_layout(
        height=560,
        margin=dict(l=8, r=16, t=24, b=8),
        hovermode="closest",
        hoverdistance=24,
        clickmode="event+select",
        dragmode="zoom",
        uirevision=f"{x}{y}{log}",
        selectionrevision=str(selected),
        legend=dict(
            orientation="h",
            traceorder="normal",
            groupclick="togglegroup",
            title_text="",
            x=0,
            xanchor="left",
            yref="container",
            font=dict(size=11),
            y=0,
            yanchor="bottom",
        ),
    )
    figure.update_xaxes(
        title_text=f"{size.label}, % of the dense model",
        tickformat=".4~p",
        gridcolor=FAINT,
        zeroline=False,
        automargin=True,
    )
    unit = UNITS.get(y, "")
    figure.update_yaxes(
        title_text=escape(axis.label) + unit,
        type="log" if log else "linear",
        tickformat="~g" if log or not axis.form.endswith("%") else ".4~p",
        exponentformat="power",
        gridcolor=FAINT,
        zeroline=False,
        automargin=True,
    )
    if log and not above:  # its own choice of a range would be a thousandth of a decade
        figure.update_yaxes(range=[math.log10(floor) - 0.3, math.log10(floor) + 3])
    if log and any(point[y] < floor for point in [*drawn, *([] if dense is None else [{y: dense}])]):
        figure.add_annotation(
            x=0,
            xref="paper",
            y=math.log10(floor),
            text=f"at or below {floor:g}",
            showarrow=False,
            xanchor="left",
            yanchor="top",
            font=dict(size=11, color=GREY),
        )
    return figure


def _yours(mine: list[dict]) -> list[tuple[str, list[dict], dict]]:
    """One's own runs as a series, in the form of `_series`: none where there are none."""
    style = dict(color=ORANGE, symbol="star", dash="solid", width=0, size=15, family=YOURS)
    return [(YOURS, mine, style)] if mine else []


def _name(
    figure: go.Figure, drawn: list[dict], mine: list[dict], selected: str | None, x: str, height, log: bool
) -> None:
    """A ring around the point in view, and names: its own, and those of one's newest runs as far as none is over
    another one."""

    def place(point: dict) -> tuple[float, float]:
        return point[x], math.log10(height(point)) if log else height(point)

    chosen = next((point for point in drawn if point["id"] == selected), None)
    newest = sorted(mine, key=lambda point: point.get("created") or 0, reverse=True)[:MOST_NAMED]
    if chosen:
        figure.add_scatter(
            x=_array([chosen[x]]),
            y=_array([height(chosen)]),
            mode="markers",
            hoverinfo="skip",
            showlegend=False,
            marker=dict(symbol="circle-open", size=24, color=ORANGE, line=dict(width=2.5)),
        )
    places = [place(point) for point in drawn]
    wide, high = (max(values) - min(values) or 1.0 for values in zip(*places, strict=True)) if places else (1.0, 1.0)
    named: list[tuple[float, float]] = []
    for point in ([chosen] if chosen else []) + [point for point in newest if point is not chosen]:
        at = place(point)
        if any(abs(at[0] - other[0]) < 0.3 * wide and abs(at[1] - other[1]) < 0.06 * high for other in named):
            continue
        named.append(at)
        left = at[0] > min(place[0] for place in places) + wide / 2  # so that the name stays on the chart
        figure.add_annotation(
            x=at[0],
            y=at[1],
            text=f"<b>{escape(point['label'])}</b>" if point is chosen else escape(point["label"]),
            ax=-26 if left else 26,
            ay=-30,
            xanchor="right" if left else "left",
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=ORANGE,
            standoff=12 if point is chosen else 8,
            font=dict(size=13 if point is chosen else 12, shadow="auto"),  # legible over lines
        )


def _levels(figure: go.Figure, points: Sequence[dict], y: str, axis: Axis, dense: float | None, log: bool) -> None:
    """Lines across the chart at what the dense model has, and at what guessing gets."""
    score = y not in QUALITIES
    levels = {"dense": (None if y in NO_LOSS else dense, "dot")}
    levels |= {"chance": (scores.chance(points, y), "dash")} if score else {}
    for word, (at, dash) in levels.items():
        if at is None or (log and at <= 0):
            continue
        figure.add_hline(at, line=dict(color=GREY, width=1, dash=dash))
        figure.add_annotation(
            x=0,
            xref="paper",
            y=math.log10(at) if log else at,
            text=f"{word} {at:{axis.form}}" if score else word,
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font=dict(size=11, color=GREY),
        )


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


def _series(points: Iterable[dict]) -> Iterator[tuple[str, list[dict], dict]]:
    """(name, points, style) of each line: networks by network, what they are stored in, and rule; rivals by method.
    style["family"] is what hides and shows as one: the lines of a network, rivals of a kind."""
    groups: dict[tuple[bool, str, str | None], list[dict]] = {}
    for point in points:
        rule = (point.get("settings") or {}).get("rule")
        network = point["kind"] == "network"
        key = (not network, point["method"], f"{method_of(point)}, {rule}" if network else None)
        groups.setdefault(key, []).append(point)
    rules: dict[str, int] = {}
    others = sorted(method for is_rival, method, _ in groups if is_rival and method not in RIVALS)
    for is_rival, method, line in sorted(groups, key=str):
        members = groups[is_rival, method, line]
        if is_rival:
            look = rival(method, others.index(method) if method in others else 0)
            style = dict(color=look.color, symbol=look.symbol, dash=look.dash, width=1.2, size=10)
            here = ", measured here" if (members[0].get("settings") or {}).get("package") else ""
            yield escape(look.name) + here, members, style | {"family": FAMILIES.get(method, method)}
            continue
        number = rules[method] = rules.get(method, -1) + 1
        style = dict(color=network_color(method), symbol=SYMBOLS[number % len(SYMBOLS)], width=2.2, size=10)
        yield line or method, members, style | {"dash": DASHES[number % len(DASHES)], "family": method}


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
            lines[-1] += f" (95 % {ends[0]:+z.4f} to {ends[1]:+z.4f})" if ends else f" ± {error:.2g}" if error else ""
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
