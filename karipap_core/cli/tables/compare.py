"""Two sides as a table in a terminal."""

from karipap_core import terminal as show
from karipap_core.tradeoffs.compare import verdict


def table(document: dict) -> str:
    """The comparison for a terminal: figures, then the weights that differ, then the prompts."""
    a, b = (document[side] for side in "ab")
    parts = [f"A  {show.value(a['name'])} ({a['kind']})\nB  {show.value(b['name'])} ({b['kind']})", verdict(document)]
    rows = [
        [row["label"], row["a"], row["b"], row["difference"], said(row), (row["better"] or "").upper()]
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
    span = f"{row['low']:+.4g} to {row['high']:+.4g}"
    return span if row["measurable"] else f"no measurable difference ({span})"
