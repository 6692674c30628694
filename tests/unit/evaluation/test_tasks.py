"""Benchmark tasks: the harness's own scores, on compressed folders and in memory, kept, resumed and compared."""

import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from karipap_core.cli import frame as cli
from karipap_core.cli.tables.evaluation import table
from karipap_core.errors import Cancelled, InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.tasks import harness
from karipap_core.evaluation.tasks import python as tasks_python
from karipap_core.evaluation.tasks import suite as tasks
from karipap_core.evaluation.tasks.files import read_folder
from karipap_core.evaluation.tasks.harness import rows
from karipap_core.evaluation.tasks.suite import Suite, causal, evaluate_tasks, measure_folders, weights_hash
from karipap_core.models.load import load_model
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.reading import read_json
from karipap_core.statistics.bootstrap import paired_bootstrap
from karipap_core.story import compress
from karipap_core.text import Text
from karipap_core.tradeoffs.point import Point
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.run import Extras, run
from karipap_core.tradeoffs.sweep import Grid, sweep
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from karipap_core.workspace.kept import kept_json
from tests.helpers.architectures import make
from tests.helpers.paths import REPOSITORY, SHARED

needs_lm_eval = pytest.mark.skipif(not tasks.installed(), reason="lm-eval is not installed here")
SHARED = SHARED / "data"

CHOICE = """
task: NAME
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm}]
"""
LAST = """
task: last_word
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
"""
WRITE = """
task: sums
dataset_path: json
dataset_kwargs: {data_files: {test: questions.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{choices[answer]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 6, do_sample: false}
filter_list:
  - {name: first, filter: [{function: regex, regex_pattern: "(.)"}, {function: take_first}]}
  - {name: all, filter: [{function: take_first}]}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
GROUP = """
group: both
task: [pairs, triples]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 3}
"""
CALIBRATION = Text("cubes", tuple(f"the cube of {n} is {n**3}\n" for n in range(200)))
HELD_OUT = Text("squares", tuple(f"the square of {n} is {n * n}\n" for n in range(60)))
CUT = Scoring(32, 32, 256)


def write_tasks(folder: Path) -> Path:
    """Four tasks and a group over 12 questions of 2 to 4 choices."""
    folder.mkdir(parents=True, exist_ok=True)
    questions = [
        {"question": f"{n} and {n} is", "choices": [str(2 * n), "7", "many", "none"][: 2 + n % 3], "answer": n % 2}
        for n in range(12)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(one) + "\n" for one in questions))
    for name, text in (("pairs", CHOICE), ("triples", CHOICE), ("last", LAST), ("write", WRITE), ("both", GROUP)):
        (folder / f"{name}.yaml").write_text(text.replace("NAME", name))
    return folder


@pytest.fixture(scope="module")
def task_dir(tmp_path_factory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make("llama", tmp_path_factory.mktemp("dense") / "model")


def plan_of(model: Path, rank: int) -> Plan:
    checkpoint = causal(model)
    weights = {}
    for weight in checkpoint.weights:
        if weight.compressible and weight.role in ("up", "down", "q"):
            out, into = weight.shape
            weights[weight.name] = {"network": "lowrank", "out": [out], "in": [into], "chi": [rank], "quantize": None}
        elif weight.compressible:
            weights[weight.name] = {"network": "dense"}
    return Plan(model_entry(checkpoint), "weight", weights, rule="uniform")


@pytest.fixture(scope="module")
def compressed(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "model"
    compress(model, plan_of(model, 4), folder, device="cpu")
    return folder


@pytest.fixture
def counted(monkeypatch) -> list[str]:
    """Names of the tasks that the harness has run."""
    done, score = [], tasks.score

    def counting(lm, task, limit, progress):
        found = score(lm, task, limit, progress)
        done.append(task.task_name)
        return found

    monkeypatch.setattr(tasks, "score", counting)
    return done


def direct_scores(folder: Path, include: list[Path], names: list[str], batch: int, **more) -> dict:
    """What lm-eval itself gives for a folder that it loads itself."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    lm_eval.evaluator.add_env_info = lambda results: None  # asks the machine for its drivers, for seconds
    manager = TaskManager(include_defaults=False, include_path=[str(one) for one in include])
    settings = {"pretrained": str(folder), "dtype": "float32"}
    more |= {"bootstrap_iters": harness.RESAMPLES, "device": "cpu", "batch_size": batch}
    return lm_eval.simple_evaluate(model="hf", model_args=settings, tasks=names, task_manager=manager, **more)


# The harness's own scores.


@needs_lm_eval
def test_scores_are_those_of_lm_eval_run_on_the_folder_itself(compressed, model, task_dir, tmp_path, monkeypatch):
    """To the last digit: multiple choice, likelihoods, generation with filters, a group, and a bundled task."""
    monkeypatch.setattr(tasks_python, "standard_library", lambda split: python_text())
    monkeypatch.chdir(task_dir)  # the harness itself looks for relative files where it runs
    names = ["both", "last_word", "sums", "python_continuation"]
    suite = Suite(names, task_dir, limit=9, keep=tmp_path)
    ours, dense = measure_folders(suite, compressed, model, device="cpu")
    bundled = tasks_python.write_tasks(tmp_path)
    batch = rows(load_model(model)[0])
    for folder, found in ((compressed, ours), (model, {"last_word": dense["last_word"]})):
        # One task at a time, as here: rows that share a batch round each other's last digits.
        direct = {}
        for name in found:
            direct |= direct_scores(folder, [task_dir, bundled], [name], batch, limit=9)["results"]
        found = found | found.get("both", {}).get("parts", {})
        assert found.keys() == direct.keys()
        for name, result in found.items():
            figures = {key.removesuffix(",none"): value for key, value in direct[name].items() if "," in key}
            assert figures and {key: result[key] for key in figures} == figures, name
    assert any(ours[name] != dense[name] for name in names)
    assert {"exact_match,first", "exact_match,all"} < ours["sums"].keys() and ours["sums"][
        "metric"
    ] == "exact_match,first"
    assert ours["last_word"]["perplexity"] != dense["last_word"]["perplexity"]


def python_text() -> Text:
    from karipap_core.text import standard_library

    return Text("a few modules", tuple(sorted(standard_library("heldout").documents, key=len)[-16:-12]))


@needs_lm_eval
def test_shots_and_limit_are_the_harness_s(compressed, task_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(task_dir)
    suite = Suite(["pairs"], task_dir, limit=7, shots=2, keep=tmp_path)
    ours, _ = measure_folders(suite, compressed, device="cpu")
    direct = direct_scores(compressed, [task_dir], ["pairs"], 1, limit=7, num_fewshot=2)
    assert ours["pairs"]["acc"] == direct["results"]["pairs"]["acc,none"]
    assert (ours["pairs"]["items"], ours["pairs"]["limit"], ours["pairs"]["shots"]) == (7, 7, 2)
    samples = sorted(direct["samples"]["pairs"], key=lambda row: row["doc_id"])
    assert ours["pairs"]["correct"] == [int(row["acc"]) for row in samples]


@needs_lm_eval
def test_a_result_says_what_it_is_of(model, task_dir, tmp_path):
    found = evaluate_tasks(*load_model(model), Suite(["pairs", "both", "sums"], task_dir, keep=tmp_path))
    pairs = found["pairs"]
    assert pairs["items"] == 12 and pairs["metric"] == "acc" and pairs["higher_is_better"] is True
    assert pairs["chance"] == pytest.approx(np.mean([1 / (2 + n % 3) for n in range(12)]))
    assert pairs["acc"] == np.mean(pairs["correct"]) and set(pairs["correct"]) <= {0, 1}
    assert pairs["acc_stderr"] == pytest.approx(math.sqrt(pairs["acc"] * (1 - pairs["acc"]) / 11))
    both = found["both"]
    assert both["parts"].keys() == {"pairs", "triples"} and both["items"] == 24 and both["version"] == "3"
    assert both["correct"] == pairs["correct"] * 2 and both["acc"] == pairs["acc"]
    assert both["chance"] == pytest.approx(pairs["chance"])
    assert "chance" not in found["sums"]
    json.dumps(found, allow_nan=False)


@needs_lm_eval
def test_the_difference_is_the_paired_bootstrap_over_items(compressed, model, task_dir, tmp_path):
    ours, dense = measure_folders(
        Suite(["pairs", "last_word"], task_dir, keep=tmp_path), compressed, model, device="cpu"
    )
    expected = paired_bootstrap(np.subtract(ours["pairs"]["correct"], dense["pairs"]["correct"]))
    said = ours["pairs"]["difference"]
    assert said == {"mean": expected.mean, "low": expected.low, "high": expected.high, "items": 12}
    assert said["mean"] == pytest.approx(ours["pairs"]["acc"] - dense["pairs"]["acc"])
    assert "difference" not in dense["pairs"]


# Kept and resumed.


@needs_lm_eval
def test_finished_tasks_are_kept_and_a_killed_run_goes_on(compressed, model, task_dir, tmp_path, counted):
    def stop(stage, done, total, item="", message=""):
        if item == "triples" and done:
            raise Cancelled

    suite = Suite(["pairs", "triples"], task_dir, keep=tmp_path)
    with pytest.raises(Cancelled):
        measure_folders(suite, model, device="cpu", progress=stop)
    assert counted == ["pairs"] and len(list(tmp_path.glob("*.json"))) == 1
    first, _ = measure_folders(suite, model, device="cpu")
    assert counted == ["pairs", "triples"]
    ours, dense = measure_folders(Suite(["triples", "pairs"], task_dir, keep=tmp_path), compressed, model, device="cpu")
    assert counted == ["pairs", "triples", "triples", "pairs"] and dense == first | {}
    assert ours.keys() == {"triples", "pairs"}


@needs_lm_eval
def test_another_question_is_another_measurement(model, task_dir, tmp_path, counted):
    folder = write_tasks(tmp_path / "tasks")
    live = load_model(model)

    def ask(folder=folder, **more):
        return evaluate_tasks(*live, Suite(["pairs"], folder, keep=tmp_path / "kept", **more), "one")["pairs"]

    first = ask()
    assert ask(task_dir) == first and len(counted) == 1  # the same items elsewhere
    ask(limit=5)
    ask(shots=1)
    assert len(counted) == 3
    data = folder / "questions.jsonl"
    data.write_text(data.read_text().replace("many", "more"))
    assert ask()["task_hash"] != first["task_hash"] and len(counted) == 4
    assert weights_hash(live[0]) == weights_hash(load_model(model)[0])
    with torch.no_grad():
        live[0].model.norm.weight[0] += 1
    assert weights_hash(live[0]) != weights_hash(load_model(model)[0])


@needs_lm_eval
def test_progress_counts_items(model, task_dir, tmp_path):
    told = []
    evaluate_tasks(
        *load_model(model),
        Suite(["pairs"], task_dir, keep=tmp_path, batch_size=2),
        progress=lambda stage, done, total, item="", message="": told.append((item, done, total)),
    )
    counts = [done for item, done, total in told if (item, total) == ("pairs", 12)]
    assert counts[0] == 0 and counts[-1] == 12 and counts == sorted(counts) and len(set(counts)) >= 5


# On the trade-off.


@pytest.fixture(scope="module")
def study(model, tmp_path_factory) -> Study:
    settings = CalibrationSettings(tokens=512, window=32, probe_windows=4, check_windows=4)
    return Study(model, CALIBRATION, settings, "cpu", Workspace(tmp_path_factory.mktemp("study")))


@needs_lm_eval
def test_a_point_in_memory_has_the_scores_of_its_folder(study, task_dir, tmp_path):
    suite = Suite(["pairs", "both", "sums"], task_dir, keep=tmp_path / "kept")
    grid = Grid([0.5], ["uniform"], "weight", "blocks", baselines=False)
    (point,) = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, suite, tmp_path, write=True)["runs"]
    again, dense = measure_folders(suite, tmp_path / "models" / point["id"], study.checkpoint, device="cpu")
    assert point["tasks"] == again and point["dense"]["tasks"] == dense
    assert suite.missing(point) is False


@needs_lm_eval
def test_finished_points_are_completed_in_place(study, task_dir, tmp_path, monkeypatch, counted):
    arguments = (study, HELD_OUT, ["lowrank"], Grid([0.5], ["uniform"], "weight", "blocks"), CUT)
    plain = sweep(*arguments, out=tmp_path)
    before = {point["id"]: point for point in [*plain["runs"], *plain["baselines"]]}
    for name in list(before)[:2]:  # written before there were intervals
        file = tmp_path / "runs" / name / "run.json"
        old = {k: v for k, v in before[name].items() if k not in ("rise_low", "rise_high", "units", "documents")}
        write_json(file, old)
    suite = Suite(["pairs"], task_dir, limit=6, keep=tmp_path / "kept")
    points = Points(study, HELD_OUT, tmp_path, CUT, suite)
    monkeypatch.setattr("karipap_core.plan.planner.Planner.make", None)  # no plan is made
    for name, whole in before.items():
        done = points.complete(Point.from_json(read_json(tmp_path / "runs" / name / "run.json"))).to_json()
        assert kept_json(tmp_path / "runs" / name / "run.json") == done
        assert done["id"] == name and done["created"] == whole["created"] and done["settings"] == whole["settings"]
        assert done["loss"] == pytest.approx(whole["loss"], abs=1e-5) and done["bytes"] == whole["bytes"]
        assert done["units"]["ids"] == whole["units"]["ids"] and done["rise_low"] == pytest.approx(
            whole["rise_low"], abs=1e-4
        )
        assert done["tasks"]["pairs"]["items"] == 6 and done["dense"]["tasks"]["pairs"]["items"] == 6
    assert len(before) // 2 < len(counted) <= len(before) + 1  # the dense model once, and equal weights once
    monkeypatch.undo()
    monkeypatch.setattr(InPlace, "measure", None)  # the same command finds all of it finished
    assert sweep(*arguments, suite, tmp_path)["runs"][0]["tasks"]["pairs"]["limit"] == 6


@needs_lm_eval
def test_a_point_of_other_weights_text_or_model_is_not_completed(study, task_dir, tmp_path):
    grid = Grid([0.5], ["uniform"], "weight", "blocks", baselines=False)
    (point,) = sweep(study, HELD_OUT, ["lowrank"], grid, CUT, out=tmp_path)["runs"]
    suite = Suite(["pairs"], task_dir, limit=2, keep=tmp_path / "kept")
    points = Points(study, HELD_OUT, tmp_path, CUT, suite)
    with pytest.raises(InputError, match="another text"):
        points.complete(Point.from_json(point | {"text": {"name": "x", "sha256": "0" * 64}}))
    with pytest.raises(InputError, match="another model"):
        points.complete(Point.from_json(point | {"model": point["model"] | {"fingerprint": "0" * 64}}))
    with pytest.raises(InputError, match="has a loss of"):
        points.complete(Point.from_json(point | {"loss": point["loss"] + 0.1}))


@needs_lm_eval
def test_run_and_a_finished_run(model, task_dir, tmp_path, monkeypatch):
    plan, out = plan_of(model, 4), tmp_path / "out"
    first = run(model, plan, HELD_OUT, CUT, out=out, device="cpu")
    assert "tasks" not in first
    suite = Suite(["pairs"], task_dir, keep=tmp_path / "kept")
    monkeypatch.setattr("karipap_core.story.compress", None)
    found = run(model, plan, HELD_OUT, CUT, Extras(suite), out, device="cpu")
    assert found["id"] == first["id"] and found["loss"] == first["loss"]
    assert found["tasks"]["pairs"]["difference"]["items"] == 12 and "pairs" in found["dense"]["tasks"]
    assert kept_json(out / "run.json") == found


@needs_lm_eval
def test_the_verb(compressed, model, task_dir, capsys):
    argv = ["evaluate", str(compressed), "--against", str(model), "--tasks", "pairs,both", "--task-dir", str(task_dir)]
    argv += ["--limit", "6", "--max-tokens", "64", "--window", "32", "--device", "cpu", "--progress", "off"]
    assert cli.main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tasks"]["pairs"]["acc"] == np.mean(found["tasks"]["pairs"]["correct"])
    assert found["dense"]["tasks"].keys() == {"pairs", "both"} and found["tasks"]["both"]["difference"]["items"] == 12
    shown = table(found)
    assert "pairs, acc" in shown and "guessing" in shown
    record = read_json(compressed / "evaluation.json")
    assert record["result"]["tasks"] == found["tasks"]
    (compressed / "evaluation.json").unlink()


def test_options_without_tasks_are_refused(compressed, capsys):
    assert cli.main(["evaluate", str(compressed), "--limit", "6"]) == 2
    assert "--limit is about benchmark tasks" in capsys.readouterr().err


# What cannot be scored.


@needs_lm_eval
@pytest.mark.parametrize("verb", ["evaluate", "sweep"])
def test_an_encoder_is_refused_before_anything_is_measured(made, task_dir, tmp_path, capsys, verb):
    argv = [verb, str(made("bert")), "--tasks", "pairs", "--task-dir", str(task_dir)]
    assert cli.main(argv + (["--out", str(tmp_path)] if verb == "sweep" else [])) == 2
    assert "does not predict the next token" in capsys.readouterr().err


@needs_lm_eval
def test_a_model_without_tokenizer_is_refused(model, task_dir, tmp_path):
    with pytest.raises(InputError, match="no tokenizer"):
        evaluate_tasks(load_model(model)[0], None, Suite(["pairs"], task_dir, keep=tmp_path))


@needs_lm_eval
@pytest.mark.parametrize("name", ["gpt2", "mixtral", "falcon"])
def test_other_architectures(made, task_dir, tmp_path, name):
    found = evaluate_tasks(*load_model(made(name)), Suite(["pairs", "sums"], task_dir, limit=4, keep=tmp_path))
    assert 0 <= found["pairs"]["acc"] <= 1 and found["sums"]["items"] == 4


def test_without_lm_eval_it_says_what_to_install(task_dir, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install lm-eval==0.4.13"):
        Suite(["pairs"], task_dir)


@needs_lm_eval
def test_generation_longer_than_the_model_is_said(model, task_dir, tmp_path):
    folder = write_tasks(tmp_path / "tasks")
    (folder / "write.yaml").write_text(WRITE.replace("max_gen_toks: 6", "max_gen_toks: 400"))
    with pytest.raises(InputError, match="Task sums cannot be run on this model"):
        evaluate_tasks(*load_model(model), Suite(["sums"], folder, keep=tmp_path))


@needs_lm_eval
@pytest.mark.parametrize(
    "field, value, sentence",
    [
        ("process_docs", "!function utils.work", "!function would run Python"),
        ("dataset_kwargs", "{data_files: {test: questions.jsonl}, trust_remote_code: true}", "trust_remote_code"),
        ("dataset_kwargs", "{data_files: {test: nothing.jsonl}}", "nothing.jsonl does not exist"),
        ("metric_list", "[{metric: someones/metric}]", "none of lm-eval's own"),
        ("metric_list", "[{metric: acc, hf_evaluate: true}]", "hf_evaluate would run code"),
        ("dataset_path", "items.py", "is a program"),
        ("doc_to_choice", "!!python/object/apply:os.getcwd []", "is not plain YAML"),
        ("doc_to_text", "'{{ question.__class__.__mro__ }}'", "cannot be made from its files"),
        ("output_type", "riddle", "field output_type must be one of"),
        ("doc_to_target", "[", "not plain YAML"),
    ],
)
def test_a_task_file_that_runs_code_or_does_not_fit_is_refused(tmp_path, field, value, sentence):
    (tmp_path / "utils.py").write_text("raise SystemExit('run')")
    folder = write_tasks(tmp_path)
    lines = [line for line in CHOICE.replace("NAME", "pairs").splitlines() if not line.startswith(f"{field}:")]
    (folder / "pairs.yaml").write_text("\n".join([*lines, f"{field}: {value}"]))
    with pytest.raises(InputError, match=sentence):
        Suite(["pairs"], folder, keep=tmp_path / "kept")


@needs_lm_eval
def test_task_folders_include_and_find_files_beside_them(task_dir, tmp_path):
    folder = tmp_path / "tasks"
    (folder / "deep").mkdir(parents=True)
    (folder / "questions.jsonl").write_text((task_dir / "questions.jsonl").read_text())
    (folder / "shared.yaml").write_text(CHOICE.replace("task: NAME", ""))
    (folder / "deep" / "one.yaml").write_text("include: ../shared.yaml\ntask: one\nnum_fewshot: 1\n")
    found = read_folder(folder)
    assert found.keys() == {"one"} and found["one"].settings["num_fewshot"] == 1
    files = found["one"].settings["dataset_kwargs"]["data_files"]
    assert files == {"test": str((folder / "questions.jsonl").absolute())}
    (folder / "two.yaml").write_text("include: two.yaml\ntask: two\n")
    with pytest.raises(InputError, match="includes itself"):
        read_folder(folder)
    (folder / "two.yaml").write_text(CHOICE.replace("NAME", "one"))
    with pytest.raises(InputError, match="both in"):
        read_folder(folder)
    with pytest.raises(InputError, match="does not exist"):
        read_folder(folder / "nowhere")


@needs_lm_eval
def test_what_only_the_hub_has_is_said_without_network(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "far.yaml").write_text("task: far\ndataset_path: nobody/nothing\ntest_split: test\n")
    with pytest.raises(InputError, match=r"Task far needs its items from the Hugging Face hub.*--task-dir"):
        Suite(["far"], tmp_path, keep=tmp_path / "kept")


@needs_lm_eval
def test_unknown_names_are_said_and_the_harness_is_looked_through_once(task_dir, tmp_path, monkeypatch):
    from lm_eval.tasks import _index

    asked = []

    def build(paths, **more):
        asked.append([*paths])
        entry = _index.Entry("theirs", _index.Kind.TASK, Path(_index.__file__).parent / "theirs.yaml")
        return {"theirs": entry} if paths else {}

    monkeypatch.setattr(_index.TaskIndex, "build", staticmethod(build))
    for _ in range(2):
        with pytest.raises(InputError, match="Task riddles is neither in .* nor in lm-eval"):
            Suite(["riddles"], task_dir, keep=tmp_path)
    assert len([paths for paths in asked if paths]) == 1
    Suite(["pairs"], task_dir, keep=tmp_path)
    assert len([paths for paths in asked if paths]) == 1


def test_a_batch_fits_into_memory(made):
    live = load_model(made("llama"))[0]
    assert rows(live, 3) == 3 and rows(live) == harness.MAX_BATCH
    live.config.vocab_size, live.config.max_position_embeddings = 128_000, 131_072
    assert rows(live) == 1


def test_the_tokenizer_is_part_of_what_a_model_is(model, tmp_path):
    import shutil

    shutil.copytree(model, tmp_path / "copy")
    assert causal(tmp_path / "copy").identity == causal(model).identity
    settings = tmp_path / "copy" / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("</s>", "<pad>"))
    assert causal(tmp_path / "copy").identity != causal(model).identity


# The tasks that ship as examples, on the files they are for.


@needs_lm_eval
@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "lambada_openai", "mmlu", "hellaswag"])
def test_the_shipped_yaml_reads_the_files_it_is_for(name, tmp_path, model):
    if not SHARED.is_dir():
        pytest.skip("../shared/data is not here")
    folder = REPOSITORY / "docs" / "tasks"
    for file in folder.glob("*.yaml"):
        subjects = file.read_text().split("  - task: ")  # three of MMLU's 57: each is a data set of its own to read
        (tmp_path / file.name).write_text("  - task: ".join(subjects[:4]))
    for data in (*SHARED.glob("*/*.jsonl"), *(SHARED / "mmlu").glob("*/*.csv")):
        (tmp_path / data.name).symlink_to(data)
    if name == "hellaswag":
        lines = (SHARED / "hellaswag" / "hellaswag_val_full.txt").read_text().splitlines()[:60]
        items = [lines[i : i + 6] for i in range(0, 60, 6)]
        rows_ = [{"query": one[0], "choices": one[2:], "gold": int(one[1])} for one in items]
        (tmp_path / "hellaswag.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_))
    limit, shots = (1, 2) if name == "mmlu" else (4, 0)
    found = evaluate_tasks(*load_model(model), Suite([name], tmp_path, limit, shots, keep=tmp_path))[name]
    assert found["items"] == (3 if name == "mmlu" else 4) and 0 <= found["acc"] <= 1
    assert found.get("chance", 0.25) == 0.25
