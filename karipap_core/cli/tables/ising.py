"""The Ising check as a table in a terminal."""

from karipap_core.terminal import grid


def table(document: dict) -> str:
    """The document of `solve` for a terminal."""
    rows = [
        ["ln Z per site", f"{document['ln_z_per_site']:.12f}"],
        ["exact (Onsager)", f"{document['exact']:.12f}"],
        ["relative error", f"{document['relative_error']:.2e}"],
        ["discarded weight", f"{document['discarded_weight']:.2e}"],
        ["seconds", f"{document['seconds']:.2f}"],
    ]
    head = f"{document['method']}, χ {document['chi']}, T {document['temperature']:g}"
    return grid([head, f"{document['sites']:,} sites"], rows)
