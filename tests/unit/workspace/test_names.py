"""Names of runs and plans: what they may be, where they lie, and that what was measured stays as it is."""

import json

import pytest

from karipap_core.cli.frame import main
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.schemas import NAME
from karipap_core.tradeoffs.point import called
from karipap_core.workspace import Workspace
from karipap_core.workspace.names import LONGEST, Names, clean, plan_key
from tests.helpers.points import MODEL, ONE, entry


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("smollm2-0.7-lowrank", "smollm2-0.7-lowrank"),
        ("../../etc/passwd", "etc-passwd"),
        ("<b>é</b>", "b-e-b"),
        ("a" * 900, "a" * LONGEST),
        ("-rf --now", "rf-now"),
        ("CON\0\n.json.", "CON-.json"),
    ],
)
def test_whatever_is_typed_becomes_a_name_of_a_file(typed, name):
    assert clean(typed) == name and NAME.fullmatch(name) and clean(name) == name


@pytest.mark.parametrize("typed", ["", "  ", "模型", "…/.."])
def test_what_leaves_nothing_is_no_name(typed):
    with pytest.raises(InputError, match="A name needs a letter"):
        clean(typed)
    assert clean(typed, otherwise="plan") == "plan"


def test_a_name_is_kept_beside_the_runs_changed_and_found_again():
    names = Names()
    assert names.of("run-1") is None and names.all() == {}
    assert names.give("run-1", "first one") == "first-one"
    assert names.give("run-1", "second") == Names().of("run-1") == "second"
    assert names.all() == {"run-1": "second"}
    for key in ("../x", "a/b", ""):
        with pytest.raises(InputError, match="is not a name"):
            names.give(key, "x")


def test_a_damaged_name_counts_as_none():
    names = Names()
    names.give("run-1", "mine")
    file = names.folder / "run-1.json"
    file.write_text(file.read_text().replace("mine", "thine"))
    assert names.of("run-1") is None and names.all() == {}
    file.write_text(json.dumps({"format": "karipap-name", "version": 1, "name": "<script>"}))
    assert names.all() == {}


def test_runs_are_called_by_their_names_and_equal_ones_are_told_apart():
    runs = [{"id": f"run-00000{k}", "label": f"label {k}"} for k in range(3)]
    for run in runs[:2]:
        Names().give(run["id"], "mine")
    found = called(runs)
    assert [run["label"] for run in found] == ["mine (000000)", "mine (000001)", "label 2"]
    assert found[0]["described"] == "label 0" and found[0]["name"] == "mine"
    assert runs[0] == {"id": "run-000000", "label": "label 0"}


def test_a_plans_name_travels_in_its_file_and_is_no_part_of_what_it_is(tmp_path):
    plan = Plan.from_json(ONE.to_json())
    plan.name = "tiny-0.5"
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again.name == "tiny-0.5" and plan_key(again.to_json()) == plan_key(ONE.to_json())
    assert Workspace().keep_plan(again.to_json(), "x").endswith(plan_key(ONE.to_json()))
    for wrong in ("../x", "a b", "", 3, "x" * 200):
        with pytest.raises(InputError, match="name"):
            Plan.from_json(ONE.to_json() | {"name": wrong})


def test_the_name_that_a_plan_has_by_itself():
    def made(**more) -> str:
        weights = {"a": entry(24, 24, 4), "b": {"network": "dense"}} | more.pop("weights", {})
        return Plan(MODEL | more.pop("model", {}), "loss", weights, **more).called

    assert made(budget=0.7, model={"name": "HuggingFaceTB/SmolLM2"}) == "smollm2-0.7-lowrank"
    assert made(budget_bytes=0.25, weights={"a": entry(24, 24, 4, "int4")}) == "tiny-0.25-lowrank-int4"
    assert made(predicted={"kept": 0.6543}, model={"name": "模型"}) == "model-0.65-lowrank"
    assert made(budget=1.0, weights={"a": {"network": "dense"}}) == "tiny-1"


def test_show_gives_a_plans_name(tmp_path, capsys):
    plan = Plan.from_json(ONE.to_json())
    plan.name = "tiny-0.5"
    plan.save(tmp_path / "plan.json")
    assert main(["show", str(tmp_path / "plan.json")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["name", "tiny-0.5"]
