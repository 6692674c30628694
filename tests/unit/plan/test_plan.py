"""The plan file: round trip, counting, and one clear sentence for everything that can be wrong with it."""

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.networks.mpo import Mpo
from karipap_core.plan.document import Entry, Plan, made_of, model_entry
from tests.helpers.architectures import make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(make("llama", tmp_path_factory.mktemp("llama")))


def lowrank(weight, chi):
    return {"network": "lowrank", "out": [weight.shape[0]], "in": [weight.shape[1]], "chi": [chi], "quantize": None}


def a_plan(checkpoint, chi=2):
    weights = {w.name: lowrank(w, chi) for w in checkpoint.weights if w.compressible}
    return Plan(model_entry(checkpoint), "weight", weights)


def test_round_trip_through_a_file(checkpoint, tmp_path):
    plan = a_plan(checkpoint)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_an_entry_is_its_json_and_knows_its_network_once(checkpoint, monkeypatch):
    plan = a_plan(checkpoint)
    name = next(iter(plan.weights))
    spec = plan.spec(name)
    assert Entry.made(spec).spec is spec and Entry.made(spec) == spec.to_json()
    assert Entry.made(None) == {"network": "dense"} and Entry.made(None).spec is None
    monkeypatch.setattr("karipap_core.networks.spec_from_json", None)  # nothing is parsed a second time
    assert plan.spec(name) is spec
    marked = plan.weights[name].marked(locked=True)
    assert marked.spec is spec and json.dumps(marked) == json.dumps(plan.weights[name] | {"locked": True})
    assert "locked" not in plan.weights[name]


def test_ledger_counts_cores_and_all_that_stays(checkpoint):
    plan = a_plan(checkpoint, chi=3)
    ledger = plan.ledger(checkpoint)
    dense = [w for w in checkpoint.weights if w.compressible]
    cores = sum(3 * sum(w.shape) for w in dense)
    rest = checkpoint.parameters - sum(w.shape[0] * w.shape[1] for w in dense)
    assert ledger.parameters == cores + rest and ledger.block_parameters == cores
    assert ledger.kept == ledger.parameters / checkpoint.parameters
    assert ledger.bytes == 4 * ledger.parameters  # a float32 checkpoint
    assert Plan(model_entry(checkpoint), "weight", {}).ledger(checkpoint).kept == 1.0


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_any_valid_chi_survives_json_and_counts(checkpoint, data):
    weights, total = {}, 0
    for w in checkpoint.weights:
        if w.compressible and data.draw(st.booleans()):
            chi = data.draw(st.integers(1, min(w.shape)))
            weights[w.name] = lowrank(w, chi)
            total += chi * sum(w.shape) - w.shape[0] * w.shape[1]
    plan = Plan.parse(json.dumps(Plan(model_entry(checkpoint), "loss", weights).to_json()))
    plan.check(checkpoint)
    assert plan.ledger(checkpoint).parameters == checkpoint.parameters + total


BROKEN = {
    "format": (lambda d: d.update(format="other"), "format"),
    "version": (lambda d: d.update(version=9), "version"),
    "metric": (lambda d: d.update(metric="l2"), "metric"),
    "unknown field": (lambda d: d.update(extra=1), "extra"),
    "fingerprint": (lambda d: d["model"].update(fingerprint="zz"), "model.fingerprint"),
    "missing chi": (lambda d: next(iter(d["weights"].values())).pop("chi"), "weights"),
    "chi zero": (lambda d: next(iter(d["weights"].values())).update(chi=[0]), "chi"),
    "chi a word": (lambda d: next(iter(d["weights"].values())).update(chi="many"), "chi"),
    "weights a list": (lambda d: d.update(weights=[]), "weights"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plan_names_its_field(checkpoint, case):
    document = copy.deepcopy(a_plan(checkpoint).to_json())
    change, field = BROKEN[case]
    change(document)
    with pytest.raises(InputError, match=field) as caught:
        Plan.from_json(document, "plan.json")
    assert str(caught.value).startswith("plan.json") and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2", '{"a": NaN}', "\x00", "[" * 100_000])
def test_what_is_no_json_is_refused_in_one_sentence(text):
    with pytest.raises(InputError, match="plan.json"):
        Plan.parse(text, "plan.json")


def test_another_checkpoints_plan_is_refused_unless_forced(checkpoint):
    plan = a_plan(checkpoint)
    plan.model = plan.model | {"fingerprint": "0" * 64}
    with pytest.raises(InputError, match="--force"):
        plan.check(checkpoint)
    plan.check(checkpoint, force=True)


def test_entries_are_held_against_the_weights(checkpoint):
    name = next(w.name for w in checkpoint.weights if w.compressible)
    embed = next(w for w in checkpoint.weights if w.role == "embed")
    cases = [
        ({"no.such.weight": {"network": "dense"}}, "no.such.weight"),
        ({name: {"network": "lowrank", "out": [7], "in": [7], "chi": [2]}}, name),
        ({name: {"network": "nonsense", "out": [7], "in": [7], "chi": [2]}}, name),
        ({embed.name: Mpo.for_shape(*embed.shape, 2).to_json()}, "looked up"),
    ]
    for weights, words in cases:
        with pytest.raises(InputError, match=words):
            Plan(model_entry(checkpoint), "weight", weights).check(checkpoint)


def test_a_plan_says_what_it_is_made_of_and_where_integers_alone_were_best():
    integers = [{"network": "dense", "quantize": form} for form in ("int4", "int4", "int3")]
    assert made_of(integers) == "integers alone 3 (int4 2, int3 1): no network pays for its bytes here"
    networks = [{"network": "lowrank", "quantize": "int4"}, {"network": "qlr", "bits": "int3", "quantize": "int4"}]
    said = made_of([*integers, *networks, {"network": "dense"}, {"network": "peps", "quantize": None}])
    assert said == (
        "integers alone 3 (int4 2, int3 1), networks 3 (lowrank int4 1, qlr int3 + int4 1, peps 1), as it was 1"
    )
