"""Every page through Streamlit's AppTest: what it says, what it does to the state, and that nothing breaks."""

import importlib.util
import json
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from karipap_core import jobs
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.document import Entry, Plan, model_entry
from karipap_core.tradeoffs import effort
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key, write_json
from karipap_core.workspace.names import Names
from pages.parts import common, model, profiles, roots
from tests.helpers import app_page, made_up
from tests.helpers.opened import opened, sound, words

# ---- profile ----------------------------------------------------------------------------------------------------


def test_the_profile_opens_on_the_weight_with_most_structure(profiled):
    app = sound(opened())
    best = max(profiled.weights[1:], key=lambda row: row["spectra"]["weight"]["excess"])
    assert best["role"] == "k" and app.session_state.weight == best["name"]
    assert best["name"] in words(app) and f"{best['spectra']['weight']['entropy']:.3f} nats" in words(app)
    assert "natural logarithm" in words(app)
    assert len(app.get("plotly_chart")) == 2
    table = app.dataframe[0].value
    assert list(table["name"]) == [row["name"] for row in profiled.weights]


def test_what_ships_in_a_models_folder_is_shown_at_once(tiny, started):
    checkpoint = open_checkpoint(tiny)
    made_up.profile(2, fingerprint=checkpoint.fingerprint).save(tiny / "karipap" / "profiles" / "shipped")
    (tiny / "karipap" / "measured.json").write_text(json.dumps({"identity": checkpoint.identity}))
    app = sound(opened())
    assert len(app.get("plotly_chart")) == 2 and started == []


def test_a_click_on_the_map_opens_that_weight(profiled):
    app = opened()
    name = "model.layers.1.up_proj"
    app.session_state.weight = name  # what the callback of a click does; the click itself is a browser test
    app.run()
    assert app.selectbox(key="cell").value == name and name in words(app)


def test_the_list_of_weights_does_what_a_click_does(profiled):
    app = opened()
    sound(app.selectbox(key="cell").select("model.layers.1.down_proj").run())
    assert app.session_state.weight == "model.layers.1.down_proj"
    assert app.query_params["weight"] == "model.layers.1.down_proj"


def test_quantity_metric_and_view_are_in_the_url_and_come_back_from_it(profiled):
    app = sound(opened(quantity="kept", metric="loss", view="bonds", error="0.05"))
    assert app.selectbox(key="quantity").value == "kept"
    assert app.session_state.metric == "loss" and app.session_state.error == 0.05
    sound(app.selectbox(key="quantity").select("excess").run())
    assert app.query_params["quantity"] == "excess"


@pytest.mark.parametrize(
    "query", [{"quantity": "<b>"}, {"metric": "x"}, {"weight": "../../etc"}, {"error": "nan"}, {"view": "🙂"}]
)
def test_what_a_url_makes_up_is_dropped(profiled, query):
    app = sound(opened(**query))
    assert app.session_state.weight in {row["name"] for row in profiled.weights}
    assert app.session_state.metric == "weight"


def test_experts_fold_into_a_cell_that_opens(tiny):
    checkpoint = open_checkpoint(tiny)
    experts = made_up.profile(2, experts=4, fingerprint=checkpoint.fingerprint)
    experts.save(Workspace().profile_dir(checkpoint.key, "experts"))
    app = sound(opened(weight="model.layers.1.experts.2.up_proj"))
    assert app.selectbox(key="cell").value == "model.layers.1.experts.0.up_proj"
    assert app.selectbox(key="expert").value == "model.layers.1.experts.2.up_proj"
    sound(app.selectbox(key="expert").select("model.layers.1.experts.3.up_proj").run())
    assert app.session_state.weight == "model.layers.1.experts.3.up_proj"


def test_measured_sensitivities_are_a_quantity_once_they_are_measured(profiled, tiny):
    assert "sensitivity" not in opened().selectbox(key="quantity").options
    names = [row["name"] for row in profiled.weights if row["compressible"]]
    levels = {name: [[3, 0.1, 0.02], [6, 0.05, 0.01]] for name in names}
    known = Calibration("loss", "kl", {"text": "a text"}, 2.0, levels, tokens=123)
    write_json(Workspace().calibration_file(open_checkpoint(tiny).key, "loss-x"), known.to_json())
    app = sound(opened(quantity="sensitivity", level="0.2"))
    assert app.session_state.quantity == "sensitivity"
    assert "cut to 20% of its break-even χ under the metric loss, on a text, 123 tokens" in words(app)


def test_skipped_tensors_are_listed_with_the_reason(profiled):
    app = opened()
    assert "one-dimensional" in set(app.dataframe[1].value["why"])


def test_a_model_without_a_profile_is_profiled_at_once_and_only_once(tiny, started):
    app = sound(opened())
    assert started == [["profile", str(tiny), "--metrics", "weight"]]
    assert "Profile tiny" in words(app)
    sound(opened())  # a second browser joins the same job
    assert len(started) == 1


def test_a_profile_that_is_done_between_two_looks_is_shown_and_not_made_again(profiled, tiny, monkeypatch):
    job = jobs.start(
        ["profile", str(tiny), "--metrics", "weight"], "Profile tiny", program=(sys.executable, "-c", "print('{}')")
    )
    while job.status()["state"] in ("queued", "running"):
        pass
    looks = [[]]  # the first look came before its end
    real = profiles.folders
    monkeypatch.setattr(profiles, "folders", lambda view: looks.pop() if looks else real(view))
    app = sound(opened())
    assert not looks and len(app.get("plotly_chart")) == 2 and jobs.list_jobs() == [job]


def test_a_failed_profile_is_told_in_a_sentence_and_not_tried_again_unasked(tiny, monkeypatch):
    fails = (sys.executable, "-c", "import sys; print('error: the file is damaged.', file=sys.stderr); sys.exit(2)")
    job = jobs.start(["profile", str(tiny), "--metrics", "weight"], "Profile tiny", program=fails)
    while job.status()["state"] in ("queued", "running"):
        pass
    app = opened()
    assert not app.exception
    assert [error.value for error in app.error] == ["the file is damaged."]
    assert len(jobs.list_jobs()) == 1


def test_a_damaged_profile_is_passed_over(profiled, started):
    for file in Workspace().root.rglob("profile.json"):
        file.write_text("{")
    app = opened()
    assert not app.exception and len(started) == 1


def test_the_first_paint_needs_no_torch(profiled, tmp_path):
    code = (
        "import sys; from streamlit.testing.v1 import AppTest; "
        f"app = AppTest.from_file({app_page.APP!r}, default_timeout=30); "
        "app.query_params['model'] = 'tiny'; app.run(); "
        "print(len(app.get('plotly_chart')), 'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(app_page.APP).parent)
    assert done.stdout.split() == ["2", "False", "False"], done.stderr[-2000:]


# ---- choosing a model -------------------------------------------------------------------------------------------


def test_compressed_folders_and_pickles_are_no_models(tiny):
    compressed = tiny.parent / "compressed"
    compressed.mkdir()
    (compressed / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    (compressed / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "karipap"}}))
    (tiny.parent / "pickled").mkdir()
    (tiny.parent / "pickled" / "pytorch_model.bin").write_bytes(b"x")
    model.found.clear()
    aliases = model.found((str(tiny.parent),)).models
    assert "tiny" in aliases and not {"compressed", "pickled"} & set(aliases)


def test_two_folders_of_one_name_get_two_aliases(tiny, tmp_path):
    twin = tmp_path / "models" / "deeper" / "tiny"
    twin.mkdir(parents=True)
    for file in tiny.iterdir():
        (twin / file.name).write_bytes(file.read_bytes())
    model.found.clear()
    aliases = model.found((str(tmp_path / "models"),)).models
    assert {Path(folder).parent.name for alias, folder in aliases.items() if alias.startswith("tiny")} == {
        "models",
        "deeper",
    }


@pytest.mark.parametrize("path", ["/etc/passwd", "../..", "\\\\host\\share", "//host/share", "a\0b", "models/../.."])
def test_paths_outside_the_roots_are_refused_with_the_same_words(tiny, path, monkeypatch):
    monkeypatch.chdir(tiny.parent)
    with pytest.raises(InputError, match="not inside"):
        roots.confine(path, [tiny.parent])


def test_a_link_out_of_the_roots_is_refused(tiny, tmp_path):
    (tmp_path / "secret").mkdir()
    (tiny.parent / "way-out").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="not inside"):
        roots.confine(str(tiny.parent / "way-out"), [tiny.parent])
    assert roots.confine(str(tiny), [tiny.parent]) == tiny


# ---- what pages share -------------------------------------------------------------------------------------------


def test_a_server_that_strangers_can_reach_is_refused(profiled, monkeypatch):
    from streamlit import config

    monkeypatch.setattr(
        "streamlit.get_option", lambda name: "0.0.0.0" if name == "server.address" else config.get_option(name)
    )
    app = opened()
    assert "no authentication" in app.error[0].value and not app.get("plotly_chart")
    monkeypatch.setenv("KARIPAP_ALLOW_REMOTE", "1")
    sound(opened())


def test_cells_that_a_spreadsheet_would_run_are_disarmed():
    table = pd.DataFrame({"name": ["=1+1", "@x", "plain"], "value": [-1.5, 2, 3]})
    assert common.csv(table).decode().splitlines() == ["name,value", "'=1+1,-1.5", "'@x,2.0", "plain,3.0"]


def test_numbers_as_words():
    assert (common.count(260032), common.count(5_312_000), common.count(12)) == ("260 k", "5.31 M", "12")
    assert (common.size(1044992), common.size(512)) == ("1.04 MB", "512 B")
    assert (common.seconds(75), common.seconds(3.2), common.seconds(None)) == ("1 min 15 s", "3 s", "unknown")
    assert common.plain("*a*_[b](c)") == r"\*a\*\_\[b\]\(c\)"


# ---- run --------------------------------------------------------------------------------------------------------


@pytest.fixture
def plan(tiny, profiled) -> Plan:
    """A plan for `tiny` in the workspace, as `halved`."""
    checkpoint = open_checkpoint(tiny)
    entry = {"network": "lowrank", "out": [24], "in": [24], "chi": [4], "quantize": None}
    weights = {weight.name: {"network": "dense"} for weight in checkpoint.weights if weight.compressible}
    weights["model.layers.0.q_proj"] = entry
    plan = Plan(model_entry(checkpoint), "loss", weights, rule="calibrated", predicted={"kept": 0.9, "rise": 0.01})
    plan.save(Workspace().plan_file("halved"))
    return plan


def keep_run(plan: Plan, name: str, kind="network", rise=0.02, bytes_kept=0.9, folder="/x/model", tokens=1000, **more):
    """A run.json in the workspace, as `run` and `sweep` write it."""
    sizes = dict.fromkeys(("kept", "bytes_kept", "kept_blocks", "bytes_kept_blocks"), bytes_kept)
    figures = {"loss": 2 + rise, "rise": rise, "rise_error": 0.001, "perplexity": 8.0, "bits_per_byte": 1.3, "kl": rise}
    run = {
        "format": "karipap-run",
        "version": 1,
        "id": name,
        "created": 1e9,
        "kind": kind,
        "label": f"run {name}",
        "method": "lowrank" if kind == "network" else "gptq",
        "settings": {"rule": plan.rule},
        "model": plan.model,
        "plan": plan.to_json() if kind == "network" else None,
        "predicted": plan.predicted if kind == "network" else None,
        "tokens": tokens,
        "window": 64,
        "stride": 32,
        "text": {"name": "a text", "sha256": "ab"},
        "top1_agreement": 0.9,
        "dense": {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.2},
        "weights": [{"name": "model.layers.0.q_proj", "functional_error": 0.01, "weight_error": 0.1}],
        "folder": folder,
        "notes": [],
        **sizes,
        **figures,
    }
    write_json(Workspace().runs_dir / name / "run.json", run | more)
    return run


def test_run_without_a_plan_points_to_the_board(profiled):
    app = sound(opened(page="run"))
    assert "No plan for this model yet" in words(app)


def test_the_button_runs_the_very_command_and_the_job_is_in_the_url(plan, tiny, started):
    app = sound(opened(page="run"))
    assert "predicted rise 0.010" in app.selectbox(key="plan").options[0]
    sound(app.button(key="start").click().run())
    name = f"halved-{settings_key(plan.to_json())}"
    file = str(Workspace().plan_file(name))
    assert started == [["run", str(tiny), "--plan", file, "--max-tokens", "16384", "--name", "tiny-0.9-lowrank"]]
    job_id = app.query_params["job"]
    assert app.button(key="start").disabled and "tiny-0.9-lowrank on tiny" in words(app)
    again = sound(opened(page="run", job=job_id))  # a reload, or another browser
    assert "tiny-0.9-lowrank on tiny" in words(again)

    def stopping() -> bool:
        return jobs.get(job_id).status()["cancelling"] or jobs.get(job_id).status()["state"] == "cancelled"

    sound(again.button(key="job_cancel").click().run())  # another session's: it is asked first
    assert "Started by another session. Cancel it all the same?" in words(again) and not stopping()
    sound(again.button(key="job_cancel_not").click().run())
    assert "Started by another session" not in words(again) and not stopping()
    sound(again.button(key="job_cancel").click().run())
    sound(again.button(key="job_cancel_sure").click().run())
    assert stopping()


def test_who_started_a_job_cancels_it_at_once_and_its_document_does_not_tell_who(plan):
    app = sound(opened(page="run"))
    sound(app.button(key="start").click().run())
    job = jobs.get(app.query_params["job"])
    name = app.session_state.session_name
    assert len(name) >= 32 and all(name not in file.read_text() for file in job.folder.rglob("*") if file.is_file())
    other = sound(opened(page="run", job=job.id))
    sound(other.button(key="job_cancel").click().run())
    assert other.session_state.session_name != name and not job.status()["cancelling"]
    sound(app.button(key="job_cancel").click().run())
    assert job.status()["cancelling"] or job.status()["state"] == "cancelled"


def test_perplexity_as_papers_give_it_is_asked_for_and_shown(plan, tiny, started):
    entry = {
        "perplexity": 8.25,
        "word_perplexity": 900.0,
        "bits_per_byte": 1.5,
        "rise": 0.02,
        "rise_low": 0.01,
        "rise_high": 0.03,
        "dense": {"perplexity": 8.1},
        "windows": 166,
        "window": 2048,
        "stride": 2048,
        "over": "windows",
        "tokens": 339_802,
        "text_tokens": 341_469,
        "text_bytes": 1_284_000,
        "notes": [],
        "text": {"name": "wiki.test.raw", "sha256": "c0ffee" * 10},
    }
    rolling = {"missing": "lm-eval is not installed."}
    keep_run(plan, "one", conventions={"non-overlapping": entry, "rolling": rolling})
    app = sound(opened(page="run", run="one"))
    table = next(each.value for each in app.dataframe if "convention" in each.value)
    assert table["difference"].tolist() == ["+2.02 % (+1.01 to +3.05 %)"] and table["dense"].tolist() == [8.1]
    said = words(app)
    assert "166 windows of 2,048 tokens; 339,802 of 341,469 tokens scored" in said
    assert "rolling: lm-eval is not installed." in said
    sound(app.checkbox(key="papers").check().run())
    sound(app.button(key="start").click().run())
    assert "--conventions" in started[0]


@pytest.mark.parametrize("job_id", ["x", "../../etc", "20260101-000000-abcdef", "<b>"])
def test_a_job_that_a_url_makes_up_is_dropped(plan, job_id):
    app = sound(opened(page="run", job=job_id))
    assert "job" not in app.query_params


def test_a_finished_run_shows_prediction_beside_measurement(plan):
    keep_run(plan, "one", rise=0.012)
    keep_run(plan, "two", rise=0.3)
    app = sound(opened(page="run", run="one"))
    said = words(app)
    assert (
        "run one" in said
        and "+0.0120" in said
        and "± 0.001 nats a token" in said
        and "predicted: 0.0100" in said
        and "dense 7.400" in said
    )
    assert len(app.get("plotly_chart")) == 2
    assert list(app.dataframe[0].value["label"]) == ["run two", "run one"]


def test_an_imported_plan_is_checked(plan, tiny):
    app = opened(page="run")
    document = plan.to_json()
    document["weights"]["model.layers.0.q_proj"]["chi"] = [9999]
    app.file_uploader(key="plan_file").upload("bad.json", json.dumps(document).encode(), "application/json").run()
    assert not app.exception and r"model.layers.0.q\_proj" in app.error[0].value


def test_an_imported_plan_is_kept_under_a_name_that_is_no_path(plan):
    app = opened(page="run")
    good = ("../good plan.json", json.dumps(plan.to_json()).encode(), "application/json")
    sound(app.file_uploader(key="plan_file").upload(*good).run())
    assert Workspace().find_plan("good-plan").stem == f"good-plan-{settings_key(plan.to_json())}"


def test_an_imported_plan_takes_the_place_of_no_other_and_a_queued_run_keeps_its_own(plan, started):
    """Two plans of one file name; the run of the first was started before the second came."""
    app = opened(page="run")
    for chi in (4, 2):
        document = plan.to_json()
        document["weights"]["model.layers.0.q_proj"] = document["weights"]["model.layers.0.q_proj"] | {"chi": [chi]}
        sound(app.file_uploader(key="plan_file").upload("plan.json", json.dumps(document).encode(), "text/json").run())
        if chi == 4:
            sound(app.button(key="start").click().run())
    file = started[0][started[0].index("--plan") + 1]
    assert Plan.load(file).weights["model.layers.0.q_proj"]["chi"] == [4]
    assert Plan.load(Workspace().plan_file(app.session_state.plan)).weights["model.layers.0.q_proj"]["chi"] == [2]


def test_a_link_by_the_name_that_a_plan_once_had_still_opens_it(plan):
    entry = plan.weights["model.layers.0.q_proj"]
    plan.weights["model.layers.0.q_proj"] = Entry.of(entry | {"chi": [2]})
    name = Workspace().keep_plan(plan.to_json(), "linked")
    assert sound(opened(page="run", plan="linked")).selectbox(key="plan").value == name
    assert sound(opened(page="run", plan="halved")).selectbox(key="plan").value == "halved"


def test_a_plan_for_another_model_waits_for_a_tick_that_says_why(plan, tiny, started):
    document = plan.to_json()
    document["model"] = dict(document["model"], name="other *model*", fingerprint="f" * 64)
    app = opened(page="run")
    app.file_uploader(key="plan_file").upload("other.json", json.dumps(document).encode(), "application/json").run()
    said = app.warning[0].value
    assert r"made for other \*model\*, another checkpoint than tiny" in said and "--force" not in said
    assert len(app.selectbox(key="plan").options) == 1
    sound(app.checkbox(key="force").check().run())
    assert len(app.selectbox(key="plan").options) == 2
    sound(app.button(key="start").click().run())
    used = Plan.load(started[0][started[0].index("--plan") + 1])
    assert used.model == plan.model and used.weights == plan.weights
    assert used.predicted is None and used.rule == "hand", "nobody predicted it for these weights, or chose it for them"
    document["weights"]["model.layers.0.q_proj"] = document["weights"]["model.layers.0.q_proj"] | {"out": [12]}
    app = opened(page="run")
    app.file_uploader(key="plan_file").upload("odd.json", json.dumps(document).encode(), "application/json").run()
    app.checkbox(key="force").check().run()
    assert "multiply to" in app.error[0].value, "a tick does not make it fit"


# ---- names --------------------------------------------------------------------------------------------------------


def test_a_run_has_its_name_everywhere_and_two_of_one_name_stay_apart(plan, tiny):
    keep_run(plan, "run-aaaa11", rise=0.02)
    keep_run(plan, "run-bbbb22", rise=0.3, bytes_kept=0.5)
    app = sound(opened(page="run", run="run-aaaa11"))
    app.text_input(key="run_name_run-aaaa11").set_value(" my run <b>")
    sound(app.button(key="run_rename").click().run())
    document = Workspace().runs_dir / "run-aaaa11" / "run.json"
    assert json.loads(document.read_text())["label"] == "run run-aaaa11", "what was measured stays as it is"
    assert list(app.dataframe[0].value["label"]) == ["run run-bbbb22", "my-run-b"]
    assert "my-run-b" in words(sound(opened(page="tradeoff", point="run-aaaa11")))
    Names().give("run-bbbb22", "my-run-b")
    assert list(app.run().dataframe[0].value["label"]) == ["my-run-b (bbbb22)", "my-run-b (aaaa11)"]
    app.text_input(key="run_name_run-aaaa11").set_value("…")
    app.button(key="run_rename").click().run()
    assert not app.exception and "A name needs a letter" in app.error[0].value.replace("\\", "")


def test_a_plan_is_imported_under_the_name_in_it_else_that_of_its_file(plan):
    app = opened(page="run")
    named = json.dumps(plan.to_json() | {"name": "smollm2-0.7-lowrank"}).encode()
    sound(app.file_uploader(key="plan_file").upload("plan (1).json", named, "application/json").run())
    assert app.selectbox(key="plan").options[0].startswith("smollm2-0.7-lowrank: ")
    app = opened(page="run")
    bare = json.dumps(plan.to_json()).encode()
    sound(app.file_uploader(key="plan_file").upload("come back.plan.json", bare, "application/json").run())
    assert any(each.startswith("come-back: ") for each in app.selectbox(key="plan").options)


def test_a_finished_run_leads_on_by_the_only_primary_button_of_its_kind(plan, tiny, started):
    run = keep_run(plan, "run-one", rise=-0.012, text_warning="The text is wrong for it.")
    started.program = f"print({json.dumps(json.dumps(run))})"
    app = sound(opened(page="run"))
    assert app.button(key="start").proto.type == "primary"
    sound(app.button(key="start").click().run())
    for _ in range(100):
        if jobs.get(app.query_params["job"]).status()["state"] == "done":
            break
        time.sleep(0.1)
    sound(app.run())
    said = words(app)
    assert "90.0% of the bytes are kept; the loss fell by 0.0120 nats a token; predicted: a rise of 0.0100." in said
    assert [warning.value for warning in app.warning][:1] == ["The text is wrong for it."], "beside the figure"
    primary = [button.key for button in app.button if button.proto.type == "primary"]
    assert primary == ["see_result"]
    assert app.session_state.point == "run-one", "the trade-off rings it"


def test_a_point_that_is_asked_for_brings_the_text_that_it_was_measured_on(plan):
    keep_run(plan, "run-a1")
    keep_run(plan, "run-a2")
    keep_run(plan, "run-b", text={"name": "its own samples", "sha256": "cd"})
    app = sound(opened(page="tradeoff", point="run-b"))
    assert "its own samples" in app.selectbox(key="measured").options[1] and app.selectbox(key="measured").value == "2"
    assert not app.warning
    app.selectbox(key="measured").select("1").run()
    assert app.selectbox(key="measured").value == "1", "the reader's choice stays"
    assert "is not on this chart" in app.warning[0].value


@pytest.mark.parametrize("beyond", [True, False])
def test_what_was_beyond_the_checked_has_no_usual_error(plan, beyond):
    keep_run(plan, "run-one", predicted={"rise": 0.5, "error": 0.04, "beyond": beyond})
    said = words(sound(opened(page="run", run="run-one")))
    assert ("usually within ±4%" in said) is not beyond and ("predicted: beyond what was checked" in said) is beyond


def test_a_curve_says_how_many_models_and_how_long(plan):
    keep_run(plan, "net", rise=0.2, bytes_kept=0.5, seconds={"plan": 0, "measure": 60})
    app = sound(opened(page="tradeoff"))
    assert not app.multiselect, "the form comes when it is asked for"
    sound(app.button(key="sweep_form").click().run())
    app.toggle(key="sweep_auto").set_value(False).run()
    sound(app.text_input(key="sweep_budgets").input("0.9").run())
    plans, rivals = effort.models(["lowrank"], 1, 1)
    said = next(each.value for each in app.caption if "At most" in each.value)
    assert f"At most {plans + rivals} models (1 plan, {rivals} rivals): about {plans + rivals} min" in said


# ---- plan ---------------------------------------------------------------------------------------------------------


def test_the_board_opens_on_what_the_profile_knows(profiled):
    app = sound(opened(page="plan"))
    assert "From this χ on the cores have more numbers" in words(app)  # the whole model's figures are the component's


# ---- trade-off --------------------------------------------------------------------------------------------------


def test_an_empty_trade_off_offers_a_sweep(tiny, profiled, started):
    app = sound(opened(page="tradeoff"))
    assert "Nothing has been measured" in words(app)
    sound(app.button(key="sweep_start").click().run())
    root = str(Workspace().root)
    expected = ["sweep", str(tiny), "--networks", "lowrank", "--rules", "calibrated", "--budgets", "auto"]
    assert started == [[*expected, "--scope", "model", "--out", root]]


def test_budgets_that_are_none_are_told(profiled):
    app = opened(page="tradeoff")
    app.toggle(key="sweep_auto").set_value(False).run()
    app.text_input(key="sweep_budgets").input("0.9, 7").run()
    assert "above 0 and at most 1" in app.error[0].value and app.button(key="sweep_start").disabled


def test_points_and_rivals_share_the_chart_and_the_sentence_says_who_wins(plan):
    keep_run(plan, "net", rise=0.2, bytes_kept=0.5)
    keep_run(plan, "int4", kind="baseline", rise=0.01, bytes_kept=0.4)
    keep_run(plan, "elsewhere", tokens=5)  # another measurement: not on this chart
    app = sound(opened(page="tradeoff"))
    assert "a baseline is better at every size" in words(app) and "(run int4: 0.0100; run net: 0.2000)" in words(app)
    assert list(app.dataframe[0].value["label"]) == ["run int4", "run net"]
    assert "1,000 tokens in windows of 64" in words(app)
    sound(app.selectbox(key="measured").select("2").run())
    assert list(app.dataframe[0].value["label"]) == ["run elsewhere"]


def test_published_points_are_a_layer_with_its_sources(plan):
    keep_run(plan, "net", rise=0.2, bytes_kept=0.5)
    assert 'id="published"' not in words(sound(opened(page="tradeoff")))
    assert 'id="published"' in words(sound(opened(page="tradeoff", published="True")))


def test_runs_that_ship_with_a_model_are_on_its_chart(plan, tiny):
    keep_run(plan, "shipped")
    (Workspace().runs_dir / "shipped").rename(tiny / "karipap-run")
    (tiny / "karipap" / "runs").mkdir(parents=True)
    (tiny / "karipap-run").rename(tiny / "karipap" / "runs" / "shipped")
    write_json(tiny / "karipap" / "measured.json", {"identity": open_checkpoint(tiny).identity})
    app = sound(opened(page="tradeoff"))
    assert list(app.dataframe[0].value["label"]) == ["run shipped"]


def test_a_chosen_point_is_in_the_url_and_its_plan_goes_to_the_board(plan):
    keep_run(plan, "net")
    app = sound(opened(page="tradeoff", point="net", y="kl", x="kept"))
    assert "run net" in words(app) and app.session_state.y == "kl"
    app.button(key="to_board").click().run()
    assert Workspace().find_plan("net").is_file()
    sound(opened(page="tradeoff", point="made-up"))


def test_every_network_stands_in_the_same_bytes(plan):
    keep_run(plan, "net", method="tree", settings={}, rise=0.2, bytes_kept_blocks=0.5)
    keep_run(plan, "small", method="tree", settings={}, rise=0.4, bytes_kept_blocks=0.3)
    for bits, size, rise in ((4, 0.32, 0.01), (3, 0.22, 0.09)):
        more = {"method": "gptq", "settings": {"bits": bits}, "rise": rise, "bytes_kept_blocks": size}
        keep_run(plan, f"int{bits}", kind="baseline", **more)
    said = words(sound(opened(page="tradeoff")))
    assert "GPTQ loses least at 30%; at 50% GPTQ, measured no further than 32%" in said
    assert "No tensor network wins where both sides were measured" in said
    assert f"<em><b>{0.01**0.8 * 0.09**0.2:.4f}</b></em>" in said, "between its two points"
    assert "0.2000" in said and "<td>–</td>" in said, "and what was not measured there has none"


def test_a_sweep_of_all_networks_formats_and_tables(tiny, profiled, started):
    app = sound(opened(page="tradeoff"))
    app.multiselect(key="sweep_networks").set_value(["all"])
    app.selectbox(key="sweep_quantize").set_value("int4")
    app.selectbox(key="sweep_embedding").set_value("tt").run()
    sound(app.button(key="sweep_start").click().run())
    (argv,) = started
    assert [argv[argv.index(flag) + 1] for flag in ("--networks", "--quantize", "--embedding")] == ["all", "int4", "tt"]


@pytest.mark.parametrize("limit", [None, 25])
def test_benchmark_tasks_go_with_the_sweep(tiny, profiled, started, monkeypatch, limit):
    """What is chosen under Tasks stands in the job's command line, and the command line takes it."""
    from karipap_core.cli import frame as cli  # noqa: F401  (verbs fills cli.VERBS)

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: name == "lm_eval" or real(name, *more))
    app = sound(opened(page="tradeoff"))
    assert app.multiselect(key="sweep_tasks").value == []
    app.multiselect(key="sweep_tasks").set_value(["python_closing", "no/task"]).run()
    assert "no/task is not the name of a task" in app.error[0].value and app.button(key="sweep_start").disabled
    sound(app.multiselect(key="sweep_tasks").set_value(["python_closing", "hellaswag"]).run())
    if limit:
        app.number_input(key="sweep_limit").set_value(limit).run()
    sound(app.button(key="sweep_start").click().run())
    (argv,) = started
    asked = cli.build_parser().parse_args(argv)
    assert (asked.tasks, asked.limit) == (["python_closing", "hellaswag"], limit)


def test_a_model_without_next_tokens_has_no_benchmark_tasks(tiny, profiled):
    (tiny / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertModel"]}))
    app = opened(page="tradeoff")
    assert app.multiselect(key="sweep_tasks").disabled


def test_no_value_of_an_expression_is_written_on_a_page():
    """Streamlit's magic would write a bare expression of a page, `a() if b else c()` for one, as None."""
    root = Path(app_page.APP).parent
    assert tomllib.loads((root / ".streamlit" / "config.toml").read_text())["runner"]["magicEnabled"] is False
