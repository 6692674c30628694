"""The χ board's Python half, and that the browser's half computes the same (through node)."""

import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from karipap_core.plan import allocate
from karipap_core.plan.calibration import predicted_rise
from pages.parts import chi_board
from tests.helpers.synthetic import llama_model, llama_rows

PARTS = Path(chi_board.__file__).parent
SCRIPT = """
import { readFileSync } from "node:fs";
const { decode, totals, damageAt } = await import(%CORE%);
const { Allocator } = await import(%ALLOCATE%);
const { table, plans, jobs } = JSON.parse(readFileSync(0, "utf8"));
const T = decode(table);
const answers = jobs.map(({ budget, unit, scope, kind, locked, chi }) => {
  const flags = new Uint8Array(T.n);
  for (const w of locked) flags[w] = 1;
  const allocator = new Allocator(T, { unit, scope }, { kind }).hold(flags, chi);
  return Array.from(allocator.allocate(budget));
});
console.log(JSON.stringify({ totals: plans.map((chi) => totals(T, chi)), answers }));
"""


def browser(rows, model, plans=(), jobs=()) -> dict:
    """What the board's JavaScript makes of plans (χ a weight) and of budgets."""
    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    script = SCRIPT.replace("%CORE%", json.dumps(str(PARTS / "chi_board_core.js")))
    script = script.replace("%ALLOCATE%", json.dumps(str(PARTS / "chi_board_allocate.js")))
    given = {"table": chi_board.board_data(rows, model), "plans": list(plans), "jobs": list(jobs)}
    done = subprocess.run(
        [node, "--no-warnings", "--input-type=module", "-e", script],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def seven_b():
    """32 layers, 224 weights, shaped as a 7B Llama."""
    return llama_rows(), llama_model()


@pytest.fixture(scope="module")
def small():
    return llama_rows(3, hidden=96, kv=32, mlp=160, seed=4), llama_model(60, 96)


def test_the_browsers_totals_are_pythons(seven_b):
    rows, model = seven_b
    rng = np.random.default_rng(1)
    plans = []
    for _ in range(20):
        # χ on the options, between them, and dense.
        plans.append([int(rng.choice([0, rng.choice(row["chi"]), rng.integers(1, 4096)])) for row in rows])
    plans += [[0] * len(rows), [1] * len(rows)]  # nothing cut, and far beyond what was measured
    figures = browser(rows, model, plans)["totals"]
    assert {found["beyond"] for found in figures} == {True, False}
    for chi, found in zip(plans, figures, strict=True):
        wanted = chi_board.totals(rows, model, {row["name"]: c for row, c in zip(rows, chi, strict=True)})
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key
        assert found["multiply_adds"] == pytest.approx(found["kept_blocks"]), "low rank: a number, a multiply-add"


def tables(rows, objective="damage", unit="parameters"):
    cost = {"parameters": 1, "bytes": 2}[unit]
    return [
        allocate.options(
            row["name"], row["chi"], row["parameters"] * cost, row[objective], row["parameters_dense"] * cost
        )
        for row in rows
    ]


def chosen(tables_, picks) -> list[int]:
    return [int(table.chi[picks[table.name]]) for table in tables_]


@pytest.mark.parametrize("unit", ["parameters", "bytes"])
@pytest.mark.parametrize("which", ["seven_b", "small"])
def test_the_budget_slider_chooses_what_the_core_chooses(which, unit, request):
    rows, model = request.getfixturevalue(which)
    rng = np.random.default_rng(2)
    pinned = {int(w): int(rng.choice(rows[w]["chi"])) for w in rng.choice(len(rows), 5, replace=False)}
    chi = [pinned.get(w, 0) for w in range(len(rows))]
    dense = sum(row["parameters_dense"] for row in rows)
    size = 2 if unit == "bytes" else 1
    jobs, wanted = [], []
    options = tables(rows, unit=unit)
    fixed = {
        rows[w]["name"]: int(np.flatnonzero(options[w].chi == c)[0]) for w, c in pinned.items() if c in options[w].chi
    }
    locked = [w for w in pinned if rows[w]["name"] in fixed]
    for budget in (0.25, 0.5, 0.7, 0.9, 1.0):
        jobs.append(
            {"budget": budget, "unit": unit, "scope": "model", "kind": "lagrangian", "locked": locked, "chi": chi}
        )
        limit = budget * size * (dense + model["other_parameters"]) - size * model["other_parameters"]
        wanted.append(chosen(options, allocate.allocate(options, limit, fixed)))
    for found, want in zip(browser(rows, model, (), jobs)["answers"], wanted, strict=True):
        # Damages travel as float32: where two steps gain the same to 1e-7, either may come first.
        same = np.mean([a == b for a, b in zip(found, want, strict=True)])
        assert same > 0.97
        totals = [
            chi_board.totals(rows, model, dict(zip([r["name"] for r in rows], c, strict=True))) for c in (found, want)
        ]
        assert totals[0]["damage"] == pytest.approx(totals[1]["damage"], rel=1e-3, abs=1e-9)
        assert totals[0]["parameters"] == pytest.approx(totals[1]["parameters"], rel=2e-3)


def test_rules_that_scale_cost_by_one_factor(small):
    rows, model = small
    entropies = {row["name"]: 1 + 0.3 * k for k, row in enumerate(rows)}
    options = tables(rows)
    shaped = [
        row | {"share": float(np.exp(entropies[row["name"]]) * table.cost[0] / table.chi[0])}
        for row, table in zip(rows, options, strict=True)
    ]
    dense = sum(row["parameters_dense"] for row in rows)
    zero = {"unit": "parameters", "scope": "blocks", "kind": "proportional", "locked": [], "chi": [0] * len(rows)}
    jobs = [zero | {"budget": budget} for budget in (0.3, 0.5, 0.8, 1.0)]
    for given, rule in (
        (rows, lambda limit: allocate.uniform(options, limit)),
        (shaped, lambda limit: allocate.by_entropy(options, limit, entropies)),
    ):
        found = browser(given, model, (), jobs)["answers"]
        for job, answer in zip(jobs, found, strict=True):
            assert answer == chosen(options, rule(job["budget"] * dense))


def test_an_objective_of_its_own_decides_and_the_damage_is_told(small):
    rows, model = small
    rng = np.random.default_rng(3)
    other = [row | {"objective": row["damage"] * rng.uniform(0.1, 10)} for row in rows]
    job = {
        "budget": 0.5,
        "unit": "parameters",
        "scope": "blocks",
        "kind": "lagrangian",
        "locked": [],
        "chi": [0] * len(rows),
    }
    options = tables(other, "objective")
    limit = 0.5 * sum(row["parameters_dense"] for row in rows)
    (found,) = browser(other, model, (), [job])["answers"]
    assert found == chosen(options, allocate.allocate(options, limit))
    assert chi_board.totals(other, model, {}) == chi_board.totals(rows, model, {})


def test_both_halves_agree_on_what_is_beyond_what_was_checked(small):
    """One rule (plan.checks.beyond_checked), in Python and in the browser: on either side of the largest measured sum,
    and of ln(vocabulary)."""
    rows, _ = small
    plans = [[int(row["chi"][k]) for row in rows] for k in range(0, 32, 2)]
    sums = [chi_board.totals(rows, llama_model(), dict(zip([r["name"] for r in rows], p, strict=True))) for p in plans]
    damages = sorted(total["damage"] for total in sums)
    middle, wide = damages[len(sums) // 2], [(damages[0] / 9, 1.0), (1e3, 30.0)]
    words = math.exp(1.6 + predicted_rise(wide, damages[len(sums) // 4]))
    seen = set()
    for points, dense_loss, vocabulary in (
        ([(middle / 9, 0.1), (middle, 1.0)], 1.6, None),
        (wide, 1.6, int(words)),
        ([(middle / 9, 0.1), (middle, 1.0)], None, 7),
        ([], 1.6, 32000),
        (None, None, None),
    ):
        model = llama_model() | {"points": points, "dense_loss": dense_loss, "vocabulary": vocabulary}
        found = [told["beyond"] for told in browser(rows, model, plans)["totals"]]
        mine = [
            chi_board.totals(rows, model, dict(zip([r["name"] for r in rows], p, strict=True)))["beyond"] for p in plans
        ]
        assert found == mine
        seen.add(tuple(found))
    assert len(seen) >= 4, "the rule tells these apart"


def test_a_number_of_nats_is_written_alike_in_both_halves():
    from karipap_core.terminal import nats

    if not (node := shutil.which("node")):
        pytest.skip("node is not installed")
    values = [*np.geomspace(1e-7, 30, 200), 0.0, -0.0, -1e-9, -0.012, 0.00995, 0.0099499, 1e-4, 9.99e-5]
    script = f"const {{ formatNats }} = await import({json.dumps(str(PARTS / 'chi_board_core.js'))});"
    script += f"console.log(JSON.stringify({json.dumps([float(x) for x in values])}.map(formatNats)))"
    done = subprocess.run(
        [node, "--no-warnings", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60
    )
    told = json.loads(done.stdout)
    assert told == [nats(x) for x in values]
    assert not any("e" in word or word in ("-0", "-0.000") for word in told)


def test_grids_that_weights_share_travel_once(seven_b):
    table = chi_board.board_data(*seven_b)
    assert len(table["grids"]) == 2 and len(table["weights"]["name"]) == 224
    assert len(json.dumps(table)) < 1_000_000
    assert json.loads(json.dumps(table)) == table
    assert table["id"] == chi_board.board_data(*seven_b)["id"]
    assert table["id"] != chi_board.board_data(seven_b[0], seven_b[1] | {"dense_loss": 2.0})["id"]


def test_damage_never_rises_with_chi(small):
    rows, model = small
    bent = [row | {"damage": row["damage"] * np.where(row["chi"] % 7 == 3, 1.5, 1)} for row in rows]
    values = [chi_board.damage_at(bent[0], int(chi)) for chi in bent[0]["chi"]]
    assert np.all(np.diff(values) <= 0) and chi_board.damage_at(bent[0], 0) == 0


@pytest.mark.parametrize("broken", [{"chi": [3, 2, 1]}, {"chi": [1, 2]}, {"chi": [], "parameters": [], "damage": []}])
def test_a_row_whose_arrays_do_not_match_is_named(small, broken):
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj"):
        chi_board.board_data([small[0][0] | broken], small[1])


def test_break_even_is_where_the_cores_cost_as_much(small):
    table = chi_board.board_data(*small)
    for row, value in zip(small[0], table["weights"]["break_even"], strict=True):
        n_out, n_in = row["shape"]
        assert value == pytest.approx(n_out * n_in / (n_out + n_in))


def sent(rows, **changes) -> dict:
    value = {
        "chi": {row["name"]: 5 for row in rows},
        "locked": [rows[0]["name"]],
        "hand": [],
        "budget": 0.5,
        "cause": "cell",
        "selected": rows[1]["name"],
        "seq": 3,
    }
    return value | changes


def test_a_release_is_read(small):
    rows = small[0]
    release = chi_board.read_release(sent(rows), rows)
    assert release.chi[rows[2]["name"]] == 5 and release.locked == [rows[0]["name"]]
    assert (release.budget, release.cause, release.selected, release.seq) == (0.5, "cell", rows[1]["name"], 3)


@pytest.mark.parametrize("value", [None, {}, [], "x", {"chi": 3}, {"chi": {}}, {"chi": {"unknown": 3}}])
def test_what_is_no_release_is_none(small, value):
    assert chi_board.read_release(value, small[0]) is None


def test_hostile_values_are_dropped(small):
    rows = small[0]
    every = {row["name"]: 5 for row in rows}
    for bad in ("5", -1, float("nan"), None, 10**9):
        assert chi_board.read_release(sent(rows, chi=every | {rows[0]["name"]: bad}), rows) is None
    release = chi_board.read_release(sent(rows, locked=["/etc"], budget="x", selected=7, seq=None), rows)
    assert (release.locked, release.budget, release.selected, release.seq) == ([], None, None, 0)


def test_the_state_names_weights_by_their_place(small):
    rows = small[0]
    name = rows[4]["name"]
    chosen = chi_board.Chosen({name: 9}, locked=[name, "gone"], budget=0.4, unit="bytes")
    state = chi_board.board_state(rows, chosen, selected=name)
    assert state["chi"][4] == 9 and sum(state["chi"]) == 9
    assert state["locked"] == [4] and state["selected"] == 4 and state["hand"] == []
    assert state["budget"] == {"kept": 0.4, "unit": "bytes", "scope": "model"}


def test_the_script_is_one_module_without_imports():
    script = chi_board.script()
    assert "\nimport " not in script and not script.startswith("import ")
    assert script.count("export default") == 1


@pytest.fixture(scope="module")
def listed():
    """Options that are listed, with bytes of their own; a third of the weights move in groups of two."""
    rng, rows = np.random.default_rng(11), []
    for w in range(18):
        n, group = int(rng.integers(5, 30)), f"g{w // 2}" if w < 6 else None
        if group and w % 2:
            n = len(rows[-1]["chi"])
        dense = 4000
        cost = np.sort(rng.uniform(100, 3900, n))
        damage = np.sort(rng.lognormal(-4, 2, n))[::-1]
        rows.append(
            {
                "name": f"w{w}",
                "layer": w // 2,
                "role": "qkvo"[w % 2],
                "expert": None,
                "shape": (80, 50),
                "parameters_dense": dense,
                "bytes_per_parameter": 4,
                "chi": np.arange(1, n + 1),
                "parameters": cost,
                "bytes": 2.2 * cost + 100,
                "damage": damage,
                "labels": [f"x {k}" for k in range(n)],
                "group": group,
                "steps": cost,
                "no_dense": w in (7, 8),
            }
        )
        if group and w % 2:  # mates share their steps and differ in what they cost
            rows[-1]["steps"] = rows[-2]["steps"]
    return rows, llama_model(20, 50)


def test_listed_options_and_mates_in_the_browser_are_pythons(listed):
    from pages.parts import tables as board

    rows, model = listed
    found = board.Tables(board.What("auto", "loss"), "calibrated", (), rows, model, {}, None)
    rng = np.random.default_rng(3)
    plans, jobs, wanted = [], [], []
    for _ in range(6):
        chi = {}
        for row in rows:
            mate = next((r["name"] for r in rows if r["group"] and r["group"] == row["group"]), row["name"])
            chi[row["name"]] = chi.get(mate, int(rng.choice([0, *row["chi"]])))
        plans.append([chi[row["name"]] for row in rows])
    for unit in ("bytes", "parameters"):
        for budget in (0.35, 0.5, 0.7, 0.9):
            locked = (rows[2]["name"], rows[3]["name"], rows[10]["name"])
            now = {name: 2 for name in locked}
            wanted.append(board.choose(found, budget, unit, "blocks", now, locked))
            jobs.append(
                {
                    "budget": budget,
                    "unit": unit,
                    "scope": "blocks",
                    "kind": "lagrangian",
                    "locked": [2, 3, 10],
                    "chi": [now.get(row["name"], 0) for row in rows],
                }
            )
    told = browser(rows, model, plans, jobs)
    for chi, figures in zip(plans, told["totals"], strict=True):
        mine = chi_board.totals(rows, model, {row["name"]: c for row, c in zip(rows, chi, strict=True)})
        assert mine["multiply_adds"] is None and figures["multiply_adds"] is None, "rows that do not say them"
        for key, value in mine.items():
            if key != "multiply_adds":
                assert figures[key] == pytest.approx(value, rel=1e-6, abs=1e-12), key
    for answer, want in zip(told["answers"], wanted, strict=True):
        assert answer == [want[row["name"]] for row in rows]
        assert all(answer[w] == answer[w + 1] for w in (0, 2, 4)) and answer[7] and answer[8]


def test_mates_by_rules_that_scale(listed):
    from pages.parts import tables as board

    rows, model = listed
    found = board.Tables(board.What("auto", "loss"), "uniform", (), rows, model, {}, None)
    job = {"unit": "bytes", "scope": "blocks", "kind": "proportional", "locked": [], "chi": [0] * len(rows)}
    shaped = [row for row in rows if not row["no_dense"]]
    found = board.Tables(found.what, "uniform", (), shaped, model, {}, None)
    job["chi"] = [0] * len(shaped)
    budgets = (0.4, 0.6, 0.8)
    answers = browser(shaped, model, (), [job | {"budget": budget} for budget in budgets])["answers"]
    for budget, answer in zip(budgets, answers, strict=True):
        want = board.choose(found, budget, "bytes", "blocks", {}, ())
        assert answer == [want[row["name"]] for row in shaped]
