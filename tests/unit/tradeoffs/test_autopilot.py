"""The autopilot: its decisions on made-up measurements that are known exactly, and whole searches on small models."""

import json

import numpy as np
import pytest

from karipap_core import networks
from karipap_core.cli.frame import build_parser, main
from karipap_core.cli.tables.autopilot import table
from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.aligned import aligned_matrices
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan
from karipap_core.plan.study import Study
from karipap_core.reading import read_json
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.text import Text
from karipap_core.tradeoffs.autopilot import autopilot, halves
from karipap_core.tradeoffs.autopilot import search as pilot
from karipap_core.tradeoffs.autopilot.aim import Aim
from karipap_core.tradeoffs.autopilot.search import MAX_EVALUATIONS, Limits
from karipap_core.tradeoffs.autopilot.verdict import SAME_SIZE
from karipap_core.tradeoffs.points import Points
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import kept_json
from karipap_core.workspace.runs import read_runs
from tests.helpers.studies import CALIBRATION, SETTINGS, squares, study_of

pytestmark = pytest.mark.usefixtures("quick_fits")
HELD_OUT = squares(120)
CUT = Scoring(32, 32, 512)
DOCUMENTS, DAMAGE = 24, 0.1


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return study_of("llama", tmp_path_factory.mktemp("llama"), num_hidden_layers=4)


class Bench:
    """Stands for InPlace. The rise is 1.2 times what the made-up calibration predicts of these matrices, each weight's
    part times `harm` where it has one, one more for a share of
    error past its `cliff` (`from` that measurement on), and all times `side` on the verdict's half; documents differ by
    a tenth."""

    def __init__(self, study, text, rules) -> None:
        self.study, self.text, self.rules = study, text, rules
        self.sites = {weight.name for weight in study.weights}
        self.settings = {"text": {"name": text.name, "sha256": text.sha256}, "window": 32, "stride": 32}

    def measure(self, matrices, progress=None) -> dict:
        self.rules["measured"] = self.rules.get("measured", 0) + 1
        if self.rules["measured"] == self.rules.get("killed_at"):
            raise KeyboardInterrupt
        total = 0.0
        for name, matrix in matrices:
            metric, W = self.study.decompositions("loss").metric_of(name), self.study.checkpoint.read(name).double()
            share = metric.absolute(W - matrix.double()) / metric.absolute(W)
            total += DAMAGE * share * self.rules.get("harm", {}).get(name, 1.0)
            if self.rules["measured"] >= self.rules.get("from", 0):
                total += share > self.rules.get("cliff", {}).get(name, 1.0) + 1e-6
        rise = 1.2 * total * (self.rules.get("side", 1.0) if "verdict" in self.text.name else 1.0)
        wave = np.resize([0.9, 1.1], DOCUMENTS) * rise
        units = {
            "over": "documents",
            "ids": list(range(DOCUMENTS)),
            "tokens": [10] * DOCUMENTS,
            "rise": (10 * wave).tolist(),
        }
        interval = uncertainty.paired_bootstrap(units["rise"], units["tokens"])
        return {
            "loss": 3 + rise,
            "perplexity": float(np.exp(3 + rise)),
            "rise": rise,
            "rise_low": interval.low,
            "rise_high": interval.high,
            "units": units,
            "documents": DOCUMENTS,
            "kl": rise,
            "tokens": 240,
            "dense": {"loss": 3.0},
        }


def calibrate(study) -> None:
    """A made-up calibration: the damage of a weight is its share of error times DAMAGE, the rise is the sum."""
    study.calibration_file("loss").unlink(missing_ok=True)
    levels = {}
    for weight in study.weights:
        whole = (
            study.decompositions("loss").metric_of(weight.name).absolute(study.checkpoint.read(weight.name).double())
        )
        levels[weight.name] = [[chi, share * whole, share * DAMAGE] for chi, share in enumerate((0.01, 0.1, 1.0), 1)]
    plans = [{"kept_blocks": 0.5, "sum": at, "rise": at, "divergence": at, "network": "lowrank"} for at in (0.01, 1.0)]
    made = Calibration("loss", "kl", study.calibration_entry(), 3.0, levels, plans)
    study._calibrations["loss"] = made


@pytest.fixture
def rules(monkeypatch, study) -> dict:
    """What the made-up measurements are like; how many there were is counted in it."""
    rules: dict = {}
    calibrate(study)
    monkeypatch.setattr(Points, "bench", property(lambda self: Bench(self.study, self.text, rules)))
    return rules


def search(study, out, **more) -> dict:
    settings = {"max_rise": 0.3, "scope": "blocks", "networks": ("lowrank",), "quantize": None} | more
    aim = Aim(*(settings.pop(name, None) for name in ("max_rise", "budget", "scope")))
    choices = [Choice(network, settings["quantize"]) for network in settings.pop("networks")]
    del settings["quantize"]
    return autopilot(study, HELD_OUT, aim, choices, Limits(**settings), CUT, out)


def test_halves_are_whole_documents_of_about_equal_length():
    text = Text("t", tuple("x" * n for n in (5, 90, 40, 35, 10, 60, 1)))
    first, second = halves(text)
    assert sorted(first.documents + second.documents) == sorted(text.documents)
    sizes = [sum(map(len, side.documents)) for side in (first, second)]
    assert abs(sizes[0] - sizes[1]) <= 10 and first.sha256 != second.sha256
    assert halves(text) == (first, second)
    first, second = halves(Text("one", ("abcdefgh",)))
    assert (first.documents, second.documents) == (("abcd",), ("efgh",))
    first, second = halves(Text("giant", ("a", "b" * 100, "c")))
    assert {len(each) for side in (first, second) for each in side.documents} == {1, 50}


def test_the_line_is_met_by_the_upper_end_with_few_bytes_to_spare(study, tmp_path, rules):
    found = search(study, tmp_path)
    assert found["met"] and found["outside_uncertainty"] and found["state"] == "done"
    assert found["rise_low"] < found["rise"] < found["rise_high"] <= 0.3
    assert found["rise_high"] > 0.9 * 0.3  # close to the line: little is left on the table
    assert found["evaluations"] <= MAX_EVALUATIONS
    plan = Plan.from_json(found["plan"])
    plan.check(study.checkpoint)
    assert Plan.load(tmp_path / "plan.json") == plan
    assert plan.ledger(study.checkpoint).bytes_kept_blocks == pytest.approx(found["bytes_kept_blocks"])
    on_disk = {run["id"] for run in read_runs(tmp_path / "runs")}
    assert {row["id"] for row in found["tried"]} | {row["id"] for row in found["rivals"]} == on_disk
    assert kept_json(tmp_path / "autopilot.json") == found
    searched, judged = (found["texts"][role]["sha256"] for role in ("search", "verdict"))
    sides = {run["id"]: run["text"]["sha256"] for run in read_runs(tmp_path / "runs")}
    assert all(sides[row["id"]] == (judged if row["text"] == "verdict" else searched) for row in found["tried"])
    assert searched != judged and sides[found["id"]] == judged


def test_it_beats_uniform_where_weights_differ_and_the_log_can_be_followed(study, tmp_path, rules):
    rules["harm"] = {weight.name: 3.0 for weight in study.weights if weight.role == "down"}
    found = search(study, tmp_path)
    uniform = next(row for row in found["rivals"] if row["label"].startswith("uniform"))
    assert uniform["bytes_kept_blocks"] >= found["bytes_kept_blocks"] - SAME_SIZE
    assert found["met"] and uniform["difference"]["low"] > 0
    for number, step in enumerate(found["log"], 1):
        assert step["step"] == number and step["did"] and step["why"] and step["decision"], step
        assert step["says"].startswith(step["did"]) and step["says"].endswith(step["decision"])
        if step["measured"]:
            assert f"{step['measured']['rise']:+z.4f}" in step["says"] and step["bytes_kept"] > 0
    shown = table(found)
    assert found["verdict"][0][:40] in shown and all(
        step["did"] in shown.replace("\n     ", " ") for step in found["log"]
    )


def without_times(document: dict) -> dict:
    return {key: value for key, value in document.items() if key not in ("seconds", "plan_file")}


@pytest.mark.parametrize("at", [1, 4, 6, 7])
def test_a_search_that_was_killed_goes_on_to_the_same_end(study, tmp_path, rules, at):
    whole = search(study, tmp_path / "whole")
    count = rules.pop("measured")
    assert count > at
    rules["killed_at"] = at
    calibrate(study)  # forgets what the first search taught it
    with pytest.raises(KeyboardInterrupt):
        search(study, tmp_path / "killed")
    assert read_json(tmp_path / "killed" / "autopilot.json")["state"] == "running"
    rules.pop("killed_at")
    again = search(study, tmp_path / "killed")
    assert rules["measured"] == count + 1  # the one that was lost, and nothing twice
    assert without_times(again) == without_times(whole)
    assert search(study, tmp_path / "killed") == again and rules["measured"] == count + 1


def test_a_batch_that_breaks_the_line_is_halved_and_the_weight_that_does_it_is_spared(
    study, tmp_path, rules, monkeypatch
):
    monkeypatch.setattr(pilot, "FILLED", 0.5)  # leaves room for batches of several weights, of small steps
    monkeypatch.setattr(pilot, "DEEPER", 1.1)
    monkeypatch.setattr(pilot.Search, "_refined", lambda self, best: best)
    whole = search(study, tmp_path / "whole", max_evaluations=24)
    batch = next(step for step in whole["log"] if "The next batch" in step["why"])
    assert "more" in batch["why"] and batch["accepted"]
    bad = batch["why"].split(": ")[1].split(" and ")[0]
    before = whole["log"][batch["step"] - 2]["id"]
    spec = Plan.from_json(read_json(tmp_path / "whole" / "runs" / before / "run.json")["plan"]).spec(bad)
    source, W = study.decompositions("loss"), study.checkpoint.read(bad).double()
    lost = 0.0 if spec is None else source.metric_of(bad).absolute(W - source.matrix(bad, spec).double())
    rules["from"] = sum(step["measured"] is not None for step in whole["log"][: batch["step"]])
    rules.pop("measured")
    rules["cliff"] = {bad: lost / source.metric_of(bad).absolute(W)}
    calibrate(study)
    found = search(study, tmp_path / "harmed", max_evaluations=40)
    said = [step["says"] for step in found["log"]]
    assert any("the batch is halved" in each for each in said)
    assert any(f"{bad} stays as it was" in each for each in said)
    batches = [step for step in found["log"] if "batch" in step["why"]]
    kept = [step["bytes_kept"] for step in batches if step["accepted"]]
    assert kept and kept == sorted(kept, reverse=True) and found["met"]


def test_a_verdict_over_the_line_steps_back_and_says_so(study, tmp_path, rules):
    rules["side"] = 1.3
    found = search(study, tmp_path)
    judged = [row for row in found["tried"] if row["text"] == "verdict"]
    assert len(judged) > 1 and judged[0]["high"] > 0.3 >= judged[-1]["high"] and found["met"]
    assert judged[-1]["bytes_kept"] > judged[0]["bytes_kept"]
    assert any("looked at more than once" in sentence for sentence in found["verdict"])


def test_a_line_that_cannot_be_met_is_said_to_be_missed(study, tmp_path, rules):
    found = search(study, tmp_path, max_rise=1e-5, quantize="int4")
    assert found["met"] is False and found["outside_uncertainty"] is False
    assert any("is not met" in sentence for sentence in found["verdict"])


def test_plain_quantization_that_is_better_comes_first(study, tmp_path, rules):
    found = search(study, tmp_path)
    plain = next(row for row in found["rivals"] if row["method"] in ("gptq", "rtn"))
    assert plain["rise"] < found["rise"]  # int8 and int4 hardly touch a random matrix, cutting its rank does
    assert found["verdict"][0].startswith("Plain quantization does better here")
    quantized = search(study, tmp_path / "int4", quantize="int4")
    assert quantized["bytes_kept_blocks"] < found["bytes_kept_blocks"] and quantized["met"]


def test_a_size_gets_the_plan_that_was_measured_best_at_it(study, tmp_path, rules):
    found = search(study, tmp_path, max_rise=None, budget=0.6, networks=("lowrank", "tree"))
    assert found["met"] and found["bytes_kept_blocks"] <= 0.6 and found["outside_uncertainty"] is None
    rises = [row["rise"] for row in found["tried"] if row["text"] == "search"]
    assert found["rise"] == pytest.approx(min(rises))  # the halves are alike in this made-up world
    assert {"lowrank", "tree"} <= {row["label"].split()[0] for row in found["tried"]}


def test_ends_are_kept_dense_where_that_is_asked_or_measured_to_be_better(study, tmp_path, rules, monkeypatch):
    found = search(study, tmp_path / "asked", keep_ends=1)
    entries = found["plan"]["weights"]
    assert found["keep_ends"] == 1 and found["met"]
    for name, entry in entries.items():
        assert (entry["network"] == "dense") or not name.startswith(("model.layers.0.", "model.layers.3."))
    monkeypatch.setattr(pilot, "ENDS_WORTH", 10.0)
    rules["harm"] = {weight.name: 20.0 for weight in study.weights if weight.layer in (0, 3)}
    found = search(study, tmp_path / "auto", max_rise=0.1)
    tried = [row["label"] for row in found["tried"]]
    assert any("first and last block dense" in label for label in tried) and found["keep_ends"] == 1
    with pytest.raises(InputError, match="has 4 blocks"):
        search(study, tmp_path / "all", keep_ends=2)


@pytest.mark.parametrize(
    "more",
    [
        {"max_rise": None},
        {"budget": 0.5},
        {"max_rise": -1.0},
        {"max_evaluations": 0},
        {"networks": ("nosuch",)},
        {"quantize": "int5"},
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(study, tmp_path, rules, more):
    with pytest.raises(InputError):
        search(study, tmp_path, **more)
    assert "measured" not in rules


# Nothing made up from here on.


@pytest.mark.parametrize("network, quantize", [("tree", None), ("auto", None), ("lowrank", "int4")])
def test_networks_that_share_mix_and_quantize_are_searched_and_measured(
    study, tmp_path, monkeypatch, network, quantize
):
    few = {name: made for name, made in networks.NETWORKS.items() if name in ("lowrank", "tree")}
    monkeypatch.setattr(networks, "NETWORKS", few)  # a mix of all takes minutes
    found = search(study, tmp_path, networks=(network,), quantize=quantize, max_evaluations=4)
    assert found["state"] == "done" and 1 <= found["evaluations"] <= 4
    plan = Plan.from_json(found["plan"])
    plan.check(study.checkpoint)
    specs = {name: plan.spec(name) for name in plan.weights if plan.spec(name) is not None}
    points = Points(study, halves(HELD_OUT)[1], tmp_path / "again", CUT)
    source = study.decompositions("loss")
    matrices = {name: source.matrix(name, spec) for name, spec in specs.items()}
    assert plan.prefix == ("aligned" if quantize else None)
    again = points.bench.measure((aligned_matrices(study, plan) if plan.prefix else matrices).items())
    assert again["rise"] == pytest.approx(found["rise"], abs=1e-6)


def test_an_encoder_is_held_to_its_output_error(made, tmp_path):
    study = Study(made("bert"), CALIBRATION, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    found = search(study, tmp_path / "out", max_rise=0.1, max_evaluations=6)
    assert found["quality"] == "relative_error" and found["met"] and 0 < found["rise"] <= 0.1
    assert found["rise_high"] is None and "perplexity" not in found and "no interval" in found["criterion"]
    assert "output error" in " ".join(found["verdict"])


def test_the_command_line_finds_a_plan(made, tmp_path, capsys):
    text = tmp_path / "text.json"
    text.write_text(json.dumps([f"the root of {n * n} is {n}" for n in range(400)]))
    argv = ["autopilot", str(made("gpt2")), "--max-perplexity", "5%", "--text", str(text), "--window", "32"]
    argv += ["--max-tokens", "256", "--max-evaluations", "2", "--scope", "blocks", "--out", str(tmp_path / "out")]
    args = build_parser().parse_args(argv)
    assert args.max_perplexity == pytest.approx(np.log(1.05)) and args.keep_ends == "auto"
    assert main([*argv, "--json", "--progress", "off"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"plan", "bytes_kept", "rise", "tried", "log", "met"} <= found.keys()
    assert found["line"]["max_perplexity"] == pytest.approx(0.05)
    assert main([*argv, "--max-rise", "0.1", "--progress", "off"]) == 2
    assert "one of them" in capsys.readouterr().err
    assert main(argv[:2] + ["--progress", "off"]) == 2
    assert "--max-rise" in capsys.readouterr().err


def test_nothing_is_measured_again_by_the_same_command(study, tmp_path, monkeypatch):
    found = search(study, tmp_path, max_evaluations=1)
    monkeypatch.setattr(InPlace, "measure", None)
    assert search(study, tmp_path, max_evaluations=1) == found
