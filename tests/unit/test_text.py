"""Texts of strangers: what is read, and the one sentence for each kind of file that is none."""

import gzip
import json
import os
import zipfile

import pyarrow
import pytest
from pyarrow import parquet

from karipap_core import text as texts
from karipap_core.errors import InputError
from karipap_core.text import Text, read_text

NUL = "Text file FILE holds NUL characters, which no text does: is it a binary file, or UTF-16? Give it as UTF-8."
BROKEN = "is not valid JSON (line 2, column 2: Expecting property name enclosed in double quotes)."


def said(call, *args) -> str:
    with pytest.raises(InputError) as raised:
        call(*args)
    return str(raised.value)


def table(file, **columns) -> None:
    parquet.write_table(pyarrow.table(columns), file)


@pytest.mark.parametrize(
    ("name", "data", "documents"),
    [
        ("a.txt", b"one\n<|endoftext|>\n\ntwo\n<|endoftext|>\n", ("one", "two")),
        ("bom.txt", b"\xef\xbb\xbfone\n", ("one",)),
        ("crlf.txt", b"one\r\ntwo\rthree\r\n", ("one\ntwo\nthree",)),
        ("plain", b"no suffix", ("no suffix",)),
        ("odd.md", "\u2028 and \x85 stay, \x1b[1m and \t too".encode(), ("\u2028 and \x85 stay, \x1b[1m and \t too",)),
        ("bom.json", b'\xef\xbb\xbf["one", {"text": "two"}]', ("one", "two")),
        ("a.JSON", b'[{"text": "one", "score": NaN, "tags": {"text": 3}}]', ("one",)),
        ("bom.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n', ("one", "two")),
        ("a.JSONL", b'"one"\n\n   \n"two"', ("one", "two")),
        ("lines.jsonl", '"a\u2028b"\n{"text": "c\u2029d\x85e"}\n'.encode(), ("a\u2028b", "c\u2029d\x85e")),
        ("escapes.jsonl", b'"a\\u2028b \\ud834\\udd1e"', ("a\u2028b \U0001d11e",)),
        ("c4.json", b'\n{"text": "one"}\n\n{"text": "two"}\n', ("one", "two")),
        ("single.json", b'\xef\xbb\xbf{"text": "one"}\n', ("one",)),
        (
            "c4.json.gz",
            gzip.compress(b'{"text": "one"}\n', mtime=0) + gzip.compress(b'{"text": "two"}\n', mtime=0),
            ("one", "two"),
        ),
        ("packed", gzip.compress(b"a<|endoftext|>b", mtime=0), ("a", "b")),
        ("empties.json", b'["", "one", "\\n \\n", "two"]', ("one", "two")),
    ],
)
def test_texts_are_read_as_they_are(tmp_path, name, data, documents):
    (tmp_path / name).write_bytes(data)
    assert read_text(tmp_path / name).documents == documents


def test_columns_of_strings_of_every_kind_are_read(tmp_path):
    kinds = {"string": pyarrow.string(), "large": pyarrow.large_string()}
    for name, kind in kinds.items():
        table(tmp_path / f"{name}.Parquet", text=pyarrow.array(["one", "", "two"], kind), other=[[1], None, [2]])
        assert read_text(tmp_path / f"{name}.Parquet").documents == ("one", "two")
    table(tmp_path / "words.parquet", text=pyarrow.array(["one", "two", "one"]).dictionary_encode())
    assert read_text(tmp_path / "words.parquet").documents == ("one", "two", "one")


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        (
            "a.txt.gz",
            gzip.compress(b"one", mtime=0)[:-9],
            "Text file FILE is a damaged gzip file: fetch it again.",
        ),
        (
            "a.txt",
            gzip.compress(b"one\n", mtime=0) + b"more",
            "Text file FILE is a damaged gzip file: fetch it again.",
        ),
        ("a.json.gz", gzip.compress(b'{"text": "a"}\n{', mtime=0), f"Text file FILE {BROKEN}"),
        ("a.json", b"(\xb5/\xfd0123", "Text file FILE is packed with zstandard: unpack it first."),
        ("a.txt", "é".encode("latin-1"), "Text file FILE is not text in UTF-8 (line 1): save it as UTF-8."),
        ("a.txt", b"one\ntwo\n\xff", "Text file FILE is not text in UTF-8 (line 3): save it as UTF-8."),
        ("a.txt", "one".encode("utf-16"), "Text file FILE is in UTF-16: save it as UTF-8."),
        (
            "a.txt",
            "one".encode("utf-16-le"),
            NUL,
        ),
        (
            "a.jsonl",
            b'"a\\u0000b"',
            NUL,
        ),
        (
            "a.txt",
            b"\x01\x02\x03 " * 5 + b"abc",
            "Text file FILE is no text: 15 of its 23 characters are control characters or stand for bytes that could "
            "not be read.",
        ),
        (
            "a.txt",
            "was latin: \ufffd\ufffd\ufffd".encode(),
            "Text file FILE is no text: 3 of its 14 characters are control characters or stand for bytes that could "
            "not be read.",
        ),
        ("a.txt", b"", "Text file FILE is empty: nothing to measure on."),
        ("a.txt", b"\xef\xbb\xbf \n\n", "Text file FILE is empty: nothing to measure on."),
        ("a.txt", b"<|endoftext|>\n<|endoftext|>", "Text file FILE is empty: nothing to measure on."),
        ("a.json", b"[]", "Text file FILE is empty: nothing to measure on."),
        ("a.json", b'["", " "]', "Text file FILE is empty: nothing to measure on."),
        ("a.jsonl", b"\n\n", "Text file FILE is empty: nothing to measure on."),
        ("a.json", b"", "Text file FILE is empty."),
        ("a.jsonl", b'[\n"one",\n"two"\n]', "Text file FILE is one JSON document: let its name end with .json."),
        ("a.json", b'{"txt": "one"}', "Text file FILE must hold a list of strings or of objects with a field `text`."),
        (
            "a.json",
            b'["one", {"txt": "two"}]',
            "Text file FILE: item 2 of its list is no string and no object with a string in its field `text`.",
        ),
        (
            "a.jsonl",
            b'"one"\n\n{"text": 3}\n',
            "Text file FILE: line 3 is no string and no object with a string in its field `text`.",
        ),
        (
            "a.jsonl",
            b"null",
            "Text file FILE: line 1 is no string and no object with a string in its field `text`.",
        ),
        (
            "a.jsonl",
            b'"one"\n"two"\n{"text": }\n',
            "Text file FILE is not valid JSON (line 3, column 10: Expecting value).",
        ),
        (
            "a.jsonl",
            b'"one"\n"\\ud800"\n',
            "Text file FILE holds half of a surrogate pair (\\ud800 to \\udfff alone).",
        ),
        ("a.jsonl", b'"a"\n{"text": "b", "text": "c"}', "Text file FILE has the field 'text' twice: keep one of them."),
        ("a.txt", b"PAR1 and so on", "Text file FILE is Parquet: let its name end with .parquet."),
    ],
)
def test_what_is_no_text_is_said_in_a_sentence(tmp_path, name, data, sentence):
    (tmp_path / name).write_bytes(data)
    assert said(read_text, tmp_path / name) == sentence.replace("FILE", str(tmp_path / name))


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"txt": ["a"]}, "must have a column `text` of strings, it has txt (string)."),
        ({"text": [1, 2]}, "must have a column `text` of strings, it has text (int64)."),
        ({"text": [b"a"]}, "must have a column `text` of strings, it has text (binary)."),
        ({"text": [["a"]]}, "must have a column `text` of strings, it has text (list<element: string>)."),
        ({"text": [{"text": "a"}]}, "must have a column `text` of strings, it has text (struct<text: string>)."),
        ({"text": pyarrow.nulls(2)}, "must have a column `text` of strings, it has text (null)."),
        ({}, "must have a column `text` of strings, it has none."),
        ({"text": ["a", None]}, "has no text in row 2: take the row out."),
        ({"text": pyarrow.array([], pyarrow.string())}, "is empty: nothing to measure on."),
        ({"text": ["", "\n"]}, "is empty: nothing to measure on."),
    ],
)
def test_tables_without_texts_are_said_in_a_sentence(tmp_path, columns, sentence):
    file = tmp_path / "a.parquet"
    table(file, **columns)
    assert said(read_text, file) == f"Text file {file} {sentence}"


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "zeros"])
def test_damaged_tables_are_said_in_a_sentence(tmp_path, damage):
    file = tmp_path / "a.parquet"
    table(file, text=[f"document {number}" for number in range(1000)])
    whole = file.read_bytes()
    file.write_bytes(
        {
            "text": b"one two",
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "zeros": whole[:4] + bytes(len(whole) // 2) + whole[len(whole) // 2 + 4 :],
        }[damage]
    )
    assert said(read_text, file).startswith(f"Text file {file} is not valid Parquet: ")


def test_a_table_that_unpacks_to_too_much_is_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST_BYTES", 20_000)
    monkeypatch.setattr(texts, "PARQUET_ROWS", 16)
    file = tmp_path / "a.parquet"
    table(file, text=["the same words " * 10] * 1000)
    assert file.stat().st_size < 20_000
    assert said(read_text, file) == f"Text file {file} unpacks to more than 20,000 bytes: give a part of it."
    file = tmp_path / "a.txt.gz"
    file.write_bytes(gzip.compress(b"the same words " * 10_000, mtime=0))
    assert file.stat().st_size < 1000
    assert said(read_text, file) == f"Text file {file} unpacks to more than 20,000 bytes: give a part of it."


def test_of_a_file_that_is_too_large_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "MOST_BYTES", 1000)
    monkeypatch.setattr(texts, "read_bytes", None)
    (tmp_path / "a.txt").write_text("a" * 1001)
    assert said(read_text, tmp_path / "a.txt") == (
        f"Text file {tmp_path}/a.txt has 1,001 bytes, the most is 1,000: give a part of it."
    )


def test_what_is_no_file_never_keeps_anybody_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder.txt").mkdir()
    here = str(tmp_path)
    assert said(read_text, tmp_path / "pipe.txt") == (
        f"{here}/pipe.txt is a named pipe, not a regular file: put a file in its place."
    )
    assert said(read_text, tmp_path / "dangling.txt") == (
        f"{here}/dangling.txt is a link to nowhere.txt, which does not exist."
    )
    assert said(read_text, tmp_path / "loop.txt") == f"{here}/loop.txt is a link that leads back to itself."
    assert said(read_text, tmp_path / "folder.txt") == (
        f"Folder {here}/folder.txt must hold one file of a test split, it holds none: name a file."
    )
    assert said(read_text, tmp_path / "no.txt") == f"File {here}/no.txt does not exist."
    assert said(read_text, "a\0b") == "'a\\x00b' cannot be the name of a file."
    assert said(read_text, "x" * 5000) == f"{'x' * 60}… is too long to be the name of a file."


def test_a_misspelt_name_of_the_hub_is_answered_with_the_nearest():
    assert said(read_text, "wikitext2-raw-v1") == (
        "Text file wikitext2-raw-v1 does not exist. Did you mean 'wikitext-2-raw-v1', from the hub?"
    )
    assert said(read_text, "Wikitxt") == "Text file Wikitxt does not exist. Did you mean 'wikitext', from the hub?"
    assert said(read_text, "tinystories") == "File tinystories does not exist."


def test_a_folder_of_splits_needs_one_file_of_a_test_split(tmp_path):
    for name in ("a-test.txt", "train.txt"):
        (tmp_path / name).write_text("one")
    assert read_text(tmp_path).name == "a-test.txt"
    (tmp_path / "b-test.JSONL").write_text('"two"')
    assert said(read_text, tmp_path) == (
        f"Folder {tmp_path} must hold one file of a test split, it holds a-test.txt, b-test.JSONL: name a file."
    )


def test_half_a_pair_in_a_text_of_python_is_said():
    assert said(lambda: Text("mine", ("one", "\ud800")).sha256) == (
        "Document 2 of mine holds half of a surrogate pair (\\ud800 to \\udfff alone)."
    )


def test_a_zip_archive_is_said_to_be_packed(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.txt", "w") as archive:
        archive.writestr("x", json.dumps("one"))
    assert said(read_text, tmp_path / "a.txt") == f"Text file {tmp_path}/a.txt is packed with zip: unpack it first."
