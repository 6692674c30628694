"""Healing of scales and factors: codes and bytes stay, what moves is what is said, and no block or model gets worse."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import karipap_core as kp
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.folder import write_compressed
from karipap_core.compressed.verify import verify
from karipap_core.errors import InputError
from karipap_core.healing import by_block
from karipap_core.healing.blocks import off
from karipap_core.healing.heal import heal
from karipap_core.healing.points import heal_and_measure
from karipap_core.healing.scales import Moving
from karipap_core.healing.settings import ScaleSettings, Settings, settings_of
from karipap_core.models.load import load_model
from karipap_core.networks import NETWORKS, spec_from_json
from karipap_core.networks.stored import quantize_cores
from karipap_core.plan.document import model_entry
from karipap_core.quantization.packing import unpack
from karipap_core.text import Text
from tests.helpers.architectures import make
from tests.helpers.trees import write_tree

TEXT = Text("squares", tuple(f"the square of {n} is {n * n}, its cube {n**3}\n" for n in range(300)))
QUICK = {"windows": 256, "passes": 3, "window": 32, "rate": 1e-2}


def spec_for(shape, number: int):
    """Integers, integers with a correction, floats, cores in few bits and fp8, in turns."""
    out, in_ = shape
    kinds = [
        lambda: spec_from_json({"network": "dense", "out": [out], "in": [in_], "chi": [], "quantize": "int2"}),
        lambda: NETWORKS["qlr"].for_shape(out, in_, 4, quantize="int4", bits="int2"),
        lambda: NETWORKS["lowrank"].for_shape(out, in_, 8),
        lambda: NETWORKS["lowrank"].for_shape(out, in_, 16, quantize="int3"),
        lambda: NETWORKS["mpo"].for_shape(out, in_, 8, quantize="fp8"),
    ]
    return kinds[number % len(kinds)]()


def stored_as(spec, W) -> dict[str, torch.Tensor]:
    found = {}
    for k, core in enumerate(quantize_cores(spec, spec.decompose(W.float()), W, method="rtn")):
        if torch.is_tensor(core):
            found[f"cores.{k}"] = core.float().contiguous()
        else:
            found |= {f"cores.{k}.{key}": part.contiguous() for key, part in core.tensors().items()}
    return found


def mixed(source, out):
    """A folder with every block weight in another form, and the report that says where it comes from."""
    checkpoint = open_checkpoint(source)
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": "weight", "weights": {}}
    work = out.with_name(f"{out.name}-cores")
    work.mkdir(parents=True)
    files = {}
    for number, weight in enumerate(weight for weight in checkpoint.weights if weight.compressible):
        spec = spec_for(weight.shape, number)
        plan["weights"][weight.name] = spec.to_json()
        files[weight.name] = work / f"{number}.safetensors"
        save_file(stored_as(spec, checkpoint.read(weight.name)), files[weight.name])
    write_compressed(checkpoint, plan, files, out)
    report = {"format": "karipap-report", "version": 1, "source": str(source), "result": {}}
    (out / "karipap.json").write_text(json.dumps(report))
    return out


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scales")
    make("llama_untied", folder / "dense")
    mixed(folder / "dense", folder / "small")
    heal(folder / "small", folder / "healed", ScaleSettings(**QUICK), TEXT, device="cpu")
    return folder


def result_of(folder) -> dict:
    return json.loads((folder / "karipap.json").read_text())["healing"]["result"]


def test_codes_zero_points_and_bytes_stay_and_scales_and_floats_move(world):
    before, after = (load_file(world / name / "model.safetensors") for name in ("small", "healed"))
    assert {name: (each.dtype, each.shape) for name, each in before.items()} == {
        name: (each.dtype, each.shape) for name, each in after.items()
    }
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    may = {name for name in before if name.endswith(".scales") or name.rpartition(".")[0].endswith(".cores")}
    assert moved and moved <= may, moved - may
    assert {name for name in before if name.endswith((".codes", ".zeros"))}.isdisjoint(moved)
    sizes = [(world / name / "model.safetensors").stat().st_size for name in ("small", "healed")]
    configs = [json.loads((world / name / "config.json").read_text()) for name in ("small", "healed")]
    assert sizes[0] == sizes[1] and configs[0] == configs[1]
    assert result_of(world / "healed")["trained"] == sum(before[name].numel() for name in may)


def test_the_folder_verifies_and_loads_with_the_loss_that_was_said(world):
    found = result_of(world / "healed")
    assert found["improved"] and found["loss_after"] < found["loss_before"] and found["kl_after"] < found["kl_before"]
    assert verify(world / "healed", world / "dense")["ok"]
    from transformers import AutoModelForCausalLM

    loss = {}
    for name in ("small", "healed", "dense"):
        model = AutoModelForCausalLM.from_pretrained(world / name)
        windows, kept = by_block._windows(model, load_model(world / "dense")[1], TEXT, ScaleSettings(**QUICK))
        with torch.no_grad():
            logits = model(kept[1]).logits[:, :-1]
        loss[name] = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept[1][:, 1:].flatten()).item()
        assert set(map(tuple, windows.tolist())).isdisjoint(map(tuple, kept[1].tolist()))
    assert loss["small"] == pytest.approx(found["loss_before"], abs=1e-5)
    assert loss["healed"] == pytest.approx(found["loss_after"], abs=1e-5)
    assert loss["dense"] == pytest.approx(found["dense_loss"], abs=1e-5)


def test_each_blocks_error_on_held_out_windows_falls_and_is_what_the_models_themselves_put_out(world):
    """Written once more by hooks: the dense model, and the folder with its blocks behind healed ones."""
    found = result_of(world / "healed")
    assert len(found["blocks"]) == 2 and all(block["after"] < block["before"] for block in found["blocks"])
    dense, tokenizer = load_model(world / "dense")
    kept = by_block._windows(dense, tokenizer, TEXT, ScaleSettings(**QUICK))[1][1]
    outputs = {}
    for name in ("dense", "healed"):
        model, _ = load_model(world / name)
        seen = outputs[name] = []
        for block in model.model.layers:
            block.register_forward_hook(lambda _, __, y, seen=seen: seen.append(y[0] if isinstance(y, tuple) else y))
        with torch.no_grad():
            model(kept)
    for block, y, y_hat in zip(found["blocks"], outputs["dense"], outputs["healed"], strict=True):
        error = ((y_hat - y).double().norm(dim=-1) ** 2 / y.double().norm(dim=-1) ** 2).mean().item()
        assert block["after"] == pytest.approx(error, rel=1e-4)


@pytest.mark.parametrize("number", range(5))
def test_gradients_of_what_moves_are_those_of_the_dequantized_formula(number):
    """d/dδ of Σ Z ∘ Ŵ(δ) by autograd, by central differences, and for integers by the formula by hand."""
    generator = torch.Generator().manual_seed(number)
    W, Z = torch.randn(2, 48, 64, generator=generator)
    spec = spec_for((48, 64), number)
    tensors = stored_as(spec, W)
    made = Moving(spec, tensors)
    (made.matrix() * Z).sum().backward()
    for name, move in made.moves.items():
        place = tuple(int(torch.randint(size, (), generator=generator)) for size in move.shape)
        ends = []
        for step in (0.01, -0.01):
            with torch.no_grad():
                move[place] = step
                ends.append((made.matrix().double() * Z).sum().item())
                move[place] = 0.0
        assert move.grad[place].item() == pytest.approx((ends[0] - ends[1]) / 0.02, rel=2e-3, abs=2e-3), name
    if number == 0:
        scales = tensors["cores.0.scales"].float()
        codes = unpack(tensors["cores.0.codes"], 2, (48, 2, 32)).float()
        zeros = unpack(tensors["cores.0.zeros"], 2, (48, 2)).float()
        by_hand = ((codes - zeros[..., None]) * scales[..., None] * Z.reshape(48, 2, 32)).sum(-1)
        assert torch.allclose(made.moves["cores.0.scales"].grad, by_hand, atol=1e-4)


@pytest.mark.parametrize("number", range(5))
def test_where_nothing_has_moved_what_is_stored_comes_back_bit_for_bit(number):
    W = torch.randn(48, 64, generator=torch.Generator().manual_seed(number))
    spec = spec_for((48, 64), number)
    tensors = stored_as(spec, W)
    if number == 2:
        tensors = {name: each.bfloat16() for name, each in tensors.items()}
    made = Moving(spec, tensors)
    stored = made.stored()
    assert stored and all(torch.equal(stored[name], tensors[name]) for name in stored)
    assert torch.equal(made.matrix(), made.matrix(rounded=True))
    with torch.no_grad():
        for move in made.moves.values():
            move.uniform_(-0.1, 0.1)
    again = Moving(spec, tensors | made.stored())
    assert torch.equal(again.matrix(), made.matrix(rounded=True)) and not torch.equal(again.matrix(), made.matrix())


def test_the_error_is_that_of_tokens_relative_to_their_own_size():
    y, noise = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    y[0] *= 100  # tokens of another size count as much
    expected = (np.square(noise).sum(-1) / np.square(y).sum(-1)).mean()
    assert off([torch.tensor(y + noise)], [torch.tensor(y)]).item() == pytest.approx(expected)


def test_a_step_size_that_diverges_changes_nothing(world, tmp_path):
    found = heal(world / "small", tmp_path / "out", ScaleSettings(**QUICK | {"rate": 1e9}), TEXT, device="cpu")
    assert not found["improved"] and "incoming model" in found["notes"][-1]
    assert found["loss_after"] == found["loss_before"] and found["kl_after"] == found["kl_before"]
    assert all(block["after"] == block["before"] and block["rate"] is None for block in found["blocks"])
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (world / "small", tmp_path / "out"))
    assert before == after and found["verify"]["ok"]


def test_a_whole_that_is_no_better_comes_back_as_it_was(world, tmp_path, monkeypatch):
    """Blocks that came out better, and a loss that did not: as if the validation text said so."""

    class Worse(by_block.BlockHealing):
        def heal(self):
            blocks, judged = super().heal()
            judged.healed = judged.before + 1e-9
            return blocks, judged

    monkeypatch.setattr(by_block, "BlockHealing", Worse)
    found = heal(world / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu")
    assert any(block["after"] < block["before"] for block in found["blocks"]) and not found["improved"]
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (world / "small", tmp_path / "out"))
    assert before == after


def test_at_the_optimum_nothing_changes(world, tmp_path):
    """A folder that stores the dense model's own numbers puts out what that does: no block has anything to learn."""
    checkpoint = open_checkpoint(world / "dense")
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": "weight", "weights": {}}
    make("llama_untied", tmp_path / "grid")  # made anew, then its weights are put on a grid
    file = tmp_path / "grid" / "model.safetensors"
    tensors, stored, work = load_file(file), {}, tmp_path / "cores"
    work.mkdir()
    for weight in (weight for weight in checkpoint.weights if weight.compressible):
        spec = spec_from_json(
            {"network": "dense", "out": [weight.shape[0]], "in": [weight.shape[1]], "chi": [], "quantize": "int4"}
        )
        plan["weights"][weight.name] = spec.to_json()
        [core] = quantize_cores(
            spec, [checkpoint.read(weight.name).float()], checkpoint.read(weight.name), method="rtn"
        )
        tensors[weight.tensor] = core.dense().to(tensors[weight.tensor].dtype).contiguous()
        stored[weight.name] = work / f"{weight.name}.safetensors"
        save_file({f"cores.0.{key}": part.contiguous() for key, part in core.tensors().items()}, stored[weight.name])
    save_file(tensors, file, metadata={"format": "pt"})
    dense = open_checkpoint(tmp_path / "grid")
    write_compressed(dense, plan | {"model": model_entry(dense)}, stored, tmp_path / "small")
    found = heal(
        tmp_path / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, distill=tmp_path / "grid", device="cpu"
    )
    assert not found["improved"] and all(block["before"] == block["after"] < 1e-10 for block in found["blocks"])
    before, after = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("small", "out"))
    assert before == after


def test_a_killed_healing_goes_on_behind_the_last_block_that_it_was_through_with(world, tmp_path):
    class Killed(BaseException):
        pass

    def killer(stage, done, *_):
        if stage == "block" and trained.get("first"):
            raise Killed
        if stage == "heal" and done == 1:
            trained["first"] = True

    trained: dict = {}
    with pytest.raises(Killed):
        heal(world / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu", progress=killer)
    assert list((tmp_path / "out" / ".healing").iterdir()) and not (tmp_path / "out" / "config.json").exists()
    told = []
    heal(
        world / "small",
        tmp_path / "out",
        ScaleSettings(**QUICK),
        TEXT,
        device="cpu",
        progress=lambda stage, done, total, item="", message="": told.append((stage, item)),
    )
    assert {item for stage, item in told if stage == "block"} == {"model.layers.1"}
    expected, found = (load_file(folder / "model.safetensors") for folder in (world / "healed", tmp_path / "out"))
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert not (tmp_path / "out" / ".healing").exists()


@pytest.mark.parametrize("name", ["gpt2_bare", "mixtral", "llama", "gemma2"])
def test_other_architectures_store_what_was_measured(name, tmp_path, monkeypatch):
    """Transposed weights and lost prefixes, experts one by one, tied tables: the loss is that of the folder as read. A
    random model may lose more on a text while its blocks come nearer to the dense ones: it is handed back all the same
    here."""

    class Handed(by_block.BlockHealing):
        def heal(self):
            blocks, judged = super().heal()
            judged.before = max(judged.before, judged.healed + 1e-9)
            return blocks, judged

    monkeypatch.setattr(by_block, "BlockHealing", Handed)
    make(name, tmp_path / "dense")
    mixed(tmp_path / "dense", tmp_path / "small")
    found = heal(tmp_path / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu")
    assert found["improved"] and found["verify"]["ok"] and found["kl_after"] < found["kl_before"]
    assert all(block["after"] < block["before"] for block in found["blocks"])
    model, tokenizer = load_model(tmp_path / "out")
    kept = by_block._windows(model, tokenizer, TEXT, ScaleSettings(**QUICK))[1][1]
    with torch.no_grad():
        logits = model(kept).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept[:, 1:].flatten()).item()
    assert loss == pytest.approx(found["loss_after"], abs=1e-5)


def test_cores_that_a_group_shares_stay(world, tmp_path):
    specs = write_tree(world / "dense", tmp_path / "tree")
    found = heal(tmp_path / "tree", tmp_path / "out", ScaleSettings(**QUICK), TEXT, world / "dense", device="cpu")
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("tree", "out"))
    shared = {k for spec in specs for k, own in enumerate(spec.owned) if not own}
    assert shared and found["improved"]
    for name in before:
        core = name.rpartition(".cores.")[2]
        assert ".cores." not in name or int(core) not in shared or torch.equal(before[name], after[name]), name


def test_an_embedding_in_few_bits_stands_before_the_first_block(world, tmp_path):
    """What is compressed outside the blocks acts in the compressed passes alone, and stays."""
    checkpoint = open_checkpoint(world / "dense")
    table = next(weight for weight in checkpoint.weights if weight.role == "embed")
    spec = spec_from_json(
        {"network": "dense", "out": [table.shape[0]], "in": [table.shape[1]], "chi": [], "quantize": "int3"}
    )
    up = next(weight for weight in checkpoint.weights if weight.role == "up")
    specs = {table.name: spec, up.name: NETWORKS["lowrank"].for_shape(*up.shape, 8)}
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": "weight"}
    plan["weights"] = {name: each.to_json() for name, each in specs.items()}
    files = {name: tmp_path / f"{name}.safetensors" for name in specs}
    for name, each in specs.items():
        save_file(stored_as(each, checkpoint.read(name)), files[name])
    write_compressed(checkpoint, plan, files, tmp_path / "small")
    found = heal(tmp_path / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, world / "dense", device="cpu")
    models = {name: load_model(tmp_path / name)[0] for name in ("small", "out")}
    tokenizer = load_model(world / "dense")[1]
    kept = by_block._windows(models["small"], tokenizer, TEXT, ScaleSettings(**QUICK))[1][1]
    for name, key in (("small", "loss_before"), ("out", "loss_after")):
        with torch.no_grad():
            logits = models[name](kept).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), kept[:, 1:].flatten()).item()
        assert loss == pytest.approx(found[key], abs=1e-5)


def test_what_cannot_be_is_one_sentence(world, tmp_path):
    with pytest.raises(InputError, match="steps has no meaning with scales"):
        settings_of(True, {"steps": 3})
    with pytest.raises(InputError, match="windows has no meaning without scales"):
        settings_of(False, {"steps": 3, "windows": 8})
    with pytest.raises(InputError, match="steps are missing"):
        settings_of(False, {})
    with pytest.raises(InputError, match="Did you mean 'windows'"):
        settings_of(True, {"window_s": 3})
    with pytest.raises(InputError, match="passes is 0"):
        ScaleSettings(passes=0)
    assert settings_of(True, {"windows": 3, "objective": "distill", "norms": False}) == ScaleSettings(windows=3)
    assert settings_of(False, {"steps": 3, "rate": None}) == Settings(3)
    with pytest.raises(InputError, match="one window needs 33"):
        heal(world / "small", tmp_path / "out", ScaleSettings(**QUICK), Text("t", ("ab", "cd")), device="cpu")
    with pytest.raises(InputError, match="compare-dense"):
        heal(world / "small", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu", compare_dense=True)
    shutil.copytree(world / "small", tmp_path / "orphan")
    (tmp_path / "orphan" / "karipap.json").unlink()
    with pytest.raises(InputError, match="--distill"):
        heal(tmp_path / "orphan", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu")
    report = json.loads((world / "small" / "karipap.json").read_text())
    shutil.copytree(world / "small", tmp_path / "norms")
    healing = {"settings": {"norms": True}, "result": {"text": {}}}
    (tmp_path / "norms" / "karipap.json").write_text(json.dumps(report | {"healing": healing}))
    with pytest.raises(InputError, match="norms of .* were healed"):
        heal(tmp_path / "norms", tmp_path / "out", ScaleSettings(**QUICK), TEXT, device="cpu")


def test_before_and_after_are_points_with_a_paired_interval(world, tmp_path):
    other = Text("other", tuple(f"{n} cubed is {n**3}\n" for n in range(90)))
    found = heal_and_measure(world / "small", tmp_path / "out", ScaleSettings(**QUICK), other, text=TEXT, device="cpu")
    before, after = found["points"]
    assert found["change"]["mean"] == pytest.approx(after["loss"] - before["loss"], abs=1e-6)
    assert found["change"]["low"] <= found["change"]["mean"] <= found["change"]["high"]
    assert after["label"].endswith("scales healed")
    from karipap_core.cli.tables.heal import table

    said = table(found)
    assert "after less before, paired" in said and said.count("error of its outputs") == 2


def test_from_python_and_the_checklist_says_how_it_is_made_again(world, tmp_path):
    from karipap_core.deployment.checklist import _typed

    healed = kp.heal(world / "small", tmp_path / "out", text=TEXT, device="cpu", scales=True, **QUICK)
    assert healed.improved and len(healed.blocks) == 2 and "model.layers.1" in healed._repr_html_()
    healing = json.loads((tmp_path / "out" / "karipap.json").read_text())["healing"]
    assert _typed(healing) == " --scales --windows 256 --passes 3 --rate 0.01 --window 32"
