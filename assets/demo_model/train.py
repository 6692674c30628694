"""Train Karipap's demo model: a small Llama of Python source, on the standard library of the Python that runs this.

    python assets/demo_model/train.py --out assets/demo_model          # about an hour on 2 cores
    python assets/demo_model/train.py --out /tmp/try --tokens 1e6       # a few minutes, to try the script

Nothing is downloaded. The training state is kept in OUT/training and the same command goes on where it stopped.
Writes config.json, generation_config.json, model.safetensors (bf16), the tokenizer and README.md (the model card).
"""

import argparse
import json
import lzma
import math
import os
import platform
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from karipap_core.text import END_OF_TEXT, standard_library  # noqa: E402

VOCABULARY, WINDOW, BATCH = 4096, 512, 8
PEAK_RATE, LAST_RATE, WARMUP, WEIGHT_DECAY = 2e-3, 1e-4, 150, 0.1
STATE_EVERY = 100  # steps

# Wider than this text needs (the feed-forward is 4x, not Llama's 8/3) so that there is something to compress.
CONFIG = LlamaConfig(
    vocab_size=VOCABULARY,
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    max_position_embeddings=WINDOW,
    tie_word_embeddings=True,
    bos_token_id=0,
    eos_token_id=0,
)


def train_tokenizer(documents) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of `VOCABULARY` entries; runs of spaces (indentation) stay together."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END_OF_TEXT], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer, documents) -> torch.Tensor:
    """All documents as one row of token ids, each opened by the end-of-text token."""
    ids = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(documents)):
        ids += [tokenizer.bos_token_id, *encoding.ids]
    return torch.tensor(ids)


def batches(tokens: torch.Tensor, seed: int):
    """Endless batches (BATCH, WINDOW + 1): every epoch cuts at another offset and shuffles the windows."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        offset = int(torch.randint(WINDOW, (1,), generator=generator))
        starts = torch.arange(offset, len(tokens) - WINDOW, WINDOW)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for chunk in starts.split(BATCH):
            if len(chunk) == BATCH:
                yield torch.stack([tokens[start : start + WINDOW + 1] for start in chunk])


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then cosine from PEAK_RATE to LAST_RATE."""
    if step < WARMUP:
        return PEAK_RATE * (step + 1) / WARMUP
    progress = (step - WARMUP) / max(1, steps - WARMUP)
    return LAST_RATE + (PEAK_RATE - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))


@torch.no_grad()
def bits_per_byte(model, tokens: torch.Tensor, n_bytes: int) -> tuple[float, float]:
    """(loss in nats a token, bits per byte): every token predicted once, with at least half a window before it."""
    model.eval()
    total, counted, stride = 0.0, 0, WINDOW // 2
    for start in range(0, len(tokens) - 1, stride):
        window = tokens[start : start + WINDOW][None]
        skip = 0 if start == 0 else WINDOW - stride  # the first part was scored by the window before
        if window.shape[1] <= skip + 1:
            break
        logits = model(input_ids=window).logits[0, :-1].float()
        losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
        fresh = losses[max(skip - 1, 0) :]
        total, counted = total + fresh.sum().item(), counted + len(fresh)
    model.train()
    return total / counted, total / math.log(2) / n_bytes


def measured(model, tokenizer, documents) -> tuple[float, float, float]:
    """(loss, bits per byte, bits per byte of `xz -9e`) of documents one behind the other."""
    data = "".join(documents).encode()
    loss, bits = bits_per_byte(model, encode(tokenizer, documents).to(model.device), len(data))
    return loss, bits, 8 * len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) / len(data)


def _row(entry: dict) -> str:
    part = entry.get("heldout_part_bits_per_byte")
    bits = "" if part is None else f"{part:.4f}"
    return f"| {entry['step']} | {entry['tokens']:,} | {entry['loss']:.4f} | {bits} |\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--tokens", type=float, default=7.5e6, help="training tokens in all (default 7.5e6)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    work = options.out / "training"
    work.mkdir(parents=True, exist_ok=True)

    train, heldout = standard_library("train"), standard_library("heldout")
    if not (options.out / "tokenizer.json").exists():
        train_tokenizer(train.documents).save_pretrained(options.out)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.out)
    tokens, held = encode(tokenizer, train.documents), encode(tokenizer, heldout.documents)
    held_bytes = "".join(heldout.documents).encode()
    steps = int(options.tokens) // (BATCH * WINDOW)
    print(f"{len(tokens):,} training tokens, {len(held):,} held out ({len(held_bytes):,} bytes), {steps} steps")

    model = LlamaForCausalLM(CONFIG).to(device)
    decayed = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=PEAK_RATE,
        betas=(0.9, 0.95),
        fused=True,
    )
    log, first, seconds = [], 0, 0.0
    state_file = work / "state.pt"  # our own file, read with weights_only
    if state_file.exists():
        state = torch.load(state_file, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        log, first, seconds = state["log"], state["step"], state["seconds"]
    stream = batches(tokens, options.seed)
    for _ in range(first):
        next(stream)

    running, began = [], time.monotonic() - seconds
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        batch = next(stream).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        if (step + 1) % STATE_EVERY == 0 or step + 1 == steps:
            entry = {"step": step + 1, "tokens": (step + 1) * BATCH * WINDOW, "loss": sum(running) / len(running)}
            if (step + 1) % (5 * STATE_EVERY) == 0:
                part = held[:32768].to(device)
                sample = tokenizer.decode(part[1:], skip_special_tokens=True)
                entry["heldout_part_bits_per_byte"] = bits_per_byte(model, part, len(sample.encode()))[1]
            log.append(entry)
            running = []
            seconds = time.monotonic() - began
            print(json.dumps(entry | {"seconds": round(seconds)}), flush=True)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"log": log, "step": step + 1, "seconds": seconds}, state_file.with_suffix(".tmp"))
            state_file.with_suffix(".tmp").replace(state_file)

    model = model.to(torch.bfloat16)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(options.out)
    loss, bits, xz = measured(model.float(), tokenizer, heldout.documents)
    # Tables of character codes are easier than programs: the card says what each part of the text gives.
    tables = [document for document in heldout.documents if "codecs.charmap_build" in document]
    programs = [document for document in heldout.documents if "codecs.charmap_build" not in document]
    parts = {name: measured(model, tokenizer, part) for name, part in (("programs", programs), ("tables", tables))}
    parameters = sum(p.numel() for p in model.parameters())
    options.out.joinpath("README.md").write_text(
        f"""---
license: apache-2.0
language: code
library_name: transformers
---
# Karipap demo model: a small Llama of Python source

{parameters:,} parameters (tied embeddings counted once), {CONFIG.num_hidden_layers} layers, hidden
{CONFIG.hidden_size}, feed-forward {CONFIG.intermediate_size}, {CONFIG.num_attention_heads} heads,
{CONFIG.num_key_value_heads} KV heads, byte-level BPE of {VOCABULARY:,}, windows of {WINDOW} tokens, bf16.

Made by `assets/demo_model/train.py` from the standard library of Python {platform.python_version()}, `train` side of
`karipap_core/text.py` (split by module name); it has seen neither the `calibration` nor the `heldout` modules.
The tokenizer was trained on the `train` side too.
The weights are under this repository's Apache License 2.0. The text is not in this folder: it is Python's, under the
PSF licence, and is read from the Python that runs.

| held-out modules | {len(heldout.documents)} files, {len(held_bytes):,} bytes, {len(held):,} tokens |
|---|---|
| text, SHA-256 | `{heldout.sha256}` |
| loss | {loss:.4f} nats a token (window {WINDOW}, stride {WINDOW // 2}, bf16 weights, float32 arithmetic) |
| **bits per byte** | **{bits:.4f}** |
| `xz -9e` on the same bytes | {xz:.4f} |
| of these, programs ({len(programs)} files) | {parts["programs"][1]:.4f} (`xz -9e` {parts["programs"][2]:.4f}) |
| tables of character codes ({len(tables)} files) | {parts["tables"][1]:.4f} (`xz -9e` {parts["tables"][2]:.4f}) |

Training: {steps * BATCH * WINDOW:,} tokens ({steps * BATCH * WINDOW / len(tokens):.1f} epochs) in {seconds / 60:.0f}
minutes on {options.threads} CPU thread(s), AdamW {PEAK_RATE:g} to {LAST_RATE:g} cosine, weight decay {WEIGHT_DECAY:g},
seed {options.seed}, torch {torch.__version__}.

| step | tokens | training loss | bits per byte, first 32,768 held-out tokens |
|---|---|---|---|
"""
        + "".join(_row(entry) for entry in log)
    )
    print(f"held-out {loss:.4f} nats a token, {bits:.4f} bits per byte; xz -9e {xz:.4f}")


if __name__ == "__main__":
    main()
