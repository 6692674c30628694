"""Text to calibrate on and to evaluate on: any file, or the Python standard library of this very machine.

The standard library is on every user's disk, so nothing has to be downloaded. Its modules are dealt to three
sides by a hash of their names alone: the same module is on the same side on every machine and under every version
of Python, although its text may differ. A model trained on the `train` side (the demo model is) has seen neither
`calibration` nor `heldout`.
"""

import hashlib
import json
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from karipap_core.errors import InputError

SPLITS = ("train", "calibration", "heldout")
END_OF_TEXT = "<|endoftext|>"
HEADING = re.compile(r"\s* = [^=\n]+ = *\n")
# Tests are missing on many systems, pydoc_data is generated prose, _sysconfigdata is one machine's settings.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


@dataclass(frozen=True)
class Text:
    """A text with the name that results show for it and the hash that identifies its bytes."""

    name: str
    documents: tuple[str, ...]
    path: str | None = None  # of the file it was read from; None for the standard library

    @property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 bytes of the documents, each preceded by its length (hex)."""
        digest = hashlib.sha256()
        for document in self.documents:
            data = document.encode()
            digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def split_of(module: str) -> str:
    """The side a module is on: 10 % `heldout`, 6 % `calibration`, the rest `train`, by SHA-256 of its dotted name."""
    bucket = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
    return "heldout" if bucket < 10 else "calibration" if bucket < 16 else "train"


def standard_library(split: str, root: Path | None = None) -> Text:
    """The standard library's modules on one side, sorted by name, one document a module.

    `split` is one of `SPLITS`; `root` is the folder of the library (default: this interpreter's).
    Modules that are not UTF-8 are passed over. Raises InputError for another split and where the folder
    holds no Python source (an interpreter that ships only byte code).
    """
    if split not in SPLITS:
        raise InputError(f"Split {split!r} is not one of {', '.join(SPLITS)}.")
    root = root or Path(sysconfig.get_path("stdlib"))
    modules = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if SKIPPED_FOLDERS & set(parts[:-1]) or parts[0].startswith(("_sysconfigdata", "config-")):
            continue
        name = ".".join(parts).removesuffix(".__init__")
        if split_of(name) == split:
            try:
                modules[name] = path.read_text("utf-8")
            except UnicodeDecodeError:
                continue
    if not modules:
        raise InputError(f"No Python source under {root}: name a text file with --text.")
    return Text(f"Python standard library, {split} modules", tuple(modules[name] for name in sorted(modules)))


def read_text(path: str | Path) -> Text:
    """A text file as documents: plain UTF-8 cut at every `<|endoftext|>`, or `.json` / `.jsonl` of strings or of
    objects with a field `text`.

    Raises InputError for a file that is missing, empty, not UTF-8, or JSON of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"Text file {path} does not exist.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"Text file {path} is not UTF-8 (byte {error.start}): convert it to UTF-8 first.") from None
    if path.suffix in (".json", ".jsonl"):
        parts = _json_documents(path, text)
    else:
        parts = text.split(END_OF_TEXT)
    documents = tuple(part.strip("\n") for part in parts if part.strip())
    if not documents:
        raise InputError(f"Text file {path} is empty: nothing to measure on.")
    return Text(path.name, documents, str(path.resolve()))


def _json_documents(path: Path, text: str) -> list[str]:
    try:
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise InputError(f"Text file {path} is not valid JSON (line {error.lineno}: {error.msg}).") from None
    documents = [row.get("text") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    if not documents or not all(isinstance(document, str) for document in documents):
        raise InputError(f"Text file {path} must hold a list of strings or of objects with a field `text`.")
    return documents


def is_wikitext(text: Text) -> bool:
    """Whether a text is one document in WikiText's form: its first line is an article's heading, ` = Title = `."""
    return len(text.documents) == 1 and HEADING.match(text.documents[0]) is not None


def joined_rows(text: Text) -> str:
    """The rows of a text joined by two newlines, as papers feed it.

    Rows are documents; those of WikiText are its lines with their ends, as the hub's data set `wikitext-2-raw-v1` has
    them: a line of white space alone is an empty row.
    """
    if not is_wikitext(text):
        return "\n\n".join(text.documents)
    lines = text.documents[0].split("\n")
    return "\n\n".join(line + "\n" if line.strip() else "" for line in lines)


def wikitext_pages(text: Text) -> tuple[str, ...]:
    """The articles of a WikiText, cut as `EleutherAI/wikitext_document_level` is: before each heading of first rank."""
    pages, page = [], []
    for line in text.documents[0].split("\n"):
        bare = line.replace("= = =", "===").replace("= =", "==").strip()
        if bare.startswith("= ") and bare.endswith(" ="):
            pages.append("\n".join(page))
            page = []
        page.append(line)
    return tuple(page for page in [*pages, "\n".join(page)] if page.strip())


def divide(text: Text) -> tuple[Text, Text]:
    """(to calibrate on, to evaluate on): every fourth document and the rest; a single document is cut at a quarter.

    For commands that need both and were given one file, so that nothing is measured on text that was calibrated on.
    """
    if len(text.documents) > 1:
        first, rest = text.documents[::4], tuple(d for i, d in enumerate(text.documents) if i % 4)
    else:
        cut = len(text.documents[0]) // 4
        first, rest = (text.documents[0][:cut],), (text.documents[0][cut:],)
    return Text(f"{text.name}, a quarter", first, text.path), Text(f"{text.name}, three quarters", rest, text.path)
