"""Scores of benchmark tasks that points carry, as axes of the trade-off: which of them compare, and how sure they are.

A point holds `point["tasks"][name]`, as the harness names its metrics: {"acc", "acc_stderr", …, "metric" (the main
one), "higher_is_better", "chance", "items", "correct", "difference" {"mean", "low", "high", "items"}, "shots",
"limit", "version", "task_hash"}; the dense model's are in `point["dense"]["tasks"]`, without "difference".
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known

NORMAL = 1.959964  # standard errors of a 95 % interval
LOSSES = ("rise", "loss", "perplexity", "bits_per_byte")  # figures that rise and fall together on the same tokens
NOT_SCORES = {"chance", "items", "shots", "limit", "version", "samples"}
LESS_IS_BETTER = ("perplexity", "bits_per_byte", "ter", "brier_score", "loss")


def key_of(task: str, metric: str) -> str:
    """What a score is called as an axis: "python_continuation: acc"."""
    return f"{task}: {metric}"


def of(point: dict, key: str) -> tuple[dict, str] | None:
    """(what the point holds of the task, metric) of an axis, None where it holds no such number."""
    task, _, metric = key.rpartition(": ")
    found = (point.get("tasks") or {}).get(task)
    return (found, metric) if isinstance(found, dict) and metric and known(found, metric) else None


def error_of(task: dict, metric: str) -> float | None:
    """The harness's standard error of a metric: of "acc" under "acc_stderr", of "exact_match,strict-match" under
    "exact_match_stderr,strict-match"."""
    name, comma, chosen = metric.partition(",")
    key = f"{name}_stderr{comma}{chosen}"
    return task[key] if known(task, key) else None


def more_is_better(task: dict, metric: str) -> bool:
    """Of the main metric the harness says so; the others go by their names."""
    if metric == task.get("metric") and isinstance(task.get("higher_is_better"), bool):
        return task["higher_is_better"]
    return not metric.split(",")[0].endswith(LESS_IS_BETTER)


def keys(points: Iterable[dict]) -> dict[str, bool]:
    """Axis → whether more is better, of every score that a point holds: main metrics of the tasks first."""
    found: dict[str, bool] = {}
    others: dict[str, bool] = {}
    for point in points:
        for task, held in sorted((point.get("tasks") or {}).items()):
            if not isinstance(held, dict):
                continue
            for metric in held:
                if metric in NOT_SCORES or metric.split(",")[0].endswith("_stderr"):
                    continue
                if isinstance(held[metric], bool) or not known(held, metric):
                    continue
                place = found if metric == held.get("metric") else others
                place.setdefault(key_of(task, metric), more_is_better(held, metric))
    return found | {key: more for key, more in others.items() if key not in found}


def settings_of(task: dict) -> tuple:
    """What must be equal for two scores of a task to compare: its items, their number, the shots."""
    return task.get("task_hash"), task.get("limit"), task.get("shots")


def comparable(points: Sequence[dict], key: str) -> list[dict]:
    """The points whose score of this axis was measured in one way: the way that most were; of equally many, the
    latest."""
    return [point for point, _, _ in _comparable(points, key)]


def _comparable(points: Sequence[dict], key: str) -> list[tuple[dict, dict, str]]:
    """`comparable` with what `of` gives: (point, what it holds of the task, metric)."""
    holding = [(point, *held) for point in points if (held := of(point, key)) is not None]
    counts = Counter(settings_of(task) for _, task, _ in holding)
    if not counts:
        return []
    last = {settings_of(task): number for number, (_, task, _) in enumerate(holding)}
    chosen = max(counts, key=lambda settings: (counts[settings], last[settings]))
    return [held for held in holding if settings_of(held[1]) == chosen]


def with_score(points: Sequence[dict], key: str) -> list[dict]:
    """The points with the score of this axis under its own key, as if it were a figure like any other; those whose
    score does not compare lack it."""
    score = {id(point): task[metric] for point, task, metric in _comparable(points, key)}
    return [point | {key: score[id(point)]} if id(point) in score else point for point in points]


def dense(points: Sequence[dict], key: str) -> float | None:
    """The dense model's score of an axis, measured as the comparable points were."""
    for point, task, _ in _comparable(points, key):
        theirs = of(point.get("dense") or {}, key)
        if theirs and settings_of(theirs[0]) == settings_of(task):
            return theirs[0][theirs[1]]
    return None


def chance(points: Sequence[dict], key: str) -> float | None:
    """The score of guessing, where the task has choices and the axis is an accuracy."""
    for _, task, metric in _comparable(points, key):
        if metric.startswith("acc") and known(task, "chance"):
            return task["chance"]
    return None


def interval(point: dict, key: str) -> tuple[float, float] | None:
    """95 % interval of a score: the dense model's own plus the paired difference, where items were kept; else the score
    and 1.96 standard errors."""
    held = of(point, key)
    if held is None:
        return None
    task, metric = held
    paired, theirs = task.get("difference") if metric == task.get("metric") else None, dense([point], key)
    if theirs is not None and isinstance(paired, dict) and known(paired, "low") and known(paired, "high"):
        return theirs + paired["low"], theirs + paired["high"]
    if (error := error_of(task, metric)) is None:
        return None
    reach = NORMAL * error
    return task[metric] - reach, task[metric] + reach


def to_dense(point: dict, key: str) -> uncertainty.Interval | None:
    """The paired difference of a score to the dense model's, None where it was not kept."""
    held = of(point, key)
    paired = held[0].get("difference") if held and held[1] == held[0].get("metric") else None
    if not isinstance(paired, dict) or not all(known(paired, name) for name in ("mean", "low", "high")):
        return None
    return uncertainty.Interval(paired["mean"], paired["low"], paired["high"], paired.get("items") or 0)


def difference(a: dict, b: dict, key: str) -> uncertainty.Interval | None:
    """The interval of b's score minus a's: paired over the items where both kept them, else as if independent. None
    where the two do not compare or neither is known."""
    one, two = of(a, key), of(b, key)
    if one is None or two is None or settings_of(one[0]) != settings_of(two[0]):
        return None
    (ours, metric), (theirs, _) = two, one
    right, their_right = ours.get("correct"), theirs.get("correct")
    if metric == ours.get("metric") and right and their_right and len(right) == len(their_right):
        return uncertainty.paired_bootstrap(np.subtract(right, their_right))
    error, their_error = error_of(ours, metric), error_of(theirs, metric)
    if error is None or their_error is None:
        return None
    mean, reach = ours[metric] - theirs[metric], NORMAL * math.hypot(their_error, error)
    return uncertainty.Interval(mean, mean - reach, mean + reach, ours.get("items") or 0)
