"""A run, or a sweep of them, as a table in a terminal."""

from karipap_core.cli.tables import evaluation, plan
from karipap_core.terminal import grid, inline, page
from karipap_core.tradeoffs.ranking import rank, sentence


def table(document: dict) -> str:
    """One measured point of the trade-off, with its plan where it has one."""
    settings = {key: entry for key, entry in (document.get("settings") or {}).items() if entry is not None}
    facts = {"name": document.get("name")} if document.get("name") else {}
    facts |= {"run": document.get("id"), "what": document.get("described") or document.get("label")}
    facts |= {"settings": inline(settings) or None, "seconds": inline(document.get("seconds") or {}) or None}
    parts = [page(facts, ""), evaluation.table(document | {"model": (document.get("model") or {}).get("name")})]
    if document.get("plan"):
        parts.append("The plan:\n\n" + plan.table(document["plan"]))
    return "\n\n".join(parts)


def sweep(document: dict) -> str:
    """A row a run or baseline, smallest first; `*` marks the Pareto front."""
    points = sorted([*document["runs"], *document.get("baselines", ())], key=lambda point: point.get("bytes_kept", 0))
    quality = document.get("quality") or "loss"
    head = ["", "run", "bytes kept", "parameters kept", quality.replace("_", " "), "rise", "±", "KL", "top-1"]
    keys = ("label", "bytes_kept", "kept", quality, "rise", "rise_error", "kl", "top1_agreement")
    front = set(document.get("pareto", ()))
    rows = [["*" if point.get("id") in front else "", *(point.get(key) for key in keys)] for point in points]
    facts = {
        "model": (document.get("model") or {}).get("name"),
        "measured on": (document.get("text") or {}).get("name"),
        "runs": f"{len(document['runs'])}, and {len(document.get('baselines', ()))} baselines",
    }
    ranked = rank([*document["runs"], *document.get("baselines", ())])
    said = [sentence(ranked)] if ranked.rows else []
    return page(facts, grid(head, rows), ["* on the Pareto front", *said, *document.get("notes", ())])
