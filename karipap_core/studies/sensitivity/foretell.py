"""Whether entropy or another measure foretells what was measured, in figures and in words."""

from collections.abc import Sequence
from dataclasses import dataclass

from karipap_core.statistics.bootstrap import LEVEL
from karipap_core.statistics.spearman import spearman
from karipap_core.studies.sensitivity.store import rows_of

WEAK = 0.3  # an interval of ρ that stays inside ±WEAK says that there is little to find


@dataclass(frozen=True)
class Measure:
    """A number that may foretell what a part loses: its label, what it is, and the sign it is said to go with."""

    label: str
    says: str
    sign: int = 1


MEASURES = {
    "entropy": Measure("Entropy S", "S = −Σ p ln p, p = σ² / Σσ², of the weight's own singular values, nats"),
    "excess": Measure(
        "Excess over noise", "entropy of a Gaussian matrix of the same shape, minus S: structure, so less loss", -1
    ),
    "effective_rank": Measure("Effective rank", "exp S: ranks weights as S does"),
    "loss_entropy": Measure("Entropy, loss metric", "S of √G W √C, inputs and output gradients taken in"),
    "loss_excess": Measure("Excess, loss metric", "excess of √G W √C over a Gaussian matrix", -1),
    "weight_error": Measure("Weight error", "‖W − Ŵ‖² / ‖W‖²"),
    "functional_error": Measure("Output error", "‖(W − Ŵ) √C‖² / ‖W √C‖²: of the layer's outputs on text"),
    "loss_error": Measure("Loss metric error", "‖√G (W − Ŵ) √C‖²: twice what K-FAC takes for the rise in loss"),
    "predicted": Measure(
        "Predicted damage", "read from the calibration: divergence of low-rank cuts, measured on calibration text"
    ),
    "parameters": Measure("Parameters", "numbers in the dense weight"),
}
SUMMED = ("loss_error", "predicted", "parameters")  # over the weights of a part; the others are their mean


def described(document: dict, by: str = "weight") -> dict:
    """The document with what its rows say: "by", the unit that all of it is over; "spearman" {measure: see
    `correlations`}; "spearman_kl", the same with the KL divergence in place of the rise ({} for an encoder); "verdict",
    words.

    The divergence is measured by the same passes and has far less noise than the rise, whose ranks are chance where
    rises are within their intervals of 0.
    """
    rows, quality = rows_of(document, by), document["quality"]
    found = correlations(rows, quality)
    steadier = correlations(rows, "kl") if quality == "rise" else {}
    said = verdict(document, by, found, steadier)
    return document | {"by": by, "spearman": found, "spearman_kl": steadier, "verdict": said}


# Which measure foretells the rise.


def correlations(rows: Sequence[dict], quality: str = "rise") -> dict[str, dict]:
    """{measure: {"rho", "low", "high", "n", "within"}} between each of `MEASURES` and the measured quality.

    "within" is the same with ranks taken within each role of three weights or more, {"rho", "low", "high", "n",
    "roles"} or None: roles differ in shape and place, and a measure can follow those alone. A measure that the rows
    lack, or that is the same for all, is left out; so is everything below `FEWEST` rows.
    """
    found = {}
    for key in MEASURES:
        known = [row for row in rows if row.get(key) is not None and row.get(quality) is not None]
        x, y = ([row[column] for row in known] for column in (key, quality))
        whole = spearman(x, y)
        if whole is None:
            continue
        groups = [
            [i for i, row in enumerate(known) if row["role"] == role]
            for role in dict.fromkeys(row["role"] for row in known)
            if role is not None
        ]
        groups = [group for group in groups if len(group) >= 3]
        within = spearman(x, y, groups) if len(groups) > 1 else None
        found[key] = whole | {"within": within and within | {"roles": len(groups)}}
    return found


def answer(found: dict | None, sign: int = 1) -> str:
    """What an interval of ρ says: "yes", "the other way round", "no" (close to none, `WEAK`), "not told apart from
    none", or "too few to say"."""
    if found is None:
        return "too few to say"
    low, high = sorted((sign * found["low"], sign * found["high"]))
    if low > 0:
        return "yes"
    if high < 0:
        return "the other way round"
    return "no" if max(-low, high) < WEAK else "not told apart from none"


def verdict(document: dict, by: str, found: dict, steadier: dict) -> str:
    """`sentences` as one text."""
    return " ".join(sentences(document, by, found, steadier))


def sentences(document: dict, by: str, found: dict, steadier: dict) -> list[str]:
    """What the measurement says, in a few sentences: entropy, the best measure, the most sensitive part. `found` and
    `steadier` are the correlations with the quality and with KL (see `described`)."""
    rows, quality = rows_of(document, by), document["quality"]
    if not rows:
        return ["Nothing measured yet."]
    many = "s" if len(rows) > 1 else ""
    parts, entropy = f"{len(rows)} {'part' if _grouped(rows) else by}{many}", found.get("entropy")
    said = [f"Does entropy predict sensitivity here? {_capital(answer(entropy))}"]
    said[0] += f": {in_words(entropy)} over {parts}." if entropy else f": {parts} measured."
    if entropy and entropy["within"]:
        inside = answer(entropy["within"])
        only = ": what it tells apart here are roles" if answer(entropy) == "yes" and inside != "yes" else ""
        said.append(f"Within roles: {inside}, {in_words(entropy['within'])}{only}.")
    if "entropy" in steadier:
        one = steadier["entropy"]
        said.append(f"With KL divergence in place of the rise: {answer(one)}, {in_words(one)}.")
    if found:
        best = max(found, key=lambda key: abs(found[key]["rho"]))
        if answer(found[best]) in ("yes", "the other way round"):
            said.append(f"Closest to what was measured: {MEASURES[best].label.lower()}, {in_words(found[best])}.")
        else:
            said.append("No measure is told apart from none.")
    most = max(rows, key=lambda row: row[quality])
    what = "rise in loss" if quality == "rise" else "output error"
    said.append(f"Most sensitive: {most['name']}, {what} {most[quality]:.4f}.")
    unmeasurable = sum(row["rise_low"] is not None and row["rise_low"] <= 0 <= row["rise_high"] for row in rows)
    if unmeasurable:
        said.append(f"{unmeasurable} of {len(rows)} lose nothing that can be measured on this text.")
    return said


def in_words(found: dict) -> str:
    """ "ρ = 0.62 (95 % interval 0.40 to 0.77)"."""
    return f"ρ = {found['rho']:.2f} ({LEVEL * 100:.0f} % interval {found['low']:.2f} to {found['high']:.2f})"


def _grouped(rows: Sequence[dict]) -> bool:
    return any(row["role"] is not None and len(row["members"]) > 1 for row in rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def say_settings(document: dict) -> str:
    """How it was measured, in a line."""
    kept = document["settings"]
    size = f"χ {kept['chi']}" if kept["chi"] is not None else f"kept {kept['kept']:g}"
    words = [
        f"{kept['network']}{' ' + kept['quantize'] if kept['quantize'] else ''}, {size}",
        f"metric {kept['metric']}",
    ]
    tokens = (document.get("dense") or {}).get("tokens")
    words.append(kept["text"]["name"] + (f", {tokens:,} tokens" if tokens else ""))
    return "; ".join(words)
