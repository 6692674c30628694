"""The Plan page through AppTest: widgets write into the draft, files come and go, jobs start (the board: browser)."""

import json
import sys
from types import SimpleNamespace

import pytest

from karipap_core import jobs
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from pages.parts import chi_board, draft, tables
from tests.helpers.made_up_study import Study
from tests.helpers.opened import opened, sound, words


@pytest.fixture
def measured(tiny):
    """`tiny` with spectra, curves and a calibration in the workspace."""
    study = Study(open_checkpoint(tiny))
    study.save()
    return study


def history(app) -> draft.History:
    return app.session_state["plan_board"]["history"]


def now(app) -> draft.Draft:
    return history(app).now


def exported(app, tiny) -> Plan:  # noqa: F811
    view = SimpleNamespace(checkpoint=open_checkpoint(tiny), only=None)
    found = tables.of(view, now(app))
    return draft.to_plan(now(app), view.checkpoint, found, chi_board.totals(found.rows, found.model, now(app).chi))


def plan_page(**query):
    return sound(opened(page="plan", **query))


def test_a_plan_is_fitted_behind_what_is_cut_before_and_nothing_else_of_it_changes(measured, tiny):
    app = plan_page()
    before = now(app)
    assert exported(app, tiny).prefix is None
    app.segmented_control(key="board_prefix").set_value("aligned").run()
    after = now(sound(app))
    assert (after.prefix, after.chi, after.budget) == ("aligned", before.chi, before.budget)
    assert app.query_params["prefix"] == "aligned" and exported(app, tiny).prefix == "aligned"
    assert draft.from_plan(exported(app, tiny), open_checkpoint(tiny), "it").prefix == "aligned"
    (line,) = [each.label for each in app.expander if "budget counts" in each.label]
    assert "fitted behind what is cut before it" in line
    again = plan_page(prefix="aligned")
    assert now(again).prefix == "aligned"
    assert now(plan_page(prefix="made-up")).prefix == "auto"


def test_it_opens_on_a_calibrated_plan_and_says_what_is_predicted(measured):
    app = plan_page()
    assert (now(app).network, now(app).metric, now(app).rule) == ("lowrank", "loss", "calibrated")
    said = words(app)
    assert "It is a prediction until the plan is run" in said and "calibration v" in said
    (line,) = [each.label for each in app.expander if "budget counts" in each.label]
    assert line == (
        "error of loss · cores as stored · embedding dense · rule calibrated · "
        "budget counts parameters of the whole model"
    )
    primary = [button.label for button in app.button if button.proto.type == "primary" and button.key != "search_start"]
    assert primary == ["Compress & evaluate"]
    assert list(app.get("data_editor")) or app.get("arrow_data_frame")


def test_without_a_calibration_nothing_is_predicted_and_the_measurement_is_offered(profiled, started, tiny):  # noqa: F811
    app = plan_page()
    assert now(app).rule == "loss" and "no loss is predicted" in words(app)
    sound(app.button(key="search_start").click().run())
    out = started[0][started[0].index("--out") + 1]
    assert app.session_state["plan_board"]["searches"] == 1, "the box of before is gone, with its Start"
    assert started[0][:2] == ["plan", str(tiny)] and started[0][started[0].index("--rule") + 1] == "calibrated"
    assert out.startswith(str(Workspace().plans)) and "--measure" not in started[0], "gradients are the default"
    app = plan_page()
    app.radio(key="search_measure").set_value("all")
    sound(app.button(key="search_start").click().run())
    assert started[1][started[1].index("--measure") + 1] == "all"


def test_what_was_estimated_is_told_from_what_was_measured(measured, tiny):
    said = words(plan_page())
    assert "each weight cut alone" in said and "Estimated damage" not in said
    fit = {"scale": 1.1, "bend": 0.0, "scatter": 0.2, "pairs": [[0.1, 0.1]] * 12}
    file = Workspace().calibration_file(open_checkpoint(tiny).key, "loss-abc")
    write_json(file, measured.calibration("loss").to_json() | {"gradients": fit})
    said = words(plan_page())
    assert "12 of them were measured by forward passes too" in said and "Estimated damage" in said


def test_it_opens_under_the_metric_whose_damages_were_measured(profiled, tiny):
    """A profile that reads text brings better metrics, but what was waited for stays in sight."""
    checkpoint = open_checkpoint(tiny)
    assert now(plan_page()).metric == "loss"
    made = Study(checkpoint).calibration("loss").to_json()
    write_json(Workspace().calibration_file(checkpoint.key, "weight-abc"), made | {"metric": "weight"})
    app = plan_page()
    assert (now(app).metric, now(app).rule) == ("weight", "calibrated")
    assert now(plan_page(metric="loss")).metric == "loss"


def test_the_rule_and_what_the_budget_counts_allocate_anew_at_the_same_size(measured):
    app = plan_page()
    before = now(app)
    sound(app.selectbox(key="board_rule").select("uniform").run())
    assert now(app).rule == "uniform" and now(app).chi != before.chi
    kept = dict(now(app).chi)
    assert abs(now(app).budget - before.budget) < 0.02
    assert app.query_params["rule"] in ("uniform", ["uniform"])
    sound(app.button(key="undo").click().run())
    assert now(app) == before
    sound(app.button(key="redo").click().run())
    assert now(app).chi == kept


def test_settings_in_the_url_make_the_plan(measured):
    app = plan_page(rule="uniform", scope="blocks", budget="0.5", unit="bytes", metric="functional")
    assert (now(app).rule, now(app).scope, now(app).budget, now(app).unit) == ("uniform", "blocks", 0.5, "bytes")
    assert now(app).metric == "functional"


@pytest.mark.parametrize(
    "query",
    [
        {"rule": "<b>"},
        {"budget": "nan"},
        {"budget": "-1"},
        {"budget": "x"},
        {"network": "../x"},
        {"metric": "y"},
        {"unit": "z"},
        {"scope": "🙂"},
        {"weight": "nobody"},
    ],
)
def test_what_a_url_makes_up_is_dropped(measured, query):
    app = plan_page(**query)
    assert now(app).rule == "calibrated" and 0 < now(app).budget <= 1


def test_a_plan_that_the_url_makes_up_is_told(measured):
    app = opened(page="plan", plan="nobody")
    assert not app.exception and len(app.error) == 1 and "nobody" in app.error[0].value
    app = opened(page="plan", plan="../../etc/passwd")
    assert not app.exception and "not a name" in app.error[0].value


def test_lock_all_and_reset(measured):
    app = plan_page()
    start = now(app)
    sound(app.button(key="lock_all").click().run())
    assert set(now(app).locked) == set(start.chi)
    sound(app.button(key="lock_all").click().run())
    assert now(app).locked == ()
    history(app).push(start.with_chi({name: 1 for name in start.chi}, hand=tuple(start.chi)))
    sound(app.button(key="reset").click().run())
    assert now(app).chi == start.chi and now(app).hand == ()


def test_a_hand_made_plan_survives_a_reload(measured):
    app = plan_page()
    name = next(iter(now(app).chi))
    history(app).push(now(app).with_chi(now(app).chi | {name: 2}, hand=(name,)))
    sound(app.run())
    kept = app.query_params["draft"]
    kept = kept[0] if isinstance(kept, list) else kept
    again = plan_page(draft=kept)
    assert now(again) == now(app) and now(again).hand == (name,)


def test_what_was_set_by_hand_stays_when_the_rule_or_the_count_changes(measured):
    app = plan_page(budget="0.8")
    start = now(app)
    by_hand = {name: 2 for name in list(start.chi)[3:6]} | {list(start.chi)[0]: 0}
    history(app).push(start.with_chi(start.chi | by_hand, hand=tuple(by_hand), locked=(list(start.chi)[3],)))
    for act in (
        lambda: app.selectbox(key="board_rule").select("uniform").run(),
        lambda: app.segmented_control(key="board_unit").set_value("bytes").run(),
        lambda: app.segmented_control(key="board_metric").set_value("functional").run(),
    ):
        before = now(app)
        sound(act())
        assert now(app) != before and now(app).hand == tuple(by_hand) and len(now(app).locked) == 1
        assert {name: now(app).chi[name] for name in by_hand} == by_hand
    sound(app.button(key="reset").click().run())
    assert now(app).hand == () and now(app).locked == ()


def test_a_budget_that_what_is_held_leaves_no_room_for_is_told_in_a_sentence(measured, tiny):
    view = SimpleNamespace(checkpoint=open_checkpoint(tiny), only=None)
    app = plan_page(budget="0.8", scope="blocks")
    found = tables.of(view, now(app))
    held = tuple(found.names[1:])
    with pytest.raises(InputError, match=r"At least [\d.]+% must be kept .* around what is locked or set by hand"):
        tables.choose(found, 0.3, "parameters", "blocks", dict.fromkeys(held, 0), held)


def test_the_table_says_dense_and_takes_an_emptied_cell_for_it(measured, tiny):
    from pages.parts import plan_side

    app = plan_page(budget="0.9")
    view = SimpleNamespace(checkpoint=open_checkpoint(tiny), only=None)
    data = plan_side.as_table(now(app), tables.of(view, now(app)))
    shown = plan_side.without_zeros(data)
    assert plan_side.COLUMNS["kept"]["type_config"]["format"] == "%.0f %%", "rounded, as on the board"
    assert (data["chi"] == 0).any() and shown["chi"].isna().equals(data["chi"] == 0)
    assert app.data_editor[0].proto.placeholder == "dense"


def test_an_exported_plan_comes_back(measured, tiny):  # noqa: F811
    app = plan_page(rule="uniform", budget="0.6")
    document = exported(app, tiny).to_json()
    other = plan_page()
    assert now(other).chi != now(app).chi
    sound(
        other.file_uploader(key="board_file").upload("p.json", json.dumps(document).encode(), "application/json").run()
    )
    assert now(other).chi == now(app).chi and now(other).rule == "uniform" and now(other).origin["name"] == "p.json"
    sound(other.button(key="undo").click().run())
    assert now(other).rule == "calibrated"


@pytest.mark.parametrize(
    ("break_it", "words_"),
    [
        (lambda d: d.update(version=9), "version"),
        (lambda d: d["weights"].update({"gone": {"network": "dense"}}), "gone"),
        (lambda d: d["weights"]["model.layers.0.q_proj"].update(chi=[10**6]), "q_proj"),
        (lambda d: d.update(metric="taste"), "metric"),
    ],
)
def test_a_plan_that_is_wrong_is_refused_in_a_sentence(measured, tiny, break_it, words_):  # noqa: F811
    app = plan_page(rule="uniform")
    document = exported(app, tiny).to_json()
    break_it(document)
    before = now(app)
    app.file_uploader(key="board_file").upload("bad.json", json.dumps(document).encode(), "application/json").run()
    assert not app.exception and len(app.error) == 1 and words_ in app.error[0].value.replace("\\", "")
    assert now(app) == before


@pytest.mark.parametrize("data", [b"{", b"[]", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000])
def test_a_file_that_is_no_plan_is_refused(measured, data):
    app = plan_page()
    app.file_uploader(key="board_file").upload("bad.json", data, "application/json").run()
    assert not app.exception and len(app.error) == 1


def test_a_plan_of_another_checkpoint_comes_onto_the_board_by_a_tick(measured, tiny):  # noqa: F811
    app = plan_page(rule="uniform")
    document = exported(app, tiny).to_json() | {"name": "from-elsewhere"}
    document["model"]["fingerprint"] = "0" * 64
    before = now(app)
    app.file_uploader(key="board_file").upload("other.json", json.dumps(document).encode(), "application/json").run()
    assert "another checkpoint than tiny" in app.warning[0].value and now(app) == before
    sound(app.checkbox(key="board_force").check().run())
    assert now(app).chi == before.chi and now(app) != before
    assert app.text_input(key="plan_name").value == "from-elsewhere"


def test_compress_keeps_the_plan_and_starts_the_very_command(measured, started, tiny):  # noqa: F811
    app = plan_page()
    sound(app.button(key="compress").click().run())
    ((verb, source, _, file, *more),) = started
    assert (verb, source, more) == ("run", str(tiny), ["--max-tokens", "16384", "--name", "tiny-0.7-lowrank"])
    plan = Plan.load(file)
    assert plan.rule == "calibrated" and plan.predicted["source"] == "curve"
    plan.check(open_checkpoint(tiny))


def test_a_search_that_is_done_puts_its_plan_on_the_board_once(measured, tiny, monkeypatch):  # noqa: F811
    app = plan_page(rule="uniform", budget="0.6")
    document = exported(app, tiny).to_json() | {"rule": "best", "chosen_rule": "uniform"}
    file = Workspace().plan_file("searched")
    write_json(file, document)
    argv = ["plan", str(tiny), "--budget", "0.6", "--rule", "best", "--out", str(file)]
    job = jobs.start(argv, "Search", program=(sys.executable, "-c", "print('{}')"))
    while job.status()["state"] in ("queued", "running"):
        pass
    other = plan_page(plan_job=job.id)
    assert now(other).rule == "uniform" and now(other).origin["rule"] == "best"
    sound(other.button(key="undo").click().run())
    sound(other.run())
    assert now(other).rule == "calibrated", "it came once"


def test_a_network_that_was_not_measured_offers_to(measured, started):  # noqa: F811
    app = plan_page()
    before = now(app)
    app.session_state["plan_board"]["missing"] = tables.What("mpo", "loss")
    sound(app.run())
    said = (
        "**MPO with the error of loss** has not been measured on this model yet. The board stays as it is until it was."
    )
    assert said in [m.value for m in app.markdown]
    primary = [each.proto.popover.type for each in app.get("popover")]
    assert "primary" not in primary, "one primary button at a time: the one beside the sentence"
    sound(app.button(key="missing_start").click().run())
    assert started[0][started[0].index("--network") + 1] == "mpo" and now(app) == before


def test_without_spectra_the_profile_is_made_first(tiny, started):  # noqa: F811
    app = sound(opened(page="plan"))
    assert started == [["profile", str(tiny), "--metrics", "weight"]]
    assert "needs the spectra" in words(app)
