"""The published points: whole, sourced, marked, and drawn where the papers put them."""

import json
import math

import pytest

from karipap_core.errors import InputError
from karipap_core.figures import published
from karipap_core.figures import runs as figures_runs
from karipap_core.tradeoffs import published as anchors
from tests.helpers.points import point


def test_every_point_has_a_source_and_says_what_it_is():
    found = anchors.load()
    methods = {anchor["method"] for anchor in found}
    assert {"KARIPAP", "CompactifAI 93 %", "SVD-LLM", "AQLM", "GPTQ"} <= methods
    assert all("arXiv" in anchor["source"] for anchor in found)
    keys = [(a["method"], a["model"], a["dataset"], a["kept"], a["bytes_kept"]) for a in found]
    assert len(set(keys)) == len(keys)
    karipap = next(anchor for anchor in found if anchor["method"] == "KARIPAP")
    assert "Not reproducible" in karipap["note"]


def test_perplexities_of_two_contexts_have_dense_models_of_their_own():
    contexts = {(a["model"], a["context"]): a["dense"] for a in anchors.load() if a["metric"] == "perplexity"}
    assert contexts == {("LLaMA-1-7B", 2048): 5.68, ("LLaMA-2-7B", 4096): 5.12}


def test_axes():
    anchor = next(a for a in anchors.load() if a["method"] == "SVD-LLM" and a["kept"] == 0.8)
    assert anchors.value(anchor, "rise") == pytest.approx(math.log(7.94 / 5.68))
    assert anchors.value(anchor, "loss") == pytest.approx(math.log(7.94)) and anchors.value(anchor, "kl") is None
    four_bits = next(a for a in anchors.load() if a["method"] == "AQLM" and a["y"] == 5.21)
    assert four_bits["bytes_kept"] == pytest.approx(4.04 / 16)
    scores = anchors.on_axes("bytes_kept", "hellaswag")
    assert sorted(a["y"] for a in scores) == [0.7654, 0.7787] and all(a["family"] == "tensor network" for a in scores)
    assert anchors.on_axes("kept_blocks", "rise") == []
    by_parameters = {a["method"] for a in anchors.on_axes("kept", "rise")}
    assert "Dobi-SVD" not in by_parameters  # its ratio counts 8-bit storage


@pytest.mark.parametrize("log", [True, False])
def test_the_layer_is_marked_and_leaves_what_was_measured(log):
    measured = [point("a", "network", "lowrank", 0.5, 0.1), point("b", "network", "lowrank", 0.7, 0.01)]
    plain, figure = (figures_runs.tradeoff(measured, log=log) for _ in range(2))
    published.add_published(figure)
    added = figure.data[len(plain.data) :]
    assert figure.data[: len(plain.data)] == plain.data and added
    assert {trace.legendgrouptitle.text for trace in added} == {"published, not measured here"}
    assert all("published, not measured here" in text for trace in added for text in trace.hovertext)
    aqlm = next(trace for trace in added if trace.name == "AQLM, LLaMA-2-7B")
    assert list(aqlm.x) == sorted(aqlm.x) and aqlm.y[-1] == pytest.approx(math.log(5.21 / 5.12))
    assert figure.layout.yaxis.tickvals is None  # no fixed ticks, which would end before the worst of the layer
    assert figure.to_json()


def test_axes_without_published_points_leave_the_figure_alone():
    figure = figures_runs.tradeoff([point("a", "network", "lowrank", 0.5, 0.1)], y="kl")
    before = figure.to_json()
    assert published.add_published(figure, "bytes_kept", "kl").to_json() == before


@pytest.mark.parametrize(
    ("key", "bad", "says"),
    [
        ("source", "", "field source"),
        ("kept", 1.2, "field kept"),
        ("y", "5", "field y"),
        ("y", 0.5, "below 1"),
        ("metric", "loss", "field metric"),
        ("y", float("inf"), "the number Infinity"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, key, bad, says):
    document = json.loads(anchors.FILE.read_text())
    document["anchors"] = [document["anchors"][0] | {key: bad}]
    file = tmp_path / "anchors.json"
    file.write_text(json.dumps(document))
    with pytest.raises(InputError, match=says):
        anchors.load(file)


def test_other_files_are_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"format": "karipap-plan"}')
    with pytest.raises(InputError, match="no list of anchors"):
        anchors.load(file)


def test_rows_for_a_table():
    rows = anchors.table()
    assert len(rows) == len(anchors.load()) and rows[0]["source"]
    assert all(row["metric"] == "perplexity" for row in anchors.table("bytes_kept", "rise"))
