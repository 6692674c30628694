"""Which of the four ways to serve a checkpoint is right: the cheapest to maintain that fits comes first.

The full pipeline is right where the checkpoint is fixed and nothing simpler fits.
"""

import math
from dataclasses import dataclass, replace

from karipap_core.deployment import evidence
from karipap_core.deployment.hardware import RESERVE, Gpu
from karipap_core.deployment.ways import Case, Way
from karipap_core.terminal import size

RIGHT = {"dense": 0, "quantize": 1, "pipeline": 2, "smaller": 3}  # answer → which of the ways


@dataclass(frozen=True)
class Verdict:
    """answer: as it is (it is stored quantized), dense, quantize, cache, pipeline, smaller, ask, none (nothing fits one
    GPU) or unknown (no GPU is named); sentence: the same in words, and what to do; reasons: what it rests on."""

    answer: str
    sentence: str
    reasons: tuple[str, ...] = ()


def recommended(document: dict) -> str | None:
    """The way that a deployment document's verdict comes to, None where it is none of them alone."""
    at = RIGHT.get(document["answer"])
    return None if at is None else document["ways"][at]["way"]


def ordered(document: dict) -> list[dict]:
    """The four ways of a deployment document, the recommended one first."""
    return sorted(document["ways"], key=lambda row: row["way"] != recommended(document))


def verdict(case: Case, ways: list[Way], runs: list[dict], fixed: bool | None) -> Verdict:
    """The answer to one case. ways: `case.ways`; runs: measured on this checkpoint; fixed: as in Constraints."""
    dense, quantized, pipeline, smaller = ways
    card = case.card
    if card is None:
        needs = size(case.total(case.foot.bytes))
        parts = f"KV cache {size(case.cache_bytes)}, activations {size(case.activations)}"
        reason = f"Dense it takes {needs}: weights {size(case.foot.bytes)}, {parts}."
        if stored := case.foot.stored:
            reason += f" As its files store it ({_form(stored)}): {size(case.total(stored['bytes']))}."
        return Verdict("unknown", f"No GPU is named: dense it takes {needs}. Name one with --gpu.", (reason,))
    room = size(card.usable)
    reasons = [
        f"{card.name}: {size(card.memory)}, of which {room} may be filled ({RESERVE:.0%} stay with the runtime)."
    ]
    if case.foot.stored:
        whole = case.total(case.foot.stored["bytes"])
        word = "fits" if whole <= card.usable else f"does not fit: {size(whole - card.usable)} too much"
        reasons.append(f"As its files store it ({_form(case.foot.stored)}): {size(whole)}, {word}.")
    for row in ways:
        if row["total_bytes"] is not None:
            word = "fits" if row["fits"] else f"does not fit: {size(row['total_bytes'] - card.usable)} too much"
            reasons.append(f"{row['way'].capitalize()}: {size(row['total_bytes'])}, {word}.")
    if (stored := case.foot.stored) and case.fits(stored["bytes"]):
        found = Verdict("as it is", _stored_sentence(case, stored, room, card))
    elif dense["fits"]:
        total = size(case.total(case.foot.bytes))
        sentence = (
            f"Deploy it dense: {total} of {room} on one {card.name}. Nothing has to be compressed "
            f"to fit; for cost per token try {quantized['quantize']} alone next."
        )
        found = Verdict("dense", sentence)
    elif quantized["fits"]:
        found = Verdict("quantize", _quantize_sentence(case, quantized, fixed))
    elif case.quantized(quantized["quantize"]) + case.activations < card.usable and case.cache.layers:
        found = _cache_too_large(case, card, quantized["quantize"])
    else:
        nothing = _too_small(case, card, quantized["quantize"])
        found = nothing or _without_quantization_alone(case, card, ways, runs, fixed)
    return replace(found, reasons=(*reasons, *found.reasons, _of_fixed(fixed)))


def _form(stored: dict) -> str:
    """How a model is stored, without what it was opened to."""
    return stored["form"].partition(", opened")[0]


def _stored_sentence(case: Case, stored: dict, room: str, card: Gpu) -> str:
    total, dense = size(case.total(stored["bytes"])), size(case.total(case.foot.bytes))
    opened = "fits too" if case.fits(case.foot.bytes) else "does not fit"
    return (
        f"Leave it as it is: stored as {_form(stored)} it takes {total} of {room} on one {card.name}, in an engine "
        f"that runs that form. Opened it takes {dense}, which {opened}; a plan pays where it is smaller than the "
        f"files ({size(stored['bytes'])})."
    )


def _quantize_sentence(case: Case, quantized: Way, fixed: bool | None) -> str:
    total = case.total(case.quantized(quantized["quantize"]))
    sentence = f"Quantization alone: {quantized['quantize']} takes {size(total)} and fits."
    if fixed is False:
        sentence += " A smaller dense model is the other simple answer."
    measured = quantized["measured"]
    if measured and measured["measure"] == "rise":
        sentence += f" Measured here, it raises the loss by {measured['value']:z.4f} nats a token."
    return sentence + " The full pipeline earns its upkeep only where this is not enough."


def _cache_too_large(case: Case, card: Gpu, format_name: str) -> Verdict:
    """The weights in `format_name` would fit: it is the cache that does not."""
    weights, load = case.quantized(format_name), case.load
    reason = f"The KV cache is the larger part: smaller weights alone do not bring {size(case.cache_bytes)} in."
    for dtype in ("fp8" if card.fp8 else "int8", "int4"):
        lighter = replace(case, load=replace(load, kv_dtype=dtype))
        if lighter.cache_bytes < case.cache_bytes and lighter.fits(weights):
            how = f"{format_name} weights and a KV cache in {dtype}: {size(lighter.total(weights))}"
            return Verdict("cache", f"Quantize weights and cache, nothing more: {how}, which fits.", (reason,))
    most = case.most_sequences(weights)
    few = f"At most {most} of {load.batch} sequences fit at once" if most else "Not even one sequence fits"
    where = next((place for place in case.placements(weights) if place.available), None)
    if where is None:
        return Verdict("cache", f"{few}; the rest needs more GPUs.", (reason,))
    slow = "" if where.seconds is None else f", at {where.seconds * 1e3:,.0f} ms a step at best"
    return Verdict("cache", f"{few} with {format_name} weights; for all of them: {where.name}{slow}.", (reason,))


def _room_for_weights(case: Case, card: Gpu) -> int:
    """Bytes that cache and activations leave for weights (below 0: not even they fit)."""
    return card.usable - case.activations - case.cache_bytes


def _gpus(case: Case, card: Gpu, format_name: str) -> str:
    count = math.ceil(case.total(case.quantized(format_name)) / card.usable)
    return f"{count:,} such GPUs together would hold the quantized model"


def _too_small(case: Case, card: Gpu, format_name: str) -> Verdict | None:
    """One GPU holds no version of the model that could be worth having: less than 2 % of its bytes are left for it."""
    room = _room_for_weights(case, card)
    if room > 0 and room >= 0.02 * case.foot.bytes:
        return None
    gpus = _gpus(case, card, format_name)
    return Verdict("none", f"One {card.name} is too small for this model and this load at any compression: {gpus}.")


def _without_quantization_alone(
    case: Case, card: Gpu, ways: list[Way], runs: list[dict], fixed: bool | None
) -> Verdict:
    """Not even the quantized weights fit: a smaller model, the full pipeline, or further quantization."""
    _, quantized, pipeline, smaller = ways
    gpus = _gpus(case, card, quantized["quantize"])
    if fixed is False:
        if smaller["fits"] is False:
            return Verdict("none", f"Neither quantization nor the smaller model fits: {gpus}.")
        return Verdict(
            "smaller", "A smaller dense model: the checkpoint is not fixed, and quantization alone is not enough."
        )
    if pipeline["fits"]:
        run = _run_of(pipeline, runs)
        rival = evidence.cheaper(runs, run) if run else None
        if rival and case.fits(rival["bytes"]):
            return Verdict(
                "quantize",
                f"Quantization alone, further down: {rival['label']} is no larger and loses no more, measured.",
            )
    room = _room_for_weights(case, card)
    need = f"a plan of at most {size(room)} is needed: --budget-bytes {room / case.foot.bytes:.2f}"
    network = f"full pipeline: {'the plan fits' if pipeline['fits'] else need}."
    if fixed is None:
        return Verdict(
            "ask",
            "Quantization alone does not fit. If the checkpoint is not fixed, take a smaller dense model; if it is, "
            f"the {network}",
        )
    sentence = f"The {network}" + ("" if pipeline["fits"] else f" Or more GPUs: {gpus}.")
    low = ((name, case.quantized(name)) for name in ("int3", "int2"))
    rivals = [
        f"Its rival is {name} on every weight, {size(weights)}, which fits as well: measure both."
        for name, weights in low
        if case.fits(weights)
    ]
    return Verdict("pipeline", sentence, tuple(rivals[:1]))


def _run_of(pipeline: Way, runs: list[dict]) -> dict | None:
    label = pipeline["measured"] and pipeline["measured"]["label"]
    return next((run for run in runs if label and label in (run.get("label"), run.get("id"))), None)


def _of_fixed(fixed: bool | None) -> str:
    if fixed is None:
        return (
            "Not said: whether the checkpoint is fixed (licence, data residency, a fine-tune with no smaller twin, "
            "hardware on site). Only then is the full pipeline worth its upkeep."
        )
    if fixed:
        return "The checkpoint is fixed, so a smaller model is no way out; simpler ways still come first."
    return "The checkpoint is not fixed: a smaller dense model costs less to maintain than the full pipeline."
