"""Broken checkpoints."""

from tests.bad_input import Case, changed, model


def config(architecture: str = "llama", **fields):
    """A good model whose config.json says something else."""
    return lambda folder: changed(model(folder, architecture) / "config.json", **fields)


def text(name: str, content: str | bytes):
    """A good model with a file of other content."""
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (model(folder) / name).write_bytes(data)


CASES = [
    Case("no folder", lambda folder: None, "profile model",
         "model is neither a path here nor in the hub's cache, and the hub cannot be reached (or HF_HUB_OFFLINE is "
         "set): name a local folder or go online."),
    Case("empty folder", lambda folder: (folder / "model").mkdir(), "profile model",
         "model holds no .safetensors file: name a folder or file with a model in it."),
    Case("config that is no JSON", text("config.json", "{"), "profile model",
         "File model/config.json is not valid JSON (line 1, column 2: Expecting property name enclosed in double "
         "quotes)."),
]  # fmt: skip
