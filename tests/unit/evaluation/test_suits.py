"""Whether a text suits a model: held against plain loops, other compressors' sizes and models of known kinds."""

import json
import math
import zlib

import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import main
from karipap_core.errors import InputError
from karipap_core.evaluation import own_text as own
from karipap_core.evaluation.suits import compressed_bits, found_for, known, parts, suits, text_of
from karipap_core.evaluation.wrong_text import same_text, share_of, unsuited
from karipap_core.models import abreast, load
from karipap_core.models.load import load_model
from karipap_core.text import Text, hub_parts, read_text
from karipap_core.workspace import Workspace
from tests.helpers.models import llama
from tests.helpers.paths import SHARED

PROSE = Text("prose", tuple(f"Story {n}. " + "Once upon a time there was a little girl. " * 9 for n in range(40)))


def found(bits: float, compressor: float = 3.0, loss: float = 2.0, generated: bool = False, name: str = "t") -> dict:
    return {
        "text": {"name": name, "sha256": name},
        "generated": generated,
        "loss": loss,
        "guessing": 6.0,
        "bits_per_byte": bits,
        "compressor_bits_per_byte": compressor,
    }


def test_the_rule_warns_beyond_three_quarters_of_a_compressors_bits_and_near_blind_guessing():
    assert unsuited(found(2.24)) is None
    assert unsuited(found(2.26)) == (
        "The model was plainly not trained for text such as t: it needs 2.26 bits for each byte of it, a compressor "
        "that knows nothing beforehand 3.00. What is measured on it says little of what a compression loses: take text "
        "of the model's own kind, or its own samples."
    )
    assert (
        "hardly better than guessing blindly" in unsuited(found(1.0, loss=5.71))
        and unsuited(found(1, loss=5.69)) is None
    )


def test_a_text_that_is_half_known_is_told_of_where_a_better_one_is_known():
    better = found(0.6, name="own kind")
    assert unsuited(found(1.51), [better, found(0.1, generated=True)]) is not None
    assert unsuited(found(1.49), [better]) is None
    assert unsuited(found(1.6), [found(0.1, generated=True)]) is None
    assert unsuited(found(1.6), [found(1.6), better]).endswith("and 20% for own kind, which suits it better.")


def test_own_samples_are_never_wrong_but_show_an_untrained_model():
    assert unsuited(found(2.9, generated=True)) is None
    assert unsuited(found(2.9, loss=5.8, generated=True)).endswith(
        "it is untrained or damaged, and no text is the right one for it."
    )


@pytest.mark.parametrize("lengths", [[5], [1000], [3, 900, 3, 3], [40] * 30, [0, 10, 0, 10], [7, 2000, 9]])
@pytest.mark.parametrize("count, signs", [(4, 50), (1, 10), (7, 400), (4, 10_000)])
def test_parts_are_of_the_text_in_its_order_and_share_nothing(lengths, count, signs):
    whole, documents = "", []
    for length in lengths:  # no two characters are the same, so that each place is known
        documents.append("".join(chr(0x4E00 + len(whole) + i) for i in range(length)))
        whole += documents[-1]
    cut = parts(Text("t", tuple(documents)), count, signs)
    joined = ["".join(part.documents) for part in cut]
    assert 1 <= len(joined) <= count and all(part in whole and 0 < len(part) <= signs for part in joined)
    places = [whole.index(part) for part in joined]
    assert all(a + len(part) <= b for a, b, part in zip(places, places[1:], joined, strict=False))
    if len(lengths) == 1:
        assert places[0] == 0 and places == sorted(places)
        assert [place - number * len(whole) // count for number, place in enumerate(places)] == pytest.approx(
            [0] * len(places), abs=signs
        )


def test_the_compressors_bits_are_those_of_the_best():
    data = b"".join(f"{n}: the same line again\n".encode() for n in range(300))
    assert 0 < compressed_bits(data) <= 8 * len(zlib.compress(data, 9)) / len(data)
    noise = bytes(torch.randint(256, (4000,), generator=torch.Generator().manual_seed(1)).tolist())
    assert compressed_bits(noise) == pytest.approx(8, rel=0.01)


def test_bits_per_byte_are_those_of_a_plain_loop(made, tmp_path):
    """One part, all of whose bytes are scored behind the bos: Σ −log2 p over the bytes."""
    checkpoint = open_checkpoint(made("llama_untied"))
    text = Text("one", ("A few words, and a few more.",))
    got = suits(checkpoint, text)
    model, tokenizer = load_model(checkpoint)
    bits = size = 0
    for part in parts(text, 4, 10_000):
        for document in part.documents:
            ids = tokenizer(document, add_special_tokens=False)["input_ids"]
            row = ids if tokenizer.bos_token_id is None else [tokenizer.bos_token_id, *ids]
            with torch.no_grad():
                log_p = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
            bits -= sum(log_p[at, token].item() for at, token in enumerate(row[1:])) / math.log(2)
            size += len(document.encode()) if len(row) > len(ids) else len(tokenizer.decode(ids[1:]).encode())
    assert got["text_bytes"] == size
    assert got["bits_per_byte"] == pytest.approx(bits / size, rel=1e-5)
    assert got["guessing"] == pytest.approx(math.log(model.config.vocab_size))


def test_a_large_model_is_read_block_by_block(made, tmp_path, monkeypatch):
    model = open_checkpoint(made("llama_untied"))
    whole = suits(model, PROSE, workspace=Workspace(tmp_path / "whole"))
    monkeypatch.setattr(abreast, "LARGE", 0)
    monkeypatch.setattr(load, "load_model", None)
    apart = suits(model, PROSE, workspace=Workspace(tmp_path / "apart"))
    assert apart["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert [apart[key] for key in ("tokens", "text_bytes", "window")] == [
        whole[key] for key in ("tokens", "text_bytes", "window")
    ]


def test_it_is_kept_by_the_text_and_looked_up_by_what_it_was_called(made, tmp_path, monkeypatch):
    checkpoint = open_checkpoint(made("llama_untied"))
    file = tmp_path / "prose.txt"
    file.write_text("<|endoftext|>".join(PROSE.documents), "utf-8")
    assert known(checkpoint) == []
    first = suits(checkpoint, read_text(file), file, "calibration", use=True)
    monkeypatch.setattr("karipap_core.evaluation.suits._measured", None)  # it is not measured again
    assert suits(checkpoint, read_text(file), file, "calibration") == first
    assert found_for(known(checkpoint), str(file), "heldout") == first
    assert set(first["used"]) == {"calibration"} and unsuited(first) is not None  # its weights are random
    file.write_text("another text", "utf-8")
    assert found_for(known(checkpoint), str(file), "heldout") is None


def test_the_bundled_model_knows_python_and_not_prose(demo_model):
    python = suits(demo_model, text_of(None, demo_model, "heldout"))
    assert unsuited(python) is None and 0.25 < share_of(python) < 0.45
    prose = suits(demo_model, Text("prose", (" ".join(hard_words(4000)),)))
    assert unsuited(prose, [python]).startswith("The model was plainly not trained for text such as prose")


def hard_words(count: int) -> list[str]:
    generator = torch.Generator().manual_seed(3)
    signs = torch.randint(97, 123, (count, 6), generator=generator).tolist()
    return ["".join(map(chr, word)) for word in signs]


def test_a_trained_model_of_stories(stories):
    """The facts behind the threshold: stories suit, Python and Wikipedia do not."""
    data = SHARED / "data"
    tales = suits(stories, read_text(data / "tinystories/tinystories_val_part.txt"))
    assert unsuited(tales) is None and tales["bits_per_byte"] == pytest.approx(1.05, abs=0.15)
    for text in (text_of(None, stories, "calibration"), read_text(data / "wikitext-2-raw/wiki.test.raw")):
        assert "plainly not trained" in unsuited(suits(stories, text), [tales])


# ---- the model's own samples ------------------------------------------------------------------------------------


def test_own_samples_are_the_same_for_a_seed_and_others_for_another(made, monkeypatch):
    monkeypatch.setattr(own, "TOKENS", 2000)
    checkpoint = open_checkpoint(made("llama_untied"))
    calibration, held_out = (text_of("samples", checkpoint, side) for side in ("calibration", "heldout"))
    again = own._written(checkpoint, 0, own.TOKENS, "cpu", lambda *_: None)
    assert list(calibration.documents) == again and calibration.generated and "(generated), seed 0" in calibration.name
    assert not set(calibration.documents) & set(held_out.documents)
    assert text_of("samples:1", checkpoint, "calibration").documents == held_out.documents
    assert read_text(calibration.path) == calibration
    assert "no text is the right one" in unsuited(suits(checkpoint, calibration))  # its weights are random


def test_tokens_are_drawn_from_the_models_own_probabilities():
    """Temperature 1 and nothing cut off: first tokens of many rows have the frequencies that softmax says."""
    model = llama()
    model.lm_head.weight.data *= 3
    start = torch.full((4000, 1), 7)
    drawn = own._draw(model, start, 1, 256, None, torch.Generator().manual_seed(0))[:, 0]
    with torch.no_grad():
        chances = model(input_ids=start[:1]).logits[0, -1].softmax(-1)
    expected = 4000 * chances
    big = expected > 5
    seen = torch.bincount(drawn, minlength=256).float()
    chi2 = ((seen - expected)[big] ** 2 / expected[big]).sum().item()
    assert big.sum() >= 15 and chi2 < big.sum().item() + 5 * math.sqrt(2 * big.sum().item())


def test_a_cache_changes_nothing(monkeypatch):
    model = llama()
    start = torch.full((3, 1), 7)
    kept = own._draw(model, start, 12, 256, None, torch.Generator().manual_seed(5))
    forward = model.forward

    def without(**more):
        result = forward(**{**more, "use_cache": False})
        assert "past_key_values" not in more
        return result

    monkeypatch.setattr(model, "forward", without)
    assert torch.equal(kept, own._draw(model, start, 12, 256, None, torch.Generator().manual_seed(5)))


def test_who_has_no_samples_says_why(made):
    with pytest.raises(InputError, match="only causal language models have samples"):
        text_of("samples", made("bert"), "heldout")
    with pytest.raises(InputError, match="a seed is a whole number, such as samples:7"):
        text_of("samples:x", made("llama_untied"), "heldout")


# ---- the hub ----------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The real loader of `datasets`, which finds local files where it would ask the hub; gives what was asked for."""
    datasets = pytest.importorskip("datasets")
    real, asked = datasets.load_dataset, []

    def load(dataset, config, split, streaming):
        asked.append((dataset, config, split))
        return real("json", data_files={split: str(tmp_path / "rows.jsonl")}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return asked


def test_a_data_set_of_the_hub_is_read_once_and_kept(hub, tmp_path, monkeypatch):
    rows = [{"story": f"number {n} of the stories", "n": n} for n in range(50)] + [{"story": None, "n": 0}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    monkeypatch.setattr("karipap_core.text.HUB_BYTES", 400)
    name = "hub:some/stories,plain,validation,story"
    text = text_of(name, "no model is needed", "heldout")
    assert text.documents == tuple(row["story"] for row in rows[:18])  # the first of more than 400 letters
    assert text.name == "some/stories, plain, validation (Hugging Face hub)"
    assert text_of(name, "", "calibration") == text == read_text(text.path)
    assert hub == [("some/stories", "plain", "validation")]
    with pytest.raises(InputError, match="has no field text of strings, it has story, n: hub:ID,CONFIG,SPLIT,FIELD"):
        text_of("hub:some/stories,plain,validation", "", "heldout")


def test_the_hub_out_of_reach_is_one_sentence(monkeypatch):
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"^hub:some/where could not be fetched from the hub \(.*\): name a text file"):
        read_text("hub:some/where")


@pytest.mark.parametrize("name", ["hub:", "hub:../x", "hub:a/b/c", "hub:a,b,c,d,e", "hub:a,b/c", "hub:a b", "hub:/etc"])
def test_names_that_are_none_never_reach_the_hub(name):
    with pytest.raises(InputError, match="names no data set: hub:ID"):
        hub_parts(name)


# ---- one text for both ------------------------------------------------------------------------------------------


def test_the_same_text_for_both_is_told_of():
    one = {"name": "a.txt", "sha256": "1", "path": "/a.txt"}
    assert same_text(one, {"text": "a.txt", "sha256": "1", "path": "/b.txt"}).startswith("a.txt is calibrated on and")
    quarter = {"text": "a.txt, a quarter", "sha256": "2", "path": "/a.txt"}
    assert same_text(one, quarter).startswith("a.txt, a quarter, which is calibrated on, comes from the file")
    library = {"name": "held-out", "sha256": "1", "path": None}
    assert same_text(library, {"text": "calibration", "sha256": "2", "path": None}) is None


def test_verbs_warn_before_they_work_and_stay_silent_where_silence_is_asked_for(made, tmp_path, capsys):
    file = tmp_path / "prose.txt"
    file.write_text("<|endoftext|>".join(PROSE.documents), "utf-8")
    argv = ["profile", str(made("llama_untied")), "--metrics", "loss", "--text", str(file)]
    assert main(argv) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert len(said) == 1 and "plainly not trained for text such as prose.txt" in said[0]
    assert main([*argv, "--progress", "off"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert main([*argv[:2], "--metrics", "weight", "--text", str(file)]) == 0  # it reads no text
    assert "warning" not in capsys.readouterr().err
    assert main(["text", str(made("llama_untied")), "--text", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warning"] == said[0].removeprefix("warning: ")
