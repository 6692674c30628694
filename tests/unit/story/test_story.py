"""The story as functions that return values."""

import json
from pathlib import Path

import pytest

import karipap_core as kp
from karipap_core.cli.frame import main
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.values import ROWS_SHOWN, html_table

TEXT = kp.Text("a text", ("One came in and said that two were here. " * 40,))


@pytest.fixture(scope="module")
def model(made) -> Path:
    return made("llama")


@pytest.fixture(scope="module")
def plan(model):
    return kp.make_plan(model, kp.Budget(kept=0.8), rule="uniform", metric="weight")


@pytest.fixture(scope="module")
def compressed(model, plan, tmp_path_factory):
    return kp.compress(model, plan, tmp_path_factory.mktemp("made") / "compressed")


@pytest.mark.parametrize("form", ["checkpoint", "path", "words", "study"])
def test_a_model_may_be_given_in_every_form(form, model):
    given = {
        "checkpoint": kp.open_checkpoint(model),
        "path": model,
        "words": str(model),
        "study": kp.Study(model),
    }[form]
    profile = kp.profile(given, metrics=("weight",))
    assert isinstance(profile, kp.Profile) and profile.fingerprint == kp.open_checkpoint(model).fingerprint
    plan = kp.make_plan(given, 0.8, rule="uniform", metric="weight")
    assert plan.kept == pytest.approx(0.8, abs=0.03) and plan.kept <= 0.8


def test_a_study_has_its_own_text(model):
    with pytest.raises(kp.InputError, match="its own text"):
        kp.profile(kp.Study(model), TEXT)


def test_a_plan_counts_what_it_keeps(model, plan):
    ledger = plan.ledger(kp.open_checkpoint(model))
    assert plan.kept == plan.predicted["kept"] == ledger.kept < 0.8
    by_hand = kp.Plan(plan.model, "weight", plan.weights)
    assert by_hand.kept == pytest.approx(ledger.kept, rel=1e-12)


def test_a_model_a_study_and_a_plan_show_themselves(model, plan):
    checkpoint = kp.open_checkpoint(model)
    assert repr(checkpoint).startswith(f"<Checkpoint {model.name}, causal llama: {checkpoint.parameters:,} parameters")
    assert repr(kp.Study(model, TEXT)) == f"<Study of {model.name}, calibrated on a text>"
    assert f"rule uniform, metric weight: {plan.kept:.1%} of the parameters kept (counted)" in repr(plan)
    assert "measured on calibration text" in repr(plan)
    assert plan._repr_html_().count("<tr>") == 1 + min(ROWS_SHOWN, len(plan.weights))


def test_compress_returns_a_value(model, plan, compressed, tmp_path):
    assert compressed.folder.is_dir() and compressed.kept == plan.kept
    assert compressed.parameters == pytest.approx(compressed.kept * kp.open_checkpoint(model).parameters)
    assert 0 < compressed.bytes_kept < 1 and compressed.verified
    assert compressed.errors.keys() == {name for name in plan.weights if plan.spec(name) is not None}
    assert all(0 < error < 1 for error in compressed.errors.values())
    assert set(compressed.functional_errors.values()) == {None}  # the metric looked at no text
    assert "counted" in repr(compressed) and "measured" in repr(compressed) and "NOT" not in repr(compressed)
    assert compressed._repr_html_().count("<tr>") == 1 + min(ROWS_SHOWN, len(compressed.errors))
    json.dumps(compressed.to_json(), allow_nan=False)
    file = tmp_path / "plan.json"
    plan.save(file)
    assert kp.compress(model, file, compressed.folder).to_json() | {"seconds": 0} == compressed.to_json() | {
        "seconds": 0
    }


def test_evaluate_and_the_command_say_the_same(model, compressed, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text(TEXT.documents[0])
    found = kp.evaluate(compressed, text=file, max_tokens=200, window=32, device="cpu")
    assert found.perplexity > 1 and found.dense_perplexity > 1 and found.tokens <= 200
    assert found.rise == found.loss - found.to_json()["dense"]["loss"]
    assert found.kl > 0 and 0 <= found.top1_agreement <= 1 and found.relative_error is None
    low, high = found.interval or (found.rise, found.rise)
    assert low <= found.rise <= high
    assert "measured" in repr(found) and "perplexity" in found._repr_html_()
    assert (compressed.folder / "evaluation.json").is_file()
    argv = ["evaluate", str(compressed.folder), "--text", str(file), "--max-tokens", "200", "--window", "32", "--json"]
    assert main([*argv, "--device", "cpu", "--progress", "off"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {key: said[key] for key in ("loss", "rise", "kl")} == {
        key: found.to_json()[key] for key in ("loss", "rise", "kl")
    }
    assert said.keys() == found.to_json().keys()


def test_a_dense_model_is_compared_with_nothing(model):
    found = kp.evaluate(kp.open_checkpoint(model), text=TEXT, max_tokens=100, window=32, device="cpu")
    assert found.perplexity > 1 and found.rise is None and found.dense_perplexity is None and found.interval is None
    assert "Nothing is compared" in found.notes[0] and "Nothing is compared" in found._repr_html_()


def test_verify_is_a_condition(compressed, tmp_path):
    verdict = kp.verify(compressed)
    assert verdict and verdict.ok and all(check.ok for check in verdict.checks)
    assert "all 7 checks passed" in repr(verdict) and "from_pretrained" in verdict.loader
    assert verdict._repr_html_().count("<td>yes</td>") == 7
    with pytest.raises(kp.InputError):
        kp.verify(tmp_path)


def test_a_verdict_that_is_not_ok(compressed, tmp_path):
    import shutil

    folder = shutil.copytree(compressed.folder, tmp_path / "copy")
    (folder / "pickled.bin").write_bytes(b"x")
    verdict = kp.verify(folder)
    assert not verdict and "NOT ok: safetensors only" in repr(verdict) and "NO" in verdict._repr_html_()


def test_densify(model, compressed, tmp_path):
    dense = kp.densify(compressed, tmp_path / "dense")
    assert dense.folder == tmp_path / "dense" and dense.parameters == kp.open_checkpoint(model).parameters
    assert "not its memory" in repr(dense)
    assert kp.open_checkpoint(dense.folder).parameters == dense.parameters


def test_heal(compressed, tmp_path):
    text = kp.Text("to learn", tuple(f"the square of {n} is {n * n}\n" for n in range(200)))
    healed = kp.heal(compressed, tmp_path / "healed", 2, text, device="cpu", rate=1e-4, tokens=64, window=32)
    assert healed.folder == tmp_path / "healed" and healed.loss_after <= healed.loss_before
    assert healed.dense_loss is not None and len(healed.curve) >= 1 and isinstance(healed.improved, bool)
    assert "measured" in repr(healed) and "<table>" in healed._repr_html_()


def test_tradeoff(model, tmp_path):
    held_out = kp.Text("squares", tuple(f"the square of {n} is {n * n}\n" for n in range(100)))
    found = kp.tradeoff(
        model,
        budgets=[0.8],
        rules=["uniform"],
        metric="weight",
        text=held_out,
        calibration=TEXT,
        out=tmp_path,
        scope="blocks",
        baselines=False,
        max_tokens=100,
        window=32,
        device="cpu",
    )
    assert found.quality == "loss" and len(found.points) == 1
    assert [point["id"] for point in found.pareto] == found.to_json()["pareto"]
    assert "1 plans and 0 baselines measured on squares" in repr(found) and "<td>*</td>" in found._repr_html_()


def test_autopilot(model, tmp_path):
    settings = CalibrationSettings(tokens=512, window=32, probe_windows=2, check_windows=2)
    study = kp.Study(model, TEXT, settings, "cpu")
    held_out = kp.Text("squares", tuple(f"the square of {n} is {n * n}\n" for n in range(100)))
    asked = {"text": held_out, "scope": "blocks", "max_evaluations": 1, "max_tokens": 100, "window": 32}
    found = kp.autopilot(study, bytes_kept=0.8, out=tmp_path, device="cpu", **asked)
    assert isinstance(found.plan, kp.Plan) and found.plan.kept < 1 and found.bytes_kept < 1
    assert found.rise == found.to_json()["rise"] and len(found.rows()) >= 1
    assert found.interval is None or found.interval[0] <= found.rise <= found.interval[1]
    assert found.verdict and found.verdict[0] in repr(found) and "rise, predicted" in found._repr_html_()
    with pytest.raises(kp.InputError, match="one aim"):
        kp.autopilot(study, text=held_out)


def test_a_table_for_a_notebook_escapes_and_says_what_it_leaves_out():
    shown = html_table("a < b", ("<i>",), [["<script>"]] * (ROWS_SHOWN + 1))
    assert "<script>" not in shown and "&lt;script&gt;" in shown and "a &lt; b" in shown and "<i>" not in shown
    assert f"The first {ROWS_SHOWN} of {ROWS_SHOWN + 1} rows." in shown
