"""The production checklist as a table in a terminal."""


def table(document: dict) -> str:
    """A checklist for a terminal, and below it what to run."""
    from karipap_core.terminal import grid

    rows = [[item["name"], "ok" if item["ok"] else "TO DO", item["evidence"]] for item in document["items"]]
    head = f"{document['folder']}: " + ("ready" if document["ok"] else "not ready")
    fixes = [f"{item['name']}:\n  {item['fix']}" for item in document["items"][:-1] if not item["ok"]]
    last = document["items"][-1]
    if not last["ok"] and not fixes:
        fixes = [f"{last['name']}:\n  {last['fix']}"]
    return "\n\n".join([f"{head}\n\n{grid(['item', '', 'evidence'], rows)}", *fixes])
