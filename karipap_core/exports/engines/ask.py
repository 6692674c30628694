"""Asks an engine what ASKED.json says (see the package's text)."""

import importlib
import json
import statistics
import sys
from pathlib import Path


def main(engine_file: str, folder: str, asked_file: str, answer_file: str) -> None:
    asked = json.loads(Path(asked_file).read_text())
    sys.path.insert(0, str(Path(engine_file).parent))
    engine = importlib.import_module(Path(engine_file).stem).Engine(Path(folder), asked)
    answer: dict = {
        "engine": engine.name,
        "logprobs": [engine.logprobs(window) for window in asked["windows"]],
        "written": [],
        "prefill_seconds": None,
        "decode_seconds": None,
    }
    if asked["new_tokens"]:
        runs = [engine.write(asked["prompt"], asked["new_tokens"]) for _ in range(1 + asked["repeats"])][1:]
        answer |= {
            "written": runs[0][0],
            "prefill_seconds": statistics.median(run[1] for run in runs),
            "decode_seconds": statistics.median(run[2] for run in runs),
        }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
