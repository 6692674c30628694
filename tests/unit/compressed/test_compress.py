"""Compression end to end: errors as they are, kills that leave no trace, and a folder equal to the model in memory."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from karipap_core import story as pipeline
from karipap_core.cli import frame as cli
from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.evaluation.inplace import InPlace
from karipap_core.evaluation.scoring import Scoring
from karipap_core.models.load import load_model
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.text import Text, divide, read_text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make

SETTINGS = CalibrationSettings(tokens=1024, window=32, probe_windows=4, check_windows=4)
TEXT = "".join(f"the square of {n} is {n * n}, its cube {n**3}\n<|endoftext|>" for n in range(300))


def folder_hash(folder) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compress")
    (folder / "text.txt").write_text(TEXT)
    model = make("llama_bf16", folder / "model")
    study = Study(model, folder / "text.txt", SETTINGS, "cpu", Workspace(folder / "workspace"))
    plan = Planner(study, "lowrank", "loss").make(Budget(kept=0.6, scope="blocks"), "functional")
    plan.save(folder / "plan.json")
    return folder, study, plan


def test_errors_are_those_of_the_stored_cores_by_plain_numpy(world):
    folder, study, plan = world
    result = compress(study, plan, folder / "out")
    assert result["kept_blocks"] == plan.ledger(study.checkpoint).kept_blocks
    from safetensors.torch import load_file

    stored = load_file(folder / "out" / "model.safetensors")
    for row in result["weights"]:
        left, right = (stored[f"{row['name']}.cores.{k}"] for k in range(2))
        assert left.dtype == torch.bfloat16 and left.numel() + right.numel() == row["parameters"]
        dense = study.checkpoint.read(row["name"]).double().numpy()
        gone = dense - left.double().numpy() @ right.double().numpy()
        assert row["weight_error"] == pytest.approx((gone**2).sum() / (dense**2).sum(), rel=1e-5)
        C = study.moments.metric(row["name"], "functional").C.numpy()
        C = C + 0.01 * np.trace(C) / len(C) * np.eye(len(C))
        expected = np.trace(gone @ C @ gone.T) / np.trace(dense @ C @ dense.T)
        assert row["functional_error"] == pytest.approx(expected, rel=1e-5)
    total = sum(t.numel() for t in stored.values())
    assert total == result["parameters"]


def test_the_folder_evaluates_as_the_model_in_memory(world):
    folder, study, plan = world
    compress(study, plan, folder / "same")
    measured = divide(read_text(folder / "text.txt"))[1]
    dense, tokenizer = load_model(study.checkpoint)
    bench = InPlace(dense, tokenizer, study.checkpoint, measured, Scoring(64, 32))
    source = study.decompositions("loss")
    specs = {name: plan.spec(name) for name in plan.weights if plan.spec(name)}
    in_memory = bench.measure((name, source.matrix(name, spec)) for name, spec in specs.items())
    from transformers import AutoModelForCausalLM

    live = AutoModelForCausalLM.from_pretrained(folder / "same", dtype=torch.float32).eval()
    on_disk = InPlace(live, tokenizer, study.checkpoint, measured, Scoring(64, 32)).dense
    assert on_disk["perplexity"] == pytest.approx(in_memory["perplexity"], rel=1e-4)


def test_a_second_run_finds_the_folder_finished_and_another_plan_is_refused(world):
    folder, study, plan = world
    first = compress(study, plan, folder / "twice")
    before = folder_hash(folder / "twice")
    again = compress(study, plan, folder / "twice")
    assert {**again, "seconds": 0} == {**first, "seconds": 0} and folder_hash(folder / "twice") == before
    other = Plan(model_entry(study.checkpoint), "weight", {})
    with pytest.raises(InputError, match="name another one"):
        compress(study, other, folder / "twice")


def test_killed_at_any_moment_and_started_again_it_is_the_same_folder(world, capsys):
    """SIGKILL at moments spread over the whole run, each time followed by the same command. What is not killed runs in
    this process."""
    folder, study, _ = world
    command = ["compress", str(study.checkpoint.path), "--plan", str(folder / "plan.json")]
    command += ["--progress", "json", "--json", "--out"]

    def arguments(name):
        return [*command, str(folder / name), "--workspace", str(folder / f"ws-{name}")]

    def start():
        command_line = [sys.executable, "-m", "karipap_core", *arguments("killed")]
        return subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def here(name):
        status, (output, errors) = cli.main(arguments(name)), capsys.readouterr()
        assert status == 0, errors
        return output, errors

    output, errors = here("whole")
    stages = [json.loads(line) for line in errors.splitlines() if line.startswith("{")]
    # After the third weight, and while the folder is written; the rest of the run is then done by the last start.
    killed = 0
    for stage, done in (("activations", 0), ("compress", 3), ("write", 1)):
        assert any(line["stage"] == stage for line in stages), stages
        process = start()
        for line in process.stderr:
            if line.startswith("{") and (at := json.loads(line))["stage"] == stage and at["done"] >= done:
                time.sleep(0.02)
                process.send_signal(signal.SIGKILL)
                killed += 1
                break
        process.communicate(timeout=300)
    again, _ = here("killed")
    assert killed >= 2
    assert folder_hash(folder / "killed") == folder_hash(folder / "whole")
    assert {**json.loads(again), "seconds": 0} == {**json.loads(output), "seconds": 0}


def test_a_plan_whose_text_has_changed_is_refused(world, tmp_path):
    folder, study, plan = world
    document = plan.to_json() | {"calibration": plan.calibration | {"sha256": "0" * 64}}
    with pytest.raises(InputError, match="calibrated on"):
        pipeline.compress(study.checkpoint.path, Plan.from_json(document), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_part_of_a_file_is_found_again(world):
    folder, study, plan = world
    part, _ = divide(read_text(folder / "text.txt"))
    entry = plan.calibration | {"text": part.name, "sha256": part.sha256, "path": part.path}
    found = pipeline.calibration_text(Plan.from_json(plan.to_json() | {"calibration": entry}))
    assert isinstance(found, Text) and found.sha256 == part.sha256
