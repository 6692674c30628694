"""A workspace, plans, runs and compressed folders written by an earlier build (tests/data/old_workspace) still open."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file

import karipap_core  # noqa: F401  (transformers loads compressed folders from here on)
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import main
from karipap_core.compressed.checks import unsafe_files
from karipap_core.plan.document import Plan
from karipap_core.profiles.document import Profile
from karipap_core.reading import read_json
from karipap_core.workspace import Workspace
from karipap_core.workspace.runs import read_runs
from tests.helpers.paths import REPOSITORY

SAMPLES = REPOSITORY / "tests" / "data" / "old_workspace"
WRITTEN_AT = "/old_workspace"  # where the earlier build wrote them
FOLDERS = ("lowrank", "qlr")
BUDGETS = {
    "lowrank": ("--budget", "0.7", "--network", "lowrank"),
    "qlr": ("--budget", "0.3", "--network", "qlr", "--quantize", "int4"),
}


@pytest.fixture
def old(tmp_path, monkeypatch):
    """The samples in a folder of the test's own, with their paths as they would be had they been written there.

    config.json of a compressed folder stays as it is: the folder's records hold its SHA-256.
    """
    folder = tmp_path / "old"
    shutil.copytree(SAMPLES, folder)
    for file in folder.rglob("*.json"):
        if file.parent.parent.name != "compressed" or file.name != "config.json":
            file.write_text(file.read_text("utf-8").replace(WRITTEN_AT, str(folder)), "utf-8")
    for file in (folder / "model").iterdir():  # as it was before anything was measured on it
        os.utime(file, (0, 0))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(folder / "workspace"))
    return folder


def run(capsys, *words: str) -> dict:
    """What a verb answers, as JSON."""
    code = main([*words, "--json", "--progress", "off"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return json.loads(printed.out)


def measurements(old) -> dict[str, tuple[int, int]]:
    """Every file of measurements with its time and size: one that is written anew has another time."""
    kinds = ("moments", "curves", "calibration", "profiles", "cores")
    (model,) = (old / "workspace" / "models").iterdir()  # its name is longer since 0.3
    files = [file for kind in kinds for file in (model / kind).rglob("*") if file.is_file()]
    assert len(files) > 20
    return {str(file.relative_to(model)): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def test_the_samples_are_of_no_machine():
    """No path of the machine that they were made on, and nothing that could execute."""
    assert not unsafe_files(SAMPLES)
    for file in SAMPLES.rglob("*.json"):
        text = file.read_text("utf-8")
        assert not any(place in text for place in ("/tmp/", "/work/", "/root/", "/home/", "/Users/")), file


def test_a_profile_holds_the_spectra_of_the_model(old):
    (folder,) = (old / "workspace" / "models").glob("*/profiles/*")
    profile, checkpoint = Profile.load(folder), open_checkpoint(old / "model")
    assert {row["name"] for row in profile.weights} == {weight.name for weight in checkpoint.weights}
    for weight in checkpoint.weights:
        if weight.compressible:
            expected = torch.linalg.svdvals(checkpoint.read(weight.name).double())
            assert torch.allclose(torch.from_numpy(profile.sigma(weight.name, "weight")).double(), expected, rtol=1e-4)
            assert set(profile.weight(weight.name)["spectra"]) == {"weight", "functional", "loss"}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_plan_is_read_and_written_as_it_was(old, name):
    file = old / "workspace" / "plans" / f"{name}.json"
    plan = Plan.load(file)
    plan.check(open_checkpoint(old / "model"))
    plan.save(old / "again.json")
    assert (old / "again.json").read_bytes() == file.read_bytes()


@pytest.mark.parametrize("name", FOLDERS)
def test_planning_again_finds_every_measurement(old, name, capsys):
    before = measurements(old)
    asked = ["plan", "model", *BUDGETS[name], "--scope", "blocks", "--rule", "calibrated", "--device", "cpu"]
    asked += ["--rounding", "one-sided"]  # as everything in few bits was rounded then
    run(capsys, *asked, "--text", "calibration.txt", "--out", "plan.json")
    made, kept = Plan.load(old / "plan.json"), Plan.load(old / "workspace" / "plans" / f"{name}.json")
    assert made.to_json()["weights"] == kept.to_json()["weights"]
    assert made.calibration == kept.calibration and made.model == kept.model
    assert measurements(old) == before


@pytest.mark.parametrize("name", FOLDERS)
def test_compressing_again_gives_the_same_numbers(old, name, capsys):
    before = measurements(old)
    made = run(capsys, "compress", "model", "--plan", f"workspace/plans/{name}.json", "--out", "again")
    assert made["verify"]["ok"] and measurements(old) == before
    again, kept = (load_file(old / folder / "model.safetensors") for folder in ("again", f"compressed/{name}"))
    assert again.keys() == kept.keys()
    for key, tensor in kept.items():
        assert again[key].dtype == tensor.dtype
        assert torch.allclose(again[key].double(), tensor.double(), atol=1e-5), key


@pytest.mark.parametrize("name", FOLDERS)
def test_a_compressed_folder_is_verified_and_ready(old, name, capsys):
    """The checklist rests on the records that the earlier build left; `verify` looks at everything again."""
    ready = run(capsys, "checklist", f"compressed/{name}")
    assert ready["ok"], [item for item in ready["items"] if not item["ok"]]
    verdict = run(capsys, "verify", f"compressed/{name}")
    assert verdict["ok"], verdict["checks"]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_compressed_folder_loads_to_the_same_logits(old, name):
    from transformers import AutoModelForCausalLM

    expected = read_json(old / "logits.json")
    model = AutoModelForCausalLM.from_pretrained(old / "compressed" / name, dtype=torch.float32).eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([expected["ids"]])).logits[0, -2:]
    assert torch.allclose(found, torch.tensor(expected[name]), rtol=0, atol=1e-5)


def test_runs_are_read_shown_compared_and_reported(old, capsys):
    runs = {run["method"]: run for run in read_runs(old / "workspace" / "runs")}
    assert [run["id"] for run in Workspace().runs] == [run["id"] for run in runs.values()] and len(runs) == 2
    for kept in runs.values():
        assert Plan.from_json(kept["plan"]).model["name"] == "model" and kept["rise"] > 0
    files = [kept["path"] for kept in runs.values()]
    for file in files:
        assert run(capsys, "show", file)["id"] == read_json(file)["id"]
    found = run(capsys, "compare", *files)
    assert json.dumps(found).count(runs["lowrank"]["label"])
    run(capsys, "report", *files, "--out", "report.html")
    page = (old / "report.html").read_text("utf-8")
    assert all(kept["label"] in page for kept in runs.values())


def test_a_sweep_and_a_sensitivity_are_read(old, capsys):
    document = run(capsys, "show", "sweep/sweep.json")
    assert document["runs"] and document["baselines"]
    run(capsys, "report", "sweep/sweep.json", "--out", "report.html")
    assert document["runs"][0]["label"] in (old / "report.html").read_text("utf-8")
    (file,) = (old / "workspace" / "models").glob("*/sensitivity/*.json")
    kept = read_json(file)  # the seconds that each weight took among it
    before = measurements(old)
    asked = ["sensitivity", "model", "--kept", "0.5", "--text", "heldout.txt", "--calibrate", "calibration.txt"]
    found = run(capsys, *asked, "--device", "cpu")
    assert found["weights"] == kept["weights"] and len(kept["weights"]) == 14
    assert measurements(old) == before


@pytest.mark.parametrize("kind", ["profile", "plan", "compressed", "sweep"])
def test_every_document_has_its_table(old, kind, capsys):
    profile = next((old / "workspace" / "models").glob("*/profiles/*"))
    places = {"profile": profile, "plan": "workspace/plans/qlr.json", "compressed": "compressed/qlr", "sweep": "sweep"}
    assert main(["show", str(places[kind]), "--progress", "off"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
