"""A plan as a table in a terminal."""

from karipap_core.checkpoint.form import beside
from karipap_core.terminal import grid, inline, page, times, value


def table(document: dict) -> str:
    """What the plan does as a whole, and a row a weight."""
    from karipap_core.plan.document import Plan, made_of

    checked = Plan.from_json(document)
    rows: list[list] = []
    for name, entry in checked.weights.items():
        spec = checked.spec(name)
        marks = " ".join(filter(None, (_stored(entry), _shared(entry), "locked" if entry.get("locked") else None)))
        if spec is None:
            rows.append([name, "dense", None, None, None, None, marks])
            continue
        shape = (spec.n_out, spec.n_in)
        kept = spec.bytes(2) / 2 / (spec.n_out * spec.n_in)  # a quantized number counts as its bits / 16
        rows.append([name, spec.network, times(shape), times(spec.chi), spec.parameters, kept, marks])
    predicted = document.get("predicted") or {}
    rule = document.get("rule", "hand")
    facts = {
        **({"name": document["name"]} if document.get("name") else {}),
        "model": document["model"]["name"],
        "fingerprint": document["model"]["fingerprint"],
        "rule": f"{rule} ({document['chosen_rule']} won)" if document.get("chosen_rule") else rule,
        "metric": document["metric"],
        "budget": _budget(document),
        "calibration": calibrated_on(document.get("calibration")),
        "weights": made_of(checked.weights.values()),
        "embedding": _embedding(document),
        **size_facts(predicted, document["model"].get("stored")),
    }
    if predicted.get("rise") is not None:
        what = "output error" if predicted.get("measure") == "output error" else "loss"
        error = f", usually within ±{predicted['error']:.0%}" if predicted.get("error") else ""
        facts["predicted"] = f"{what} rises by {value(predicted['rise'])}{error}"
    elif why := predicted.get("not_predicted"):
        facts["not predicted"] = why
    head = ["weight", "network", "shape", "χ", "parameters", "kept", ""]
    tried = [f"tried: {inline(entry)}" for entry in document.get("tried", ())]
    return page(facts, grid(head, rows), [*document.get("notes", ()), *tried, *_why(document["weights"])])


def calibrated_on(settings: dict | None) -> str | None:
    """The text, and the images where there are any, that numbers come from."""
    found = settings or {}
    images = found.get("images")
    return found["text"] + f", and {images['count']} images of {images['name']}" if images else found.get("text")


def _stored(entry: dict) -> str | None:
    """The format of a plan entry's cores: "int4", or "int3 + int4" of a quantized weight and its correction."""
    return " + ".join(filter(None, (entry.get("bits"), entry.get("quantize")))) or None


def _shared(entry: dict) -> str | None:
    members = entry.get("members") or []
    return f"{entry.get('at', 0) + 1} of {len(members)} that share cores" if len(members) > 1 else None


def _embedding(document: dict) -> str | None:
    found = document.get("embedding")
    if not found:
        return None
    return found["kind"] + (", a tied head is untied" if found.get("tied") == "untie" else "")


def _why(weights: dict[str, dict]) -> list[str]:
    """Why each weight of a mixed plan became what it is; weights that share cores once."""
    said: dict[tuple, list[str]] = {}
    for name, entry in weights.items():
        if entry.get("why"):
            said.setdefault((tuple(entry.get("members") or (name,)), entry["why"]), []).append(name)
    more = {key: f" and {len(names) - 1} more" if len(names) > 1 else "" for key, names in said.items()}
    return [f"why: {names[0]}{more[key]}: {key[1]}" for key, names in said.items()]


def size_facts(document: dict, stored: dict | None = None) -> dict:
    """The lines that say how large a model is now: beside the opened one and, where it was `stored` in another form
    (`Checkpoint.as_stored`), beside its files."""
    facts = {}
    for key, share in (("parameters", "kept"), ("bytes", "bytes_kept")):
        if document.get(key) is not None and document.get(share) is not None:
            facts[key] = f"{document[key]:,}: {document[share]:.1%} kept, {1 - document[share]:.1%} removed"
    if document.get("kept_blocks") is not None:
        facts["blocks"] = f"{document['kept_blocks']:.1%} of their parameters kept"
    if stored and document.get("bytes") is not None:
        facts["stored as"] = stored["form"] + ": kept is of the opened model"
        facts["beside the files"] = beside(stored, document["bytes"])
    return facts


def _budget(document: dict) -> str | None:
    if document.get("budget_bytes") is not None:
        tower = document.get("scope") not in (None, "model", "blocks")
        return f"{document['budget_bytes']:.1%} of the bytes" + (f" of the {document['scope']}" if tower else "")
    if document.get("budget") is not None:
        return f"{document['budget']:.1%} of the parameters of the {document.get('scope', 'model')}"
    return None
