"""What is fuzzed: our own readers of files and uploads, each as a function of bytes.

A reader may return or raise InputError; any other exception, and any answer that contradicts itself, is a fault. Inputs
are made of valid documents with a few values changed (`changed`), so that they get past the first check, or are bytes
as they come. Nothing is written but to a folder of the process's own.
"""

import contextlib
import copy
import io
import json
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from karipap_core.errors import InputError
from karipap_core.reading import parse_json

DEMO = Path(__file__).resolve().parents[1] / "assets" / "demo_model"
CHANGES = 4  # of one document, at most
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 2**31, 2**63, -(2**63), 10**350, 0.5, -0.0, 1e308, 5e-324),
    *("", "\0", " ", "../x", "-x", "/etc", "a" * 5000, "0", "NaN", "<b>", "\u2028", "lowrank", "int4", "dense"),
    *([], {}, [[]], [None], [0], [-1], [1, 2, 3], {"a": 1}, {"": {}}, [[1, 2], [3]]),
    json.loads("[" * 60 + "]" * 60),
)
Choose = Callable[[int], int]  # a number from 0 to below n


@dataclass(frozen=True)
class Target:
    """`read(data)` hands bytes to a reader and uses what it gives; `seeds()` are valid inputs."""

    name: str
    read: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]
    structured: bool = True  # whether seeds are JSON

    def tried(self, data: bytes) -> bool:
        """Whether the reader took the data. Raises whatever it raises but InputError."""
        try:
            self.read(data)
        except InputError as refusal:
            said = str(refusal)
            assert said.strip() and "\n" not in said.strip(), f"not one sentence: {said!r}"
            return False
        return True

    def made(self, choose: Choose, raw: Callable[[], bytes]) -> bytes:
        """An input: bytes as they come (one in eight), or a seed with some of it changed."""
        seeds = _seeds(self)
        if choose(8) == 0:
            return raw()
        seed = seeds[choose(len(seeds))]
        if not self.structured:
            return _damaged(seed, choose, raw)
        document = json.loads(seed)
        for _ in range(1 + choose(CHANGES)):
            document = changed(document, choose)
        text = json.dumps(document)
        return _twice(text, choose).encode() if choose(16) == 0 else text.encode()


@cache
def _seeds(target: Target) -> list[bytes]:
    return target.seeds()


def changed(document: Any, choose: Choose) -> Any:
    """The document with one of its values replaced, removed, doubled or moved to another place."""
    document = copy.deepcopy(document)
    places = list(_places(document))
    if not places:
        return VALUES[choose(len(VALUES))]
    holder, key = places[choose(len(places))]
    what = choose(6)
    if what == 0:
        del holder[key]
    elif what == 1:
        other, name = places[choose(len(places))]
        holder[key] = copy.deepcopy(other[name]) if other is not holder else None
    elif what == 2 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif what == 3 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = VALUES[choose(len(VALUES))]
    return document


def _places(document: Any):
    """Every (container, key) of a document."""
    if not isinstance(document, dict | list):
        return
    for key, value in list(document.items() if isinstance(document, dict) else enumerate(document)):
        yield document, key
        yield from _places(value)


def _twice(text: str, choose: Choose) -> str:
    """The text with a field of it given once more."""
    fields = [part for part in text.split(", ") if part.startswith('"') and part.count('"') == 2 and ": " in part]
    return text.replace("{", "{" + fields[choose(len(fields))] + ", ", 1) if fields else text


def _damaged(seed: bytes, choose: Choose, raw: Callable[[], bytes]) -> bytes:
    data, at = bytearray(seed), choose(len(seed) + 1)
    what, piece = choose(3), raw()[:64]
    if what == 0:
        return bytes(data[:at])
    data[at : at + (len(piece) if what == 1 else 0)] = piece
    return bytes(data)


@lru_cache(maxsize=1)
def scratch() -> Path:
    """A folder of this process, removed when it ends."""
    folder = tempfile.TemporaryDirectory(prefix="karipap-fuzz-")
    _KEPT.append(folder)
    return Path(folder.name)


_KEPT: list[tempfile.TemporaryDirectory] = []


def written(data: bytes, name: str) -> Path:
    file = scratch() / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


@lru_cache(maxsize=1)
def demo():
    from karipap_core.checkpoint.open import open_checkpoint

    return open_checkpoint(DEMO)


def _first(pattern: str, most: int = 3) -> list[bytes]:
    files = sorted((DEMO / "karipap").glob(pattern), key=lambda file: file.stat().st_size)
    return [file.read_bytes() for file in files[:: max(1, len(files) // most)]][:most]


# ---- the readers ------------------------------------------------------------------------------------------------


def plan(data: bytes) -> None:
    """A plan: read, written and read again it is the same; checked against a model it counts its bytes."""
    from karipap_core.plan.document import Plan

    found = Plan.parse(data, "plan.json")
    again = Plan.parse(json.dumps(found.to_json()).encode(), "again")
    assert again.to_json() == found.to_json()
    found.check(demo(), force=True)
    ledger = found.ledger(demo())
    assert math.isfinite(ledger.kept) and ledger.bytes > 0


def _plans() -> list[bytes]:
    runs = [json.loads(data) for data in _first("runs/*/run.json", 6)]
    return [json.dumps(run["plan"]).encode() for run in runs if run["plan"]]


def shown(data: bytes) -> None:
    """Any document of ours, as the verb `show` prints it."""
    from karipap_core.cli import registry, verbs  # noqa: F401  (verbs fill the registry)
    from karipap_core.workspace.documents import find

    document = find(written(data, "document.json"))
    assert registry.VERBS["show"].render(document)
    json.dumps(document, allow_nan=False)


def reported(data: bytes) -> None:
    """A run, as `report` and the pages describe it."""
    from karipap_core.reports.report import collect, describe

    json.dumps(describe(collect([written(data, "run.json")])), allow_nan=False)


def _documents() -> list[bytes]:
    return _first("runs/*/run.json", 4) + _first("sensitivity/*.json", 1) + _plans()[:1]


def _runs() -> list[bytes]:
    return _first("runs/*/run.json", 6)


def profile(data: bytes) -> None:
    """A profile's document, as the verb prints it."""
    from karipap_core.cli import registry, verbs  # noqa: F401
    from karipap_core.profiles.document import Profile

    found = Profile.load(written(data, "profile/profile.json"))
    assert registry.VERBS["show"].render(found.document)


def _profiles() -> list[bytes]:
    small = []
    for data in _first("profiles/*/profile.json", 2):
        document = json.loads(data)
        small.append(json.dumps(document | {"weights": document["weights"][:3]}).encode())
    return small


def safetensors(data: bytes) -> None:
    """The header of a safetensors file: every tensor that it names lies within the file."""
    from karipap_core.checkpoint.tensorfile import read_header

    for info in read_header(written(data, "model.safetensors")).values():
        assert info.start >= 8 and info.start + info.size <= len(data) and all(side >= 0 for side in info.shape)


def _headers() -> list[bytes]:
    shapes = {"a": ("F32", [2, 3], 24), "b.weight": ("BF16", [4], 8), "c": ("F8_E4M3", [], 1), "d": ("I64", [0], 0)}
    entries, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, size) in shapes.items():
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    header = json.dumps(entries).encode()
    return [len(header).to_bytes(8, "little") + header + bytes(end)]


def header_fields(data: bytes) -> None:
    """The same with a header whose length is right: what it says is what is fuzzed."""
    safetensors(len(data).to_bytes(8, "little") + data + bytes(33))


def _header_documents() -> list[bytes]:
    return [data[8 : 8 + int.from_bytes(data[:8], "little")] for data in _headers()]


def config(data: bytes) -> None:
    """config.json beside the demo model's tensors: opened, and sized for a deployment."""
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.deployment.footprint import of_checkpoint

    written(data, "model/config.json")
    weights = scratch() / "model" / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(next(DEMO.glob("*.safetensors")))
    checkpoint = open_checkpoint(weights.parent)
    assert checkpoint.parameters == demo().parameters
    with contextlib.redirect_stderr(io.StringIO()):
        of_checkpoint(checkpoint)


def index(data: bytes) -> None:
    """model.safetensors.index.json beside two small files."""
    from karipap_core.checkpoint.open import open_checkpoint

    for name, content in zip(("a", "b"), _shards(), strict=True):
        if not (scratch() / "sharded" / f"{name}.safetensors").exists():
            written(content, f"sharded/{name}.safetensors")
    written(data, "sharded/model.safetensors.index.json")
    assert open_checkpoint(scratch() / "sharded").tensors


def _shards() -> list[bytes]:
    found = []
    for name in ("one.weight", "two.weight"):
        header = json.dumps({name: {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}).encode()
        found.append(len(header).to_bytes(8, "little") + header + bytes(16))
    return found


def _indexes() -> list[bytes]:
    files = {"one.weight": "a.safetensors", "two.weight": "b.safetensors"}
    return [json.dumps({"metadata": {"total_size": 32}, "weight_map": files}).encode()]


def upload_config(data: bytes) -> None:
    """A config.json given to the Deploy page."""
    from karipap_core.deployment.footprint import of_config
    from karipap_core.reading import parse_json

    document = parse_json(data, "config.json", lenient=True)
    if not isinstance(document, dict):
        raise InputError("config.json is no object.")
    with contextlib.redirect_stderr(io.StringIO()):
        assert of_config(document, "config.json").parameters >= 0


def _configs() -> list[bytes]:
    return [(DEMO / "config.json").read_bytes()]


def text(data: bytes) -> None:
    """A text in any of the forms that are read: the first byte says which."""
    from karipap_core.text import SUFFIXES, read_text

    suffix = SUFFIXES[data[0] % len(SUFFIXES)] if data else ".txt"
    found = read_text(written(data[1:], f"text{suffix}"))
    assert found.documents and len(found.sha256) == 64


def _texts() -> list[bytes]:
    return [
        b"\0plain text\nof two lines\n",
        b"\1 = Title = \n\n words \n",
        b'\2["one", {"text": "two"}]',
        b'\3{"text": "one"}\n{"text": "two"}\n',
    ]


def task(data: bytes) -> None:
    """A folder with one YAML of a benchmark task."""
    from karipap_core.evaluation.tasks.files import read_folder

    written(b"{}\n", "tasks/items.jsonl")
    for found in read_folder(written(data, "tasks/task.yaml").parent).values():
        found.check_files()


def _tasks() -> list[bytes]:
    return [
        b"task: one\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: items.jsonl\ntest_split: test\n"
        b"output_type: multiple_choice\ndoc_to_text: '{{question}}'\ndoc_to_choice: '{{choices}}'\n"
        b"doc_to_target: answer\n",
        b"group: many\ntask: [one, two]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n",
    ]


def gguf(data: bytes) -> None:
    """A GGUF file but for its tokenizer: every tensor lies within it, and opens to the shape that it says."""
    from karipap_core.checkpoint.gguf.config import architecture_of, config_of, heads_of
    from karipap_core.checkpoint.gguf.header import read_header
    from karipap_core.checkpoint.gguf.tensors import tensors_of
    from karipap_core.checkpoint.gguf.words import words_of

    header = read_header(written(data, "model.gguf"))
    for info in header.tensors.values():
        assert info.start >= 24 and info.start + info.size <= len(data) and all(side >= 0 for side in info.shape)
    architecture = architecture_of(header)
    json.dumps(config_of(header, architecture), allow_nan=False)
    for info in tensors_of(header.tensors, architecture, heads_of(header), "model").values():
        assert info.size == 0 or tuple(info.make(None).shape) == info.shape
    assert not header.tensors or words_of(header).endswith(" (GGUF)")


def _packed(document: Any) -> bytes:
    """A GGUF file of these entries and tensors (name → shape), as far as they can be written at all."""
    import struct

    def string(text: str) -> bytes:
        data = text.encode(errors="replace")
        return struct.pack("<Q", len(data)) + data

    def value(one: Any) -> bytes | None:
        if isinstance(one, bool):
            return struct.pack("<I?", 7, one)
        if isinstance(one, int):
            return struct.pack("<Iq", 11, one) if abs(one) < 2**63 else None
        if isinstance(one, float):
            return struct.pack("<If", 6, one) if abs(one) < 1e38 else None
        if isinstance(one, str):
            return struct.pack("<I", 8) + string(one)
        items = [value(each) for each in one] if isinstance(one, list) else []
        kinds = {item[:4] if item else None for item in items}
        if len(kinds) != 1 or None in kinds or struct.pack("<I", 9) in kinds:
            return None
        return struct.pack("<I", 9) + kinds.pop() + struct.pack("<Q", len(items)) + b"".join(item[4:] for item in items)

    document = document if isinstance(document, dict) else {}
    fields = document.get("entries") if isinstance(document.get("entries"), dict) else {}
    entries = [string(key) + packed for key, one in fields.items() if (packed := value(one)) is not None]
    table, end = [], 0
    for name, shape in (document.get("tensors") if isinstance(document.get("tensors"), dict) else {}).items():
        sides = [
            side for side in (shape if isinstance(shape, list) else []) if isinstance(side, int) and 0 <= side < 99
        ]
        table.append(string(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides[::-1], 0, end))
        end = -(-(end + 4 * math.prod(sides)) // 32) * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(entries)) + b"".join(entries + table)
    return head + bytes(-len(head) % 32 + end)


def gguf_entries(data: bytes) -> None:
    """The same of a file that is put together right: what it says is what is fuzzed."""
    gguf(_packed(parse_json(data, "The document")))


def _gguf_documents() -> list[bytes]:
    sizes = {"block_count": 1, "embedding_length": 8, "feed_forward_length": 8, "attention.head_count": 2}
    sizes |= {"attention.head_count_kv": 1, "rope.freq_base": 1e4, "context_length": 32, "rope.dimension_count": 4}
    shapes = {"token_embd": [16, 8], "output_norm": [8], "rope_factors_long": [2]}
    shapes |= {"blk.0.attn_q": [8, 8], "blk.0.attn_k": [4, 8], "blk.0.attn_norm": [8], "blk.0.ffn_down": [8, 8]}
    tensors = {f"{name}.weight": shape for name, shape in shapes.items()}
    documents = []
    for name in ("llama", "qwen3", "gemma2", "stablelm"):
        entries = {f"{name}.{key}": value for key, value in sizes.items()} | {"general.architecture": name}
        documents.append({"entries": entries | {"tokenizer.ggml.tokens": ["a", "b"]}, "tensors": tensors})
    grouped = {"falcon.attention.head_count": 4, "falcon.attention.head_count_kv": 2, "falcon.embedding_length": 8}
    grouped |= {"general.architecture": "falcon", "falcon.block_count": 1}
    stacked = {"general.architecture": "gpt-oss", "gpt-oss.block_count": 1, "gpt-oss.embedding_length": 4}
    stacked |= {"gpt-oss.attention.head_count": 2, "gpt-oss.expert_count": 2}
    experts = {"blk.0.ffn_gate_exps.weight": [2, 3, 4], "blk.0.ffn_up_exps.weight": [2, 3, 4]}
    tiled = {"block_count": 1, "embedding_length": 8, "attention.head_count": 2, "attention.key_length": 4}
    tiled |= {"full_attention_interval": 2, "rope.dimension_sections": [1, 1, 0], "ssm.inner_size": 8}
    tiled |= {"ssm.group_count": 2, "ssm.time_step_rank": 4, "ssm.state_size": 2}
    entries = {f"qwen35.{key}": value for key, value in tiled.items()} | {"general.architecture": "qwen35"}
    shapes = {"attn_qkv.weight": [16, 8], "ssm_a": [4], "ssm_conv1d.weight": [16, 4], "ssm_out.weight": [8, 8]}
    documents += [{"entries": entries, "tensors": {f"blk.0.{name}": shape for name, shape in shapes.items()}}]
    documents += [{"entries": grouped, "tensors": {"blk.0.attn_qkv.weight": [16, 8]}}]
    documents += [{"entries": stacked, "tensors": experts | {"blk.0.ffn_down_exps.weight": [2, 4, 3]}}]
    return [json.dumps(document).encode() for document in documents]


def _gguf_files() -> list[bytes]:
    return [_packed(json.loads(data)) for data in _gguf_documents()]


def adapter(data: bytes) -> None:
    """The adapter_config.json of a LoRA of the demo model: alone, and merged into it."""
    import torch
    from safetensors.torch import save_file

    from karipap_core.checkpoint.lora.open import open_merged, open_update

    weight = next(weight for weight in demo().weights if weight.role == "q")
    folder = written(data, "lora/adapter_config.json").parent
    if not (folder / "adapter_model.safetensors").exists():
        parts = {"lora_A": torch.ones(2, weight.shape[1]), "lora_B": torch.ones(weight.shape[0], 2)}
        named = {f"base_model.model.{weight.name}.{part}.weight": value for part, value in parts.items()}
        save_file(named, folder / "adapter_model.safetensors")
    (update,) = open_update(folder).tensors.values()
    merged, _ = open_merged(demo(), folder)
    assert update.shape == merged.tensors[f"{weight.name}.weight"].shape == weight.shape
    assert math.isfinite(merged.tensors[f"{weight.name}.weight"].make(None).float().sum())


def _adapters() -> list[bytes]:
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "init_lora_weights": True}
    more = {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {r"layers\.0\.self_attn.q_proj": 3}, "use_rslora": True}
    return [json.dumps(document).encode() for document in (plain, plain | more | {"r": 8})]


TARGETS = {
    target.name: target
    for target in (
        Target("plan", plan, _plans),
        Target("show", shown, _documents),
        Target("report", reported, _runs),
        Target("profile", profile, _profiles),
        Target("safetensors", safetensors, _headers, structured=False),
        Target("safetensors header", header_fields, _header_documents),
        Target("config.json", config, _configs),
        Target("index", index, _indexes),
        Target("upload of a config", upload_config, _configs),
        Target("text", text, _texts, structured=False),
        Target("task", task, _tasks, structured=False),
        Target("GGUF", gguf, _gguf_files, structured=False),
        Target("entries of GGUF", gguf_entries, _gguf_documents),
        Target("adapter", adapter, _adapters),
    )
}
