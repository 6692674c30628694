"""ONNX Runtime, with numpy alone beside it (see the package's text)."""

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Engine:
    """A graph with its cache."""

    name = f"onnxruntime {ort.__version__}"

    def __init__(self, folder: Path, asked: dict) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = asked["threads"]
        self.session = ort.InferenceSession(
            folder / "model.onnx", sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.inputs = {each.name: each.shape for each in self.session.get_inputs()}
        self.outputs = [each.name for each in self.session.get_outputs()]

    def step(self, tokens: list[int], cache: dict | None = None) -> tuple[np.ndarray, dict]:
        """(logits (tokens, vocabulary), the cache behind them)."""
        if cache is None:
            shapes = {name: shape for name, shape in self.inputs.items() if name.startswith("past_key_values.")}
            cache = {
                name: ort.OrtValue.ortvalue_from_numpy(np.zeros((1, shape[1], 0, shape[3]), np.float32))
                for name, shape in shapes.items()
            }
        seen = next(iter(cache.values())).shape()[2]
        arrays = {
            "input_ids": np.array([tokens], np.int64),
            "attention_mask": np.ones((1, seen + len(tokens)), np.int64),
            "position_ids": np.arange(seen, seen + len(tokens), dtype=np.int64)[None],
        }
        feeds = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items() if name in self.inputs}
        logits, *present = self.session.run_with_ort_values(self.outputs, feeds | cache)
        names = [name.replace("present.", "past_key_values.") for name in self.outputs[1:]]
        return logits.numpy()[0], dict(zip(names, present, strict=True))

    def logprobs(self, window: list[int]) -> list[float]:
        scores = self.step(window)[0][:-1].astype(np.float64)
        scores -= scores.max(-1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
        return scores[np.arange(len(scores)), window[1:]].tolist()

    def write(self, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
        began = time.perf_counter()
        logits, cache = self.step(prompt)
        tokens = [int(logits[-1].argmax())]
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            logits, cache = self.step(tokens[-1:], cache)
            tokens.append(int(logits[-1].argmax()))
        return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)
