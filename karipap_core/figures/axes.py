"""The axes of measured points: which sizes and figures there are, how each is written, and where a point's interval is.

A point is a run as `points.Points` and `run.run` write it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from karipap_core.evaluation import scores
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known


@dataclass(frozen=True)
class Axis:
    """A number of a point: its key, label, how it is written, whether more is better, whether decades suit it."""

    key: str
    label: str
    form: str
    says: str
    more: bool = False
    log: bool = False


SIZES = {
    axis.key: axis
    for axis in (
        Axis(
            "bytes_kept",
            "Bytes kept",
            ".1%",
            "bytes of the whole model, 16 bits for every number that is not "
            "quantized, over the same of the dense model; scales and zero points counted",
        ),
        Axis("bytes_kept_blocks", "Bytes kept, blocks", ".1%", "the same over the compressible weights alone"),
        Axis(
            "kept",
            "Parameters kept",
            ".1%",
            "parameters of the whole model, embedding and head included, over those of the dense model",
        ),
        Axis("kept_blocks", "Parameters kept, blocks", ".1%", "the same over the compressible weights alone"),
    )
}
QUALITIES = {
    axis.key: axis
    for axis in (
        Axis("rise", "Rise in loss", "z.4f", "loss minus the dense model's, nats a token", log=True),
        Axis("loss", "Loss", ".4f", "mean of −ln p of the next token, nats a token"),
        Axis("perplexity", "Perplexity", ".3f", "exp of the loss", log=True),
        Axis(
            "bits_per_byte",
            "Bits per byte",
            ".4f",
            "the loss in bits, per byte of the text: comparable across tokenizers",
        ),
        Axis("kl", "KL divergence", "z.4f", "mean KL(dense ‖ compressed) of the next token, nats a token", log=True),
        Axis("top1_agreement", "Top-1 agreement", ".1%", "share of tokens that both models put first", more=True),
        Axis(
            "relative_error", "Output error", ".4f", "Σ‖h − h_dense‖² / Σ‖h_dense‖² of the last hidden states", log=True
        ),
    )
}


def quality(points: Iterable[dict], y: str) -> Axis:
    """The axis of a figure of these points: one of `QUALITIES`, or a score of a task such as "hellaswag: acc_norm".
    Raises KeyError for what is neither."""
    if y in QUALITIES:
        return QUALITIES[y]
    more = scores.keys(points)[y]
    return Axis(y, y, ".1%" if more else ".4f", "score of a benchmark task, as lm-evaluation-harness names it", more)


def interval(point: dict, y: str) -> tuple[float, float] | None:
    """Where a figure of a point lies by its 95 % interval, None where it has none.

    That of the rise is paired to the dense model on the same tokens (`bootstrap.rise_of`), so those of what follows
    from the loss are: loss = dense + rise, perplexity = dense · exp(rise), bits per byte = dense · (loss / dense loss).
    Of a task see `scores.interval`.
    """
    if y not in QUALITIES:
        return scores.interval(point, y)
    found, dense = uncertainty.rise_of(point), point.get("dense") or {}
    if found is None or y not in scores.LOSSES:
        return None
    ends = (found.low, found.high)
    if y == "rise":
        return ends
    if not known(dense, "loss") or not known(dense, y):
        return None
    if y == "loss":
        return tuple(dense["loss"] + end for end in ends)
    if y == "perplexity":
        return tuple(dense["perplexity"] * math.exp(end) for end in ends)
    return tuple(dense["bits_per_byte"] * (1 + end / dense["loss"]) for end in ends)


def measurable(point: dict, y: str) -> bool | None:
    """Whether a point differs from the dense model by a figure, None where no interval tells."""
    if y in QUALITIES and y not in scores.LOSSES:
        return None
    found = uncertainty.rise_of(point) if y in scores.LOSSES else scores.to_dense(point, y)
    return None if found is None else found.measurable


UNITS = dict.fromkeys(("rise", "loss", "kl"), ", nats a token") | {"bits_per_byte": ", bits"}
UNITS |= {"top1_agreement": ", % of tokens", "relative_error": ", share of the outputs"}
NO_LOSS = {"rise": 0.0, "kl": 0.0, "top1_agreement": 1.0, "relative_error": 0.0}  # of the dense model beside itself


def of_dense(points: Sequence[dict], y: str) -> float | None:
    """What the dense model has on an axis; None where no point says it."""
    if y not in QUALITIES:
        return scores.dense(points, y)
    return NO_LOSS.get(y, next((p["dense"][y] for p in points if known(p.get("dense") or {}, y)), None))
