"""Healing: only cores move, exactly what was said is minimised, a killed run goes on as if nothing had happened, and no
model comes back worse."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core.checkpoint import open_checkpoint
from karipap_core.heal import heal
from karipap_core.hf import write_compressed
from karipap_core.networks import NETWORKS
from karipap_core.plan import model_entry
from karipap_core.workspace import read_json
from tests.architectures import make

TEXT = "<|endoftext|>".join(f"the square of {n} is {n * n}, its cube {n**3}\n" for n in range(300))
QUICK = {"window": 32, "tokens": 64, "device": "cpu"}


def squeeze(source, out, network="lowrank", chi=6, quantize=None):
    """A folder with every block weight as a network at χ, without a study: plans and cores are all that it takes."""
    checkpoint = open_checkpoint(source)
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": "weight", "weights": {}}
    files = {}
    work = out.with_name(f"{out.name}-cores")
    work.mkdir(parents=True)
    for number, weight in enumerate(w for w in checkpoint.weights if w.compressible):
        spec = NETWORKS[network].for_shape(*weight.shape, chi, quantize=quantize)
        stored = store(spec, checkpoint.read(weight.name))
        plan["weights"][weight.name] = spec.to_json()
        files[weight.name] = work / f"{number}.safetensors"
        save_file(stored, files[weight.name])
    return write_compressed(checkpoint, plan, files, out)


def store(spec, W):
    from karipap_core.quantize_cores import quantize_cores

    tensors = {}
    cores = spec.decompose(W.float())
    cores = quantize_cores(spec, cores, W, method="rtn") if spec.quantize else cores
    for k, core in enumerate(cores):
        if torch.is_tensor(core):
            tensors[f"cores.{k}"] = core.float().contiguous()
        else:
            tensors |= {f"cores.{k}.{key}": part.contiguous() for key, part in core.tensors().items()}
    return tensors


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heal")
    (folder / "text.txt").write_text(TEXT)
    make("llama_untied", folder / "dense")
    squeeze(folder / "dense", folder / "small")
    report = {"format": "karipap-report", "version": 1, "source": str(folder / "dense"), "result": {}}
    (folder / "small" / "karipap.json").write_text(json.dumps(report))
    return folder


def test_only_cores_move_and_the_folder_is_a_normal_one(world):
    result = heal(world / "small", world / "out", 12, world / "text.txt", objective="next-token", rate=1e-2, **QUICK)
    assert result["improved"] and result["loss_after"] < result["loss_before"], result
    before, after = (load_file(world / name / "model.safetensors") for name in ("small", "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".cores." in name}
    assert result["trained"] == sum(before[name].numel() for name in moved)
    configs = [read_json(world / name / "config.json") for name in ("small", "out")]
    assert configs[0] == configs[1]
    report = read_json(world / "out" / "karipap.json")
    assert report["source"] == str(world / "dense") and report["healing"]["result"] == result
    assert report["healing"]["result"]["text"]["sha256"] and not (world / "out" / ".healing").exists()
    assert [point["step"] for point in result["curve"]] == list(range(1, 13))
