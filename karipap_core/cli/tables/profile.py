"""A profile as a table in a terminal."""

from collections import Counter

from karipap_core.checkpoint.reach import in_words
from karipap_core.checkpoint.roles import TOWERS
from karipap_core.cli.tables.plan import calibrated_on
from karipap_core.terminal import grid, page, size, times

METRIC_ORDER = ("loss", "functional", "weight")
MOST_NOTES = 8  # of weights that are zero or of less than full rank


# One function a kind of document.


def table(document: dict) -> str:
    """A row a weight, most structured first within its place in the model; the numbers of one metric (nats)."""
    measured = {metric for row in document["weights"] for metric in row["spectra"]}
    metric = next((name for name in METRIC_ORDER if name in measured), "weight")
    rows = []
    for row in document["weights"]:
        numbers = row["spectra"].get(metric, {})
        wanted = ("entropy", "null_entropy", "excess", "normalized_entropy", "effective_rank", "rank", "chi_at_1pct")
        rows.append([row["name"], times(row["shape"]), row["parameters"], *(numbers.get(key) for key in wanted)])
    head = ["weight", "shape", "parameters", "S", "S null", "excess", "S / ln r", "exp S", "rank", "χ at 1 %"]
    bonds = sum(len(row.get("bonds", ())) for row in document["weights"])
    facts = {
        "model": document["model"],
        "kind": kind_in_words(document),
        "fingerprint": document["fingerprint"],
        "parameters": document["parameters"],
        "stored as": stored_as(document.get("stored")),
        "metrics": ", ".join(name for name in METRIC_ORDER[::-1] if name in measured) + f" (shown: {metric})",
        "calibration": calibrated_on(document.get("settings")),
        "bonds": f"{bonds} bond spectra (in profile.json)" if bonds else None,
    }
    if document.get("update"):  # of less than full rank by what it is
        return page(facts, grid(head, rows), [document["update"]])
    deficient = [row for row in document["weights"] if row["spectra"] and _deficient(row)]
    notes = [f"{row['name']}: {' '.join(row['notes'])}" for row in deficient[:MOST_NOTES]]
    if more := len(deficient) - MOST_NOTES:
        notes += [f"and {more:,} more of less than full rank: see the column rank."] if more > 0 else []
    if "coverage" in document:
        notes.insert(0, in_words(document["coverage"]))
    skipped = [f"skipped: {entry['name']}: {entry['why']}" for entry in document.get("skipped", ())]
    return page(facts, grid(head, rows), notes + skipped)


def kind_in_words(document: dict) -> str | None:
    """What a model does with tokens, and the towers that it is made of, where it has several; None in profiles of
    before this was said."""
    towers = Counter(row["tower"] for row in document["weights"] if row.get("tower"))
    order = sorted(towers, key=TOWERS.index)
    said = [f"{tower} ({towers[tower]:,} weight{'s' if towers[tower] > 1 else ''})" for tower in order]
    kind = document.get("kind")
    return f"{kind}, of {', '.join(said)}" if kind and said else kind


def stored_as(stored: dict | None) -> str | None:
    """The form that the files store a model in, where that is another than it computes with."""
    return f"{stored['form']}: {size(stored['bytes'])} in the files" if stored else None


def _deficient(row: dict) -> bool:
    """Whether a weight is zero or of less than full rank, as its notes say of a profile since there are such notes."""
    full = min(row["shape"])
    return bool(row["notes"]) and any(numbers.get("rank", full) < full for numbers in row["spectra"].values())
