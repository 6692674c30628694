"""How a text is cut and how much of it is scored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """The cut of a text that a loss is measured on.

    window : tokens that the model sees at once (None: its own window, at most `perplexity.DEFAULT_WINDOW`).
    stride : tokens that are scored in each window (None: half of it).
    max_tokens : tokens to score at most, in windows spread evenly over the text (None: all of them).
    """

    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None

    def to_json(self) -> dict[str, int | None]:
        """{"window", "stride", "max_tokens"}, as settings keep it."""
        return {"window": self.window, "stride": self.stride, "max_tokens": self.max_tokens}


WHOLE_TEXT = Scoring()
