"""An export in a terminal: sizes, what each weight is stored as, and what the engine said of it."""

from karipap_core.exports.card import measured_in_words
from karipap_core.terminal import grid, page, size


def table(document: dict) -> str:
    head = ["weight", "as compressed", "stored as", "rank", "error"]
    rows = [
        [line["weight"], line["says"], line["stored"], line["rank"] or "", line["error"]]
        for line in document["weights"]
    ]
    facts = {
        "for": document["title"],
        "written to": document["out"],
        "weights here": size(document["bytes"]),
        "in Karipap's folder": size(document["source_bytes"]),
        "dense": size(document["dense_bytes"]),
    }
    said = [*document["summary"], *document["notes"]]
    said += [measured_in_words(document["measured"], document["title"])] if document.get("measured") else []
    return "\n".join([page(facts, grid(head, rows), said), "", *document["commands"].splitlines()])
