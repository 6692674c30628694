"""The same tensors under another config.json, tokenizer or generation settings are another model, for every figure."""

import json
import shutil

import pytest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.document import Plan, is_of, measured_model, model_entry
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.text import Text
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.run import run
from karipap_core.workspace import Workspace
from tests.helpers import architectures

TEXT = Text("words", tuple(f"document {i}: " + "a small text of several words. " * 20 for i in range(6)))
SETTINGS = CalibrationSettings(tokens=256, window=32, probe_windows=2, check_windows=2)
SCORING = Scoring(64, max_tokens=256)


@pytest.fixture
def model(tmp_path):
    return architectures.make("llama", tmp_path / "model")


def change(model, **settings) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | settings))


def study_of(model) -> Study:
    return Study(model, TEXT, SETTINGS, "cpu", Workspace())


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("tokenizer_config.json", b"{}"),
        ("special_tokens_map.json", b"{}"),
        ("generation_config.json", b'{"temperature": 0.5}'),
        ("added_tokens.json", b"{}"),
        ("chat_template.jinja", b"{{ messages }}"),
    ],
)
def test_each_file_that_decides_about_outputs_is_part_of_the_identity(model, file, content):
    before = open_checkpoint(model)
    identity, key = before.identity, before.key
    if content is None:
        change(model, rms_norm_eps=0.5)
    else:
        (model / file).write_bytes(content)
    after = open_checkpoint(model)
    assert after.fingerprint == before.fingerprint and after.identity != identity
    assert after.key != key and after.key[:32] == key[:32] == after.fingerprint[:32]


def test_what_is_no_part_of_the_model_changes_nothing(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "elsewhere")
    (copy / "README.md").write_text("A card.")
    assert open_checkpoint(copy).identity == open_checkpoint(model).identity


def test_every_measured_thing_is_measured_anew_under_other_settings(model, tmp_path, monkeypatch, quick_fits):
    """`run` in one workspace before and after a change, and after it in a workspace that knows nothing."""

    def measured(workspace):
        monkeypatch.setenv("KARIPAP_WORKSPACE", str(tmp_path / workspace))
        study = study_of(model)
        moments = study.moments.metric(study.weights[0].name, "functional").C
        plan = Plan.load(tmp_path / "plan.json")
        found = run(model, plan, TEXT, SCORING, device="cpu")
        point = Points(study, TEXT, tmp_path / "points", SCORING).of_plan(plan, "lowrank")
        curve = study.curves("lowrank", "functional")[study.weights[0].name].error
        return {
            "rise": found["rise"],
            "dense": found["dense"]["loss"],
            "point": point.figures["rise"],
            "moments": float(moments.double().trace()),
            "curve": float(curve.sum()),
            "sensitivity": study.calibration("loss").levels,
        }

    study = study_of(model)
    weights = {weight.name: {"network": "dense"} for weight in study.weights}
    for weight in study.weights[:3]:
        n_out, n_in = weight.shape
        weights[weight.name] = {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [4], "quantize": None}
    Plan(model_entry(study.checkpoint), "weight", weights, rule="uniform", budget=0.9).save(tmp_path / "plan.json")
    before = measured("first")
    assert measured("first") == before, "nothing changed, so everything is found again"
    change(model, rms_norm_eps=0.5, rope_parameters={"rope_theta": 30.0, "rope_type": "default"})
    after = measured("first")
    fresh = measured("second")
    for name, figure in fresh.items():
        assert figure != before[name], f"{name} does not depend on the settings: the test is blind"
        assert after[name] == figure or after[name] == pytest.approx(figure, rel=1e-6), name


def test_a_compressed_folder_is_written_anew_under_other_settings(model, tmp_path):
    from karipap_core import story

    study = study_of(model)
    weights = {weight.name: {"network": "dense"} for weight in study.weights}
    plan = Plan(model_entry(study.checkpoint), "weight", weights, rule="uniform")
    story.compress(model, plan, tmp_path / "out", device="cpu")
    change(model, rms_norm_eps=0.5)
    with pytest.raises(InputError, match="holds no model of this plan"):
        story.compress(model, plan, tmp_path / "out", device="cpu")
    verdict = story.verify(tmp_path / "out", model).to_json()
    (check,) = (check for check in verdict["checks"] if check["name"] == "fingerprint")
    assert not check["ok"]
    assert check["detail"] == (f"config.json or the tokenizer of {model} has changed since the folder was made from it")


def test_runs_of_other_settings_are_not_this_models(model):
    checkpoint = open_checkpoint(model)
    entry = measured_model(checkpoint)
    change(model, rms_norm_eps=0.5)
    other = open_checkpoint(model)
    assert is_of(entry, checkpoint) and not is_of(entry, other)
    old = {key: value for key, value in entry.items() if key != "identity"}
    assert is_of(old, checkpoint) and is_of(old, other), "a run of an earlier version names the tensors alone"
    assert not is_of(None, checkpoint) and not is_of({}, checkpoint)


def test_what_ships_with_the_demo_model_is_of_the_demo_model(demo_model):
    from karipap_core.workspace import shipped

    assert shipped(open_checkpoint(demo_model)) == demo_model / "karipap"
