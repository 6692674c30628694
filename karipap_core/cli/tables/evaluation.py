"""A measured model as a table in a terminal."""

from karipap_core.statistics.bootstrap import Interval, in_words
from karipap_core.terminal import convention_note, grid, page, perplexity_rise, value


def table(document: dict) -> str:
    """A measured model beside the dense one: quality, speed, memory."""
    ours, dense = document, document.get("dense") or {}
    rows: list[list] = [[label, ours.get(key), dense.get(key)] for key, label in _QUALITY if ours.get(key) is not None]
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
    notes = [*filter(None, [ours.get("text_warning")]), *document.get("notes", ())]
    parts = [page(facts, grid(["", "this model", "dense"], rows), notes)]
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
        rows.append([f"{name}, {metric}", *figures, interval and in_words(interval, "+z.3f"), found.get("chance")])
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
    return [page({}, grid(head, rows) if rows else "", notes)] if found else []


# Pieces.

_QUALITY = (
    ("loss", "loss, nats a token"),
    ("perplexity", "perplexity"),
    ("bits_per_byte", "bits per byte"),
    ("tokens", "tokens scored"),
)
_COSTS = (
    ("prefill, tokens a second", "speed", "prefill_tokens_per_second"),
    ("decode, ms a token", "speed", "decode_ms_per_token"),
    ("weights in memory, bytes", "memory", "weights_bytes"),
    ("peak memory, bytes", "memory", "peak_bytes"),
    ("on disk, bytes", "memory", "disk_bytes"),
)


def _by_words(**words) -> str | None:
    return ", ".join(f"{key} {number}" for key, number in words.items() if number is not None) or None


def _with_error(number: float | None, error: float | None) -> str | None:
    if number is None:
        return None
    return f"{value(number)} ± {error:.2g}" if error is not None else value(number)
