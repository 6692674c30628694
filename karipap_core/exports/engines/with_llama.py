"""llama.cpp, through llama-cpp-python (see the package's text).

Token ids are given as they are: nothing is put before them. The cache of keys and values is in the dtype that is asked
for, where llama.cpp's own default is float16.
"""

import ctypes
import time
from importlib import metadata
from pathlib import Path

import llama_cpp
import numpy as np

CACHE = {"float32": 0, "float16": 1, "bfloat16": 30}  # ggml_type


class Engine:
    """The model is opened for what is asked: with the logits of every token, or of the last alone."""

    name = f"llama-cpp-python {metadata.version('llama-cpp-python')}"

    def __init__(self, folder: Path, asked: dict) -> None:
        self.folder, self.asked = folder, asked
        self.models: dict[bool, llama_cpp.Llama] = {}  # the one that is open

    def opened(self, every: bool) -> llama_cpp.Llama:
        if every not in self.models:
            self.models.clear()  # the one before goes first
            self.models[every] = self.load(every)
        self.models[every].reset()
        return self.models[every]

    def load(self, every: bool) -> llama_cpp.Llama:
        asked, adapter = self.asked, self.folder / "adapter.gguf"
        length = max(len(asked["windows"][0]) if asked["windows"] else 1, len(asked["prompt"]) + asked["new_tokens"])
        return llama_cpp.Llama(
            str(self.folder / "model.gguf"),
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

    def logprobs(self, window: list[int]) -> list[float]:
        model = self.opened(every=True)
        model.eval(window)
        scores = model.scores[: len(window) - 1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        return scores[np.arange(len(window) - 1), window[1:]].tolist()

    def write(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
        model = self.opened(every=False)
        began = time.perf_counter()
        model.eval(prompt)
        tokens = [last(model)]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            model.eval(tokens[-1:])
            tokens.append(last(model))
        return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)


def last(model: llama_cpp.Llama) -> int:
    """The likeliest token behind those that the model has seen."""
    numbers = llama_cpp.llama_get_logits_ith(model._ctx.ctx, -1)
    return int(np.ctypeslib.as_array(ctypes.cast(numbers, ctypes.POINTER(ctypes.c_float)), (model.n_vocab(),)).argmax())
