"""Trains a small model of another kind than the bundled one, so that figures can be had of a model nobody tuned for.

    python -m bench.small --text stories.json --out small [--type gpt_neox] [--steps 500]

Any causal type of transformers: 4 layers 128 wide, a byte-level BPE of 2,048 tokens learned from the text itself,
batches of 16 windows of 256 tokens, AdamW at 3e-3 with a cosine. Some six minutes on a busy core; the seed is fixed.
"""

import argparse
import math
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from karipap_core.text import read_text

TOKENS, WINDOW, BATCH, RATE = 2048, 256, 16, 3e-3
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}


def tokenizer_of(text: str) -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=TOKENS, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    made.train_from_iterator(text.splitlines(keepends=True), trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=end, bos_token=end, model_max_length=WINDOW)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", required=True, help="what it learns from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--type", default="gpt_neox")
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    torch.manual_seed(0)
    documents = read_text(options.text).documents
    tokenizer = tokenizer_of("\n".join(documents))
    ids = torch.tensor([i for each in documents for i in [0, *tokenizer(each)["input_ids"]]])
    shape = SHAPE | {"vocab_size": TOKENS, "max_position_embeddings": WINDOW, "bos_token_id": 0, "eos_token_id": 0}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(options.type, **shape), dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(ids):,} tokens")
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 100) * (0.55 + 0.45 * math.cos(math.pi * step / options.steps))
        at = torch.randint(len(ids) - WINDOW, (BATCH, 1)) + torch.arange(WINDOW)
        loss = model(input_ids=ids[at], labels=ids[at]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step + 1 == options.steps:
            print(f"step {step}: {loss.item():.3f}", flush=True)
    model.to(torch.bfloat16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)


if __name__ == "__main__":
    main()
