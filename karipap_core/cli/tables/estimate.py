"""What a job would take, as a table in a terminal."""

from karipap_core.terminal import about, grid, page, size

KINDS = ("float32", "float64", "eigh")


def table(document: dict) -> str:
    """Time, memory and disk, and a row for each kind of work."""
    model, speeds = document["model"], document["speeds"]
    rows = []
    for row in document["parts"]:
        counts = [f"{row['operations'][kind]:.2e}" if kind in row["operations"] else None for kind in KINDS]
        rows.append([row["part"], *counts, _time(row["seconds"])])
    threads = "one thread" if document["threads"] == 1 else f"{document['threads']} threads"
    facts = {
        "estimate": f"{document['what']} of {model['name']}, from nothing; nothing was done",
        "parameters": f"{model['parameters']:,}, {size(model['bytes'])}",
        "time": f"{_time(document['seconds'])} on {threads}",
        "CPU hours": document["cpu_hours"],
        "memory at most": size(document["memory"]),
        "on disk meanwhile": size(document["scratch"]),
        "on disk afterwards": ", ".join(f"{name} {size(n)}" for name, n in document["kept"].items()),
        "weights read": f"{document['reads']} times",
        "operations a second": ", ".join(f"{kind} {speeds[kind]:.2g}" for kind in KINDS),
    }
    return page(facts, grid(["work", *KINDS, "time"], rows), document["notes"])


def _time(seconds: float) -> str:
    return about(seconds) if seconds > 50 else f"{seconds:.2g} s"
