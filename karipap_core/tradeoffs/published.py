"""Published points as a reference layer on the trade-off. None of them was measured here, and every one says so.

published.json holds them: method, model, metric, y, the dense model's own y, where it stands in size (`kept`,
parameters; `bytes_kept`, against 16-bit weights), source, note. Models, texts and contexts are the papers' own, so a
published point stands beside a measured one and never decides which is better.
"""

import math
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.reading import read_json

FORMAT, VERSION = "karipap-anchors", 1
FILE = Path(__file__).with_name("published.json")
LABEL = "published, not measured here"
METRICS = ("perplexity", "accuracy", "accuracy drop")
TEXTS = ("method", "family", "model", "metric", "dataset", "source")


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


def table(x: str | None = None, y: str | None = None) -> list[dict]:
    """The published points as flat rows for a screen, a report or a CSV; those on two axes alone where these are
    given."""
    rows = load() if x is None or y is None else on_axes(x, y)
    return [
        {key: row.get(key) for key in (*TEXTS, "context", "y", "dense", "kept", "bytes_kept", "note")} for row in rows
    ]
