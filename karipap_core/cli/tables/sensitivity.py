"""Layer sensitivity as a table in a terminal."""

from karipap_core import terminal as show
from karipap_core.studies.sensitivity.foretell import MEASURES, answer, described, say_settings
from karipap_core.studies.sensitivity.store import rows_of


def table(document: dict) -> str:
    """The measurement for a terminal: the verdict, ρ of every measure, a row a part."""
    by, quality = document.get("by", "weight"), document["quality"]
    document = described(document, by)
    parts = [f"{show.value(document['model']['name'])}: {show.value(say_settings(document))}", document["verdict"]]
    rows = []
    for key, found in document["spearman"].items():
        within, steadier = found["within"] or {}, document["spearman_kl"].get(key) or {}
        said = answer(found, MEASURES[key].sign)
        figures = [*(found[part] for part in ("rho", "low", "high", "n")), said]
        figures += [group.get(part) for group in (within, steadier) for part in ("rho", "low", "high")]
        rows.append([MEASURES[key].label, *figures])
    if rows:
        head = ["measure", "ρ", "low", "high", "n", "foretells?", "ρ within roles", "low", "high", "ρ with KL", "low"]
        parts.append(show.grid([*head, "high"], rows))
    columns = [quality, *(("rise_low", "rise_high", "kl") if quality == "rise" else ()), "predicted", "entropy"]
    columns += ["excess", "functional_error"]
    head = [by, "χ", "kept", *(column.replace("_", " ") for column in columns)]
    cells = [
        [row["name"], row["chi"], row["kept"], *(row.get(column) for column in columns)]
        for row in rows_of(document, by)
    ]
    parts.append(show.grid(head, cells))
    parts += [f"{show.value(row['name'])}: left out, {row['why']}" for row in document.get("skipped", ())]
    return "\n\n".join(parts)
