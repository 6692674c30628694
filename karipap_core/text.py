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
SUFFIXES = (".txt", ".raw", ".json", ".jsonl", ".parquet")
HUB_NAMES = ("wikitext", "wikitext-2-raw-v1")
HEADING = re.compile(r"\s* = [^=\n]+ = *\n")
# Tests are missing on many systems, pydoc_data is generated prose, _sysconfigdata is one machine's settings.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


@dataclass(frozen=True)
class Text:
    """A text with the name that results show for it and the hash that identifies its bytes."""

    name: str
    documents: tuple[str, ...]
    path: str | None = None  # what `read_text` reads it from again; None for the standard library

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
    """A text as documents: plain UTF-8 cut at every `<|endoftext|>`, `.json` / `.jsonl` of strings or of objects with a
    field `text`, or `.parquet` with a column `text`.

    `path` is a file; a folder of splits, whose test split is read; or, where no such file is, `wikitext-2-raw-v1` or
    `wikitext` for the test split of WikiText-2 from the Hugging Face hub, which needs `datasets` and a network or its
    cache. WikiText's rows are one document, the lines of `wiki.test.raw`, however they came. Raises InputError for a
    file that is missing, empty, not UTF-8, or of another form, and where the hub gives nothing.
    """
    if str(path) in HUB_NAMES and not Path(path).exists():
        return Text("WikiText-2 raw, test", _row_documents(_hub_rows(str(path))), str(path))
    path = _test_split(Path(path)) if Path(path).is_dir() else Path(path)
    if not path.is_file():
        raise InputError(f"Text file {path} does not exist.")
    if path.suffix == ".parquet":
        documents = _row_documents(_parquet_rows(path))
    else:
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"Text file {path} is not UTF-8 (byte {error.start}): convert it to UTF-8 first."
            ) from None
        parts = _json_documents(path, text) if path.suffix in (".json", ".jsonl") else text.split(END_OF_TEXT)
        documents = tuple(part.strip("\n") for part in parts if part.strip())
    if not documents:
        raise InputError(f"Text file {path} is empty: nothing to measure on.")
    return Text(path.name, documents, str(path.resolve()))


def _test_split(folder: Path) -> Path:
    """The one file of a data set's test split."""
    found = sorted(file for file in folder.iterdir() if "test" in file.name and file.suffix in SUFFIXES)
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"Folder {folder} must hold one file of a test split, it holds {names}: name a file.")
    return found[0]


def _parquet_rows(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise InputError(f"Text file {path} is Parquet, which needs pyarrow: pip install pyarrow.") from None
    try:
        table = parquet.read_table(path)
    except (ArrowInvalid, OSError) as error:
        raise InputError(f"Text file {path} is not valid Parquet: {str(error).splitlines()[0]}") from None
    rows = table["text"].to_pylist() if "text" in table.column_names else [None]
    texts = [row for row in rows if isinstance(row, str)]
    if len(texts) < len(rows):
        raise InputError(f"Text file {path} must have a column `text` of strings.")
    return texts


def _hub_rows(name: str) -> list[str]:
    """The rows of WikiText-2's test split. Whatever goes wrong on the way becomes one sentence."""
    advice = "name a text file with --text, such as wiki.test.raw"
    try:
        from datasets import load_dataset

        return load_dataset("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"][:]
    except ImportError:
        raise InputError(f"{name} comes from the hub through datasets: pip install datasets, or {advice}.") from None
    except Exception as error:  # its errors are of a dozen classes, and an offline machine gives any of them
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{name} could not be fetched from the hub ({why}): {advice}.") from None


def _row_documents(rows: list[str]) -> tuple[str, ...]:
    """Rows as documents; those of WikiText as the one document that its file is, empty rows being its blank lines."""
    whole = "".join(row if row.strip() else " \n" for row in rows).strip("\n")
    if HEADING.match(whole):
        return (whole,)
    return tuple(row.strip("\n") for row in rows if row.strip())


def _json_documents(path: Path, text: str) -> list[str]:
    try:
        rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
    except json.JSONDecodeError as error:
        raise InputError(f"Text file {path} is not valid JSON (line {error.lineno}: {error.msg}).") from None
    documents = [row.get("text") if isinstance(row, dict) else row for row in rows] if isinstance(rows, list) else []
    texts = [document for document in documents if isinstance(document, str)]
    if not texts or len(texts) < len(documents):
        raise InputError(f"Text file {path} must hold a list of strings or of objects with a field `text`.")
    return texts


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
    pages: list[str] = []
    page: list[str] = []
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
