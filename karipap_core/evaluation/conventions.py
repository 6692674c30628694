"""Perplexity as papers and harnesses give it, each convention by its name, of a compressed model and the dense one.

The project's own loss (`perplexity.Sample`) opens each document by the bos and scores a part of the text in windows
that overlap; two papers can mean two more things by "perplexity of WikiText-2". Here the whole text is measured:

non-overlapping  GPTQ (arXiv 2210.17323), SVD-LLM (arXiv 2403.07378) and most tables: the rows of the text joined by
    two newlines, tokenized once with the tokenizer's own special tokens, cut into windows of 2048 tokens. A window's
    first token is fed and not scored, the last partial window is dropped. They weigh each window's mean loss by 2048
    and divide by 2048 times the windows, which is the mean over windows.
sliding  Hugging Face's "Perplexity of fixed-length models": the same tokens in windows that start `stride` apart, each
    token but the first scored once, with at least window − stride tokens before it. Hugging Face's own loop weighs
    windows by their predictions less one, ours every token alike: they differ in the fifth digit.
rolling  lm-eval's `wikitext` and every task of its kind `loglikelihood_rolling`: document after document (an article of
    WikiText, detokenized), each behind the prefix token (bos, else eos), in windows of all the model's positions that
    do not overlap but for the last; with a tokenizer that adds a bos the harness scores that too, and so do we. Words
    and bytes are those of the document before it is detokenized.
"""

import hashlib
import math
import re
from dataclasses import dataclass

import numpy as np
import torch

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import Sample, Window, check_window, cut, losses
from karipap_core.evaluation.tokens import Tokens, tokenize
from karipap_core.evaluation.wikitext import is_wikitext, joined_rows, wikitext_pages
from karipap_core.progress import Progress, silent
from karipap_core.statistics.bootstrap import paired_bootstrap
from karipap_core.text import Text

CONVENTIONS = ("non-overlapping", "sliding", "rolling")
PAPERS_WINDOW, PAPERS_STRIDE = 2048, 512


@dataclass(frozen=True)
class Cutting:
    """A text cut by a convention. `units`: (n,) of each of `sample.positions` the window or document it is of."""

    sample: Sample
    text_bytes: int  # of the scored text: what losses are divided by
    words: int  # likewise
    units: np.ndarray
    over: str  # "windows" or "documents"
    sha256: str  # of the UTF-8 bytes that were tokenized
    notes: tuple[str, ...] = ()


def measure_conventions(
    model, tokenizer, text: Text, dense=None, names=CONVENTIONS, window=None, stride=None, progress: Progress = silent
) -> dict[str, dict]:
    """The perplexity of `model`, and of `dense` beside it, on the whole of `text` by each of `names`.

    window: default 2048 or the model's positions if fewer ("rolling": all its positions, as the harness); stride of
    "sliding": default 512, or half a window that is shorter. Losses in float32, summed in float64. Returns {name:
    {"loss" (nats a token), "perplexity" = e^loss, "bits_per_byte" = Σ loss / (ln 2 · bytes), "byte_perplexity" =
    2^bits_per_byte, "word_perplexity" = e^(Σ loss / words), "tokens", "text_bytes" and "words" (scored), "text_tokens",
    "window", "stride", "windows", "over", "units", "text": {"name", "sha256"}, "notes", "dense": {the first five} or
    None, "rise", "rise_low", "rise_high"}}; rise = loss − dense loss, its paired interval over windows or documents,
    so the perplexities' ratio is e^rise. A convention that cannot be taken here holds {"missing": why} alone. Raises
    InputError for an unknown name, and for texts and windows that do not fit.
    """
    check_names(names)
    found = {}
    for name in names:
        try:
            cutting = _CUT[name](model, tokenizer, text, window, stride)
        except ImportError:
            found[name] = {"missing": "lm-eval, which detokenizes WikiText, is not installed: pip install lm-eval."}
            continue
        found[name] = _measured(name, cutting, text, model, dense, progress)
    return found


def check_names(names, causal: bool = True) -> None:
    """InputError for a name that is no convention, and for any name where the model is not `causal`."""
    for name in names:
        if name not in CONVENTIONS:
            raise InputError(f"Convention {name!r} is not one of {', '.join(CONVENTIONS)}.")
        if not causal:
            raise InputError("An encoder predicts no next token, so it has no perplexity: leave out --conventions.")


def _measured(name: str, cutting: Cutting, text: Text, model, dense, progress: Progress) -> dict:
    sample = cutting.sample
    both = 1 if dense is None else 2
    ours = losses(model, sample, progress, f"perplexity, {name} (1 of {both})").double()
    result = {
        **_figures(ours, cutting),
        "tokens": len(ours),
        "text_bytes": cutting.text_bytes,
        "words": cutting.words,
        "text_tokens": len(sample.tokens.ids),
        "window": sample.window,
        "stride": sample.stride,
        "windows": len(sample.windows),
        "over": cutting.over,
        "units": len(np.unique(cutting.units)),
        "text": {"name": text.name, "sha256": cutting.sha256},
        "notes": list(cutting.notes),
        "dense": None,
    }
    if dense is None:
        return result
    theirs = losses(dense, sample, progress, f"perplexity, {name} (2 of 2)").double()
    result["dense"] = _figures(theirs, cutting)
    result["rise"] = result["loss"] - result["dense"]["loss"]
    _, unit = np.unique(cutting.units, return_inverse=True)
    interval = paired_bootstrap(np.bincount(unit, weights=(ours - theirs).numpy()), np.bincount(unit))
    result["rise_low"] = interval and interval.low
    result["rise_high"] = interval and interval.high
    return result


def _figures(losses: torch.Tensor, cutting: Cutting) -> dict:
    total = losses.sum().item()
    bits = total / math.log(2) / max(cutting.text_bytes, 1)
    exponents = {
        "perplexity": total / len(losses),
        "byte_perplexity": bits * math.log(2),
        "word_perplexity": total / max(cutting.words, 1),
    }
    capped = {key: math.exp(min(exponent, 700.0)) for key, exponent in exponents.items()}
    return {"loss": total / len(losses), "bits_per_byte": bits, **capped}


# One function a convention.


def non_overlapping(model, tokenizer, text: Text, window=None, stride=None) -> Cutting:
    """Window i is tokens i·W … (i + 1)·W − 1 of the joined text and scores all but the first of them."""
    tokens, joined, notes = _joined(tokenizer, text, model)
    window, more = _window(model, window)
    n = len(tokens.ids)
    if n < window:
        more += (f"The text is {n} tokens, shorter than a window of {window}: it was measured as one window of {n}.",)
        window = n
    windows = tuple(Window(start, window - 1, 0) for start in range(0, n - window + 1, window))
    sample = _sample(model, text, tokens, windows, window, window)
    return _of_joined(sample, joined, np.repeat(np.arange(len(windows)), window - 1), notes + more)


def sliding(model, tokenizer, text: Text, window=None, stride=None) -> Cutting:
    """Windows of W tokens, `stride` apart; each scores what the one before did not, and the first all but one."""
    tokens, joined, notes = _joined(tokenizer, text, model)
    window, more = _window(model, window)
    stride = min(PAPERS_STRIDE, max(1, window // 2)) if stride is None else stride
    if not 1 <= stride < window:
        raise InputError(f"Window {window} and stride {stride}: sliding windows need 1 ≤ stride < window.")
    # `cut` predicts the token behind each input: windows of W − 1 inputs are windows of W tokens.
    windows = tuple(cut(len(tokens.ids), window - 1, stride))
    sample = _sample(model, text, tokens, windows, window, stride)
    return _of_joined(
        sample, joined, np.repeat(np.arange(len(windows)), [w.length - w.skip for w in windows]), notes + more
    )


def rolling(model, tokenizer, text: Text, window=None, stride=None) -> Cutting:
    """lm_eval's `get_rolling_token_windows` with context_len 1, over documents. ImportError without lm_eval where the
    text is WikiText, whose articles it detokenizes."""
    pages = documents = wikitext_pages(text) if is_wikitext(text) else text.documents
    if is_wikitext(text):
        from lm_eval.tasks.wikitext.preprocess_wikitext import wikitext_detokenizer

        documents = tuple(wikitext_detokenizer({"page": page}) for page in pages)
    config = model.config.get_text_config()
    window = check_window(config, window or _positions(config))
    prefix = [] if tokenizer is None else [i for i in (tokenizer.bos_token_id, tokenizer.eos_token_id) if i is not None]
    parts, windows, units, start = [], [], [], 0
    for number, document in enumerate(documents):
        ids = tokenize(tokenizer, Text("", (document,)), config.vocab_size, opened=None).ids
        ids = torch.cat([torch.tensor(prefix[:1], dtype=torch.long), ids])
        for w in _rolling_windows(len(ids) - 1, window):
            windows.append(Window(start + w.start, w.length, w.skip))
            units.append(np.full(w.length - w.skip, number))
        parts.append(ids)
        start += len(ids)
    ids = torch.cat(parts)
    tokens = Tokens(ids, torch.zeros_like(ids), torch.ones(len(ids), dtype=torch.bool), "", torch.zeros_like(ids))
    sample = _sample(model, text, tokens, tuple(windows), window, window)
    n_bytes = sum(len(page.encode()) for page in pages)
    words = sum(len(re.split(r"\s+", page)) for page in pages)  # as lm_eval counts: a blank end is a word too
    sha256 = Text("", documents).sha256
    notes = () if prefix else ("The tokenizer has neither bos nor eos: each document's first token is not scored.",)
    return Cutting(sample, n_bytes, words, np.concatenate(units), "documents", sha256, notes)


def _rolling_windows(n: int, window: int) -> list[Window]:
    """Windows that predict tokens 1 … n of a document whose token 0 is the prefix; the last reaches back to be full."""
    if n < 1:
        return []
    windows = [Window(0, min(window, n), 0)]
    done = windows[0].length
    while done < n:
        scored = min(window, n - done)
        windows.append(Window(done + scored - window, window, window - scored))
        done += scored
    return windows


_CUT = {"non-overlapping": non_overlapping, "sliding": sliding, "rolling": rolling}


# What they share.


def _joined(tokenizer, text: Text, model) -> tuple[Tokens, str, tuple[str, ...]]:
    """The joined rows as tokens, the string itself, and what there is to say of it."""
    joined = joined_rows(text)
    tokens = tokenize(tokenizer, Text(text.name, (joined,)), model.config.get_text_config().vocab_size, opened=None)
    if len(tokens.ids) < 2:
        raise InputError(f"Text {text.name} has {len(tokens.ids)} token: at least 2 are needed to predict one.")
    missing = is_wikitext(text) and all(line.strip() for line in text.documents[0].split("\n"))
    note = "This copy of WikiText lacks the blank lines between headings and paragraphs that papers' copy has: figures "
    note += "on it come near theirs and are not theirs."
    return tokens, joined, (note,) if missing else ()


def _sample(model, text: Text, tokens: Tokens, windows: tuple[Window, ...], window: int, stride: int) -> Sample:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokens.ids) and int(tokens.ids.max()) >= rows:
        raise InputError(f"The tokenizer gives id {int(tokens.ids.max())} but the model has {rows} embeddings.")
    if not windows:
        raise InputError(f"Text {text.name} leaves no token to score: give a longer one.")
    return Sample(text, tokens, windows, window, stride)


def _of_joined(sample: Sample, joined: str, units: np.ndarray, notes: tuple[str, ...]) -> Cutting:
    """Bytes of the scored tokens, and the words (runs of what is no white space) that begin in one of them."""
    scored = sample.positions.numpy()
    sizes = sample.tokens.bytes.numpy()
    ends = np.cumsum(sizes)
    characters = np.array([match.start() for match in re.finditer(r"\S+", joined)], dtype=np.int64)
    points = np.frombuffer(joined.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    starts = (np.cumsum(widths) - widths)[characters]
    counted = np.zeros(len(sizes), dtype=bool)
    counted[scored] = True
    words = int(counted[np.searchsorted(ends, starts, side="right")].sum())
    sha256 = hashlib.sha256(joined.encode()).hexdigest()
    return Cutting(sample, int(sizes[scored].sum()), words, units, "windows", sha256, notes)


def _positions(config) -> int:
    return positions_of(config) or PAPERS_WINDOW


def _window(model, window: int | None) -> tuple[int, tuple[str, ...]]:
    """The window that was asked for, else the papers' or the model's positions where these are fewer, which is said."""
    config = model.config.get_text_config()
    if window is not None:
        if window < 2:
            raise InputError(f"Window {window}: a window needs 2 tokens at least, one to see and one to predict.")
        return check_window(config, window), ()
    limit = _positions(config)
    if limit >= PAPERS_WINDOW:
        return PAPERS_WINDOW, ()
    return limit, (f"Papers take windows of {PAPERS_WINDOW} tokens; this model has {limit} positions.",)
