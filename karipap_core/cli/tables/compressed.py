"""A compressed or densified folder as a table in a terminal."""

from karipap_core.cli.tables.plan import size_facts
from karipap_core.compressed.folder import stayed_behind
from karipap_core.compressed.verify import summary as verified
from karipap_core.terminal import grid, page, times


def table(document: dict) -> str:
    """Size of a compressed model, and what each of its weights lost (relative squared errors)."""
    document = document.get("result", document)
    head = ["weight", "network", "χ", "parameters", "weight error", "functional error"]
    rows = [
        [
            row["name"],
            row["network"],
            times(row["chi"]),
            row["parameters"],
            row["weight_error"],
            row["functional_error"],
        ]
        for row in document["weights"]
    ]
    stored = {row["name"]: row.get("quantize") for row in document["weights"]}
    if any(stored.values()):
        head.append("stored in")
        rows = [[*row, stored[row[0]] or ""] for row in rows]
    facts = size_facts(document, document.get("stored")) | {"seconds": document.get("seconds")}
    if document.get("verify"):
        facts["verified"] = verified(document["verify"])
    return page(facts, grid(head, rows), [said] if (said := stayed_behind(document)) else ())


def densified(document: dict) -> str:
    facts = {key: document[key] for key in document if key != "note" and not isinstance(document[key], dict | list)}
    return page(facts, "", [document["note"]] if document.get("note") else ())
