"""Runs an export in llama.cpp, through llama-cpp-python (see the package's text).

Token ids are given as they are: nothing is put before them. The cache of keys and values is in the dtype that is asked
for, where llama.cpp's own default is float16.
"""

import ctypes
import json
import statistics
import sys
import time
from importlib import metadata
from pathlib import Path

import llama_cpp
import numpy as np

CACHE = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml_type


def load(folder: Path, asked: dict, every: bool) -> llama_cpp.Llama:
    """every : whether logits of all tokens are kept, or of the last alone."""
    length = max(len(asked["windows"][0]) if asked["windows"] else 1, len(asked["prompt"]) + asked["new_tokens"])
    adapter = folder / "adapter.gguf"
    return llama_cpp.Llama(
        str(folder / "model.gguf"),
        lora_path=str(adapter) if adapter.is_file() else None,
        n_ctx=length,
        n_batch=length,
        n_ubatch=length,
        n_threads=asked["threads"],
        n_threads_batch=asked["threads"],
        type_k=CACHE[asked["dtype"]],
        type_v=CACHE[asked["dtype"]],
        logits_all=every,
        verbose=False,
    )


def logprobs(model: llama_cpp.Llama, window: list[int]) -> list[float]:
    model.reset()
    model.eval(window)
    scores = model.scores[: len(window) - 1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores[np.arange(len(window) - 1), window[1:]].tolist()


def last(model: llama_cpp.Llama) -> int:
    """The likeliest token behind those that the model has seen."""
    numbers = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return int(np.ctypeslib.as_array(ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float)), (model.n_vocab(),)).argmax())


def write(model: llama_cpp.Llama, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
    """(tokens, seconds for the prompt and the first token, seconds for each of the others)."""
    model.reset()
    began = time.perf_counter()
    model.eval(prompt)
    tokens = [last(model)]
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        model.eval(tokens[-1:])
        tokens.append(last(model))
    return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)


def main(folder: str, asked_file: str, answer_file: str) -> None:
    asked = json.loads(Path(asked_file).read_text())
    model = load(Path(folder), asked, True)
    answer: dict = {
        "engine": f"llama-cpp-python {metadata.version('llama-cpp-python')}",
        "logprobs": [logprobs(model, window) for window in asked["windows"]],
        "written": [],
        "prefill_seconds": None,
        "decode_seconds": None,
    }
    del model
    if asked["new_tokens"]:
        model = load(Path(folder), asked, False)
        runs = [write(model, asked["prompt"], asked["new_tokens"]) for _ in range(1 + asked["repeats"])][1:]
        answer |= {
            "written": runs[0][0],
            "prefill_seconds": statistics.median(run[1] for run in runs),
            "decode_seconds": statistics.median(run[2] for run in runs),
        }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
