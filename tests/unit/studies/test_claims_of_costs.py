"""Claims on pace, memory and size: what is counted and written against sums of its own, verdicts on made-up figures.
No time is asserted."""

import json
import struct
import subprocess

import numpy as np
import pytest
import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.speed import Took, took
from karipap_core.networks.lowrank import LowRank
from karipap_core.studies.claims.check import check
from karipap_core.studies.claims.experiments import memory, speed, tensorlm
from karipap_core.studies.claims.experiments.bench import cut_alike, study_of
from karipap_core.studies.claims.resident import resident
from tests.helpers.claims import live, module

# ---- speed --------------------------------------------------------------------------------------------------------


def test_a_model_with_networks_has_their_parameters_and_its_own_biases(made, text):
    study = study_of(made("llama_biases"), text)
    specs = cut_alike(study.weights, 0.3, "lowrank")
    model, dense = speed.with_networks(study, specs), live(made("llama_biases"))
    gone = sum(weight.parameters for weight in study.weights)
    stays = sum(each.numel() for each in dense.parameters()) - gone
    assert sum(each.numel() for each in model.parameters()) == stays + sum(s.parameters for s in specs.values())
    for name, spec in specs.items():
        assert spec.parameters <= 0.3 * spec.n_out * spec.n_in
        assert torch.equal(module(model, name).bias, module(dense, name).bias)
    assert torch.isfinite(model(input_ids=study.windows.check[:1]).logits).all()


def test_a_training_step_moves_the_blocks_alone(made, text):
    study = study_of(made("llama_untied"), text)
    specs = cut_alike(study.weights, 0.3, "mpo", sites=3)
    models = {"dense": speed.with_networks(study, {}), "mpo": speed.with_networks(study, specs)}
    before = {form: {n: p.detach().clone() for n, p in model.named_parameters()} for form, model in models.items()}
    steps, distilled = speed.trained(study, models)
    assert steps.keys() == {"dense", "mpo"} and distilled.keys() == {"mpo"}
    for form, model in models.items():
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[form][n])}
        ours = {name for name in before[form] if ".cores." in name} if form == "mpo" else None
        assert moved == (ours or {f"{weight.name}.weight" for weight in study.weights})


def test_speed_counts_what_a_token_costs(llama, text):
    folder, _, _ = llama
    document = check(folder, "speed", text)
    rows = document["figures"]["rows"]
    weights = [weight for weight in open_checkpoint(folder).weights if weight.compressible]
    chi = [LowRank.for_shape(*w.shape, int(0.3 * w.parameters / sum(w.shape))).chi[0] for w in weights]
    kept = sum(c * sum(w.shape) for c, w in zip(chi, weights, strict=True)) / sum(w.parameters for w in weights)
    assert rows["lowrank"]["kept"] == rows["lowrank"]["work"] == pytest.approx(kept)
    assert rows["dense"]["work"] == 1 and rows["mpo"]["work"] > rows["mpo"]["kept"] <= 0.3
    for form in ("peps", "mpo", "lowrank"):
        for what in ("train", "read", "write"):
            pace = rows[form][what] / rows["dense"][what]
            assert document["figures"]["paces"][what][form] == pytest.approx(pace)
            assert document["measured"][f"{what}_{form}"].startswith(f"{pace:.2f} times (")


def paces(train=(0.5, 0.5), write=(0.5, 0.5), read=(0.5, 0.5)) -> dict:
    rest = {"train": train, "write": write, "read": read}
    return {what: {"peps": a, "mpo": b, "lowrank": a and 2.0} for what, (a, b) in rest.items()}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (paces(), "Not seen here: at 30 % of the parameters the PEPS trains at 0.50 and writes at 0.50"),
        (paces((0.5, 1.6), (1.3, 0.1)), "Seen here"),
        (paces((0.5, 1.6)), "Only training seen here"),
        (paces(write=(1.25, 0.5)), "Only inference seen here"),
        (paces((None, None), (None, None), (1.3, 1.0)), "Seen here: at 30 % of the parameters the PEPS reads at 1.30"),
    ],
)
def test_what_is_said_of_pace_follows_from_it(found, says):
    assert speed.verdict(found).startswith(says)


def test_both_clocks_are_read_and_medians_taken_of_each():
    spent = took(torch.device("cpu"), lambda: sum(range(10_000)))
    assert spent.wall > 0 and spent.cpu >= 0
    middle = Took.median([Took(1, 9), Took(2, 8), Took(7, 1)])
    assert middle == Took(2, 8) and middle.over(4) == Took(0.5, 2)


# ---- memory -------------------------------------------------------------------------------------------------------


def tensors_in(folder) -> dict[str, tuple[str, list[int]]]:
    """Name → (word for the dtype, shape) of a folder's tensors, read from the headers byte by byte."""
    found = {}
    for file in folder.glob("*.safetensors"):
        data = file.read_bytes()
        header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        found |= {name: (each["dtype"], each["shape"]) for name, each in header.items() if name != "__metadata__"}
    return found


def test_what_is_written_is_what_was_meant(made, text, tmp_path):
    from transformers import AutoModelForCausalLM

    import karipap_core  # noqa: F401  (its format)

    study = study_of(made("llama"), text)
    folder = memory._saved(study, torch.bfloat16, tmp_path / "dense16")
    sixteen = study_of(folder, text)
    made_forms = memory.forms(sixteen)
    matrices = memory.write(sixteen.checkpoint, made_forms["lowrank"], tmp_path / "lowrank")
    held = tensors_in(tmp_path / "lowrank")
    assert {dtype for dtype, _ in held.values()} == {"BF16"}
    numbers = sum(int(np.prod(shape)) for name, (_, shape) in held.items() if ".cores." in name)
    shapes = [weight.shape for weight in sixteen.weights]
    assert numbers == sum(int(0.3 * o * i / (o + i)) * (o + i) for o, i in shapes)
    live_ = AutoModelForCausalLM.from_pretrained(tmp_path / "lowrank", dtype=torch.float32)
    for name, matrix in matrices.items():
        torch.testing.assert_close(module(live_, name).weight, matrix, rtol=1e-5, atol=1e-6)
    # Tables in 4 bits: codes of half a byte, and no table in 16 bits beside them.
    memory.write(sixteen.checkpoint, made_forms["int4"], tmp_path / "int4")
    held = tensors_in(tmp_path / "int4")
    rows, columns = sixteen.tables[0].shape
    assert held["model.embed_tokens.cores.0.codes"][1] == [rows * columns // 2]
    assert not any(name.endswith("embed_tokens.weight") or "lm_head" in name for name in held)
    assert memory.write(sixteen.checkpoint, made_forms["peps"], tmp_path / "peps") == {}


def test_memory_is_measured_in_a_process_of_its_own(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, max_position_embeddings=64, **sizes))
    model.save_pretrained(tmp_path / "model")
    found = resident(tmp_path / "model", "float32", "cpu")
    held = 4 * sum(each.numel() for each in model.parameters())
    assert held <= found["weights_bytes"] < 1.02 * held  # and buffers
    assert 0.9 * held < found["resident_bytes"] < 1.5 * held and found["peak_bytes"] >= found["weights_bytes"]


def test_a_process_that_fails_is_told_in_a_sentence(monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nMemoryError: no room\n")
    monkeypatch.setattr(subprocess, "run", lambda *words, **how: failed)
    with pytest.raises(InputError, match="^tiny could not be loaded and run in a process of its own: MemoryError: no"):
        resident(tmp_path / "tiny", "float32", "cpu")


def test_memory_says_what_each_form_takes_on_disk(llama, text):
    document = check(llama[0], "memory", text)
    rows = document["figures"]["rows"]
    assert rows["dense32"]["stored"] > 1.8 * rows["dense16"]["stored"]
    for row in rows.values():
        assert row["stored_less"] == pytest.approx(1 - row["stored"] / rows["dense32"]["stored"])
        assert row["running_less_16"] == pytest.approx(1 - row["running"] / rows["dense16"]["running"])
    assert rows["mpo8_rest4"]["stored"] < rows["mpo_rest4"]["stored"] < rows["lowrank"]["stored"]
    assert "rise" in rows["int4"] and "rise" not in rows["peps"]


def memory_row(less: float, running: float | None = None, **more) -> dict:
    keys = {"stored": 1 - less, "stored_less": less, "running_less": less if running is None else running}
    return keys | {"stored_less_16": 2 * less - 1} | more


@pytest.mark.parametrize(
    ("mpo", "running", "says"),
    [(0.94, 0.93, "Seen here"), (0.94, 0.9, "Not seen here"), (0.88, None, "Not seen here")],
)
def test_what_is_said_of_memory_follows_from_it(mpo, running, says):
    rows = {form: memory_row(0.7) for form in (*memory.NETWORKS, "int4")}
    rows["mpo8_rest4"] = memory_row(mpo, running, rise=0.5)
    rows["int4"] = memory_row(0.87, rise=0.1)
    words = memory.verdict(rows)
    assert words.startswith(f"{says}: the 2×2 PEPS takes 70 % less than 32 bits on disk")
    assert "Plain 4 bits without a network take 87 % less and 87 % less" in words
    assert "a rise in loss of 0.1 against the MPO's 0.5" in words
    assert ("fewer bytes" in words) == (mpo < 0.87)


# ---- the tree -----------------------------------------------------------------------------------------------------


def test_plans_are_eighteen_times_smaller_whatever_the_dtype(made, text):
    study = study_of(made("llama_untied"), text)  # stored in 32 bits
    dense = sum(2 * weight.parameters for weight in study.weights)
    for quantize in (None, "int4"):
        specs = tensorlm.planned(study, "lowrank", quantize)
        assert {spec.quantize for spec in specs.values()} == {quantize}
        if quantize is None:  # counted by hand
            taken = sum(2 * spec.chi[0] * (spec.n_out + spec.n_in) for spec in specs.values())
        else:  # half a byte a number, a 16-bit scale and half a byte of zero point for at most 64 of a row
            groups = [(r, c, -(-c // 64)) for s in specs.values() for r, c in s.core_shapes]
            taken = sum(-(-r * c // 2) + 2 * r * g + -(-r * g // 2) for r, c, g in groups)
        taken += sum(2 * w.parameters for w in study.weights if w.name not in specs)
        assert tensorlm.block_bytes(study, specs) == taken <= dense / 18
        assert taken > 0.85 * dense / 18


def test_a_small_tree_shares_its_basis_and_fits_the_room(made, text):
    study = study_of(made("llama_untied"), text)
    specs = tensorlm.small_tree(study)
    dense = sum(2 * weight.parameters for weight in study.weights)
    assert tensorlm.block_bytes(study, specs) <= dense / 18
    shared = [spec for spec in specs.values() if len(spec.members) > 1]
    assert shared and all(set(spec.members) <= specs.keys() for spec in shared)
    borrowed = [spec for spec in shared if not all(spec.owned)]  # what they borrow is counted once
    assert len(borrowed) == len(shared) - len({spec.members for spec in shared})
    taken = sum(
        np.prod(s) for spec in specs.values() for s, own in zip(spec.core_shapes, spec.owned, strict=True) if own
    )
    taken += sum(weight.parameters for weight in study.weights if weight.name not in specs)
    assert tensorlm.block_bytes(study, specs) == 2 * taken


def tree_rows(**damages) -> dict:
    rows = {
        key: {"label": tensorlm.FORMS[key][0], "bytes_kept": 0.055, "damage": d, "rise": d}
        for key, d in damages.items()
    }
    return rows | {"int2": {"label": "2 bits", "bytes_kept": 0.14, "damage": 0.5}}


@pytest.mark.parametrize(
    ("damages", "says"),
    [
        (
            {"tree": 1.0, "lowrank": 2.0},
            "Not seen here: 18 times smaller, the tree over layers loses 1 (KL), less than all else as small "
            "(low rank, 2). ",
        ),
        (
            {"tree": 3.0, "tree4": 0.02, "lowrank4": 2.0},
            "Seen here: 18 times smaller, the tree with 4-bit cores loses 0.02",
        ),
        (
            {"tree": 3.0, "lowrank": 5.0, "lowrank4": 2.0},
            "Not seen here: 18 times smaller, the tree over layers loses 3",
        ),
        ({"lowrank": 2.0}, "Cannot be tried: no tree over this model's layers is 18 times smaller."),
        ({"tree": 2.0}, "Not seen here: 18 times smaller, the tree over layers loses 2 (KL). "),
    ],
)
def test_what_is_said_of_the_tree_follows_from_the_damages(damages, says):
    words = tensorlm.verdict(tree_rows(**damages), "KL")
    assert words.startswith(says) and "2 bits take 14.0 % of the bytes and lose 0.5" in words
    best = min(damages.values())
    if any(key.startswith("tree") for key in damages):
        times = f"{best / 0.5:.2g} times less" if best >= 0.5 else f"{0.5 / best:.2g} times more"
        assert f"{times} than the best of these" in words
    if "lowrank4" in damages:
        assert ("not less than all else as small" in words) == (damages["lowrank4"] == best)


def test_one_layer_is_no_tree(tmp_path, text):
    from transformers import LlamaConfig, LlamaForCausalLM

    from tests.helpers.architectures import LLAMA, write_tokenizer

    LlamaForCausalLM(LlamaConfig(**LLAMA | {"num_hidden_layers": 1})).save_pretrained(tmp_path)
    write_tokenizer(tmp_path)
    for claim, why in (("tree", "a tree over layers has nothing to join"), ("sums", "there is nothing to add up")):
        with pytest.raises(InputError, match=why):
            check(tmp_path, claim, text)
