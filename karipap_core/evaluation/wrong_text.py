"""Whether a text is the wrong one for a model: what is measured on it then says nothing of what a compression lost."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from karipap_core.errors import InputError
from karipap_core.statistics.bootstrap import rise_of

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-6  # nats: a model that guesses blindly has ln(vocabulary) but for float32's rounding
LEAST_GAIN = 0.005  # nats: what other versions and machines make of the same weights on the same tokens is no gain
WRONG_SHARE = 0.75  # of a compressor's bits for the same bytes; see `unsuited`
BLIND_SHARE = 0.95  # of ln(vocabulary): a loss above is hardly better than guessing
WORSE = 2.5  # times the share of the model's best text
MOST_UNKNOWN = 0.9  # of a text's tokens may be the tokenizer's "unknown"


def text_warning(point: dict, vocabulary: int, healed: bool = False) -> str | None:
    """One sentence where figures that were measured on a text do not say what a compression lost; None where they may.

    point : the keys of `fidelity.measure`. vocabulary : tokens that the model chooses from. healed : the model was
    trained after it was compressed.

    The text is wrong for the model where the dense model (without one, this model) loses more than ln(vocabulary) nats
    a token, which is what guessing all tokens alike loses; and where the compressed model is better than the dense one
    by more than `LEAST_GAIN`, the whole 95 % interval of the paired bootstrap below that. A healed model may truly be
    better on text of the kind that it was trained on: then the sentence says that instead.
    """
    dense = point.get("dense")
    guessing = math.log(vocabulary)
    loss = (dense or point)["loss"]
    if loss > guessing + ROUNDING:
        return (
            "The text is wrong for this model, or the model is damaged: "
            f"{'its' if dense is None else 'the dense'} loss of {loss:.4g} nats a token is above ln {vocabulary} = "
            f"{guessing:.4g}, which guessing blindly has, so what is measured on it does not say what was lost."
        )
    rise = rise_of(point)
    if rise is None or rise.high >= -LEAST_GAIN:
        return None
    span = f"{rise.mean:+z.4f}, 95 % interval {rise.low:+z.4f} to {rise.high:+z.4f}"
    better = f"measurably better than the dense one ({span} nats a token)"
    if healed:
        return (
            f"The healed model predicts this text {better}: it has learnt text of this kind, so the rise does not say "
            "what was lost on others."
        )
    return (
        f"The text is wrong for this model: the compressed model predicts it {better}, and nothing is learnt by "
        "cutting weights, so the rise does not say what was lost."
    )


def share_of(found: dict) -> float:
    """Bits that a model needs for each bit of a compressor's, on the same bytes (`suits.suits`)."""
    return found["bits_per_byte"] / max(found["compressor_bits_per_byte"], 1e-9)


def unsuited(found: dict, others: Iterable[dict] = ()) -> str | None:
    """One sentence where a model was plainly not trained for a text; None where it may have been.

    found : what `suits.suits` gives. others : the same of the model's other texts.

    A compressor begins knowing nothing and learns from the few thousand bytes themselves. A model that was trained on
    such text knows it beforehand and needs a third of those bits (0.2 to 0.4 for models of 0.3 to 10 million
    parameters, less for larger ones); on text of another kind it needs as many, or more. `WRONG_SHARE` lies between,
    nearer to the wrong side: a language or field that the model half knows is no mistake. Such a text is told of only
    where the model has another one that it knows `WORSE` times better. A model whose own samples cost nearly
    ln(vocabulary) has learnt nothing.
    """
    name, bits, compressor = found["text"]["name"], found["bits_per_byte"], found["compressor_bits_per_byte"]
    blind = found["loss"] > BLIND_SHARE * found["guessing"]
    if found["generated"]:
        if not blind:
            return None
        return (
            f"The model's own samples cost it {found['loss']:.3g} nats a token, and guessing blindly costs "
            f"{found['guessing']:.3g}: it is untrained or damaged, and no text is the right one for it."
        )
    if blind or share_of(found) > WRONG_SHARE:
        hardly = " (hardly better than guessing blindly; it may also be untrained)" if blind else ""
        return (
            f"The model was plainly not trained for text such as {name}: it needs {bits:.2f} bits for each byte of "
            f"it{hardly}, a compressor that knows nothing beforehand {compressor:.2f}. What is measured on it says "
            "little of what a compression loses: take text of the model's own kind, or its own samples."
        )
    better = min((each for each in others if not each["generated"]), key=share_of, default=None)
    if better is not None and share_of(found) > WORSE * share_of(better):
        return (
            f"The model knows text such as {name} only in part: it needs {share_of(found):.0%} of a compressor's bits "
            f"for it, and {share_of(better):.0%} for {better['text']['name']}, which suits it better."
        )
    return None


def same_text(one: dict, other: dict) -> str | None:
    """One sentence where two texts, {"name" or "text", "sha256", "path"}, are one or overlap; None where they do not.
    one : what is measured on. other : what was calibrated on."""
    name = one.get("name") or one.get("text")
    if one["sha256"] == other["sha256"]:
        return (
            f"{name} is calibrated on and measured on: what is measured flatters. Take another text for one of the two."
        )
    if one.get("path") and one.get("path") == other.get("path"):
        return (
            f"{other.get('name') or other.get('text')}, which is calibrated on, comes from the file that is measured "
            "on: what is measured flatters. Take another file for one of the two."
        )
    return None


def warnings_of(points: Iterable[dict]) -> list[str]:
    """The warnings that points of one model on one text hold, as at most one sentence; [] where none does. Where they
    differ, it is that of the point that gains most."""
    points = list(points)
    warned = [point for point in points if point.get("text_warning")]
    if len({point["text_warning"] for point in warned}) < 2:
        return [point["text_warning"] for point in warned[:1]]
    most = min(warned, key=lambda point: point.get("rise") or 0.0)
    return [f"{len(warned)} of {len(points)} points, most of all {most['label']}: {most['text_warning']}"]


def short_text(name: str, tokens: int, window: int) -> str | None:
    """One sentence where a text has fewer tokens than one window takes; None where it has enough."""
    if tokens > window:
        return None
    return f"Text {name} has {tokens:,} tokens, which is less than one window of {window:,}: its figures are unsure."


def check_known(tokenizer, ids: "torch.Tensor", name: str) -> None:
    """Raises InputError where nearly all tokens of the text `name` are the one that stands for what a tokenizer does
    not know: whatever such a text says, the model does not see it. ids : the tokens of the text itself."""
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or not len(ids):
        return
    count = int((ids == unknown).sum())
    if count > MOST_UNKNOWN * len(ids):
        raise InputError(
            f"Text {name} is wrong for this model: {count:,} of its {len(ids):,} tokens are unknown to the tokenizer."
        )
