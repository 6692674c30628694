"""Text to calibrate on and to evaluate on: any file, or the Python standard library of this very machine.

The standard library is on every user's disk, so nothing has to be downloaded. Its modules are dealt to three
sides by a hash of their names alone: the same module is on the same side on every machine and under every version
of Python, although its text may differ. A model trained on the `train` side (the demo model is) has seen neither
`calibration` nor `heldout`.
"""

import difflib
import hashlib
import os
import re
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.images import Images, read_images
from karipap_core.reading import decode, gunzip, kind_of, open_file, parse_json, read_bytes

SPLITS = ("train", "calibration", "heldout")
END_OF_TEXT = "<|endoftext|>"
SUFFIXES = (".txt", ".raw", ".json", ".jsonl", ".parquet")
HUB_NAMES = ("wikitext", "wikitext-2-raw-v1")
HUB = "hub:"  # begins the name of a data set of the hub: hub:ID[,CONFIG[,SPLIT[,FIELD]]]
HUB_PART = re.compile(r"(?:\w[\w.-]{0,95}/)?\w[\w.-]{0,95}")  # of such a name: an id, a config, a split or a field
HUB_BYTES = 8 << 20  # of a hub's data set are read: the first rows; calibration and evaluation need far less
FIELD = "::"  # between a file's name and the field, or column, that holds its text
TEXT_FORMAT = "karipap-text"
MOST_BYTES = 256 << 20  # of a file, and of the documents in it: texts are held in memory whole
MOST_CONTROLS = 0.1  # of a text's characters may be control characters; prose and programs have none
CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f\x7f-\x84\x86-\x9f\ufffd]")  # not white space, not ANSI's escape
PARQUET, PARQUET_ROWS = b"PAR1", 1024  # how such a file begins; rows that are unpacked at once
HEADING = re.compile(r"\s* = [^=\n]+ = *\n")
# Tests are missing on many systems, pydoc_data is generated prose, _sysconfigdata is one machine's settings.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "pydoc_data"}


@dataclass(frozen=True)
class Text:
    """A text with the name that results show for it and the hash that identifies its bytes."""

    name: str
    documents: tuple[str, ...]
    path: str | None = None  # what `read_text` reads it from again; None for the standard library
    generated: bool = False  # written by a model
    images: Images | None = None  # that a model which sees takes besides, each with its caption

    @property
    def sha256(self) -> str:
        """SHA-256 of the UTF-8 bytes of the documents, each preceded by its length, and of the images' sum (hex).

        Raises InputError for half of a surrogate pair, which a string of Python's can hold and UTF-8 cannot.
        """
        digest = hashlib.sha256()
        for number, document in enumerate(self.documents, 1):
            try:
                data = document.encode()
            except UnicodeEncodeError:
                raise InputError(
                    f"Document {number} of {self.name} holds half of a surrogate pair (\\ud800 to \\udfff alone)."
                ) from None
            digest.update(len(data).to_bytes(8, "little") + data)
        if self.images is not None:
            digest.update(self.images.sha256.encode())
        return digest.hexdigest()

    def with_images(self, folder: str | Path) -> "Text":
        """The same text with the images of a folder besides. Raises InputError as `read_images` does."""
        return replace(self, images=read_images(folder))


def split_of(module: str) -> str:
    """The side a module is on: 10 % `heldout`, 6 % `calibration`, the rest `train`, by SHA-256 of its dotted name."""
    bucket = int(hashlib.sha256(module.encode()).hexdigest(), 16) % 100
    return "heldout" if bucket < 10 else "calibration" if bucket < 16 else "train"


def _sources(root: Path) -> Iterator[Path]:
    """The Python files under a folder but for `SKIPPED_FOLDERS`, which nobody goes into: site-packages may hold ten
    times as many."""
    for place, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)
        yield from (Path(place, name) for name in sorted(files) if name.endswith(".py"))


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
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        if parts[0].startswith(("_sysconfigdata", "config-")):
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
    """A text as documents: plain UTF-8 cut at every `<|endoftext|>`, `.jsonl` (a record a line) / `.json` (a list, or a
    record a line) of strings or of objects with a field `text`, each packed by gzip or not, or `.parquet` with a column
    `text`; `FILE::NAME` for another field or column. Others say nothing here. A text that Karipap stored (`Text.save`)
    is read as it was.

    `path` is a file; a folder of splits, whose test split is read; or, where no such file is, `wikitext-2-raw-v1` or
    `wikitext` for the test split of WikiText-2, or `hub:ID[,CONFIG[,SPLIT[,FIELD]]]`, from the Hugging Face hub, which
    needs `datasets` and a network or its cache. WikiText's rows are one document, the lines of `wiki.test.raw`, however
    they came. A text is held in memory whole: of a file larger than `MOST_BYTES` nothing is read. Raises InputError for
    a file that is missing, empty, too large, not UTF-8, of another form or of control characters, and where the hub
    gives nothing.
    """
    if str(path) in HUB_NAMES and not os.path.exists(path):
        return Text("WikiText-2 raw, test", _row_documents(_wikitext_rows(str(path))), str(path))
    if str(path).startswith(HUB) and not os.path.exists(path):
        return _hub_text(str(path))
    name, _, field = str(path).rpartition(FIELD)
    if not name or os.path.exists(path):
        name, field = str(path), ""
    file = _test_split(Path(name)) if os.path.isdir(name) else Path(name)
    _check_there(file)
    if kind_of(file) == ".parquet":
        documents = _row_documents(_parquet_rows(file, field or "text"))
    elif kind_of(file) == ".json" and (stored := _stored(file)):
        return stored
    else:
        parts = _parts(file, field or "text")
        documents = tuple(part.strip("\n") for part in parts if part.strip())
    if not documents:
        raise InputError(f"Text file {file} is empty: nothing to measure on.")
    _check_characters(file, documents)
    if not field:
        return Text(file.name, documents, str(file.resolve()))
    return Text(f"{file.name}, field {field}", documents, f"{file.resolve()}{FIELD}{field}")


def _stored(path: Path) -> Text | None:
    """The text that Karipap stored in a file; None where it is another file."""
    with open_file(path) as file:
        if f'"{TEXT_FORMAT}"'.encode() not in file.read(200):
            return None
    found = schemas.read(path, "text", MOST_BYTES)
    return Text(found["name"], tuple(found["documents"]), str(path.resolve()), found.get("generated", False))


def _check_there(path: Path) -> None:
    """Raises InputError where no such file is, with the name on the hub that was perhaps meant, and for one that is
    larger than `MOST_BYTES`."""
    meant = [] if os.path.lexists(path) else difflib.get_close_matches(str(path).lower(), HUB_NAMES, n=1)
    if meant:
        raise InputError(f"Text file {path} does not exist. Did you mean {meant[0]!r}, from the hub?")
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
    if size > MOST_BYTES:
        raise InputError(f"Text file {path} has {size:,} bytes, the most is {MOST_BYTES:,}: give a part of it.")


def _parts(path: Path, field: str) -> list[str]:
    """The documents of a file that is not Parquet, empty ones among them."""
    source = f"Text file {path}"
    data = gunzip(read_bytes(path, MOST_BYTES), source, MOST_BYTES)
    if data.startswith(PARQUET):
        raise InputError(f"{source} is Parquet: let its name end with .parquet.")
    kind, text = kind_of(path), decode(data, source)
    if kind == ".json":
        return _json_documents(path, text, field)
    if kind == ".jsonl":
        return _lines_documents(path, text, field)
    return text.replace("\r\n", "\n").replace("\r", "\n").split(END_OF_TEXT)


def _check_characters(path: Path, documents: tuple[str, ...]) -> None:
    """Raises InputError where a file holds what no text does: NUL, or control characters for the most part."""
    if any("\0" in document for document in documents):
        raise InputError(
            f"Text file {path} holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it as "
            "UTF-8."
        )
    controls = sum(len(CONTROLS.findall(document)) for document in documents)
    if controls > MOST_CONTROLS * (total := sum(map(len, documents))):
        raise InputError(
            f"Text file {path} is no text: {controls:,} of its {total:,} characters are control characters or stand "
            "for bytes that could not be read."
        )


def _test_split(folder: Path) -> Path:
    """The one file of a data set's test split."""
    try:
        files = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"Folder {folder} cannot be read: {error.strerror}.") from None
    found = [file for file in files if "test" in file.name and kind_of(file) in SUFFIXES]
    if len(found) != 1:
        names = ", ".join(file.name for file in found[:8]) + (f" and {len(found) - 8} more" if found[8:] else "")
        raise InputError(
            f"Folder {folder} must hold one file of a test split, it holds {names or 'none'}: name a file."
        )
    return found[0]


def _parquet_rows(path: Path, field: str) -> list[str]:
    try:
        import pyarrow
        from pyarrow import parquet, types
    except ImportError:
        raise InputError(f"Text file {path} is Parquet, which needs pyarrow: pip install pyarrow.") from None
    texts: list[str] = []
    try:
        with open_file(path) as handle:
            file = parquet.ParquetFile(handle)
            columns = file.schema_arrow
            of_strings = (types.is_string, types.is_large_string, types.is_string_view)
            kinds = [columns.field(index).type for index in columns.get_all_field_indices(field)]
            kinds = [kind.value_type if types.is_dictionary(kind) else kind for kind in kinds]
            if len(kinds) != 1 or not any(is_one(kinds[0]) for is_one in of_strings):
                names = ", ".join(f"{one.name} ({str(one.type)[:40]})" for one in list(columns)[:8])
                raise InputError(f"Text file {path} must have a column `{field}` of strings, it has {names or 'none'}.")
            size = 0
            for batch in file.iter_batches(PARQUET_ROWS, columns=[field]):
                size += batch.nbytes
                if size > MOST_BYTES:
                    raise InputError(f"Text file {path} unpacks to more than {MOST_BYTES:,} bytes: give a part of it.")
                rows = batch.column(0).to_pylist()
                if None in rows:
                    number = len(texts) + rows.index(None) + 1
                    raise InputError(f"Text file {path} has no text in row {number}: take the row out.")
                texts += rows
    except InputError:
        raise
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"Text file {path} is not valid Parquet: {why}") from None
    return texts


def _from_hub(name: str, fetch: Callable[[Callable], list[str]]) -> list[str]:
    """What `fetch(datasets.load_dataset)` returns. Whatever goes wrong on the way becomes one sentence."""
    advice = "name a text file with --text, such as wiki.test.raw"
    try:
        from datasets import load_dataset

        return fetch(load_dataset)
    except ImportError:
        raise InputError(f"{name} comes from the hub through datasets: pip install datasets, or {advice}.") from None
    except InputError:
        raise
    except Exception as error:  # its errors are of a dozen classes, and an offline machine gives any of them
        why = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")[:300]
        raise InputError(f"{name} could not be fetched from the hub ({why}): {advice}.") from None


def _wikitext_rows(name: str) -> list[str]:
    """The rows of WikiText-2's test split."""
    return _from_hub(name, lambda load: load("Salesforce/wikitext", "wikitext-2-raw-v1", split="test")["text"][:])


def hub_parts(name: str) -> tuple[str, str | None, str, str]:
    """(id, config or None, split, field) of hub:ID[,CONFIG[,SPLIT[,FIELD]]]. Raises InputError for another name.

    >>> hub_parts("hub:roneneldan/TinyStories,,validation")
    ('roneneldan/TinyStories', None, 'validation', 'text')
    """
    parts = [part.strip() for part in name.removeprefix(HUB).split(",")]
    dataset, config, split, field = (parts + [""] * 4)[:4]
    wrong = [part for part in parts if part and not HUB_PART.fullmatch(part)]
    if not dataset or len(parts) > 4 or wrong or "/" in config + split + field:
        raise InputError(
            f"{name[:120]!r} names no data set: hub:ID, or hub:ID,CONFIG,SPLIT,FIELD (letters, digits, ._-)."
        )
    return dataset, config or None, split or "train", field or "text"


def _hub_text(name: str) -> Text:
    """The first `HUB_BYTES` of a data set of the hub. It is streamed, since many are larger than a disk; offline it is
    what the cache of `datasets` holds."""
    dataset, config, split, field = hub_parts(name)

    def fetch(load: Callable) -> list[str]:
        from datasets import config as settings

        found: list[str] = []
        size = 0
        for row in load(dataset, config, split=split, streaming=not settings.HF_HUB_OFFLINE):
            value = row.get(field)
            if field not in row or not isinstance(value, str | None):
                names = ", ".join(str(key)[:40] for key in list(row)[:8])
                raise InputError(f"{name} has no field {field} of strings, it has {names}: hub:ID,CONFIG,SPLIT,FIELD.")
            found.append(value or "")
            size += len(value or "")
            if size > HUB_BYTES:
                break
        return found

    documents = _row_documents(_from_hub(name, fetch))
    if not documents:
        raise InputError(f"{name} is empty: nothing to measure on.")
    return Text(f"{', '.join(filter(None, (dataset, config, split)))} (Hugging Face hub)", documents, name)


def _row_documents(rows: list[str]) -> tuple[str, ...]:
    """Rows as documents; those of WikiText as the one document that its file is, empty rows being its blank lines."""
    whole = "".join(row if row.strip() else " \n" for row in rows).strip("\n")
    if HEADING.match(whole):
        return (whole,)
    return tuple(row.strip("\n") for row in rows if row.strip())


def _json_documents(path: Path, text: str, field: str) -> list[str]:
    """The documents of a JSON list, or of JSON Lines, which most data sets of the hub call .json."""
    source = f"Text file {path}"
    try:
        rows = parse_json(text, source, lenient=True)
    except InputError:
        if _is_json(text.lstrip().partition("\n")[0], dict | str):
            return _lines_documents(path, text, field)
        raise
    if isinstance(rows, dict) and field in rows:
        rows = [rows]  # lines of which there is one
    if not isinstance(rows, list):
        raise InputError(f"{source} must hold a list of strings or of objects with a field `{field}`.")
    return [_row_text(row, f"{source}: item {number} of its list", field) for number, row in enumerate(rows, 1)]


def _lines_documents(path: Path, text: str, field: str) -> list[str]:
    """The documents of JSON Lines. A line ends with "\\n" alone: U+2028 and the like may stand within a string."""
    return [_row_text(row, f"Text file {path}: line {number}", field) for number, row in _json_lines(path, text)]


def _json_lines(path: Path, text: str) -> Iterator[tuple[int, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"Text file {path}, line {number}", lenient=True)
        except InputError:
            if number == 1 and _is_json(text, dict | list):
                raise InputError(f"Text file {path} is one JSON document: let its name end with .json.") from None
            # The same sentence with the line as the file counts it, not as the parser did.
            parse_json("\n" * (number - 1) + line, f"Text file {path}", lenient=True)
            raise
        yield number, row


def _is_json(data: str, kinds) -> bool:
    """Whether a text is one JSON value of these kinds."""
    try:
        return isinstance(parse_json(data, "", lenient=True), kinds)
    except InputError:
        return False


def _row_text(row: object, where: str, field: str) -> str:
    text = row.get(field) if isinstance(row, dict) else row
    if not isinstance(text, str):
        raise InputError(f"{where} is no string and no object with a string in its field `{field}`.")
    return text


def divide(text: Text) -> tuple[Text, Text]:
    """(to calibrate on, to evaluate on): every fourth document and the rest; a single document is cut at a quarter. Of
    images every other.

    For commands that need both and were given one file, so that nothing is measured on text that was calibrated on.
    """
    if len(text.documents) > 1:
        first, rest = text.documents[::4], tuple(d for i, d in enumerate(text.documents) if i % 4)
    else:
        cut = len(text.documents[0]) // 4
        first, rest = (text.documents[0][:cut],), (text.documents[0][cut:],)
    seen, rest_seen = (text.images.part(0, 2), text.images.part(1, 2)) if text.images else (None, None)
    quarter = replace(text, name=f"{text.name}, a quarter", documents=first, images=seen)
    return quarter, replace(text, name=f"{text.name}, three quarters", documents=rest, images=rest_seen)
