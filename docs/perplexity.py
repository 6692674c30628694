"""WikiText-2 perplexity as papers give it, with transformers and torch alone: a check of `evaluate --conventions`.

python docs/perplexity.py MODEL TEXT WINDOW, such as stories260K wiki.test.raw 512. MODEL: a dense folder or hub id (of
a compressed folder, what `densify` writes). TEXT: WikiText raw, whose lines are rows, or documents with <|endoftext|>
between. WINDOW: tokens; papers take 2048, or the model's positions where these are fewer.
"""

import math
import re
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, file, window = sys.argv[1], sys.argv[2], int(sys.argv[3])
text = Path(file).read_text("utf-8").strip("\n")
rows = [part.strip("\n") for part in text.split("<|endoftext|>") if part.strip()]
if re.match(r"\s* = [^=\n]+ = *\n", text):
    rows = [line + "\n" if line.strip() else "" for line in text.split("\n")]
ids = AutoTokenizer.from_pretrained(folder)("\n\n".join(rows), return_tensors="pt").input_ids
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
losses = []
for start in range(0, ids.shape[1] - window + 1, window):
    part = ids[:, start : start + window]
    with torch.no_grad():
        losses.append(model(input_ids=part, labels=part).loss.item())
print(f"perplexity {math.exp(sum(losses) / len(losses)):.6f}: {len(losses)} windows of {window}, {ids.shape[1]} tokens")
