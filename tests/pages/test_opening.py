"""The box that opens models: within the roots it looks at what is typed, outside them once somebody says so."""

import json
import os
import shutil
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core import story
from karipap_core.checkpoint import hub
from karipap_core.checkpoint.lora.open import joined
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.profiles.outline import keep_config, keep_profile
from karipap_core.workspace import Workspace
from pages.parts import model, opening, opening_memory, roots
from tests.helpers import app_page, gguf_files
from tests.helpers.adapters import adapter, matrices
from tests.helpers.opened import opened, sound
from tests.helpers.opened import words as all_words
from tests.helpers.paths import REPOSITORY


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """A hub cache of the test's own, and nothing of earlier tests remembered."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for cache in (model.found, model.hub_models, model.outline_models):
        cache.clear()
    return tmp_path / "hub"


@pytest.fixture
def outside(tiny, tmp_path) -> Path:
    """A folder with a model, which no root holds."""
    folder = tmp_path / "elsewhere" / "mine"
    shutil.copytree(tiny, folder)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "x": 1})
    )
    return folder


def cached(cache: Path, tiny: Path, name: str = "someone/small") -> Path:
    repository, commit = cache / f"models--{name.replace('/', '--')}", "0" * 40
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(tiny, repository / "snapshots" / commit)
    model.hub_models.clear()
    return repository / "snapshots" / commit


def typed(app: AppTest, path) -> AppTest:
    return box(app).input(str(path)).run()


def box(app: AppTest):
    """The box itself, which has a new key after each choice."""
    return next(each for each in app.text_input if each.key.startswith("open_path"))


def words(app: AppTest) -> str:
    """As a reader sees them: without the signs that keep Markdown off."""
    return all_words(app).replace("\\", "")


def choices(app: AppTest) -> list[str]:
    return next(each for each in app.selectbox if each.key.startswith("model")).options


def labels(app: AppTest, start: str) -> list[str]:
    return [button.label.replace("\\", "") for button in app.button if (button.key or "").startswith(start)]


def at(page: str, alias: str) -> AppTest:
    """A page in a session that has asked for nothing but this model."""
    app = AppTest.from_file(app_page.APP, default_timeout=60)
    app.query_params["model"] = alias
    app.run()
    if page != "profile":
        app.switch_page(f"pages/{page}.py").run()
    return app


def errors(app: AppTest) -> list[str]:
    return [error.value.replace("\\", "") for error in app.error]


# ---- folders within the roots ---------------------------------------------------------------------------------------


def test_a_root_is_browsed_by_folder_down_to_a_model_deeper_than_the_list_looks(profiled, tiny):
    deep = tiny.parent / "a" / "b" / "c" / "deep"
    shutil.copytree(tiny, deep)
    model.found.clear()
    app = sound(opened())
    assert labels(app, "open_folder") == [str(tiny.parent)] and "deep" not in model.listing().models
    app = typed(app, tiny.parent)
    assert labels(app, "open_model") == ["tiny"] and labels(app, "open_folder") == ["a/"]
    for step in ("a/", "b/"):
        folder = next(button for button in app.button if button.label == step)
        app = sound(folder.click().run())
    assert box(app).value == f"{tiny.parent}/a/b/" and labels(app, "open_model") == ["c/deep"]
    app = sound(app.button(key="open_model_0").click().run())
    assert app.session_state.model == "deep" and app.query_params["model"] in ("deep", ["deep"])
    assert box(app).value == ""
    model.found.clear()
    assert model.find("deep").place == str(deep)  # its alias, in a link, leads there in another session too


def test_what_a_browser_still_holds_of_the_box_brings_no_model_back(profiled, tiny):
    """A browser that was interrupted may send the values of a box that is gone, with any request that comes later."""
    app = sound(opened(model="demo"))
    held = app._tree.get_widget_states()
    app = typed(app, tiny.parent)
    app = app.button(key="open_model_0").click().run()
    assert app.session_state.model == "tiny"
    app = sound(app._run(held))
    assert app.session_state.model == "tiny" and app.query_params["model"] in ("tiny", ["tiny"])


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", ""])
def test_a_file_of_a_model_means_the_model(profiled, tiny, name):
    app = typed(opened(model="demo"), tiny / name)
    assert labels(app, "open_model") == ["tiny"]
    sound(app.button(key="open_model_0").click().run())
    assert app.session_state.model == "tiny"


def test_the_beginning_of_a_name_lists_what_begins_so(tiny):
    for name in ("llama-one", "llama-two", "other"):
        (tiny.parent / name).mkdir()
    found = opening.look(str(tiny.parent / "LLA"), {}, ())
    assert [folder.name for folder in found.folders] == ["llama-one", "llama-two"] and not found.said
    assert opening.look(str(tiny.parent / "x" / "y"), {}, ()).said == f"There is no y in {tiny.parent / 'x'}."
    (tiny.parent / "notes.txt").write_text("")
    assert "notes.txt is no file of a model" in opening.look(str(tiny.parent / "notes.txt"), {}, ()).said
    assert (
        f"No model (safetensors, GGUF) lies in {tiny.parent / 'other'}"
        in opening.look(str(tiny.parent / "other"), {}, ()).said
    )


def test_words_that_are_no_path_find_models_by_name(tiny):
    known = model.listing().models
    assert list(opening.look("TIN", known, ["a/tinier", "b/c"]).models.values()) == ["tiny", "a/tinier"]
    assert opening.look("nothing", known, []).said.startswith("No model here is called nothing. Type the path")


@pytest.mark.parametrize("path", ["//host/share", "\\\\host\\share", "a\0b", "/a\nb", "/" + "x" * 5000])
def test_what_is_no_path_of_this_machine_is_told_so(tiny, path):
    found = opening.look(path, {}, ())
    assert found.said == "This cannot be the path of a folder on this machine." and found.ask is None


def test_a_broken_model_says_why_and_the_others_stay(profiled, tiny):
    broken = tiny.parent / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"\xff" * 20)
    model.found.clear()
    app = typed(opened(), broken)
    assert errors(app) == ["broken cannot be opened: its model.safetensors is cut short or is no safetensors file."]
    app = typed(app, tiny.parent)
    assert labels(app, "open_model") == ["tiny"] and not app.exception


# ---- outside them ---------------------------------------------------------------------------------------------------


def test_outside_the_roots_it_asks_once_and_remembers(profiled, outside):
    app = typed(opened(), outside)
    assert not errors(app) and labels(app, "open_permit") == ["Open it"] and labels(app, "open_model") == []
    assert any("outside the folders that the dashboard may open" in text.value for text in app.markdown)
    assert opening_memory.permitted() == []
    app = sound(app.button(key="open_permit").click().run())
    assert app.session_state.model == "mine" and opening_memory.permitted() == [outside]
    model.found.clear()
    again = sound(opened(model="mine"))  # another session, another server
    assert again.session_state.model == "mine" and "mine" in choices(again)
    app = typed(again, outside)
    assert labels(app, "open_permit") == [] and labels(app, "open_model") == ["mine"]


def test_a_permission_holds_for_that_folder_and_nothing_above_it(profiled, outside, tiny):
    shutil.copytree(outside, outside.parent / "sibling")
    (outside / "sub").mkdir()
    (outside / "sub" / "way-out").symlink_to(outside.parent / "sibling")
    assert opening.permit(str(outside)) == ""
    assert [str(folder) for folder in opening_memory.permitted()] == [str(outside)]
    for path in (outside.parent, outside.parent / "sibling", outside / "..", "/"):
        found = opening.look(str(path), {}, ())
        assert not found.models and (found.ask or found.said), path
    assert roots.confine(str(outside), roots.roots()) == outside
    for path in (outside.parent / "sibling", outside / "sub" / "way-out"):
        with pytest.raises(Exception, match="not inside the folders"):
            roots.confine(str(path), roots.roots())
    assert "sibling" not in model.listing().models


def test_a_link_that_takes_the_place_of_a_permitted_folder_opens_nothing(outside, tmp_path):
    assert opening.permit(str(outside)) == ""
    outside.rename(tmp_path / "moved")
    outside.symlink_to(tmp_path / "moved")
    model.found.clear()
    assert str(outside) not in model.listing().models.values()
    with pytest.raises(Exception, match="not inside"):
        roots.confine(str(outside), roots.roots())


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/nowhere/at/all", "There is no folder /nowhere/at/all."),
        ("/", "/ is too much to open: name a folder nearer to the models."),
        ("/etc", "No model (safetensors, GGUF) lies in /etc or two levels below it."),
    ],
)
def test_a_permission_without_a_model_is_not_given(profiled, path, said):
    app = typed(opened(), path)
    assert not errors(app)  # before the button is pressed nothing says whether it is there
    app.button(key="open_permit").click().run()
    assert errors(app) == [said] and opening_memory.permitted() == []


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("pytorch_model.bin", "mine holds only pickled weights (pytorch_model.bin), which can execute code"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_weights_in_another_form_are_called_by_name(profiled, outside, file, said, whole):
    (outside / "model.safetensors").rename(outside / file)
    app = typed(opened(), outside / file if whole else outside)
    assert str(outside) in [code.value for code in app.code]  # the folder is asked about, not the file
    app.button(key="open_permit").click().run()
    (error,) = errors(app)
    assert error.startswith(said) and opening_memory.permitted() == []


def test_what_is_asked_for_is_told_by_letters_alone(monkeypatch):
    def touched(*_, **__):
        raise AssertionError("the disk was touched")

    monkeypatch.setattr(roots, "scan", touched)
    monkeypatch.setattr(os.path, "realpath", touched)
    assert opening.asked_for(Path("/a/b")) == Path("/a/b")
    assert opening.asked_for(Path("/a/b/config.json")) == Path("/a/b")
    assert opening.asked_for(Path("/c/models--x--y/snapshots/0/model.safetensors")) == Path("/c/models--x--y")


def test_from_other_machines_nothing_outside_is_opened(profiled, outside, monkeypatch):
    opening_memory.permit(outside)
    monkeypatch.setenv("KARIPAP_ALLOW_REMOTE", "1")
    model.found.clear()
    assert outside not in roots.roots() and "mine" not in model.listing().models
    found = opening.look(str(outside), {}, ())
    assert found.ask is None and found.said.startswith("This path is not inside the folders of KARIPAP_MODEL_ROOTS.")
    assert opening.permit(str(outside)).startswith("This path is not inside")
    app = typed(opened(), outside)
    assert labels(app, "open_permit") == [] and errors(app) == [found.said]


@pytest.mark.parametrize("name", ["open_path", "open_permit", "open_pending", "open_recent", "path", "model"])
def test_an_address_neither_permits_nor_asks(profiled, outside, name):
    app = AppTest.from_file(app_page.APP, default_timeout=30)
    app.query_params[name] = str(outside)
    app.run()
    assert not app.exception and labels(app, "open_permit") == [] and opening_memory.permitted() == []
    assert box(app).value == "" and not opening_memory.file().exists()


def test_a_permission_can_be_taken_back(profiled, outside):
    app = typed(opened(), outside)
    app = sound(app.button(key="open_permit").click().run())
    app = app.button(key="open_forget_0").click().run()
    assert opening_memory.permitted() == []
    model.found.clear()
    app.run()
    assert "The model mine is gone" in errors(app)[0]


def test_a_damaged_memory_counts_as_none(profiled, outside):
    opening_memory.permit(outside)
    document = json.loads(opening_memory.file().read_text())
    document["permitted"].append("/")
    opening_memory.file().write_text(json.dumps(document))  # its sum is another one now
    assert opening_memory.permitted() == [] and opening_memory.recent() == []
    sound(opened())


# ---- lately, and the hub's cache ------------------------------------------------------------------------------------


def test_models_opened_lately_come_first_and_those_that_are_gone_say_so(profiled, tiny):
    shutil.copytree(tiny, tiny.parent / "second")
    model.found.clear()
    assert model.take.__doc__
    opening_memory.remember(str(tiny))
    opening_memory.remember(str(tiny.parent / "second"))
    assert opening_memory.recent() == [str(tiny.parent / "second"), str(tiny)]
    shutil.rmtree(tiny.parent / "second")
    model.found.clear()
    app = sound(opened())
    pills = next(each for each in app.button_group if each.key == "open_recent")
    assert list(pills.options) and [option.content.replace("\\", "") for option in pills.proto.options] == [
        "second (gone)",
        "tiny",
    ]


def test_models_of_the_hubs_cache_can_be_chosen_and_broken_downloads_cannot(profiled, tiny, no_hub):
    whole = cached(no_hub, tiny)
    part = cached(no_hub, tiny, "someone/part")
    (part / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(whole / "model.safetensors", part / "model-00001-of-00002.safetensors")
    assert hub.cached() == {"someone/small": str(whole)} and hub.snapshot("someone/part") is None
    app = sound(opened())
    assert "someone/small (Hugging Face cache)" in choices(app)
    assert model.find("someone/small").place == str(whole) and model.find("someone/part") is None
    app = typed(app, "someone/small")
    sound(app.button(key="open_model_0").click().run())
    assert app.session_state.model == "someone/small"
    assert opening.look(str(whole / "config.json"), {}, ["someone/small"]).models == {"someone/small": "someone/small"}


def test_a_hub_model_shows_its_size_first_and_is_fetched_as_a_job(profiled, started, monkeypatch):
    asked = []

    def offer(hub_id):
        asked.append(hub_id)
        return hub.Offer(hub_id, "0" * 40, {"model.safetensors": 2_000_000, "config.json": 500})

    monkeypatch.setattr(hub, "offer", offer)
    opening.asked_of_hub.clear()
    app = sound(opened(model="somebody/something"))
    assert asked == [] and "not on this machine" in words(app)  # a link alone asks nobody
    app = sound(app.button(key="fetch_size").click().run())
    assert asked == ["somebody/something"] and "2 MB in 2 files" in words(app) and started == []
    sound(app.button(key="fetch").click().run())
    assert started == [["fetch", "somebody/something"]]


def test_offline_is_one_sentence(profiled, started):
    opening.asked_of_hub.clear()
    app = opened(model="somebody/something").button(key="fetch_size").click().run()
    assert errors(app) == [
        "somebody/something is neither a path here nor in the hub's cache, and the hub cannot be reached (or "
        "HF_HUB_OFFLINE is set): name a local folder or go online."
    ]
    assert started == []


# ---- without weights ------------------------------------------------------------------------------------------------


def test_a_dropped_profile_is_the_map_and_the_board_and_starts_nothing(profiled, tiny, started):
    folder = next(Workspace().root.glob("models/*/profiles/*"))
    document = json.loads((folder / "profile.json").read_text())
    files = {name: (folder / name).read_bytes() for name in ("profile.json", "spectra.safetensors")}
    key = opening.kept(files)
    shutil.rmtree(folder.parents[1])
    app = sound(at("profile", key))
    assert len(app.get("plotly_chart")) == 2 and started == []
    assert f"{document['model']} (profile only)" in choices(app)
    app = sound(at("plan", key))
    assert "compress" in {button.key for button in app.button}
    app.button(key="compress").click().run()
    said = f"The weights of {document['model']} are not here, only its profile"
    assert said in words(app) and started == [] and not list(Workspace().plans.glob("*"))


def test_a_profile_json_alone_is_the_map_and_says_what_is_missing(profiled, tiny, started):
    folder = next(Workspace().root.glob("models/*/profiles/*"))
    key = opening.kept({"profile.json": (folder / "profile.json").read_bytes()})
    app = sound(at("profile", key))
    assert app.get("plotly_chart") and "came without its singular values" in words(app) and started == []
    assert not {"chi", "kept"} & {str(option) for option in app.selectbox(key="quantity").options}
    app = sound(at("plan", key))
    boards = [part for part in app.get("bidi_component") if part.key != "focus"]  # which every page has
    assert "came without its singular values" in words(app) and not boards


def test_a_dropped_config_is_the_map_of_shapes(profiled, started):
    demo = (REPOSITORY / "assets" / "demo_model" / "config.json").read_bytes()
    key = keep_config(demo, "config.json")
    app = sound(at("profile", key))
    assert len(app.get("plotly_chart")) == 1 and "only its config.json" in words(app) and started == []
    app = sound(at("plan", key))
    assert "only its config.json" in words(app) and started == []
    app = sound(at("deploy", key))
    assert app.get("plotly_chart")


@pytest.mark.parametrize(
    "page", ["run", "autopilot", "heal", "tradeoff", "compare", "checklist", "sensitivity", "claims"]
)
def test_pages_that_read_weights_say_in_one_sentence_that_they_are_not_here(profiled, started, page):
    folder = next(Workspace().root.glob("models/*/profiles/*"))
    key = keep_profile(json.loads((folder / "profile.json").read_text()), None, "profile.json")
    app = sound(at(page, key))
    assert "are not here, only its profile: open the model itself" in words(app) and started == []


def test_what_is_dropped_never_counts_as_measured_on_the_model_that_it_names(profiled, tiny):
    checkpoint = open_checkpoint(tiny)
    folder = next(Workspace().root.glob("models/*/profiles/*"))
    document = json.loads((folder / "profile.json").read_text())
    shutil.rmtree(folder.parents[1])
    key = keep_profile(document, None, "profile.json")
    assert key != checkpoint.key and key.startswith(checkpoint.fingerprint[:32])
    assert not Workspace().model_dir(checkpoint.key).exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a.json": b"{}"}, "a.json is neither a config.json (field model_type) nor a profile.json (field format)."),
        ({"a.json": b"[1]"}, "a.json is neither a config.json"),
        ({"a.json": b"{"}, "a.json is not valid JSON"),
        ({"s.safetensors": b"x"}, "A spectra.safetensors says nothing by itself"),
        ({"a.json": b'{"model_type": "a"}', "b.json": b'{"model_type": "a"}'}, "These files are of several models"),
        ({"a.json": b'{"format": "karipap-profile", "version": 9}'}, "a.json was written by a newer Karipap"),
        ({"a.json": b'{"model_type": "no-such"}'}, "The config of a.json is of no model"),
    ],
)
def test_a_dropped_file_that_is_none_of_these_is_told_and_nothing_is_kept(files, said):
    with pytest.raises(Exception, match=".") as error:
        opening.kept(files)
    assert said in str(error.value) and not [*Workspace().root.glob("models/*")]


def test_spectra_of_another_profile_or_damaged_ones_are_refused(profiled):
    folder = next(Workspace().root.glob("models/*/profiles/*"))
    document, spectra = json.loads((folder / "profile.json").read_text()), (folder / "spectra.safetensors").read_bytes()
    other = {key: value for key, value in document.items() if key != "seal"} | {"fingerprint": "0" * 64}
    with pytest.raises(Exception, match="of another profile"):
        keep_profile(other, spectra, "profile.json")
    flipped = bytearray(spectra)
    flipped[-1] ^= 1
    with pytest.raises(Exception, match="damaged"):
        keep_profile(document, bytes(flipped), "profile.json")
    with pytest.raises(Exception, match="damaged"):
        keep_profile(document | {"model": "changed"}, None, "profile.json")
    assert len([*Workspace().root.glob("models/*")]) == 1


@pytest.fixture
def packed(tiny) -> Path:
    """Beside the model `tiny`: a folder with two models in GGUF and a projector, and an adapter of `tiny`."""
    files = tiny.parent / "files"
    source = gguf_files.make("llama", files / "source")
    gguf_files.write(source, files / "a-q8.gguf", "Q8_0", {"general.file_type": 7})
    gguf_files.write(source, files / "b.gguf")
    (files / "mmproj-a.gguf").write_bytes(b"GGUF")
    (files / "c.gguf").write_bytes(b"no such thing")
    shutil.rmtree(source)
    weight = "model.layers.0.q_proj"
    B, A = matrices(*open_checkpoint(tiny).weight(weight).shape)
    named = f"base_model.model.{weight}"
    adapter(tiny.parent / "lora", Path("../tiny"), {f"{named}.lora_A.weight": A, f"{named}.lora_B.weight": B})
    model.found.clear()
    yield files
    shutil.rmtree(files)
    shutil.rmtree(tiny.parent / "lora")
    model.found.clear()


def test_gguf_files_are_listed_and_opened_one_by_one(profiled, packed, started):
    app = typed(opened(), packed)
    assert labels(app, "open_model") == ["a-q8.gguf", "b.gguf"]
    app = typed(app, packed / "c.gguf")
    assert errors(app) == ["c.gguf cannot be opened: it is no GGUF file, whatever its name."]
    app = typed(app, packed / "a-q8.gguf")
    app.button(key="open_model_0").click().run()
    sound(app)
    assert "Q8_0 (GGUF), opened to bf16, " in words(app) and "in bfloat16" in words(app)
    assert started and started[-1][:2] == ["profile", str(packed / "a-q8.gguf")]


def test_an_adapter_is_said_to_be_one_and_opens_with_its_base(profiled, packed, tiny, started):
    story.profile(tiny.parent / "lora")
    app = at("profile", "lora")
    sound(app)
    (said,) = [info.value.replace("\\", "") for info in app.info]
    assert said.startswith("This is an adapter (LoRA, rank 4), and what the page shows is its update s B A alone")
    assert app.selectbox(key="adapter_base").value == "tiny" and started == []
    plan = at("plan", "lora")
    assert any("its update s B A alone" in info.value for info in plan.info)
    app.button(key="adapter_merge").click().run()
    sound(app)
    assert app.session_state.model == "tiny+lora" and "LoRA, rank 4" in words(app)
    assert started[-1][:2] == ["profile", joined(tiny.parent / "lora", tiny)]
