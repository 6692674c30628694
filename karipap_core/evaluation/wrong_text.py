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
    span = f"{rise.mean:+.4f}, 95 % interval {rise.low:+.4f} to {rise.high:+.4f}"
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
