"""Files that come from outside the program, read with limits: regular files only, of bounded size, strict JSON.

Everything here raises `InputError` with one sentence that names the file. Strict JSON is what RFC 8259 calls
interoperable: names within an object are unique, numbers are finite, strings are Unicode. What it leaves open is
bounded here: size, depth, digits of a number.
"""

import errno
import gzip
import json
import os
import re
import stat
import zlib
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import Any

from karipap_core.errors import InputError

MOST_BYTES = 64 << 20  # of one JSON file; tokenizers of 250,000 words take 30 MB
MOST_DEPTH = 64  # objects and lists within each other
MOST_DIGITS = 400  # of one number; 64-bit integers have 20, the largest double written out has 309
UNPACK = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"(\xb5/\xfd": "zstandard", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
GZIP, PACKED = b"\x1f\x8b", ".gz"  # how such a file begins, and how its name ends
DOCUMENTS = {b"%PDF-": "PDF", b"{\\rtf": "RTF"}  # of which all bytes may be ASCII
OTHER_UNICODE = {  # UTF-32 first: its mark begins as that of UTF-16 does
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
POINTER = b"version https://git-lfs.github.com/spec/"
PAGES = (b"<!doctype html", b"<html")
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def open_file(path: str | Path) -> BufferedReader:
    """A regular file, opened for reading bytes; the caller closes it.

    Raises InputError where there is none: it is missing, a link that leads nowhere or round in a circle, a folder, a
    pipe or device (which could keep the program waiting for ever), or one that this user may not read.
    """
    try:
        # Without O_NONBLOCK a pipe that nobody writes to would hang right here.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise InputError(_why_closed(path, error)) from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise InputError(f"{path} is {_kind(mode)}, not a regular file: put a file in its place.")
    return os.fdopen(descriptor, "rb")


def _kind(mode: int) -> str:
    return next((words for test, words in KINDS if test(mode)), "something else")


def _why_closed(path: str | Path, error: OSError | ValueError) -> str:
    if not isinstance(error, OSError):  # a NUL byte
        return f"{str(path)!r} cannot be the name of a file."
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        if os.path.islink(path):
            return f"{path} is a link to {os.readlink(path)}, which does not exist."
        return f"File {path} does not exist."
    if error.errno == errno.ELOOP:
        return f"{path} is a link that leads back to itself."
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{path} may not be read by this user: change its permissions."
    if error.errno == errno.ENXIO:
        return f"{path} is a socket or a device, not a regular file: put a file in its place."
    if error.errno == errno.ENAMETOOLONG:
        return f"{str(path)[:60]}… is too long to be the name of a file."
    if error.errno == errno.EISDIR:
        return f"{path} is a folder, not a regular file: put a file in its place."
    return f"{path} cannot be read: {error.strerror}."


def read_bytes(path: str | Path, most: int = MOST_BYTES) -> bytes:
    """All of a regular file. Raises InputError as `open_file` does, and where it has more than `most` bytes."""
    with open_file(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from None
    if len(data) > most:
        raise InputError(f"{path} has more than {most:,} bytes: that is too much for a file of this kind.")
    return data


def kind_of(path: str | Path) -> str:
    """The end of a file's name, in small letters, that of one packed by gzip without the packing: ".json"."""
    return Path(str(path).lower().removesuffix(PACKED)).suffix


def gunzip(data: bytes, source: str, most: int = MOST_BYTES) -> bytes:
    """What these bytes pack where they are a gzip file, else the bytes. `source` begins each error's sentence.

    Raises InputError for a damaged file, and for one that unpacks to more than `most` bytes, of which no more are made.
    """
    if not data.startswith(GZIP):
        return data
    try:
        with gzip.open(BytesIO(data)) as file:
            found = file.read(most + 1)
    except (OSError, EOFError, zlib.error):
        raise InputError(f"{source} is a damaged gzip file: fetch it again.") from None
    if len(found) > most:
        raise InputError(f"{source} unpacks to more than {most:,} bytes: give a part of it.")
    return found


def decode(data: bytes, source: str) -> str:
    """UTF-8 as text, without the byte order mark that some editors put first.

    Raises InputError for bytes that are not UTF-8: it names what they seem to be (packed, UTF-16), else the line.
    """
    for magic, program in UNPACK.items():
        if data.startswith(magic):
            raise InputError(f"{source} is packed with {program}: unpack it first.")
    for magic, name in DOCUMENTS.items():
        if data.startswith(magic):
            raise InputError(f"{source} is a document in {name}: save it as plain text.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for mark, name in OTHER_UNICODE.items():
            if data.startswith(mark):
                raise InputError(f"{source} is in {name}: save it as UTF-8.") from None
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(f"{source} is not text in UTF-8 (line {line}): save it as UTF-8.") from None


def read_text(path: str | Path, most: int = MOST_BYTES) -> str:
    """A text file in UTF-8, line ends as they are. Raises InputError as `read_bytes` and `decode` do."""
    return decode(read_bytes(path, most), f"File {path}")


def instead(data: bytes) -> str | None:
    """What lies in a file's place where fetching it went wrong, by its first bytes, such as "is empty"; else None."""
    start = data[:200].strip().lower()
    if not start.strip(b"\0"):
        return "begins with nothing but zeros: fetch it again" if start else "is empty"
    if start.startswith(POINTER):
        return "is a pointer of git-lfs, not the file itself: run `git lfs pull` where it came from"
    return "is a web page, not the file itself: fetch it again" if start.startswith(PAGES) else None


def parse_json(data: bytes | str, source: str, *, lenient: bool = False) -> Any:
    """The value of a JSON text. `source` begins each error's sentence, such as "File plan.json".

    Raises InputError for what is no JSON, a name given twice in an object, a number that is not finite (1e400 too) or
    has more than `MOST_DIGITS` digits, half a surrogate pair, and values nested deeper than `MOST_DEPTH`. `lenient` is
    for configurations that other programs wrote: it lets NaN and Infinity through, and a name given twice with the
    same value.
    """
    text = decode(data, source) if isinstance(data, bytes) else data.removeprefix("\ufeff")
    strict = _Strict(source, lenient)
    try:
        document = json.loads(
            text,
            object_pairs_hook=strict.fields,
            parse_constant=strict.constant,
            parse_float=strict.number,
            parse_int=strict.integer,
        )
    except json.JSONDecodeError as error:
        if other := instead(text[:200].encode(errors="replace")):
            raise InputError(f"{source} {other}.") from None
        raise InputError(
            f"{source} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})."
        ) from None
    except RecursionError:
        raise InputError(strict.too_deep) from None
    strict.check_depth(document)
    if re.search(r"\\u[dD]", text):  # only an escape can smuggle in half a pair
        strict.check_unicode(document)
    return document


class _Strict:
    """What `json.loads` asks while it parses, and what is looked at afterwards."""

    def __init__(self, source: str, lenient: bool):
        self.source, self.lenient = source, lenient
        self.too_deep = f"{source} nests values more than {MOST_DEPTH} deep: that is no file of this kind."

    def fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document: dict[str, Any] = {}
        for name, value in pairs:
            if name in document and not (self.lenient and document[name] == value):
                raise InputError(f"{self.source} has the field {name!r} twice: keep one of them.")
            document[name] = value
        return document

    def constant(self, name: str) -> float:
        if not self.lenient:
            raise InputError(f"{self.source} holds the number {name}: JSON has only finite numbers.")
        return float(name.replace("Infinity", "inf"))

    def number(self, digits: str) -> float:
        value = float(self._short(digits))
        if value in (float("inf"), float("-inf")):
            raise InputError(f"{self.source} holds the number {digits[:20]}, which is beyond what a number can be.")
        return value

    def integer(self, digits: str) -> int:
        return int(self._short(digits))

    def _short(self, digits: str) -> str:
        if len(digits) > MOST_DIGITS:
            raise InputError(f"{self.source} holds a number of {len(digits):,} digits: at most {MOST_DIGITS}.")
        return digits

    def check_depth(self, document: Any) -> None:
        level, depth = [document], 0
        while level := [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]:
            depth += 1
            if depth >= MOST_DEPTH:
                raise InputError(self.too_deep)

    def check_unicode(self, document: Any) -> None:
        try:
            json.dumps(document, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InputError(f"{self.source} holds half of a surrogate pair (\\ud800 to \\udfff alone).") from None


def read_json(path: str | Path, *, most: int = MOST_BYTES, lenient: bool = False) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError as `read_bytes` and `parse_json` do, and where it is no object."""
    document = parse_json(read_bytes(path, most), f"File {path}", lenient=lenient)
    if not isinstance(document, dict):
        raise InputError(f"File {path} holds {named(document)}, not an object.")
    return document


def named(value: Any) -> str:
    """What a JSON value is, in JSON's words: "a list", "a string", "a number", "true", "null".

    >>> named([1]), named("a"), named(2.5), named(True), named(None)
    ('a list', 'a string', 'a number', 'true', 'null')
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    words = {dict: "an object", list: "a list", str: "a string", int: "a number", float: "a number"}
    return words.get(type(value), type(value).__name__)
