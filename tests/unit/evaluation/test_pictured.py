"""Images with their captions: what a model that sees makes of them, against transformers' own loss."""

import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.errors import InputError
from karipap_core.evaluation.pictured import in_words, measure_images
from karipap_core.images import read_images
from karipap_core.models.load import load_model
from karipap_core.models.pictures import shown
from karipap_core.text import Text, divide
from tests.helpers.architectures import make
from tests.helpers.many_kinds import add_processor, draw, make_kind

FAMILIES = ("llava", "gemma3", "qwen3_vl")


@pytest.fixture(scope="module", params=FAMILIES)
def seeing(request, tmp_path_factory):
    """(the folder of a model that sees, the folder of images)."""
    folder = tmp_path_factory.mktemp(request.param)
    model = make_kind(request.param, folder / "model")
    add_processor(request.param, model)
    return model, draw(folder / "images", 4)


def test_the_loss_of_captions_is_that_of_transformers(seeing):
    folder, pictures = seeing
    model, tokenizer = load_model(folder)
    checkpoint, images = open_checkpoint(folder), read_images(pictures)
    samples = shown(model, checkpoint, images)
    total = tokens = 0.0
    for sample, caption in zip(samples, images.captions, strict=True):
        assert tokenizer.decode(sample.targets) == caption
        labels = torch.where(sample.scored[None], sample.ids, -100)
        with torch.no_grad():
            loss = model(input_ids=sample.ids, labels=labels, **sample.more).loss
        total, tokens = total + float(loss) * len(sample.targets), tokens + len(sample.targets)
    found = measure_images(model, model, [checkpoint], images)
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-5) and found["tokens"] == tokens
    assert found["rise"] == 0 and found["kl"] == pytest.approx(0, abs=1e-9) and found["top1_agreement"] == 1
    assert "4 images of images" in in_words(found)


def test_an_image_matters(seeing):
    folder, pictures = seeing
    model, _ = load_model(folder)
    sample = shown(model, open_checkpoint(folder), read_images(pictures))[0]
    with torch.no_grad():
        seen = model(input_ids=sample.ids, **sample.more).logits
        other = {name: -value if value.is_floating_point() else value for name, value in sample.more.items()}
        assert not torch.allclose(seen, model(input_ids=sample.ids, **other).logits, atol=1e-6)


def test_images_without_captions_are_asked_about(tmp_path):
    add_processor("llava", folder := make_kind("llava", tmp_path / "model"))
    model, tokenizer = load_model(folder)
    samples = shown(model, open_checkpoint(folder), read_images(draw(tmp_path / "images", 1, captions=False)))
    assert tokenizer.decode(samples[0].targets).strip() == "Describe this image."


def test_a_text_with_images_is_another_text_and_is_divided(tmp_path):
    plain = Text("a", ("one two", "three", "four", "five"))
    both = plain.with_images(draw(tmp_path, 5))
    assert both.sha256 != plain.sha256
    one, other = divide(both)
    assert [file.name for file in one.images.files] == ["0.png", "2.png", "4.png"]
    assert [file.name for file in other.images.files] == ["1.png", "3.png"] and one.sha256 != other.sha256


def test_images_that_are_none_are_one_sentence(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_images(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no image"):
        read_images(tmp_path)
    draw(tmp_path / "broken", 3)
    whole = (tmp_path / "broken" / "1.png").read_bytes()
    (tmp_path / "broken" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"1.png cannot be read \(.+\): take it out"):
        read_images(tmp_path / "broken")
    (tmp_path / "broken" / "1.png").write_bytes(b"%!PS-Adobe not an image")
    with pytest.raises(InputError, match="none of the formats"):
        read_images(tmp_path / "broken")


def test_a_model_without_a_processor_says_so(tmp_path, capsys):
    pictures, out = draw(tmp_path / "images", 3), tmp_path / "plan.json"
    model = make("llama", tmp_path / "model")
    (tmp_path / "text.txt").write_text("one two three " * 300)
    argv = ["plan", str(model), "--budget", "0.7", "--text", str(tmp_path / "text.txt"), "--images", str(pictures)]
    assert cli.main([*argv, "--out", str(out), "--progress", "off"]) == 2 and not out.exists()
    assert "has no processor for images" in capsys.readouterr().err


def test_a_folder_with_cut_vision_is_measured_on_images_or_says_that_it_was_not(tmp_path):
    from karipap_core import story
    from karipap_core.plan.budget import Budget

    add_processor("gemma3", model := make_kind("gemma3", tmp_path / "model"))
    text = Text("squares", tuple(f"the square of {n} is {n * n}\n" * 4 for n in range(30)))
    plan = story.make_plan(model, Budget(kept=0.6, scope="vision"), rule="uniform", metric="weight", text=text)
    assert {name for name in plan.weights if plan.spec(name)} <= {n for n in plan.weights if "vision" in n}
    folder = story.compress(model, plan, tmp_path / "compressed").folder
    blind = story.evaluate(folder, model, text, max_tokens=200).document
    assert blind["rise"] == pytest.approx(0, abs=1e-6) and "images" not in blind
    assert any("of vision are compressed, which this text does not run" in note for note in blind["notes"])
    seen = story.evaluate(folder, model, text.with_images(draw(tmp_path / "images", 3)), max_tokens=200).document
    assert seen["images"]["count"] == 3 and seen["images"]["kl"] > 1e-5
    assert not any("does not run" in note for note in seen["notes"])
    assert any("On 3 images" in note for note in seen["notes"])
