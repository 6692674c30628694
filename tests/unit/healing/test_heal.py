"""Healing: only cores move, exactly what was said is minimised, a killed run goes on as if nothing had happened, and no
model comes back worse."""

import json
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.cli.frame import build_parser, main
from karipap_core.compressed.folder import write_compressed
from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.figures import runs as figures_runs
from karipap_core.healing.data import rows_and_sample, split
from karipap_core.healing.folder import choose_trained
from karipap_core.healing.heal import heal
from karipap_core.healing.loop import Rows, Training, distillation_loss, next_token_loss, schedule
from karipap_core.healing.points import heal_and_measure
from karipap_core.healing.settings import Settings
from karipap_core.models.load import load_model
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import model_entry
from karipap_core.reading import read_json
from karipap_core.text import Text, read_text
from karipap_core.workspace import Workspace
from tests.helpers.architectures import make
from tests.helpers.trees import write_tree

TEXT = "<|endoftext|>".join(f"the square of {n} is {n * n}, its cube {n**3}\n" for n in range(300))


def quick(steps: int, **more) -> Settings:
    """Small steps on the small text."""
    return Settings(steps, **({"window": 32, "tokens": 64} | more))


def squeeze(source, out, network="lowrank", chi=6, quantize=None, metric="weight"):
    """A folder with every block weight as a network at χ, without a study: plans and cores are all that it takes."""
    checkpoint = open_checkpoint(source)
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": metric, "weights": {}}
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
    from karipap_core.networks.stored import quantize_cores

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
    result = heal(
        world / "small", world / "out", quick(12, objective="next-token", rate=1e-2), world / "text.txt", device="cpu"
    )
    assert result["improved"] and result["loss_after"] < result["loss_before"], result
    before, after = (load_file(world / name / "model.safetensors") for name in ("small", "out"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".cores." in name}
    assert result["trained"] == sum(before[name].numel() for name in moved)
    configs = [read_json(world / name / "config.json") for name in ("small", "out")]
    assert configs[0] == configs[1]
    report = read_json(world / "out" / "karipap.json")
    kept = {key: value for key, value in result.items() if key != "verify"}  # the verdict comes after the report
    assert report["source"] == str(world / "dense") and report["healing"]["result"] == kept
    assert report["healing"]["result"]["text"]["sha256"] and not (world / "out" / ".healing").exists()
    assert [point["step"] for point in result["curve"]] == list(range(1, 13))


def test_a_damaged_healed_folder_is_healed_again(world, tmp_path):
    """Tensors cut to half or a bit flipped: the same heal gives the same folder; of others' folders it keeps off."""

    def again():
        settings = quick(3, objective="next-token", rate=1e-2)
        return heal(world / "small", tmp_path / "out", settings, world / "text.txt", device="cpu")

    def contents():
        return {file.name: file.read_bytes() for file in (tmp_path / "out").iterdir() if file.name != "karipap.json"}

    first = again()
    before, report = contents(), (tmp_path / "out" / "karipap.json").read_bytes()
    assert again() == first
    for data in (before["model.safetensors"][:-1000], before["model.safetensors"][:-1] + b"x"):
        (tmp_path / "out" / "model.safetensors").write_bytes(data)
        mended = again()
        assert contents() == before
        assert mended | {"seconds": 0} == first | {"seconds": 0}
    (tmp_path / "out" / "verify.json").unlink()
    again()
    assert contents() == before
    (tmp_path / "out" / "karipap.json").write_bytes(report[: len(report) // 2])
    with pytest.raises(InputError, match="is not empty and holds no model healed like this"):
        again()


def command(world, out, steps, every):
    line = [sys.executable, "-m", "karipap_core", "heal", str(world / "small"), "--text", str(world / "text.txt")]
    line += ["--steps", str(steps), "--every", str(every), "--tokens", "64", "--window", "32", "--device", "cpu"]
    return [*line, "--out", str(out), "--json", "--progress", "json"]


def test_killed_at_a_random_step_and_started_again_it_takes_the_same_steps(world):
    """SIGKILL in the search for a step size and at a random step, the same command each time: the curve is the same."""
    expected = heal(world / "small", world / "whole", quick(60, every=3), world / "text.txt", device="cpu")
    at = int(np.random.default_rng().integers(4, 25))  # a busy machine takes some more steps before the signal comes
    for stage, done in (("step size", 2), ("heal", at)):
        line = command(world, world / "killed", 60, 3)
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for told in map(progress_line, process.stderr):
            if told and told["stage"] == stage and told["done"] >= done:
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL and not (world / "killed" / "config.json").exists()
    steps = []

    def progress(stage, done, *_):
        steps.append((stage, done))

    again = heal(
        world / "small", world / "killed", quick(60, every=3), world / "text.txt", progress=progress, device="cpu"
    )
    first = min(done for stage, done in steps if stage == "heal")
    assert 1 < at // 3 * 3 - 3 < first or at < 9, (at, first)
    assert ("step size", 0) not in steps, "the search is not made again"
    assert len(again["curve"]) == len(expected["curve"]) == expected["steps"]
    for one, other in zip(expected["curve"], again["curve"], strict=True):
        assert one.keys() == other.keys() and one["step"] == other["step"]
        assert one["rate"] == other["rate"] and one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one.get("validation", 0) == pytest.approx(other.get("validation", 0), abs=1e-5)
    assert again["search"] == pytest.approx(expected["search"], abs=1e-5)
    assert again["learning_rate"] == expected["learning_rate"] and len(again["search"]) == 4
    healed, same = (load_file(world / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.allclose(healed[name], same[name], atol=1e-6) for name in healed)


def test_two_processes_take_the_steps_of_one(world, tmp_path):
    """What `accelerate launch` starts on several GPUs, on the CPU: rows are dealt out, and one process writes."""
    expected = heal(world / "small", tmp_path / "one", quick(4, rate=3e-3, every=2), world / "text.txt", device="cpu")
    line = command(world, tmp_path / "two", 4, 2)
    line[1:3] = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "karipap_core"]
    ended = subprocess.run([*line, "--rate", "0.003"], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    assert [p["loss"] for p in found["curve"]] == pytest.approx([p["loss"] for p in expected["curve"]], abs=1e-5)
    assert found["loss_after"] == pytest.approx(expected["loss_after"], abs=1e-5) and found["verify"]["ok"]
    assert not list((tmp_path / "two").glob(".*"))


def progress_line(line):
    return json.loads(line) if line.startswith("{") else None


def test_the_distillation_gradient_is_that_of_the_divergence_written_by_hand():
    rng = np.random.default_rng(0)
    student, dense = rng.normal(size=(2, 3, 7)), 2 * rng.normal(size=(2, 3, 7))

    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    logits = torch.tensor(student, requires_grad=True)
    loss = distillation_loss(logits, torch.tensor(dense))
    loss.backward()
    p, q = softmax(dense), softmax(student)
    kl, entropy = (p * np.log(p / q)).sum(-1).mean(), -(p * np.log(p)).sum(-1).mean()
    assert loss.item() == pytest.approx(kl + entropy, rel=1e-5)
    assert np.allclose(logits.grad.numpy(), (q - p) / 6, atol=1e-6)
    targets = torch.tensor([[1, 2, 3], [4, 5, 6]])
    expected = -np.log(np.take_along_axis(q, targets.numpy()[..., None], -1)).mean()
    assert next_token_loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_a_healing_step_is_adamw_on_the_cores_by_hand(world, tmp_path):
    """The first curve entry and the cores after one step, from the model as anybody would load and train it."""
    heal(world / "small", tmp_path / "out", quick(1, rate=1e-3, seed=5), world / "text.txt", device="cpu")
    report = read_json(tmp_path / "out" / "karipap.json")["healing"]["result"]
    model, tokenizer = load_model(world / "small")
    teacher, _ = load_model(world / "dense")
    rows, _ = rows_and_sample(model, tokenizer, read_text(world / "text.txt"), quick(1, seed=5), 1)
    batch = rows.batch(0)
    with torch.no_grad():
        p = teacher(input_ids=batch[:, :-1]).logits.softmax(-1)
    cores = {name: each for name, each in model.named_parameters() if ".cores." in name}
    optimizer = torch.optim.AdamW(cores.values(), lr=1e-3, weight_decay=0)
    loss = -(p * model(input_ids=batch[:, :-1]).logits.log_softmax(-1)).sum(-1).mean()
    loss.backward()
    optimizer.step()
    assert report["curve"][0]["loss"] == pytest.approx(loss.item(), rel=1e-5) and batch.shape == (2, 33)
    healed = load_file(tmp_path / "out" / "model.safetensors")
    assert report["improved"]
    for name, each in cores.items():
        assert torch.allclose(healed[name], each.detach(), atol=1e-5), name


def test_the_step_size_rises_shortly_and_falls_in_a_line_to_zero():
    sizes = np.array([schedule(step, 100) for step in range(100)])
    assert sizes.max() == pytest.approx(1) and sizes.argmax() in (4, 5) and (sizes > 0).all()
    assert np.allclose(np.diff(sizes[:5]), 0.2) and np.allclose(np.diff(sizes[5:]), -sizes[-1])
    assert schedule(0, 1) == 1


def test_every_window_is_dealt_once_before_any_is_dealt_again():
    ids = torch.arange(101)
    rows, again, other = Rows(ids, 10, 4, 0), Rows(ids, 10, 4, 0), Rows(ids, 10, 4, 1)
    dealt = torch.cat([rows.batch(step) for step in range(5)])
    assert dealt.shape == (20, 11) and torch.equal(dealt - dealt[:, :1], torch.arange(11).expand(20, 11))
    starts = dealt[:, 0].tolist()
    assert sorted(starts[:10]) == sorted(starts[10:]) == list(range(0, 100, 10)) and starts[:10] != starts[10:]
    assert torch.equal(again.batch(3), rows.batch(3)) and not torch.equal(other.batch(0), rows.batch(0))


def test_what_is_validated_on_is_not_learnt_from():
    text = Text("t", tuple(f"document {n}" for n in range(20)))
    learnt, kept = split(text)
    assert set(learnt.documents) | set(kept.documents) == set(text.documents)
    assert not set(learnt.documents) & set(kept.documents) and len(kept.documents) == 3
    learnt, kept = split(Text("one", ("abcdefghijklmnop",)))
    assert learnt.documents[0] + kept.documents[0] == "abcdefghijklmnop" and len(kept.documents[0]) == 2


def test_harm_is_never_handed_back_and_training_stops_early(world, tmp_path):
    more = {"objective": "next-token"}
    good = heal(world / "small", tmp_path / "good", quick(60, rate=1e-2, **more), world / "text.txt", device="cpu")
    text = world / "text.txt"
    result = heal(
        tmp_path / "good", tmp_path / "out", quick(40, rate=3.0, every=2, patience=2, **more), text, device="cpu"
    )
    assert not result["improved"] and result["best_step"] == 0
    assert result["loss_after"] == result["loss_before"] == pytest.approx(good["loss_after"], abs=1e-5)
    assert result["steps"] == 4 and "stopped at step 4" in result["notes"][0] and "incoming model" in result["notes"][1]
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("good", "out"))
    assert before == after
    assert read_json(tmp_path / "out" / "karipap.json")["healing"]["result"]["improved"] is False


def test_a_loss_that_is_not_finite_stops_the_training(world, tmp_path):
    result = heal(world / "small", tmp_path / "out", quick(9, rate=1e14, every=50), world / "text.txt", device="cpu")
    assert not result["improved"] and "not finite" in result["notes"][0] and result["steps"] < 9
    json.dumps(result, allow_nan=False)


def test_the_best_look_is_handed_back_and_not_the_last(world, tmp_path):
    result = heal(
        world / "small", tmp_path / "out", quick(30, rate=0.3, every=1, patience=30), world / "text.txt", device="cpu"
    )
    looks = {point["step"]: point["validation"] for point in result["curve"]}
    best = min(looks, key=looks.get)
    if looks[best] < result["loss_before"]:
        assert result["best_step"] == best and result["loss_after"] == pytest.approx(looks[best], abs=1e-5)
    else:
        assert not result["improved"]


def test_parts_of_a_step_and_checkpointing_change_nothing_but_memory(world, tmp_path):
    ways = {"plain": {}, "parts": {"accumulate": 2}, "checkpointing": {"gradient_checkpointing": True}}
    curves = {
        name: heal(world / "small", tmp_path / name, quick(4, rate=1e-3, **more), world / "text.txt", device="cpu")[
            "curve"
        ]
        for name, more in ways.items()
    }
    for name in ("parts", "checkpointing"):
        assert [p["loss"] for p in curves[name]] == pytest.approx([p["loss"] for p in curves["plain"]], abs=2e-5), name


def test_mixed_precision_trains_in_16_bits_and_is_judged_in_32(world, tmp_path):
    from karipap_core.evaluation.perplexity import perplexity

    text, kept = world / "text.txt", split(read_text(world / "text.txt"))[1]
    ways = {
        precision: heal(
            world / "small",
            tmp_path / precision,
            quick(6, rate=1e-2, mixed_precision=precision),
            text,
            compare_dense=True,
            device="cpu",
        )
        for precision in ("no", "bf16")
    }
    plain, mixed = ways["no"], ways["bf16"]
    assert mixed["improved"] and mixed["loss_before"] == plain["loss_before"]
    assert mixed["dense_loss"] == plain["dense_loss"] == mixed["dense_trained"]["loss_before"]
    losses = [[point["loss"] for point in way["curve"]] for way in (plain, mixed)]
    assert losses[1] != losses[0] and losses[1] == pytest.approx(losses[0], abs=0.05)
    model, tokenizer = load_model(tmp_path / "bf16")
    read = perplexity(model, tokenizer, kept, Scoring(32, 32, 8192))["loss"]
    assert read == pytest.approx(mixed["loss_after"], abs=1e-5)
    assert {tensor.dtype for tensor in load_file(tmp_path / "bf16" / "model.safetensors").values()} == {torch.float32}
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        heal(world / "small", tmp_path / "no", quick(2, mixed_precision="fp16"), text, device="cpu")


def test_frozen_weights_take_no_memory_of_the_optimizer(world, tmp_path):
    from accelerate import Accelerator

    model, tokenizer = load_model(world / "small")
    count = choose_trained(model)
    with_norms = choose_trained(load_model(world / "small")[0], norms=True)
    norms = sum(p.numel() for name, p in load_model(world / "small")[0].named_parameters() if "norm" in name)
    assert with_norms == count + norms and norms > 0
    from karipap_core.evaluation.perplexity import Sample
    from karipap_core.healing.loop import Course

    sample = Sample.of(model, tokenizer, Text("t", (TEXT[:500],)), Scoring(32, 32, 64))
    rows = Rows(torch.arange(200) % 250, 32, 2, 0)
    training = Training(model, rows, sample, Course(2, 1e-3, 9, 9, 1, 0), Accelerator(cpu=True), tmp_path / "state")
    training.step(0, 1e-3)
    moments = sum(state["exp_avg"].numel() for state in training.optimizer.state.values())
    assert moments == count == sum(p.numel() for name, p in model.named_parameters() if ".cores." in name)
    assert all(p.grad is None for name, p in model.named_parameters() if ".cores." not in name)


def test_norms_learn_where_asked(world, tmp_path):
    heal(world / "small", tmp_path / "out", quick(3, rate=1e-2, norms=True), world / "text.txt", device="cpu")
    before, after = (load_file(folder / "model.safetensors") for folder in (world / "small", tmp_path / "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if ".cores." in name or "norm" in name}


@pytest.mark.parametrize("name", ["gpt2_bare", "mixtral", "llama_bf16"])
def test_other_architectures_store_what_was_measured(name, tmp_path):
    """Transposed weights and lost prefixes, experts one by one, and 16 bits: the loss is that of the folder as read."""
    make(name, tmp_path / "dense")
    squeeze(tmp_path / "dense", tmp_path / "small")
    text = Text("t", tuple(TEXT.split("<|endoftext|>")))
    found = heal(
        tmp_path / "small", tmp_path / "out", quick(6, rate=3e-3), text, distill=tmp_path / "dense", device="cpu"
    )
    assert found["improved"]
    from karipap_core.evaluation.perplexity import perplexity

    model, tokenizer = load_model(tmp_path / "out")
    read = perplexity(model, tokenizer, split(text)[1], Scoring(32, 32, 8192))["loss"]
    assert read == pytest.approx(found["loss_after"], abs=1e-5)
    infos = [open_checkpoint(tmp_path / each, compressed=True).tensors for each in ("small", "out")]
    assert [{n: (i.dtype, i.shape) for n, i in info.items()} for info in infos][0] == {
        n: (i.dtype, i.shape) for n, i in infos[1].items()
    }


def test_codes_stay_and_scales_learn(world, tmp_path):
    """Also where so few tokens go through at once that codes are multiplied with as they are stored."""
    squeeze(world / "dense", tmp_path / "int4", quantize="int4", chi=12)
    text, dense = world / "text.txt", world / "dense"
    ways = {"out": {}, "few": {"accumulate": 2}}
    found = {
        name: heal(tmp_path / "int4", tmp_path / name, quick(12, rate=3e-3, **more), text, dense, device="cpu")
        for name, more in ways.items()
    }
    assert found["out"]["improved"] and found["out"]["verify"]["ok"]
    curves = [[point["loss"] for point in each["curve"]] for each in found.values()]
    assert curves[1] == pytest.approx(curves[0], abs=2e-5)
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("int4", "out"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.endswith(".scales")}
    assert {name: (each.dtype, each.shape) for name, each in before.items()} == {
        name: (each.dtype, each.shape) for name, each in after.items()
    }
    assert found["out"]["trained"] == sum(before[name].numel() for name in moved)
    from karipap_core.evaluation.perplexity import perplexity

    model, tokenizer = load_model(tmp_path / "out")
    kept = split(read_text(text))[1]
    read = perplexity(model, tokenizer, kept, Scoring(32, 32, 8192))["loss"]
    assert read == pytest.approx(found["out"]["loss_after"], abs=1e-5)


def test_quantized_cores_are_quantized_again(world, tmp_path):
    squeeze(world / "dense", tmp_path / "int4", quantize="int4", chi=12, metric="functional")
    text, dense = world / "text.txt", world / "dense"
    found = heal(tmp_path / "int4", tmp_path / "out", quick(20, requantize=True, rate=3e-3), text, dense, device="cpu")
    assert found["improved"], found
    infos = [open_checkpoint(each, compressed=True).tensors for each in (tmp_path / "int4", tmp_path / "out")]
    assert [sorted((n, i.dtype, i.shape) for n, i in info.items()) for info in infos][0] == sorted(
        (n, i.dtype, i.shape) for n, i in infos[1].items()
    )
    from karipap_core.evaluation.perplexity import perplexity

    model, tokenizer = load_model(tmp_path / "out")
    kept = split(read_text(world / "text.txt"))[1]
    read = perplexity(model, tokenizer, kept, Scoring(32, 32, 8192))["loss"]
    assert read == pytest.approx(found["loss_after"], abs=1e-5)


def test_the_dense_model_gets_the_same_training_and_a_finished_healing_is_not_made_again(world, tmp_path):
    dense = (world / "dense" / "model.safetensors").read_bytes()
    first = heal(world / "small", tmp_path / "out", quick(6, rate=3e-3), world / "text.txt", device="cpu")
    stages = []
    both = heal(
        world / "small",
        tmp_path / "out",
        quick(6, rate=3e-3),
        world / "text.txt",
        compare_dense=True,
        progress=lambda stage, *_: stages.append(stage),
        device="cpu",
    )
    assert "heal" not in stages and "dense" in stages
    trained = both["dense_trained"]
    assert trained["loss"] < trained["loss_before"] == pytest.approx(first["dense_loss"])
    assert {**both, "dense_trained": None} == first
    weights = [w for w in open_checkpoint(world / "dense").weights if w.compressible]
    assert trained["trained"] == sum(weight.parameters for weight in weights)
    assert (world / "dense" / "model.safetensors").read_bytes() == dense
    with pytest.raises(InputError, match="name another one"):
        heal(world / "small", tmp_path / "out", quick(7, rate=3e-3), world / "text.txt", device="cpu")


def test_cores_that_a_group_shares_stay_shared(world, tmp_path):
    from dataclasses import replace

    specs = write_tree(world / "dense", tmp_path / "tree")
    assert replace(specs[0], at=1) == specs[1] and not all(specs[1].owned)
    settings = quick(4, objective="next-token", rate=1e-2)
    found = heal(tmp_path / "tree", tmp_path / "out", settings, world / "text.txt", world / "dense", device="cpu")
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("tree", "out"))
    assert before.keys() == after.keys() and found["improved"]
    assert found["trained"] == sum(spec.parameters for spec in specs)
    assert all(not torch.equal(before[name], after[name]) for name in before if ".cores." in name)


@pytest.mark.parametrize(
    "wanted, says",
    [
        ({"steps": 0}, "steps is 0"),
        ({"objective": "kl"}, "objective"),
        ({"rate": -1.0}, "rate"),
        ({"mixed_precision": "int8"}, "mixed_precision"),
        ({"device": "tpu"}, "device"),
        ({"window": 4096, "tokens": 4096}, "positions"),
        ({"text": Text("tiny", ("ab", "cd", "ef"))}, "tokens to learn"),
    ],
)
def test_bad_settings_are_one_sentence(world, tmp_path, wanted, says):
    others = {"text": world / "text.txt", "device": "cpu"}
    others |= {name: value for name, value in wanted.items() if name in others}
    settings = {name: value for name, value in wanted.items() if name not in others}
    with pytest.raises(InputError, match=says):
        heal(world / "small", tmp_path / "out", quick(**({"steps": 2} | settings)), **others)


def test_folders_that_cannot_be_healed_are_one_sentence(world, made, tmp_path):
    with pytest.raises(InputError, match="not a model compressed"):
        heal(world / "dense", tmp_path / "out", quick(2), world / "text.txt", device="cpu")
    squeeze(made("bert"), tmp_path / "bert")
    with pytest.raises(InputError, match="encoder"):
        heal(tmp_path / "bert", tmp_path / "out", quick(2), world / "text.txt", device="cpu")
    squeeze(world / "dense", tmp_path / "orphan")
    with pytest.raises(InputError, match="--distill"):
        heal(tmp_path / "orphan", tmp_path / "out", quick(2), world / "text.txt", device="cpu")
    found = heal(
        tmp_path / "orphan", tmp_path / "alone", quick(2, objective="next-token"), world / "text.txt", device="cpu"
    )
    assert found["dense_loss"] is None and "Nothing is compared" in found["notes"][0]


def test_before_and_after_are_points_of_the_tradeoff(world, tmp_path):
    (tmp_path / "other.txt").write_text("<|endoftext|>".join(f"{n} cubed is {n**3}\n" for n in range(90)))
    settings = quick(4, rate=3e-3)
    with pytest.raises(InputError, match="share documents"):
        heal_and_measure(
            world / "small", tmp_path / "out", settings, world / "text.txt", text=world / "text.txt", device="cpu"
        )
    text = world / "text.txt"
    found = heal_and_measure(
        world / "small", tmp_path / "out", settings, tmp_path / "other.txt", text=text, device="cpu"
    )
    runs = {run["id"]: run for run in Workspace().runs}
    before, after = (runs[point["id"]] for point in found["points"])
    for key in ("kept", "bytes_kept", "model", "tokens", "window", "stride", "text", "plan"):
        assert before[key] == after[key], key
    assert after["settings"]["healing"]["steps"] == 4 and "healing" not in before["settings"]
    assert after["folder"] == str(tmp_path / "out") and after["loss"] != before["loss"]
    assert after["rise"] == pytest.approx(after["loss"] - after["dense"]["loss"], abs=1e-6)
    assert figures_runs.tradeoff([before, after]).data
    again = heal_and_measure(
        world / "small", tmp_path / "out", settings, tmp_path / "other.txt", text=text, device="cpu"
    )
    assert again["points"] == found["points"] and len(Workspace().runs) == 2


def test_the_launch_command_is_the_command_itself(capsys):
    argv = ["heal", "small/", "--steps", "9", "--out", "o", "--norms", "--rate", "0.001"]
    assert main([*argv, "--show-launch", "4", "--json"]) == 0
    commands = json.loads(capsys.readouterr().out)["launch"]
    for name, flag in (("multi_gpu", "--multi_gpu"), ("fsdp", "--use_fsdp")):
        words = shlex.split(commands[name])
        assert (
            words[:2] == ["accelerate", "launch"] and flag in words and words[words.index("--num_processes") + 1] == "4"
        )
        rest = build_parser().parse_args(words[words.index("karipap_core") + 1 :])
        assert rest.verb == "heal" and rest.steps == 9 and rest.norms and rest.rate == 1e-3 and not rest.show_launch
        assert rest.mixed_precision == "bf16"
