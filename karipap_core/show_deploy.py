"""The document of `deploy` as text in a terminal."""

from karipap_core.show import grid


def size(n: float) -> str:
    """Bytes in decimal units, three digits: 537e9 → '537 GB'."""
    for unit, one in (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(n) >= 0.9995 * one:
            return f"{n / one:.3g} {unit}"
    return f"{n:.0f} B"


RIGHT = {"dense": 0, "quantize": 1, "pipeline": 2, "smaller": 3}  # answer → which of the ways


def recommended(document: dict) -> str | None:
    """The way that the verdict comes to, None where it is none of them alone."""
    at = RIGHT.get(document["answer"])
    return None if at is None else document["ways"][at]["way"]


def ordered(document: dict) -> list[dict]:
    """The four ways, the recommended one first."""
    return sorted(document["ways"], key=lambda row: row["way"] != recommended(document))


def said_of(entry: dict) -> str:
    """Where a published figure is from, and what is to be said of it."""
    address = f" ({entry['source']['url']})" if entry["source"]["url"] else ""
    return f"Source: {entry['source']['name']}{address}. {entry['note']}"


def table(document: dict) -> str:
    """The verdict first, then the memory, the four ways, the places for the cache, and the reasons node by node."""
    gpu = document["gpu"]
    head = [document["verdict"], ""]
    head += [
        f"{name:12}{size(document[key])}"
        for name, key in (("weights", "weights_bytes"), ("KV cache", "kv_bytes"), ("activations", "activation_bytes"))
    ]
    if (active := document["active_parameters"]) < document["parameters"]:
        head[2] += f" ({active / document['parameters']:.0%} of them for a token)"
    usable = f" of {size(document['usable_bytes'])} on {gpu['name']}" if gpu else ""
    head.append(f"{'total':12}{size(document['total_bytes'])}{usable}")
    if document["dollars_per_mtoken"] is not None:
        head.append(f"{'cost':12}${document['dollars_per_mtoken']:.3g} a million tokens, at the throughput given")
    rows = []
    for row in ordered(document):
        fits = {None: None, True: "yes", False: "no"}[row["fits"]]
        measured = row["measured"]
        quality = f"{measured['measure']} {measured['value']:.4g}" if measured else "not measured"
        cost = None if row["dollars"] is None else f"{row['dollars']:.3g} ({row['dollars_are']})"
        weights, total = (None if row[key] is None else size(row[key]) for key in ("weights_bytes", "total_bytes"))
        mark = " ←" if row["way"] == recommended(document) else ""
        rows.append([row["way"] + mark, weights, total, fits, quality, cost])
    parts = ["\n".join(head), grid(["way", "weights", "in all", "fits", "quality", "$ / M tokens"], rows)]
    parts.append("\n".join(["To maintain:", *(f"   {row['way']}: {row['maintain']}" for row in ordered(document))]))
    if document["placements"]:
        places = []
        for place in document["placements"]:
            row = [size(place["hbm"]), size(place["pool"]), place["ms_per_step"]]
            row[2] = None if row[2] is None else f"{row[2]:,.0f}" if row[2] >= 100 else f"{row[2]:.3g}"
            places.append([place["name"], "yes", *row] if place["available"] else [place["name"], "no", *[None] * 3])
        parts.append(grid(["KV cache", "open", "on the GPU", "outside", "ms a step, at least"], places))
    for node in document["nodes"]:
        lines = [f"{node['node']}. {node['title']}: {node['answer']}", *(f"   {reason}" for reason in node["reasons"])]
        parts.append("\n".join(lines))
    for entry in document["published"]:
        parts.append(f"Published, not measured here: {entry['what']}: {entry['text']}.\n{said_of(entry)}")
    return "\n\n".join(parts)
