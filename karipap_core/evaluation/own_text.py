"""A text that a model writes itself: for a model whose training text nobody has at hand.

Figures on it compare compressions of one model with one another. As absolute figures they flatter: a model predicts
what it wrote itself as well as it predicts anything.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.text import TEXT_FORMAT, Text, read_text
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:
    import torch

TOKENS = 16384  # of the model's own samples: what a sweep scores, and enough for moments of some thousand columns
ROWS = 32  # written at once


def own_text(
    checkpoint: Checkpoint,
    seed: int,
    tokens: int | None = None,
    device: str = "auto",
    workspace: Workspace | None = None,
    progress: Progress = silent,
) -> Text:
    """About `tokens` (default `TOKENS`) tokens that a causal model writes at temperature 1; from the workspace where
    they are there.

    Each document begins with the tokenizer's bos (without one its eos, without that a token drawn at random) and ends
    with its eos or at the end of the model's window (at most 512). seed : of what is drawn; different seeds give
    different texts. Raises InputError for encoders and for models without a tokenizer.
    """
    if checkpoint.kind != "causal":
        raise InputError(f"{checkpoint.name} is no model that writes text: only causal language models have samples.")
    tokens = tokens or TOKENS
    folder = (workspace or Workspace()).model_dir(checkpoint.key) / "samples"
    file = folder / f"seed{seed}-{tokens}.json"
    if kept_json(file, "text") is None:
        with only_writer(file, "samples", waiting=progress):
            if kept_json(file, "text") is None:
                documents = _written(checkpoint, seed, tokens, device, progress)
                name = f"{checkpoint.name}'s own samples (generated), seed {seed}"
                document = {"format": TEXT_FORMAT, "version": 1, "name": name, "generated": True}
                keep_json(file, document | {"documents": documents})
    return read_text(file)


def _written(checkpoint: Checkpoint, seed: int, tokens: int, device: str, progress: Progress) -> list[str]:
    from karipap_core.models.load import load_model
    from karipap_core.spectra.spectrum import pick_device

    progress("samples", 0, tokens, checkpoint.name, "loading")
    model, tokenizer = load_model(checkpoint, device=pick_device(device))
    if tokenizer is None:
        raise InputError(f"{checkpoint.name} has no tokenizer: what it writes are numbers of tokens and no text.")
    documents: list[str] = []
    done = 0
    for ids in rows(model, tokenizer, seed):
        done += len(ids)
        if text := str(tokenizer.decode(ids, skip_special_tokens=True)).replace("\0", "").strip("\n"):
            documents.append(text)
        progress("samples", min(done, tokens), tokens, checkpoint.name)
        if done >= tokens:
            break
        if done > 100 and not documents:
            raise InputError(f"{checkpoint.name} writes nothing but special tokens: it has no samples to measure on.")
    return documents


def rows(model, tokenizer, seed: int) -> "Iterator[list[int]]":
    """Token ids drawn from the model's own probabilities, one document after the other, without end."""
    import torch

    from karipap_core.evaluation.perplexity import default_window

    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(seed)
    known = min(len(tokenizer), config.vocab_size)  # rows of the table beyond are padding
    opener = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    while True:
        if opener is None:
            start = torch.randint(known, (ROWS, 1), generator=generator)
        else:
            start = torch.full((ROWS, 1), opener)
        drawn = _draw(model, start, default_window(config), known, tokenizer.eos_token_id, generator)
        for row in drawn.tolist():
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            if end:
                yield row[:end]


def _draw(model, start: "torch.Tensor", length: int, known: int, eos: int | None, generator) -> "torch.Tensor":
    """(rows, at most `length`) tokens behind `start`, each drawn from softmax of the logits of the first `known`."""
    import torch

    device = next(model.parameters()).device
    every, last, cache = start, start, None
    ended = torch.zeros(len(start), dtype=torch.bool)
    drawn: list[torch.Tensor] = []
    with torch.no_grad():
        while len(drawn) < length and not ended.all():
            more: dict[str, Any] = {"past_key_values": cache} if cache is not None else {}
            found = model(input_ids=last.to(device), use_cache=True, **more)
            cache = getattr(found, "past_key_values", None)
            chances = found.logits[:, -1, :known].float().softmax(-1).cpu()
            token = torch.multinomial(chances, 1, generator=generator)
            drawn.append(token)
            ended |= token[:, 0] == eos if eos is not None else False
            every = torch.cat([every, token], 1)
            last = token if cache is not None else every  # a model of another memory is given all of it again
    return torch.cat(drawn, 1)
