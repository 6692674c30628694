"""How well a causal model predicts a text: sliding windows in which every token is scored exactly once."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import WHOLE_TEXT, Scoring
from karipap_core.evaluation.tokens import Tokens, tokenize
from karipap_core.evaluation.wrong_text import check_known
from karipap_core.models.running import logits
from karipap_core.progress import Progress, silent
from karipap_core.text import Text

DEFAULT_WINDOW = 512
LOGITS_AT_ONCE = 2**25  # numbers in one batch's logits: 128 MiB in float32
MAX_BATCH = 16


@dataclass(frozen=True)
class Window:
    """Inputs ids[start : start + length]; the predictions behind the first `skip` of them are scored."""

    start: int
    length: int
    skip: int


@dataclass(frozen=True)
class Sample:
    """A text cut for one model: what is fed in, and which predictions count."""

    text: Text
    tokens: Tokens
    windows: tuple[Window, ...]
    window: int
    stride: int

    @classmethod
    def of(cls, model, tokenizer, text: Text, scoring: Scoring = WHOLE_TEXT) -> "Sample":
        """Cut `text` for `model`: see `check_window` and `cut`.

        Raises InputError for a window that the model has no positions for, a text of fewer than two tokens or of tokens
        that the tokenizer nearly all does not know, and a tokenizer that is not this model's.
        """
        config = model.config.get_text_config()
        window = check_window(config, scoring.window)
        stride = max(1, window // 2) if scoring.stride is None else scoring.stride
        tokens = tokenize(tokenizer, text, config.vocab_size)
        if len(tokens.ids) < 2:
            raise InputError(f"Text {text.name} has {len(tokens.ids)} token: at least 2 are needed to predict one.")
        check_known(tokenizer, tokens.ids[tokens.scored], text.name)
        rows = model.get_input_embeddings().weight.shape[0]
        if int(tokens.ids.max()) >= rows:
            raise InputError(f"The tokenizer gives id {int(tokens.ids.max())} but the model has {rows} embeddings.")
        return cls(text, tokens, tuple(cut(len(tokens.ids), window, stride, scoring.max_tokens)), window, stride)

    @property
    def positions(self) -> torch.Tensor:
        """Indices into `tokens.ids` of the predicted tokens, openers among them, in the order they are scored."""
        return torch.cat([torch.arange(w.start + w.skip, w.start + w.length) for w in self.windows]) + 1

    def summary(self, losses: torch.Tensor) -> dict:
        """{"loss", "perplexity", "bits_per_byte", "tokens", "text_bytes"} of the losses at `positions`, save openers.

        loss = mean of −ln p(token | context) in nats a token; perplexity = e^loss; bits_per_byte = Σ loss / (ln 2 ·
        bytes), which does not depend on the tokenizer.
        """
        positions = self.positions
        counted = self.tokens.scored[positions]
        if not counted.any():
            raise InputError(f"Text {self.text.name} leaves no token to score: give a longer one.")
        kept = losses[counted].double()
        n_bytes = int(self.tokens.bytes[positions][counted].sum())
        loss = kept.mean().item()
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": kept.sum().item() / math.log(2) / max(n_bytes, 1),
            "tokens": len(kept),
            "text_bytes": n_bytes,
        }


def default_window(config) -> int:
    """min(the model's positions, 512): long enough for most of what context gives, and the same on every machine."""
    return min(positions_of(config) or DEFAULT_WINDOW, DEFAULT_WINDOW)


def check_window(config, window: int | None) -> int:
    """`window`, or the default; InputError where the model has fewer positions."""
    if window is None:
        return default_window(config)
    limit = positions_of(config)
    if limit is not None and limit < window:
        raise InputError(f"Window {window} is longer than the {limit} positions of the model: take at most {limit}.")
    return window


def cut(n: int, window: int, stride: int, max_tokens: int | None = None) -> list[Window]:
    """Windows over n tokens in which every token but the first is predicted exactly once.

    A window feeds `window` tokens and predicts the one behind each. Windows start `stride` apart and score only what
    the one before did not: stride = window does not overlap (a window's first prediction sees one token), a smaller
    stride gives every prediction at least window − stride + 1 tokens of context. With `max_tokens`, so many windows
    that at most that many tokens are scored (one window at least), spread evenly over the text.
    """
    if window < 1 or not 1 <= stride <= window:
        raise InputError(f"Window {window} and stride {stride}: need window ≥ 1 and 1 ≤ stride ≤ window.")
    if max_tokens is not None and max_tokens < 1:
        raise InputError(f"max_tokens is {max_tokens}: give at least 1.")
    windows = [Window(0, min(window, n - 1), 0)]
    while windows[-1].start + windows[-1].length < n - 1:
        start = windows[-1].start + stride
        windows.append(Window(start, min(window, n - 1 - start), window - stride))
    if max_tokens is None:
        return windows
    if max_tokens < windows[0].length:
        return [Window(0, max_tokens, 0)]
    chosen = 1 + (max_tokens - windows[0].length) // stride
    if chosen >= len(windows):
        return windows
    return [windows[i * len(windows) // chosen] for i in range(chosen)]


def batches(sample: Sample, vocabulary: int) -> Iterator[list[Window]]:
    """Consecutive windows of one shape, at most `MAX_BATCH` and so few that their logits stay small."""
    group: list[Window] = []
    for window in sample.windows:
        size = min(MAX_BATCH, max(1, LOGITS_AT_ONCE // (window.length * vocabulary)))
        if group and (len(group) >= size or (window.length, window.skip) != (group[0].length, group[0].skip)):
            yield group
            group = []
        group.append(window)
    if group:
        yield group


@torch.no_grad()
def scored_logits(model, sample: Sample) -> Iterator[torch.Tensor]:
    """For batch after batch the logits (k, vocabulary) behind the next k of `sample.positions`, on model's device."""
    device = next(parameter.device for parameter in model.parameters() if not parameter.is_meta)
    was_training = model.training
    model.eval()
    try:
        for group in batches(sample, model.config.get_text_config().vocab_size):
            ids = torch.stack([sample.tokens.ids[w.start : w.start + w.length] for w in group])
            found = logits(model, ids.to(device))[:, group[0].skip :]
            yield found.reshape(-1, found.shape[-1])
    finally:
        model.train(was_training)


def losses_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """−ln softmax(logits)[target], (k,) float32 on CPU, rows in chunks. InputError where one is not finite."""
    rows = max(1, LOGITS_AT_ONCE // logits.shape[-1])
    parts = zip(logits.split(rows), targets.to(logits.device).split(rows), strict=True)
    losses = torch.cat([functional.cross_entropy(part.float(), hit, reduction="none").cpu() for part, hit in parts])
    if not torch.isfinite(losses).all():
        raise InputError("The model's loss is not finite (NaN or Inf in its output): load it in float32 or check it.")
    return losses


def losses(model, sample: Sample, progress: Progress = silent, stage: str = "perplexity") -> torch.Tensor:
    """Loss in nats at every one of `sample.positions`, (n,) float32 on CPU."""
    targets = sample.tokens.ids[sample.positions]
    result = torch.empty(len(targets))
    done = 0
    for found in scored_logits(model, sample):
        stop = done + len(found)
        result[done:stop] = losses_of(found, targets[done:stop])
        done = stop
        progress(stage, done, len(targets))
    return result


def perplexity(model, tokenizer, text: Text, scoring: Scoring = WHOLE_TEXT, progress: Progress = silent) -> dict:
    """Loss of `model` on `text`: {"loss", "perplexity", "bits_per_byte", "tokens", "text_bytes", "window", "stride"}.

    Runs where the model is. Units as in `Sample.summary`, windows as in `cut`, tokens as in `tokenize`.
    """
    sample = Sample.of(model, tokenizer, text, scoring)
    return {**sample.summary(losses(model, sample, progress)), "window": sample.window, "stride": sample.stride}
