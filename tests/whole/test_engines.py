"""Compressed folders in what others run: plain transformers, accelerate, torch.compile, lm-eval, and dense again."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli import frame as cli
from karipap_core.layers.linear import TensorNetworkLinear
from karipap_core.models.load import load_model
from karipap_core.models.sites import sites
from karipap_core.networks import NETWORKS
from karipap_core.networks.stored import values
from karipap_core.networks.tree.groups import group_names
from karipap_core.networks.tree.network import group_specs
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.folders import folder_of
from tests.helpers.paths import REPOSITORY

KINDS = {
    "lowrank": ("lowrank", None),
    "lowrank_int4": ("lowrank", "int4"),
    "mpo": ("mpo", None),
    "mpo_int8": ("mpo", "int8"),
    "dense_int3": ("dense", "int3"),
    "tree": ("tree", None),
}
MORE = {  # quantized: only what is particular to them is looked at
    "mpo_int4": ("mpo", "int4"),
    "qlr": ("qlr", None),
    "qlr_int8": ("qlr", "int8"),
    "tree_int4": ("tree", "int4"),
    "tree_int8": ("tree", "int8"),
}
pytestmark = pytest.mark.usefixtures("quick_fits")
IDS = torch.tensor([[256, 100, 101, 102, 32], [256, 120, 61, 49, 10]])


def plan_of(model: Path, network: str, form: str | None) -> Plan:
    """Every compressible weight in one network; a tree over every group of like weights."""
    from karipap_core.networks.dense import Dense

    checkpoint = open_checkpoint(model)
    weights = [weight for weight in checkpoint.weights if weight.compressible]
    if network == "tree":
        entries = {}
        for members in group_names(weights):
            specs = group_specs(members, checkpoint.weight(members[0]).shape, 6, quantize=form)
            entries |= {name: spec.to_json() for name, spec in zip(members, specs, strict=True)}
    else:
        kind = {"dense": Dense}.get(network) or NETWORKS[network]
        entries = {weight.name: kind.for_shape(*weight.shape, 8, quantize=form).to_json() for weight in weights}
    return Plan(model_entry(checkpoint), "weight", entries)


def plan_of_all(model: Path) -> Plan:
    """A role in each of KINDS; `tree` over the roles that are left."""
    plans = {kind: plan_of(model, *KINDS[kind]) for kind in KINDS}
    roles = dict(zip(("q", "k", "o", "gate", "down"), [kind for kind in KINDS if kind != "tree"], strict=True))
    entries = {
        weight.name: plans[roles.get(weight.role, "tree")].weights[weight.name]
        for weight in open_checkpoint(model).weights
        if weight.compressible
    }
    return Plan(plans["tree"].model, "weight", entries)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("engines")
    model = make("llama_untied", root / "model")
    made = {}

    def of(kind: str) -> Path:
        if kind not in made:
            plan = plan_of_all(model) if kind == "mixed" else plan_of(model, *(KINDS | MORE)[kind])
            made[kind] = folder_of(model, root / kind, plan)
        return made[kind]

    of.model = model
    return of


@torch.no_grad()
def written(model, ids: torch.Tensor, count: int, cache: bool) -> torch.Tensor:
    return model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, use_cache=cache
    )


@pytest.mark.parametrize("kind", KINDS | MORE)
def test_generate_writes_the_same_with_and_without_a_kv_cache(folders, kind):
    model = AutoModelForCausalLM.from_pretrained(folders(kind))
    assert sum(isinstance(module, TensorNetworkLinear) for module in model.modules()) == 14
    with_cache, without = (written(model, IDS, 20, cache) for cache in (True, False))
    assert torch.equal(with_cache, without) and with_cache.shape == (2, 25)
    assert len(set(with_cache[0, 5:].tolist())) > 1, "a model that repeats one token would hide a cache that is wrong"
    ids = IDS  # and the same as going through the logits by hand
    with torch.no_grad():
        for _ in range(20):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, with_cache)


@pytest.mark.parametrize("kind", KINDS | MORE)
def test_the_folder_is_the_model_in_memory(folders, kind, tmp_path):
    """Logits of the folder against the dense model with each Ŵ in place, whose cores were computed anew and never on
    disk; what is read from disk is the same integers, so that only the order of sums in float32 differs."""
    model, plan = folders.model, plan_of(folders.model, *(KINDS | MORE)[kind])
    study = Study(model, device="cpu", workspace=Workspace(tmp_path))
    memory, _ = load_model(study.checkpoint, dtype=torch.float64)
    found = sites(memory, study.checkpoint)
    with torch.no_grad():
        for name in plan.weights:
            spec = plan.spec(name)
            cores = values(spec, study.decompositions(plan.metric).stored(name, spec), torch.float64)
            found[name].get().copy_(spec.dense(cores))
        expected = memory.eval()(IDS).logits
        live = AutoModelForCausalLM.from_pretrained(folders(kind)).eval()
        error = (live(IDS).logits - expected).norm() / expected.norm()
        assert error < 1e-5  # 1e-3 is what may be lost; a wrong scale or zero point of one group costs more
        dense = load_model(study.checkpoint, dtype=torch.float64)[0].eval()(IDS).logits
    assert (dense - expected).norm() > 1e-3 * dense.norm(), "a plan that changes nothing would hide what is lost"
    # With a cache, token after token, the logits are those of the whole row.
    with torch.no_grad():
        past, rows = None, []
        for column in IDS.T:
            out = live(column[:, None], past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[:, 0])
    torch.testing.assert_close(torch.stack(rows, 1).double(), expected, rtol=1e-3, atol=1e-4)


def test_torch_compile_gives_the_same_logits(folders):
    """Every network and format of KINDS in one model, which is compiled once."""
    model = AutoModelForCausalLM.from_pretrained(folders("mixed")).eval()
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with torch.no_grad():
        expected = model(IDS).logits
        torch.testing.assert_close(compiled(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler for inductor here")
def test_torch_compile_with_its_own_backend(folders):
    """A block of lowrank weights through inductor, the default backend: C++ on a CPU, Triton on a GPU."""
    model = AutoModelForCausalLM.from_pretrained(folders("lowrank")).eval()
    layer = model.model.layers[0].mlp
    torch.compiler.reset()
    x = torch.randn(3, 5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(layer)(x), layer(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_device_map_auto(folders, kind, tmp_path):
    """accelerate places the modules: on one device where they fit, else on several and the disk."""
    plain = AutoModelForCausalLM.from_pretrained(folders(kind)).eval()
    expected = plain(IDS).logits.detach()
    model = AutoModelForCausalLM.from_pretrained(folders(kind), device_map="auto").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS.to(model.device)).logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    short = {"cpu": int(0.9 * plain.get_memory_footprint())} | {
        number: 0 for number in range(torch.cuda.device_count())
    }
    spread = AutoModelForCausalLM.from_pretrained(
        folders(kind), device_map="auto", max_memory=short, offload_folder=tmp_path, offload_buffers=True
    ).eval()
    assert "disk" in spread.hf_device_map.values()
    with torch.no_grad():
        torch.testing.assert_close(spread(IDS).logits.cpu(), expected, rtol=1e-3, atol=1e-3)
    assert torch.equal(written(spread, IDS, 5, True), written(plain, IDS, 5, True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_in_half_precision(folders, kind):
    plain = AutoModelForCausalLM.from_pretrained(folders(kind)).eval()
    model = AutoModelForCausalLM.from_pretrained(folders(kind), device_map="auto", dtype=torch.bfloat16).eval()
    assert {parameter.device.type for parameter in model.parameters()} == {"cuda"}
    with torch.no_grad():
        difference = model(IDS.cuda()).logits.float().cpu() - plain(IDS).logits
    assert difference.norm() < 0.05 * plain(IDS).logits.norm()
    torch.compiler.reset()
    compiled = torch.compile(model)
    with torch.no_grad():
        again = compiled(IDS.cuda()).logits.float().cpu() - plain(IDS).logits
    assert again.norm() < 0.05 * plain(IDS).logits.norm()
    assert torch.equal(written(model, IDS.cuda(), 8, True).cpu()[:, :5], IDS)


QUESTIONS = [
    {"question": "one two", "choices": [" three", " cat", " x"], "answer": 0},
    {"question": "a b", "choices": [" zzzz", " c"], "answer": 1},
    {"question": "def main", "choices": ["():", " is a", "!"], "answer": 0},
]
TASK = """task: pairs
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed here")
def test_lm_eval_scores_as_plain_transformers_does(folders, tmp_path):
    """Every log-likelihood that `lm_eval --model hf` finds, against the sum of log-probabilities written out."""
    folder = folders("mpo_int8")
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (tmp_path / "pairs.yaml").write_text(TASK.replace("FILE", str(tmp_path / "pairs.jsonl")))
    command = [sys.executable, "-m", "karipap_core.using", "lm_eval", "--model", "hf", "--tasks", "pairs"]
    command += ["--model_args", f"pretrained={folder},dtype=float32", "--include_path", str(tmp_path), "--log_samples"]
    command += ["--device", "cpu", "--batch_size", "2", "--output_path", str(tmp_path / "out")]
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    (samples,) = (tmp_path / "out").rglob("samples_pairs_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == len(QUESTIONS)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    right = 0
    for row in rows:
        question = row["doc"]
        scores = []
        for choice in question["choices"]:
            start = tokenizer(question["question"], add_special_tokens=False).input_ids
            end = tokenizer(choice, add_special_tokens=False).input_ids
            with torch.no_grad():
                logits = model(torch.tensor([start + end])).logits[0].double().log_softmax(-1)
            scores.append(sum(logits[len(start) - 1 + i, token].item() for i, token in enumerate(end)))
        found = [float(logprob) for logprob, _ in row["filtered_resps"]]
        assert found == pytest.approx(scores, rel=1e-3)
        right += max(range(len(scores)), key=scores.__getitem__) == question["answer"]
    (results,) = (tmp_path / "out").rglob("results_*.json")
    assert json.loads(results.read_text())["results"]["pairs"]["acc,none"] == pytest.approx(right / len(QUESTIONS))


def test_densify_says_what_it_gives_back_and_what_it_does_not(folders, tmp_path, capsys):
    folder = folders("mpo_int8")
    argv = ["densify", str(folder), "--out", str(tmp_path / "dense"), "--progress", "off"]
    assert cli.main(argv) == 0
    assert "gives back quality but not memory" in capsys.readouterr().out
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(tmp_path / "dense")!r}).eval()
assert "karipap_core" not in sys.modules
with torch.no_grad():
    torch.save(model(torch.tensor({IDS.tolist()})).logits, {str(tmp_path / "logits.pt")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    ours = AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits.detach()
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, rtol=1e-4, atol=1e-4)
    assert not {"verify.json", "karipap.json"} & {file.name for file in (tmp_path / "dense").iterdir()}
