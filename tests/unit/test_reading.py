"""Files of strangers: each kind of fault ends in one sentence, and none keeps the reader waiting."""

import gzip
import json
import os
import socket

import pytest

from karipap_core import reading
from karipap_core.errors import InputError
from karipap_core.reading import named, open_file, parse_json, read_bytes, read_json, read_text


def said(call, *args, **options) -> str:
    with pytest.raises(InputError) as raised:
        call(*args, **options)
    return str(raised.value)


def test_what_was_written_comes_back(tmp_path):
    document = {"χ": [1, 2.5, None, True, {"a": "\u2028 \U0001d11e"}], "big": 2**64, "small": -1e-300}
    (tmp_path / "x.json").write_text(json.dumps(document))
    assert read_json(tmp_path / "x.json") == document
    (tmp_path / "x.json").write_text(json.dumps(document, ensure_ascii=False), "utf-8-sig")
    assert read_json(tmp_path / "x.json") == document


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[1]", "File FILE holds a list, not an object."),
        ("null", "File FILE holds null, not an object."),
        ("{", "File FILE is not valid JSON (line 1, column 2: Expecting property name enclosed in double quotes)."),
        ('{"a": 1}\n{', "File FILE is not valid JSON (line 2, column 1: Extra data)."),
        ("", "File FILE is empty."),
        ('{"a": 1, "a": 1}', "File FILE has the field 'a' twice: keep one of them."),
        ('{"x": [{"a": 1, "a": 2}]}', "File FILE has the field 'a' twice: keep one of them."),
        ('{"a": NaN}', "File FILE holds the number NaN: JSON has only finite numbers."),
        ('{"a": -Infinity}', "File FILE holds the number -Infinity: JSON has only finite numbers."),
        ('{"a": 1e400}', "File FILE holds the number 1e400, which is beyond what a number can be."),
        ('{"a": -1e400}', "File FILE holds the number -1e400, which is beyond what a number can be."),
        ('{"a": ' + "1" * 500 + "}", "File FILE holds a number of 500 digits: at most 400."),
        ('{"a": 0.' + "1" * 500 + "}", "File FILE holds a number of 502 digits: at most 400."),
        ('{"a": "\\ud800"}', "File FILE holds half of a surrogate pair (\\ud800 to \\udfff alone)."),
        ('{"\\udfff": 1}', "File FILE holds half of a surrogate pair (\\ud800 to \\udfff alone)."),
        (
            '{"a": ' + "[" * 64 + "]" * 64 + "}",
            "File FILE nests values more than 64 deep: that is no file of this kind.",
        ),
    ],
)
def test_strict_json_says_what_is_wrong(tmp_path, text, sentence):
    file = tmp_path / "x.json"
    file.write_text(text)
    assert said(read_json, file) == sentence.replace("FILE", str(file))


def test_values_may_nest_as_deep_as_the_limit():
    deep = "[" * reading.MOST_DEPTH + "]" * reading.MOST_DEPTH
    assert parse_json(deep, "x") is not None
    assert "more than 64 deep" in said(parse_json, f"[{deep}]", "x")


def test_a_whole_surrogate_pair_is_a_character():
    assert parse_json('["\\ud834\\udd1e"]', "x") == ["\U0001d11e"]


def test_lenient_takes_what_other_programs_write_into_configurations():
    document = parse_json('{"limit": [0.0, Infinity], "a": 1, "a": 1}', "x", lenient=True)
    assert document == {"limit": [0.0, float("inf")], "a": 1}
    assert "'a' twice" in said(parse_json, '{"a": 1, "a": 2}', "x", lenient=True)
    assert "1e400" in said(parse_json, '{"a": 1e400}', "x", lenient=True)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (gzip.compress(b"{}", mtime=0), "File FILE is packed with gzip: unpack it first."),
        ("{}".encode("utf-16"), "File FILE is in UTF-16: save it as UTF-8."),
        ("{}".encode("utf-32"), "File FILE is in UTF-32: save it as UTF-8."),
        (b"one\ntwo \xe9", "File FILE is not text in UTF-8 (line 2): save it as UTF-8."),
    ],
)
def test_what_is_not_utf8_is_named(tmp_path, data, sentence):
    file = tmp_path / "x.txt"
    file.write_bytes(data)
    assert said(read_text, file) == sentence.replace("FILE", str(file))


def test_the_byte_order_mark_is_no_part_of_a_text(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\r\n")
    assert read_text(tmp_path / "x.txt") == "one\r\n"


def test_a_file_has_a_largest_size(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(tmp_path / "x", most=5) == b"12345"
    assert said(read_bytes, tmp_path / "x", most=4) == (
        f"{tmp_path}/x has more than 4 bytes: that is too much for a file of this kind."
    )


def test_only_regular_files_are_opened_and_nothing_hangs(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name, sentence in {
        "pipe": f"{tmp_path}/pipe is a named pipe, not a regular file: put a file in its place.",
        "socket": f"{tmp_path}/socket is a socket or a device, not a regular file: put a file in its place.",
        "dangling": f"{tmp_path}/dangling is a link to nowhere, which does not exist.",
        "loop": f"{tmp_path}/loop is a link that leads back to itself.",
        "missing": f"File {tmp_path}/missing does not exist.",
        "": f"{tmp_path} is a folder, not a regular file: put a file in its place.",
        "a\0b": f"{f'{tmp_path}/a' + chr(0) + 'b'!r} cannot be the name of a file.",
        "n" * 300: f"{str(tmp_path / ('n' * 300))[:60]}… is too long to be the name of a file.",
    }.items():
        assert said(open_file, tmp_path / name) == sentence
    assert said(open_file, "/dev/zero") == "/dev/zero is a device, not a regular file: put a file in its place."


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_says_so(tmp_path):
    (tmp_path / "x").write_text("{}")
    (tmp_path / "x").chmod(0)
    assert said(open_file, tmp_path / "x") == f"{tmp_path}/x may not be read by this user: change its permissions."


def test_values_have_jsons_names():
    assert [named(value) for value in ({}, [], "", 1, 1.5, False, None)] == [
        "an object",
        "a list",
        "a string",
        "a number",
        "a number",
        "false",
        "null",
    ]
