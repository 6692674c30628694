"""Two plans, runs, folders or models side by side, against sums done by hand."""

import json

import numpy as np
import pytest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.cli.tables.compare import table
from karipap_core.compressed import records
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.tradeoffs.compare import compare, damages, verdict
from karipap_core.tradeoffs.sides import Side, of_plan, of_run, read
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers.architectures import make
from tests.helpers.points import MODEL, ONE, TWO, UP, K, Q, entry, run


def metric(document: dict, key: str) -> dict:
    return next(row for row in document["metrics"] if row["key"] == key)


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).normal(0.1, 0.4, 100)


def test_weights_are_counted_as_their_cores():
    document = compare(Side("one", "plan", ONE, model=MODEL), Side("two", "plan", TWO, model=MODEL))
    rows = {row["name"]: row for row in document["layers"]}
    assert [row["name"] for row in document["layers"]] == [Q, K, UP] and document["same_model"]
    assert [rows[name]["same"] for name in (Q, K, UP)] == [False, True, False] and document["totals"]["changed"] == 2
    assert rows[Q]["a"]["parameters"] == 4 * 48 and rows[Q]["b"]["parameters"] == 6 * 48
    assert rows[Q]["a"]["bytes"] == 2 * 4 * 48
    assert rows[UP]["a"]["network"] == "dense" and rows[UP]["a"]["bytes"] == 2 * 40 * 24  # its shape is the other's
    assert rows[UP]["b"]["parameters"] == 5 * 64 and 5 * 64 < rows[UP]["b"]["bytes"] < 2 * 5 * 64
    assert document["totals"]["a"]["parameters"] == 4 * 48 + 3 * 36 + 40 * 24
    assert (rows[UP]["layer"], rows[UP]["role"]) == (0, "up")


def test_the_difference_of_two_runs_is_paired(noise):
    worse = run("two", TWO, noise + 0.02 + np.random.default_rng(1).normal(0, 0.01, 100))
    document = compare(of_run(run("one", ONE, noise)), of_run(worse))
    loss = metric(document, "loss")
    assert loss["difference"] == pytest.approx(0.02, abs=0.005) and loss["measurable"] and loss["better"] == "a"
    assert 0.01 < loss["low"] < loss["difference"] < loss["high"] < 0.03
    rise = metric(document, "rise")
    assert rise["a_high"] - rise["a_low"] > 5 * (loss["high"] - loss["low"])  # pairing is what tells them apart
    assert "B − A" in table(document) and "+0.0" in table(document)


def test_it_says_when_nothing_can_be_measured(noise):
    same = run("two", TWO, noise + np.random.default_rng(1).normal(0, 0.2, 100))
    document = compare(of_run(run("one", ONE, noise)), of_run(same))
    assert metric(document, "loss")["measurable"] is False and metric(document, "perplexity")["better"] is None
    assert "no measurable difference" in table(document)


def test_other_text_and_old_runs_are_not_paired(noise):
    one = of_run(run("one", ONE, noise))
    other = compare(one, of_run(run("two", TWO, noise, text={"name": "u", "sha256": "u"})))
    assert metric(other, "loss")["low"] is None and "different text" in other["notes"][0]
    old = {key: value for key, value in run("two", TWO, noise).items() if key not in ("units", "rise_low", "rise_high")}
    assert "before documents were kept" in compare(one, of_run(old))["notes"][0]
    stranger = run("two", TWO, noise, model=MODEL | {"fingerprint": "cd" * 32})
    document = compare(one, of_run(stranger))
    assert not document["same_model"] and metric(document, "loss")["low"] is None
    assert "different models" in document["notes"][0]


def test_the_dense_model_has_the_figures_that_were_measured_beside_the_other(noise):
    dense = Side("tiny", "model", None, {"rise": 0.0, "kept": 1.0}, model=MODEL, shapes={Q: (24, 24), UP: (40, 24)})
    right = compare(dense, of_run(run("two", TWO, noise)))
    assert metric(right, "loss")["a"] == 2.0 and metric(right, "rise")["low"] == metric(right, "rise")["b_low"]
    dense = Side("tiny", "model", None, {"rise": 0.0, "kept": 1.0}, model=MODEL)
    left = compare(of_run(run("two", TWO, noise)), dense)
    assert metric(left, "rise")["high"] == -metric(right, "rise")["low"]


def test_scores_of_tasks_keep_their_errors(noise):
    scores = {"boolq": {"acc,none": 0.7, "acc_stderr,none": 0.01, "acc": 0.7, "acc_stderr": 0.01}}
    other = {"boolq": {"acc": 0.6, "acc_stderr": 0.01}}
    one, two = run("one", ONE, noise, tasks=scores), run("two", TWO, noise, tasks=other)
    row = metric(compare(of_run(one), of_run(two)), "boolq: acc")
    assert row["difference"] == pytest.approx(-0.1) and row["measurable"] and row["better"] == "a"
    assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * 0.01 * np.sqrt(2), rel=1e-3)
    assert row["a_low"] == pytest.approx(0.7 - 0.0196, abs=1e-4)


def test_prompts_stand_side_by_side():
    def shadow(text, prompt="def f"):
        return {"prompts": [{"prompt": prompt, "dense": "(x):", "compressed": text, "kl": 0.1}]}

    one, two = (Side("s", "compressed", ONE, shadow=shadow(text), model=MODEL) for text in ("(x):", "(y):"))
    document = compare(one, two)
    assert document["prompts"] == [
        {"prompt": "def f", "dense": "(x):", "a": "(x):", "b": "(y):", "kl_a": 0.1, "kl_b": 0.1}
    ]
    assert "> def f" in table(document)
    apart = Side("s", "compressed", ONE, shadow=shadow("z", "other"), model=MODEL)
    assert compare(one, apart)["prompts"] == [] and "no prompt" in compare(one, apart)["notes"][-1]


def test_sides_are_read_from_files_names_and_folders(tmp_path, noise):
    ONE.save(tmp_path / "one.json")
    ONE.save(Workspace().plan_file("kept"))
    write_json(Workspace().runs_dir / "r1" / "run.json", run("r1", TWO, noise))
    assert read(tmp_path / "one.json").kind == "plan" and read("kept").plan.weights == ONE.weights
    assert read("r1").kind == "run" and read(Workspace().runs_dir / "r1").point["rise"] == pytest.approx(noise.mean())
    dense = read(make("llama", tmp_path / "model"))
    assert dense.kind == "model" and dense.shapes
    for missing in ("nothing", "../etc/passwd", tmp_path / "none.json"):
        with pytest.raises(InputError, match="no file or folder"):
            read(missing)


def test_a_compressed_folder_brings_its_records(tmp_path):
    from karipap_core.compressed.compress import compress
    from karipap_core.plan.document import model_entry
    from karipap_core.plan.study import Study

    checkpoint = open_checkpoint(make("llama", tmp_path / "model"))
    weights = {w.name: entry(*w.shape, 3) for w in checkpoint.weights if w.compressible}
    small = Plan(model_entry(checkpoint), "weight", weights)
    compress(Study(checkpoint, device="cpu"), small, tmp_path / "small")
    records.record(tmp_path / "small", "evaluation", {"loss": 2.5, "rise": 0.5}, None)
    records.record(tmp_path / "small", "shadow", {"prompts": []}, None)
    document = compare(tmp_path / "model", tmp_path / "small")
    assert document["same_model"] and document["totals"]["changed"] == len(weights)
    assert metric(document, "rise")["difference"] == 0.5
    assert all(0 < row["b"]["weight_error"] < 1 and row["a"]["weight_error"] == 0 for row in document["layers"])
    assert document["totals"]["a"]["parameters"] == checkpoint.block_parameters


def test_damage_is_read_from_the_workspace_where_it_was_measured(demo_model):
    run_file = next((demo_model / "karipap" / "runs").glob("lowrank-*/run.json"))
    made = Plan.from_json(json.loads(run_file.read_text())["plan"])
    assert damages(made) == {}
    Workspace().adopt(open_checkpoint(demo_model))
    found = damages(made)
    # The plan's own sum, up to the interpolation between levels.
    assert found.keys() == made.weights.keys() and sum(found.values()) == pytest.approx(made.predicted["sum"], rel=0.05)


def test_the_verb_prints_one_document_or_a_table(tmp_path, capsys):
    ONE.save(tmp_path / "one.json")
    TWO.save(tmp_path / "two.json")
    assert cli.main(["compare", str(tmp_path / "one.json"), str(tmp_path / "two.json"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == "karipap-comparison" and document["a"]["name"] == "one"
    assert cli.main(["compare", str(tmp_path / "one.json"), str(tmp_path / "two.json")]) == 0
    assert "2 of 3 weights differ" in capsys.readouterr().out
    assert cli.main(["compare", str(tmp_path / "one.json"), "nothing"]) == 2


def test_the_verdict_is_one_sentence_on_what_is_known(noise):
    one, shifted = of_run(run("one", ONE, noise)), of_run(run("two", TWO, noise - 0.05))
    assert verdict(compare(one, shifted)).startswith(
        "A keeps 50.0% of the bytes, B 50.0%. The loss of B is 0.0500 nats"
    )
    assert "below A's (95 % interval -0.0500 to -0.0500)" in verdict(compare(one, shifted))
    same = of_run(run("two", TWO, noise + np.random.default_rng(1).normal(0, 0.2, 100)))
    assert "no measurable difference in loss" in verdict(compare(one, same))
    plans = [of_plan(name, each) for name, each in (("a", ONE), ("b", TWO))]
    assert verdict(compare(*plans)) == "The predicted rise in loss is 0.1000 nats a token for A and 0.1000 for B."
    plans[1].point.clear()
    assert "No figure of quality" in verdict(compare(*plans))
