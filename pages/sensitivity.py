"""Sensitivity: each weight or layer compressed alone, what it loses, and whether entropy foretells that here."""

import html
import json
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.figures import sensitivity as figures
from karipap_core.networks import listed
from karipap_core.spectra.spectrum import METRICS
from karipap_core.studies.sensitivity import foretell, store
from karipap_core.studies.sensitivity import measure as core
from karipap_core.workspace import Workspace
from pages.parts import common, job, model, texts

LABELS = {"lowrank": "low rank", "mpo": "MPO", "qlr": "Q + low rank", "peps": "PEPS"}
KEPT = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05]
TOKENS = [2048, 4096, 8192, 16384, 32768]
FORMATS = ("none", "int8", "int4", "int3", "int2")
QUALITIES = {"rise": ("rise", "kl"), "relative_error": ("relative_error",)}
SHORT = {"not told apart from none": "unclear", "the other way round": "reversed", "too few to say": "too few"}
NAMES = {"weight": "weights", "layer": "whole layers"}


def page() -> None:
    view = model.current()
    common.title(
        "Sensitivity",
        "Each part of the model compressed alone, all else dense: what is lost, and which numbers foretell it.",
    )
    running = job.followed("sensitivity_job")
    documents = {Path(document["path"]).stem: document for document in store.read_all(folder(view))}
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-controls"):
        chosen, gone = which(documents)
        ask(view, running)
    if running is not None:
        job.panel(running, "sensitivity_job")
    if chosen is None or gone:
        if running is None and not gone:
            st.info("Nothing measured on this model yet: choose a network and a size under New measurement.")
        return
    busy = running is not None and running.status()["state"] == "running"
    model.fragment(results, run_every=3.0 if busy else None)(view, chosen)


def folder(view) -> Path:
    return Workspace().model_dir(view.checkpoint.key)


def which(documents: dict[str, dict]) -> tuple[str | None, bool]:
    """The name of the measurement in view, the newest to begin with; and whether it is gone."""
    if not documents:
        if gone := common.missing("measurement", ()):
            common.say_gone("measurement", gone)
        return None, bool(gone)
    names = list(documents)
    return common.asked(
        st.selectbox,
        "Measured",
        names,
        "measurement",
        names[0],
        "measurement",
        width=520,
        filter_mode=None,
        format_func=lambda name: foretell.say_settings(documents[name]) if name in documents else name,
    )


def shares_cores(network: str) -> bool:
    """Whether weights share cores in this network. Imports torch."""
    from karipap_core.networks import NETWORKS

    return NETWORKS[network].grouped


def ask(view, running) -> None:
    """A popover with the choices of a new measurement."""
    with st.popover("New measurement", icon=":material/science:", key="k-sensitivity"):
        network = common.choose(
            st.selectbox,
            "Network",
            list(listed.NAMES),
            "sens_network",
            "lowrank",
            format_func=lambda name: LABELS.get(name, name),
            filter_mode=None,
        )
        by = "weight"
        if network != "lowrank" and shares_cores(network):
            st.caption("Weights that share a tree's cores are compressed together.")
        else:
            by = common.choose(
                st.segmented_control,
                "One at a time",
                list(NAMES),
                "sens_by",
                "weight",
                required=True,
                format_func=NAMES.get,
            )
        size = common.choose(
            st.segmented_control,
            "Size by",
            ["kept", "chi"],
            "sens_size",
            "kept",
            required=True,
            format_func={"kept": "part kept", "chi": "χ"}.get,
        )
        if size == "kept":
            kept = common.choose(
                st.select_slider, "Kept of each weight's numbers", KEPT, "sens_kept", 0.5, format_func="{:.0%}".format
            )
            argv = ["--kept", f"{kept:g}"]
        else:
            chi = st.number_input("χ of every bond", 1, 65536, 32, key="sens_chi", persist_state="session")
            argv = ["--chi", str(int(chi))]
        metric = common.choose(
            st.segmented_control,
            "Cores fitted to",
            METRICS,
            "sens_metric",
            "loss",
            required=True,
            format_func={"weight": "weights", "functional": "outputs", "loss": "loss"}.get,
        )
        form = common.choose(
            st.selectbox,
            "Store cores in",
            FORMATS,
            "sens_format",
            "none",
            filter_mode=None,
            format_func=lambda name: "the weight's own dtype" if name == "none" else name,
        )
        tokens = common.choose(
            st.select_slider, "Tokens to measure on", TOKENS, "sens_tokens", core.MAX_TOKENS, format_func="{:,}".format
        )
        text = texts.choose("sensitivity", "held-out")
        argv = ["sensitivity", view.source, "--network", network, *argv, "--metric", metric, "--by", by]
        argv += ["--quantize", form] if form != "none" else []
        argv += ["--max-tokens", str(tokens), *(text or [])]
        busy = running is not None and running.status()["state"] not in job.ENDED
        if st.button(texts.label("Measure", text), type="primary", key="sens_start", disabled=text is None or busy):
            st.session_state.pop("measurement", None)
            st.query_params.pop("measurement", None)
            job.start(argv, f"Sensitivity of {view.checkpoint.name}, {LABELS.get(network, network)}", "sensitivity_job")
            st.rerun()
        if busy:
            st.caption("One measurement at a time from this page; the running one goes on below.")


@st.cache_data(show_spinner=False, max_entries=32)
def correlations(_rows: list[dict], quality: str, path: str, count: int) -> dict:
    """ρ of every measure, kept by file and number of rows: rows are only ever added to a file."""
    return foretell.correlations(_rows, quality)


def results(view, name: str) -> None:
    with common.plain_errors("drawing the sensitivity"):
        _results(view, name)


def _results(view, name: str) -> None:
    """Everything of one measurement, read anew: a job may be adding to it."""
    document = next((d for d in store.read_all(folder(view)) if Path(d["path"]).stem == name), None)
    if document is None:
        st.info("This measurement is gone: choose another.")
        return
    units = [unit for unit in store.UNITS if document[f"{unit}s"]]
    by = units[0]
    if len(units) > 1:
        by = common.choose(
            st.segmented_control, "Shown", units, "unit_shown", units[0], required=True, format_func=NAMES.get
        )
    rows, quality = document[f"{by}s"], document["quality"]
    both = {key: correlations(rows, key, f"{document['path']}|{by}", len(rows)) for key in QUALITIES[quality]}
    first, *rest = foretell.sentences(document, by, both[quality], both.get("kl", {}))
    st.html(f'<p class="k-verdict">{html.escape(first)}</p><p class="k-note">{html.escape(" ".join(rest))}</p>')
    if len(both) > 1:
        quality = common.choose(
            st.segmented_control,
            "Measured as",
            list(both),
            "sens_quality",
            quality,
            required=True,
            format_func=lambda key: {"rise": "rise in loss", "kl": "KL divergence"}[key],
            help="The rise is what counts; the KL divergence to the dense model comes from the same passes and has far "
            "less noise, so that weights which lose little still rank.",
        )
    found = both[quality]
    total = document["total"].get(by, len(rows))
    if len(rows) < total:
        st.caption(f"{len(rows)} of {total} measured so far.")
    selected = in_view(rows)
    left, right = st.columns([10, 9], gap="large")
    with left:
        st.subheader("What each loses", anchor=False)
        listed = [
            {"name": w.name, "layer": w.layer, "role": w.role, "shape": w.shape}
            for w in view.checkpoint.weights
            if w.compressible
        ]
        member = st.session_state.get("weight")
        fig = figures.sensitivity_map(listed, rows, quality, member)
        common.figure(
            fig,
            "sens_map",
            "Map of the model, layers down and roles across; the same numbers are in the table below.",
            "karipap-sensitivity",
            title=f"What each weight loses when it alone is compressed: {figures.LABELS[quality]}",
            text=common.text_name(document),
            on_select=clicked,
            selection_mode="points",
        )
        st.html(f'<p class="k-note">{html.escape(how(document, quality))}</p>')
        details(selected, quality)
    with right:
        st.subheader("Which number could have said so", anchor=False)
        foretold(rows, quality, found, selected, common.text_name(document))
    if found:
        forest(found, common.text_name(document))
    if document["layers"]:
        st.subheader("Layer by layer", anchor=False)
        common.figure(
            figures.layers(document["layers"], quality),
            "sens_layers",
            "What the model loses when one layer's weights are compressed and all else is dense",
            "karipap-sensitivity-layers",
            text=common.text_name(document),
        )
    table(document, rows, by)


def how(document: dict, quality: str) -> str:
    """What the colours mean."""
    what = {
        "rise": "Loss minus the dense model's, nats a token",
        "kl": "KL divergence of the next token from the dense model's, nats a token",
        "relative_error": "Squared error of the model's last hidden states over their square",
    }[quality]
    said = f"{what}, with this weight alone compressed ({foretell.say_settings(document)})"
    return f"{said}. Colours run by decades. Click a cell for its figures."


def clicked() -> None:
    points = st.session_state.sens_map["selection"]["points"]
    if points:
        st.session_state.weight = points[0]["customdata"][0]


def picked() -> None:
    points = st.session_state.sens_scatter["selection"]["points"]
    if points and points[0].get("customdata"):
        name = points[0]["customdata"]
        st.session_state.weight = name if isinstance(name, str) else name[0]


def in_view(rows: list[dict]) -> dict:
    """The row of the weight in view (this session's, the URL's, else the most sensitive); a row's name stands too."""
    name = st.session_state.get("weight") or st.query_params.get("weight")
    row = next((row for row in rows if name == row["name"] or name in row["members"]), None)
    if row is None:
        quality = "rise" if rows[0]["rise"] is not None else "relative_error"
        row = max(rows, key=lambda row: row[quality])
    if name not in row["members"]:
        name = row["members"][0]
    st.session_state.weight = name
    if st.query_params.get("weight") != name:
        st.query_params["weight"] = name
    return row


def details(row: dict, quality: str) -> None:
    """The figures of the part in view."""
    st.html(f'<p class="k-name">{html.escape(row["name"])}</p>')
    items = [("χ", f"{row['chi']:,}" if row["chi"] else "of each"), ("Kept", f"{row['kept']:.1%}")]
    if row["rise"] is not None:
        span = "" if row["rise_low"] is None else f" ({row['rise_low']:+z.4f} to {row['rise_high']:+z.4f})"
        items += [("Rise in loss", f"{row['rise']:+z.4f}{span}"), ("KL", f"{row['kl']:.4g}")]
        items += [("Top-1 agreement", f"{row['top1_agreement']:.1%}")]
    else:
        items += [("Output error", f"{row['relative_error']:.4g}")]
    for key, measure in foretell.MEASURES.items():
        if row.get(key) is not None:
            items.append((measure.label, f"{row[key]:,}" if key == "parameters" else f"{row[key]:.4g}"))
    common.listing(items)


def foretold(rows: list[dict], quality: str, found: dict, selected: dict, text: str) -> None:
    """A measure against what was measured."""
    measures = [key for key in foretell.MEASURES if any(row.get(key) is not None for row in rows)]
    measure = common.choose(
        st.selectbox,
        "Number",
        measures,
        "sens_measure",
        "entropy",
        filter_mode=None,
        format_func=lambda key: foretell.MEASURES[key].label,
    )
    fig = figures.scatter(rows, measure, quality, found.get(measure), selected["name"])
    common.figure(
        fig,
        "sens_scatter",
        f"{foretell.MEASURES[measure].label} of each part against what was measured",
        f"karipap-sensitivity-{measure}",
        text=text,
        on_select=picked,
        selection_mode="points",
    )
    st.html(f'<p class="k-note">{html.escape(foretell.MEASURES[measure].says)}.</p>')


def forest(found: dict, text: str) -> None:
    """ρ of every measure as a figure, and in words."""
    st.subheader("Spearman's ρ of every measure", anchor=False)
    left, right = st.columns([9, 11], gap="large")
    with left:
        common.figure(
            figures.forest(found),
            "sens_forest",
            "Spearman's rank correlation of every measure with its interval",
            "karipap-sensitivity-rho",
            text=text,
        )
    with right:
        lines = []
        for key, one in found.items():
            line = {"measure": foretell.MEASURES[key].label}
            for name, part in (("", one), ("within_", one["within"])):
                span = f"{part['low']:.2f} to {part['high']:.2f}" if part else None
                says = foretell.answer(part, foretell.MEASURES[key].sign)
                says = SHORT.get(says, says)
                line |= {f"{name}rho": part and part["rho"], f"{name}interval": span, f"{name}says": says}
            lines.append(line)
        form = {"measure": st.column_config.TextColumn("Measure", width=135)}
        for name, label in (("", "ρ"), ("within_", "Within roles")):
            form |= {
                f"{name}rho": st.column_config.NumberColumn(label, format="%.2f", width=50 if not name else 85),
                f"{name}interval": st.column_config.TextColumn("95 % interval", width=95),
                f"{name}says": st.column_config.TextColumn("Foretells?", width=80),
            }
        st.dataframe(
            pd.DataFrame(lines),
            column_config=form,
            hide_index=True,
            key="sens_rho",
            placeholder="",
            height="content",
            alt="Rank correlation of every measure with what was measured",
        )
    st.html(
        '<p class="k-note">ρ compares ranks only; its 95 % interval comes from resampling the weights. Roles differ in '
        "shape and place, so within roles ranks are taken among the weights of one role and pooled. Unclear: the "
        "interval holds 0 and reaches beyond ±0.3. Effective rank is exp S and ranks as S does. Predicted damage "
        "comes from the calibration: from gradients on its text, or measured there weight by weight, as Plan says; the "
        "others come from spectra, or from inputs and gradients on that text.</p>"
    )


def table(document: dict, rows: list[dict], by: str) -> None:
    """Every part in a row, for reading, sorting and saving."""
    frame = pd.DataFrame(rows).drop(columns=["members", "shape", *(["layer"] if by == "layer" else [])])
    frame = frame[[column for column in frame.columns if frame[column].notna().any()]]
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader(f"All {NAMES[by]}", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame, f"karipap-sensitivity-{by}s", "sens_csv")
        st.download_button(
            "JSON",
            lambda: json.dumps(foretell.described(document, by), indent=1),
            "karipap-sensitivity.json",
            "application/json",
            key="sens_json",
            on_click="ignore",
            type="tertiary",
            icon=":material/download:",
        )
    labels = {
        "name": "Weight" if by == "weight" else "Layer",
        "layer": "Layer",
        "role": "Role",
        "chi": "χ",
        "kept": "Kept",
        "rise": "Rise",
        "rise_low": "low",
        "rise_high": "high",
        "kl": "KL",
        "top1_agreement": "Top-1 agreement",
    }
    labels |= {key: measure.label for key, measure in foretell.MEASURES.items()}
    form = {}
    for column in frame.columns:
        label = labels.get(column, column.replace("_", " ").capitalize())
        number = pd.api.types.is_float_dtype(frame[column])
        form[column] = st.column_config.NumberColumn(label, format="%.4g") if number else label
    st.dataframe(
        frame,
        column_config=form,
        hide_index=True,
        height=min(460, 38 + 35 * len(frame)),
        placeholder="",
        key="sens_rows",
        alt="What every part loses, with the numbers that may foretell it",
    )
    for row in document.get("skipped", ()):
        st.caption(common.plain(f"{row['name']}: left out, {row['why']}"))


with common.plain_errors("drawing the sensitivity"):
    page()
