"""Shadow: the same prompts through the dense and the compressed model, side by side, before anybody is served."""

import hashlib
import json
from pathlib import Path

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.compressed.records import record, settings_of, source_of
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.reading import decode, parse_json, read_bytes
from karipap_core.terminal import shortened

MAX_NEW_TOKENS = 64


def read_prompts(path: str | Path) -> list[str]:
    """The prompts in a file: one a line, or (`.json`) a list of strings. Raises InputError that names the file."""
    source = f"Prompts {path}"
    data = read_bytes(path)
    if Path(path).suffix.lower() == ".json":
        prompts = parse_json(data, source)
        if not isinstance(prompts, list) or not all(isinstance(each, str) and each.strip() for each in prompts):
            raise InputError(f"{source} must be one prompt a line, or a JSON list of strings that are not empty.")
    else:  # U+2028 and the like may stand within a prompt: a line ends with "\n" alone
        prompts = [line.rstrip("\r") for line in decode(data, source).split("\n") if line.strip()]
    if not prompts:
        raise InputError(f"{source} hold no prompt.")
    _check_characters(prompts, source)
    return prompts


def _check_characters(prompts: list[str], source: str) -> None:
    """Raises InputError for what no prompt holds: NUL, and half a surrogate pair (a byte of the command line that is
    no UTF-8 becomes one)."""
    for number, prompt in enumerate(prompts, 1):
        if "\0" in prompt:
            raise InputError(f"{source}: number {number} holds a NUL character, which no text does.")
        try:
            prompt.encode()
        except UnicodeEncodeError:
            raise InputError(f"{source}: number {number} is no text in UTF-8.") from None


def shadow(
    folder: str | Path,
    prompts: list[str],
    against: str | Path | None = None,
    max_new_tokens: int = MAX_NEW_TOKENS,
    device: str = "auto",
    progress: Progress = silent,
) -> dict:
    """Both models go on from each prompt, greedily, in float32; one after the other in memory.

    Returns {"prompts": [{"prompt", "dense", "compressed" (what each wrote), "kl" (mean over the dense text's tokens of
    KL(dense ‖ compressed), nats), "token_kl" (of each), "agreement" (share of those tokens that the compressed model
    would have written too, given the same text before them), "diverges_at" (number of the first token at which the two
    texts differ, from 0; None: they do not), "shared" (the text before it), "tokens"}], "kl", "agreement" (means over
    all tokens), "diverged" (how many prompts), "max_new_tokens", "prompts_sha256", "device", "model", "against"}, and
    keeps it in the folder as shadow.json.
    Raises InputError for models that write no text, no prompts, and prompts that do not fit the models' window.
    """
    import torch

    from karipap_core.evaluation.fidelity import divergence
    from karipap_core.models.load import load_model
    from karipap_core.spectra.spectrum import pick_device

    settings_of(folder)
    source, device = source_of(folder, against), pick_device(device)
    if source.checkpoint is None:
        raise InputError(f"{source.why}.")
    if source.checkpoint.kind != "causal":
        raise InputError(f"{source.name} writes no text: an encoder is compared by `evaluate`.")
    if not prompts or max_new_tokens < 1:
        raise InputError("A shadow run needs a prompt (--prompts FILE or --prompt TEXT) and a token to write.")
    _check_characters(prompts, "Prompts")
    progress("dense", 0, len(prompts), "loading")
    model, tokenizer = load_model(source.checkpoint, device=device)
    starts = [_ids(tokenizer, prompt, model.config, max_new_tokens).to(device) for prompt in prompts]
    texts, references = [], []
    for number, start in enumerate(starts):
        texts.append(_write(model, start, max_new_tokens))
        references.append(_logits(model, start, texts[-1]))
        progress("dense", number + 1, len(prompts))
    del model
    progress("compressed", 0, len(prompts), "loading")
    model, _ = load_model(folder, device=device)
    rows, every_kl, every_same = [], [], []
    for number, (prompt, start, text, reference) in enumerate(zip(prompts, starts, texts, references, strict=True)):
        ours = _write(model, start, max_new_tokens)
        kl, same = divergence(reference, _logits(model, start, text))
        at = diverges_at(text.tolist(), ours.tolist())
        rows.append(
            {
                "prompt": prompt,
                "dense": _decode(tokenizer, text),
                "compressed": _decode(tokenizer, ours),
                "kl": kl.mean().item(),
                "agreement": same.double().mean().item(),
                "diverges_at": at,
                "shared": _decode(tokenizer, text[:at]),
                "tokens": len(text),
                "token_kl": kl.tolist(),
            }
        )
        every_kl.append(kl)
        every_same.append(same)
        progress("compressed", number + 1, len(prompts))
    result = {
        "prompts": rows,
        "kl": torch.cat(every_kl).mean().item(),
        "agreement": torch.cat(every_same).double().mean().item(),
        "diverged": sum(row["diverges_at"] is not None for row in rows),
        "max_new_tokens": max_new_tokens,
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "device": device,
        "model": str(folder),
        "against": source.name,
    }
    record(folder, "shadow", result, source.checkpoint.fingerprint)
    return result


def diverges_at(one: list[int], other: list[int]) -> int | None:
    """Number of the first token at which two texts differ (one may end there), None where they are the same."""
    for number, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return number
    return None if len(one) == len(other) else min(len(one), len(other))


def _ids(tokenizer, prompt: str, config, more: int):
    """Token ids (1, n) of a prompt."""
    from karipap_core.evaluation.tokens import encode
    from karipap_core.text import Text

    config = config.get_text_config()
    ids = encode(tokenizer, Text("prompt", (prompt,)), config.vocab_size)
    window = positions_of(config)
    if window is not None and len(ids) + more > window:
        raise InputError(
            f"Prompt {shortened(prompt)!r} has {len(ids)} tokens; with {more} more it does not fit the window of "
            f"{window}."
        )
    return ids[None]


def _write(model, ids, count: int):
    """What the model writes after `ids`, greedily: ids (n,), n ≤ count."""
    import torch

    with torch.no_grad():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return out[0, ids.shape[1] :]


def _logits(model, start, text):
    """The logits (n, vocabulary) that predict each token of `text` after `start`, on CPU."""
    import torch

    with torch.no_grad():
        out = model(input_ids=torch.cat([start, text[None]], dim=1)).logits
    return out[0, start.shape[1] - 1 : -1].float().cpu()


def _decode(tokenizer, ids) -> str:
    if tokenizer is None:
        return bytes(int(number) % 256 for number in ids).decode("utf-8", "replace")
    return tokenizer.decode(ids, skip_special_tokens=True)
