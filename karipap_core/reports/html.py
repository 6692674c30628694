"""The report as one HTML file: styles, scripts and figures in it, nothing fetched, light and dark, and on paper.

This file finds what the page shows: figures, tables and sentences as plain values. How they are laid out is said by
`report.html.j2`, which escapes every text, and `report.css`; `report.js` draws the figures.
"""

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import plotly.graph_objects as go
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from karipap_core.evaluation import scores
from karipap_core.figures import plan as figures_plan
from karipap_core.figures import predictions as figures_predictions
from karipap_core.figures import profile as figures
from karipap_core.figures import published as figures_published
from karipap_core.figures import runs as figures_runs
from karipap_core.plan import predictions
from karipap_core.profiles.document import Profile
from karipap_core.statistics import bootstrap
from karipap_core.statistics.pareto import known
from karipap_core.terminal import size

FOLDER = Path(__file__).parent
CONTROL = re.compile(r"[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f]")


def page(document: dict, profile: Profile | None = None) -> str:
    """The whole HTML file of `report.describe`'s document; with a profile also spectra."""
    drawn = Drawn()
    values = {
        "document": document,
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(document["created"])),
        "facts": _facts(document),
        "groups": [_group(document, group, drawn) for group in document["groups"]],
        "plans": _plans(document, drawn),
        "spectra": _spectra(profile, drawn) if profile is not None else [],
        "published": _published(document, drawn),
        "reproduce": _reproduce(document),
        # Written as they are: they come with this program, and `Drawn` has made its JSON safe.
        "css": Markup((FOLDER / "report.css").read_text("utf-8")),
        "javascript": Markup((FOLDER / "report.js").read_text("utf-8")),
        "plotly": Markup(plotly_js()),
        "figures": [Markup(text) for text in drawn.figures],
    }
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(values)


@dataclass(frozen=True)
class Drawing:
    """The place of a figure in the page: its number among the figures, its height in pixels, what it shows."""

    number: int
    height: int
    says: str


class Drawn:
    """The figures of a page, as JSON for the end of the file."""

    def __init__(self) -> None:
        self.figures: list[str] = []

    def place(self, figure: go.Figure, says: str) -> Drawing:
        """Keep a figure and return its place; `says` is its caption, and what a screen reader reads."""
        figure.update_layout(template="none")
        # "<" cannot close the script element when it is written as an escape of JSON.
        text = json.dumps(json.loads(figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
        self.figures.append(text)
        return Drawing(len(self.figures) - 1, int(figure.layout.height or 420), says)


@dataclass(frozen=True)
class Column:
    """A column of a table: its head, whether it holds words (else numbers), and whether they are code."""

    head: str
    words: bool = False
    code: bool = False


@dataclass(frozen=True)
class Table:
    """A table as text. `rows` are (whether the row is marked, its cells)."""

    caption: str
    columns: list[Column]
    rows: list[tuple[bool, list[str]]]


def table(
    columns: Sequence[Column | str], rows: Sequence[Sequence], caption: str, marked: Sequence[bool] = ()
) -> Table:
    """A table without the columns that are empty in every row; its first column of words always stays.

    columns : a string is a column of numbers. rows : None and "" are shown as a dash. marked : of each row.
    """
    heads = [Column(column) if isinstance(column, str) else column for column in columns]
    first = next((i for i, column in enumerate(heads) if column.words), None)
    full = [i for i in range(len(heads)) if i == first or any(row[i] not in (None, "") for row in rows)]
    marks = marked or [False] * len(rows)
    cells = [(mark, [_cell(row[i]) for i in full]) for mark, row in zip(marks, rows, strict=True)]
    return Table(caption, [heads[i] for i in full], cells)


def _cell(value) -> str:
    return "–" if value is None or value == "" else f"{value:,}" if isinstance(value, int) else str(value)


def plotly_js() -> str:
    """Plotly's script with its raw control characters, which HTML does not allow, written as the escapes they mean."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", get_plotlyjs())


# The parts of the page, in their order.


def _facts(document: dict) -> list[tuple[str, object]]:
    model = document["model"]
    measured = [*document["runs"], *document["baselines"]]
    dense: dict = next((point["dense"] for point in measured if point.get("dense")), {})
    stored = model.get("stored")
    facts = [
        ("model", model.get("name")),
        ("parameters", f"{model.get('parameters') or 0:,}"),
        ("stored as", stored and f"{stored['form']}: {size(stored['bytes'])} in its files"),
        ("networks measured", len(document["runs"])),
        ("baselines", len(document["baselines"])),
        ("dense loss, nats a token", _number(dense.get("loss"))),
        ("dense perplexity", _number(dense.get("perplexity"))),
    ]
    return [fact for fact in facts if fact[1] is not None]


def _group(document: dict, group: dict, drawn: Drawn) -> dict:
    """The trade-off of the points that were measured in one way, and their table."""
    points = _members(document, group)
    quality = "rise" if any(known(point, "rise") for point in points) else group["quality"]
    says = (
        "Size against quality of every measured model. Filled markers are networks, hollow ones baselines; the wide "
        f"band is the Pareto front. Measured on {_conditions(group['conditions'])}. Bars are 95 % intervals, paired "
        "with the dense model."
    )
    return {
        "drawing": drawn.place(figures_runs.tradeoff(points, y=quality), says),
        "points": _points(points, set(group["front"])),
        "tasks": _tasks(points, drawn),
        "predictions": _predictions(points, drawn),
    }


def _points(points: list[dict], front: set[str]) -> Table:
    columns: list[Column | str] = [
        Column("model", words=True),
        "bytes kept",
        "parameters kept",
        "loss",
        "perplexity",
        "rise",
    ]
    columns += [Column("95 % interval of the rise", words=True), "KL", "top-1", "output error", "predicted rise"]
    ordered = sorted(points, key=lambda point: (point.get("bytes_kept") or 0, point["label"]))
    rows = []
    for point in ordered:
        interval = bootstrap.rise_of(point)
        if interval is not None:
            span = f"{interval.low:+z.4f} to {interval.high:+z.4f}"
            span += "" if interval.measurable else ": no measurable difference"
        else:
            span = f"± {point['rise_error']:.2g} (standard error)" if point.get("rise_error") else ""
        cells = [point["label"], _share(point.get("bytes_kept")), _share(point.get("kept")), _number(point.get("loss"))]
        cells += [_number(point.get("perplexity")), _number(point.get("rise")), span, _number(point.get("kl"))]
        cells += [_share(point.get("top1_agreement")), _number((point.get("fidelity") or point).get("relative_error"))]
        rows.append([*cells, _number((point.get("predicted") or {}).get("rise"))])
    caption = "Every measured model, smallest first; shaded rows are on the Pareto front. Rise in nats a token."
    return table(columns, rows, caption, [point["id"] in front for point in ordered])


def _tasks(points: list[dict], drawn: Drawn) -> dict | None:
    """Scores of benchmark tasks: a chart of each task's main metric, and the table of all."""
    keys = scores.keys(points)
    if not keys:
        return None
    drawings, rows = [], []
    for key in keys:
        task, metric = next(held for point in points if (held := scores.of(point, key)))
        if metric == task.get("metric"):
            says = (
                f"{key} of every model that was scored on the same items; bars are 95 % intervals, paired with the "
                "dense model. The dashed line is chance."
            )
            drawings.append(drawn.place(figures_runs.tradeoff(points, y=key, log=False), says))
        rows += _scores(points, key)
    columns: list[Column | str] = [
        Column("score", words=True),
        Column("model", words=True),
        "bytes kept",
        "value",
        "standard error",
    ]
    columns += ["dense", "chance", "items", "shots", Column("95 % interval of the difference", words=True)]
    caption = "Scored by EleutherAI's lm-evaluation-harness, named as it names them."
    return {"drawings": drawings, "table": table(columns, rows, caption)}


def _scores(points: list[dict], key: str) -> list[list]:
    """A row of each model whose score of this axis compares, smallest first."""
    dense, chance = scores.dense(points, key), scores.chance(points, key)
    rows = []
    for point in sorted(scores.comparable(points, key), key=lambda point: point.get("bytes_kept") or 0):
        held = scores.of(point, key)
        if held is None:
            continue
        task, metric = held
        between = scores.to_dense(point, key)
        row = [key, point["label"], _share(point.get("bytes_kept")), _number(task[metric])]
        row += [_number(scores.error_of(task, metric)), _number(dense), _number(chance), task.get("items")]
        span = f"{between.low:+z.3f} to {between.high:+z.3f}" if between else ""
        span += ": no measurable difference" if between and not between.measurable else ""
        rows.append([*row, task.get("shots"), span])
    return rows


def _predictions(points: list[dict], drawn: Drawn) -> dict | None:
    """Predicted against measured rises, and how far predictions were off."""
    pairs = predictions.as_predicted(points)
    if not pairs:
        return None
    found = predictions.figures([pair for pair in pairs if pair.source == predictions.CURVE])
    stated = sorted(pair.stated for pair in pairs if pair.stated is not None)
    error = stated[len(stated) // 2] if stated else None
    says = (
        "Predicted against measured rise in loss, as each plan predicted it when it was made. Diamonds were measured "
        "themselves on the calibration text; pale points lie within their own noise."
    )
    says += f" The band is ±{error:.0%}, the middle one of the errors that were stated." if error else ""
    sentence = None
    if found:
        inside = "" if found["inside"] is None else f"; {found['inside']:.0%} were inside the error that was stated"
        sentence = (
            f"Over {found['plans']} plans, predictions by the curve were off by {found['median']:.0%} in the median "
            f"and {found['largest']:.0%} at most, with a bias of {found['bias']:+z.0%}{inside}."
        )
    return {"sentence": sentence, "drawing": drawn.place(figures_predictions.scatter(pairs, error), says)}


def _plans(document: dict, drawn: Drawn) -> list[dict]:
    """Each plan: χ over the layers, and a row a weight."""
    points = {point["id"]: point for point in document["runs"]}
    found = []
    for name, rows in document["plans"].items():
        if name not in points:
            continue
        point = points[name]
        columns: list[Column | str] = [
            Column("weight", words=True),
            Column("network", words=True),
            "χ",
            "stored in",
            "parameters",
            "kept",
        ]
        columns += ["error of the outputs"]
        cells = [
            [row["name"], row["network"], " · ".join(map(str, row["chi"])), row["quantize"], row["parameters"]]
            + [_share(row["kept"]), _number(row["functional_error"])]
            for row in rows
        ]
        figure = figures_plan.chi_by_layer(rows)
        drawing = drawn.place(figure, "χ of each weight over the layers; a weight that stays dense has no marker.")
        found.append(
            {
                "label": point["label"],
                "kept": _share(point.get("bytes_kept")),
                "settings": ", ".join(
                    f"{key} {value}" for key, value in (point.get("settings") or {}).items() if value
                ),
                "drawing": drawing if figure.data else None,
                "table": table(columns, cells, "The plan, weight by weight."),
            }
        )
    return found


def _spectra(profile: Profile, drawn: Drawn) -> list[Drawing]:
    """Excess entropy of every weight, and the spectra of the most and the least structured one."""
    metrics = profile.settings.get("metrics") or ["weight"]
    metric = next((name for name in ("weight", "functional", "loss") if name in metrics), metrics[0])
    excess: dict[str, float] = {
        row["name"]: row["spectra"][metric]["excess"]
        for row in profile.weights
        if row["compressible"] and row["spectra"].get(metric, {}).get("excess") is not None
    }
    if not excess:
        return []
    says = (
        f"Excess over noise of each weight, nats, {metric} metric: the entropy of a Gaussian random matrix of the same "
        "shape minus the weight's own. Near 0 a weight looks like noise and will not compress."
    )
    found = [drawn.place(figures.heatmap(profile, "excess", metric), says)]
    ordered = sorted(excess, key=lambda name: excess[name])
    for name, word in ((ordered[-1], "most"), (ordered[0], "least")):
        says = f"Singular values of {name}, the {word} structured weight (excess {excess[name]:.3f} nats)."
        found.append(drawn.place(figures.spectrum(profile, name, metric), says))
    return found


def _published(document: dict, drawn: Drawn) -> dict:
    """The measured points with the published ones over them, and their table with sources."""
    label, published = document["anchors"]["label"], document["anchors"]["points"]
    points = _members(document, document["groups"][0])
    drawing = None
    if any(known(point, "rise") for point in points):
        figure = figures_published.add_published(figures_runs.tradeoff(points))
        drawing = drawn.place(figure, f"The measured points with published ones ({label}) as thin hollow markers.")
    columns: list[Column | str] = [*(Column(head, words=True) for head in ("method", "model", "data")), "context"]
    columns += [Column("metric", words=True), "value", "dense", "kept", "bytes kept"]
    columns += [Column("source", words=True), "note"]
    notes = list(dict.fromkeys(row["note"] for row in published if row["note"]))
    rows = [
        [row["method"], row["model"], row["dataset"], row["context"], row["metric"], _number(row["y"])]
        + [_number(row["dense"]), _share(row["kept"]), _share(row["bytes_kept"]), row["source"]]
        + [f"note {notes.index(row['note']) + 1}" if row["note"] else None]
        for row in published
    ]
    head = f"{label[0].upper()}{label[1:]}."
    return {"label": head, "drawing": drawing, "table": table(columns, rows, head), "notes": notes}


def _reproduce(document: dict) -> dict:
    """Commands that measure the points again, hashes of what went in, and the machines."""
    columns: list[Column | str] = [
        Column("what", words=True),
        Column("name", words=True),
        Column("SHA-256", words=True, code=True),
    ]
    hashes = [[row["what"], row["name"], row["sha256"]] for row in document["data"]]
    environments = []
    for environment in document["environments"]:
        flat = {key: value for key, value in environment.items() if not isinstance(value, dict) and value is not None}
        flat |= environment.get("versions") or {}
        pairs = [[key, str(value)] for key, value in flat.items()]
        environments.append(table([Column("", words=True), Column("", words=True)], pairs, "Measured with."))
    return {
        "commands": "\n".join(f"# {entry['what']}\n{entry['command']}" for entry in document["commands"]),
        "data": table(columns, hashes, "What went in, by its hash."),
        "environments": environments,
    }


# Pieces.


def _members(document: dict, group: dict) -> list[dict]:
    """The points of a group, networks first."""
    wanted = set(group["points"])
    return [point for point in [*document["runs"], *document["baselines"]] if point["id"] in wanted]


def _conditions(conditions: dict) -> str:
    tokens = f"{conditions['tokens']:,} tokens" if conditions.get("tokens") else "all tokens"
    return f"{conditions['text']}, {tokens} in windows of {conditions['window']}, stride {conditions['stride']}"


def _number(value: object) -> str | None:
    return f"{value:.4g}" if isinstance(value, int | float) else None


def _share(value: object) -> str | None:
    return f"{value:.1%}" if isinstance(value, int | float) else None
