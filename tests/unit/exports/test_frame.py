"""What all exports share: nothing half-written, what is told before, the card, the measurement in another process."""

import ast
import json
from pathlib import Path

import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.errors import InputError
from karipap_core.exports import TARGETS, check
from karipap_core.exports.export import RECORD, export, plan_of, record_of, summary
from karipap_core.exports.exporter import EXPORTERS, Exporter, Line, error_of, exporter_named
from karipap_core.exports.source import BOTH, GRID, MATRIX, PAIR, Source
from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from karipap_core.text import Text
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.usefixtures("quick_fits")
ENGINES = REPOSITORY / "karipap_core" / "exports" / "engines"
TEXT = Text("words", (" ".join(f"word {number}" for number in range(400)),))
FORMS = {
    "q": ("dense", "int4", GRID),
    "k": ("qlr", None, BOTH),
    "o": ("lowrank", None, PAIR),
    "up": ("mpo", None, MATRIX),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A tiny model with a weight in each form."""
    root = tmp_path_factory.mktemp("exports")
    model = make("llama_untied", root / "model")
    entries = {}
    for weight in open_checkpoint(model).weights:
        if weight.role in FORMS and weight.compressible:
            network, quantize, _ = FORMS[weight.role]
            kind = Dense if network == "dense" else NETWORKS[network]
            entries[weight.name] = kind.for_shape(*weight.shape, 4, quantize=quantize).to_json()
    return folder_of(model, root / "small", Plan(model_entry(open_checkpoint(model)), "weight", entries))


def test_a_part_adds_up_to_the_weight_of_the_compressed_model(folder):
    source, seen = Source(folder), set()
    for part in source.parts():
        role = {weight.name: weight.role for weight in open_checkpoint(folder.with_name("model")).weights}[part.name]
        assert part.form == FORMS[role][2]
        seen.add(part.form)
        found = torch.zeros(part.shape, dtype=torch.float64)
        if part.grid is not None:  # by hand, from the stored codes
            scales, zeros = (
                each.double().repeat_interleave(part.grid.group, 1) for each in (part.grid.scales, part.grid.zeros)
            )
            found += scales[:, : part.shape[1]] * (part.grid.codes.double() - zeros[:, : part.shape[1]])
        if part.pair is not None:
            found += part.pair[0].double() @ part.pair[1].double()
        if part.form != MATRIX:
            torch.testing.assert_close(found, source.exact(part.name), rtol=1e-6, atol=1e-9)
    assert seen == {GRID, BOTH, PAIR, MATRIX}
    assert {part.form for part in Source(folder, plain=True).parts()} == {MATRIX}


def test_what_changes_is_told_before_anything_is_written(folder, tmp_path):
    out, heard = tmp_path / "out", []

    def tell(line: str) -> None:
        assert not out.exists() and not any(tmp_path.iterdir())
        heard.append(line)

    found = export(folder, "transformers", out, tell=tell)
    assert heard[: len(found["summary"])] == found["summary"]
    assert found | {"bytes": None} == plan_of(folder, "transformers", out) | {"bytes": None}
    assert record_of(out) == found
    errors = {line["weight"]: line["error"] for line in found["weights"]}
    assert errors.keys() == set(Source(folder).names)


def test_an_engine_that_fails_leaves_nothing_and_its_last_words_are_shown(folder, tmp_path, monkeypatch):
    script = tmp_path / "broken.py"
    script.write_text("import sys\nprint('first', file=sys.stderr)\nsys.exit('the engine is on fire')\n")
    monkeypatch.setattr(type(exporter_named("transformers")), "script", str(script))
    with pytest.raises(InputError, match="the engine is on fire"):
        export(folder, "transformers", tmp_path / "out", check=TEXT)
    assert {file.name for file in tmp_path.iterdir()} == {"broken.py", "__pycache__"}


def test_the_measurement_is_the_engine_s_own(folder, tmp_path, monkeypatch):
    """An engine whose log-probabilities are all −2.5 is said to lose 2.5 nats a token."""
    script = tmp_path / "engine.py"
    script.write_text(
        "import sys\n"
        "class Engine:\n"
        "    name = 'mine 1.0'\n"
        "    def __init__(self, folder, asked):\n"
        "        assert 'karipap_core' not in sys.modules and sys.flags.isolated\n"
        "    def logprobs(self, window):\n"
        "        return [-2.5] * (len(window) - 1)\n"
        "    def write(self, prompt, new_tokens):\n"
        "        return list(range(new_tokens)), 0.5, 0.25\n"
    )
    monkeypatch.setattr(type(exporter_named("transformers")), "script", str(script))
    found = export(folder, "transformers", tmp_path / "out", check=TEXT, tokens=600)["measured"]
    own = check.ours(folder, check.questions(folder, TEXT, 600))
    assert found["loss"] == 2.5 and found["engine"] == "mine 1.0" and found["decode_tokens_per_second"] == 4
    assert found["karipap_loss"] == pytest.approx(-own.mean().item())
    assert found["difference"] == pytest.approx(2.5 + own.mean().item())
    assert found["largest"] == pytest.approx((own + 2.5).abs().max().item())
    assert "2.5000 nats a token" in (tmp_path / "out" / "README.md").read_text()


def test_both_sides_read_the_same_windows_each_without_the_one_before(folder):
    asked = check.questions(folder, TEXT, 500, 100)
    assert [len(window) for window in asked.windows] == [100] * 5
    joined = [token for window in asked.windows for token in window]
    whole = check.questions(folder, TEXT, 500, 250).windows
    assert joined == whole[0] + whole[1]
    alone = check.ours(folder, check.Asked(asked.windows[3:4], [1], 1))
    torch.testing.assert_close(alone[0], check.ours(folder, asked)[3])


@pytest.mark.parametrize(
    "argv, words",
    [
        (["{model}", "--to", "transformers"], "is not a model compressed by Karipap"),
        (["{folder}", "--to", "transformer"], "transformers"),
        (["{folder}", "--to", "transformers", "--check", "--python", "/no/python"], "/no/python cannot be run"),
    ],
)
def test_what_does_not_fit_is_one_sentence_and_writes_nothing(folder, tmp_path, argv, words, capsys):
    places = {"model": folder.with_name("model"), "folder": folder}
    argv = ["export", *(word.format(**places) for word in argv), "--out", str(tmp_path / "out")]
    assert cli.main(argv) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(folder, tmp_path):
    out = tmp_path / "out"
    export(folder, "transformers", out)
    (out / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="already exists"):
        export(folder, "transformers", out)
    export(folder, "transformers", out, plain=True, overwrite=True)
    assert {line["stored"] for line in json.loads((out / RECORD).read_text())["weights"]} == {"dense, float32"}


def test_sentences_join_what_is_stored_alike_and_say_the_worst():
    lines = [
        Line("a", "x", "int4", 0.0, 10, 20),
        Line("b", "x", "int4", 0.0, 10, 20),
        Line("c", "x", "dense", 0.25, 90, 5, why="so"),
    ]
    assert summary(lines) == [
        "2 weights as int4: unchanged; 40 B in Karipap's folder, 20 B here.",
        "1 weight as dense (so): off by 2.5e-01 of its size at most; 5 B in Karipap's folder, 90 B here.",
    ]


def test_an_error_is_relative_to_the_weight():
    assert error_of(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]])) == 0.75
    assert error_of(torch.zeros(2, 2), torch.zeros(2, 2)) == 0


def test_an_engine_that_is_not_here_is_asked_for_before_anything_is_written(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(type(exporter_named("transformers")), "engine", "no-such-engine")
    with pytest.raises(InputError, match="no-such-engine is not installed here.*--python"):
        export(folder, "transformers", tmp_path / "out", check=TEXT)
    assert not any(tmp_path.iterdir())


def test_a_model_that_writes_nothing_is_not_measured(tmp_path):
    model = make("bert", tmp_path / "model")
    weights = [weight for weight in open_checkpoint(model).weights if weight.compressible]
    entries = {weight.name: Dense.for_shape(*weight.shape, quantize="int8").to_json() for weight in weights}
    small = folder_of(model, tmp_path / "small", Plan(model_entry(open_checkpoint(model)), "weight", entries))
    with pytest.raises(InputError, match="predicts no next token"):
        export(small, "transformers", tmp_path / "out", check=TEXT)
    assert not (tmp_path / "out").exists()
    assert export(small, "transformers", tmp_path / "out")["bytes"] > 0


@pytest.mark.parametrize("target", TARGETS)
def test_every_exporter_is_there_under_its_name(target):
    exporter = exporter_named(target)
    assert isinstance(exporter, Exporter) and exporter.name == target and EXPORTERS[target] is exporter
    assert (ENGINES / exporter.script).is_file()


@pytest.mark.parametrize("script", sorted(file.name for file in ENGINES.glob("*.py")))
def test_an_engine_is_run_without_karipap(script):
    for node in ast.walk(ast.parse((ENGINES / script).read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not any(name.split(".")[0] == "karipap_core" for name in names)
        assert not (isinstance(node, ast.ImportFrom) and node.level)
