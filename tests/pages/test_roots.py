"""Folders under the model roots are put there by others: whatever lies in them, pages work for all other models."""

import json
import os
import resource
import socket
import time
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.workspace import Workspace
from pages.parts import model, roots
from tests.helpers import app_page
from tests.helpers.opened import opened, sound


def captions(app) -> str:
    return "\n".join(caption.value.replace("\\", "") for caption in app.caption)


def weights_in(folder: Path) -> Path:
    """A folder that looks like a model: the header of an empty safetensors file."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def config(data: str | bytes):
    def make(folder: Path) -> None:
        (weights_in(folder) / "config.json").write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def link(name: str, target: str):
    def make(folder: Path) -> None:
        weights_in(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return make


def pipe(name: str):
    def make(folder: Path) -> None:
        weights_in(folder)
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return make


def bound_socket(folder: Path) -> None:
    weights_in(folder)
    here = os.getcwd()
    os.chdir(folder)  # a socket's path must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("config.json")
    finally:
        os.chdir(here)


def instead(name: str):
    def make(folder: Path) -> None:
        weights_in(folder)
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return make


def cut(folder: Path) -> None:
    (weights_in(folder) / "model.safetensors").write_bytes(b"\xff" * 20)


OUT = "is a link that leads out of the folders of KARIPAP_MODEL_ROOTS."
# What lies in the folder `bad`, and what is said of it.
BROKEN = {
    "config too deep": (config('{"a":' * 70 + "1" + "}" * 70), "bad/config.json nests values more than 64 deep"),
    "config no JSON": (config("{"), "bad/config.json is not valid JSON"),
    "config empty": (config(""), "bad/config.json is empty"),
    "config binary": (config(b"\xff\xfe\x00"), "bad/config.json is in UTF-16"),
    "config a list": (config("[]"), "bad/config.json holds a list, not an object."),
    "config of a wrong type": (config('{"model_type": ["llama"]}'), "gives ['llama'] as model_type, which is no text."),
    "config large": (config(" " * (roots.MOST_CONFIG + 1)), "bad/config.json has more than"),
    "config with a number of many digits": (config('{"a": ' + "1" * 500 + "}"), "holds a number of 500 digits"),
    "config a pipe": (pipe("config.json"), "bad/config.json is a named pipe, not a regular file"),
    "config a socket": (bound_socket, "bad/config.json is a socket"),
    "config a folder": (instead("config.json"), "bad/config.json is a folder, not a regular file"),
    "config a link to itself": (
        link("config.json", "config.json"),
        "bad/config.json is a link that leads back to itself",
    ),
    "config a link to nothing": (link("config.json", "nothing"), "which does not exist"),
    "config a link out": (link("config.json", "/etc/passwd"), f"its config.json {OUT}"),
    "config a device": (link("config.json", "/dev/zero"), f"its config.json {OUT}"),
    "weights a pipe": (pipe("model.safetensors"), "bad/model.safetensors is a named pipe, not a regular file"),
    "weights a folder": (instead("model.safetensors"), "bad/model.safetensors is a folder, not a regular file"),
    "weights a link out": (link("model.safetensors", "/etc/passwd"), f"its model.safetensors {OUT}"),
    "weights a link to nothing": (link("model.safetensors", "nothing"), "which does not exist"),
    "weights cut": (cut, "its model.safetensors is cut short or is no safetensors file."),
    "a link to itself": (lambda folder: folder.symlink_to(folder.name), "it is a link that leads back to itself."),
    "a link to nothing": (lambda folder: folder.symlink_to("nothing"), "it does not exist, or is a link that leads"),
    "a link out": (lambda folder: folder.symlink_to("/etc"), f"it {OUT}"),
    "a link to all": (lambda folder: folder.symlink_to("/"), f"it {OUT}"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_left_out_with_the_reason_and_every_other_model_works(profiled, tiny, case):
    make, why = BROKEN[case]
    make(tiny.parent / "bad")
    model.found.clear()
    began = time.monotonic()
    app = sound(opened())
    assert len(app.get("plotly_chart")) == 2 and time.monotonic() - began < 10
    assert set(app.selectbox(key="models").options) == {"demo model (Python source)", "tiny"}
    assert "1 left out:\n- bad: " in captions(app) and why in captions(app)
    asked = AppTest.from_file(app_page.APP, default_timeout=30)
    asked.query_params["model"] = "bad"
    asked.run()
    assert not asked.exception and asked.session_state.model == "bad" and not asked.get("plotly_chart")
    (error,) = (error.value.replace("\\", "") for error in asked.error)
    assert error.startswith("The model bad cannot be opened: ") and why in error
    assert error.endswith("Choose another model above.")
    # Those of the box, by which others are opened, may be pressed.
    assert all(button.disabled for button in asked.button if not button.key.startswith("open_"))


@pytest.mark.parametrize(
    "data",
    [
        {"text_config": [1]},
        {"max_position_embeddings": "many"},
        {"quantization_config": "karipap"},
        {"architectures": 3},
    ]
    + [{"num_hidden_layers": -1}, {"vocab_size": {}}, {"model_type": ""}, {"torch_dtype": []}],
)
def test_a_config_of_wrong_types_that_only_opening_finds_takes_nobody_elses_page_down(profiled, tiny, data):
    folder = tiny.parent / "odd"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes((tiny / "model.safetensors").read_bytes())
    (folder / "config.json").write_text(json.dumps(data))
    model.found.clear()
    sound(opened())
    app = AppTest.from_file(app_page.APP, default_timeout=30)
    app.query_params["model"] = "odd"
    app.run()
    assert not app.exception and app.session_state.model == "odd"
    app.switch_page("pages/deploy.py")
    app.query_params["model"] = "odd"
    app.run()
    assert not app.exception and len(app.error) <= 1


def test_names_that_are_no_text_or_too_long_are_left_out(profiled, tiny):
    for name in (b"\xff\xfe", b"new\nline", b"\xe2\x80\xaeliame", b"n" * 200):
        weights_in(Path(os.fsdecode(os.path.join(os.fsencode(tiny.parent), name))))
    (tiny / os.fsdecode(b"\xff.json")).write_text("{}")
    model.found.clear()
    app = sound(opened())
    assert len(app.get("plotly_chart")) == 2
    assert "4 left out:" in captions(app) and "its name is too long, or has signs that cannot be shown." in captions(
        app
    )


def test_a_folder_that_may_not_be_read_is_left_out(profiled, tiny, monkeypatch):
    """Asked of the function, since the superuser may read everything."""
    weights_in(tiny.parent / "locked")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(roots.os, "scandir", scandir)
    model.found.clear()
    assert "1 left out:\n- locked: it may not be read by this user." in captions(sound(opened()))


@pytest.mark.parametrize("kind", ["missing", "a file", "nothing"])
def test_roots_that_are_no_folders_are_told(profiled, tmp_path, monkeypatch, kind):
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv("KARIPAP_MODEL_ROOTS", "" if kind == "nothing" else str(tmp_path / kind))
    model.found.clear()
    app = AppTest.from_file(app_page.APP, default_timeout=30).run()
    assert not app.exception
    said = {"missing": "missing: it does not exist", "a file": "a file: it is a file, not a folder.", "nothing": ""}[
        kind
    ]
    assert said in captions(app)


def test_links_within_the_roots_are_followed_once_and_never_in_circles(tiny):
    (tiny.parent / "again").symlink_to(tiny)
    (tiny.parent / "round").symlink_to(tiny.parent)
    deep = tiny.parent / "deep"
    deep.mkdir()
    (deep / "back").symlink_to(tiny.parent)
    model.found.clear()
    assert list(model.listing().models.values()).count(str(tiny.parent / "again")) == 1
    assert [alias for alias in model.listing().models if alias != "demo"] == ["again"]


def test_what_is_looked_at_is_bounded_and_the_page_says_so(profiled, tiny, monkeypatch):
    for number in range(60):
        (tiny.parent / f"z{number}").mkdir()
    monkeypatch.setattr(roots, "MOST_FOLDERS", 20)
    model.found.clear()
    app = sound(opened())
    assert "There is more under KARIPAP_MODEL_ROOTS than is looked at" in captions(app)
    monkeypatch.setattr(roots, "MOST_FOLDERS", 2000)
    monkeypatch.setattr(roots, "MOST_ENTRIES", 30)
    assert roots.scan([str(tiny.parent)]).cut
    monkeypatch.setattr(roots, "MOST_ENTRIES", 3000)
    assert not roots.scan([str(tiny.parent)]).cut
    monkeypatch.setattr(roots, "MOST_IN_ONE", 10)
    assert roots.scan([str(tiny.parent)]).cut


def test_of_many_broken_folders_some_are_named_and_all_are_counted(profiled, tiny):
    for number in range(9):
        config("{")(tiny.parent / f"bad{number}")
    model.found.clear()
    said = captions(sound(opened()))
    assert "9 left out:" in said and said.count("is not valid JSON") == model.MOST_SAID and "… and 4 more." in said


def test_ten_thousand_folders_are_listed_in_seconds(tmp_path):
    for number in range(10_000):
        (tmp_path / f"f{number}").mkdir()
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    listing = roots.scan([str(tmp_path)])
    assert listing.cut and time.monotonic() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


def test_a_link_that_was_put_in_a_models_place_since_the_list_was_made_is_not_followed(profiled, tiny, tmp_path):
    sound(opened())
    tiny.rename(tmp_path / "moved")
    tiny.symlink_to(tmp_path / "moved")
    app = opened()
    assert not app.exception and "is gone" in app.error[0].value


def test_measurements_that_ship_with_a_model_bring_no_file_from_elsewhere(profiled, tiny, tmp_path):
    """A link among them would put any file that this user may read into the workspace."""
    checkpoint = open_checkpoint(tiny)
    (tmp_path / "secret.json").write_text("{}")
    shipped = tiny / "karipap" / "curves"
    shipped.mkdir(parents=True)
    (shipped / "own.json").write_text("{}")
    (shipped / "file.json").symlink_to(tmp_path / "secret.json")
    (tiny / "karipap" / "runs").symlink_to(tmp_path)
    (tiny / "karipap" / "measured.json").write_text(json.dumps({"identity": checkpoint.identity}))
    sound(opened())
    home = Workspace().model_dir(checkpoint.key)
    assert (home / "curves" / "own.json").is_file()
    assert not (home / "curves" / "file.json").exists() and not (home / "runs").exists()


@pytest.mark.parametrize("broken", ["{", "[]", "pipe"])
def test_measurements_that_ship_with_a_model_and_are_broken_do_not_keep_it_from_opening(profiled, tiny, broken):
    (tiny / "karipap").mkdir()
    if broken == "pipe":
        os.mkfifo(tiny / "karipap" / "measured.json")
    else:
        (tiny / "karipap" / "measured.json").write_text(broken)
    assert len(sound(opened()).get("plotly_chart")) == 2
    sound(opened("tradeoff"))
