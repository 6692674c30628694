"""Shadow: figures against plain transformers, what is written down, and prompts that are refused."""

import gzip
import json

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.deployment.shadow import diverges_at, read_prompts, shadow
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from tests.helpers.folders import folder_of

PROMPTS = ["def main():", "the square of seven is", "x"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    from tests.helpers.architectures import make

    root = tmp_path_factory.mktemp("shadow")
    model = make("llama", root / "model")
    return model, folder_of(model, root / "out")


@pytest.fixture(scope="module")
def found(world):
    return shadow(world[1], PROMPTS, max_new_tokens=12, device="cpu")


def test_the_figures_are_those_of_plain_transformers(world, found):
    """Generation without a cache, KL from softmax in float64, written out."""
    tokenizer = AutoTokenizer.from_pretrained(world[0])
    models = [AutoModelForCausalLM.from_pretrained(each, dtype=torch.float32).eval() for each in world]
    for row, prompt in zip(found["prompts"], PROMPTS, strict=True):
        start = torch.tensor([[tokenizer.bos_token_id, *tokenizer(prompt, add_special_tokens=False).input_ids]])
        texts = []
        for model in models:
            ids = start
            for _ in range(12):
                with torch.no_grad():
                    ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
            texts.append(ids[0, start.shape[1] :])
        assert row["dense"] == tokenizer.decode(texts[0], skip_special_tokens=True)
        assert row["compressed"] == tokenizer.decode(texts[1], skip_special_tokens=True)
        with torch.no_grad():
            p, q = (
                functional.softmax(
                    model(torch.cat([start, texts[0][None]], 1)).logits[0, start.shape[1] - 1 : -1].double(), -1
                )
                for model in models
            )
        kl = (p * (p / q).log()).sum(-1)
        assert torch.allclose(torch.tensor(row["token_kl"], dtype=torch.float64), kl, rtol=1e-4, atol=1e-6)
        assert row["kl"] == pytest.approx(kl.mean().item(), rel=1e-4)
        assert row["agreement"] == pytest.approx((p.argmax(-1) == q.argmax(-1)).double().mean().item())
        assert row["diverges_at"] == diverges_at(*(text.tolist() for text in texts))
        assert row["tokens"] == 12 and row["dense"].startswith(row["shared"])
    assert found["diverged"] == sum(row["diverges_at"] is not None for row in found["prompts"]) > 0
    assert found["kl"] == pytest.approx(sum(row["kl"] for row in found["prompts"]) / 3)


def test_it_is_kept_in_the_folder_with_what_it_is_about(world, found):
    kept = read_json(world[1] / "shadow.json")
    assert kept["result"] == json.loads(json.dumps(found)) and kept["created"] > 0
    assert kept["of"]["dense"] == open_checkpoint(world[0]).fingerprint
    assert kept["of"]["tensors"] == open_checkpoint(world[1], compressed=True).fingerprint


def test_a_model_beside_itself_agrees_everywhere(world, monkeypatch):
    from karipap_core.models import load as hf

    load = hf.load_model
    monkeypatch.setattr(hf, "load_model", lambda _, **more: load(world[0], **more))
    same = shadow(world[1], PROMPTS[:1], max_new_tokens=5, device="cpu")
    (row,) = same["prompts"]
    assert row["kl"] == 0 and row["agreement"] == 1 and row["diverges_at"] is None
    assert row["dense"] == row["compressed"] == row["shared"]


def test_where_two_texts_differ():
    assert diverges_at([1, 2, 3], [1, 2, 3]) is None
    assert diverges_at([1, 2, 3], [1, 5, 3]) == 1
    assert diverges_at([1, 2, 3], [1, 2]) == diverges_at([1, 2], [1, 2, 3]) == 2
    assert diverges_at([], []) is None


def test_prompts_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    assert read_prompts(tmp_path / "a.txt") == ["one", " two "]
    (tmp_path / "b.json").write_text('["one\\nline two", "x"]')
    assert read_prompts(tmp_path / "b.json") == ["one\nline two", "x"]


LISTS = [b"{}", b'["", "x"]', b"[1]", b"[", b"[]"]


@pytest.mark.parametrize(
    "name, data", [*(("a.json", each) for each in LISTS), ("a.txt", b" \n"), ("a.txt", b"\xff\x01")]
)
def test_files_that_hold_no_prompts_are_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match="Prompts"):
        read_prompts(tmp_path / name)
    with pytest.raises(InputError, match="none.txt does not exist"):
        read_prompts(tmp_path / "none.txt")


def test_a_prompt_is_a_line_however_lines_end(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffone\u2028still one\r\ntwo\r\n".encode())
    assert read_prompts(tmp_path / "a.txt") == ["one\u2028still one", "two"]
    (tmp_path / "b.JSON").write_text('["a\u2029b"]', "utf-8")
    assert read_prompts(tmp_path / "b.JSON") == ["a\u2029b"]


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.txt", gzip.compress(b"one\n", mtime=0), "Prompts FILE is packed with gzip: unpack it first."),
        ("a.txt", b"one\ntwo \xe9\n", "Prompts FILE is not text in UTF-8 (line 2): save it as UTF-8."),
        ("a.txt", b"one\ntw\0o\n", "Prompts FILE: number 2 holds a NUL character, which no text does."),
        ("a.json", b'["\\ud800"]', "Prompts FILE holds half of a surrogate pair (\\ud800 to \\udfff alone)."),
        ("a.json", b"[\n1\n2]", "Prompts FILE is not valid JSON (line 3, column 1: Expecting ',' delimiter)."),
    ],
)
def test_what_is_wrong_with_prompts_is_said(tmp_path, name, data, sentence):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError) as raised:
        read_prompts(tmp_path / name)
    assert str(raised.value) == sentence.replace("FILE", str(tmp_path / name))


def test_what_cannot_be_compared_is_refused(world, made):
    with pytest.raises(InputError, match="does not fit the window of 256"):
        shadow(world[1], ["x" * 250], device="cpu")
    with pytest.raises(InputError, match="needs a prompt"):
        shadow(world[1], [], device="cpu")
    with pytest.raises(InputError, match="Prompts: number 1 is no text in UTF-8"):
        shadow(world[1], ["a\udcff"], device="cpu")  # what Python makes of a byte 0xff on the command line
    with pytest.raises(InputError, match="not a model compressed"):
        shadow(world[0], PROMPTS)
    with pytest.raises(InputError, match="encoder"):
        shadow(world[1], PROMPTS, against=made("bert"))


def test_the_verb(world, tmp_path, capsys):
    (tmp_path / "p.txt").write_text("def f(x):\n")
    argv = ["shadow", str(world[1]), "--against", str(world[0]), "--prompts", str(tmp_path / "p.txt")]
    argv += ["--tokens", "6", "--device", "cpu", "--progress", "off"]
    assert cli.main([*argv, "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["prompts"]
    assert {"prompt", "dense", "compressed", "kl", "agreement", "diverges_at"} <= row.keys()
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert "diverges at token" in out and "def f(x):" in out
    assert cli.main([*argv, "--prompt", "typed", "--prompt", "twice", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["prompts"]
    assert [row["prompt"] for row in rows] == ["def f(x):", "typed", "twice"]
    assert cli.main(["shadow", str(world[1]), "--progress", "off"]) == 2
    assert "--prompt TEXT" in capsys.readouterr().err
