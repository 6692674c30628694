"""The document of `deploy` as a table in a terminal."""

from karipap_core.cli.tables.profile import stored_as
from karipap_core.deployment.hardware import said_of
from karipap_core.deployment.verdict import ordered, recommended
from karipap_core.terminal import grid, size


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
    if stored := document.get("stored"):
        head.insert(2, f"{'as it is':12}{stored_as(stored)}")
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
            step = place["ms_per_step"]
            said = None if step is None else f"{step:,.0f}" if step >= 100 else f"{step:.3g}"
            sizes = [size(place["hbm"]), size(place["pool"]), said]
            places.append([place["name"], *(["yes", *sizes] if place["available"] else ["no", None, None, None])])
        parts.append(grid(["KV cache", "open", "on the GPU", "outside", "ms a step, at least"], places))
    for node in document["nodes"]:
        lines = [f"{node['node']}. {node['title']}: {node['answer']}", *(f"   {reason}" for reason in node["reasons"])]
        parts.append("\n".join(lines))
    for entry in document["published"]:
        parts.append(f"Published, not measured here: {entry['what']}: {entry['text']}.\n{said_of(entry)}")
    return "\n\n".join(parts)
