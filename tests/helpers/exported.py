"""Compressed folders of small models in which every form of an export occurs, and their tokenizers."""

import json
from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from tests.helpers import gguf_files
from tests.helpers.folders import folder_of

FORMS = ("int4", "int3", "qlr", "int8", "lowrank", "qlr3")


# Settings with which llama.cpp has such a model
FITTING: dict[str, dict] = {"qwen3": {"attention_bias": False}, "qwen3.5": {"linear_value_head_dim": 8}}


def model(name: str, folder: Path, **changes) -> Path:
    """A model of `gguf_files.MADE` that llama.cpp has, and a tokenizer that it opens."""
    made = gguf_files.make(name, folder, **{"vocab_size": 260} | FITTING.get(name, {}) | changes)
    return with_a_merge(made)


def spec_of(form: str, rows: int, columns: int):
    if form == "lowrank":
        return NETWORKS["lowrank"].for_shape(rows, columns, 6)
    if form.startswith("qlr"):
        bits, quantize, rank = ("int4", None, 5) if form == "qlr" else ("int3", "int4", 3)
        return NETWORKS["qlr"].for_shape(rows, columns, rank, quantize=quantize, bits=bits)
    return Dense.for_shape(rows, columns, 1, quantize=form)


def compressed(model: Path, out: Path, forms=FORMS, most: int | None = None) -> Path:
    """Every compressible weight of a model in one of `forms`, by turns; experts of a stack in the same. most : how many
    weights, from the first on; all where None."""
    checkpoint = open_checkpoint(model)
    entries: dict[str, dict] = {}
    stacks: dict[str, int] = {}
    for weight in checkpoint.weights:
        if weight.compressible and len(entries) != most:
            stack = "".join(letter for letter in weight.name if not letter.isdigit()) if "expert" in weight.name else ""
            number = stacks.setdefault(stack or weight.name, len(stacks))
            entries[weight.name] = spec_of(forms[number % len(forms)], *weight.shape).to_json()
    return folder_of(model, out, Plan(model_entry(checkpoint), "weight", entries))


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
