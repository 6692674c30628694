"""The text that healing learns from: cut into rows to train on, and a part kept aside to validate on."""

from typing import TYPE_CHECKING

import torch

from karipap_core.errors import InputError
from karipap_core.evaluation.perplexity import Sample, check_window
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.tokens import encode
from karipap_core.healing.loop import Rows
from karipap_core.healing.settings import Settings
from karipap_core.text import Text

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

VALIDATION_SHARE, VALIDATION_TOKENS = 8, 8192  # one document in eight, and so many tokens of them at most
SIGNS_A_TOKEN = 6  # more than most tokenizers need: only so much of a long text is tokenized


def rows_and_sample(
    model: "PreTrainedModel", tokenizer, text: Text, settings: Settings, processes: int
) -> tuple[Rows, Sample]:
    """(rows to train on, sample to validate on), from different documents of the text.

    processes: among which each step's rows are dealt out. Raises InputError for a text that is too short for one
    window, a window that is longer than the model's, and a tokenizer of another model.
    """
    config = model.config.get_text_config()
    window = check_window(config, settings.window)
    parts = processes * settings.accumulate
    batch = -(-max(1, settings.tokens // window) // parts) * parts
    learnt, kept = split(text)
    enough = part_of(learnt, settings.steps * batch * window * SIGNS_A_TOKEN, settings.seed)
    ids = encode(tokenizer, enough, config.vocab_size)
    rows = Rows(ids, window, batch, settings.seed)
    if not rows.count:
        raise InputError(f"{text.name} has {len(ids)} tokens to learn from, one window needs {window + 1}: give more.")
    table = model.get_input_embeddings().weight
    if isinstance(table, torch.Tensor) and int(ids.max()) >= len(table):
        raise InputError(f"The tokenizer gives id {int(ids.max())}, which the model does not know: wrong tokenizer.")
    return rows, Sample.of(model, tokenizer, kept, Scoring(window, window, VALIDATION_TOKENS))


def split(text: Text) -> tuple[Text, Text]:
    """(to learn from, to validate on): every eighth document is kept aside; of a single document its last eighth."""
    name = f"{text.name}, one part in {VALIDATION_SHARE}"
    if len(text.documents) > 1:
        learnt = tuple(each for i, each in enumerate(text.documents) if i % VALIDATION_SHARE)
        return Text(text.name, learnt, text.path), Text(name, text.documents[::VALIDATION_SHARE], text.path)
    cut = len(text.documents[0]) * (VALIDATION_SHARE - 1) // VALIDATION_SHARE
    document = text.documents[0]
    return Text(text.name, (document[:cut],), text.path), Text(name, (document[cut:],), text.path)


def part_of(text: Text, signs: int, seed: int) -> Text:
    """Documents in a random order (fixed by the seed), as many as hold so many signs."""
    order = torch.randperm(len(text.documents), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen: list[str] = []
    count = 0
    for index in order:
        if count > signs:
            break
        chosen.append(text.documents[index])
        count += len(text.documents[index])
    return Text(text.name, tuple(chosen), text.path)
