"""The board's tables from the workspace, and that plans made on the page are the command line's."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.plan.curves import save_curves
from karipap_core.plan.kind import Kind, curves_name
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from pages.parts import chi_board, draft, tables
from tests.helpers import made_up
from tests.helpers.made_up_study import Study
from tests.helpers.paths import REPOSITORY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    rng = np.random.default_rng(5)
    weights = {f"{row['name']}.weight": rng.standard_normal(row["shape"]) for row in made_up.profile(2).weights}
    save_file({name: array.astype(np.float32) for name, array in weights.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return open_checkpoint(folder)


@pytest.fixture
def view(checkpoint):
    Study(checkpoint).save()
    return SimpleNamespace(checkpoint=checkpoint, alias="made-up", source="/made-up", only=None)


@pytest.mark.parametrize("rule", ["calibrated", "loss", "functional", "entropy", "uniform"])
@pytest.mark.parametrize(
    ("unit", "scope", "budget"), [("parameters", "blocks", 0.45), ("parameters", "model", 0.8), ("bytes", "model", 0.7)]
)
def test_a_plan_of_the_page_is_the_plan_of_the_command_line(view, rule, unit, scope, budget):
    from karipap_core.plan.budget import Budget
    from karipap_core.plan.planner import Planner

    study = Study(view.checkpoint)
    limits = Budget(kept_bytes=budget) if unit == "bytes" else Budget(kept=budget, scope=scope)
    name = study.weights[3].name
    lock = draft.entry("lowrank", tuple(study.weights[3].shape), 4)
    planner = Planner(study, "lowrank", "loss", {name: lock})
    wanted = planner.plan(planner.allocated(rule, *limits.limit(view.checkpoint)), rule, limits)
    found = tables.tables(view, tables.What("lowrank", "loss"), rule, {})
    assert found.rule == rule
    chi = tables.choose(found, budget, unit, scope, {name: 4}, (name,))
    assert chi == {n: max(e.get("chi", [0])) for n, e in wanted.weights.items()}
    totals = chi_board.totals(found.rows, found.model, chi)
    for key in ("parameters", "bytes", "kept", "bytes_kept", "kept_blocks", "rise", "loss"):
        assert totals[key] == pytest.approx(wanted.predicted[key], rel=1e-6), key
    assert totals["damage"] == pytest.approx(wanted.predicted["sum"], rel=1e-6)
    made = draft.Draft("lowrank", "loss", rule, chi, unit, scope, budget, locked=(name,))
    plan = draft.to_plan(made, view.checkpoint, found, totals)
    assert plan.weights == {n: wanted.weights[n] for n in plan.weights}
    if rule != "calibrated":  # the observed error is that of calibrated plans
        wanted.predicted["error"] = None
    for key, value in wanted.predicted.items():
        assert plan.predicted[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key
    assert (plan.budget, plan.budget_bytes, plan.rule) == (wanted.budget, wanted.budget_bytes, wanted.rule)


def test_rules_are_those_whose_measurements_are_here(view, checkpoint):
    assert tables.tables(view, tables.What("lowrank", "loss"), None, {}).rules == (
        "calibrated",
        "loss",
        "functional",
        "entropy",
        "uniform",
    )
    weight = tables.tables(view, tables.What("lowrank", "weight"), "calibrated", {})
    assert "calibrated" not in weight.rules and weight.rule == weight.rules[0]
    assert weight.model["points"] is None, "nothing was measured under this metric, so nothing is predicted"
    assert tables.metrics(view, "lowrank") == ["weight", "functional", "loss"]
    assert tables.metrics(view, "mpo") == [] and tables.tables(view, tables.What("mpo", "loss"), None, {}) is None


def test_a_new_measurement_is_seen_at_once(view, checkpoint):
    before = tables.tables(view, tables.What("lowrank", "loss"), None, {})
    document = Study(checkpoint).found.to_json()
    document["plans"] = document["plans"][:1]
    write_json(Workspace().calibration_file(checkpoint.key, "loss-abc"), document)
    after = tables.tables(view, tables.What("lowrank", "loss"), None, {})
    assert len(after.model["points"]) == 1 < len(before.model["points"])
    assert after.table["id"] != before.table["id"]


def test_half_a_calibration_is_none(view, checkpoint):
    document = Study(checkpoint).found.to_json()
    document["levels"].popitem()
    write_json(Workspace().calibration_file(checkpoint.key, "loss-abc"), document)
    assert "calibrated" not in tables.tables(view, tables.What("lowrank", "loss"), None, {}).rules


def test_a_special_entry_is_its_weights_one_option(view, checkpoint):
    plain = tables.tables(view, tables.What("lowrank", "loss"), "calibrated", {})
    name = plain.names[0]
    special = {name: {"entry": {}, "chi": 7, "bytes": 400, "parameters": 100, "multiply_adds": 900}}
    row = tables.tables(view, tables.What("lowrank", "loss"), "calibrated", special).rows[0]
    assert (list(row["chi"]), list(row["parameters"]), list(row["multiply_adds"])) == ([7], [100], [900])
    low, high = np.searchsorted(plain.rows[0]["parameters"], 100) + np.array([-1, 0])
    assert plain.rows[0]["damage"][high] <= row["damage"][0] <= plain.rows[0]["damage"][low]


def test_what_cannot_be_kept_is_said(view):
    found = tables.tables(view, tables.What("lowrank", "loss"), "calibrated", {})
    with pytest.raises(InputError, match=r"At least [\d.]+% must be kept"):
        tables.choose(found, 0.01, "parameters", "model", {}, ())
    every = {name: 0 for name in found.names}
    assert tables.choose(found, 0.5, "parameters", "model", every, tuple(found.names)) == every


def test_tables_need_no_torch(view, checkpoint):
    import subprocess
    import sys

    code = (
        "import sys; from types import SimpleNamespace as S; "
        "from karipap_core.checkpoint.open import open_checkpoint; from pages.parts import tables, draft, chi_board; "
        f"c = open_checkpoint({str(checkpoint.path)!r}); v = S(checkpoint=c, only=None); "
        "t = tables.tables(v, tables.What('lowrank', 'loss'), None, {}); "
        "x = tables.choose(t, .5, 'parameters', 'blocks', {}, ()); "
        "d = draft.Draft('lowrank', 'loss', t.rule, x); m = chi_board.totals(t.rows, t.model, x); "
        "p = draft.to_plan(d, c, t, m); draft.from_plan(p, c, 'x'); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, timeout=120)
    assert done.stdout.strip() == "False", done.stderr[-2000:]


# ---- several kinds behind one slider ------------------------------------------------------------------------------


class Mixed(Study):
    """Made-up curves of every kind of network: errors fall with size, by a factor of its own for each."""

    def __init__(self, checkpoint) -> None:
        super().__init__(checkpoint)
        self.tables = []
        self.made: dict = {}

    def curves(self, kind, metric, weights=None):
        kind = Kind(kind) if isinstance(kind, str) else kind
        if kind == Kind("lowrank"):
            return super().curves(kind, metric)
        if (kind, metric) not in self.made:
            make = self.group if kind.network == "tree" else self.single
            self.made[kind, metric] = make(kind, metric)
        return self.made[kind, metric]

    def single(self, kind, metric):
        from karipap_core.plan.curves import _listed

        rng, found = np.random.default_rng(len(kind.label)), {}
        for weight in self.weights:
            total = super().curves("lowrank", metric)[weight.name].total
            chis = [0] if kind.network == "dense" else list(range(1, 13, 2))
            specs = [kind.spec(tuple(weight.shape), chi) for chi in chis]
            chis = [max(spec.chi, default=0) for spec in specs]
            keep = np.unique(chis, return_index=True)[1]
            bits = sum(spec.bytes(2) for spec in specs[:1]) / weight.parameters
            errors = total * rng.uniform(0.5, 1.5) * np.exp(-4 * bits) * 0.8 ** np.arange(len(keep))
            found[weight.name] = _listed([chis[k] for k in keep], [specs[k] for k in keep], errors, total)
        return found

    def group(self, kind, metric):
        from karipap_core.networks.tree.groups import group_names
        from karipap_core.networks.tree.network import group_specs
        from karipap_core.plan.curves import _between

        found = []
        for members in group_names(self.weights):
            first = self.checkpoint.weight(members[0])
            levels = [group_specs(members, tuple(first.shape), chi, quantize=kind.quantize) for chi in (1, 3, 6, 9)]
            totals = np.array([super(Mixed, self).curves("lowrank", metric)[name].total for name in members])
            share = np.array([0.5, 0.1, 0.02, 0.004])[:, None] * np.linspace(0.7, 1.3, len(members))
            found.append(_between(members, levels, share * totals, totals))
        return found

    def save(self) -> None:
        from karipap_core.plan.kind import kinds_of

        super().save()
        home = Workspace().model_dir(self.checkpoint.key)
        for kind in {*kinds_of("auto", None), *kinds_of("lowrank", "auto"), *kinds_of("tree", "int4")}:
            if kind not in (Kind("dense"), Kind("lowrank")):
                for metric in ("loss", "functional"):
                    save_curves(home / "curves" / curves_name(kind, metric, "abc"), self.curves(kind, metric))


@pytest.fixture
def mixed(checkpoint):
    Mixed(checkpoint).save()
    return SimpleNamespace(checkpoint=checkpoint, alias="made-up", source="/made-up", only=None)


CASES = [
    ("tree", None, "parameters", "calibrated"),
    ("tree", "int4", "bytes", "calibrated"),
    ("qlr", None, "bytes", "uniform"),
    ("qlr", None, "parameters", "entropy"),
    ("auto", None, "bytes", "calibrated"),
    ("auto", None, "parameters", "functional"),
    ("lowrank", "auto", "parameters", "loss"),
]


@pytest.mark.parametrize(("network", "quantize", "unit", "rule"), CASES)
def test_plans_of_several_kinds_are_the_command_lines(mixed, network, quantize, unit, rule):
    from karipap_core.plan.budget import Budget
    from karipap_core.plan.choice import Choice
    from karipap_core.plan.planner import Planner

    study, budget = Mixed(mixed.checkpoint), 0.3 if unit == "bytes" else 0.35
    limits = Budget(kept_bytes=budget) if unit == "bytes" else Budget(kept=budget)
    planner = Planner(study, Choice(network, quantize=quantize), "loss")
    wanted = planner.plan(planner.allocated(rule, *limits.limit(mixed.checkpoint)), rule, limits)
    what = tables.What(network, "loss", quantize)
    found = tables.tables(mixed, what, rule, {}, unit)
    assert found.rule == rule
    chi = tables.choose(found, budget, unit, "model", {}, ())
    now = draft.Draft(network, "loss", rule, chi, unit, budget=budget, quantize=quantize)
    totals = chi_board.totals(found.rows, found.model, chi)
    plan = draft.to_plan(now, mixed.checkpoint, found, totals)
    assert plan.weights == wanted.weights
    plan.check(mixed.checkpoint)
    ledger = plan.ledger(mixed.checkpoint)
    other = mixed.checkpoint.parameters - mixed.checkpoint.block_parameters
    assert totals["bytes"] == pytest.approx(ledger.bytes, rel=1e-6)
    assert totals["parameters"] == pytest.approx(ledger.block_bytes / 2 + other, rel=1e-6)
    assert totals["damage"] == pytest.approx(planner.damage_sum(plan.weights), rel=1e-6)
    for key in ("parameters", "bytes", "kept", "kept_blocks", "bytes_kept", "rise"):
        assert plan.predicted[key] == pytest.approx(wanted.predicted[key], rel=1e-6), key
    back = draft.placed(draft.from_plan(plan, mixed.checkpoint, "file"), plan, found)
    assert back.chi == chi and back.special == {}, "every entry finds its option again"


def test_weights_that_share_cores_move_together(mixed):
    found = tables.tables(mixed, tables.What("tree", "loss"), "calibrated", {})
    groups = {row["group"] for row in found.rows}
    assert len(groups) < len(found.rows)
    mates = [row["name"] for row in found.rows if row["group"] == found.rows[0]["group"]]
    assert len(mates) == 2
    now = draft.Draft("tree", "loss", "calibrated", dict.fromkeys(found.names, 0))
    at = found.names.index(mates[0])
    moved = draft.edited_rows(
        now,
        found.names,
        {at: {"chi": 3, "locked": True}},
        dict.fromkeys(found.names, 9),
        {name: mates for name in mates},
    )
    assert {name for name, chi in moved.chi.items() if chi} == set(mates) == set(moved.locked) == set(moved.hand)
    plan = draft.to_plan(moved, mixed.checkpoint, found, chi_board.totals(found.rows, found.model, moved.chi))
    plan.check(mixed.checkpoint)
    assert [plan.weights[name]["at"] for name in mates] == [0, 1]


def test_an_entry_that_is_no_option_stays_as_it_is(mixed):
    what = tables.What("qlr", "loss")
    found = tables.tables(mixed, what, "calibrated", {})
    chi = dict.fromkeys(found.names, 0)
    plan = draft.to_plan(
        draft.Draft("qlr", "loss", "calibrated", chi),
        mixed.checkpoint,
        found,
        chi_board.totals(found.rows, found.model, chi),
    )
    name = found.names[0]
    out, n_in = found.rows[0]["shape"]
    plan.weights[name] = {"network": "mpo", "out": [out // 2, 2], "in": [2, n_in // 2], "chi": [3], "quantize": None}
    opened = draft.placed(draft.Draft("qlr", "loss", "calibrated", chi), plan, found)
    assert set(opened.special) == {name} and opened.chi[name] == 1
    again = tables.tables(mixed, what, "calibrated", opened.special)
    row = again.rows[0]
    assert row["labels"] == ["mpo 3"] and row["parameters"][0] == plan.spec(name).parameters
    totals = chi_board.totals(again.rows, again.model, opened.chi)
    assert draft.to_plan(opened, mixed.checkpoint, again, totals).weights[name] == plan.weights[name]


def test_the_pages_offer_what_the_core_has():
    from karipap_core.networks import NETWORKS
    from karipap_core.plan import kind as planning
    from karipap_core.quantization.formats import Format

    assert (*NETWORKS, "auto") == tables.networks()
    assert tuple(planning.EMBEDDINGS) == tables.EMBEDDINGS
    assert tables.FORMATS[0] == "none" and tables.FORMATS[-1] == "auto"
    assert [Format.parse(form).name for form in tables.FORMATS[1:-1]]
    listed = {network for network in tables.networks() if tables.What(network, "loss").listed}
    assert listed == {"qlr", "tree", "auto"}, "of all others a weight has one of its own, or stays whole"
    for network in set(NETWORKS) - listed:
        assert planning.kinds_of(network, None) == [Kind(network), Kind("dense")]


def test_what_is_not_measured_is_not_offered(mixed):
    assert tables.available(mixed, tables.What("auto", "loss"))
    assert not tables.available(mixed, tables.What("auto", "loss", "int2"))
    assert not tables.available(mixed, tables.What("lowrank", "loss", None, "tt")), "the tables were not measured"


@pytest.mark.parametrize("scope", ["blocks", "language", "model"])
def test_a_plan_of_a_model_with_towers_is_the_command_lines(scope, towered):
    """The vision of a Llava stays dense by text alone, on the page as on the command line, whatever the budget is."""
    from karipap_core.plan.budget import Budget
    from karipap_core.plan.planner import Planner

    view, study = towered
    wanted = Planner(study, "lowrank", "loss").make(Budget(kept=0.8, scope=scope), "calibrated")
    found = tables.tables(view, tables.What("lowrank", "loss"), "calibrated", {}, scope=scope)
    assert {row["tower"] for row in found.rows} == {"language"}
    assert any("of vision are not reached" in note for note in found.notes)
    chi = tables.choose(found, 0.8, "parameters", scope, {}, ())
    totals = chi_board.totals(found.rows, found.model, chi)
    made = draft.Draft("lowrank", "loss", "calibrated", chi, "parameters", scope, 0.8)
    plan = draft.to_plan(made, view.checkpoint, found, totals)
    cut = {name: entry for name, entry in wanted.weights.items() if entry["network"] != "dense"}
    assert {name: entry for name, entry in plan.weights.items() if entry["network"] != "dense"} == cut
    assert plan.notes == wanted.notes and plan.scope == wanted.scope == scope
    for key in ("parameters", "kept", "kept_blocks", "block_parameters", "rise"):
        assert plan.predicted[key] == pytest.approx(wanted.predicted[key], rel=1e-6), key
    assert found.table["weights"]["tower"] == ["language"] * len(found.rows)


@pytest.fixture(scope="module")
def towered(tmp_path_factory):
    from karipap_core.plan.study import Study as Real
    from karipap_core.profiles.activations import CalibrationSettings
    from karipap_core.text import Text
    from tests.helpers.many_kinds import make_kind

    root = tmp_path_factory.mktemp("towered")
    text = Text("numbers", tuple(f"the square of {n} is {n * n}\n" * 3 for n in range(30)))
    settings = CalibrationSettings(tokens=256, window=32, probe_windows=3, check_windows=3)
    study = Real(make_kind("llava", root / "model"), text, settings, "cpu", Workspace(root / "workspace"))
    study.calibration("loss")
    return SimpleNamespace(checkpoint=study.checkpoint, alias="llava", source="llava", only=None), study


@pytest.fixture(autouse=True)
def workspace_of_the_towered(request, monkeypatch):
    if "towered" in request.fixturenames:
        monkeypatch.setenv("KARIPAP_WORKSPACE", str(request.getfixturevalue("towered")[1].workspace.root))


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (tables.What("lowrank", "loss"), None),
        (tables.What("lowrank", "loss", "int8"), None),
        (tables.What("lowrank", "loss", "int4"), "aligned"),
        (tables.What("lowrank", "loss", "auto"), "aligned"),
        (tables.What("qlr", "loss"), "aligned"),
    ],
)
def test_predictions_go_by_what_weights_will_be_fitted_behind(what, expected):
    assert what.behind("auto", lambda: True) == expected
    assert what.behind("auto", lambda: False) is None is what.behind("dense", lambda: True)
    assert what.behind("aligned", lambda: True) == "aligned"
