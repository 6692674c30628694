"""What a report was written of as a table in a terminal."""

from karipap_core import terminal as show


def table(document: dict) -> str:
    """What was written, for a terminal."""
    keys = ("model", "runs", "baselines", "html", "bytes", "csv", "json", "plans")
    width = max(map(len, keys))
    lines = [f"{key.ljust(width)}  {show.value(document[key])}" for key in keys]
    if not document["profile"]:
        lines.append("No spectra: the workspace has no profile of this model (see the verb `profile`).")
    return "\n".join(lines)
