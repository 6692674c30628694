"""Healing: only cores move, exactly what was said is minimised, a killed run goes on as if nothing had happened, and no
model comes back worse."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core.checkpoint import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.heal import heal, split
from karipap_core.heal_folder import choose_trained
from karipap_core.heal_loop import Rows, Training, distillation_loss, next_token_loss, schedule
from karipap_core.hf import load_model, write_compressed
from karipap_core.networks import NETWORKS
from karipap_core.plan import model_entry
from karipap_core.text import Text
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


def command(world, out, steps=40, every=3, *more):
    line = [sys.executable, "-m", "karipap_core", "heal", str(world / "small"), "--text", str(world / "text.txt")]
    line += ["--steps", str(steps), "--every", str(every), "--tokens", "64", "--window", "32", "--device", "cpu"]
    return [*line, "--out", str(out), "--json", "--progress", "json", *more]


def start(line):
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_at_a_random_step_and_started_again_it_takes_the_same_steps(world):
    """SIGKILL in the search and at a random step, each time followed by the same command: the curve is the same."""
    whole = start(command(world, world / "whole"))
    output, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    expected = json.loads(output)
    at = int(np.random.default_rng().integers(4, 38))
    for stage, done in (("step size", 2), ("heal", at)):
        process = start(command(world, world / "killed"))
        for line in process.stderr:
            if line.startswith("{") and (told := json.loads(line))["stage"] == stage and told["done"] >= done:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL and not (world / "killed" / "config.json").exists()
    last = start(command(world, world / "killed"))
    output, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    steps = [told for line in errors.splitlines() if line.startswith("{") and (told := json.loads(line))]
    first = min(told["done"] for told in steps if told["stage"] == "heal")
    assert at // 3 * 3 - 3 < first <= at + 1 and first > 1, "it went on, not from the start"
    again = json.loads(output)
    assert len(again["curve"]) == len(expected["curve"]) == expected["steps"]
    for one, other in zip(expected["curve"], again["curve"], strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert one["rate"] == other["rate"] and one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one.get("validation", 0) == pytest.approx(other.get("validation", 0), abs=1e-5)
    assert again["search"] == expected["search"] and again["learning_rate"] == expected["learning_rate"]
    healed, same = (load_file(world / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.allclose(healed[name], same[name], atol=1e-6) for name in healed)
