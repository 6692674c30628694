"""Kept files: what is damaged counts as not there, and what was written before there were sums still counts."""

import json
import random

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from karipap_core.reading import read_json
from karipap_core.workspace.kept import has_tensors, keep_json, keep_tensors, kept_json, kept_note, kept_tensors

TENSORS = {"a|weight": torch.arange(12, dtype=torch.float64).reshape(3, 4), "b": torch.ones(5, dtype=torch.bfloat16)}


def test_tensors_come_back_with_what_was_said_of_them(tmp_path):
    file = tmp_path / "deep" / "x.safetensors"
    keep_tensors(file, TENSORS, {"row": json.dumps({"χ": 'a "quoted" name'}), "key": "k"})
    tensors, note = kept_tensors(file)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS) and tensors.keys() == TENSORS.keys()
    assert json.loads(note["row"]) == {"χ": 'a "quoted" name'} and note["key"] == "k"
    assert kept_note(file) == note and has_tensors(file)
    keep_tensors(tmp_path / "none.safetensors", {}, {"state": "1"})
    assert kept_tensors(tmp_path / "none.safetensors") == ({}, {"state": "1"})
    keep_tensors(tmp_path / "numpy.safetensors", {"a": np.arange(3)})
    assert kept_tensors(tmp_path / "numpy.safetensors", "numpy")[0]["a"].tolist() == [0, 1, 2]


def test_equal_contents_are_equal_bytes(tmp_path):
    for name in "xyz":
        keep_tensors(tmp_path / name, TENSORS, dict(sorted({"row": "1", "key": "k"}.items(), reverse=name == "y")))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes() == (tmp_path / "z").read_bytes()


def test_any_flipped_bit_and_any_cut_is_found(tmp_path, caplog):
    file = tmp_path / "x.safetensors"
    keep_tensors(file, TENSORS, {"row": "1", "key": "k"})
    whole = file.read_bytes()
    rng = random.Random(1)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << rng.randrange(8)
        file.write_bytes(damaged)
        assert kept_tensors(file) is None, f"byte {place}"
        file.write_bytes(whole[:place])
        assert kept_note(file) is None, f"cut to {place}"
    assert f"File {file} is damaged (" in caplog.text and "it counts as not there" in caplog.text
    file.write_bytes(whole)
    assert has_tensors(file) and not has_tensors(tmp_path / "absent")


def test_tensors_of_before_there_were_sums_count_where_they_are_whole(tmp_path):
    file = tmp_path / "old.safetensors"
    save_file({"a": np.arange(3)}, file, {"key": "k"})
    assert kept_tensors(file, "numpy")[1] == {"key": "k"}
    file.write_bytes(file.read_bytes()[:-8])
    assert kept_tensors(file, "numpy") is None


@pytest.mark.parametrize("damage", ["half", "digit", "not json"])
def test_a_damaged_document_counts_as_not_there(tmp_path, caplog, damage):
    file = tmp_path / "x.json"
    assert kept_json(file) is None
    keep_json(file, {"loss": 1.5, "χ": [1, None]})
    assert kept_json(file) == {"loss": 1.5, "χ": [1, None]}
    text = file.read_text()
    file.write_text({"half": text[: len(text) // 2], "digit": text.replace("1.5", "1.7"), "not json": "x"}[damage])
    assert kept_json(file) is None
    assert str(file) in caplog.text and "not there" in caplog.text


def test_a_document_of_before_there_were_sums_counts(tmp_path):
    (tmp_path / "x.json").write_text('{"loss": 1.5}')
    assert kept_json(tmp_path / "x.json") == {"loss": 1.5}
    keep_json(tmp_path / "x.json", read_json(tmp_path / "x.json"))
    keep_json(tmp_path / "y.json", read_json(tmp_path / "x.json"))
    assert (tmp_path / "x.json").read_bytes() == (tmp_path / "y.json").read_bytes(), "sealed twice is sealed once"
