"""Claims and what was measured as a table in a terminal."""

from karipap_core.studies.claims.catalogue import named


def table(document: dict) -> str:
    """A result (or the list of claims) for a terminal: published beside measured."""
    from karipap_core.terminal import grid

    if document["format"] == "karipap-claims":
        return grid(["claim", "", "paper"], [[c["name"], c["title"], c["origin"]] for c in document["claims"]])
    claim = named(document["claim"])
    rows = [[row.what, row.value or "–", document["measured"].get(row.key, "–")] for row in claim.published]
    head = [claim.title, f"published ({claim.origin})", f"measured here ({document['model']['name']})"]
    return "\n".join([grid(head, rows), "", document["verdict"], *document["notes"]])
