"""Perplexity by named conventions, each against code that is not ours: the published script, Hugging Face's loop and
lm-eval itself."""

import ast
import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path

import architectures
import pytest
import torch

from karipap_core.evaluate.conventions import measure_conventions
from karipap_core.hf import load_model
from karipap_core.text import Text, read_text, wikitext_pages

SCRIPT = Path(__file__).parents[1] / "docs" / "perplexity.py"
SHARED = Path(__file__).parents[2] / "shared"
WIKI = (
    " \n = Ñandú = \n \n The ñandú ran 3 @.@ 5 km , said \" he \" . It 's fast ( very ) . \n = = Life = = \n \n"
    " In 2000 , it ran @-@ off ; nobody saw it . \n \n = Two = \n \n A second article , of 1 @,@ 000 words : no . \n"
)  # fmt: skip
STORIES = Text("stories", ("The ñandú ran: 'wait', said the 鳥. " * 9, "def f(x):\n    return x\n" * 7, "end 🙂"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random Llama with 256 positions; a byte is a token, and the tokenizer adds a bos by itself."""
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    folder = architectures.make("llama", tmp_path_factory.mktemp("models") / "llama")
    core = Tokenizer.from_file(str(folder / "tokenizer.json"))
    core.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", architectures.BOS)])
    core.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def loaded(folder):
    return load_model(folder)


@pytest.fixture
def wiki(tmp_path) -> Path:
    file = tmp_path / "wiki.test.raw"
    file.write_text(WIKI * 3, encoding="utf-8")
    return file


def script(capsys, monkeypatch, *argv) -> float:
    """What docs/perplexity.py prints for these arguments."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, argv)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return float(capsys.readouterr().out.split()[1].rstrip(":"))


def code_lines(file: Path) -> int:
    body = ast.parse(file.read_text()).body[1:]  # the first is the docstring
    return len({line for node in body for line in range(node.lineno, node.end_lineno + 1)})


# ---- against code that is not ours ------------------------------------------------------------------------------


def test_the_published_script_gives_the_same_perplexity(folder, loaded, wiki):
    assert code_lines(SCRIPT) <= 20
    argv = [sys.executable, str(SCRIPT), str(folder), str(wiki), "64"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    printed, windows = float(done.stdout.split()[1].rstrip(":")), int(done.stdout.split()[2])
    found = measure_conventions(*loaded, read_text(wiki), names=["non-overlapping"], window=64)["non-overlapping"]
    assert found["perplexity"] == pytest.approx(printed, rel=1e-5)
    assert found["windows"] == windows and found["tokens"] == 63 * windows


def test_documents_between_end_of_text_marks_are_rows_too(folder, loaded, tmp_path, capsys, monkeypatch):
    file = tmp_path / "stories.txt"
    file.write_text("\n<|endoftext|>\n".join(STORIES.documents), encoding="utf-8")
    printed = script(capsys, monkeypatch, folder, file, 100)
    found = measure_conventions(*loaded, read_text(file), names=["non-overlapping"], window=100)["non-overlapping"]
    assert found["perplexity"] == pytest.approx(printed, rel=1e-5)


@pytest.mark.parametrize("name", ["wikitext-2-raw/wiki.test.raw", "tinystories/tinystories_val_part.txt"])
def test_a_trained_model_has_the_scripts_perplexity(name, tmp_path, capsys, monkeypatch):
    """On the first 12 kB of a real text; README has the whole ones."""
    model, file = SHARED / "models/stories260K", SHARED / "data" / name
    if not (model.is_dir() and file.is_file()):
        pytest.skip("shared/ with stories260K and its texts is not here")
    part = tmp_path / file.name
    part.write_bytes(file.read_bytes()[:12_000].rsplit(b"\n", 1)[0])
    printed = script(capsys, monkeypatch, model, part, 512)
    found = measure_conventions(*load_model(model), read_text(part), names=["non-overlapping"])["non-overlapping"]
    assert found["perplexity"] == pytest.approx(printed, rel=1e-4) and found["window"] == 512


@pytest.mark.parametrize(("window", "stride"), [(100, 40), (64, 63), (256, 128)])
def test_sliding_is_hugging_faces_loop(loaded, window, stride):
    """Their loop, with the sum of a window's losses for its mean times its predictions less one."""
    model, tokenizer = loaded
    ids = tokenizer("\n\n".join(STORIES.documents), return_tensors="pt").input_ids
    total = counted = last = 0
    for begin in range(0, ids.shape[1], stride):
        end = min(begin + window, ids.shape[1])
        part, targets = ids[:, begin:end], ids[:, begin:end].clone()
        targets[:, : last - end] = -100
        with torch.no_grad():
            predicted = int((targets[:, 1:] != -100).sum())
            total += model(input_ids=part, labels=targets).loss.item() * predicted
        counted, last = counted + predicted, end
        if end == ids.shape[1]:
            break
    found = measure_conventions(*loaded, STORIES, names=["sliding"], window=window, stride=stride)["sliding"]
    assert found["tokens"] == counted == ids.shape[1] - 1
    assert found["loss"] == pytest.approx(total / counted, rel=1e-5)


@pytest.mark.parametrize(("real", "window"), [(False, 50), (True, 256)])
def test_rolling_is_what_lm_eval_reports_for_wikitext(real, window, loaded, tmp_path):
    """The harness's own task on local pages: its scoring, its detokenizer, its counts of words and bytes."""
    pytest.importorskip("lm_eval")
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks.wikitext import preprocess_wikitext as theirs

    text = Text("wiki", ((WIKI * 3).strip("\n"),))
    if real:  # the first paragraphs of two articles of WikiText
        file = SHARED / "data/wikitext-2-raw/wiki.test.raw"
        if not file.is_file():
            pytest.skip("shared/ with WikiText-2 is not here")
        lines = file.read_text("utf-8").split("\n")
        second = next(i for i, line in enumerate(lines[1:], 1) if re.fullmatch(r" = [^=]+ = ", line))
        text = Text("wiki", ("\n".join(lines[:3] + lines[second : second + 3]),))
    pages = wikitext_pages(text)
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"page": page}) + "\n" for page in pages))
    task = ConfigurableTask(
        config={
            "task": "wikitext_local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(tmp_path / "pages.jsonl")}, "cache_dir": str(tmp_path)},
            "output_type": "loglikelihood_rolling",
            "test_split": "test",
            "doc_to_text": "",
            "doc_to_target": theirs.wikitext_detokenizer,
            "process_results": theirs.process_results,
            "metric_list": [{"metric": m} for m in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
        }
    )
    model, tokenizer = loaded
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, max_length=window)
    want = evaluate(harness, {"wikitext_local": task}, bootstrap_iters=0)["results"]["wikitext_local"]
    found = measure_conventions(model, tokenizer, text, names=["rolling"], window=window)["rolling"]
    assert found["units"] == len(pages) > 1 and found["windows"] > len(pages)
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert math.log(found[metric]) == pytest.approx(math.log(want[f"{metric},none"]), rel=1e-5)
