"""Words and tables for a terminal: cells, columns, a page of facts, sizes. Knows no document."""

import math
import shlex
from collections.abc import Iterable

NOTHING = "–"


def argument(name: str) -> str:
    """A name from a document as one word of a shell's line, and never as an option of the command.

    >>> argument("--out=x y")
    "'./--out=x y'"
    """
    return shlex.quote(f"./{name}" if name.startswith("-") else name)


def perplexity_rise(entry: dict) -> str | None:
    """By how much perplexity by a convention rose over the dense one, e^rise − 1, with its 95 % interval."""
    if entry.get("rise") is None:
        return None
    said = f"{100 * math.expm1(entry['rise']):+z.2f} %"
    if entry.get("rise_low") is None:
        return said
    low, high = (f"{100 * math.expm1(entry[key]):+z.2f}" for key in ("rise_low", "rise_high"))
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


def nats(x: float) -> str:
    """A loss, or a rise in loss, in words that a person reads at a glance: three decimals; small ones two significant
    digits; never an exponent, and never a zero with a sign.

    >>> [nats(x) for x in (1.6331, 0.012, 0.00042, 0.0000755, -1e-9, 0)]
    ['1.633', '0.012', '0.00042', '<0.0001', '0', '0']
    """
    size = abs(x)
    if size < 1e-4:
        return "<0.0001" if x >= 5e-9 else "0"
    digits = 3 if size >= 0.00995 else 1 - math.floor(math.log10(size))
    return f"{x:.{digits}f}"


def about(seconds: float) -> str:
    """A time that is guessed, as coarse as a guess is.

    >>> [about(s) for s in (4, 34, 89, 100, 780, 5000)]
    ['10 s', '40 s', '2 min', '2 min', '13 min', '1 h 25 min']
    """
    if seconds <= 50:
        return f"{max(1, math.ceil(seconds / 10)) * 10} s"
    minutes = max(1, round(seconds / 60)) if seconds < 60 else math.ceil(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    minutes = 5 * round(minutes / 5)
    return f"{minutes // 60} h {minutes % 60:02d} min"


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


def page(facts: dict, table: str, notes: Iterable[str] = ()) -> str:
    facts = {key: fact for key, fact in facts.items() if fact is not None}
    width = max(map(len, facts), default=0)
    lines = [f"{key.ljust(width)}  {value(fact)}" for key, fact in facts.items()]
    parts = ["\n".join(lines), table, "\n".join(map(value, notes))]
    return "\n\n".join(part for part in parts if part)


def times(numbers: Iterable[int]) -> str:
    return " × ".join(map(str, numbers))


def inline(entry: dict) -> str:
    return ", ".join(f"{key} {value(item)}" for key, item in entry.items() if not isinstance(item, dict | list))


def size(n: float) -> str:
    """Bytes in decimal units, three digits: 537e9 → '537 GB'."""
    for unit, one in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n) >= 0.9995 * one:
            return f"{n / one:.3g} {unit}"
    return f"{n:.0f} B"


def shortened(text: str, most: int = 50) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
