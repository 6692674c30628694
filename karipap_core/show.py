"""Karipap's documents as tables in a terminal: profiles, plans, compressed folders, evaluations, runs."""

import math
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from karipap_core.compressed.verify import summary as verified
from karipap_core.errors import InputError
from karipap_core.ranking import rank, sentence
from karipap_core.statistics.bootstrap import Interval, in_words
from karipap_core.workspace.files import read_json
from karipap_core.workspace.runs import read_runs

NOTHING = "–"
METRIC_ORDER = ("loss", "functional", "weight")


# What a path holds.


def find(path: str | Path) -> dict:
    """The document at `path`: a JSON file of ours, or the folder of a profile, a run, a sweep or a compressed model.

    Raises InputError that says what is looked for where there is none of these.
    """
    path = Path(path)
    if path.is_file():
        document = read_json(path)
        if document.get("format") in _TABLES:
            return document
        raise InputError(f"File {path} is no profile, plan, run or report of Karipap (field 'format').")
    if not path.is_dir():
        raise InputError(f"{path} does not exist.")
    for name in ("profile.json", "run.json", "sweep.json", "autopilot.json", "plan.json"):
        if (path / name).is_file():
            return find(path / name)
    if (path / "config.json").is_file():
        method = read_json(path / "config.json").get("quantization_config") or {}
        if method.get("quant_method") == "karipap":
            return find(path / "karipap.json") if (path / "karipap.json").is_file() else method["plan"]
        raise InputError(f"Folder {path} holds an ordinary model: see it with the verb `profile`.")
    if runs := read_runs(path):
        return {"format": "karipap-sweep", "version": 1, "runs": runs}
    raise InputError(f"Folder {path} holds no profile, run, sweep or compressed model of Karipap.")


def anything(document: dict) -> str:
    """The table of a document that says itself what it is (`find`)."""
    try:
        return _TABLES[document["format"]](document)
    except KeyError as missing:
        raise InputError(f"This {document['format']} lacks the field {missing}: write it anew.") from missing


# One function a kind of document.


def profile(document: dict) -> str:
    """A row a weight, most structured first within its place in the model; the numbers of one metric (nats)."""
    measured = {metric for row in document["weights"] for metric in row["spectra"]}
    metric = next((name for name in METRIC_ORDER if name in measured), "weight")
    rows = []
    for row in document["weights"]:
        numbers = row["spectra"].get(metric, {})
        wanted = ("entropy", "null_entropy", "excess", "normalized_entropy", "effective_rank", "rank", "chi_at_1pct")
        rows.append([row["name"], _by(row["shape"]), row["parameters"], *(numbers.get(key) for key in wanted)])
    head = ["weight", "shape", "parameters", "S", "S null", "excess", "S / ln r", "exp S", "rank", "χ at 1 %"]
    bonds = sum(len(row.get("bonds", ())) for row in document["weights"])
    facts = {
        "model": document["model"],
        "fingerprint": document["fingerprint"],
        "parameters": document["parameters"],
        "metrics": ", ".join(name for name in METRIC_ORDER[::-1] if name in measured) + f" (shown: {metric})",
        "calibration": (document.get("settings") or {}).get("text"),
        "bonds": f"{bonds} bond spectra (in profile.json)" if bonds else None,
    }
    skipped = [f"skipped: {entry['name']}: {entry['why']}" for entry in document.get("skipped", ())]
    return _page(facts, grid(head, rows), skipped)


def plan(document: dict) -> str:
    """What the plan does as a whole, and a row a weight."""
    from karipap_core.plan.document import Plan, made_of

    checked = Plan.from_json(document)
    rows = []
    for name, entry in checked.weights.items():
        spec = checked.spec(name)
        marks = " ".join(filter(None, (_stored(entry), _shared(entry), "locked" if entry.get("locked") else None)))
        if spec is None:
            rows.append([name, "dense", None, None, None, None, marks])
            continue
        shape = (spec.n_out, spec.n_in)
        kept = spec.bytes(2) / 2 / (spec.n_out * spec.n_in)  # a quantized number counts as its bits / 16
        rows.append([name, spec.network, _by(shape), _by(spec.chi), spec.parameters, kept, marks])
    predicted = document.get("predicted") or {}
    rule = document.get("rule", "hand")
    facts = {
        "model": document["model"]["name"],
        "fingerprint": document["model"]["fingerprint"],
        "rule": f"{rule} ({document['chosen_rule']} won)" if document.get("chosen_rule") else rule,
        "metric": document["metric"],
        "budget": _budget(document),
        "calibration": (document.get("calibration") or {}).get("text"),
        "weights": made_of(checked.weights.values()),
        "embedding": _embedding(document),
        **_size(predicted),
    }
    if predicted.get("rise") is not None:
        what = "output error" if predicted.get("measure") == "output error" else "loss"
        error = f", usually within ±{predicted['error']:.0%}" if predicted.get("error") else ""
        facts["predicted"] = f"{what} rises by {value(predicted['rise'])}{error}"
    head = ["weight", "network", "shape", "χ", "parameters", "kept", ""]
    tried = [f"tried: {_inline(entry)}" for entry in document.get("tried", ())]
    return _page(facts, grid(head, rows), [*tried, *_why(document["weights"])])


def _stored(entry: dict) -> str | None:
    """The format of a plan entry's cores: "int4", or "int3 + int4" of a quantized weight and its correction."""
    return " + ".join(filter(None, (entry.get("bits"), entry.get("quantize")))) or None


def _shared(entry: dict) -> str | None:
    members = entry.get("members") or []
    return f"{entry.get('at', 0) + 1} of {len(members)} that share cores" if len(members) > 1 else None


def _embedding(document: dict) -> str | None:
    found = document.get("embedding")
    if not found:
        return None
    return found["kind"] + (", a tied head is untied" if found.get("tied") == "untie" else "")


def _why(weights: dict[str, dict]) -> list[str]:
    """Why each weight of a mixed plan became what it is; weights that share cores once."""
    said: dict[tuple, list[str]] = {}
    for name, entry in weights.items():
        if entry.get("why"):
            said.setdefault((tuple(entry.get("members") or (name,)), entry["why"]), []).append(name)
    more = {key: f" and {len(names) - 1} more" if len(names) > 1 else "" for key, names in said.items()}
    return [f"why: {names[0]}{more[key]}: {key[1]}" for key, names in said.items()]


def compressed(document: dict) -> str:
    """Size of a compressed model, and what each of its weights lost (relative squared errors)."""
    document = document.get("result", document)
    head = ["weight", "network", "χ", "parameters", "weight error", "functional error"]
    rows = [
        [row["name"], row["network"], _by(row["chi"]), row["parameters"], row["weight_error"], row["functional_error"]]
        for row in document["weights"]
    ]
    stored = {row["name"]: row.get("quantize") for row in document["weights"]}
    if any(stored.values()):
        head.append("stored in")
        rows = [[*row, stored[row[0]] or ""] for row in rows]
    facts = _size(document) | {"seconds": document.get("seconds")}
    if document.get("verify"):
        facts["verified"] = verified(document["verify"])
    return _page(facts, grid(head, rows))


def evaluation(document: dict) -> str:
    """A measured model beside the dense one: quality, speed, memory."""
    ours, dense = document, document.get("dense") or {}
    rows = [["", "this model", "dense"]]
    rows += [[label, ours.get(key), dense.get(key)] for key, label in _QUALITY if ours.get(key) is not None]
    for label, group, key in _COSTS:
        figures = [((document.get(group) or {}).get(who) or {}).get(key) for who in ("compressed", "dense")]
        rows += [[label, *figures]] if any(figure is not None for figure in figures) else []
    rows += [[f"output {key.replace('_', ' ')}", figure, None] for key, figure in (ours.get("fidelity") or {}).items()]
    text = document.get("text")
    facts = {
        "model": document.get("model"),
        "against": document.get("against"),
        "text": text.get("name") if isinstance(text, dict) else text,
        "windows": _by_words(window=document.get("window"), stride=document.get("stride")),
        "rise in loss": _with_error(document.get("rise"), document.get("rise_error")),
        "KL to dense": document.get("kl"),
        "top-1 agreement": document.get("top1_agreement"),
    }
    parts = [_page(facts, grid(rows[0], rows[1:]), document.get("notes", ()))]
    parts += conventions(document.get("conventions") or {})
    return "\n\n".join([*parts, *task_table(document.get("tasks") or {}, dense.get("tasks") or {})])


def task_table(ours: dict[str, dict], dense: dict[str, dict]) -> list[str]:
    """A row a benchmark task: main metric ± standard error, beside the dense model's; [] where there are none."""
    rows = []
    for name, found in ours.items():
        metric, theirs = found["metric"], dense.get(name) or {}
        figures = [_with_error(one.get(metric), one.get(_stderr(metric))) if one else None for one in (found, theirs)]
        said = found.get("difference")
        interval = said and Interval(said["mean"], said["low"], said["high"], said["items"])
        rows.append([f"{name}, {metric}", *figures, interval and in_words(interval, "+.3f"), found.get("chance")])
        rows[-1] += [found["items"], found["shots"]]
    head = ["benchmark task", "this model", "dense", "difference", "guessing", "items", "shots"]
    return [grid(head, rows)] if rows else []


def _stderr(metric: str | None) -> str:
    """The harness's name of a metric's standard error: acc_stderr, or exact_match_stderr,strict-match with a filter."""
    name, comma, filtered = (metric or "").partition(",")
    return f"{name}_stderr{comma}{filtered}"


def conventions(found: dict[str, dict]) -> list[str]:
    """A row a convention of perplexity, and under the table what each was measured on; [] where there are none."""
    rows, notes = [], []
    for name, entry in found.items():
        if entry.get("missing"):
            notes.append(f"{name}: {entry['missing']}")
            continue
        dense = entry.get("dense") or {}
        keys = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte")
        rows.append([name, *(entry[key] for key in keys), dense.get("perplexity"), perplexity_rise(entry)])
        notes.append(f"{name}: {convention_note(entry)}")
    head = ["perplexity of all the text", "a token", "a word", "a byte", "bits a byte", "dense, a token", "difference"]
    return [_page({}, grid(head, rows) if rows else "", notes)] if found else []


def perplexity_rise(entry: dict) -> str | None:
    """By how much perplexity by a convention rose over the dense one, e^rise − 1, with its 95 % interval."""
    if entry.get("rise") is None:
        return None
    said = f"{100 * math.expm1(entry['rise']):+.2f} %"
    if entry.get("rise_low") is None:
        return said
    low, high = (f"{100 * math.expm1(entry[key]):+.2f}" for key in ("rise_low", "rise_high"))
    none = ", no measurable difference" if entry["rise_low"] <= 0 <= entry["rise_high"] else ""
    return f"{said} ({low} to {high} %{none})"


def convention_note(entry: dict) -> str:
    """What a convention was measured on, in a line."""
    most = "at most " if entry["over"] == "documents" else ""
    cut = f"{entry['windows']:,} windows of {most}{entry['window']:,} tokens"
    cut += f", stride {entry['stride']:,}" if entry["stride"] != entry["window"] else ""
    scored = f"{entry['tokens']:,} of {entry['text_tokens']:,} tokens scored, {entry['text_bytes']:,} bytes"
    text = f"{entry['text']['name']}, SHA-256 {entry['text']['sha256'][:12]}"
    return " ".join([f"{cut}; {scored} of {text}.", *entry["notes"]])


def run(document: dict) -> str:
    """One measured point of the trade-off, with its plan where it has one."""
    settings = {key: entry for key, entry in (document.get("settings") or {}).items() if entry is not None}
    facts = {"run": document.get("id"), "what": document.get("label")}
    facts |= {"settings": _inline(settings) or None, "seconds": _inline(document.get("seconds") or {}) or None}
    parts = [_page(facts, ""), evaluation(document | {"model": (document.get("model") or {}).get("name")})]
    if document.get("plan"):
        parts.append("The plan:\n\n" + plan(document["plan"]))
    return "\n\n".join(parts)


def sweep(document: dict) -> str:
    """A row a run or baseline, smallest first; `*` marks the Pareto front."""
    points = sorted([*document["runs"], *document.get("baselines", ())], key=lambda point: point.get("bytes_kept", 0))
    quality = document.get("quality") or "loss"
    head = ["", "run", "bytes kept", "parameters kept", quality.replace("_", " "), "rise", "±", "KL", "top-1"]
    keys = ("label", "bytes_kept", "kept", quality, "rise", "rise_error", "kl", "top1_agreement")
    front = set(document.get("pareto", ()))
    rows = [["*" if point.get("id") in front else "", *(point.get(key) for key in keys)] for point in points]
    facts = {
        "model": (document.get("model") or {}).get("name"),
        "measured on": (document.get("text") or {}).get("name"),
        "runs": f"{len(document['runs'])}, and {len(document.get('baselines', ()))} baselines",
    }
    ranked = rank([*document["runs"], *document.get("baselines", ())])
    said = [sentence(ranked)] if ranked.rows else []
    return _page(facts, grid(head, rows), ["* on the Pareto front", *said, *document.get("notes", ())])


def densified(document: dict) -> str:
    facts = {key: document[key] for key in document if key != "note" and not isinstance(document[key], dict | list)}
    return _page(facts, "", [document["note"]] if document.get("note") else ())


# Pieces.

_QUALITY = (("loss", "loss, nats a token"), ("perplexity", "perplexity"), ("bits_per_byte", "bits per byte"))
_QUALITY += (("tokens", "tokens scored"),)
_COSTS = (
    ("prefill, tokens a second", "speed", "prefill_tokens_per_second"),
    ("decode, ms a token", "speed", "decode_ms_per_token"),
    ("weights in memory, bytes", "memory", "weights_bytes"),
    ("peak memory, bytes", "memory", "peak_bytes"),
    ("on disk, bytes", "memory", "disk_bytes"),
)


def value(something) -> str:
    """A value in a cell: whole numbers with separators, others with four digits, nothing as a dash.

    Names come from checkpoints of unknown origin, so what could steer a terminal is shown as `?`.
    """
    if something is None or something == "":
        return NOTHING if something is None else ""
    if isinstance(something, bool) or not isinstance(something, int | float):
        return "".join(letter if letter.isprintable() else "?" for letter in str(something))
    if isinstance(something, int):
        return f"{something:,}"
    return f"{something:.4g}" if abs(something) < 1e4 else f"{something:,.0f}"


def grid(head: list[str], rows: Iterable[list]) -> str:
    """Columns as wide as they need be, numbers to the right, the first column and texts to the left."""
    rows = [*rows]
    cells = [[value(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(head))]

    def line(row):
        parts = (cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=True))
        return "  ".join(parts).rstrip()

    return "\n".join([line(head), line(["─" * width for width in widths]), *map(line, cells)])


def _page(facts: dict, table: str, notes: Iterable[str] = ()) -> str:
    facts = {key: fact for key, fact in facts.items() if fact is not None}
    width = max(map(len, facts), default=0)
    lines = [f"{key.ljust(width)}  {value(fact)}" for key, fact in facts.items()]
    parts = ["\n".join(lines), table, "\n".join(map(value, notes))]
    return "\n\n".join(part for part in parts if part)


def _size(document: dict) -> dict:
    """The lines that say how large a model is now."""
    facts = {}
    for key, share in (("parameters", "kept"), ("bytes", "bytes_kept")):
        if document.get(key) is not None and document.get(share) is not None:
            facts[key] = f"{document[key]:,}: {document[share]:.1%} kept, {1 - document[share]:.1%} removed"
    if document.get("kept_blocks") is not None:
        facts["blocks"] = f"{document['kept_blocks']:.1%} of their parameters kept"
    return facts


def _budget(document: dict) -> str | None:
    if document.get("budget_bytes") is not None:
        return f"{document['budget_bytes']:.1%} of the bytes"
    if document.get("budget") is not None:
        return f"{document['budget']:.1%} of the parameters of the {document.get('scope', 'model')}"
    return None


def _by(numbers: Iterable[int]) -> str:
    return " × ".join(map(str, numbers))


def _by_words(**words) -> str | None:
    return ", ".join(f"{key} {number}" for key, number in words.items() if number is not None) or None


def _inline(entry: dict) -> str:
    return ", ".join(f"{key} {value(item)}" for key, item in entry.items() if not isinstance(item, dict | list))


def _with_error(number: float | None, error: float | None) -> str | None:
    if number is None:
        return None
    return f"{value(number)} ± {error:.2g}" if error is not None else value(number)


_TABLES = {"karipap-profile": profile, "karipap-plan": plan, "karipap-report": compressed}
_TABLES |= {"karipap-run": run, "karipap-sweep": sweep}


def _told_by(module: str):
    """The table of a document whose module imports this one."""
    return lambda document: import_module(f"karipap_core.{module}").table(document)


_TABLES |= {"karipap-autopilot": _told_by("show_autopilot"), "karipap-sensitivity": _told_by("layer_sensitivity")}
