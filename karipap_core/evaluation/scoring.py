"""How a text is cut and how much of it is scored."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Scoring:
    """The cut of a text that a loss is measured on; None is the default of whoever measures.

    window : tokens that the model sees at once (default: its own window, at most `perplexity.DEFAULT_WINDOW`).
    stride : tokens that are scored in each window (default: half of it).
    max_tokens : tokens to score at most (default: all of them).
    """

    window: int | None = None
    stride: int | None = None
    max_tokens: int | None = None
