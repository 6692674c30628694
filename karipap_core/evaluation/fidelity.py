"""How near a compressed model stays to the dense one: KL divergence of causal models, output error of encoders."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import Sample, check_window, losses_of, scored_logits
from karipap_core.evaluation.scoring import WHOLE_TEXT, Scoring
from karipap_core.evaluation.tokens import tokenize
from karipap_core.evaluation.wrong_text import check_known, short_text, text_warning
from karipap_core.models.running import states
from karipap_core.progress import Progress, silent
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.text import Text

ROWS_AT_ONCE = 2**24  # numbers of logits compared at once
LARGEST_OFF = 80.0  # nats up to which exp stays in float32


def divergence(dense: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """KL(dense ‖ other) = Σ p_dense (ln p_dense − ln p_other) in nats, and whether both rank the same token first.

    dense, other: logits (k, vocabulary), any float dtype. Returns (k,) float64 and (k,) bool on CPU. In float32 as
    Σ p (eᵈ − 1 − d), d = ln p_other − ln p_dense, whose terms are never negative and whose errors are of second order,
    as the divergence itself is; rows in chunks.
    """
    if dense.shape != other.shape:
        raise InputError(f"Logits of shapes {tuple(dense.shape)} and {tuple(other.shape)}: not the same vocabulary.")
    rows = max(1, ROWS_AT_ONCE // dense.shape[-1])
    kl, same = [], []
    for p, q in zip(dense.split(rows), other.to(dense.device).split(rows), strict=True):
        kl.append(_divergence(p, q).cpu())
        same.append((p.argmax(-1) == q.argmax(-1)).cpu())
    return torch.cat(kl), torch.cat(same)


def _divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    log_p = functional.log_softmax(p.float(), -1)
    off = functional.log_softmax(q.float(), -1).sub_(log_p)
    if off.max() < LARGEST_OFF:
        return (log_p.exp_() * (off.expm1() - off)).sum(-1, dtype=torch.float64)
    # What the dense model all but excludes the other one expects.
    log_p, log_q = functional.log_softmax(p.double(), -1), functional.log_softmax(q.double(), -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp(min=0.0)


def keep_logits(model, sample: Sample, progress: Progress = silent) -> list[torch.Tensor]:
    """The logits of `scored_logits`, kept in float32 on CPU to compare many models with one dense one."""
    kept, done, total = [], 0, len(sample.positions)
    for logits in scored_logits(model, sample):
        kept.append(logits.float().cpu())
        done += len(logits)
        progress("dense", done, total)
    return kept


def measure(
    model,
    sample: Sample,
    dense=None,
    progress: Progress = silent,
    stage: str = "evaluate",
    healed: bool = False,
    found: "Iterable[Scored] | None" = None,
) -> dict:
    """Loss of `model` on `sample`, and what it lost against `dense`.

    dense: a model, run beside it batch by batch; or its logits from `keep_logits`; or None. healed: whether `model` was
    trained after it was compressed. found: what `scored` gives of these, where workers of a cluster found it. Returns
    the keys of `Sample.summary`, "text_warning" (one sentence where these figures do not say what was lost, see
    `wrong_text`, else None), and with `dense` also "dense" (the same keys), "rise" (loss − dense loss, nats a token),
    "rise_error" (its standard error over windows, paired), "kl" (mean KL(dense ‖ model), nats a token),
    "top1_agreement" (share of tokens both put first), and the interval of the rise
    (`bootstrap.figures`).
    """
    positions = sample.positions
    total = len(positions)
    ours, theirs = torch.empty(total), torch.empty(total)
    kl, same = torch.empty(total, dtype=torch.float64), torch.empty(total, dtype=torch.bool)
    done = 0
    for batch in scored(model, sample, dense) if found is None else found:
        part = slice(done, done + len(batch[0]))
        ours[part] = batch[0]
        if batch[1] is not None:
            theirs[part], kl[part], same[part] = batch[1]
        done = part.stop
        progress(stage, done, total)
    result = sample.summary(ours)
    vocabulary = model.config.get_text_config().vocab_size
    short = short_text(sample.text.name, len(sample.tokens.ids), sample.window)
    if dense is None:
        return result | {"text_warning": text_warning(result, vocabulary) or short}
    counted = sample.tokens.scored[positions]
    result["dense"] = sample.summary(theirs)
    result["rise"] = result["loss"] - result["dense"]["loss"]
    rises = (ours - theirs)[counted].double()
    result["rise_error"] = _standard_error(rises, sample.stride)
    result |= uncertainty.figures(rises, sample.tokens.documents[positions][counted], sample.stride)
    result["kl"] = kl[counted].mean().item()
    result["top1_agreement"] = same[counted].double().mean().item()
    return result | {"text_warning": text_warning(result, vocabulary, healed) or short}


Scored = tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]


def scored(model, sample: Sample, dense=None) -> Iterator[Scored]:
    """For batch after batch of `sample.positions` (losses of `model`, and beside `dense` its losses, KL(dense ‖ model)
    and whether both put the same token first), in nats, on the CPU. dense: as for `measure`."""
    targets, done = sample.tokens.ids[sample.positions], 0
    for reference, logits in zip(_reference(dense, sample), scored_logits(model, sample), strict=False):
        hits = targets[done : done + len(logits)]
        done += len(logits)
        ours = losses_of(logits, hits)
        if reference is None:
            yield ours, None
            continue
        reference = reference.to(logits.device)
        yield ours, (losses_of(reference, hits), *divergence(reference, logits))


def _reference(dense, sample: Sample) -> Iterator[torch.Tensor | None] | Iterable[torch.Tensor]:
    if dense is None:
        return iter(lambda: None, 0)  # None for ever
    return dense if isinstance(dense, list) else scored_logits(dense, sample)


def _standard_error(differences: torch.Tensor, block: int) -> float | None:
    """Standard error of the mean from blocks of neighbouring tokens, which are not independent; None for one block."""
    means = torch.stack([part.mean() for part in differences.split(block) if len(part) == block] or [torch.zeros(())])
    return None if len(means) < 2 else (means.std() / math.sqrt(len(means))).item()


@dataclass(frozen=True)
class EncoderSample:
    """Rows of token ids for an encoder: windows that do not overlap, wrapped in cls and sep where these exist."""

    text: Text
    rows: tuple[torch.Tensor, ...]
    tokens: int  # of the text, cls and sep not counted
    window: int

    @classmethod
    def of(cls, model, tokenizer, text: Text, scoring: Scoring = WHOLE_TEXT) -> "EncoderSample":
        """Cut `text` for `model`; window as in `perplexity.check_window`, max_tokens spread as in `perplexity.cut`. A
        stride says nothing here: windows do not overlap."""
        config = model.config.get_text_config()
        window, max_tokens = check_window(config, scoring.window), scoring.max_tokens
        ids = tokenize(tokenizer, text, config.vocab_size, opened=False).ids
        check_known(tokenizer, ids, text.name)
        opener = [getattr(tokenizer, "cls_token_id", None)]
        closer = [getattr(tokenizer, "sep_token_id", None)]
        opener, closer = ([i for i in special if i is not None] for special in (opener, closer))
        length = max(1, window - len(opener) - len(closer))
        chunks = [chunk for chunk in ids.split(length) if len(chunk) == length] or [ids]
        if max_tokens is not None:
            wanted = min(len(chunks), max(1, max_tokens // length))
            chunks = [chunks[i * len(chunks) // wanted] for i in range(wanted)]
        rows = tuple(torch.tensor([opener + chunk.tolist() + closer]) for chunk in chunks)
        return cls(text, rows, sum(map(len, chunks)), window)


@torch.no_grad()
def hidden_states(model, sample: EncoderSample) -> Iterator[torch.Tensor]:
    """The last hidden state (tokens, hidden) of row after row, float64 on CPU. InputError where it is not finite."""
    device = next(model.parameters()).device
    for row in sample.rows:
        found = states(model, row.to(device))[0].double().cpu()
        if not torch.isfinite(found).all():
            raise InputError("The model's output is not finite (NaN or Inf): load it in float32 or check it.")
        yield found


def output_fidelity(model, sample: EncoderSample, dense, progress: Progress = silent) -> dict:
    """Encoders: {"relative_error", "cosine", "pooled_cosine", "tokens"} of the last hidden states h.

    dense: a model, or the list of its `hidden_states`. relative_error = Σ‖h − h_dense‖² / Σ‖h_dense‖² over tokens;
    cosine: mean over tokens of cos(h, h_dense); pooled_cosine: the same for the mean of a window's states, as sentence
    embeddings use them.
    """
    reference = dense if isinstance(dense, list) else hidden_states(dense, sample)
    squared = norm = 0.0
    cosine, pooled = [], []
    for i, (theirs, ours) in enumerate(zip(reference, hidden_states(model, sample), strict=True)):
        squared += (ours - theirs).square().sum().item()
        norm += theirs.square().sum().item()
        cosine.append(functional.cosine_similarity(ours, theirs, dim=-1))
        pooled.append(functional.cosine_similarity(ours.mean(0), theirs.mean(0), dim=-1).item())
        progress("evaluate", i + 1, len(sample.rows))
    return {
        "relative_error": squared / norm,
        "cosine": torch.cat(cosine).mean().item(),
        "pooled_cosine": float(np.mean(pooled)),
        "tokens": sample.tokens,
    }
