"""What an autopilot looks for, and what is held against it of a measured point."""

import math
from dataclasses import dataclass

from karipap_core.errors import InputError
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.tradeoffs.point import Point


@dataclass(frozen=True)
class Aim:
    """A line that a plan has to stay under with few bytes, or a size to fill with little loss: one of the two.

    max_rise : nats a token of rise in loss over the dense model (for an encoder the relative squared error of outputs).
    budget : fraction of the bytes of `scope`, 16 bits for every number that is not quantized.
    scope : what sizes are fractions of: "model", or "blocks" (the weights that can be compressed).

    Raises InputError for none of the two or both, and for a line that is not a positive number.
    """

    max_rise: float | None = None
    budget: float | None = None
    scope: str = "model"

    def __post_init__(self) -> None:
        if (self.max_rise is None) == (self.budget is None):
            raise InputError("Give one aim: a line (--max-rise or --max-perplexity) or a size (--budget-bytes).")
        if self.max_rise is not None and not 0 < self.max_rise < math.inf:
            raise InputError(f"A line of {self.max_rise} cannot be met or missed: give a rise above 0, such as 0.03.")


@dataclass(frozen=True)
class Criterion:
    """An aim for a model that predicts tokens (`causal`) or an encoder: which figures of a point it looks at."""

    aim: Aim
    causal: bool

    @property
    def line(self) -> float | None:
        return self.aim.max_rise

    @property
    def quality(self) -> str:
        """The figure of a point that says what was lost."""
        return "rise" if self.causal else "relative_error"

    @property
    def quality_words(self) -> str:
        return "rise in loss" if self.causal else "output error"

    @property
    def size_key(self) -> str:
        """The figure of a point that says how large the plan is."""
        return "bytes_kept" if self.aim.scope == "model" else "bytes_kept_blocks"

    def size(self, point: Point) -> float:
        """How large the plan of a point is, as a fraction of the bytes of the scope."""
        return point.figures[self.size_key]

    def lost(self, point: Point) -> float:
        """What the plan of a point lost."""
        return point.figures[self.quality]

    def value(self, point: Point) -> float:
        """What is held against the line: the upper end of the interval, or where there is none the figure itself. At a
        size the figure itself counts."""
        interval = uncertainty.rise_of(point.figures) if self.line is not None else None
        return interval.high if interval else self.lost(point)

    def holds(self, point: Point) -> bool:
        """Whether a point is under the line; always, where a size is what is asked for."""
        return self.line is None or self.value(point) <= self.line

    def met(self, point: Point) -> bool:
        """Whether the figure itself, not the end of its interval, is under the line, or the size within the budget."""
        if self.line is not None:
            return self.lost(point) <= self.line
        return self.aim.budget is not None and self.size(point) <= self.aim.budget + 1e-9

    def measured(self, point: Point) -> dict:
        """{"rise", "low", "high"} of a point, the interval None where there is none."""
        interval = uncertainty.rise_of(point.figures)
        return {"rise": self.lost(point), "low": interval and interval.low, "high": interval and interval.high}

    def line_entry(self) -> dict:
        """The "line" of the document."""
        if self.line is None:
            return {"bytes_kept": self.aim.budget, "scope": self.aim.scope}
        more = {"max_perplexity": math.expm1(self.line)} if self.causal else {}
        return {"max_rise": self.line, **more, "of": "loss, nats a token" if self.causal else "relative output error"}

    def sentence(self) -> str:
        """The "criterion" of the document: when a plan counts as good enough."""
        if self.line is None:
            return "Least measured rise at the size." if self.causal else "Least measured output error at the size."
        if self.causal:
            return "The upper end of the 95 % interval of the rise in loss (nats a token) is at or under the line."
        return "The relative output error is at or under the line; an encoder's has no interval."

    def against(self, point: Point) -> str:
        """On which side of the line a point is, in words; only where there is a line."""
        return f"{'Under' if self.holds(point) else 'Over'} the line of {figure(self.line or 0.0)}"


def figure(rise: float) -> str:
    """A rise in four decimals, or in two digits where it is too small for them."""
    return f"{rise:.4f}" if rise >= 1e-4 or rise == 0 else f"{rise:.1e}"
