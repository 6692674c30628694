"""Documents as tables in a terminal, one file a kind of document; each is imported when it is printed."""

from collections.abc import Callable
from importlib import import_module

from karipap_core.errors import InputError


def table(module: str, name: str = "table") -> Callable[[dict], str]:
    """The function that prints a kind of document, imported when it is called: `--help` is instant."""
    return lambda document: getattr(import_module(f"{__name__}.{module}"), name)(document)


def or_estimate(render: Callable[[dict], str]) -> Callable[[dict], str]:
    """The same for verbs that can say what they would take instead of doing it."""
    estimate = table("estimate")
    return lambda document: (estimate if document.get("format") == "karipap-estimate" else render)(document)


TABLES = {
    "karipap-profile": table("profile"),
    "karipap-plan": table("plan"),
    "karipap-report": table("compressed"),
    "karipap-run": table("run"),
    "karipap-sweep": table("run", "sweep"),
    "karipap-autopilot": table("autopilot"),
    "karipap-sensitivity": table("sensitivity"),
}


def anything(document: dict) -> str:
    """The table of a document that says itself what it is (`workspace.documents.find`)."""
    try:
        return TABLES[document["format"]](document)
    except KeyError as missing:
        raise InputError(f"This {document['format']} lacks the field {missing}: write it anew.") from missing
