"""A folder's verdict as a table in a terminal."""


def table(document: dict) -> str:
    """A verdict for a terminal."""
    from karipap_core.terminal import grid

    marks = {True: "ok", False: "WRONG", None: "not checked"}
    rows = [[check["name"], marks[check["ok"]], check["detail"]] for check in document["checks"]]
    head = f"{document['folder']}: " + ("verified" if document["ok"] else "NOT verified")
    return f"{head}\n\n{grid(['check', '', ''], rows)}\n\nTo load it:\n\n{document['loader']}"
