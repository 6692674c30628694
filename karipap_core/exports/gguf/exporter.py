"""`gguf`: one file that llama.cpp runs, and an adapter beside it for the low-rank corrections.

Whole numbers become ggml's blocks (`blocks.py`), which hold codes of 2, 3 and 4 bits as they are; a correction L R
beside them becomes a pair of the adapter, which `--lora` puts on top. Each layer has its own rank there: the adapter's
alpha is 0, for which llama.cpp scales no pair (`llama_adapter_lora_weight::get_scale`). Every other network is a dense
matrix in 16 bits.
"""

import math
from collections.abc import Iterator
from pathlib import Path

from karipap_core.compressed.card import base_model
from karipap_core.exports.exporter import Exporter, Line, Wanted, register
from karipap_core.exports.gguf.blocks import BLOCK, BYTES
from karipap_core.exports.gguf.file import FLOAT_BYTES, write_file
from karipap_core.exports.gguf.tensors import Choice, Model
from karipap_core.exports.source import Part, Source
from karipap_core.progress import Progress

MODEL, ADAPTER = "model.gguf", "adapter.gguf"
GUESSED = 1024  # llama.cpp's file type of a mixture that has no name


@register
class Gguf(Exporter):
    name = "gguf"
    title = "llama.cpp"
    library = "gguf"
    packages = ("gguf",)
    engine = "llama-cpp-python"
    script = "with_llama.py"

    def lines(self, source: Source, wanted: Wanted) -> Iterator[Line]:
        model = opened(source)
        seen = set()
        for target in model.targets:
            for name, choice in model.choices(target).items():
                if name not in seen:
                    seen.add(name)
                    yield line(source.part(name), choice)

    def write(self, source: Source, wanted: Wanted, folder: Path, progress: Progress) -> None:
        model = opened(source)
        tensors, pairs = model.tensors()
        name = base_model(source.plan, source.checkpoint.name)
        entries = model.entries | {"general.type": "model", "general.name": name}
        entries |= {"general.quantized_by": "karipap", "general.file_type": GUESSED}
        count = 0

        def done(name: str) -> None:
            nonlocal count
            count += 1
            progress("export", count, len(tensors) + len(pairs), name)

        write_file(folder / MODEL, entries, tensors, done)
        if pairs:
            entries = {"general.architecture": model.words.name, "general.type": "adapter", "adapter.type": "lora"}
            write_file(folder / ADAPTER, entries | {"adapter.lora.alpha": 0.0}, pairs, done)

    def commands(self, source: Source, out: Path) -> str:
        lora = opened(source).has_adapter
        model, adapter = f'"{out.name}/{MODEL}"', f'"{out.name}/{ADAPTER}"'
        on_top = f" --lora {adapter}" if lora else ""
        return "\n".join(
            [
                f'llama-cli -m {model}{on_top} -p "Once upon a time" -n 64',
                f"llama-server -m {model}{on_top}",
                "",
                "# Python: pip install llama-cpp-python",
                "from llama_cpp import Llama",
                "",
                f"model = Llama({model}" + (f", lora_path={adapter})" if lora else ")"),
                'print(model("Once upon a time", max_tokens=64)["choices"][0]["text"])',
            ]
        )

    def notes(self, source: Source, wanted: Wanted) -> list[str]:
        notes = list(opened(source).notes)
        if opened(source).has_adapter:
            notes.append(f"{ADAPTER} belongs to {MODEL}: without --lora the model lacks its corrections.")
        return notes


def opened(source: Source) -> Model:
    """The folder in GGUF's words. Raises InputError where llama.cpp has no place or no word for something in it."""
    found = source.worked_out.get(Gguf.name)
    if not isinstance(found, Model):
        found = source.worked_out[Gguf.name] = Model(source)
    return found


def line(part: Part, choice: Choice) -> Line:
    count = math.prod(part.shape)
    size = count * FLOAT_BYTES[choice.kind] if choice.kind in FLOAT_BYTES else count // BLOCK * BYTES[choice.kind]
    stored = f"dense, {choice.kind}" if choice.kind in FLOAT_BYTES else choice.kind
    rank = 0
    if choice.adapter:
        rank, stored = part.rank, f"{stored} + adapter"
        size += rank * sum(part.shape) * FLOAT_BYTES[choice.adapter]
    return Line(part.name, part.says, stored, choice.error, size, part.bytes, rank, choice.why)
