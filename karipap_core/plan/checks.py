"""Plans that were measured after the calibration, beside what it predicted: rows of its file, and what they tell."""

import math
from collections.abc import Sequence
from typing import NotRequired, TypedDict

LEAST_RISE = 0.01  # nats: smaller ones are within the noise of a few thousand tokens, where no standard error is known
LEAST_ERRORS = 4.0  # standard errors: a smaller rise says nothing of the ratio of predicted to measured
BEYOND = "beyond what was checked"  # in place of a number that `beyond_checked` says means nothing
COMMON_WEIGHT = 1.0  # checks that the mean over all networks counts for in the factor of one


class WholePlan(TypedDict):
    """A plan that was measured on the calibration text. sum: of its predicted damages; rise: in loss; divergence: from
    the dense model; kept_blocks: see `document.Ledger`; network: of the planner's choice."""

    sum: float
    rise: float
    divergence: NotRequired[float]
    kept_blocks: NotRequired[float]
    network: NotRequired[str]


class Check(TypedDict):
    """A plan that was evaluated after the curve had predicted its rise. Files of version 1 have no more than the first
    three; network: `group_of` the plan; error: standard error of the measured rise; fit: the version that predicted."""

    predicted: float
    measured: float
    text: str
    id: NotRequired[str]
    sum: NotRequired[float]
    network: NotRequired[str]
    error: NotRequired[float]
    dense_loss: NotRequired[float]
    fit: NotRequired[int]


class LeftOut(TypedDict):
    """A prediction that was made without the plan it is of. text: None for the calibration's own; the rest as in
    `Check`."""

    id: str | None
    network: str | None
    text: str | None
    error: float | None
    sum: float | None
    measured: float
    predicted: float


def above_noise(measured: float, error: float | None) -> bool:
    """Whether a measured rise is so far above its standard error that its ratio to a prediction means anything."""
    return measured > (LEAST_ERRORS * error if error else LEAST_RISE)


def beyond_checked(
    points: Sequence[tuple[float, float]], total: float, loss: float | None = None, vocabulary: int | None = None
) -> bool:
    """Whether a prediction is past all that was measured, so that its number means nothing.

    points : (Σ damages, rise) of the measured whole plans, rising. total : the plan's own Σ damages: beyond the largest
    measured one the curve is only carried on. loss : predicted, in nats a token: more than ln(vocabulary) is worse than
    giving every token the same probability, which no model that was cut keeps to.

    >>> beyond_checked([(0.1, 0.2), (1.0, 0.9)], 0.5), beyond_checked([(0.1, 0.2), (1.0, 0.9)], 1.5)
    (False, True)
    >>> beyond_checked([(1.0, 9.0)], 0.9, loss=9.0, vocabulary=512)  # ln 512 = 6.24
    True
    """
    if total <= 0:
        return False
    # Damages travel to the browser as float32, so the measured plan itself is given that much room.
    if not points or total > points[-1][0] * (1 + 1e-6):
        return True
    return loss is not None and vocabulary is not None and loss > math.log(vocabulary)


def off_by(predicted: float, measured: float) -> float:
    """|predicted / measured − 1|"""
    return abs(predicted / measured - 1)


def log_factor(rows: list[tuple[str | None, float]], group: str | None) -> float:
    """ln of the factor of a network: the mean over its own rows (network, ln(measured / curve)) and the mean of all,
    which counts as `COMMON_WEIGHT` rows."""
    everyone = sum(ratio for _, ratio in rows) / len(rows)
    own = [ratio for mine, ratio in rows if mine == group and group is not None]
    return (sum(own) + COMMON_WEIGHT * everyone) / (len(own) + COMMON_WEIGHT)


def rise_of(predicted: dict | None) -> float | None:
    """The predicted rise in loss, from a plan's `predicted` fields; None without one, or past what was checked."""
    return None if not predicted or predicted.get("beyond") else predicted.get("rise")


def rise_in_words(predicted: dict | None, digits: int = 4) -> str:
    """The same for people: "0.0127", `BEYOND`, or "" where nothing was predicted.

    >>> [rise_in_words(made) for made in ({"rise": 0.01268}, {"rise": 9.0, "beyond": True}, None)]
    ['0.0127', 'beyond what was checked', '']
    """
    if predicted and predicted.get("beyond"):
        return BEYOND
    rise = rise_of(predicted)
    return "" if rise is None else f"{rise:z.{digits}f}"
