"""Profile, the first page: the spectrum of every weight as a map, which opens into one weight's singular values."""

import html

import numpy as np
import pandas as pd
import streamlit as st

from karipap_core.checkpoint.reach import in_words
from karipap_core.figures import peps as figures_peps
from karipap_core.figures import profile as figures
from karipap_core.figures import style
from karipap_core.figures import tree as figures_tree
from karipap_core.figures.map import Numbers, row_name, seats, weight_map
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.curves import load_curves
from karipap_core.profiles.document import Profile
from pages.parts import adapters, common, model, opening_shapes, profiles, tables, terms

NEAR_NOISE = 0.02  # nats of excess below which a weight counts as noise: ten times the scatter of one random draw
METRIC_SAYS = {
    "weight": "of the weight W itself: what a cut leaves out is the squared error of its numbers.",
    "functional": "of W √C, C = E[x xᵀ] of its inputs: what a cut leaves out is the squared error of the layer's "
    "outputs on text.",
    "loss": "of √G W √C, G = E[g gᵀ] of its output gradients: what a cut leaves out estimates the rise in loss "
    "(K-FAC).",
}
INTRO = (
    "Karipap shows how much of each weight of a language model is structure and how much is like noise, lets you "
    "choose how much of each to keep, and measures what that costs. This map is the first step: a cell for each weight."
)
SENSITIVITY_ENDS = (
    "cutting this weight hardly moves the model's outputs",
    "cutting it moves them much: keep more of it",
)
WORDS = (
    *("weight", "sigma", "entropy", "nats", "noise", "excess", "normalized_entropy", "effective_rank", "stable_rank"),
    *("spikes", "metric", "kfac", "chi", "break_even", "kept"),
)
FROM_SIGMA = ("chi", "kept")  # quantities that need the singular values, not the numbers of profile.json alone
ERRORS = [0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3]


def page() -> None:
    view = model.current(weights=False)
    common.title("Profile", INTRO)
    if view.only == "config":
        opening_shapes.draw(view)
        return
    if view.only == "update":
        adapters.offer(view)
    profile = profiles.current(view)
    if profile is None:
        return
    quantity, metric, error, fixed = controls(profile, view)
    with st.container(horizontal=True, vertical_alignment="center", gap="medium", key="k-next"):
        st.html(f'<p class="k-verdict">{html.escape(verdict(profile, metric))}</p>')
        choose = view.only != "update"
        if choose and st.button("Choose χ →", key="choose_chi", type="primary", help=terms.line("chi")):
            st.switch_page("pages/plan.py", query_params={"model": view.alias})
    explore(profile, view, quantity, metric, error, fixed)
    whole_table(profile, metric)
    left_out(profile)
    terms.strip(*WORDS)


def controls(profile: Profile, view):
    """Which quantity, under which metric, at which error; all of it in the URL."""
    calibration = profiles.calibration(view)
    quantities = [name for name in figures.QUANTITIES if not (profile.bare and name in FROM_SIGMA)]
    quantities += ["sensitivity"] if calibration else []
    names = {key: kind.label for key, kind in figures.QUANTITIES.items()} | {"sensitivity": "Sensitivity"}
    metrics = profile.settings["metrics"]
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-controls"):
        quantity = common.choose(
            st.selectbox,
            "Quantity",
            quantities,
            "quantity",
            "entropy",
            format_func=names.get,
            width=230,
            filter_mode=None,
        )
        metric = common.choose(
            st.segmented_control,
            "Spectrum of",
            metrics,
            "metric",
            metrics[0],
            required=True,
            format_func={"weight": "weights", "functional": "outputs", "loss": "loss"}.get,
            help="\n\n".join(f"**{name}** {METRIC_SAYS[name]}" for name in metrics),
        )
        error = 0.01
        if quantity in ("chi", "kept"):
            error = common.choose(
                st.select_slider, "Squared error allowed", ERRORS, "error", 0.01, format_func="{:.1%}".format, width=230
            )
        if quantity == "sensitivity":
            common.choose(
                st.select_slider,
                "Cut to this part of the break-even χ",
                LEVELS,
                "level",
                0.45,
                format_func="{:.0%}".format,
                width=250,
            )
        fixed = quantity == "normalized_entropy" and st.toggle("Colour from 0 to 1", key="fixed")
        profiles.settings(view, profile)
    return quantity, metric, error, fixed


def verdict(profile: Profile, metric: str) -> str:
    """Where the model has structure and where it has none, in a sentence."""
    rows = [row for row in profile.weights if row["compressible"] and metric in row["spectra"]]
    if not rows:
        return "No weight of this model can be compressed yet: only matrices inside the blocks can."
    excess = {row["name"]: row["spectra"][metric]["excess"] for row in rows}
    zero = sum(value is None for value in excess.values())
    if zero == len(rows):
        return "All weights that can be compressed are zeros: every network holds them exactly."
    most = max(rows, key=lambda row: _or(excess[row["name"]], -9))
    noisy = sum(_or(value, 9) < NEAR_NOISE for value in excess.values())
    zeros = f"{zero} of {len(rows)} weights {'is' if zero == 1 else 'are'} all zeros. " if zero else ""
    layer = f"{most['tower']} {most['layer']}" if most.get("tower") else f"layer {most['layer']}"
    return (
        f"{zeros}Most structure: {layer}, {most['role']}, {excess[most['name']]:.2f} nats below noise "
        f"of its shape; {noisy or 'none'} of {len(rows)} weights {'looks' if noisy == 1 else 'look'} like noise."
    )


def saved(profile: Profile) -> str:
    """How much of the blocks two factors take that keep 99 % of every weight's squares, under each metric."""
    if not any(row["compressible"] for row in profile.weights):
        return ""
    if profile.bare:
        return profiles.BARE
    shares = {name: kept_at(profile, name, str(profile.folder)) for name in profile.settings["metrics"]}
    what = {"weight": "of the weights", "functional": "of the layers' outputs", "loss": "by the loss estimate"}
    takes = ", ".join(f"{share:.0%} {what[name]}" for name, share in shares.items())
    said = f"To keep 99 % of every Σσ², two factors take this part of the blocks' numbers: {takes}"
    return f"{said}{': nearly nothing is saved at that error.' if min(shares.values()) > 0.9 else '.'}"


def _or(value: float | None, other: float) -> float:
    """`other` in place of the excess that a zero weight has not."""
    return other if value is None else value


@st.cache_data(show_spinner=False, max_entries=64)
def kept_at(_profile: Profile, metric: str, folder: str, error: float = 0.01) -> float:
    """Parameters kept when every weight is cut to the χ of this error, or left dense where that is smaller."""
    rows = [row for row in _profile.weights if row["compressible"] and metric in row["spectra"]]
    share = figures.QUANTITIES["kept"].value
    after = sum(row["parameters"] * min(share(_profile, row, metric, error), 1.0) for row in rows)
    return after / max(sum(row["parameters"] for row in rows), 1)


@model.fragment
def explore(profile: Profile, view, quantity: str, metric: str, error: float, fixed: bool) -> None:
    """The map, and the weight it opens. A click re-runs only this."""
    with common.plain_errors("drawing the profile"):
        _explore(profile, view, quantity, metric, error, fixed)


def _explore(profile: Profile, view, quantity: str, metric: str, error: float, fixed: bool) -> None:
    chosen = selected(profile, metric)
    left, right = st.columns([10, 9], gap="large")
    with left:
        if quantity == "sensitivity":
            numbers = Numbers(profiles.damages(view, st.session_state.level), "damage", log=True)
        else:
            numbers = figures.numbers_of(profile, quantity, metric, error, fixed)
        fig = weight_map(profile.weights, numbers, chosen["name"])
        common.figure(
            fig,
            "map",
            "Map of the model, layers down and roles across; the same numbers are in the table below.",
            "karipap-map",
            title=heading(numbers, quantity, metric),
            text=of_text(profile, metric) if quantity != "sensitivity" else "",
            on_select=clicked,
            selection_mode="points",
        )
        what_colours_mean(quantity)
        note = f"{definition(view, quantity, metric, error)} {saved(profile)}"
        st.html(f'<p class="k-note">{html.escape(note)}</p>')
    with right:
        twin(profile, chosen)
        one_weight(profile, chosen, metric, view)


def heading(numbers: Numbers, quantity: str, metric: str) -> str:
    """What a saved map is headed with."""
    if quantity == "sensitivity":
        return f"Damage by each weight cut to {st.session_state.level:.0%} of its break-even χ"
    of = {"weight": "the weights", "functional": "the layers' outputs", "loss": "the loss estimate"}[metric]
    return f"{numbers.label} of every weight, spectrum of {of}"


def of_text(profile: Profile, metric: str) -> str:
    """The text that this metric was measured on; the spectra of the weights themselves need none."""
    return "" if metric == "weight" else str(profile.settings.get("text") or "")


def what_colours_mean(quantity: str) -> None:
    """Both ends of the colours, in words."""
    low, high = SENSITIVITY_ENDS
    if quantity in figures.QUANTITIES:
        low, high = figures.QUANTITIES[quantity].low, figures.QUANTITIES[quantity].high
    ends = zip(style.ends(), ("Low", "High"), (low, high), strict=True)
    said = "".join(
        f'<i style="background:{colour}"></i><b>{end}</b><span>{html.escape(meaning)}</span>'
        for colour, end, meaning in ends
    )
    st.html(f'<div class="k-ends">{said}</div>')


def definition(view, quantity: str, metric: str, error: float) -> str:
    """What the colours mean, beside them."""
    if quantity == "sensitivity":
        return profiles.sensitivity_says(view, st.session_state.level)
    says = figures.QUANTITIES[quantity].says
    if quantity in ("chi", "kept"):
        says += f" Here the left-out part is at most {error:.1%}."
    if quantity == "excess" and metric != "weight":
        says += " In this metric it also counts structure of the inputs and gradients."
    return (
        f"{says} Spectrum {METRIC_SAYS[metric]} Click a cell to open the weight. The map tells of weights, not yet "
        "of the model: what cuts do to its predictions is foretold on Plan and measured by Run."
    )


def clicked() -> None:
    """A click on the map chooses the weight; the point carries its name."""
    points = st.session_state.map["selection"]["points"]
    if points:
        st.session_state.weight = points[0]["customdata"][0]


def selected(profile: Profile, metric: str) -> dict:
    """The weight in view, from this session or the URL; the one with the most structure to begin with."""
    known = {row["name"] for row in profile.weights}
    name = st.session_state.get("weight") or st.query_params.get("weight")
    if name not in known:
        rows = [row for row in profile.weights if row["compressible"] and metric in row["spectra"]] or profile.weights
        name = max(rows, key=lambda row: _or(row["spectra"].get(metric, {}).get("excess"), -9))["name"]
    st.session_state.weight = name
    if st.query_params.get("weight") != name:
        st.query_params["weight"] = name
    return profile.weight(name)


def twin(profile: Profile, chosen: dict) -> None:
    """The keyboard's way to what a click does: a list of cells, and of experts where a cell folds several."""
    folded: dict = {}
    for row, seat in zip(profile.weights, seats(profile.weights), strict=True):
        folded.setdefault(seat if row["layer"] is not None else row["name"], []).append(row["name"])
    heads = {names[0]: key for key, names in folded.items()}
    mine = next(names for names in folded.values() if chosen["name"] in names)
    st.session_state.cell = mine[0]

    def say(name: str) -> str:
        key = heads[name]
        return key if isinstance(key, str) else f"{row_name(key[0])} · {key[1]}"

    def open_cell() -> None:
        st.session_state.weight = st.session_state.cell

    one, other = st.columns([3, 2]) if len(mine) > 1 else (st.container(), None)
    one.selectbox("Weight", list(heads), key="cell", format_func=say, on_change=open_cell)
    if other is not None:
        st.session_state.expert = chosen["name"]

        def open_expert() -> None:
            st.session_state.weight = st.session_state.expert

        def say_expert(name: str) -> str:
            expert = profile.weight(name)["expert"]
            return name if expert is None else f"expert {expert}"

        other.selectbox(
            f"One of {len(mine)}",
            mine,
            key="expert",
            on_change=open_expert,
            format_func=say_expert,
        )


def one_weight(profile: Profile, row: dict, metric: str, view) -> None:
    """The spectrum of one weight, its numbers, and what they mean."""
    st.html(f'<p class="k-name">{html.escape(row["name"])}</p>')
    if metric not in row["spectra"]:
        st.info(common.plain(" ".join(row["notes"]) or f"This profile has no {metric} spectrum of this weight."))
        return
    bonds = any(metric in bond["spectra"] for bond in row["bonds"])
    views = ["spectrum", "kept"] + (["bonds"] if bonds else []) + (["tree", "peps"] if row["compressible"] else [])
    names = {"spectrum": "Singular values", "kept": "Kept by χ", "bonds": "MPO bonds", "tree": "Tree", "peps": "PEPS"}
    shown = common.choose(
        st.segmented_control,
        "View",
        views,
        "view",
        "spectrum",
        required=True,
        format_func=names.get,
        label_visibility="collapsed",
    )
    if shown in ("tree", "peps"):
        cuts(view, row, metric, shown)
    elif profile.bare and shown != "bonds":
        st.info(profiles.BARE)
    else:
        draw = {"spectrum": figures.spectrum, "kept": figures.cumulative, "bonds": figures.bonds}[shown]
        fig = draw(profile, row["name"], metric)
        alt, text = f"{names[shown]} of {row['name']}", of_text(profile, metric)
        common.figure(fig, "detail", alt, f"karipap-{shown}-{row['name']}", text=text)
    numbers, n_out, n_in = row["spectra"][metric], *row["shape"]
    excess = "–" if numbers["excess"] is None else f"{numbers['excess']:+z.3f} nats"
    common.listing(
        [
            ("Shape, out × in", f"{n_out:,} × {n_in:,}", terms.line("weight")),
            ("Entropy S", f"{numbers['entropy']:.3f} nats", terms.line("entropy")),
            ("S of noise", f"{numbers['null_entropy']:.3f} nats", terms.line("noise")),
            ("Excess over noise", excess, terms.line("excess")),
            (
                "Effective rank",
                f"{numbers['effective_rank']:.1f} of {min(n_out, n_in):,}",
                terms.line("effective_rank"),
            ),
            ("Break-even χ", f"{figures.break_even(row['shape']):.0f}", terms.line("break_even")),
        ]
    )
    with st.expander("More numbers of this weight", key="k-more-numbers"):
        common.listing(
            [
                ("Rényi-2 entropy", f"{numbers['renyi2']:.3f} nats", terms.line("renyi2")),
                ("Stable rank", f"{numbers['stable_rank']:.1f}", terms.line("stable_rank")),
                ("Rank", f"{numbers['rank']:,}", terms.line("rank")),
                (
                    "Out of the bulk",
                    f"{numbers['spikes']:,} σ, {numbers['spike_share']:.0%} of Σσ²",
                    terms.line("spikes"),
                ),
            ]
        )
    if row["notes"]:
        st.caption(common.plain(" ".join(row["notes"])))


def cuts(view, row: dict, metric: str, network: str) -> None:
    """What the cuts of a tree over the layers, or of a lattice, hold."""
    found = profiles.with_network(view, network, metric)
    if found is None:
        profiles.measure_cuts(view, network)
        return
    has = metric if metric in found.settings["metrics"] else "weight"
    of = {"weight": "the weights", "functional": "the outputs", "loss": "the loss"}[has]
    other = "" if has == metric else f" This profile has cuts of {of} alone."
    if network == "peps":
        lattice = found.weight(row["name"])["lattice"]
        fig = figures_peps.lattice(lattice["bonds"][has], lattice["grid"], lattice["sites"])
        common.figure(
            fig,
            "detail",
            f"The lattice of {row['name']}, bonds as thick as their entropy",
            f"karipap-peps-{row['name']}",
            text=of_text(found, has),
        )
        st.html(
            '<p class="k-note">Sites are factors out·in of the weight. A bond is as thick as the entropy S of the cut '
            "it crosses, divided by what a Gaussian weight has there; horizontal bonds cross the cuts between columns, "
            f"vertical ones those between rows. Of {of}.{other}</p>"
        )
        return
    group = found.group(row["name"])
    fig = figures_tree.tree(group["edges"][has])
    fig.update_xaxes(range=[-1.8, 1.8])  # room for the words where the page is narrow
    common.figure(
        fig,
        "detail",
        f"The tree over {len(group['members'])} layers, edges as thick as their entropy",
        f"karipap-tree-{row['name']}",
        text=of_text(found, has),
    )
    alone = (
        " The layers of this role share nothing by default, so this tree has one layer."
        if len(group["members"]) == 1
        else ""
    )
    st.html(
        '<p class="k-note">Edges are as thick as their entropy; the pale band behind is that of a Gaussian. A thin '
        "edge to the inputs or outputs is a basis that the layers share; leaves are the layers, each cut alone as low "
        f"rank cuts it. Of {of}.{other}{alone}</p>"
    )
    against_lowrank(view, found, group, has)


def against_lowrank(view, profile: Profile, group: dict, metric: str) -> None:
    """The group's tree against low rank on each layer, where the tree's curve was measured on the Plan page."""
    file = tables.sources(view, tables.What("tree", metric)).curves["tree", metric, False]
    measured = (file and load_curves(file)) or ()
    curve = next((c for c in measured if set(c.members) == set(group["members"])), None)
    squares = np.sort(np.concatenate([profile.sigma(name, metric) ** 2 for name in group["members"]]))
    error = np.concatenate([np.cumsum(squares)[::-1], [0.0]])
    shape = profile.weight(group["members"][0])["shape"]
    sizes, dense = np.arange(len(error)) * sum(shape), len(group["members"]) * shape[0] * shape[1]
    sizes_, errors = (curve.parameters, curve.error) if curve else (np.empty(0), np.empty((0, 1)))
    fig = figures_tree.against_lowrank(sizes_, errors, error[0], sizes, error, dense)
    if curve is None:
        fig.for_each_trace(lambda trace: trace.update(visible=len(trace.x) > 0))
    common.figure(
        fig,
        "tree_line",
        "Error of the tree against its size, beside low rank on each layer",
        f"karipap-tree-line-{group['members'][0]}",
        text=of_text(profile, metric),
    )
    if curve is None:
        st.caption(f"The tree's own line is drawn once it was measured under the metric {metric} (Plan page).")


COLUMNS = {
    "name": ("Weight", None),
    "layer": ("Layer", None),
    "role": ("Role", None),
    "out": ("Out", "localized"),
    "in": ("In", "localized"),
    "entropy": ("S", "%.3f"),
    "normalized_entropy": ("S / ln min", "%.3f"),
    "null_entropy": ("S of noise", "%.3f"),
    "excess": ("Excess", "%.3f"),
    "effective_rank": ("Eff. rank", "%.1f"),
    "stable_rank": ("Stable rank", "%.1f"),
    "rank": ("Rank", "localized"),
    "chi_at_1pct": ("χ at 1 %", "localized"),
    "spikes": ("Spikes", "localized"),
    "spike_share": ("Spike share", "percent"),
}


HELP = {  # column → the word that says what it is
    **{
        key: key
        for key in ("entropy", "normalized_entropy", "excess", "effective_rank", "stable_rank", "rank", "spikes")
    },
    "null_entropy": "noise",
    "spike_share": "spikes",
}


def whole_table(profile: Profile, metric: str) -> None:
    """Every weight in a row; the same numbers as the map, for reading, sorting and saving."""
    rows = pd.DataFrame(profile.rows(metric))
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("All weights", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(rows, "karipap-profile", "profile_csv")
    settings = common.columns(COLUMNS)
    for key in COLUMNS.keys() & HELP.keys():
        settings[key]["help"] = terms.line(HELP[key])
    settings["layer"] = st.column_config.NumberColumn("Layer", width="small")
    st.dataframe(
        common.no_signed_zeros(rows, {key: form for key, (_, form) in COLUMNS.items()}),
        column_order=list(COLUMNS),
        column_config=settings,
        hide_index=True,
        height=min(420, 38 + 35 * len(rows)),
        placeholder="",
        key="weights",
        alt="All weights with the numbers of their spectra",
    )


def left_out(profile: Profile) -> None:
    """Every tensor that has no spectrum, and why; and how the profile was made."""
    skipped = profile.document.get("skipped", [])
    if found := profile.document.get("coverage"):
        said = in_words(found)
        st.html(f'<p class="k-note" id="coverage">{html.escape(said[0].upper() + said[1:])}.</p>')
    with st.expander(f"Tensors without a spectrum ({len(skipped)}), and how this profile was made"):
        st.html(f'<p class="k-note">{html.escape(profiles.made(profile))}</p>')
        if skipped:
            st.dataframe(
                pd.DataFrame(skipped),
                hide_index=True,
                key="skipped",
                alt="Tensors passed over, with the reason",
                column_config={"name": "Tensor", "why": "Why"},
            )


with common.plain_errors("drawing the profile"):
    page()
