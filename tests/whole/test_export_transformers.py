"""Exports for transformers, run by the very lines that they come with, where there is no Karipap."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from karipap_core.compressed.densify import densify
from karipap_core.exports.export import export
from karipap_core.exports.exporter import Wanted
from tests.helpers.architectures import make
from tests.helpers.engines import engine_python
from tests.helpers.plans import in_turn

pytestmark = pytest.mark.usefixtures("quick_fits")
IDS = [[256, 100, 101, 102, 32, 9, 250, 7]]
MIXED = ("int4g16", "int8", "int3", "int2")
QLR = ("qlr int4 3", "qlr int4 5", "qlr int3 8")
CASES = {
    "llama": ("llama", MIXED),  # several schemes, a head tied
    "llama alone": ("llama_untied", ("int4g16",)),  # one scheme below 8 bits: with zero points
    "llama eight": ("llama_untied", ("int8",)),
    "llama repaired": ("llama_untied", QLR),
    "biases repaired": ("qwen2", QLR),
    "gemma": ("gemma2", MIXED),
    "experts": ("mixtral", ("int4g16", "int8")),  # as they are on disk transformers stacks them: all dense
    "stacks": ("gpt_oss", ("int4g16", "int8")),
    "gpt2": ("gpt2", MIXED),  # Conv1D: dense
    "bare gpt2": ("gpt2_bare", QLR),
    "bert": ("bert", QLR),
    "bert masked": ("bert_masked", MIXED),
    "opt": ("opt", MIXED),
}
# Behind the lines of the card: the logits (or states).
BEHIND = """
import torch
ids = torch.tensor(IDS)
def of(model):
    with torch.no_grad():
        return model(ids)[0]
torch.save(of(model), "found.pt")
"""


def expected(folder: Path, scratch: Path) -> torch.Tensor:
    """Logits of the ordinary model in float32 whose weights are the Ŵ: the dense folder that Karipap's densify writes,
    with what it rounds put in its place again."""

    densify(folder, scratch)
    config = AutoConfig.from_pretrained(scratch)
    name = (config.architectures or ["Model"])[0]
    auto = AutoModelForCausalLM if "LM" in name and "Bert" not in name else AutoModel
    model = auto.from_pretrained(scratch, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(torch.tensor(IDS))[0]


@pytest.mark.parametrize("case", CASES)
def test_the_lines_of_the_card_give_our_logits(case, tmp_path):
    python = engine_python("engines", "compressed_tensors")
    name, kinds = CASES[case]
    folder = in_turn(make(name, tmp_path / "model"), tmp_path / "folder", *kinds)
    document = export(folder, "transformers", tmp_path / "out")
    lines = document["commands"].replace('dtype="auto"', "dtype=torch.float32")
    script = f"import torch\n{lines}\nmodel.eval()\nIDS = {IDS}\n{BEHIND}"
    done = subprocess.run([python, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found, wanted = torch.load(tmp_path / "found.pt"), expected(folder, tmp_path / "dense")
    assert (found - wanted).norm() < 1e-5 * wanted.norm()
    dense = AutoConfig.from_pretrained(tmp_path / "out")
    packed = [line for line in document["weights"] if "integers" in line["stored"]]
    assert bool(getattr(dense, "quantization_config", None)) == bool(packed)
    assert all(line["exact"] or line["rank"] for line in packed)


def test_twelve_layers_of_different_ranks_padded_and_not(tmp_path):
    """`rank_pattern` is regular expressions behind any prefix: layer 1 must not be taken for layer 11."""
    python = engine_python("engines", "compressed_tensors")
    model = make("llama_untied", tmp_path / "model", num_hidden_layers=13)
    kinds = [f"qlr int4 {rank}" for rank in (1, 7, 2, 6, 3, 5, 4, 8, 9)]
    folder = in_turn(model, tmp_path / "folder", *kinds)
    wanted = expected(folder, tmp_path / "dense")
    for one_rank in (False, True):
        out = tmp_path / f"out{one_rank}"
        document = export(folder, "transformers", out, Wanted(one_rank))
        lines = document["commands"].replace('dtype="auto"', "dtype=torch.float32")
        script = f"import torch\n{lines}\nmodel.eval()\nIDS = {IDS}\n{BEHIND}"
        done = subprocess.run([python, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-2000:]
        assert (torch.load(tmp_path / "found.pt") - wanted).norm() < 1e-5 * wanted.norm()
        ranks = {line["rank"] for line in document["weights"] if line["rank"]}
        assert ranks == ({9} if one_rank else set(range(1, 10)))
        assert json.loads((out / "adapter" / "adapter_config.json").read_text())["r"] == 9
