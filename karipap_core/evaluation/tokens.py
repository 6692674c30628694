"""A text as the tokens of a model, with the bytes that each document stands for."""

from dataclasses import dataclass

import numpy as np
import torch

from karipap_core.text import Text


@dataclass(frozen=True)
class Tokens:
    """A text as one row of n token ids. Openers (the bos before each document) are context and never scored."""

    ids: torch.Tensor  # (n,) int64
    bytes: torch.Tensor  # (n,) int64: UTF-8 bytes of the text that each token stands for, 0 for openers
    scored: torch.Tensor  # (n,) bool
    tokenizer: str
    documents: torch.Tensor  # (n,) int64: the number of the document that each token is of


def tokenize(tokenizer, text: Text, vocabulary: int = 256, opened: bool | None = True) -> Tokens:
    """Documents one behind the other, each (if `opened`) behind the bos of a tokenizer that has one, no other specials.

    This is the project's own way. Papers and harnesses take whatever specials the tokenizer adds by itself, often none,
    and score them like any token: `opened` None does that (see `conventions`); their bytes are 0.

    Without a tokenizer (None) the text's UTF-8 bytes modulo `vocabulary` stand for tokens: enough to compare two
    models, though such a loss says nothing about text. A token's bytes are those between the end of the token before
    and its own end, so they add up to the document's; a tokenizer that gives no offsets has them spread evenly.
    """
    opener = tokenizer.bos_token_id if tokenizer is not None and opened else None
    ids, sizes, scored = [], [], []
    for document in text.documents:
        document_ids, document_sizes = _document(tokenizer, document, vocabulary, specials=opened is None)
        if opener is not None:
            ids.append(np.array([opener]))
            sizes.append(np.array([0]))
            scored.append(np.array([False]))
        ids.append(document_ids)
        sizes.append(document_sizes)
        scored.append(np.ones(len(document_ids), dtype=bool))
    name = "UTF-8 bytes (the model has no tokenizer)" if tokenizer is None else type(tokenizer).__name__
    join = [torch.from_numpy(np.concatenate(parts)) for parts in (ids, sizes, scored)]
    lengths = [len(part) for part in ids]
    each = 1 if opener is None else 2  # parts of a document: its opener, its tokens
    documents = np.repeat(np.arange(len(lengths)) // each, lengths)
    return Tokens(join[0].long(), join[1].long(), join[2], name, torch.from_numpy(documents).long())


def encode(tokenizer, text: Text, vocabulary: int = 256) -> torch.Tensor:
    """The token ids of `tokenize`, (n,) int64."""
    return tokenize(tokenizer, text, vocabulary).ids


def _document(tokenizer, document: str, vocabulary: int, specials: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Ids and bytes a token of one document, with the tokenizer's own special tokens if `specials`."""
    if tokenizer is None:
        raw = np.frombuffer(document.encode(), dtype=np.uint8)
        return raw.astype(np.int64) % vocabulary, np.ones(len(raw), dtype=np.int64)
    fast = bool(getattr(tokenizer, "is_fast", False))
    # verbose=False: the warning about sequences longer than the model is void, windows are cut later.
    coded = tokenizer(document, add_special_tokens=specials, return_offsets_mapping=fast, verbose=False)
    ids = np.array(coded["input_ids"], dtype=np.int64)
    points = np.frombuffer(document.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    byte_end = np.concatenate([[0], np.cumsum(widths)])
    if len(ids) == 0:
        return ids, ids
    if fast:
        ends = byte_end[np.array([end for _, end in coded["offset_mapping"]])]
        ends = np.maximum.accumulate(ends)
    else:
        ends = np.round(np.arange(1, len(ids) + 1) * byte_end[-1] / len(ids)).astype(np.int64)
    ends[-1] = byte_end[-1]
    return ids, np.diff(ends, prepend=0)
