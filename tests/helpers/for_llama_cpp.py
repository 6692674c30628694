"""Small models that llama.cpp has, with tokenizers that it opens."""

import json
from pathlib import Path

from tests.helpers import gguf_files

# Settings with which llama.cpp has such a model
FITTING: dict[str, dict] = {"qwen3": {"attention_bias": False}, "qwen3.5": {"linear_value_head_dim": 8}}


def model(name: str, folder: Path, **changes) -> Path:
    """A model of `gguf_files.MADE` with settings that llama.cpp has."""
    return with_a_merge(gguf_files.make(name, folder, **{"vocab_size": 260} | FITTING.get(name, {}) | changes))


def with_a_merge(folder: Path) -> Path:
    """Gives a tokenizer of `architectures.write_tokenizer` a merge, of two bytes that no text has: llama.cpp opens none
    without."""
    file = folder / "tokenizer.json"
    tokenizer = json.loads(file.read_text())
    model = tokenizer["model"]
    rare = sorted(model["vocab"], key=model["vocab"].__getitem__)[254:256]
    model["vocab"] |= {each["content"]: each["id"] for each in tokenizer["added_tokens"]}
    model["vocab"]["".join(rare)] = max(each["id"] for each in tokenizer["added_tokens"]) + 1
    model["merges"] = [rare]
    file.write_text(json.dumps(tokenizer))
    return folder
