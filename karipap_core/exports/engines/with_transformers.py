"""Runs an export in transformers, with compressed-tensors and PEFT (see the package's text)."""

import json
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM


def load(folder: Path, dtype: str):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    if not (folder / "adapter").is_dir():
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, folder / "adapter").eval()


@torch.no_grad()
def logprobs(model, window: list[int]) -> list[float]:
    ids = torch.tensor([window])
    found = model(ids).logits[0, :-1].float().log_softmax(-1)
    return found.gather(1, ids[0, 1:, None])[:, 0].tolist()


@torch.no_grad()
def write(model, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
    """(tokens, seconds for the prompt and the first token, seconds for each of the others)."""
    began = time.perf_counter()
    out = model(torch.tensor([prompt]), use_cache=True)
    tokens = [out.logits[0, -1].argmax().item()]
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        out = model(torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        tokens.append(out.logits[0, -1].argmax().item())
    return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)


def main(folder: str, asked_file: str, answer_file: str) -> None:
    asked = json.loads(Path(asked_file).read_text())
    torch.set_num_threads(asked["threads"])
    model = load(Path(folder), asked["dtype"])
    packages = ("transformers", "compressed-tensors", "peft", "torch")
    answer: dict = {
        "engine": ", ".join(f"{name} {metadata.version(name)}" for name in packages),
        "logprobs": [logprobs(model, window) for window in asked["windows"]],
        "written": [],
        "prefill_seconds": None,
        "decode_seconds": None,
    }
    if asked["new_tokens"]:
        runs = [write(model, asked["prompt"], asked["new_tokens"]) for _ in range(1 + asked["repeats"])][1:]
        answer |= {
            "written": runs[0][0],
            "prefill_seconds": statistics.median(run[1] for run in runs),
            "decode_seconds": statistics.median(run[2] for run in runs),
        }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
