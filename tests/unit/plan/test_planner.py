"""Plans that mix: formats, groups of weights that share cores, tables of tokens, and the mix `auto`."""

import functools
import json
from collections import Counter

import numpy as np
import pytest
import torch

from karipap_core.compressed.compress import compress
from karipap_core.errors import InputError
from karipap_core.evaluation.folder import evaluate_folder
from karipap_core.evaluation.scoring import Scoring
from karipap_core.models.load import load_model
from karipap_core.networks import NETWORKS
from karipap_core.plan.allocate import Options, allocate, merged, together
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Entry, Plan
from karipap_core.plan.kind import FORMATS, WHOLE, Kind, is_of, kinds_of, table_kinds_of
from karipap_core.plan.planner import Planner
from tests.helpers.studies import squares, study_of

quick = pytest.mark.usefixtures("quick_fits")
HELD_OUT = squares(100)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A study of an architecture by its name; what one test has measured, the next ones find."""
    return functools.cache(lambda name: study_of(name, tmp_path_factory.mktemp(name)))


def disk_bytes(folder) -> int:
    """Bytes of all tensors in a folder, from the files' own headers."""
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            total += sum(handle.get_tensor(n).numel() * handle.get_tensor(n).element_size() for n in handle.keys())  # noqa: SIM118
    return total


def table(name, *rows):
    chi, cost, damage = zip(*rows, strict=True)
    return Options(name, np.array(chi), np.array(cost, float), np.array(damage, float))


def test_merged_keeps_what_no_other_option_beats():
    one = table("w", (1, 10, 5.0), (2, 20, 2.0), (0, 40, 0.0))
    other = table("w", (7, 12, 5.5), (8, 15, 1.0), (9, 30, 0.9))
    found = merged("w", [one, other])
    assert list(zip(found.kind, found.chi, found.cost, found.damage, strict=True)) == [
        (0, 1, 10, 5.0),
        (1, 8, 15, 1.0),
        (1, 9, 30, 0.9),
        (0, 0, 40, 0.0),
    ]


def test_together_holds_every_choice_that_is_best_at_a_price():
    rng = np.random.default_rng(3)
    tables = []
    for name in "abc":
        cost, damage = np.sort(rng.uniform(1, 9, 6)), -np.sort(-rng.uniform(0, 4, 6))
        tables.append(Options(name, np.arange(6), cost, damage))
    found, picks = together("abc", tables)
    assert (np.diff(found.cost) > 0).all() and (np.diff(found.damage) < 0).all()
    for price in np.geomspace(1e-3, 1e3, 200):
        best = sum(min(t.damage + price * t.cost) for t in tables)
        assert min(found.damage + price * found.cost) == pytest.approx(best)
    for cost, pick in zip(found.cost, picks, strict=True):
        assert cost == pytest.approx(sum(t.cost[pick[t.name]] for t in tables))
    assert allocate([found], float(found.cost[-1]))["abc"] == len(picks) - 1


@quick
@pytest.mark.parametrize("quantize", ["int8", "int4", "int3", "int2", "fp8"])
def test_a_format_holds_for_cores_and_for_what_stays_whole(study, quantize, tmp_path):
    bits = 8 if quantize == "fp8" else int(quantize[3])
    budget = 0.35 if bits < 8 else 0.6
    plan = Planner(study, Choice("lowrank", quantize=quantize), "loss").make(
        Budget(budget, scope="blocks"), "calibrated"
    )
    entries = [entry for name, entry in plan.weights.items()]
    assert {entry["quantize"] for entry in entries} == {quantize} and len(entries) == len(study.weights)
    ledger = plan.ledger(study.checkpoint)
    assert ledger.bytes_kept_blocks <= budget + 1e-9
    result = compress(study, plan, tmp_path / "out")
    assert disk_bytes(tmp_path / "out") == result["bytes"] == ledger.bytes
    measured = evaluate_folder(tmp_path / "out", study.checkpoint.path, HELD_OUT, Scoring(max_tokens=256), speed=False)
    assert np.isfinite(measured["loss"])


@quick
def test_more_bits_lose_less_and_auto_is_no_worse_than_any_one_format(study):
    sums = {}
    for quantize in ("int8", "int4", "int2"):
        planner = Planner(study, Choice("lowrank", quantize=quantize), "loss")
        sums[quantize] = planner.damage_sum(
            {w.name: Entry.made(Kind("dense", quantize).spec(w.shape, 0)) for w in study.weights}
        )
    assert sums["int8"] < sums["int4"] < sums["int2"]
    budget = Budget(0.45, scope="blocks")
    mixed = Planner(study, Choice("lowrank", quantize="auto"), "loss").make(budget, "calibrated").predicted["sum"]
    for quantize in (None, "int4"):
        one = Planner(study, Choice("lowrank", quantize=quantize), "loss").make(budget, "calibrated").predicted["sum"]
        assert mixed <= one * 1.02, quantize


def test_the_budget_in_bytes_counts_the_packed_bytes(study):
    planner = Planner(study, Choice("lowrank", quantize="int4"), "loss")
    plan = planner.make(Budget(kept_bytes=0.5), "calibrated")
    assert plan.ledger(study.checkpoint).bytes_kept <= 0.5


@quick
def test_tree_shares_its_cores_on_disk_and_in_the_ledger(study, tmp_path):
    plan = Planner(study, "tree", "loss").make(Budget(0.6, scope="blocks"), "calibrated")
    trees = {name: entry for name, entry in plan.weights.items() if entry["network"] == "tree"}
    assert trees and plan.predicted["kept_blocks"] <= 0.6
    assert any(len(entry["members"]) > 1 for entry in trees.values())
    result = compress(study, plan, tmp_path / "out")
    assert disk_bytes(tmp_path / "out") == result["bytes"]
    model = load_model(tmp_path / "out")[0]
    source = study.decompositions("loss")
    dense = load_model(study.checkpoint)[0]
    from karipap_core.models.sites import replaced, sites

    ids = torch.arange(24).reshape(1, -1)
    matrices = {name: source.matrix(name, plan.spec(name)) for name in trees}
    with torch.no_grad(), replaced(sites(dense, study.checkpoint), matrices):
        wanted = dense(ids).logits
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, wanted, rtol=1e-4, atol=1e-5)


@quick
def test_a_group_that_lost_a_member_is_refused(study):
    plan = Planner(study, "tree", "loss").make(Budget(0.6, scope="blocks"), "calibrated")
    name = next(n for n, e in plan.weights.items() if e["network"] == "tree" and len(e["members"]) > 1 and e["at"] > 0)
    owner = plan.weights[name]["members"][0]
    broken = Plan.from_json(plan.to_json() | {"weights": {n: e for n, e in plan.weights.items() if n != owner}})
    with pytest.raises(InputError, match="shares cores with"):
        broken.check(study.checkpoint)


@quick
def test_locks_hold_and_open_their_group(study):
    weight = study.weights[0]
    lock = {"network": "lowrank", "out": [weight.shape[0]], "in": [weight.shape[1]], "chi": [3]}
    for network in ("tree", "auto", "qlr"):
        plan = Planner(study, network, "loss", {weight.name: lock}).make(Budget(0.7, scope="blocks"), "calibrated")
        assert plan.weights[weight.name]["chi"] == [3] and plan.weights[weight.name]["locked"]
        mates = [e for e in plan.weights.values() if weight.name in e.get("members", [])]
        assert not mates, "a group with a locked weight is not shared"
        assert plan.predicted.get("bytes_kept_blocks", plan.predicted["kept_blocks"]) <= 0.7


@quick
def test_auto_mixes_says_why_and_is_predicted_no_worse_than_each_network_alone(study, tmp_path):
    budget = Budget(0.5, scope="blocks")
    plan = Planner(study, "auto", "loss").make(budget, "calibrated")
    for network in NETWORKS:
        alone = Planner(study, network, "loss").make(budget, "calibrated")
        assert plan.predicted["sum"] <= alone.predicted["sum"] * 1.02, network
    for name, entry in plan.weights.items():
        assert "Predicted damage" in entry["why"], name
        assert entry["network"] in entry["why"] or entry["network"] == "dense"
    compress(study, plan, tmp_path / "out")
    again = Plan.parse(json.dumps(plan.to_json()))
    assert again.weights == plan.weights


@quick
def test_a_mix_of_named_networks_takes_those_and_none_other(study):
    budget = Budget(0.25, scope="blocks")
    plan = Planner(study, Choice("lowrank+qlr", quantize="auto"), "loss").make(budget, "calibrated")
    assert {entry["network"] for entry in plan.weights.values()} <= {"lowrank", "qlr", "dense"}
    for network in ("lowrank", "qlr"):
        alone = Planner(study, Choice(network, quantize="auto"), "loss").make(budget, "calibrated")
        assert plan.predicted["sum"] <= alone.predicted["sum"] * 1.02, network
    assert all("Predicted damage" in entry["why"] for entry in plan.weights.values())
    with pytest.raises(InputError, match="'svd'"):
        Planner(study, "lowrank+svd", "loss")


@quick
def test_auto_is_checked_against_single_networks_by_measured_loss(study):
    plan = Planner(study, "auto", "loss").make(Budget(0.5, scope="blocks"), "best")
    rules = Counter(row["rule"].split(",")[0] for row in plan.tried)
    assert rules == {"calibrated": 3} and sum("alone" in row["rule"] for row in plan.tried) == 2
    least = min(row["rise"] for row in plan.tried)
    assert plan.predicted["rise"] <= least + 0.002


@pytest.mark.parametrize("architecture", ["llama", "llama_untied", "gpt2"])
@pytest.mark.parametrize("embedding", ["lowrank", "tt"])
def test_tables_of_tokens_are_weights_like_others(studies, architecture, embedding, tmp_path):
    study = studies(architecture)
    planner = Planner(study, Choice("lowrank", embedding=embedding), "loss")
    plan = planner.make(Budget(0.6), "calibrated")
    word = {"lowrank": "lowrank", "tt": "tt_embedding"}[embedding]
    tables = plan.tables(study.checkpoint)
    assert tables and {plan.weights[name]["network"] for name in tables} == {word}
    assert plan.predicted["kept"] <= 0.6
    result = compress(study, plan, tmp_path / "out")
    assert disk_bytes(tmp_path / "out") == result["bytes"] == plan.predicted["bytes"]
    measured = evaluate_folder(tmp_path / "out", study.checkpoint.path, HELD_OUT, Scoring(max_tokens=256), speed=False)
    assert np.isfinite(measured["loss"])


@quick
@pytest.mark.parametrize("structure", ["head", "columns"])
def test_a_structure_around_the_network_is_counted_and_stored(study, structure, tmp_path):
    plan = Planner(study, Choice("mpo", structure=structure), "loss").make(Budget(0.6, scope="blocks"), "calibrated")
    networks = [entry for entry in plan.weights.values() if entry["network"] == "mpo"]
    assert networks and all(entry["structure"][structure] for entry in networks)
    assert plan.predicted.get("bytes_kept_blocks", plan.predicted["kept_blocks"]) <= 0.6
    result = compress(study, plan, tmp_path / "out")
    assert disk_bytes(tmp_path / "out") == result["bytes"]
    measured = evaluate_folder(tmp_path / "out", study.checkpoint.path, HELD_OUT, Scoring(max_tokens=256), speed=False)
    assert np.isfinite(measured["loss"])


def test_kinds_name_what_is_wrong(study):
    with pytest.raises(InputError, match="Network 'nonsense'"):
        kinds_of("nonsense", None)
    with pytest.raises(InputError, match="Network 'lowrnk' .* Did you mean 'lowrank'?"):
        kinds_of("mpo+lowrnk", None)
    with pytest.raises(InputError, match="Format 'int5'"):
        kinds_of("lowrank", "int5")
    with pytest.raises(InputError, match="Structure 'row' .* Did you mean 'rows'?"):
        kinds_of("mpo", None, "row")
    with pytest.raises(InputError, match="Structure 'rows': 'tree' takes none"):
        kinds_of("tree", None, "rows")
    with pytest.raises(InputError, match="Embedding 'ttt' .* Did you mean 'tt'?"):
        table_kinds_of("ttt", None)
    with pytest.raises(InputError, match="Rule 'calibrate' .* Did you mean 'calibrated'?"):
        Planner(study, "lowrank", "loss").make(Budget(0.5), "calibrate")
    with pytest.raises(InputError, match="Metric 'lost' .* Did you mean 'loss'?"):
        Planner(study, "lowrank", "lost")


def test_kinds_are_what_each_network_says_of_itself():
    assert [kind.label for kind in kinds_of("lowrank", "auto")] == [
        *("lowrank", "lowrank int8", "lowrank int4"),
        *("dense int8", "dense int4", "dense int4g128", "dense int3", "dense int3g128"),
        *("dense int2", "dense int2g64", "dense int2g128", "dense"),
    ]
    assert [kind.label for kind in kinds_of("tree+mpo", "int8", "head")] == [
        *("tree int8", "mpo structure=head int8", "dense int8")
    ]
    assert [kind.label for kind in kinds_of("qlr", None)] == [
        *("qlr bits=int4 int4", "dense int4", "qlr bits=int3 int4", "dense int3", "qlr bits=int2 int4", "dense int2"),
        "dense",
    ]
    assert [kind.label for kind in table_kinds_of("tt", "auto")] == [
        *("tt_embedding form=table", "dense int8", "dense int4", "dense int4g128", "dense int3", "dense int3g128"),
        *("dense int2", "dense int2g64", "dense int2g128", "dense"),
    ]
    sizes = [Kind("dense", form).spec((64, 256), 0).bytes(2) for form in FORMATS]
    assert sizes == sorted(sizes, reverse=True) and len({*sizes}) == len(sizes), "each costs less than the one before"
    for kind in {*kinds_of("auto", "auto"), *kinds_of("mpo", None, "rows"), *table_kinds_of("tt", None)} - {WHOLE}:
        assert is_of(kind.spec((24, 32), 2), kind)
        assert not any(is_of(kind.spec((24, 32), 2), other) for other in kinds_of("auto", "auto") if other != kind)
