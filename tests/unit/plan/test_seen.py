"""What a text does not reach: image-text models, experts, models that multiply without calling a layer."""

from collections import Counter

import pytest

from karipap_core.checkpoint.roles import towers_of
from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.document import Plan
from karipap_core.plan.planner import Planner
from karipap_core.plan.probe import Probe
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.many_kinds import add_processor, draw, make_kind

SETTINGS = CalibrationSettings(tokens=256, window=32, probe_windows=3, check_windows=3)
TEXT = Text("numbers", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" * 2 for n in range(20)))


def study_of(name: str, folder, text: Text = TEXT) -> Study:
    return Study(make_kind(name, folder / name), text, SETTINGS, "cpu", Workspace(folder / "workspace"))


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl"])
def test_by_text_alone_the_language_is_cut_and_the_vision_stays_dense(family, tmp_path):
    study = study_of(family, tmp_path)
    vision = {weight.name for weight in study.weights if weight.tower in ("vision", "connector")}
    assert vision and study.seen.unseen == vision and not study.seen.uncalled
    for rule in ("calibrated", "loss", "uniform"):  # all under the metric `loss`, which needs activations
        plan = Planner(study, "lowrank", "loss").make(Budget(kept=0.7, scope="blocks"), rule)
        cut = {name for name in plan.weights if plan.spec(name) is not None}
        # The others carry the whole budget.
        assert cut and not cut & vision and 0.65 < plan.predicted["kept_blocks"] <= 0.7
        towers = Counter(study.checkpoint.weight(name).tower for name in vision)
        said = {
            tower: f"{count} weights of {tower} are not reached by the calibration text and stay dense"
            if count > 1
            else f"1 weight of {tower} is not reached by the calibration text and stays dense"
            for tower, count in towers.items()
        }
        assert plan.notes == [
            said[tower] + (": give images with --images." if tower == "vision" else ".") for tower in sorted(towers)
        ]
    plan = Planner(study, "lowrank", "weight").make(Budget(kept=0.7, scope="blocks"), "uniform")
    assert all(plan.spec(name) is not None for name in vision)
    assert "numbers alone" in plan.notes[0]
    levels = study.calibration("loss").levels  # and never has one of them a damage of 0
    assert not vision & levels.keys() and all(row[2] > 0 for rows in levels.values() for row in rows)


@pytest.mark.parametrize("family", ["llava", "gemma3", "qwen3_vl"])
def test_by_images_too_both_towers_are_cut(family, tmp_path):
    folder = make_kind(family, tmp_path / family)
    add_processor(family, folder)
    text = TEXT.with_images(draw(tmp_path / "images"))
    study = Study(folder, text, SETTINGS, "cpu", Workspace(tmp_path / "workspace"))
    # A Llava looks at the last block but one of its vision: the last changes nothing, whatever it sees.
    # Llava's last block, and the pooling of Gemma's vision, whose outputs nothing reads.
    idle = {w.name for w in study.weights if family == "llava" and w.tower == "vision" and w.layer == 1}
    idle |= {w.name for w in study.weights if ".head." in w.name}
    assert study.seen.unseen == idle and not study.seen.uncalled and study.probe.replays
    plan = Planner(study, "lowrank", "loss").make(Budget(kept=0.7, scope="blocks"), "calibrated")
    cut = {study.checkpoint.weight(name).tower for name in plan.weights if plan.spec(name) is not None}
    assert "vision" in cut and plan.predicted["kept_blocks"] <= 0.7
    assert plan.calibration["images"]["count"] == 6 and plan.calibration["images"]["sha256"] == text.images.sha256
    measured = study.calibration("loss").levels
    assert all(max(row[2] for row in rows) > 0 for rows in measured.values())


def test_a_budget_of_one_tower_leaves_the_others_as_they_are(tmp_path):
    study = study_of("llava", tmp_path)
    sizes = {weight.name: weight.parameters for weight in study.weights if weight.tower == "language"}
    for budget in (Budget(kept=0.6, scope="language"), Budget(kept_bytes=0.6, scope="language")):
        plan = Planner(study, "lowrank", "weight").make(budget, "uniform")
        cut = {name: plan.spec(name).parameters for name in plan.weights if plan.spec(name) is not None}
        assert cut.keys() <= sizes.keys() and plan.scope == "language"
        kept = sum(cut.get(name, size) for name, size in sizes.items()) / sum(sizes.values())
        assert 0.57 < kept <= 0.6
    assert Plan.from_json(plan.to_json()).scope == "language"
    with pytest.raises(InputError, match="model, blocks, vision, .*language"):
        Planner(study, "lowrank", "weight").make(Budget(kept=0.6, scope="languages"), "uniform")


def test_a_prediction_for_what_the_text_does_not_reach_is_none(tmp_path):
    study = study_of("llava", tmp_path)
    planner = Planner(study, "lowrank", "loss")
    plan = planner.make(Budget(kept=0.7, scope="blocks"), "calibrated")
    assert plan.predicted["rise"] > 0
    name = next(iter(study.seen.unseen))
    weight = study.checkpoint.weight(name)
    plan.weights[name] = {"network": "lowrank", "out": [weight.shape[0]], "in": [weight.shape[1]], "chi": [3]}
    found = planner.predict(plan)
    assert "rise" not in found and "does not reach 1 of the weights" in found["not_predicted"]


def test_a_budget_that_the_reached_weights_cannot_meet_says_why(tmp_path):
    study = study_of("llava", tmp_path)
    with pytest.raises(InputError, match="stay dense, since the calibration text does not reach them"):
        Planner(study, "lowrank", "loss").make(Budget(kept=0.25, scope="blocks"), "calibrated")


def test_a_weight_that_is_multiplied_without_its_layer_is_told_from_one_that_is_not_used(tmp_path):
    study = study_of("mamba", tmp_path)
    direct = {weight.name for weight in study.weights if weight.name.endswith("dt_proj")}
    assert direct and study.seen.uncalled == direct and not study.seen.unseen
    planner = Planner(study, "lowrank", "loss")
    by_loss = planner.make(Budget(kept=0.7, scope="blocks"), "loss")
    assert not any(by_loss.spec(name) for name in direct) and "without their layer being called" in by_loss.notes[0]
    # Their damage can be measured, so the calibrated rule may cut them.
    assert direct <= study.calibration("loss").levels.keys() and not planner.held("calibrated")


def test_an_encoder_that_is_given_silence_sees_nothing(tmp_path):
    study = study_of("whisper", tmp_path)
    unseen = {weight.name for weight in study.weights if weight.tower == "encoder"}
    unseen |= {w.name for w in study.weights if w.name.endswith(("encoder_attn.k_proj", "encoder_attn.v_proj"))}
    assert study.seen.unseen == unseen


def test_experts_that_saw_few_tokens_are_said(tmp_path):
    folder = make("mixtral", tmp_path / "model", num_local_experts=6)
    study = Study(folder, Text("one word", ("a a a a a a a a " * 200,)), SETTINGS, "cpu", Workspace(tmp_path / "w"))
    experts = {weight.name for weight in study.weights if weight.expert is not None}
    assert study.seen.unseen and study.seen.unseen < experts  # one word goes to few experts
    assert study.seen.few and all(tokens < 64 for tokens in study.seen.few.values())
    plan = Planner(study, "lowrank", "loss").make(Budget(kept=0.8, scope="blocks"), "loss")
    assert not any(plan.spec(name) for name in study.seen.unseen)
    assert any("not reached" in note for note in plan.notes) and any("fewer than 64" in note for note in plan.notes)
    notes = {row["name"]: " ".join(row["notes"]) for row in study.profile().weights}
    borrowing = {name for name in experts if "blended with those of the layer's other experts" in notes[name]}
    assert study.seen.unseen <= borrowing and not any("blended" in notes[name] for name in notes.keys() - experts)


def test_towers():
    names = {
        "model.vision_tower.vision_model.encoder.layers.0.mlp.fc1": "vision",
        "model.language_model.layers.0.mlp.up_proj": "language",
        "model.audio_tower.layers.3.fc1": "audio",
    }
    assert towers_of(names) == names
    two = {"model.encoder.layers.0.fc1": "encoder", "model.decoder.layers.0.fc1": "decoder"}
    assert towers_of(two) == two
    speech = {"encoder.layers.0.fc1": "encoder", "language_model.model.layers.0.mlp.up_proj": "language"}
    assert towers_of(speech) == speech
    assert towers_of(["text_model.encoder.layers.0.fc1", "vision_model.encoder.layers.0.fc1"]) == {
        "text_model.encoder.layers.0.fc1": "language",
        "vision_model.encoder.layers.0.fc1": "vision",
    }
    assert set(towers_of(["model.decoder.layers.0.fc1", "model.decoder.layers.1.fc1"]).values()) == {""}
    assert set(towers_of(["bert.encoder.layer.0.output.dense"]).values()) == {""}


def test_blocks_that_hand_on_more_than_they_return_are_run_again(tmp_path):
    plain = study_of("llava", tmp_path)
    assert plain.probe.replays
    live = plain.probe.model
    first, second = live.model.language_model.layers[:2]
    kept: dict = {}

    def leave(module, inputs, output):
        kept["seen"] = inputs[0]

    def read(module, inputs, output):
        return output + kept.pop("seen")  # KeyError where the first block did not run

    first.mlp.gate_proj.register_forward_hook(leave)
    second.mlp.register_forward_hook(read)
    probe = Probe(live, plain.checkpoint, plain.windows.probe)
    assert not probe.replays
    name = next(w.name for w in plain.weights if w.tower == "language" and w.layer == 1)
    probe.replace(name, 0.5 * probe.sites[name].get())
    assert probe.measure([name]).divergence == probe.measure().divergence > 0


def test_gemma_3n_shares_keys_and_is_measured(tmp_path):
    study = study_of("gemma3n", tmp_path)
    assert study.why_not_run is None and not study.probe.replays
    weight = next(weight for weight in study.measurable if weight.layer == 3 and weight.role == "gate")
    study.probe.replace(weight.name, 0.5 * study.checkpoint.read(weight.name))
    assert study.probe.measure([weight.name]).divergence == study.probe.measure().divergence > 0
