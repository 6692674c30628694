"""The χ board alone, on synthetic tables: what the browser test and bench/chi_board.py open.

Query parameters: layers, experts (see tests/helpers/synthetic.py); listed=1: options with labels, the layers of a
role as one.
"""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np  # noqa: E402
import streamlit as st  # noqa: E402  (Streamlit runs this file with its own folder on the path)

from pages.parts import chi_board  # noqa: E402
from tests.helpers.synthetic import llama_model, llama_rows  # noqa: E402

st.set_page_config(page_title="χ board", layout="wide")


@st.cache_data
def tables(layers: int, experts: int, listed: int):
    shape = {"hidden": 256, "mlp": 1024, "kv": 128, "points": 256} if experts else {}
    rows = llama_rows(layers, experts=experts, **shape)
    for row in rows if listed else ():
        few = np.linspace(0, len(row["chi"]) - 1, 40).astype(int)
        del row["multiply_adds"]  # options of several kinds do not say them
        cost = row["parameters"][few] / row["parameters"][-1] * 0.9 * row["parameters_dense"]
        row |= {"parameters": cost, "steps": cost, "bytes": 2 * cost, "damage": row["damage"][few]}
        row |= {"chi": np.arange(1, 41), "labels": [f"tree {k + 1}" for k in range(40)], "group": row["role"]}
    return rows, llama_model(), chi_board.board_data(rows, llama_model())


def number(name: str, default: int) -> int:
    return min(200, int(st.query_params.get(name, default)))


rows, model, table = tables(number("layers", 32), number("experts", 0), number("listed", 0))
plan = st.session_state.setdefault(
    "plan", {"chi": {}, "locked": [], "hand": [], "budget": 1.0, "seq": 0, "revision": 0}
)


def released():
    release = chi_board.read_release(st.session_state["board"].board, rows)
    if release:
        new = {"chi": release.chi, "locked": release.locked, "hand": release.hand, "selected": release.selected}
        plan.update(new, budget=release.budget, seq=release.seq, revision=plan["revision"] + 1, cause=release.cause)


@st.fragment
def board():
    state = chi_board.board_state(
        rows,
        chi_board.Chosen(plan["chi"], plan["locked"], plan["hand"], plan["budget"]),
        selected=plan.get("selected"),
        seq=plan["seq"],
        revision=plan["revision"],
    )
    chi_board.chi_board(table, state, key="board", on_release=released)
    figures = chi_board.totals(rows, model, plan["chi"])
    told = {key: plan.get(key) for key in ("locked", "hand", "budget", "seq", "cause", "selected")}
    told |= {"figures": figures, "chi": plan["chi"], "drawn": time.time()}
    st.html(f'<pre id="told" style="display:none">{json.dumps(told)}</pre>')


board()
