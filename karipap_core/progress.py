"""How long work tells where it is: a callable `progress(stage, done, total, item="", message="")`."""

import json
import sys
import time
from collections.abc import Callable

Progress = Callable[..., None]


def silent(stage: str, done: int, total: int, item: str = "", message: str = "") -> None:
    """Says nothing."""


def json_lines(stream=None) -> Progress:
    """One JSON object a line on `stream` (default stderr): stage, done, total, item, seconds since start, message."""
    began = time.monotonic()

    def report(stage: str, done: int, total: int, item: str = "", message: str = "") -> None:
        line = {"stage": stage, "done": done, "total": total, "item": item}
        line |= {"seconds": round(time.monotonic() - began, 3), "message": message}
        print(json.dumps(line), file=stream or sys.stderr, flush=True)

    return report
