"""The checklist: green only from evidence, red when it is missing, wrong or stale, and the fix makes it green."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core.cli import frame as cli  # noqa: F401  (verbs fills cli.VERBS)
from karipap_core.cli.tables.checklist import table
from karipap_core.deployment.checklist import ITEMS, checklist
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.kept import keep_json
from tests.helpers.folders import folder_of, plan_for

FLOW = ("evaluation on file", "shadow run on file", "fallback tested")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(dense model, a folder with every record, a working folder with prompts.txt)."""
    from tests.helpers.architectures import make

    root = tmp_path_factory.mktemp("checklist")
    model = make("llama", root / "model")
    folder = folder_of(model, root / "out")
    (root / "prompts.txt").write_text("def main():\n")
    (root / "text.txt").write_text("the square of a number is not its cube\n" * 60)
    before = checklist(folder)
    common = ["--device", "cpu", "--progress", "off", "--json"]
    text = ["--text", str(root / "text.txt"), "--max-tokens", "64", "--window", "32"]
    assert cli.main(["evaluate", str(folder), *text, *common]) == 0
    assert cli.main(["shadow", str(folder), "--prompts", str(root / "prompts.txt"), "--tokens", "4", *common]) == 0
    assert cli.main(["checklist", str(folder), "--test-fallback", *common]) == 0
    return model, folder, root, before


@pytest.fixture
def folder(world, tmp_path) -> Path:
    return Path(shutil.copytree(world[1], tmp_path / "copy"))


def red(document: dict) -> list[str]:
    assert [item["name"] for item in document["items"]] == list(ITEMS)
    for item in document["items"]:
        assert item["evidence"] and (item["fix"] is None) is item["ok"], item
    assert document["ok"] is all(item["ok"] for item in document["items"])
    return [item["name"] for item in document["items"] if not item["ok"]]


def item(document: dict, name: str) -> dict:
    return next(each for each in document["items"] if each["name"] == name)


def test_a_folder_fresh_from_compress_lacks_what_nobody_has_run(world):
    assert red(world[3]) == [*FLOW, "all run since the last change"]


def test_after_the_flow_all_is_green_and_says_from_what(world):
    document = checklist(world[1])
    assert red(document) == []
    assert "SHA-256" in item(document, "evaluation on file")["evidence"]
    assert "windows of 32" in item(document, "evaluation on file")["evidence"]
    assert "1 prompt (" in item(document, "shadow run on file")["evidence"]
    assert "ready" in table(document)


def verb_of(command: str) -> list[str]:
    words = shlex.split(command)
    assert words[0] == "karipap"
    return words[1:]


@pytest.mark.parametrize(
    "kind, name", [("verify", "verify passed"), ("evaluation", FLOW[0]), ("shadow", FLOW[1]), ("fallback", FLOW[2])]
)
def test_each_record_is_needed_and_the_fix_makes_it_anew(world, folder, tmp_path, monkeypatch, kind, name):
    (folder / f"{kind}.json").unlink()
    document = checklist(folder)
    assert red(document) == [name, "all run since the last change"]
    monkeypatch.chdir(tmp_path)  # where nothing is that a fix could lean on
    short = {
        "evaluation": ["--text", str(world[2] / "text.txt"), "--max-tokens", "64", "--window", "32"],
        "shadow": ["--tokens", "3"],
    }
    argv = verb_of(item(document, name)["fix"]) + short.get(kind, []) + ["--device", "cpu", "--progress", "off"]
    assert cli.main(argv) == 0
    assert checklist(folder)["ok"]


@pytest.mark.parametrize("kind", ["verify", "evaluation", "shadow", "fallback"])
@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "karipap-verify", "of": {}, "result": []}'])
def test_a_record_that_holds_nothing_is_none(folder, kind, text):
    (folder / f"{kind}.json").write_text(text)
    assert len(red(checklist(folder))) == 2


def test_records_that_report_a_failure_are_red(folder):
    for kind, change in (
        ("verify", {"ok": False}),
        ("evaluation", {"rise": None}),
        ("evaluation", {"text": {}}),
        ("shadow", {"prompts": []}),
        ("fallback", {"ok": False}),
    ):
        kept = read_json(folder / f"{kind}.json")
        keep_json(folder / f"{kind}.json", kept | {"result": kept["result"] | change})
        assert len(red(checklist(folder))) == 1
        keep_json(folder / f"{kind}.json", kept)


def test_a_record_that_no_dense_model_stood_beside_is_red(folder):
    for kind, name in (("evaluation", FLOW[0]), ("shadow", FLOW[1]), ("fallback", FLOW[2])):
        kept = read_json(folder / f"{kind}.json")
        keep_json(folder / f"{kind}.json", kept | {"of": kept["of"] | {"dense": None}})
        document = checklist(folder)
        assert red(document) == [name] and "without the dense model" in item(document, name)["evidence"]
        keep_json(folder / f"{kind}.json", kept)


def change(folder: Path, kind: str, **more) -> None:
    """A record with other facts in `of` or in its `result`."""
    document = read_json(folder / f"{kind}.json")
    keep_json(folder / f"{kind}.json", document | {part: document[part] | more[part] for part in more})


@pytest.mark.parametrize("missing", [{"window": None}, {"text": {"name": "x"}}])
def test_an_evaluation_that_does_not_say_on_what_is_red(folder, missing):
    change(folder, "evaluation", result=missing)
    document = checklist(folder)
    assert red(document) == [FLOW[0]] and "which text and windows" in item(document, FLOW[0])["evidence"]


@pytest.mark.parametrize(
    "kind, name", [("verify", "verify passed"), ("evaluation", FLOW[0]), ("shadow", FLOW[1]), ("fallback", FLOW[2])]
)
def test_a_record_made_beside_another_dense_model_is_stale(folder, kind, name):
    change(folder, kind, of={"dense": "0" * 64})
    document = checklist(folder)
    assert red(document) == [name, "all run since the last change"]
    assert "another dense model" in item(document, name)["evidence"]


def test_records_of_another_dense_model_have_not_seen_the_one_that_is_away(folder):
    report = read_json(folder / "karipap.json")
    keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    for kind in ("verify", "evaluation", "shadow", "fallback"):
        change(folder, kind, of={"dense": "0" * 64})
    document = checklist(folder)
    assert "fingerprint pinned" in red(document)
    assert "no record was made beside it" in item(document, "fingerprint pinned")["evidence"]


def test_a_model_of_the_plans_name_that_is_another_one_is_not_taken_for_it(folder, tmp_path):
    """Where the report's path leads nowhere, the plan's name is tried, and counts only with its fingerprint."""
    from tests.helpers.architectures import make

    report = read_json(folder / "karipap.json")
    keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    config = read_json(folder / "config.json")
    config["quantization_config"]["plan"]["model"]["name"] = str(make("llama", tmp_path / "other", seed=1))
    (folder / "config.json").write_text(json.dumps(config))
    found = item(checklist(folder), "fingerprint pinned")
    assert found["ok"] and "the dense model itself is not here" in found["evidence"]


def test_another_tensor_makes_every_record_stale(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    document = checklist(folder)
    assert red(document) == ["verify passed", *FLOW, "all run since the last change"]
    assert all("tensors have changed" in item(document, name)["evidence"] for name in FLOW)
    fix = item(document, "all run since the last change")["fix"]
    assert [verb_of(each)[0] for each in fix.split(" && ")] == ["verify", "evaluate", "shadow", "checklist"]
    # The tensor is not the one that was written: verify says so, and that the folder has to be written again.
    assert cli.main(["verify", str(folder), "--progress", "off"]) == 1
    again = item(checklist(folder), "verify passed")
    assert "unchanged" in again["evidence"] and "compress" in again["fix"]


def test_another_tokenizer_or_config_makes_every_record_stale(folder):
    (folder / "tokenizer_config.json").write_text("{}")
    document = checklist(folder)
    assert red(document) == ["verify passed", *FLOW, "all run since the last change"]
    assert "config or tokenizer" in item(document, FLOW[0])["evidence"]


def test_a_dense_model_that_has_changed_is_another_one(world, folder, tmp_path):
    dense = Path(shutil.copytree(world[0], tmp_path / "dense"))
    assert checklist(folder, dense)["ok"]
    tensors = load_file(dense / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    document = checklist(folder, dense)
    assert red(document) == ["fingerprint pinned", "all run since the last change"]
    assert "plan" in item(document, "fingerprint pinned")["fix"]


def test_a_dense_model_that_is_away_was_seen_by_the_records(folder):
    report = read_json(folder / "karipap.json")
    keep_json(folder / "karipap.json", report | {"source": "/nowhere/at/all"})
    document = checklist(folder)
    assert red(document) == [] and "was made" in item(document, "fingerprint pinned")["evidence"]
    for kind in ("verify", "evaluation", "shadow", "fallback"):
        (folder / f"{kind}.json").unlink()
    assert "fingerprint pinned" in red(checklist(folder))


def test_files_that_execute_code_and_the_command_that_removes_them(folder):
    (folder / "optimizer.pt").write_bytes(b"x")
    document = checklist(folder)
    assert "safetensors only" in red(document)
    fix = item(document, "safetensors only")["fix"]
    assert fix.startswith(f"rm -- {folder / 'optimizer.pt'} && ") and item(document, "verify passed")["fix"] == fix


def test_a_plan_that_does_not_fit(folder):
    config = read_json(folder / "config.json")
    entry = next(e for e in config["quantization_config"]["plan"]["weights"].values() if e["network"] == "lowrank")
    entry["out"] = [7]
    (folder / "config.json").write_text(json.dumps(config))
    document = checklist(folder)
    assert "plan valid" in red(document) and "compress" in item(document, "plan valid")["fix"]


def test_writing_the_folder_again_works_as_the_fix_says(world, folder, tmp_path, monkeypatch):
    kept = read_json(folder / "verify.json")
    wrong = {"ok": False, "checks": [{"name": "unchanged", "ok": False, "detail": ""}]}
    keep_json(folder / "verify.json", kept | {"result": wrong})
    fix = item(checklist(folder), "verify passed")["fix"]
    run(fix, monkeypatch, tmp_path)
    again = Path(f"{folder}-again")
    assert "verify passed" not in red(checklist(again))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def run(fix: str, monkeypatch, folder: Path) -> None:
    """A fix as a shell would run it in `folder`; our own verbs in this process, which has loaded torch already."""
    monkeypatch.chdir(folder)
    for command in fix.split(" && "):
        if command.startswith("karipap "):
            assert cli.main([*verb_of(command), "--progress", "off"]) == 0, command
        else:
            subprocess.run(["sh", "-c", command.replace("python", sys.executable, 1)], check=True, timeout=60)


def test_what_a_strangers_folder_says_of_its_healing_is_no_command(tmp_path):
    from karipap_core.deployment.checklist import _typed

    settings = {"steps": "1; touch x", "seed": "--out=/y", "rate; touch x": 1}
    said = _typed({"settings": settings, "result": {"text": {"path": "-a b"}}})
    assert said == " --steps '1; touch x' --seed ./--out=/y --text './-a b'"


def test_a_healed_folder_is_written_and_healed_again(world, tmp_path, monkeypatch):
    from karipap_core.healing.heal import heal
    from karipap_core.healing.settings import Settings

    settings = Settings(3, window=32, tokens=64, rate=1e-2, norms=True)
    heal(world[1], tmp_path / "healed", settings, world[2] / "text.txt", device="cpu")
    assert red(checklist(tmp_path / "healed")) == [*FLOW, "all run since the last change"]
    file = tmp_path / "healed" / "model.safetensors"
    expected = {name: tensor.clone() for name, tensor in load_file(file).items()}  # not what the file will hold
    file.write_bytes(file.read_bytes()[:-5])
    document = checklist(tmp_path / "healed")
    assert red(document) == ["verify passed", *FLOW, "all run since the last change"]
    fix = item(document, "verify passed")["fix"]
    assert item(document, "all run since the last change")["fix"] == item(document, FLOW[0])["fix"] == fix
    run(fix, monkeypatch, tmp_path)
    again = load_file(tmp_path / "healed-again" / "model.safetensors")
    assert expected.keys() == again.keys()
    for name, healed in expected.items():
        assert torch.allclose(healed, again[name], atol=1e-3), name


def test_a_new_plan_is_of_the_kind_of_the_old_one(world, folder):
    config = read_json(folder / "config.json")
    plan = config["quantization_config"]["plan"]

    def fix(**change):
        changed = config | {"quantization_config": config["quantization_config"] | {"plan": plan | change}}
        (folder / "config.json").write_text(json.dumps(changed))
        fix = item(checklist(folder), "plan valid")["fix"]
        for command in fix.split(" && "):
            cli.build_parser().parse_args(verb_of(command))
        return fix

    bad = {"x": {"network": "mpo", "quantize": "int4"}, "y": {"network": "dense", "quantize": None}}
    found = fix(weights=bad, budget=0.4, scope="blocks", rule="calibrated", metric="functional")
    assert "--budget 0.4 --scope blocks --rule calibrated --metric functional --network mpo --quantize int4" in found
    mixed = bad | {"z": {"network": "lowrank", "quantize": "int8"}}
    assert "--budget-bytes 0.3 --network auto --quantize auto" in fix(weights=mixed, budget_bytes=0.3, metric="loss")
    assert "--network" not in fix(weights=[]) and "--budget 0.7" in fix(weights={"x": 1}, budget="half")


def test_an_encoder_is_compared_by_its_outputs(made, tmp_path):
    plan = plan_for(made("bert"), {role: ("lowrank", None) for role in ("q", "fc1", "fc2")})
    folder = folder_of(made("bert"), tmp_path / "out", plan)
    document = checklist(folder)
    assert red(document) == [*FLOW, "all run since the last change"]
    fixes = dict.fromkeys(item(document, name)["fix"] for name in FLOW)
    assert [verb_of(fix)[0] for fix in fixes] == ["evaluate", "checklist"]
    (tmp_path / "text.txt").write_text("the square of a number is not its cube\n" * 60)
    common = ["--device", "cpu", "--progress", "off"]
    text = ["--text", str(tmp_path / "text.txt"), "--max-tokens", "64", "--window", "32"]
    for fix in fixes:
        argv = verb_of(fix) + (text if "evaluate" in fix else []) + common
        assert cli.main(argv) == 0
    done = checklist(folder)
    assert red(done) == [] and "writes no text" in item(done, "shadow run on file")["evidence"]


def test_what_another_dense_model_makes_red_is_planned_again_and_not_verified_again(world, tmp_path):
    from tests.helpers.architectures import make

    other = make("llama", tmp_path / "other", seed=1)
    folder = folder_of(other, tmp_path / "forced", plan_for(world[0]), force=True)
    document = checklist(folder)
    assert "fingerprint pinned" in red(document) and "verify passed" in red(document)
    assert item(document, "verify passed")["fix"] == item(document, "fingerprint pinned")["fix"]


def test_the_verb_prints_what_to_run(world, folder, capsys):
    (folder / "shadow.json").unlink()
    assert cli.main(["checklist", str(folder), "--progress", "off"]) == 1
    out = capsys.readouterr().out
    assert "not ready" in out and "shadow" in out and "--prompt 'def main():' --prompt 'Once upon a time'" in out
    with pytest.raises(InputError, match="not a model compressed"):
        checklist(world[0])
