"""The χ board: one component with a cell for every weight, each cell a slider; its data contract and its Python half.

The board never computes a spectrum: it looks up. `board_data` packs the option tables once; `board_state` says what
the plan is now; the board draws, and sends back a value on release only, which `read_release` checks. The files
`chi_board_core.js` (tables, totals) and `chi_board_allocate.js` (a budget → χ) mirror `totals` here and
`karipap_core.plan.allocate`; tests hold them together.

A **row** is one weight, a mapping with

    name, layer (int | None), role, expert (int | None), shape (out, in)
    parameters_dense         out·in
    bytes_per_parameter      bytes of one parameter of the dense weight, as stored
    core_bytes_per_parameter the same for the cores (optional; default bytes_per_parameter)
    chi, parameters, damage  the options: rising bond dimensions, the parameters each costs, and the damage it does
                             (nats; what the calibration predicts for this weight alone). Between options parameters
                             are linear in χ (exact for lowrank) and damage geometric. Damage is made non-rising in χ.
    objective                optional, what the rule makes small where that is not the damage
    share                    optional, for rules that scale cost by one factor (uniform, entropy): see Allocator
    multiply_adds            optional, a token, at each option (dense: out·in)
    memory                   optional, bytes when loaded at each option, where a network rebuilds W
    break_even               optional, the real-valued χ at which the cores cost as much as W (default: interpolated)
    labels                   optional, a word for each option; χ then only counts them, 1 … n (several networks or
                             formats behind one slider)
    bytes                    optional, bytes at each option, where they are not parameters times a constant
    steps                    optional, what the slider runs along, rising: cost in parts of the dense weight's numbers
    no_dense                 optional, true where rules must not leave the weight as it is (a person may)
    group                    optional, names the weights that share cores: they have the same number of options and the
                             same steps, and stand at the same option always

**model** is a mapping with other_parameters, other_bytes, other_memory (what no χ changes; memory defaults to bytes),
dense_loss (nats a token, or None), vocabulary (tokens, or None: see plan.checks.beyond_checked), points ([Σ damage,
rise] of measured whole plans, rising in both, that predicted rises run through; None where nothing was measured), error
(the predictions' observed relative error, or None), checked (plans evaluated since), and measure ("kl" for a rise in
loss in nats, "output error" for encoders). χ = 0 means dense everywhere.
"""

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

import numpy as np

from karipap_core.plan import calibration as calibrate
from karipap_core.plan.checks import beyond_checked

HERE = Path(__file__).parent
UNITS = ("parameters", "bytes")
SCOPES = ("model", "blocks")
DENSE = "dense"


def _packed(values, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=kind).tobytes()).decode()


def break_even(row: Mapping) -> float:
    """The χ at which the cores have as many parameters as W, linear between options and beyond the last."""
    if row.get("break_even"):
        return float(row["break_even"])
    chi, parameters = np.asarray(row["chi"], float), np.asarray(row["parameters"], float)
    if parameters[-1] >= row["parameters_dense"]:
        return float(np.interp(row["parameters_dense"], parameters, chi))
    return float(chi[-1])


def _falling(row: Mapping, key: str) -> np.ndarray:
    """Without rises, which are noise along χ; options that are listed are what they are."""
    values = np.maximum(np.asarray(row[key], np.float64), 0)
    listed = key == "damage" and row.get("labels") is not None
    return (values if listed else np.minimum.accumulate(values)).astype("<f4")


def board_data(rows: Sequence[Mapping], model: Mapping, network: str = "lowrank") -> dict:
    """The table the board looks up in: JSON with base64 arrays. Grids that weights share are sent once.

    512 options a weight, float32 damage: 0.6 MB for 224 weights. Cost: one pass. Raises ValueError for an empty list
    or a row whose arrays do not match.
    """
    if not rows:
        raise ValueError("The board needs at least one weight.")
    grids: dict[bytes, int] = {}
    packed: list[dict] = []
    damage, objective, of_row = [], [], []
    by_objective = any(row.get("objective") is not None for row in rows)
    for row in rows:
        lengths = {len(row["chi"]), len(row["parameters"]), len(row["damage"])}
        if len(lengths) != 1 or 0 in lengths or np.any(np.diff(row["chi"]) <= 0):
            raise ValueError(f"{row['name']}: chi must rise, and parameters and damage be of its length.")
        grid = {"chi": _packed(row["chi"], "<i4"), "parameters": _packed(row["parameters"], "<f8")}
        for key in ("memory", "bytes", "steps", "multiply_adds"):
            same = key == "multiply_adds" and np.array_equal(row.get(key, ()), row["parameters"])
            if row.get(key) is not None and not same:
                grid[key] = _packed(row[key], "<f8")
        key = repr(grid).encode()
        if key not in grids:
            grids[key] = len(packed)
            packed.append(grid)
        of_row.append(grids[key])
        damage.append(_falling(row, "damage"))
        if by_objective:
            objective.append(_falling(row, "objective" if row.get("objective") is not None else "damage"))
    weights = _places(rows)
    weights |= {
        "out": [int(row["shape"][0]) for row in rows],
        "in": [int(row["shape"][1]) for row in rows],
        "parameters": [int(row["parameters_dense"]) for row in rows],
        "dense_bytes": [float(row["bytes_per_parameter"]) for row in rows],
        "core_bytes": [float(row.get("core_bytes_per_parameter") or row["bytes_per_parameter"]) for row in rows],
        "grid": of_row,
        "break_even": [break_even(row) for row in rows],
        "share": [float(row.get("share") or row["parameters_dense"]) for row in rows],
    }
    labels: dict[tuple, int] = {}
    if any(row.get("labels") is not None for row in rows):
        weights["labels"] = [
            None if row.get("labels") is None else labels.setdefault(tuple(row["labels"]), len(labels)) for row in rows
        ]
    if any(row.get("no_dense") for row in rows):
        weights["no_dense"] = [bool(row.get("no_dense")) for row in rows]
    groups = {row["group"]: index for index, row in enumerate(rows) if row.get("group")}
    if groups:
        weights["group"] = [groups.get(row.get("group")) for row in rows]
    keys = (
        "other_parameters",
        "other_bytes",
        "held_parameters",
        "held_bytes",
        "dense_loss",
        "vocabulary",
        "error",
        "checked",
    )
    table = {
        "network": network,
        "grids": packed,
        "weights": weights,
        "damage": _packed(np.concatenate(damage), "<f4"),
        "objective": _packed(np.concatenate(objective), "<f4") if by_objective else None,
        "model": {key: _number(model.get(key)) for key in keys},
        "adds": all(row.get("multiply_adds") is not None for row in rows),
    }
    if labels:
        table["labels"] = [list(words) for words in labels]
    memory = model.get("other_memory")
    points = model.get("points")
    table["model"]["points"] = None if points is None else [[float(x), float(y)] for x, y in points]
    table["model"]["measure"] = model.get("measure", "kl")
    table["model"]["other_memory"] = _number(model["other_bytes"] if memory is None else memory)
    digest = hashlib.sha256(repr(table).encode()).hexdigest()[:16]
    return {"id": digest} | table


def _places(rows: Sequence[Mapping]) -> dict[str, list]:
    """Name and place of each weight; of models with several towers that too."""
    places = {key: [row[key] for row in rows] for key in ("name", "layer", "role", "expert")}
    towers = [row.get("tower") or "" for row in rows]
    return places | ({"tower": towers} if any(towers) else {})


def _number(value):
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Chosen:
    """What has been chosen so far, by a rule or by hand. A `draft.Draft` has all these fields and will do as well.

    chi : weight → χ; a weight without one is dense. locked : weights that nothing moves. hand : weights that were set
    by hand, which the budget leaves as they are. budget : the fraction to keep, of `scope`, counted in `unit`.
    """

    chi: Mapping[str, int]
    locked: Sequence[str] = ()
    hand: Sequence[str] = ()
    budget: float | None = None
    unit: str = "parameters"
    scope: str = "model"


def board_state(
    rows: Sequence[Mapping],
    chosen: Chosen,
    *,
    rule: str = "lagrangian",
    selected: str | None = None,
    told: Mapping[str, float] = MappingProxyType({}),
    seq: int = 0,
    revision: int = 0,
) -> dict:
    """What the plan is now, as the board wants it.

    rule : the allocator's kind, "lagrangian" or "proportional". told : figures of this very plan that the tables do not
    have, shown until a χ changes: rise (measured), adds (multiply-adds against dense). seq : the number of the release
    that this state answers; the board keeps what is on the screen until its own last release has been answered.
    revision : changes whenever anything here does.
    """
    place = {row["name"]: index for index, row in enumerate(rows)}
    return {
        "chi": [int(chosen.chi.get(row["name"], 0)) for row in rows],
        "locked": [place[name] for name in chosen.locked if name in place],
        "hand": [place[name] for name in chosen.hand if name in place],
        "budget": {"kept": chosen.budget, "unit": chosen.unit, "scope": chosen.scope},
        "rule": {"kind": rule},
        "selected": place.get(selected),
        "told": dict(told),
        "seq": seq,
        "revision": revision,
    }


def totals(rows: Sequence[Mapping], model: Mapping, chi: Mapping[str, int]) -> dict:
    """Every whole-model figure of a plan, from the option tables: what the board shows, computed in Python.

    parameters, bytes, memory; kept, kept_blocks, bytes_kept, bytes_kept_blocks; damage = Σ of the weights' damages;
    the predicted rise and loss = dense_loss + rise (None where nothing was measured), and whether that is beyond what
    was checked; multiply_adds a token against dense, of the weights here (None where rows do not say them).
    """
    sums = dict.fromkeys(("parameters", "bytes", "memory", "damage", "dense", "dense_bytes", "adds"), 0.0)
    adds_known = all(row.get("multiply_adds") is not None for row in rows)
    for row in rows:
        at = int(chi.get(row["name"], 0))
        dense = float(row["parameters_dense"])
        sums["dense"] += dense
        sums["dense_bytes"] += dense * row["bytes_per_parameter"]
        parameters = dense if at == 0 else float(np.interp(at, row["chi"], row["parameters"]))
        stored = bytes_at(row, at)
        sums["parameters"] += parameters
        sums["bytes"] += stored
        rebuilt = at != 0 and row.get("memory") is not None
        sums["memory"] += float(np.interp(at, row["chi"], row["memory"])) if rebuilt else stored
        sums["damage"] += damage_at(row, at)
        if adds_known:
            sums["adds"] += dense if at == 0 else float(np.interp(at, row["chi"], row["multiply_adds"]))
    other, other_bytes = model["other_parameters"], model["other_bytes"]
    held, held_bytes = model.get("held_parameters") or 0, model.get("held_bytes") or 0
    other_memory = model.get("other_memory")
    rise = predicted_rise(model, sums["damage"])
    loss = None if rise is None or model.get("dense_loss") is None else model["dense_loss"] + rise
    beyond = rise is not None and beyond_checked(model["points"], sums["damage"], loss, model.get("vocabulary"))
    return {
        "parameters": sums["parameters"] + other,
        "bytes": sums["bytes"] + other_bytes,
        "memory": sums["memory"] + (other_bytes if other_memory is None else other_memory),
        "kept": (sums["parameters"] + other) / (sums["dense"] + other),
        "kept_blocks": (sums["parameters"] + held) / (sums["dense"] + held),
        "bytes_kept": (sums["bytes"] + other_bytes) / (sums["dense_bytes"] + other_bytes),
        "bytes_kept_blocks": (sums["bytes"] + held_bytes) / (sums["dense_bytes"] + held_bytes),
        "multiply_adds": sums["adds"] / sums["dense"] if adds_known else None,
        "damage": sums["damage"],
        "rise": rise,
        "loss": loss,
        "beyond": beyond,
    }


def bytes_at(row: Mapping, chi: int) -> float:
    """Bytes of one weight at χ, as stored."""
    if chi == 0:
        return float(row["parameters_dense"] * row["bytes_per_parameter"])
    if row.get("bytes") is not None:
        return float(np.interp(chi, row["chi"], row["bytes"]))
    per = row.get("core_bytes_per_parameter") or row["bytes_per_parameter"]
    return float(np.interp(chi, row["chi"], row["parameters"])) * per


def name_at(row: Mapping, chi: int) -> str:
    """What one weight is at χ, in a word: "dense", its χ, or the label of its option."""
    if chi == 0:
        return DENSE
    return row["labels"][chi - 1] if row.get("labels") is not None else f"{chi:,}"


def damage_at(row: Mapping, chi: int) -> float:
    """Predicted damage of one weight at χ (nats; 0 for dense): listed, or geometric between its neighbours."""
    if chi == 0:
        return 0.0
    damage = _falling(row, "damage").astype(np.float64)
    k = int(np.searchsorted(row["chi"], chi, side="right")) - 1
    if k < 0 or k == len(damage) - 1 or row["chi"][k] == chi:
        return float(damage[max(k, 0)])
    t = (chi - row["chi"][k]) / (row["chi"][k + 1] - row["chi"][k])
    low, high = damage[k], damage[k + 1]
    return float(low * (high / low) ** t if high > 0 else low + t * (high - low))


def predicted_rise(model: Mapping, damage: float) -> float | None:
    """The rise that the measured plans predict for a sum of damages, None where nothing was measured."""
    points = model.get("points")
    return None if points is None else calibrate.predicted_rise([tuple(point) for point in points], damage)


@dataclass(frozen=True)
class Release:
    """What the board sends when a pointer or key is let go."""

    chi: dict[str, int]  # every weight; 0 = dense
    locked: list[str]
    hand: list[str]  # set by hand: the budget leaves them as it leaves locked ones
    budget: float | None  # what the budget slider was last dragged to, as a kept fraction
    cause: str  # "cell", "head", "budget", "lock", "release" or "select"
    selected: str | None
    seq: int


def read_release(value, rows: Sequence[Mapping]) -> Release | None:
    """A value from the browser as a Release; None where it is not one (nothing sent yet, or not of this table)."""
    if not isinstance(value, Mapping) or not isinstance(value.get("chi"), Mapping):
        return None
    limit = {row["name"]: max(int(row["chi"][-1]), *row["shape"]) for row in rows}
    chi = {}
    for name, at in value["chi"].items():
        if name not in limit or not isinstance(at, int | float) or not 0 <= at <= limit[name]:
            return None
        chi[name] = int(at)
    if chi.keys() != limit.keys():
        return None
    budget, seq, selected = value.get("budget"), value.get("seq"), value.get("selected")
    return Release(
        chi=chi,
        locked=[name for name in value.get("locked") or [] if name in limit],
        hand=[name for name in value.get("hand") or [] if name in limit],
        budget=float(budget) if isinstance(budget, int | float) and 0 <= budget <= 1.0001 else None,
        cause=str(value.get("cause", ""))[:16],
        selected=selected if selected in limit else None,
        seq=int(seq) if isinstance(seq, int | float) and seq == seq else 0,
    )


@cache
def script() -> str:
    """The component's one module: its files in order of dependence, without the imports that join them on disk."""
    names = ("_core", "_allocate", "_cells", "_panel", "_keys", "")
    text = "\n".join((HERE / f"chi_board{name}.js").read_text(encoding="utf-8") for name in names)
    return re.sub(r"^import\b[^;]*;\n", "", text, flags=re.MULTILINE)


@cache
def _component():
    import streamlit as st

    css = (HERE / "chi_board.css").read_text(encoding="utf-8")
    return st.components.v2.component("karipap_chi_board", html='<div class="chi-board"></div>', css=css, js=script())


def chi_board(table: dict, state: dict, key: str, on_release=None, on_history=None):
    """Draw the board. `table` from board_data, `state` from board_state; returns the last value sent, or None.

    on_release() is called when a value has come, on_history("undo" | "redo") for the keys Ctrl+Z and Ctrl+Y. The table
    and the state travel apart, so that a re-run sends a few kilobytes: the table is one message that Streamlit sends
    once and refers to by its hash from then on.
    """
    import streamlit as st

    board = _component()

    def history() -> None:
        way = st.session_state[key].get("history")
        if on_history and way in ("undo", "redo"):
            on_history(way)

    result = board(
        key=key,
        data={"table": table["id"], "state": state},
        on_board_change=on_release or (lambda: None),
        on_history_change=history,
        height="content",
    )
    board(key=f"{key}_table_{table['id']}", data={"define": table})
    return result.board
