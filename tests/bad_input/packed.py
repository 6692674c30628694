"""Broken GGUF files and LoRA adapters."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.bad_input import Case, model
from tests.helpers import gguf_files

Make = Callable[[Path], object]
NAMED = "base_model.model.model.layers.0.self_attn.q_proj"


def gguf(entries: dict | None = None, change: Callable[[bytearray], bytes] | None = None) -> Make:
    """A GGUF file with other entries, or whose bytes were changed."""

    def make(folder: Path) -> None:
        source = model(folder, "llama", name="source")
        file = gguf_files.write(source, folder / "model.gguf", entries=entries)
        if change is not None:
            file.write_bytes(change(bytearray(file.read_bytes())))

    return make


def at(place: int, form: str, *values) -> Callable[[bytearray], bytes]:
    """The bytes with others at a place."""

    def change(data: bytearray) -> bytes:
        struct.pack_into(form, data, place, *values)
        return bytes(data)

    return change


def behind(name: bytes, skip: int, form: str, *values) -> Callable[[bytearray], bytes]:
    """The bytes with others at a place that is counted from the end of the first `name`."""
    return lambda data: at(data.index(name) + len(name) + skip, form, *values)(data)


def raw(data: bytes, name: str = "model.gguf") -> Make:
    return lambda folder: (folder / name).write_bytes(data)


def parts(count: int, of: int) -> Make:
    def make(folder: Path) -> None:
        (folder / "model").mkdir()
        for number in range(1, count + 1):
            (folder / "model" / f"a-{number:05d}-of-{of:05d}.gguf").write_bytes(b"GGUF")

    return make


def lora(tensors: dict[str, torch.Tensor] | None = None, weights: bytes | None = None, **settings) -> Make:
    def make(folder: Path) -> None:
        base = model(folder, "llama", name="base")
        (folder / "lora").mkdir()
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "../base"} | settings
        (folder / "lora/adapter_config.json").write_text(json.dumps(config))
        side = json.loads((base / "config.json").read_text())["hidden_size"]
        good = {f"{NAMED}.lora_A.weight": torch.ones(2, side), f"{NAMED}.lora_B.weight": torch.ones(side, 2)}
        save_file(good if tensors is None else tensors, folder / "lora/adapter_model.safetensors")
        if weights is not None:
            (folder / "lora/adapter_model.safetensors").write_bytes(weights)

    return make


HUGE = 1 << 60
ASK = "profile model.gguf --metrics weight"
ONE = "profile lora"
CASES = [
    Case("an empty GGUF file", raw(b""), ASK, "model.gguf is cut short or is not a GGUF file: fetch it again."),
    Case("a GGUF file of zeros", raw(bytes(4096)), ASK, "model.gguf begins with nothing but zeros: fetch it again."),
    Case(
        "a GGUF file of git-lfs",
        raw(b"version https://git-lfs.github.com/spec/v1\n"),
        ASK,
        "model.gguf is a pointer of git-lfs, not the file itself: run `git lfs pull` where it came from.",
    ),
    Case(
        "another file called .gguf",
        raw(b"ABCD" * 99),
        ASK,
        "model.gguf is not a GGUF file, whatever its name: fetch it again.",
    ),
    Case("GGUF 1", gguf(change=at(4, "<I", 1)), ASK, "model.gguf is of GGUF's version 1; read are 2 and 3."),
    Case(
        "GGUF of big-endian machines",
        gguf(change=at(4, ">I", 3)),
        ASK,
        "model.gguf is a GGUF file for big-endian machines, which is not read here.",
    ),
    Case(
        "GGUF with too many entries",
        gguf(change=at(16, "<Q", HUGE)),
        ASK,
        f"model.gguf claims {HUGE:,} entries; more than 65,536 are not read.",
    ),
    Case(
        "GGUF with too many tensors",
        gguf(change=at(8, "<Q", HUGE)),
        ASK,
        f"model.gguf claims {HUGE:,} tensors, for which it is too short: fetch it again.",
    ),
    Case(
        "GGUF with a string beyond its end",
        gguf(change=at(24, "<Q", HUGE)),
        ASK,
        "model.gguf is cut short or is not a GGUF file: fetch it again.",
    ),
    Case(
        "GGUF with a list beyond its end",
        gguf(change=behind(b"tokenizer.ggml.tokens", 8, "<Q", HUGE)),
        ASK,
        f"model.gguf claims {HUGE:,} strings, for which it is too short: fetch it again.",
    ),
    Case(
        "GGUF with an entry of no type",
        gguf(change=behind(b"llama.block_count", 0, "<I", 77)),
        ASK,
        "model.gguf: entry 'llama.block_count' is of the type 77, which GGUF does not have.",
    ),
    Case(
        "GGUF with a list of lists",
        gguf(change=behind(b"tokenizer.ggml.tokens", 4, "<I", 9)),
        ASK,
        "model.gguf: entry 'tokenizer.ggml.tokens' is a list of the type 9, which is not read.",
    ),
    Case(
        "GGUF with a name that is no text",
        gguf(change=at(32, "<B", 0xFF)),
        ASK,
        "model.gguf has a string that is not UTF-8 before byte 52.",
    ),
    Case(
        "GGUF with a number that is none",
        gguf({"llama.rope.freq_base": float("nan")}),
        ASK,
        "model.gguf: entry 'llama.rope.freq_base' is nan, which is no number: fetch it again.",
    ),
    Case(
        "GGUF with an entry twice",
        gguf(change=lambda data: bytes(data).replace(b"ggml.bos_token", b"ggml.eos_token", 1)),
        ASK,
        "model.gguf has the entry 'tokenizer.ggml.eos_token_id' twice: fetch it again.",
    ),
    Case(
        "GGUF with 9 dimensions",
        gguf(change=behind(b"token_embd.weight", 0, "<I", 9)),
        ASK,
        "model.gguf: tensor token_embd.weight has 9 dimensions, and GGUF at most 4.",
    ),
    Case(
        "GGUF with a tensor of no type",
        gguf(change=behind(b"token_embd.weight", 20, "<I", 99)),
        ASK,
        "model.gguf: tensor token_embd.weight is of ggml's type 99, which this version of gguf does not know.",
    ),
    Case(
        "GGUF with tensors that overlap",
        gguf(change=behind(b"blk.0.attn_norm.weight", 16, "<Q", 32)),
        ASK,
        "model.gguf: the bytes of tensor blk.0.attn_norm.weight overlap another's or leave a gap: fetch it again.",
    ),
    Case(
        "GGUF with a side beyond all",
        gguf(change=behind(b"token_embd.weight", 4, "<Q", HUGE)),
        ASK,
        "model.gguf is cut short: tensor token_embd.weight ends behind its last byte. Fetch it again.",
    ),
    Case(
        "a GGUF file cut short",
        gguf(change=lambda data: bytes(data[:-9000])),
        ASK,
        "model.gguf is cut short: tensor blk.1.attn_q.weight ends behind its last byte. Fetch it again.",
    ),
    Case(
        "GGUF with another alignment",
        gguf({"general.alignment": 48}),
        ASK,
        "model.gguf: general.alignment is 48, not a power of two from 8 on.",
    ),
    Case(
        "GGUF of an unknown architecture",
        gguf({"general.architecture": "new"}),
        ASK,
        "model.gguf is of the architecture new, which is not opened from GGUF: open the Hugging Face model that it was "
        "made from (safetensors).",
    ),
    Case(
        "GGUF of a projector",
        gguf({"general.type": "mmproj"}),
        ASK,
        "model.gguf is a GGUF file of another kind (mmproj), not a model.",
    ),
    Case(
        "GGUF without a size",
        gguf({"llama.embedding_length": 0}),
        ASK,
        "model.gguf says 0 for llama.embedding_length, a whole number above 0: fetch it again.",
    ),
    Case(
        "GGUF with an unknown entry",
        gguf({"llama.attention.new": 3}),
        ASK,
        "model.gguf has the entry llama.attention.new (3), which is not known here.",
    ),
    Case(
        "GGUF with merges of nothing",
        gguf({"tokenizer.ggml.merges": ["a b"]}),
        ASK,
        "The tokenizer in model.gguf cannot be restored by transformers: Exception Error while initializing BPE: Token "
        "`ab` out of vocabulary.",
    ),
    Case(
        "half of a GGUF in parts",
        parts(1, 3),
        "profile model --metrics weight",
        "model lacks a-00002-of-00003.gguf: fetch it again.",
    ),
    Case(
        "two GGUF models in a folder",
        lambda folder: [raw(b"GGUF", name)(folder) for name in ("a.gguf", "b.gguf")],
        "profile . --metrics weight",
        ". holds 2 GGUF models (a.gguf, b.gguf): name one of them.",
    ),
    Case(
        "an adapter of another kind",
        lora(peft_type="LOHA"),
        ONE,
        "lora is an adapter LOHA; only LoRA is opened here: merge it with peft first.",
    ),
    Case(
        "an adapter that says no rank", lora(r=None), ONE, "lora/adapter_config.json: r is None, not a number above 0."
    ),
    Case(
        "an adapter of another rank",
        lora(r=3),
        ONE,
        "lora: model.layers.0.self_attn.q_proj has matrices of ((48, 2), (2, 48)), and its config says rank 3.",
    ),
    Case(
        "an adapter cut short",
        lora(weights=b"\x99" * 20),
        ONE,
        "lora/adapter_model.safetensors is cut short or is not a safetensors file: fetch it again.",
    ),
    Case(
        "an adapter of nothing",
        lora({}),
        ONE,
        "lora/adapter_model.safetensors holds no LoRA matrices: fetch the adapter again.",
    ),
    Case(
        "an adapter whose pattern has no end",
        lora(rank_pattern={"(a+)+$": 2}),
        ONE,
        "lora/adapter_config.json: rank_pattern has the pattern '(a+)+$', which is not read here.",
    ),
    Case(
        "a plan of an adapter alone",
        lora(),
        "plan lora --metric weight --rule uniform --budget 0.5",
        "lora is an adapter (LoRA, rank 2) of ../base, and what is shown is its update s B A alone: for the model with "
        "it, add --merge, or name both as BASE+ADAPTER.",
    ),
    Case(
        "an adapter whose base is not here",
        lora(base_model_name_or_path="some/model"),
        "profile lora --merge --metrics weight",
        "lora belongs to the model some/model, which is not on this machine: fetch it (`karipap fetch`), or name the "
        "folder that it is in (--base).",
    ),
    Case(
        "an adapter of another model",
        lora({f"{NAMED}.lora_A.weight": torch.ones(2, 9), f"{NAMED}.lora_B.weight": torch.ones(9, 2)}),
        "profile lora --merge --metrics weight",
        "lora changes model.layers.0.self_attn.q_proj as a tensor of 9 × 9, and that of base has 48 × 48: it is an "
        "adapter of another model.",
    ),
    Case(
        "a model to be merged that is no adapter",
        lora(),
        "profile base --merge --metrics weight",
        "base is no folder of an adapter alone (adapter_config.json and adapter_model.safetensors).",
    ),
]
