"""A fetched model in a terminal."""

from karipap_core.terminal import size


def table(document: dict) -> str:
    """Where it lies, and how large it is."""
    return (
        f"{document['model']}: {document['files']} files, {size(document['bytes'])}, in {document['folder']}\n"
        f"Next: karipap profile {document['model']}"
    )
