"""What was asked for and is not there keeps its name on the screen; nothing comes in its place, and nothing starts."""

import json
import shutil

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.workspace import Workspace
from pages.parts import model
from tests.helpers import app_page
from tests.helpers.opened import opened, sound, words
from tests.pages.test_pages import keep_run, plan  # noqa: F401  (a fixture)

PAGES = ["profile", "plan", "autopilot", "run", "heal", "tradeoff", "compare", "deploy", "checklist", "sensitivity"]
PAGES += ["claims"]
GONE = "The model nosuch is gone: no folder of KARIPAP_MODEL_ROOTS has it. Choose another model above."


def box(app):
    return app.selectbox(key="models")


def errors(app) -> list[str]:
    """As a reader sees them: without the signs that keep Markdown off."""
    return [error.value.replace("\\", "") for error in app.error]


def at(page: str, alias: str):
    """A page in a session that has asked for nothing but this model."""
    app = AppTest.from_file(app_page.APP, default_timeout=30)
    app.query_params["model"] = alias
    app.run()
    if page != "profile":
        app.switch_page(f"pages/{page}.py")
        app.query_params["model"] = alias
        app.run()
    return app


def starters(app) -> list[str]:
    """Buttons that may be pressed, but for those by which another model is opened."""
    return [button.label for button in app.button if not button.disabled and not button.key.startswith("open_")]


@pytest.mark.parametrize("page", PAGES)
def test_a_model_that_the_url_asks_for_and_nobody_has_keeps_its_name(profiled, started, page):
    app = at(page, "nosuch")
    assert not app.exception and errors(app) == [GONE]
    assert box(app).value == "nosuch" and app.session_state.model == "nosuch"
    assert app.query_params["model"] in ("nosuch", ["nosuch"])
    assert starters(app) == [] and not app.get("plotly_chart") and started == []
    app = box(app).select("tiny").run()
    # The made-up weights are not those of its config.json, which the Deploy page alone has to say.
    assert not app.exception and (page == "deploy" or not errors(app))
    assert app.session_state.model == "tiny"


@pytest.mark.parametrize("alias", ["/etc", "../..", "<b>x</b>", "a" * 5000, "\u202etiny", "x\0y", "demo "])
def test_whatever_a_url_asks_for_opens_nothing_and_is_shown_as_text(profiled, started, alias):
    app = at("profile", alias)
    assert not app.exception and len(app.error) == 1 and " is gone: " in errors(app)[0]
    assert starters(app) == [] and started == [] and box(app).value == alias[:200]


@pytest.mark.parametrize(
    ("page", "key"),
    [
        ("run", "start"),
        ("plan", "compress"),
        ("heal", "heal"),
        ("tradeoff", "sweep_start"),
        ("autopilot", "autopilot_start"),
    ]
    + [("claims", "check"), ("sensitivity", "sens_start"), ("tradeoff", "to_board"), ("plan", "search_start")],
)
def test_a_click_after_the_model_vanished_starts_nothing(plan, tiny, started, page, key):  # noqa: F811
    """The kind: the demo model came in its place, and the click compressed that."""
    folder = Workspace().root / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    keep_run(plan, "net", folder=str(folder))
    shutil.copytree(tiny, tiny.parent / "other")
    model.found.clear()
    app = opened(page, **({"point": "net"} if key == "to_board" else {}))
    if key == "sweep_start":  # behind a button where points are there
        app.button(key="sweep_form").click().run()
    started.clear()
    files = sorted(Workspace().root.rglob("*"))
    shutil.rmtree(tiny)  # within the seconds for which the list of models is kept
    app.button(key=key).click().run()
    assert not app.exception and started == [] and sorted(Workspace().root.rglob("*")) == files
    assert app.session_state.model == "tiny" and box(app).value == "tiny"
    assert errors(app) == [GONE.replace("nosuch", "tiny")]
    model.found.clear()
    app.run()
    assert box(app).value == "tiny" and starters(app) == []


def test_a_model_that_comes_back_is_taken_up_again(profiled, tiny):
    app = sound(opened())
    tiny.rename(tiny.parent.parent / "away")
    app.run()
    assert "is gone" in errors(app)[0]
    (tiny.parent.parent / "away").rename(tiny)
    sound(app.run())


def test_a_part_of_a_page_does_not_go_on_with_a_model_that_changed(profiled, tiny, started):
    """A fragment is drawn anew without the page around it, and kept the model that the page had opened."""
    view = model.find("tiny")
    assert model.still(view)
    data = bytearray((tiny / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tiny / "model.safetensors").write_bytes(data)
    assert not model.still(view)
    shutil.rmtree(tiny)
    assert not model.still(view)


def test_of_two_folders_with_one_name_neither_becomes_the_other(tiny, tmp_path, started):
    twin = tmp_path / "models" / "deeper" / "tiny"
    shutil.copytree(tiny, twin)
    model.found.clear()
    first, second = (alias for alias in model.listing().models if alias.startswith("tiny-"))
    app = at("profile", "tiny")
    said = f"2 folders are called tiny: choose one of {first}, {second}."
    assert errors(app) == [said] and starters(app) == []
    app = at("profile", first)
    shutil.rmtree(model.listing().models[first])
    app.run()
    assert f"The model {first} is gone" in errors(app)[0]
    model.found.clear()
    app.run()  # the other one is called `tiny` now
    assert f"The model {first} is gone" in errors(app)[0] and set(model.listing().models) >= {"tiny"}
    assert model.find(second).source == str(twin)  # the long alias, in somebody's bookmark, stays what it was


def test_another_model_is_not_asked_for_what_was_chosen_of_the_one_before(plan, tiny):  # noqa: F811
    shutil.copytree(tiny, tiny.parent / "other")
    data = bytearray((tiny / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tiny.parent / "other" / "model.safetensors").write_bytes(data)
    model.found.clear()
    app = sound(opened("run"))
    assert app.session_state.plan == "halved"
    sound(box(app).select("other").run())
    assert "No plan for this model yet" in words(app)


@pytest.mark.parametrize(
    ("page", "key", "label", "what", "off"),
    [
        ("run", "plan", "Plan", "plan", "start"),
        ("heal", "heal_from", "Compressed folder", "compressed folder", "heal"),
        ("checklist", "folder", "Compressed folder", "compressed folder", "start_shadow"),
        ("compare", "a", "A", "plan or run", None),
        ("compare", "b", "B", "plan or run", None),
        ("deploy", "deploy_plan", "Plan", "plan", None),
    ],
)
def test_a_choice_that_is_gone_keeps_its_name_and_its_button_is_off(
    plan,  # noqa: F811
    tmp_path,
    started,
    page,
    key,
    label,
    what,
    off,
):
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    keep_run(plan, "net", folder=str(folder))
    app = opened(page, **{key: "gone-1"})
    assert not app.exception
    assert errors(app) == [f"The {what} gone-1 is gone: choose another."]
    chosen = app.selectbox(key=key)
    assert chosen.value == "gone-1" and chosen.label == label and "gone-1 (gone)" in chosen.options
    assert off is None or off not in {button.key for button in app.button if not button.disabled}
    assert not app.get("plotly_chart") or page not in ("deploy", "compare")
    assert app.query_params[key] in ("gone-1", ["gone-1"])
    other = next(option for option in chosen.options if "gone-1" not in option)
    app = chosen.set_value("dense" if page == "compare" else other).run()
    assert not [error for error in errors(app) if "gone-1" in error]


def test_a_run_that_is_gone_is_told_and_no_other_is_shown(plan):  # noqa: F811
    keep_run(plan, "one")
    app = opened("run", run="two")
    assert errors(app) == ["The run two is gone: choose another."]
    assert "run one" not in {heading.value for heading in app.subheader}


def test_a_draft_or_plan_that_is_gone_keeps_the_board_off_until_one_goes_on_without(profiled, started):
    for query, said in (
        ({"draft": "20260101-000000-abcdef"}, "The draft 20260101-000000-abcdef is gone, or is of another model."),
        ({"draft": "../../etc/passwd"}, "The draft ../../etc/passwd is gone, or is of another model."),
        ({"plan": "nobody"}, "The plan nobody cannot be had: "),
    ):
        app = opened("plan", **query)
        assert not app.exception and errors(app)[0].startswith(said)
        assert starters(app) == ["Go on without it"]
        sound(app.button(key="without").click().run())
        assert "compress" in {button.key for button in app.button} and not app.query_params.keys() & query.keys()


def test_who_opens_the_address_of_a_draft_and_changes_it_has_a_draft_of_his_own(profiled):
    def now(app):
        return app.session_state.plan_board["history"].now

    first = sound(opened("plan"))
    name = next(iter(now(first).chi))
    first.session_state.plan_board["history"].push(now(first).with_chi(now(first).chi | {name: 2}, hand=(name,)))
    sound(first.run())
    (address,) = (
        [first.query_params["draft"]] if isinstance(first.query_params["draft"], str) else first.query_params["draft"]
    )
    other = sound(opened("plan", draft=address))
    assert now(other) == now(first)
    other.session_state.plan_board["history"].push(now(other).with_chi(now(other).chi | {name: 1}, hand=(name,)))
    sound(other.run())
    assert other.query_params["draft"] not in (address, [address])
    assert now(sound(opened("plan", draft=address))) == now(first)


# ---- folders by their path --------------------------------------------------------------------------------------


def test_heals_box_takes_the_workspace_and_the_roots_and_nothing_else(profiled, tiny, tmp_path, started):
    outside = tmp_path / "outside"
    outside.mkdir()
    (tiny.parent / "way-out").symlink_to(outside)
    inside = Workspace().root / "healed" / "x"
    inside.mkdir(parents=True)
    app = sound(opened("heal"))
    refusal = "This path is not inside the folders of KARIPAP_MODEL_ROOTS."
    for path in (
        str(outside),
        "/etc",
        "..",
        "/nowhere",
        str(tiny.parent / "way-out"),
        "//host/share",
        str(tiny / "none"),
    ):
        app.text_input(key="heal_folder").input(path).run()
        assert errors(app) == [refusal] and app.button(key="heal").disabled
    for path in (tiny, inside):
        sound(app.text_input(key="heal_folder").input(str(path)).run())
        assert not app.button(key="heal").disabled
    app.button(key="heal").click().run()
    assert started[-1][:2] == ["heal", str(inside)]


def test_a_run_that_ships_with_a_model_names_no_folder_outside_the_roots(plan, tiny, tmp_path):  # noqa: F811
    """Its run.json is a stranger's: what it names would be verified, healed and written into."""
    for name, folder in (("out", tmp_path / "victim"), ("in", tiny.parent / "small")):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        keep_run(plan, name, folder=str(folder))
        (tiny / "karipap" / "runs").mkdir(parents=True, exist_ok=True)
        (Workspace().runs_dir / name).rename(tiny / "karipap" / "runs" / name)
    (tiny / "karipap" / "measured.json").write_text(json.dumps({"identity": open_checkpoint(tiny).identity}))
    assert opened("heal").selectbox(key="heal_from").options == ["run in", "Another folder"]
    assert opened("checklist").selectbox(key="folder").options == ["run in"]
