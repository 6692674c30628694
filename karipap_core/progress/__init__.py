"""How long work tells where it is: a callable `progress(stage, done, total, item="", message="")`.

Stages may nest: one that begins while another is under way is a part of that one's present item. Whoever counts a stage
ends it by `done == total`, so that the next one is not taken for a part of it. What the calls say of the work as a
whole, its fraction done and its time left, is for a `Meter` to find (meter.py).
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence

from karipap_core.progress.meter import Meter

Progress = Callable[..., None]


def silent(stage: str, done: int, total: int, item: str = "", message: str = "") -> None:
    """Says nothing."""


def json_lines(meter: Meter | None = None, stream=None) -> Progress:
    """One JSON object a line on `stream` (default stderr): stage, done, total, item, seconds since start, message; and
    `overall`, the fraction of the whole work that is done, and `left`, the seconds to its end, null until known."""
    return _Lines(meter or Meter(), stream)


class _Lines:
    def __init__(self, meter: Meter, stream) -> None:
        self.meter, self.stream = meter, stream

    def __call__(self, stage: str, done: int, total: int, item: str = "", message: str = "") -> None:
        self.meter(stage, done, total)
        overall, left = self.meter.overall, self.meter.left
        line = {"stage": stage, "done": done, "total": total, "item": item}
        line |= {"seconds": round(self.meter.seconds, 3), "message": message}
        line |= {"overall": overall and round(overall, 4), "left": None if left is None else round(left, 1)}
        print(json.dumps(line), file=self.stream or sys.stderr, flush=True)


def costs(progress: Progress, stage: str, of_items: Sequence[float]) -> None:
    """Tells, before a stage begins, what its items cost beside one another, where that is not about the same."""
    if (meter := getattr(progress, "meter", None)) is not None:
        meter.costs[stage] = [*of_items]


def announce(progress: Progress, shares: Mapping[str, float]) -> None:
    """Tells which stages are to come, in their order, and what they cost beside one another."""
    if (meter := getattr(progress, "meter", None)) is not None:
        meter.announce(shares)
