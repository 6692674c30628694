"""One export from beginning to end: what changes is told first, then the folder is written, carded and, where asked
for, measured in its own engine."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from karipap_core.checkpoint.tensorfile import bytes_of
from karipap_core.compressed.archive import EXPORTED
from karipap_core.compressed.folder import new_folder
from karipap_core.compressed.saved_again import WORDS
from karipap_core.exports import TOKENS
from karipap_core.exports.card import write_card
from karipap_core.exports.check import can_be_measured, compared
from karipap_core.exports.exporter import Exporter, Line, Wanted, exporter_named
from karipap_core.exports.source import Source
from karipap_core.progress import Progress, silent
from karipap_core.terminal import size
from karipap_core.text import Text
from karipap_core.workspace.files import write_json
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

RECORD, PLAN = EXPORTED, "karipap-plan.json"
FORMAT = "karipap-export"


def export(  # noqa: PLR0913 (what a person types)
    folder: str | Path,
    to: str,
    out: str | Path,
    wanted: Wanted | None = None,
    plain: bool = False,
    overwrite: bool = False,
    check: Text | None = None,
    python: str | Path | None = None,
    tokens: int = TOKENS,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Writes a compressed folder as what the engine `to` loads without Karipap.

    plain : every weight as a dense matrix, for a comparison in the same engine. check : a text on which the engine is
    measured beside Karipap's folder; python : the interpreter that has the engine (default: this one). tell : takes the
    sentences of `summary` and `notes` before anything is written.

    Returns what `plan_of` does and, where checked, "measured" (see `check.compared`). Raises InputError where the
    folder, the target or the engine do not fit; nothing half-written stays.
    """
    exporter, wanted, source = exporter_named(to), wanted or Wanted(), Source(folder, plain)
    exporter.check_packages()
    if check is not None:
        can_be_measured(exporter, source, python)
    document = planned(source, exporter, wanted, Path(out), progress)
    for line in (*document["summary"], *document["notes"]):
        tell(line)
    with only_writer(out, "export"), new_folder(out, source.checkpoint.path, overwrite) as target:
        exporter.write(source, wanted, target, progress)
        document |= {"bytes": weights_bytes(target)}
        if check is not None:
            document["measured"] = compared(exporter, source, wanted, target, check, python, tokens, progress)
        write_json(target / PLAN, source.plan)
        write_card(target, source, exporter, document)
        keep_json(target / RECORD, document)
    return document


def plan_of(folder: str | Path, to: str, out: str | Path, wanted: Wanted | None = None, plain: bool = False) -> dict:
    """What `export` would write, nothing written: {"format", "to", "engine", "folder", "out", "weights" (a `Line`
    each), "summary" (sentences), "bytes", "source_bytes", "dense_bytes", "commands", "notes"}."""
    exporter = exporter_named(to)
    exporter.check_packages()
    return planned(Source(folder, plain), exporter, wanted or Wanted(), Path(out))


def planned(source: Source, exporter: Exporter, wanted: Wanted, out: Path, progress: Progress = silent) -> dict:
    lines = []
    for number, line in enumerate(exporter.lines(source, wanted), 1):
        lines.append(line)
        progress("look", number, len(source.names), line.weight)
    folder = source.checkpoint
    rest = folder.bytes - sum(line.source_bytes for line in lines)
    dense = rest + sum(bytes_of(WORDS[held.dtype], held.shape) for held in map(source.held, source.names))
    return {
        "format": FORMAT,
        "version": 1,
        "to": exporter.name,
        "title": exporter.title,
        "folder": str(source.folder),
        "out": str(out),
        "weights": [line.to_json() for line in lines],
        "summary": summary(lines),
        "bytes": rest + sum(line.bytes for line in lines),
        "source_bytes": folder.bytes,
        "dense_bytes": dense,
        "commands": exporter.commands(source, out),
        "notes": exporter.notes(source, wanted),
    }


def record_of(folder: str | Path) -> dict[str, Any] | None:
    """What `export` returned of a folder that it wrote, None of any other."""
    return kept_json(Path(folder) / RECORD, "export")


def summary(lines: Sequence[Line]) -> list[str]:
    """One sentence for each kind of form that weights are stored in."""
    kinds: dict[tuple[str, str], list[Line]] = defaultdict(list)
    for line in lines:
        kinds[line.stored, line.why].append(line)
    said = []
    for (kind, why), found in kinds.items():
        worst = max(line.error for line in found)
        change = "unchanged" if all(line.exact for line in found) else f"off by {worst:.1e} of its size at most"
        weights = "1 weight" if len(found) == 1 else f"{len(found)} weights"
        before, after = (sum(getattr(line, name) for line in found) for name in ("source_bytes", "bytes"))
        because = f" ({why})" if why else ""
        said.append(f"{weights} as {kind}{because}: {change}; {size(before)} in Karipap's folder, {size(after)} here.")
    return said


def weights_bytes(folder: Path) -> int:
    """Bytes of the files of an export that hold weights."""
    endings = {".safetensors", ".gguf", ".onnx", ".data"}
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in endings)
