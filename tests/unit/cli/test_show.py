"""Documents as tables."""

import json

import pytest

from karipap_core import terminal
from karipap_core.cli import frame as cli
from karipap_core.cli.tables import anything
from karipap_core.cli.tables import evaluation as show
from karipap_core.cli.tables.plan import table as plan_table
from karipap_core.errors import InputError
from karipap_core.workspace import Workspace, documents
from karipap_core.workspace.files import write_json
from tests.helpers.paths import REPOSITORY
from tests.helpers.points import LEAST

FINGERPRINT = "ab" * 32
PLAN = {
    "format": "karipap-plan",
    "version": 1,
    "model": {"name": "tiny", "fingerprint": FINGERPRINT, "parameters": 4000},
    "metric": "loss",
    "rule": "best",
    "chosen_rule": "refined",
    "scope": "blocks",
    "budget": 0.7,
    "weights": {
        "layers.0.q": {"network": "lowrank", "out": [32], "in": [64], "chi": [5], "locked": True},
        "layers.0.up": {"network": "dense"},
    },
    "predicted": {"kept": 0.75, "parameters": 3000, "bytes": 6000, "bytes_kept": 0.75, "rise": 0.123456, "error": 0.1},
    "tried": [{"rule": "loss", "rise": 0.2}, {"rule": "refined", "rise": 0.123}],
}
ROW = {"layer": 0, "role": "q", "expert": None, "dtype": "float32", "compressible": True, "notes": [], "bonds": []}
NUMBERS = {"normalized_entropy": None, "effective_rank": None}
PROFILE = {
    "format": "karipap-profile",
    "version": 1,
    "model": "tiny",
    "fingerprint": FINGERPRINT,
    "parameters": 4000,
    "settings": {"metrics": ["weight"], "network": None, "text": None},
    "weights": [
        ROW
        | {
            "name": "layers.0.q",
            "shape": [32, 64],
            "parameters": 2048,
            "spectra": {"weight": NUMBERS | {"entropy": 3.0, "excess": 0.25, "rank": 32}},
        },
        ROW | {"name": "embed\x1b[31m", "shape": [512, 64], "parameters": 32768, "spectra": {}},
    ],
    "skipped": [{"name": "norm", "why": "a vector"}],
}


def rows(text: str) -> list[list[str]]:
    """The cells of a table: columns are two spaces or more apart."""
    lines = text.splitlines()
    rule = next(i for i, line in enumerate(lines) if line.startswith("─"))
    ends = [i for i, letter in enumerate(lines[rule] + " ") if letter == " " and lines[rule][i - 1 : i] == "─"]
    starts = [0, *(end + 2 for end in ends[:-1])]
    end = next((i for i, line in enumerate(lines) if i > rule and not line), len(lines))
    table = [lines[rule - 1], *lines[rule + 1 : end]]
    return [[line[a:b].strip() for a, b in zip(starts, ends, strict=True)] for line in table if line.strip()]


def test_grid_aligns_and_loses_nothing():
    text = terminal.grid(["name", "n", "x"], [["a", 1234567, 0.123456], ["long name", None, 12345.6]])
    assert text.splitlines() == [
        "name               n       x",
        "─────────  ─────────  ──────",
        "a          1,234,567  0.1235",
        "long name          –  12,346",
    ]


def test_a_plan_shows_each_weight_and_what_is_predicted(tmp_path, capsys):
    path = tmp_path / "plan.json"
    write_json(path, PLAN)
    assert cli.main(["show", str(path)]) == 0
    text = capsys.readouterr().out
    assert "best (refined won)" in text
    assert "3,000: 75.0% kept, 25.0% removed" in text
    assert "70.0% of the parameters of the blocks" in text
    assert "rises by 0.1235, usually within ±10%" in text
    table = [line.split("  ") for line in text.splitlines() if line.startswith("layers.0.q")]
    cells = [cell.strip() for cell in table[0] if cell.strip()]
    assert cells == ["layers.0.q", "lowrank", "32 × 64", "5", "480", "0.2344", "locked"]
    assert "tried: rule refined, rise 0.123" in text
    assert cli.main(["show", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == PLAN


def test_a_profile_shows_what_is_there_and_what_was_skipped(tmp_path):
    write_json(tmp_path / "profile.json", PROFILE)
    text = anything(documents.find(tmp_path))
    assert rows(text)[1] == ["layers.0.q", "32 × 64", "2,048", "3", "–", "0.25", "–", "–", "32", "–"]
    assert "skipped: norm: a vector" in text
    assert "\x1b" not in text, "names from a checkpoint do not steer the terminal"


def test_a_compressed_folder_shows_its_report(tmp_path):
    row = {"name": "layers.0.q", "network": "lowrank", "chi": [5], "parameters": 480, "weight_error": 0.25}
    result = {"kept": 0.75, "parameters": 3000, "bytes": 6000, "bytes_kept": 0.75, "kept_blocks": 0.5}
    report = {
        "format": "karipap-report",
        "version": 1,
        "result": result | {"weights": [row | {"functional_error": None}]},
    }
    write_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "karipap", "plan": PLAN}})
    assert "locked" in anything(documents.find(tmp_path)), "without its report the plan is shown"
    write_json(tmp_path / "karipap.json", report)
    text = anything(documents.find(tmp_path))
    assert rows(text)[1] == ["layers.0.q", "lowrank", "5", "480", "0.25", "–"]
    assert "50.0% of their parameters kept" in text


def test_an_evaluation_stands_beside_the_dense_model():
    ours = {"loss": 1.5, "perplexity": 4.48, "bits_per_byte": 1.2, "tokens": 1000}
    document = ours | {
        "dense": ours | {"loss": 1.25},
        "rise": 0.25,
        "rise_error": 0.01,
        "kl": 0.2,
        "top1_agreement": 0.9,
        "model": "compressed",
        "against": "dense",
        "text": {"name": "some text", "sha256": "0"},
        "window": 256,
        "stride": 128,
        "speed": {"compressed": {"decode_ms_per_token": 2.5}, "dense": {"decode_ms_per_token": 5.0}},
        "memory": {"compressed": {"disk_bytes": 1000}},
        "notes": ["a note"],
    }
    text = show.table(document)
    assert ["loss, nats a token", "1.5", "1.25"] in rows(text)
    assert ["decode, ms a token", "2.5", "5"] in rows(text)
    assert ["on disk, bytes", "1,000", "–"] in rows(text)
    assert "0.25 ± 0.01" in text
    assert text.endswith("a note")
    alone = show.table(ours | {"dense": None, "text": None})
    assert ["loss, nats a token", "1.5", "–"] in rows(alone)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no profile"),
        (lambda path: path.write_text("{}"), "field 'format'"),
        (lambda path: path.write_text("nonsense"), "not valid JSON"),
        (lambda path: write_json(path, {"format": "karipap-profile", "version": 1}), "field model is missing"),
        (lambda path: write_json(path, PLAN | {"metric": "taste"}), "metric"),
        (lambda path: write_json(path / "config.json", {"model_type": "llama"}), "`profile`"),
    ],
)
def test_what_cannot_be_shown_is_said(tmp_path, make, said):
    path = tmp_path / "given"
    make(path)
    with pytest.raises(InputError, match=said):
        anything(documents.find(path))


def test_a_folder_of_runs_is_a_sweep(tmp_path):
    workspace = Workspace(tmp_path)
    workspace.new_run(LEAST | {"kept": 0.9})
    workspace.new_run(LEAST | {"kept": 0.7})
    assert [run["kept"] for run in documents.find(workspace.runs_dir)["runs"]] == [0.9, 0.7]


def test_a_sweep_is_ordered_by_size_and_marks_the_front():
    point = {"format": "karipap-run", "kept": 0.5, "rise": 0.1, "kl": 0.2, "top1_agreement": 0.9}
    small = point | {"id": "a", "label": "lowrank, best, kept 0.5", "bytes_kept": 0.5, "loss": 3.0}
    large = point | {"id": "b", "label": "lowrank, best, kept 0.9", "bytes_kept": 0.9, "loss": 2.0}
    rival = point | {"id": "c", "label": "int8, RTN", "bytes_kept": 0.52, "loss": 1.5, "plan": None}
    document = {"format": "karipap-sweep", "version": 1, "runs": [large, small], "baselines": [rival]}
    text = anything(document | {"quality": "loss", "pareto": ["a", "c"], "notes": ["where it was measured"]})
    assert [row[:3] for row in rows(text)[1:]] == [
        ["*", "lowrank, best, kept 0.5", "0.5"],
        ["*", "int8, RTN", "0.52"],
        ["", "lowrank, best, kept 0.9", "0.9"],
    ]
    assert text.endswith("where it was measured")
    alone = anything(small | {"plan": PLAN, "settings": {"rule": "best"}, "model": {"name": "tiny"}})
    assert "lowrank, best, kept 0.5" in alone
    assert "best (refined won)" in alone


def test_mixed_plans_say_how_they_are_stored_shared_and_why():
    from karipap_core.networks.tree.network import group_specs

    members = ["layers.0.q", "layers.1.q"]
    why = "Predicted damage in nats at 30.0% of its size or less: tree 0.1, qlr bits=int3 int4 0.2."
    shared = {
        name: spec.to_json() | {"why": why}
        for name, spec in zip(members, group_specs(members, (32, 64), 4, quantize="int4"), strict=True)
    }
    lone = {"network": "qlr", "out": [32], "in": [64], "chi": [2], "quantize": "int4", "bits": "int3"}
    whole = {"network": "dense", "out": [32], "in": [64], "chi": [], "quantize": "int8"}
    plan = PLAN | {"weights": shared | {"layers.0.k": lone | {"why": "k."}, "layers.0.v": whole}}
    text = plan_table(plan | {"embedding": {"kind": "tt", "tied": "contract"}})
    table = {row[0]: row for row in rows(text)[1:]}
    assert table["layers.0.q"][-1] == "int4 1 of 2 that share cores" and table["layers.1.q"][-1].startswith(
        "int4 2 of 2"
    )
    assert table["layers.0.k"][-1] == "int3 + int4" and table["layers.0.v"][-1] == "int8"
    assert 0.5 < float(table["layers.0.v"][5]) < 0.6, "kept counts bits / 16"
    assert "embedding    tt" in text
    assert f"why: layers.0.q and 1 more: {why}" in text and text.count(why) == 1 and "why: layers.0.k: k." in text


def test_what_other_modules_wrote_is_shown_by_their_own_table():
    shipped = REPOSITORY / "assets" / "demo_model" / "karipap" / "sensitivity"
    for file in shipped.glob("*.json"):
        text = anything(documents.find(file))
        assert "foretells?" in text and "demo_model" in text, file.name


def test_a_profile_says_the_kind_and_the_towers_of_a_model():
    towers = ["decoder", "encoder", "encoder"]
    weights = [PROFILE["weights"][0] | {"name": f"layers.{n}.q", "tower": tower} for n, tower in enumerate(towers)]
    assert "kind" not in anything(PROFILE)
    assert "causal" in anything(PROFILE | {"kind": "causal"})
    said = anything(PROFILE | {"kind": "encoder-decoder", "weights": weights})
    assert "encoder-decoder, of encoder (2 weights), decoder (1 weight)" in said
