"""Two sides as a table in a terminal."""

from karipap_core import terminal as show
from karipap_core.tradeoffs.compare import verdict

COLUMNS = ("a", "b", "difference")
MANY = 1e4  # from here on no digits behind the point
SHARES = ("kept", "bytes_kept", "kept_blocks", "bytes_kept_blocks", "top1_agreement")


def figure(row: dict, key: str) -> str:
    """One figure of a row of the comparison as people read it: shares in per cent, differences with their sign.

    >>> figure({"key": "kept", "a": 0.3566, "difference": -0.098}, "a")
    '35.7 %'
    """
    number, sign = row[key], "+" if key == "difference" else ""
    if number is None:
        return show.NOTHING
    if row["key"] in SHARES:
        return f"{100 * number:{sign}z.1f} %"
    if row["key"] == "disk_bytes" and key != "difference":
        return show.size(number)
    return f"{number:{sign}z,.4f}" if abs(number) < MANY else f"{number:{sign},.0f}"


def table(document: dict) -> str:
    """The comparison for a terminal: figures, then the weights that differ, then the prompts."""
    a, b = (document[side] for side in "ab")
    parts = [f"A  {show.value(a['name'])} ({a['kind']})\nB  {show.value(b['name'])} ({b['kind']})", verdict(document)]
    rows = [
        [row["label"], *(figure(row, key) for key in COLUMNS), said(row), (row["better"] or "").upper()]
        for row in document["metrics"]
    ]
    if rows:
        parts.append(show.grid(["", "A", "B", "B − A", "", "better"], rows))
    total, totals = len(document["layers"]), document["totals"]
    parts.append(f"{totals['changed']} of {total} weights differ.")
    changed = [row for row in document["layers"] if not row["same"]]
    if changed:
        rows = []
        for row in changed:
            cells = [row[side] or {} for side in "ab"]
            before, after = (cell.get("parameters") for cell in cells)
            change = None if before is None or after is None else after - before
            rows.append(
                [row["name"], *map(what, cells), before, after, change, *(cell.get("damage") for cell in cells)]
            )
        head = ["weight", "A", "B", "parameters A", "B", "B − A", "damage A", "B"]
        parts.append(show.grid(head, rows))
    for row in document["prompts"]:
        texts = [f"  {side:5}  {show.value(row[key])}" for side, key in (("dense", "dense"), ("A", "a"), ("B", "b"))]
        parts.append("\n".join([f"> {show.value(row['prompt'])}", *texts]))
    return "\n\n".join([*parts, *map(show.value, document["notes"])])


def what(cell: dict) -> str:
    """A weight in a few words: "lowrank χ 64 int4"."""
    if not cell:
        return show.NOTHING
    bond = f"χ {'·'.join(map(str, cell['chi']))}" if cell["chi"] else ""
    return " ".join(filter(None, (cell["network"], bond, cell["quantize"])))


def said(row: dict) -> str:
    """The interval of a difference in words, empty where there is none."""
    if row["low"] is None:
        return ""
    span = f"{row['low']:+z.4f} to {row['high']:+z.4f}"
    return span if row["measurable"] else f"no measurable difference ({span})"
