"""Runs an export in ONNX Runtime, with numpy alone beside it (see the package's text)."""

import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort


class Model:
    """A graph with its cache."""

    def __init__(self, folder: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
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


def logprobs(model: Model, window: list[int]) -> list[float]:
    scores = model.step(window)[0][:-1].astype(np.float64)
    scores -= scores.max(-1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(-1, keepdims=True))
    return scores[np.arange(len(scores)), window[1:]].tolist()


def write(model: Model, prompt: list[int], new_tokens: int) -> tuple[list[int], float, float]:
    """(tokens, seconds for the prompt and the first token, seconds for each of the others)."""
    began = time.perf_counter()
    logits, cache = model.step(prompt)
    tokens = [int(logits[-1].argmax())]
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        logits, cache = model.step(tokens[-1:], cache)
        tokens.append(int(logits[-1].argmax()))
    return tokens, first - began, (time.perf_counter() - first) / max(1, new_tokens - 1)


def main(folder: str, asked_file: str, answer_file: str) -> None:
    asked = json.loads(Path(asked_file).read_text())
    model = Model(Path(folder), asked["threads"])
    answer: dict = {
        "engine": f"onnxruntime {ort.__version__}",
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
