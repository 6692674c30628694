"""Plans that were measured after the calibration, beside what it predicted: rows of its file, and what they tell."""

from typing import NotRequired, TypedDict

LEAST_RISE = 0.01  # nats: smaller ones are within the noise of a few thousand tokens, where no standard error is known
LEAST_ERRORS = 4.0  # standard errors: a smaller rise says nothing of the ratio of predicted to measured
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


def off_by(predicted: float, measured: float) -> float:
    """|predicted / measured − 1|"""
    return abs(predicted / measured - 1)


def log_factor(rows: list[tuple[str | None, float]], group: str | None) -> float:
    """ln of the factor of a network: the mean over its own rows (network, ln(measured / curve)) and the mean of all,
    which counts as `COMMON_WEIGHT` rows."""
    everyone = sum(ratio for _, ratio in rows) / len(rows)
    own = [ratio for mine, ratio in rows if mine == group and group is not None]
    return (sum(own) + COMMON_WEIGHT * everyone) / (len(own) + COMMON_WEIGHT)
