"""Perplexity by named conventions, each against code that is not ours: the published script, Hugging Face's loop and
lm-eval itself."""

import ast
import copy
import hashlib
import json
import math
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet as pq

from karipap_core.cli.frame import main
from karipap_core.errors import InputError
from karipap_core.evaluation.conventions import measure_conventions, non_overlapping, rolling, sliding
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.wikitext import is_wikitext, joined_rows, wikitext_pages
from karipap_core.models.load import load_model
from karipap_core.text import Text, read_text
from karipap_core.tradeoffs.run import Extras, run
from tests.helpers import architectures
from tests.helpers.paths import REPOSITORY, SHARED

SCRIPT = REPOSITORY / "docs" / "perplexity.py"
WIKI = (
    ' \n = Ñandú = \n \n The ñandú ran 3 @.@ 5 km , said " he " . It \'s fast ( very ) . \n = = Life = = \n \n'
    " In 2000 , it ran @-@ off ; nobody saw it . \n \n = Two = \n \n A second article , of 1 @,@ 000 words : no . \n"
)
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
    code = SCRIPT.read_text()
    assert code[code.index("import math") :] in (SCRIPT.parents[1] / "README.md").read_text()
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


# ---- what each figure means -------------------------------------------------------------------------------------


def test_figures_are_sums_over_the_scored_text(loaded):
    """A model that takes every token to be equally likely loses ln 263 at each: every figure by hand."""
    model, tokenizer = copy.deepcopy(loaded[0]), loaded[1]
    torch.nn.init.zeros_(model.get_input_embeddings().weight)  # tied to the head
    joined = joined_rows(STORIES)
    n = len(joined.encode())
    found = measure_conventions(model, tokenizer, STORIES, names=["non-overlapping", "sliding"], window=50)
    slid = found["sliding"]
    assert (slid["text_tokens"], slid["tokens"], slid["text_bytes"]) == (n + 1, n, n)  # the bos is not of the text
    assert slid["words"] == len(joined.split())
    apart = found["non-overlapping"]
    windows = (n + 1) // 50
    assert apart["windows"] == windows and apart["tokens"] == 49 * windows
    # The first window's unscored token is the bos, every other's a byte of text.
    assert apart["text_bytes"] == 49 * windows
    raw = joined.encode()
    scored = [i for i in range(50 * windows - 1) if (i + 1) % 50]
    begins = [i for i in scored if not raw[i : i + 1].isspace() and (i == 0 or raw[i - 1 : i].isspace())]
    assert apart["words"] == len(begins)
    for entry in found.values():
        assert entry["loss"] == pytest.approx(math.log(263), rel=1e-6)
        assert entry["perplexity"] == pytest.approx(263, rel=1e-5)
        bits = math.log2(263) * entry["tokens"] / entry["text_bytes"]
        assert entry["bits_per_byte"] == pytest.approx(bits) and entry["byte_perplexity"] == pytest.approx(2**bits)
        per_word = math.log(263) * entry["tokens"] / entry["words"]
        assert math.log(entry["word_perplexity"]) == pytest.approx(per_word)
        assert entry["text"]["sha256"] == hashlib.sha256(raw).hexdigest() and entry["dense"] is None


def test_the_dense_model_stands_beside_with_an_interval(loaded):
    model, tokenizer = loaded
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(0.5)
    found = measure_conventions(other, tokenizer, STORIES, dense=model, window=40)
    alone = measure_conventions(model, tokenizer, STORIES, window=40)
    for name, entry in found.items():
        assert entry["dense"] == {key: alone[name][key] for key in entry["dense"]}
        assert entry["rise"] == entry["loss"] - entry["dense"]["loss"]
        assert entry["rise_low"] < entry["rise"] < entry["rise_high"]
    assert found["rolling"]["over"] == "documents" and found["rolling"]["units"] == 3
    same = measure_conventions(model, tokenizer, STORIES, dense=model, names=["sliding"], window=40)["sliding"]
    assert same["rise"] == same["rise_low"] == same["rise_high"] == 0


def test_a_tokenizer_that_closes_with_eos_is_scored_as_it_is(folder, tmp_path):
    from tokenizers import Tokenizer
    from tokenizers.processors import TemplateProcessing

    shutil.copytree(folder, tmp_path / "eos")
    core = Tokenizer.from_file(str(tmp_path / "eos" / "tokenizer.json"))
    core.post_processor = TemplateProcessing("$A </s>", "$A $B </s>", [("</s>", architectures.EOS)])
    core.save(str(tmp_path / "eos" / "tokenizer.json"))
    found = measure_conventions(*load_model(tmp_path / "eos"), STORIES, names=["sliding"])["sliding"]
    n = len(joined_rows(STORIES).encode())
    assert (found["text_tokens"], found["tokens"], found["text_bytes"]) == (n + 1, n, n - 1)


@pytest.mark.parametrize("name", ["gpt2", "falcon", "mistral", "gemma2"])
def test_other_architectures(name, tmp_path):
    """Learned positions, alibi or none, a sliding attention, soft caps on the logits; a tokenizer without specials."""
    model, tokenizer = load_model(architectures.make(name, tmp_path / name))
    text = Text("short", (STORIES.documents[0],))
    found = measure_conventions(model, tokenizer, text, dense=model)
    n = len(text.documents[0].encode())
    assert found["sliding"]["tokens"] == n - 1 and found["rolling"]["tokens"] == n
    assert all(entry["rise"] == 0 and entry["rise_low"] in (0, None) for entry in found.values())


def test_without_a_tokenizer_bytes_are_tokens(loaded):
    found = measure_conventions(loaded[0], None, STORIES, window=32)
    n = len(joined_rows(STORIES).encode())
    assert found["sliding"]["tokens"] == n - 1 and found["rolling"]["units"] == 3
    assert any("neither bos nor eos" in note for note in found["rolling"]["notes"])


# ---- what is said and what is refused ---------------------------------------------------------------------------


def test_windows_that_are_not_the_papers_are_named(loaded):
    found = measure_conventions(*loaded, STORIES, names=["non-overlapping", "sliding"])
    for entry in found.values():
        assert entry["window"] == 256 and "2048 tokens; this model has 256" in entry["notes"][0]
    assert found["sliding"]["stride"] == 128
    short = measure_conventions(*loaded, Text("s", ("A short one.",)), names=["non-overlapping"])["non-overlapping"]
    assert (short["windows"], short["window"], short["tokens"]) == (1, 13, 12)
    assert "one window of 13" in short["notes"][-1] and short["dense"] is None


def test_papers_windows_are_taken_where_the_model_has_the_positions(tmp_path):
    model, tokenizer = load_model(architectures.make("llama", tmp_path / "m", max_position_embeddings=4096))
    text = Text("long", (STORIES.documents[1] * 50,))
    assert non_overlapping(model, tokenizer, text).sample.window == 2048
    cutting = sliding(model, tokenizer, text)
    assert (cutting.sample.window, cutting.sample.stride, cutting.notes) == (2048, 512, ())
    assert rolling(model, tokenizer, text).sample.window == 4096


def test_what_does_not_fit_is_refused_in_a_sentence(loaded, tmp_path):
    model, tokenizer = loaded
    for names, more, said in (
        (["fast"], {}, "'fast' is not one of non-overlapping, sliding, rolling"),
        (["non-overlapping"], {"window": 257}, "256 positions"),
        (["non-overlapping"], {"window": 1}, "2 tokens at least"),
        (["sliding"], {"window": 8, "stride": 8}, "stride < window"),
        (["rolling"], {"window": 300}, "256 positions"),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            measure_conventions(model, tokenizer, STORIES, names=names, **more)
    with pytest.raises(InputError, match="at least 2"):
        measure_conventions(model, None, Text("one", ("a",)))
    encoder = architectures.make("bert", tmp_path / "bert")
    with pytest.raises(InputError, match="no perplexity"):
        evaluate_folder(encoder, against=encoder, text=STORIES, conventions=["sliding"])


def test_wikitext_without_lm_eval_says_what_to_install(loaded, wiki, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval.tasks.wikitext.preprocess_wikitext", None)
    found = measure_conventions(*loaded, read_text(wiki), names=["rolling", "sliding"])
    assert "pip install lm-eval" in found["rolling"]["missing"] and found["sliding"]["perplexity"] > 1


# ---- the text ---------------------------------------------------------------------------------------------------


def test_rows_of_wikitext_are_its_lines_as_the_hub_has_them(wiki, tmp_path, monkeypatch):
    """The same text as a file, as Parquet in a folder of splits, and by its name from the hub."""
    rows = [line + "\n" if line.strip() else "" for line in (WIKI * 3).split("\n")[:-1]]
    assert rows[:4] == ["", " = Ñandú = \n", "", ' The ñandú ran 3 @.@ 5 km , said " he " . It \'s fast ( very ) . \n']
    text = read_text(wiki)
    assert is_wikitext(text) and joined_rows(text) == "\n\n".join(rows)
    (tmp_path / "splits").mkdir()
    pq.write_table(pa.table({"text": rows}), tmp_path / "splits" / "test-00000-of-00001.parquet")
    pq.write_table(pa.table({"text": ["no"]}), tmp_path / "splits" / "train-00000-of-00001.parquet")
    assert read_text(tmp_path / "splits").documents == text.documents

    class Hub:
        @staticmethod
        def load_dataset(path, name, split):
            assert (path, name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "test")
            return {"text": rows}

    monkeypatch.setitem(sys.modules, "datasets", Hub)
    fetched = read_text("wikitext-2-raw-v1")
    assert fetched.documents == text.documents and read_text(fetched.path) == fetched


def test_articles_are_those_of_the_document_level_data_set(wiki):
    pages = wikitext_pages(read_text(wiki))
    assert len(pages) == 6 and [page.strip().split("\n")[0] for page in pages[:2]] == ["= Ñandú = ", "= Two = "]
    assert "= = Life = =" in pages[0]
    file = SHARED / "data/wikitext-2-raw/wiki.test.raw"
    if file.is_file():
        assert len(wikitext_pages(read_text(file))) == 62  # items of lm-eval's task


def test_a_copy_without_blank_lines_says_so(loaded, tmp_path):
    file = tmp_path / "wiki.test.raw"
    file.write_text(re.sub(r"(?m)^ \n", "", WIKI * 9), encoding="utf-8")
    found = measure_conventions(*loaded, read_text(file), names=["non-overlapping"])["non-overlapping"]
    assert "lacks the blank lines" in found["notes"][0]


def test_other_parquet_is_documents_and_what_is_none_is_refused(tmp_path):
    pq.write_table(pa.table({"text": ["one\n", "", "two"]}), tmp_path / "a.parquet")
    assert read_text(tmp_path / "a.parquet").documents == ("one", "two")
    pq.write_table(pa.table({"page": ["one"]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"no parquet")
    for name, said in (
        ("b.parquet", "column `text`"),
        ("c.parquet", "not valid Parquet"),
        ("", "one file of a test split"),
    ):
        with pytest.raises(InputError, match=said):
            read_text(tmp_path / name)


def test_the_hub_out_of_reach_is_one_sentence():
    pytest.importorskip("datasets")
    with pytest.raises(InputError, match=r"could not be fetched from the hub \(.*\): name a text file"):
        read_text("wikitext")


# ---- the verbs --------------------------------------------------------------------------------------------------


def test_evaluate_shows_a_row_a_convention(folder, tmp_path, capsys):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>".join(STORIES.documents), encoding="utf-8")
    argv = ["evaluate", str(folder), "--against", str(folder), "--text", str(file), "--max-tokens", "100"]
    assert main([*argv, "--conventions", "non-overlapping,sliding", "--window", "64"]) == 0
    printed = capsys.readouterr().out
    assert "+0.00 % (+0.00 to +0.00 %, no measurable difference)" in printed
    assert re.search(r"sliding: \d+ windows of 64 tokens, stride 32; \d+ of \d+ tokens scored", printed)


def test_a_finished_run_gets_the_conventions_that_it_lacks(folder, tmp_path):
    from karipap_core import story as pipeline

    plan = pipeline.make_plan(folder, 0.8, rule="uniform", metric="weight")
    how = {"text": STORIES, "scoring": Scoring(32, max_tokens=64), "out": tmp_path / "run"}
    first = run(folder, plan, extras=Extras(conventions=["sliding"]), **how)
    assert list(first["conventions"]) == ["sliding"]
    again = run(folder, plan, extras=Extras(conventions=["non-overlapping", "sliding"]), **how)
    assert again["created"] == first["created"] and set(again["conventions"]) == {"sliding", "non-overlapping"}
    assert again["conventions"]["sliding"] == first["conventions"]["sliding"]
    assert again["conventions"]["non-overlapping"]["rise"] is not None
