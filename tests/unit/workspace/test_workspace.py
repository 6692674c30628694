import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.schemas import checked_name
from karipap_core.workspace import Workspace, new_id, shipped
from karipap_core.workspace.files import settings_key, whole_file, write_json
from tests.helpers.points import LEAST

KEY, OTHER = f"{'ab' * 16}-{'0' * 16}", f"{'ab' * 16}-{'1' * 16}"


@dataclass
class Model:
    """What the workspace asks of a checkpoint."""

    home: Path
    identity: str = "0" * 16

    @property
    def key(self) -> str:
        return f"{'ab' * 16}-{self.identity}"

    @property
    def settings_files(self) -> list[Path]:
        return [self.home / "config.json"]


def test_root_is_the_argument_then_the_variable_then_the_folder_workspace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KARIPAP_WORKSPACE", str(tmp_path / "named"))
    assert Workspace(tmp_path / "given").root == tmp_path / "given"
    assert Workspace().root == tmp_path / "named"
    monkeypatch.delenv("KARIPAP_WORKSPACE")
    assert Workspace().root == tmp_path / "workspace"
    assert not Workspace().root.exists(), "nothing is made before something is written"


def test_places_differ_by_model_kind_and_key(tmp_path):
    workspace = Workspace(tmp_path)
    places = {
        workspace.profile_dir(KEY, "k1"),
        workspace.profile_dir(KEY, "k2"),
        workspace.profile_dir(OTHER, "k1"),
        workspace.calibration_file(KEY, "k1"),
        workspace.cache_file("fingerprints", "k1"),
        workspace.plan_file("k1"),
    }
    assert len(places) == 6
    assert all(place.is_relative_to(tmp_path) for place in places)


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "/etc/passwd", ".hidden", "x\0y", "a" * 129])
def test_no_name_leads_out_of_the_workspace(tmp_path, name):
    with pytest.raises(InputError):
        Workspace(tmp_path).plan_file(name)
    with pytest.raises(InputError):
        Workspace(tmp_path).profile_dir(KEY, name or "/")
    with pytest.raises(InputError):
        Workspace(tmp_path).profile_dir(name, "key")


def test_a_name_says_where_it_is_from():
    assert checked_name("lowrank+qlr-01d8886f4b9dba1c") == "lowrank+qlr-01d8886f4b9dba1c"
    for name in ("-o", "a b", "a\n", None, 3, ["a"]):
        with pytest.raises(InputError) as refused:
            checked_name(name, "run.json, field id")
        said = "is not a name: letters, digits, '.', '_', '+' and '-', at most 128."
        assert str(refused.value) == f"run.json, field id: {str(name)!r} {said}"


def test_stored_plans_are_named_by_their_content(tmp_path):
    workspace = Workspace(tmp_path)
    first, second = ({"format": "karipap-plan", "n": n} for n in (1, 2))
    names = [workspace.keep_plan(plan, "../my plan") for plan in (first, second, first)]
    assert names[0] == names[2] != names[1] and all(name.startswith("my-plan-") for name in names)
    assert workspace.keep_plan(first, names[0]) == names[0], "a name that has the key already gets no second one"
    assert [read_json(workspace.plan_file(name)) for name in names] == [first, second, first]
    workspace.plan_file(names[0]).write_text("{")
    workspace.keep_plan(first, "my plan")
    assert read_json(workspace.plan_file(names[0])) == first, "a damaged one is written again"


def test_a_plan_is_found_by_the_name_it_once_had(tmp_path):
    workspace = Workspace(tmp_path)
    new = workspace.keep_plan({"n": 1}, "small")
    assert workspace.find_plan("small") == workspace.find_plan(new) == workspace.plan_file(new)
    write_json(workspace.plan_file("small"), {"n": 2})
    assert workspace.find_plan("small") == workspace.plan_file("small")
    with pytest.raises(InputError, match="The workspace has no plan 'other'."):
        workspace.find_plan("other")


def test_settings_key_depends_on_values_and_not_on_order():
    assert settings_key({"a": 1, "b": [1, 2]}) == settings_key({"b": [1, 2], "a": 1})
    assert settings_key({"a": 1}) != settings_key({"a": 2})
    assert len(settings_key({})) == 16


def test_json_comes_back_and_leaves_nothing_else(tmp_path):
    write_json(tmp_path / "deep" / "x.json", {"χ": [1, 2.5, None]})
    assert read_json(tmp_path / "deep" / "x.json") == {"χ": [1, 2.5, None]}
    assert os.listdir(tmp_path / "deep") == ["x.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"old": 1})
    with pytest.raises(ValueError):
        write_json(path, {"new": float("nan")})
    with pytest.raises(RuntimeError), whole_file(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(path) == {"old": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_a_reader_never_sees_half_a_file_even_when_the_writer_is_killed(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"items": []})
    code = "import sys\nfrom karipap_core.workspace.files import write_json\nn = 0\nwhile True:\n n += 1\n"
    code += " write_json(sys.argv[1], {'items': list(range(20000)), 'n': n})"
    writer = subprocess.Popen([sys.executable, "-c", code, str(path)])
    deadline = time.monotonic() + 20
    while not read_json(path).get("n", 0) > 3 and time.monotonic() < deadline:
        pass
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert read_json(path)["n"] > 3
    assert len(read_json(path)["items"]) == 20000


def test_runs_are_listed_oldest_first_and_damage_is_passed_over(tmp_path):
    workspace = Workspace(tmp_path)
    first = workspace.new_run(LEAST | {"kept": 0.9})
    time.sleep(0.01)
    second = workspace.new_run(LEAST | {"kept": 0.7})
    for name, text in (("broken", "{"), ("other", json.dumps({"format": "something else"}))):
        (workspace.runs_dir / name).mkdir()
        (workspace.runs_dir / name / "run.json").write_text(text)
    runs = workspace.runs
    assert [run["kept"] for run in runs] == [0.9, 0.7]
    assert [run["path"] for run in runs] == [str(first), str(second)]
    assert runs[0]["environment"]["versions"]["torch"]
    assert runs[0]["id"] == first.parent.name


def test_ids_are_names_and_do_not_repeat():
    ids = {new_id() for _ in range(200)}
    assert len(ids) == 200
    assert Workspace("/w").plan_file(ids.pop()).parent == Workspace("/w").plans


@pytest.fixture
def model(tmp_path):
    write_json(tmp_path / "model" / "config.json", {"model_type": "llama"})
    return Model(tmp_path / "model")


def test_what_ships_with_a_model_is_taken_over_once_and_only_for_that_model(tmp_path, model):
    workspace = Workspace(tmp_path / "workspace")
    workspace.adopt(model)
    write_json(model.home / "karipap" / "measured.json", {"identity": model.identity})
    write_json(model.home / "karipap" / "calibration" / "loss-k.json", {"from": "the model"})
    other = replace(model, identity="1" * 16)
    assert shipped(other) is None and shipped(model) == model.home / "karipap"
    workspace.adopt(other)  # the same tensors with another config or tokenizer
    assert not (workspace.root / "models").exists()
    workspace.adopt(model)
    file = workspace.calibration_file(KEY, "loss-k")
    assert read_json(file) == {"from": "the model"}
    write_json(file, {"from": "measured here"})
    workspace.adopt(model)
    assert read_json(file) == {"from": "measured here"}


@pytest.mark.parametrize("changed_since", [False, True])
def test_an_earlier_workspace_is_the_models_unless_its_settings_changed_since(tmp_path, model, changed_since):
    """Before 0.3 the folder's name was the fingerprint alone."""
    workspace = Workspace(tmp_path / "workspace")
    earlier = workspace.root / "models" / KEY[:32] / "calibration" / "loss-k.json"
    write_json(earlier, {"from": "an earlier version"})
    (config,) = model.settings_files
    written = earlier.stat().st_mtime + (60 if changed_since else -60)
    os.utime(config, (written, written))
    workspace.adopt(model)
    assert workspace.calibration_file(KEY, "loss-k").is_file() != changed_since
    assert earlier.is_file() == changed_since


def test_a_runs_model_field_names_its_key(tmp_path):
    workspace = Workspace(tmp_path)
    old, new = {"fingerprint": "ab" * 32}, {"fingerprint": "ab" * 32, "identity": "1" * 16}
    assert workspace.key_of(new) == OTHER and workspace.key_of(old) is None
    workspace.model_dir(KEY).mkdir(parents=True)
    assert workspace.key_of(old) == KEY, "there is but one model of these tensors"
    workspace.model_dir(OTHER).mkdir(parents=True)
    assert workspace.key_of(old) is None, "there are two"
    assert workspace.key_of({"fingerprint": "../" * 20, "identity": "1" * 16}) is None and workspace.key_of({}) is None
    for wrong in (None, 5, ["x"], {"a": 1}):
        assert workspace.key_of({"fingerprint": wrong, "identity": wrong}) is None
