"""The draft of a plan: history, edits, the plan's file, and what is kept on disk."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from karipap_core.errors import InputError
from karipap_core.plan.calibration import Fit
from karipap_core.plan.document import Plan
from karipap_core.workspace import Workspace
from pages.parts import chi_board, draft
from pages.parts.draft import Draft, History
from tests.helpers.synthetic import llama_model, llama_rows

FINGERPRINT = "ab" * 32


@pytest.fixture(scope="module")
def found():
    """Tables of a small model; what `tables.Tables` has that drafts need."""
    rows = llama_rows(2, hidden=32, kv=16, mlp=48)
    calibration = SimpleNamespace(text={"text": "t", "sha256": "0" * 64, "tokens": 9, "window": 8})
    model = llama_model(50, 32)
    model["fit"] = Fit(model["points"], 1, "t", 1.0, model["error"], 0, "kl", model["dense_loss"])
    return SimpleNamespace(
        choices=None, rows=rows, model=model, calibration=calibration, names=[r["name"] for r in rows], notes=()
    )


@pytest.fixture(scope="module")
def checkpoint(found):
    weights = [
        SimpleNamespace(name=row["name"], shape=row["shape"], compressible=True, role=row["role"]) for row in found.rows
    ]
    parameters = sum(row["parameters_dense"] for row in found.rows)
    sizes = {"parameters": parameters + 3200, "block_parameters": parameters, "bytes": 2 * (parameters + 3200)}
    return SimpleNamespace(name="made up", fingerprint=FINGERPRINT, weights=weights, as_stored=None, **sizes)


@pytest.fixture
def start(found):
    return Draft("lowrank", "loss", "calibrated", {name: 5 for name in found.names}, budget=0.5)


def exported(now, checkpoint, found) -> Plan:
    totals = chi_board.totals(found.rows, found.model, now.chi)
    return Plan.from_json(json.loads(json.dumps(draft.to_plan(now, checkpoint, found, totals).to_json())))


# ---- history ----------------------------------------------------------------------------------------------------


def test_undo_and_redo_walk_and_a_new_step_forgets_what_was_undone(start):
    history = History([start])
    one, two = start.with_chi(start.chi | {"x": 1}), start.with_chi(start.chi | {"x": 2})
    history.push(one)
    history.push(one)  # nothing new
    history.push(two)
    assert len(history.drafts) == 3
    history.undo(), history.undo(), history.undo()
    assert history.now == start
    history.redo()
    assert history.now == one
    other = start.with_chi({"x": 3})
    history.push(other)
    history.redo()
    assert history.now == other and history.drafts == [start, one, other]


def test_every_change_of_view_has_a_revision_of_its_own(start):
    history, seen = History([start]), []
    for act in (lambda: history.push(start.with_chi({"x": 1})), history.undo, history.redo, history.redo):
        act()
        seen.append((history.revision, history.editor))
    assert seen == [(1, 1), (2, 2), (3, 3), (3, 3)]
    history.push(start.with_chi({"x": 9}), from_editor=True)
    assert (history.revision, history.editor) == (4, 3)  # the table keeps its edits when they are its own


def test_history_is_bounded(start):
    history = History([start])
    for k in range(3 * draft.MOST_STEPS):
        history.push(start.with_chi({"x": k}))
    assert len(history.drafts) == draft.MOST_STEPS and history.now.chi == {"x": 3 * draft.MOST_STEPS - 1}


# ---- edits ------------------------------------------------------------------------------------------------------


def test_edited_rows_change_chi_and_locks(start, found):
    names = found.names
    largest = {name: 30 for name in names}
    edits = {"2": {"chi": 7}, 0: {"locked": True}, "3": {"chi": 0, "locked": True}, "4": {"chi": 500}}
    edits["5"] = {"chi": None}  # an emptied cell, which says "dense"
    new = draft.edited_rows(start, names, edits, largest)
    assert [new.chi[names[k]] for k in (2, 3, 4, 5)] == [7, 0, 30, 0]
    assert new.locked == (names[0], names[3]) and new.hand == tuple(names[2:6])
    back = draft.edited_rows(new, names, {0: {"locked": False}}, largest)
    assert back.locked == (names[3],)


@pytest.mark.parametrize(
    "edits",
    [
        {"x": {"chi": 3}},
        {"99": {"chi": 3}},
        {"1": {"chi": "3"}},
        {"1": {"name": "y"}},
        {"1": {"chi": float("nan")}},
        {"1": {"chi": True}},
        {"1": {"locked": 1}},
        {},
    ],
)
def test_edits_that_make_no_sense_change_nothing(start, found, edits):
    assert draft.edited_rows(start, found.names, edits, {name: 30 for name in found.names}) == start


def test_a_release_of_the_board_is_taken_in(start, found):
    release = chi_board.Release({name: 3 for name in found.names}, [found.names[1]], [], None, "cell", None, 4)
    new = draft.released(start, release)
    assert set(new.chi.values()) == {3} and new.locked == (found.names[1],) and new.budget == 0.5


def test_what_is_held_is_carried_over_as_far_as_it_is_an_option_there(start, found):
    names = found.names
    now = start.with_chi(
        start.chi | {names[0]: 0, names[1]: 9, names[2]: 0}, hand=(names[0], names[1]), locked=(names[2], names[3])
    )
    before = SimpleNamespace(choices=None, network="lowrank", rows=found.rows)
    same, dropped = draft.carried(now, draft.replace(now, rule="uniform"), before, before)
    assert dropped == 0 and same.hand == now.hand and same.locked == now.locked
    assert same.chi == {names[0]: 0, names[1]: 9, names[2]: 0, names[3]: 5}, "the rule chooses the others"
    # Another network has none of the options but dense.
    other, dropped = draft.carried(
        now, draft.replace(now, network="mpo"), before, SimpleNamespace(**vars(before) | {"network": "mpo"})
    )
    assert dropped == 2 and (other.hand, other.locked) == ((names[0],), (names[2],))
    assert other.chi == {names[0]: 0, names[2]: 0}


def test_weights_that_share_cores_are_carried_over_together_or_not_at_all(start, found):
    names = found.names
    rows = [row | {"group": "g" if k < 3 else None} for k, row in enumerate(found.rows)]
    before = SimpleNamespace(choices=None, network="lowrank", rows=found.rows)

    def after(places):
        choices = SimpleNamespace(of_entry=lambda name, entry: places[name, entry["chi"][0]])
        return SimpleNamespace(choices=choices, network="auto", rows=rows)

    now = start.with_chi(start.chi | {names[1]: 4}, hand=(names[0], names[1], names[4]))
    new = draft.replace(now, network="auto")
    places = {(names[0], 5): {2, 3}, (names[1], 4): {3, 7}, (names[4], 5): {9}}
    kept, dropped = draft.carried(now, new, before, after(places))
    assert dropped == 0 and kept.chi == {names[0]: 3, names[1]: 3, names[2]: 3, names[4]: 9}
    kept, dropped = draft.carried(now, new, before, after(places | {(names[1], 4): {7}}))
    assert dropped == 2 and kept.hand == (names[4],) and kept.chi == {names[4]: 9}


# ---- the plan's file --------------------------------------------------------------------------------------------


def test_a_plan_goes_out_and_comes_back_the_same(start, checkpoint, found):
    now = start.with_chi(
        start.chi | {found.names[0]: 0, found.names[1]: 9}, locked=(found.names[1],), hand=(found.names[0],)
    )
    plan = exported(now, checkpoint, found)
    assert plan.rule == "hand" and plan.weights[found.names[0]] == {"network": "dense", "by": "hand"}
    n_out, n_in = found.rows[1]["shape"]
    wanted = {"network": "lowrank", "out": [n_out], "in": [n_in], "chi": [9], "quantize": None, "locked": True}
    assert plan.weights[found.names[1]] == wanted
    back = draft.from_plan(plan, checkpoint, "file")
    for field in ("network", "metric", "chi", "locked", "hand", "budget", "unit", "scope", "special"):
        assert getattr(back, field) == getattr(now, field), field
    assert exported(back, checkpoint, found).to_json() == plan.to_json()


def test_the_predicted_figures_are_the_boards(start, checkpoint, found):
    totals = chi_board.totals(found.rows, found.model, start.chi)
    predicted = exported(start, checkpoint, found).predicted
    for key in ("kept", "bytes_kept", "kept_blocks", "rise", "loss", "parameters", "bytes"):
        assert predicted[key] == pytest.approx(totals[key], rel=1e-9), key
    assert predicted["source"] == "curve" and predicted["fitted_plans"] == 3


def test_sizes_of_a_plan_are_the_cores(start, checkpoint, found):
    plan = exported(start, checkpoint, found)
    ledger_weights = [
        SimpleNamespace(
            name=row["name"],
            parameters=row["parameters_dense"],
            bytes=2 * row["parameters_dense"],
            compressible=True,
            role=row["role"],
        )
        for row in found.rows
    ]
    ledger = plan.ledger(SimpleNamespace(**vars(checkpoint) | {"weights": ledger_weights, "tied": {}}))
    for key in ("parameters", "bytes", "kept", "bytes_kept", "block_parameters", "kept_blocks"):
        assert plan.predicted[key] == pytest.approx(getattr(ledger, key), rel=1e-6), key


def test_an_opened_plan_keeps_what_was_measured_until_a_chi_changes(start, checkpoint, found):
    plan = exported(start, checkpoint, found)
    plan.rule, plan.chosen_rule, plan.tried = "best", "refined", [{"rule": "refined", "rise": 0.1}]
    plan.predicted = plan.predicted | {"rise": 0.1, "source": "this plan on calibration text"}
    opened = draft.from_plan(plan, checkpoint, "file")
    assert opened.rule == "refined" and exported(opened, checkpoint, found).to_json() == plan.to_json()
    assert opened.with_chi(dict(opened.chi), locked=(found.names[0],)).origin is not None
    changed = opened.with_chi(opened.chi | {found.names[0]: 4})
    assert changed.origin is None and exported(changed, checkpoint, found).predicted["source"] == "curve"


def test_a_budget_in_bytes_stays_one(start, checkpoint, found):
    plan = exported(draft.replace(start, unit="bytes", scope="blocks"), checkpoint, found)
    assert plan.budget is None and plan.budget_bytes == 0.5 and plan.scope == "model"
    assert draft.from_plan(plan, checkpoint, "file").unit == "bytes"


def test_entries_that_are_not_the_networks_own_stay_as_they_are(start, checkpoint, found):
    plan = exported(start, checkpoint, found)
    name = found.names[0]
    entry = {"network": "mpo", "out": [8, 4], "in": [4, 8], "chi": [6], "quantize": None}
    plan.weights[name] = entry
    opened = draft.from_plan(plan, checkpoint, "file")
    assert opened.network == "lowrank" and opened.special[name]["parameters"] == 6 * (32 + 32)
    assert exported(opened, checkpoint, found).weights[name] == entry
    edited = draft.edited_rows(opened, found.names, {"0": {"chi": 3}}, {n: 30 for n in found.names})
    assert edited.chi[name] == 6, "another χ would be another network"
    dense = draft.edited_rows(opened, found.names, {"0": {"chi": 0}}, {n: 30 for n in found.names})
    assert exported(dense, checkpoint, found).weights[name]["network"] == "dense"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: plan.model.update(fingerprint="cd" * 32), "was made for"),
        (lambda plan: plan.weights.update({"gone": {"network": "dense"}}), "gone"),
        (lambda plan: plan.weights["model.layers.0.self_attn.q_proj"].update(out=[31]), "q_proj"),
        (lambda plan: plan.weights["model.layers.0.self_attn.q_proj"].update(chi=[33]), "q_proj"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(start, checkpoint, found, change, words):
    plan = exported(start, checkpoint, found)
    change(plan)
    with pytest.raises(InputError, match=words):
        draft.from_plan(plan, checkpoint, "file")


# ---- kept on disk -----------------------------------------------------------------------------------------------


def test_a_draft_is_kept_and_found_again(start):
    name = draft.keep(start, FINGERPRINT, None)
    assert draft.kept(name, FINGERPRINT) == start
    changed = start.with_chi({"x": 1}, locked=("x",))
    assert draft.keep(changed, FINGERPRINT, name) == name
    assert draft.kept(name, FINGERPRINT) == changed
    assert draft.kept(name, "cd" * 32) is None, "of another model"


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "20260101-000000-000000", "x" * 300, "20260101-000000-00000g"]
)
def test_a_made_up_draft_is_none(name):
    assert draft.kept(name, FINGERPRINT) is None


def test_damaged_drafts_are_none_and_old_ones_go(start):
    names = [draft.keep(start, FINGERPRINT, None) for _ in range(3)]
    folder = Workspace().root / "drafts"
    (folder / f"{names[0]}.json").write_text(json.dumps({"fingerprint": FINGERPRINT, "network": 3}))
    assert draft.kept(names[0], FINGERPRINT) is None
    for _ in range(draft.MOST_DRAFTS):
        draft.keep(start, FINGERPRINT, None)
    assert len(list(folder.glob("*.json"))) == draft.MOST_DRAFTS


def test_numbers_from_numpy_can_be_kept(start):
    odd = start.with_chi({"x": int(np.int64(4))})
    assert draft.kept(draft.keep(odd, FINGERPRINT, None), FINGERPRINT).chi == {"x": 4}
