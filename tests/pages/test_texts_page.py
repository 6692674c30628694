"""The choice of a text: which is offered, what is said of it, and what each way of giving one leads to."""

from types import SimpleNamespace

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.evaluation import suits
from karipap_core.text import Text
from karipap_core.workspace.kept import keep_json
from pages.parts import texts
from tests.helpers.opened import opened, sound, words


@pytest.fixture
def model(tiny_llama):
    return open_checkpoint(tiny_llama)


def looked_at(model, spec: str, side: str, bits: float, used: dict | None = None, name: str = "a text") -> None:
    """As if a text had been held against the model."""
    sha256 = Text(name, (spec + side,)).sha256
    document = {
        "format": "karipap-suits",
        "version": 1,
        "spec": spec,
        "stamp": suits.stamp_of(spec, side),
        "text": {"name": name, "sha256": sha256},
        "generated": spec.startswith(suits.SAMPLES),
        "loss": 2.0,
        "guessing": 6.0,
        "bits_per_byte": bits,
        "compressor_bits_per_byte": 3.0,
        "tokens": 2048,
        "text_bytes": 6000,
        "used": used or {},
    }
    keep_json(suits.folder_of(model) / f"{sha256[:32]}.json", document)


def checks(started) -> list[list[str]]:
    """The checks of texts among the jobs that were started."""
    return [argv for argv in started if argv[0] == "text"]


def heal():
    """Heal's page has a text of the library's train side and a button, whatever else there is."""
    return opened("heal")


def test_first_paint_starts_nothing_and_offers_the_check(model, started):
    app = sound(heal())
    assert app.selectbox("heal_text").value == "library" and checks(started) == []
    assert "Not checked yet whether the model was trained for such text" in words(app)
    app.button("heal_check").click().run()
    assert checks(started) == [["text", str(model.path), "--side", "train"]]
    assert "Looking whether this text suits the model" in words(app)


def test_a_text_that_suits_is_said_to_and_one_that_does_not_is_warned_of_at_the_button_too(model):
    looked_at(model, "", "train", 1.0)
    app = sound(heal())
    assert "1.00 bits for each byte of this text" in words(app) and not app.warning
    assert app.button("heal").label == "Heal"


def test_a_model_of_other_text_is_offered_its_own_samples_and_the_library_with_a_warning(model):
    looked_at(model, "", "train", 7.0)
    app = sound(heal())
    assert app.selectbox("heal_text").value == "samples"
    assert "This model was not trained on Python source" in words(app)
    assert "16,384 tokens that the dense model writes itself (seed 2" in words(app)
    app.selectbox("heal_text").select("library").run()
    assert "plainly not trained for text such as a text" in app.warning[0].value
    assert app.button("heal").label == "Heal on this text all the same"
    app.run()
    assert app.selectbox("heal_text").value == "library"  # chosen by hand: it stays


def test_what_was_used_last_is_offered_first(model, tmp_path):
    file = tmp_path / "models" / "mine.txt"
    file.write_text("a text " * 100, "utf-8")
    looked_at(model, "", "train", 1.0, {"train": 10.0})
    looked_at(model, str(file), "train", 1.1, {"train": 20.0})
    app = sound(heal())
    assert app.selectbox("heal_text").value == str(file) and "mine.txt" in app.selectbox("heal_text").options
    file.unlink()
    assert sound(heal()).selectbox("heal_text").value == "library"


def test_what_was_used_and_does_not_suit_is_not_offered_again(model):
    looked_at(model, "", "heldout", 7.0, {"heldout": 10.0})
    assert texts.offered(SimpleNamespace(checkpoint=model), "held-out") == ["--text", "samples"]


@pytest.mark.parametrize("side", ["heldout", "calibration"])
def test_the_board_measures_on_the_text_that_is_offered(model, side):
    """Also where only the other side of the library was looked at, as before damages are measured."""
    assert texts.offered(SimpleNamespace(checkpoint=model), "held-out") == []
    looked_at(model, "", side, 7.0)
    assert texts.offered(SimpleNamespace(checkpoint=model), "held-out") == ["--text", "samples"]


def test_a_path_is_confined_and_a_field_is_asked_of_files_that_have_fields(model, tmp_path, started):
    app = heal()
    app.selectbox("heal_text").select("file").run()
    assert app.button("heal").disabled
    for path in ("/etc/passwd", "../../etc/passwd", "//server/x", "~root"):
        app.text_input("heal_path").input(path).run()
        said = "This path is not inside the folders of KARIPAP_MODEL_ROOTS."
        assert [error.value.replace("\\", "") for error in app.error] == [said] and app.button("heal").disabled
    file = tmp_path / "models" / "rows.jsonl"
    file.write_text('{"story": "one"}\n', "utf-8")
    app.text_input("heal_path").input(str(file)).run()
    app.text_input("heal_field").input("story").run()
    app.button("heal_check").click().run()
    assert checks(started) == [["text", str(model.path), "--text", f"{file}::story", "--side", "train"]]


@pytest.mark.parametrize("name", ["../x", "a,b", "/etc", "a b", "-x"])
def test_a_data_set_is_known_by_its_name_alone(model, name, started):
    app = heal()
    app.selectbox("heal_text").select("hub").run()
    app.text_input("heal_hub").input(name).run()
    assert "names no data set" in app.error[0].value and app.button("heal").disabled
    app.text_input("heal_hub").input("some/stories").run()
    app.text_input("heal_hub_field").input("story").run()
    app.button("heal_check").click().run()
    assert checks(started) == [["text", str(model.path), "--text", "hub:some/stories,,train,story", "--side", "train"]]


def test_an_upload_is_kept_and_what_is_none_is_refused_in_its_own_name(model):
    app = heal()
    app.selectbox("heal_text").select("upload").run()
    app.file_uploader("heal_file").upload("rows.jsonl", b'{"story": "one"}\n').run()
    assert "Text file rows.jsonl: line 1 is no string" in app.error[0].value.replace("\\", "")
    app.text_input("heal_field").input("story").run()
    assert not app.error and "Not checked yet" in words(app)


def test_images_are_asked_for_where_a_model_sees_and_taken_from_permitted_folders_alone(tmp_path, monkeypatch):
    def script():
        from types import SimpleNamespace

        import streamlit as st

        from pages.parts import texts

        def view(*towers):
            weights = [SimpleNamespace(compressible=True, tower=tower) for tower in towers]
            return SimpleNamespace(checkpoint=SimpleNamespace(weights=weights))

        st.session_state.plain = texts.images(view(""), "plain")
        st.session_state.seen = texts.images(view("vision", "language"), "seeing")

    (tmp_path / "pictures").mkdir()
    monkeypatch.setenv("KARIPAP_MODEL_ROOTS", str(tmp_path))
    app = AppTest.from_function(script, default_timeout=60).run()
    assert [box.key for box in app.text_input] == ["seeing_images"] and app.session_state.seen == []
    app.text_input(key="seeing_images").set_value(str(tmp_path / "pictures")).run()
    assert app.session_state.seen == ["--images", str(tmp_path / "pictures")] and not app.error
    app.text_input(key="seeing_images").set_value("/etc").run()
    assert app.session_state.seen == [] and len(app.error) == 1 and app.session_state.plain == []
