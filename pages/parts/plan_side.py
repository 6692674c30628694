"""Beside the χ board: the selected weight's spectrum, the plan as a table, and what it comes to."""

import html
import json
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from karipap_core.figures import profile as figures
from karipap_core.figures import style
from karipap_core.plan.checks import BEYOND
from karipap_core.plan.document import made_of
from karipap_core.plan.foretold import measured
from karipap_core.plan.predictions import how_found
from karipap_core.terminal import nats
from pages.parts import chi_board, common, draft, plan_session, profiles, tables

METRIC_SAYS = {"weight": "weights", "functional": "outputs", "loss": "loss"}
PREFIX_SAYS = {"auto": "auto", "dense": "the dense model", "aligned": "what is cut before it"}
SCOPE_SAYS = {"model": "whole model", "blocks": "blocks"}
RULE_SAYS = {
    "calibrated": "For each weight cut alone it is known what that does to the outputs; parameters go where they save "
    "most of it.",
    "loss": "Parameters go where they save most of the K-FAC estimate of the rise in loss.",
    "functional": "Parameters go where they save most of each layer's relative output error.",
    "entropy": "χ in proportion to each weight's effective rank, exp S.",
    "uniform": "Every weight keeps the same fraction of its parameters.",
    "refined": "Calibrated, then measured again at the plan itself; the slider goes on by the calibrated rule.",
    "best": "Every rule was measured at this budget and the best kept; the slider goes on by the calibrated rule.",
    "hand": "Chosen by hand.",
}


def selected_row(found: tables.Tables) -> dict:
    """The weight in view: this session's, the URL's, or the first."""
    name = st.session_state.get("weight") or st.query_params.get("weight")
    row = next((row for row in found.rows if row["name"] == name), found.rows[0])
    st.session_state.weight = row["name"]
    return row


def one_weight(view, now: draft.Draft, found: tables.Tables, row: dict) -> None:
    """The selected weight: its spectrum with a cursor at χ, and its figures."""
    chi = int(now.chi.get(row["name"], 0))
    source = tables.sources(view, now.what).profile
    profile = profiles.loaded(str(source.parent), source.stat().st_mtime_ns) if source else None
    views = {"damage": "Damage"}
    if profile is not None and now.network == "lowrank" and not found.what.listed and row["layer"] is not None:
        views = {"spectrum": "Spectrum", "kept": "Kept"} | views
    if st.session_state.get("board_view") not in views:
        st.session_state.board_view = next(iter(views))
    layer = f"{row['tower']} {row['layer']}" if row.get("tower") else f"layer {row['layer']}"
    place = f"{layer} · {row['role']}" if row["layer"] is not None else row["role"]
    place += "" if row["expert"] is None else f" · expert {row['expert']}"
    head, pick = st.columns([2, 3], vertical_alignment="center")
    head.html(f'<p class="k-job"><b>{html.escape(place)}</b></p>')
    if len(views) > 1:
        pick.segmented_control(
            "View",
            list(views),
            key="board_view",
            format_func=views.get,
            required=True,
            label_visibility="collapsed",
            persist_state="session",
        )
    shown = st.session_state.board_view
    fig = spectrum_figure(shown, profile, row, now, chi)
    alt = f"{views[shown]} of {row['name']}, with a cursor at its χ"
    common.figure(fig, "board_spectrum", alt, f"karipap-{shown}-{row['name']}")
    terms(terms_of(found, row, chi))


def terms(items: Iterable[tuple[str, str, str]]) -> None:
    """Names, values, and in small print below each what it means."""
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd><dd>{html.escape(note)}</dd></div>"
        for name, value, note in items
    )
    st.html(f'<dl class="k-terms">{rows}</dl>')


def terms_of(found: tables.Tables, row: dict, chi: int) -> list[tuple[str, str, str]]:
    """What one weight is and costs at χ: (name, value, the name in plain words)."""
    dense = row["parameters_dense"]
    after = dense if chi == 0 else float(np.interp(chi, row["chi"], row["parameters"]))
    shape = f"{row['shape'][0]:,} × {row['shape'][1]:,}, {dense:,} numbers"
    if found.what.listed:
        note = "What the weight is stored as: its network with the sizes of its bonds, and the format of the numbers."
        items = [("Becomes", chi_board.name_at(row, chi), note)]
    else:
        note = (
            "The number of singular values that are kept: two thin matrices of that width stand for the weight."
            if found.network == "lowrank"
            else "The bond dimension: how wide the links between the cores are. More keeps more of the weight."
        )
        at = int(chi_board.break_even(row))
        items = [
            ("χ", chi_board.name_at(row, chi), note),
            (
                "Break-even",
                f"χ {at:,}",
                "From this χ on the cores have more numbers than the weight: nothing is saved.",
            ),
        ]
    numbers = "16-bit numbers" if found.what.listed else "Parameters"
    items.append((numbers, f"{after:,.0f} ({after / dense:.1%})", f"Out × in: {shape}."))
    if found.calibration:
        unit = " nats a token" if found.model["measure"] == "kl" else " of the outputs"
        estimated = found.calibration.gradients is not None
        note = "What cutting this weight alone costs the model, " + (
            "estimated from gradients on a scale that a handful of measured cuts set."
            if estimated
            else "read off measurements of it."
        )
        items.append(("Estimated damage" if estimated else "Damage", damage_says(found, row, chi, unit), note))
    elif found.metric == "loss":  # without text there is no such estimate
        note = "K-FAC estimate, from text: what cutting this weight alone adds to the loss."
        items.append(("Estimated damage", f"{nats(chi_board.damage_at(row, chi))} nats a token", note))
    return items


def damage_says(found: tables.Tables, row: dict, chi: int, unit: str) -> str:
    """The damage of one weight in words; more than was ever measured of it is no number."""
    damage = chi_board.damage_at(row, chi)
    if found.calibration.beyond(row["name"], damage):
        return BEYOND
    return nats(damage) + unit


def spectrum_figure(shown: str, profile, row: dict, now: draft.Draft, chi: int) -> go.Figure:
    """The figure of one weight with its cursor. Building one takes longer than all else on the page, so this session
    keeps the last and moves the cursor."""
    mine = plan_session.state()
    key = (shown, now.network, now.metric, row["name"], id(profile), id(row))
    if mine.get("figure", (None,))[0] != key:
        draw = {"spectrum": figures.spectrum, "kept": figures.cumulative}.get(shown)
        fig = draw(profile, row["name"], now.metric) if draw else damage_figure(row)
        fig.update_layout(height=250, margin_t=28)
        mine["figure"] = (key, fig, list(fig.layout.shapes), list(fig.layout.annotations))
    _, fig, shapes, notes = mine["figure"]
    cursor, label = [], []
    if chi and (place := cursor_at(row, chi)) is not None:
        stroke = dict(color=style.ORANGE, width=1.6)
        cursor = [dict(type="line", x0=place, x1=place, y0=0, y1=1, yref="paper", line=stroke)]
        at = float(np.log10(place)) if fig.layout.xaxis.type == "log" else place
        word = chi_board.name_at(row, chi) if row.get("labels") is not None else f"χ {chi:,}"
        label = [
            dict(
                x=at,
                y=1,
                yref="paper",
                xanchor="left",
                yanchor="top",
                text=word,
                showarrow=False,
                font=dict(size=12, color=style.ORANGE),
            )
        ]
    return fig.update_layout(shapes=[*shapes, *cursor], annotations=[*notes, *label])


def cursor_at(row: dict, chi: int) -> float:
    """Where χ stands on the axis of the figure of one weight: listed options stand at the part of it they keep."""
    return chi if row.get("labels") is None else float(row["steps"][chi - 1]) / row["parameters_dense"]


def damage_figure(row: dict) -> go.Figure:
    """Predicted damage of this weight alone against χ, or against what its options keep of it."""
    positive = np.asarray(row["damage"]) > 0
    listed = row.get("labels") is not None
    x = np.asarray(row["steps"]) / row["parameters_dense"] if listed else np.asarray(row["chi"])
    words = np.asarray(row["labels"] if listed else [f"χ {chi}" for chi in row["chi"]])
    fig = go.Figure()
    fig.add_scatter(
        x=x[positive].astype(np.float32),
        y=np.asarray(row["damage"])[positive].astype(np.float32),
        text=words[positive],
        mode="lines",
        line=dict(color=style.BLUE, width=2),
        hovertemplate="%{text}: %{y:.3g}<extra></extra>",
        showlegend=False,
    )
    grid = dict(gridcolor=style.FAINT, zeroline=False, automargin=True)
    fig.update_yaxes(type="log", dtick=1, exponentformat="power", title_text="damage of this weight alone", **grid)
    fig.update_xaxes(title_text="part kept, of its 16-bit size" if listed else "χ", **grid)
    if listed:
        fig.update_xaxes(tickformat=".0%")
    return fig.update_layout(margin=dict(l=8, r=12, t=28, b=8), uirevision="keep")


COLUMNS = {
    "tower": st.column_config.TextColumn("Tower", width=70),
    "layer": st.column_config.NumberColumn("Layer", width=50),
    "role": st.column_config.TextColumn("Role", width=50),
    "expert": st.column_config.NumberColumn("Expert", width=60),
    "chi": st.column_config.NumberColumn("χ", min_value=0, step=1, width=70, help="0, or nothing, is dense"),
    "becomes": st.column_config.TextColumn("Becomes", width=90),
    "locked": st.column_config.CheckboxColumn("Lock", width=65),
    "kept": st.column_config.ProgressColumn("Kept", format="%.0f %%", min_value=0, max_value=100, width=85),
    "share": st.column_config.NumberColumn("Damage", format="%.1f %%", width=75, help="Share of the summed damages"),
    "by": st.column_config.TextColumn("By", width=58),
    "name": st.column_config.TextColumn("Weight"),
}


def as_table(now: draft.Draft, found: tables.Tables) -> pd.DataFrame:
    """The plan as a table, a row for each weight in the order of `found.rows`."""
    locked, hand = set(now.locked), set(now.hand)
    chis = [int(now.chi.get(row["name"], 0)) for row in found.rows]
    damage = np.array([chi_board.damage_at(row, chi) for row, chi in zip(found.rows, chis, strict=True)])
    kept = [
        100.0 if chi == 0 else 100 * float(np.interp(chi, row["chi"], row["parameters"])) / row["parameters_dense"]
        for row, chi in zip(found.rows, chis, strict=True)
    ]
    return pd.DataFrame(
        {
            "tower": [row.get("tower") or None for row in found.rows],
            "layer": [row["layer"] for row in found.rows],
            "role": [row["role"] for row in found.rows],
            "expert": [row["expert"] for row in found.rows],
            "chi": chis,
            "becomes": [chi_board.name_at(row, chi) for row, chi in zip(found.rows, chis, strict=True)],
            "locked": [row["name"] in locked for row in found.rows],
            "kept": kept,
            "share": 100 * damage / damage.sum() if damage.sum() > 0 else damage,
            "by": ["hand" if row["name"] in hand else "rule" for row in found.rows],
            "name": found.names,
        }
    )


def without_zeros(data: pd.DataFrame) -> pd.DataFrame:
    """The table as it is shown: no χ where a weight is dense, and words where a layer or an expert is none (what is
    missing in a number's cell says "dense")."""
    shown = data.assign(chi=data["chi"].astype("Int64").mask(data["chi"] == 0))
    for column in ("layer", "expert"):
        if shown[column].isna().any():
            shown[column] = ["–" if pd.isna(each) else f"{each:.0f}" for each in shown[column]]
    return shown


def table(history: draft.History, found: tables.Tables) -> None:
    """The same plan in rows: χ and locks are edited in place."""
    data = as_table(history.now, found)
    shown = without_zeros(data)
    key = f"board_table_{history.editor}"

    def edited() -> None:
        largest = {row["name"]: int(row["chi"][-1]) for row in found.rows}
        edits = st.session_state[key]["edited_rows"]
        mates = {}
        for row in found.rows:
            if row.get("group"):
                mates[row["name"]] = [other["name"] for other in found.rows if other.get("group") == row["group"]]
        new = draft.edited_rows(history.now, found.names, edits, largest, mates)
        # The table forgets its edits and is drawn anew where it would show something else than what they came to: what
        # moves with an edited row, a 0 that is dense, a χ that was too large.
        typed = {found.names[int(at)]: change["chi"] for at, change in edits.items() if "chi" in change}
        as_typed = all(value and new.chi.get(name) == value for name, value in typed.items())
        history.push(new, from_editor=not mates and as_typed)

    columns = [column for column in COLUMNS if column not in ("tower", "expert") or data[column].notna().any()]
    if not found.what.listed:
        columns.remove("becomes")
    config = COLUMNS
    if found.what.listed:
        config = COLUMNS | {
            "chi": st.column_config.NumberColumn("Option", min_value=0, step=1, width=80, help="1 smallest, 0 dense")
        }
    st.data_editor(
        shown,
        key=key,
        placeholder=chi_board.DENSE,  # what a cell without a χ says
        on_change=edited,
        num_rows="fixed",
        hide_index=True,
        height=400,
        column_order=columns,
        column_config=config,
        disabled=[column for column in columns if column not in ("chi", "locked")],
        alt="The plan in rows; χ and locks can be edited",
    )
    with st.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(data, "karipap-plan", "plan_csv")


def notes(view, now: draft.Draft, found: tables.Tables) -> None:
    """How the plan was chosen and what its prediction rests on, in sentences below the board."""
    said = [RULE_SAYS.get(now.rule, ""), *found.notes]
    if found.choices is not None:
        chis = [int(now.chi.get(name, 0)) for name in found.names]
        said.insert(0, f"Weights: {made_of(entries(now, found, chis))}.")
    if found.calibration:
        fit = found.model["fit"]
        where = f", for {fit.text}" if fit.text else ""
        said.append(
            f"{how_found(found.calibration)} Damages add up to more than their sum, so the rise runs through measured "
            f"whole plans (calibration v{fit.version}{where}). "
            "It is a prediction until the plan is run."
        )
    elif why := view.checkpoint.not_run:
        said.append(f"No loss is predicted or measured: {why} Plans go by its weights alone.")
    else:
        said.append("No damages were measured on this model yet, so no loss is predicted: measure them first.")
    st.html(f'<p class="k-note">{html.escape(" ".join(said))}</p>')


def told(now: draft.Draft, found: tables.Tables) -> dict[str, float]:
    """Figures of this very plan that the board's tables do not have: the rise that was measured when it was searched
    for, and the multiply-adds where a slider runs through several kinds."""
    figures = {}
    before = (now.origin or {}).get("predicted") or {}
    if before.get("rise") is not None and measured(before):
        figures["rise"] = before["rise"]
    if found.choices is not None:
        pairs = [(row, int(now.chi.get(row["name"], 0))) for row in found.rows if row["role"] != "embed"]
        dense = sum(row["parameters_dense"] for row, _ in pairs)
        figures["adds"] = sum(multiply_adds(now, found, row, chi) for row, chi in pairs) / dense
    return figures


def settings_line(now: draft.Draft) -> str:
    """What is folded away, as it stands, in one line."""
    behind = f"fitted behind {PREFIX_SAYS[now.prefix]} · " if now.prefix != "auto" else ""
    return (
        f"error of {METRIC_SAYS[now.metric]} · cores {now.quantize or 'as stored'} · embedding {now.embedding} · "
        f"{behind}rule {now.rule} · budget counts {now.unit} of the {SCOPE_SAYS.get(now.scope, now.scope)}"
    )


def entries(now: draft.Draft, found: tables.Tables, chis: list[int]) -> Iterator[dict]:
    """The plan entry of every weight at these options."""
    for name, chi in zip(found.names, chis, strict=True):
        yield now.special[name]["entry"] if chi and name in now.special else found.choices.entry(name, chi)


def multiply_adds(now: draft.Draft, found: tables.Tables, row: dict, chi: int) -> float:
    """Multiply-adds a token of a weight at one of its listed options."""
    if chi == 0:
        return float(row["parameters_dense"])
    if row["name"] in now.special:
        return now.special[row["name"]]["multiply_adds"]
    entry = found.choices.entry(row["name"], chi)
    return float(row["parameters_dense"]) if entry["network"] == "dense" else tables.adds_of(json.dumps(entry))
