"""The report as one HTML file: styles, scripts and figures in it, nothing fetched, light and dark, and on paper."""

import json
import re
import time
from collections.abc import Iterable
from html import escape

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from karipap_core.evaluation import scores
from karipap_core.figures import predictions as figures_predictions
from karipap_core.figures import profile as figures
from karipap_core.figures import published as anchors
from karipap_core.figures import runs as figures_runs
from karipap_core.figures import style
from karipap_core.plan import predictions
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known

ROLE_COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.GOLD, style.GREY, "#5b5fc7")
DASHES = ("solid", "dash", "dot")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")
# Nothing may be fetched: what is in the file is all there is.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

STYLE = """
:root { color-scheme: light dark; --ink: #1c2126; --soft: #5c656e; --ground: #ffffff; --line: #d9dee3; --tint: #f4f6f8;
  --mark: #a45a00; }
@media screen and (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #a3abb3; --ground: #14181c;
  --line: #323a42; --tint: #1c2228; --mark: #e3a64a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto,
  Helvetica, Arial, sans-serif; font-variant-numeric: tabular-nums; }
main, header, footer { max-width: 66rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3rem; }
h1 { font: 600 2rem/1.2 Georgia, "Source Serif 4", serif; margin: 0 0 .4rem; letter-spacing: -.01em;
  overflow-wrap: anywhere; }
h2 { font: 600 1.3rem/1.3 Georgia, "Source Serif 4", serif; margin: 2.6rem 0 .6rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p, li { max-width: 46rem; }
.soft, figcaption, caption { color: var(--soft); font-size: .87rem; }
.summary { font-size: 1.06rem; padding-left: 1.1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(8.6rem, 1fr)); gap: 1rem 1.5rem;
  margin: 1.4rem 0; }
.facts div { border-top: 2px solid var(--line); padding-top: .4rem; }
.facts dt { font-size: .84rem; color: var(--soft); }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; overflow-wrap: anywhere; }
figure { margin: 1rem 0; }
.drawing { width: 100%; }
caption, figcaption { text-align: left; padding: .2rem 0 .4rem; max-width: 46rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; min-width: 100%; }
th, td { text-align: right; padding: .28rem .45rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; color: var(--soft); white-space: nowrap; }
.words { text-align: left; }
td { white-space: nowrap; }
td.words { overflow-wrap: break-word; white-space: normal; }
td.words:first-child { min-width: 13rem; }
tbody tr.front { background: var(--tint); }
code { overflow-wrap: anywhere; }
code, pre { font: .82rem/1.5 ui-monospace, "Source Code Pro", Menlo, Consolas, monospace; }
pre { background: var(--tint); padding: .8rem 1rem; white-space: pre-wrap; overflow-wrap: anywhere;
  border-radius: 4px; }
td code { overflow-wrap: anywhere; white-space: normal; }
details { border-bottom: 1px solid var(--line); padding: .35rem 0; }
summary { cursor: pointer; font-weight: 600; }
summary span { font-weight: 400; color: var(--soft); }
.published { color: var(--mark); font-weight: 600; }
footer { padding: 2.5rem 1.5rem 3rem; }
@media print {
  @page { margin: 14mm; }
  body { font-size: 10.5pt; } main, header, footer { max-width: none; padding: 0; } header { padding: 0; }
  h2, h3, summary { break-after: avoid; } figure, tr, .facts div { break-inside: avoid; }
  thead { display: table-header-group; }
  .wide { overflow: visible; } table { font-size: 7pt; } th { white-space: normal; } th, td { padding: .15rem .3rem; }
  td.words:first-child { min-width: 0; }
  td.words { overflow-wrap: anywhere; } .modebar { display: none; }
}
"""

SCRIPT = """
(function () {
  "use strict";
  var dark = window.matchMedia("(prefers-color-scheme: dark)"), printing = false, PAPER = 660;
  function look() {
    var ink = dark.matches && !printing ? "#e6e9ec" : "#1c2126", none = "rgba(0,0,0,0)";
    return { paper_bgcolor: none, plot_bgcolor: none, font: { color: ink, family: "system-ui, sans-serif", size: 12 } };
  }
  function draw(place) {
    if (place.dataset.drawn || !place.offsetParent) { return; }
    place.dataset.drawn = "1";
    var figure = JSON.parse(document.getElementById(place.dataset.figure).textContent);
    var layout = Object.assign({}, figure.layout, look());
    if (printing) { layout.width = PAPER; }
    else if (place.clientWidth < 560) {  // beside the chart its legend would leave it no room
      layout.legend = Object.assign({}, layout.legend, { orientation: "h", x: 0, xanchor: "left", y: -0.22,
        yanchor: "top" });
      layout.height = (layout.height || 420) + 220;
    }
    Plotly.newPlot(place, figure.data, layout, { responsive: true, displaylogo: false });
  }
  function each(todo) { Array.prototype.forEach.call(document.querySelectorAll(".drawing"), todo); }
  function again() {
    each(function (place) {
      if (place.dataset.drawn) {
        var change = look();
        change.width = printing ? PAPER : null;
        change.autosize = !printing;
        Plotly.relayout(place, change);
      }
    });
  }
  each(draw);
  document.addEventListener("toggle", function (event) {
    if (event.target.open) { Array.prototype.forEach.call(event.target.querySelectorAll(".drawing"), draw); }
  }, true);
  dark.addEventListener("change", again);
  window.addEventListener("beforeprint", function () {
    printing = true;
    Array.prototype.forEach.call(document.querySelectorAll("details"), function (each) { each.open = true; });
    again();
    each(draw);
  });
  window.addEventListener("afterprint", function () { printing = false; again(); });
}());
"""


def page(document: dict, profile=None) -> str:
    """The whole HTML file of `report.describe`'s document; with a profile also spectra."""
    name = escape(str(document["model"].get("name")))
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(document["created"]))
    drawn = Drawn()
    parts = [
        _head(document),
        *(_group(document, number, drawn) for number in range(len(document["groups"]))),
        _plans(document, drawn),
        _spectra(profile, drawn) if profile is not None else "",
        _published(document, drawn),
        _reproduce(document),
    ]
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f'<meta name="generator" content="Karipap {escape(document["karipap"])}">',
            f"<title>Compression report: {name}</title>",
            f"<style>{STYLE}</style>",
            "</head>",
            "<body>",
            f'<header><h1>Compression of {name}</h1><p class="soft">Made {made} by Karipap '
            f"{escape(document['karipap'])}. This file holds everything it shows; the same numbers are in the CSV and "
            "JSON files beside it.</p></header>",
            "<main>",
            *filter(None, parts),
            "</main>",
            '<footer class="soft">Karipap compresses language models with tensor networks. Every figure on this page '
            "was measured on the machine named above, but for those that are marked as published.</footer>",
            *drawn.scripts,
            f"<script>{plotly_js()}</script>",
            f"<script>{SCRIPT}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


class Drawn:
    """The figures of a page: each one's place in the text, and its JSON, kept for the end of the file."""

    def __init__(self) -> None:
        self.scripts: list[str] = []

    def place(self, figure: go.Figure, says: str) -> str:
        figure.update_layout(template="none")
        number = len(self.scripts)
        # "<" cannot close the script element when it is written as an escape of JSON.
        text = json.dumps(json.loads(figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
        self.scripts.append(f'<script type="application/json" id="figure-{number}">{text}</script>')
        height = int(figure.layout.height or 420)
        label = escape(says)
        return (
            f'<figure><div class="drawing" role="img" aria-label="{label}" data-figure="figure-{number}" '
            f'style="min-height: {height}px"></div><figcaption>{label}</figcaption></figure>'
        )


def plotly_js() -> str:
    """Plotly's script with its raw control characters, which HTML does not allow, written as the escapes they mean."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", get_plotlyjs())


# The parts of the page, in their order.


def _head(document: dict) -> str:
    model, dense = document["model"], {}
    for point in [*document["runs"], *document["baselines"]]:
        dense = dense or point.get("dense") or {}
    facts = [
        ("model", model.get("name")),
        ("parameters", f"{model.get('parameters') or 0:,}"),
        ("networks measured", len(document["runs"])),
        ("baselines", len(document["baselines"])),
        ("dense loss, nats a token", _number(dense.get("loss"))),
        ("dense perplexity", _number(dense.get("perplexity"))),
    ]
    cells = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts if v is not None)
    lines = "".join(f"<li>{escape(line)}</li>" for line in [*document["summary"], *document["notes"]])
    return f'<ul class="summary">{lines}</ul><dl class="facts">{cells}</dl>'


def _group(document: dict, number: int, drawn: Drawn) -> str:
    """The trade-off of the points that were measured in one way, and their table."""
    group = document["groups"][number]
    points = _members(document, group)
    quality = "rise" if any(known(point, "rise") for point in points) else group["quality"]
    where = _conditions(group["conditions"])
    head = "Trade-off" if len(document["groups"]) == 1 else f"Trade-off {number + 1}"
    says = "Size against quality of every measured model. Filled markers are networks, hollow ones baselines; the wide "
    says += f"band is the Pareto front. Measured on {where}."
    says += " Bars are 95 % intervals, paired with the dense model."
    parts = [f"<h2>{head}</h2>", drawn.place(figures_runs.tradeoff(points, y=quality), says)]
    parts.append(_points(points, set(group["front"])))
    parts += [_tasks(points, drawn), _predictions(points, drawn)]
    return "\n".join(parts)


def _tasks(points: list[dict], drawn: Drawn) -> str:
    """Scores of benchmark tasks: a chart of each task's main metric, and the table of all."""
    keys = scores.keys(points)
    if not keys:
        return ""
    parts = ["<h3>Benchmark tasks</h3>"]
    for key in keys:
        held = next(scores.of(point, key) for point in points if scores.of(point, key))
        if held[1] == held[0].get("metric"):
            says = f"{key} of every model that was scored on the same items; bars are 95 % intervals, paired with the "
            says += "dense model. The dashed line is chance."
            parts.append(drawn.place(figures_runs.tradeoff(points, y=key, log=False), says))
    rows = []
    for key in keys:
        dense, chance = scores.dense(points, key), scores.chance(points, key)
        for point in sorted(scores.comparable(points, key), key=lambda point: point.get("bytes_kept") or 0):
            task, metric = scores.of(point, key)
            between = scores.to_dense(point, key)
            row = [key, point["label"], _share(point.get("bytes_kept")), _number(task[metric])]
            row += [_number(scores.error_of(task, metric)), _number(dense), _number(chance), task.get("items")]
            span = f"{between.low:+.3f} to {between.high:+.3f}" if between else ""
            span += ": no measurable difference" if between and not between.measurable else ""
            rows.append([*row, task.get("shots"), span])
    head = ["score", "model", "bytes kept", "value", "standard error", "dense", "chance", "items", "shots"]
    head += ["95 % interval of the difference"]
    caption = "Scored by EleutherAI's lm-evaluation-harness, named as it names them."
    return "\n".join([*parts, _table(head, rows, caption, words=(0, 1, 9))])


def _predictions(points: list[dict], drawn: Drawn) -> str:
    """Predicted against measured rises, and how far predictions were off."""
    pairs = predictions.as_told(points)
    if not pairs:
        return ""
    found = predictions.figures([pair for pair in pairs if pair.source == predictions.CURVE])
    stated = sorted(pair.stated for pair in pairs if pair.stated is not None)
    error = stated[len(stated) // 2] if stated else None
    says = "Predicted against measured rise in loss, as it was told when each plan was made. Diamonds were measured "
    says += "themselves on the calibration text; pale points lie within their own noise."
    says += f" The band is ±{error:.0%}, the middle one of the errors that were stated." if error else ""
    parts = ["<h3>Predictions</h3>"]
    if found:
        inside = "" if found["inside"] is None else f"; {found['inside']:.0%} were inside the error that was stated"
        parts.append(
            f"<p>Over {found['plans']} plans, predictions by the curve were off by {found['median']:.0%} in the median "
            f"and {found['largest']:.0%} at most, with a bias of {found['bias']:+.0%}{inside}.</p>"
        )
    return "\n".join([*parts, drawn.place(figures_predictions.scatter(pairs, error), says)])


def _points(points: list[dict], front: set[str]) -> str:
    head = ["model", "bytes kept", "parameters kept", "loss", "perplexity", "rise", "95 % interval of the rise"]
    head += ["KL", "top-1", "output error", "predicted rise"]
    rows = []
    for point in sorted(points, key=lambda point: (point.get("bytes_kept") or 0, point["label"])):
        interval = uncertainty.rise_of(point)
        if interval is not None:
            span = f"{interval.low:+.4f} to {interval.high:+.4f}"
            span += "" if interval.measurable else ": no measurable difference"
        else:
            span = f"± {point['rise_error']:.2g} (standard error)" if point.get("rise_error") else None
        cells = [point["label"], _share(point.get("bytes_kept")), _share(point.get("kept")), _number(point.get("loss"))]
        cells += [_number(point.get("perplexity")), _number(point.get("rise")), span, _number(point.get("kl"))]
        cells += [_share(point.get("top1_agreement")), _number((point.get("fidelity") or point).get("relative_error"))]
        rows.append([*cells, _number((point.get("predicted") or {}).get("rise"))])
    marks = [point["id"] in front for point in sorted(points, key=lambda p: (p.get("bytes_kept") or 0, p["label"]))]
    caption = "Every measured model, smallest first; shaded rows are on the Pareto front. Rise in nats a token."
    return _table(head, rows, caption, words=(0, 6), marked=marks)


def _plans(document: dict, drawn: Drawn) -> str:
    """Each plan: χ over the layers, and a row a weight."""
    points = {point["id"]: point for point in document["runs"]}
    parts = []
    for name, rows in document["plans"].items():
        if name not in points:
            continue
        point = points[name]
        settings = ", ".join(f"{key} {value}" for key, value in (point.get("settings") or {}).items() if value)
        head = ["weight", "network", "χ", "stored in", "parameters", "kept"]
        lost = any(row["functional_error"] is not None for row in rows)
        head += ["error of the outputs"] if lost else []
        cells = [
            [row["name"], row["network"], " · ".join(map(str, row["chi"])), row["quantize"], row["parameters"]]
            + [_share(row["kept"])]
            + ([_number(row["functional_error"])] if lost else [])
            for row in rows
        ]
        figure = chi_by_layer(rows)
        drawing = drawn.place(figure, "χ of each weight over the layers; a weight that stays dense has no marker.")
        tell = f"<span>keeps {_share(point.get('bytes_kept'))} of the bytes</span>"
        parts.append(
            f"<details{' open' if not parts else ''}><summary>{escape(point['label'])} {tell}</summary>"
            f'<p class="soft">{escape(settings)}</p>{drawing if figure.data else ""}'
            f"{_table(head, cells, 'The plan, weight by weight.', words=(0, 1))}</details>"
        )
    return "\n".join(["<h2>Plans</h2>", *parts]) if parts else ""


def chi_by_layer(rows: Iterable[dict]) -> go.Figure:
    """χ (the largest bond) of each weight over the model's layers, a line a role; experts of a role by their mean."""
    roles: dict = {}
    for row in rows:
        if row["chi"] and row["layer"] is not None:
            roles.setdefault(row["role"], {}).setdefault(row["layer"], []).append(max(row["chi"]))
    figure = go.Figure()
    for number, (role, layers) in enumerate(roles.items()):
        at = sorted(layers)
        figure.add_scatter(
            x=at,
            y=[sum(layers[layer]) / len(layers[layer]) for layer in at],
            name=role,
            mode="lines+markers",
            line=dict(color=ROLE_COLORS[number % len(ROLE_COLORS)], dash=DASHES[number // len(ROLE_COLORS) % 3]),
            marker=dict(size=7, symbol=figures_runs.SYMBOLS[number % len(figures_runs.SYMBOLS)]),
            hovertemplate=f"{style.escape(role)}, layer %{{x}}: χ %{{y:.4g}}<extra></extra>",
        )
    figure.update_layout(height=340, margin=dict(l=8, r=8, t=8, b=8), hovermode="closest", showlegend=True)
    last = max((layer for layers in roles.values() for layer in layers), default=0)
    figure.update_xaxes(dtick=1 if last < 40 else None)
    figure.update_xaxes(title_text="layer", gridcolor=style.FAINT, zeroline=False, automargin=True, tickformat="d")
    figure.update_yaxes(title_text="χ", gridcolor=style.FAINT, zeroline=False, automargin=True, rangemode="tozero")
    return figure


def _spectra(profile, drawn: Drawn) -> str:
    """Excess entropy of every weight, and the spectra of the most and the least structured one."""
    metrics = profile.settings.get("metrics") or ["weight"]
    metric = next((name for name in ("weight", "functional", "loss") if name in metrics), metrics[0])
    excess = {
        row["name"]: row["spectra"][metric]["excess"]
        for row in profile.weights
        if row["compressible"] and metric in row["spectra"]
    }
    if not excess:
        return ""
    says = (
        f"Excess over noise of each weight, nats, {metric} metric: the entropy of a Gaussian random matrix of the same "
    )
    says += "shape minus the weight's own. Near 0 a weight looks like noise and will not compress."
    parts = ["<h2>Spectra</h2>", drawn.place(figures.heatmap(profile, "excess", metric), says)]
    for name, word in ((max(excess, key=excess.get), "most"), (min(excess, key=excess.get), "least")):
        says = f"Singular values of {name}, the {word} structured weight (excess {excess[name]:.3f} nats)."
        parts.append(drawn.place(figures.spectrum(profile, name, metric), says))
    return "\n".join(parts)


def _published(document: dict, drawn: Drawn) -> str:
    """The measured points with the published ones over them, and their table with sources."""
    label = document["anchors"]["label"]
    group = document["groups"][0]
    points = _members(document, group)
    parts = [
        f'<h2>Published points</h2><p><span class="published">{label[0].upper() + label[1:]}.</span> Other models, '
        "texts and contexts than the runs of this report: they say what is usual, not which is better. Sizes are of "
        "16-bit weights.</p>"
    ]
    if any(known(point, "rise") for point in points):
        figure = anchors.add_anchors(figures_runs.tradeoff(points))
        parts.append(drawn.place(figure, f"The measured points with published ones ({label}) as thin hollow markers."))
    head = ["method", "model", "data", "context", "metric", "value", "dense", "kept", "bytes kept", "source", "note"]
    notes = list(dict.fromkeys(row["note"] for row in document["anchors"]["points"] if row["note"]))
    rows = [
        [row["method"], row["model"], row["dataset"], row["context"], row["metric"], _number(row["y"])]
        + [_number(row["dense"]), _share(row["kept"]), _share(row["bytes_kept"]), row["source"]]
        + [f"note {notes.index(row['note']) + 1}" if row["note"] else None]
        for row in document["anchors"]["points"]
    ]
    parts.append(_table(head, rows, f"{label[0].upper() + label[1:]}.", words=(0, 1, 2, 4, 9)))
    parts.append(f'<ol class="soft">{"".join(f"<li>{escape(note)}.</li>" for note in notes)}</ol>')
    return "\n".join(parts)


def _reproduce(document: dict) -> str:
    lines = "\n".join(f"# {entry['what']}\n{entry['command']}" for entry in document["commands"])
    model = document["model"]
    hashes = [[row["what"], row["name"], row["sha256"]] for row in document["data"]]
    parts = [
        "<h2>Reproduce</h2>",
        f"<p>With the folder of {escape(str(model.get('name')))} (fingerprint <code>"
        f"{escape(str(model.get('fingerprint')))}</code>) and the plans beside this file:</p>",
        f"<pre>{escape(lines)}</pre>" if lines else '<p class="soft">These points name no plan.</p>',
        "<h2>Data</h2>",
        _table(["what", "name", "SHA-256"], hashes, "What went in, by its hash.", words=(0, 1, 2), code=(2,)),
        "<h2>Environment</h2>",
    ]
    for environment in document["environments"]:
        flat = {key: value for key, value in environment.items() if not isinstance(value, dict) and value is not None}
        flat |= environment.get("versions") or {}
        parts.append(
            _table(["", ""], [[key, str(value)] for key, value in flat.items()], "Measured with.", words=(0, 1))
        )
    return "\n".join(parts)


# Pieces.


def _members(document: dict, group: dict) -> list[dict]:
    wanted = set(group["points"])
    return [point for point in [*document["runs"], *document["baselines"]] if point["id"] in wanted]


def _conditions(conditions: dict) -> str:
    tokens = f"{conditions['tokens']:,} tokens" if conditions.get("tokens") else "all tokens"
    return f"{conditions['text']}, {tokens} in windows of {conditions['window']}, stride {conditions['stride']}"


def _number(value) -> str | None:
    return f"{value:.4g}" if isinstance(value, int | float) else None


def _share(value) -> str | None:
    return f"{value:.1%}" if isinstance(value, int | float) else None


def _table(head: list[str], rows: list[list], caption: str, words=(), marked: list[bool] = (), code=()) -> str:
    """A table; columns that are empty in every row are left out. `words`: columns of text; `code`: of hashes."""
    full = [i for i in range(len(head)) if i in words[:1] or any(row[i] not in (None, "") for row in rows)]

    def cell(tag: str, i: int, value) -> str:
        text = "–" if value is None or value == "" else f"{value:,}" if isinstance(value, int) else str(value)
        text = f"<code>{escape(text)}</code>" if i in code and tag == "td" else escape(text)
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{' class=words' if i in words else ''}>{text}</{tag}>".replace(
            "class=words", 'class="words"'
        )

    top = "".join(cell("th", i, head[i]) for i in full) if any(head) else ""
    body = "".join(
        f"<tr{' class=' + chr(34) + 'front' + chr(34) if marked and marked[number] else ''}>"
        + "".join(cell("td", i, row[i]) for i in full)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    top = f"<thead><tr>{top}</tr></thead>" if top else ""
    return f'<div class="wide"><table><caption>{escape(caption)}</caption>{top}<tbody>{body}</tbody></table></div>'
