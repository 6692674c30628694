"""Deploy: whether the model fits the GPU with its KV cache, and which of four ways to serve it is right."""

import html
import math
import re
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core.deployment import kv
from karipap_core.deployment.decide import deploy
from karipap_core.deployment.footprint import Footprint, of_checkpoint, of_config
from karipap_core.deployment.hardware import said_of
from karipap_core.deployment.request import Constraints, Load, Machine
from karipap_core.deployment.verdict import ordered, recommended
from karipap_core.figures import deploy as figures_deploy
from karipap_core.terminal import size
from pages.parts import common, deploy_controls, model

HEADS = ("Way", "Weights", "In all", "Fits", "Quality", "$ / M tokens", "What it costs to maintain")
IN_THE_TABLE = ("Places beside", *kv.NAMES)  # reasons that stand in the table of places
COMMAND = re.compile(r"\b(karipap [a-z]+ .+)$")
PLACES = ("KV cache", "Open", "On the GPU", "Outside", "A step, at least", "Why")


@st.cache_resource(show_spinner=False, max_entries=8)
def footprint_of(identity: str, _checkpoint) -> Footprint:
    return of_checkpoint(_checkpoint) if _checkpoint.tensors else of_config(_checkpoint.config, _checkpoint.name)


def page() -> None:
    st.html(Path(deploy_controls.__file__).with_name("deploy.css"))
    view = model.current(weights=False)
    common.title(
        "Deploy",
        "Does it fit, what does it cost, and is compression worth doing at all? Four questions, each answer with its "
        "reasons. The simplest way that holds comes first.",
    )
    load, name, plan = deploy_controls.load(view)
    machine, fixed = deploy_controls.machine()
    instead, smaller = deploy_controls.other_models()
    with st.spinner("Counting …", show_time=False):
        if view.only == "profile" and instead is None:
            st.info(f"{common.plain(view.checkpoint.missing)} Its config.json says what it takes.")
            return
        foot = instead or footprint_of(view.checkpoint.identity, view.checkpoint)
        document = deploy(foot, load, machine, plan, Constraints(fixed, smaller))
    st.html(f'<p class="k-verdict"><b>{html.escape(foot.name)}</b>. {html.escape(document["verdict"])}</p>')
    figures(document)
    st.html(ways(document))
    note(
        "Quality is what runs of this very checkpoint in the workspace have measured; nothing is guessed. Dollars "
        "marked <i>at least</i> follow from the GPU's peak bandwidth: no engine is cheaper, most are dearer."
    )
    charts(document, foot)
    questions(document)
    places(document)
    layers(document)
    words = model_words(view, instead is not None or view.only is not None)
    st.code(command(words, load, machine, name, fixed, smaller is not None), language="bash", wrap_lines=True)


def note(text: str) -> None:
    st.html(f'<p class="k-note">{text}</p>')


def figures(document: dict) -> None:
    gpu = document["gpu"]
    load = document["load"]
    dtype = document["dtype"] + (", assumed" if document["dtype_assumed"] else "")
    stored = "under the plan" if document["plan"] else f"as stored ({dtype})"
    if (active := document["active_parameters"]) < document["parameters"]:
        stored += f"; a token passes {active / document['parameters']:.0%} of them"
    items = [
        ("Weights", size(document["weights_bytes"]), stored),
        ("KV cache", size(document["kv_bytes"]), f"{load['tokens']:,} tokens × {load['batch']}, {load['kv_dtype']}"),
        ("Activations", size(document["activation_bytes"]), "at the peak of a prefill, estimated"),
        ("Together", size(document["total_bytes"]), "fits" if document["fits"] else "does not fit"),
        ("May be filled", size(document["usable_bytes"]), f"90 % of {gpu['name']}, {size(gpu['memory'])}"),
    ]
    if document["dollars_per_mtoken"] is not None:
        items.append(("Cost", f"${document['dollars_per_mtoken']:.3g}", "a million tokens, at the throughput given"))
    common.facts(items)


def ways(document: dict) -> str:
    """The four ways as an HTML table, the recommended one first and marked."""
    best, rows = recommended(document), []
    for row in ordered(document):
        mark = ' class="k-right"' if row["way"] == best else ""
        cells = [
            f"{html.escape(row['way'])}<small>{html.escape(row['note'])}</small>",
            "–" if row["weights_bytes"] is None else size(row["weights_bytes"]),
            "–" if row["total_bytes"] is None else size(row["total_bytes"]),
            {None: "–", True: "yes", False: "no"}[row["fits"]],
            quality(row["measured"]),
            "–" if row["dollars"] is None else f"{row['dollars']:.3g}<small>{html.escape(row['dollars_are'])}</small>",
            html.escape(row["maintain"]),
        ]
        rows.append(f"<tr{mark}>{tags(HEADS, cells, (1, 2, 5))}</tr>")
    return f'<div class="k-ways"><table><thead><tr>{heads(HEADS, (1, 2, 5))}</tr></thead>{"".join(rows)}</table></div>'


def heads(names: tuple[str, ...], numbers: tuple[int, ...]) -> str:
    return "".join(f'<th class="n">{n}</th>' if i in numbers else f"<th>{n}</th>" for i, n in enumerate(names))


def tags(names: tuple[str, ...], cells: list[str], numbers: tuple[int, ...]) -> str:
    """The cells of a row. Each carries its column's name, which the style shows where the page is narrow."""
    return "".join(
        f'<td{" class=n" if i in numbers else ""} data-head="{name}">{cell}</td>'
        for i, (name, cell) in enumerate(zip(names, cells, strict=True))
    )


def quality(measured: dict | None) -> str:
    if measured is None:
        return "<i>not measured</i>"
    words = {"rise": "nats a token above dense", "relative_error": "relative output error"}[measured["measure"]]
    where = html.escape(" on ".join(filter(None, (measured["label"], measured["text"]))))
    return f"measured: {measured['value']:+z.4f}<small>{words}; {where}</small>"


def charts(document: dict, foot: Footprint) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("What fills the GPU", anchor=False)
        common.figure(
            figures_deploy.memory(document),
            "deploy_memory",
            "Memory of each way, stacked from weights, KV cache and activations; the numbers are in the table above.",
            "karipap-memory",
        )
    cache = kv.cache_of(foot.config)
    with right:
        st.subheader("How the cache grows", anchor=False)
        if not cache.layers:
            note("This model keeps no KV cache.")
            return
        positions = getattr(foot.config.get_text_config(decoder=True), "max_position_embeddings", None)
        common.figure(
            figures_deploy.cache(cache, document, min(positions or 131072, 1 << 20)),
            "deploy_cache",
            "KV cache by tokens in each format, and the room that the GPU has for it.",
            "karipap-kv-cache",
        )


def questions(document: dict) -> None:
    st.subheader("The four questions", anchor=False)
    sections = []
    for node in document["nodes"]:
        said = [reason for reason in node["reasons"] if not reason.startswith(IN_THE_TABLE)]
        reasons = "".join(f"<li>{reason_html(reason)}</li>" for reason in said)
        sections.append(
            f"<section><h3><span>{node['node']}.</span> {html.escape(node['title'])}: {html.escape(node['answer'])}"
            f"</h3><ul>{reasons}</ul></section>"
        )
    st.html(f'<div class="k-nodes">{"".join(sections)}</div>')
    for entry in document["published"]:
        said = f"{entry['what']}: {entry['text']}. {said_of(entry)}"
        note(f"<b>Published, not measured here.</b> {html.escape(said)}")


def reason_html(reason: str) -> str:
    """A reason as HTML; the command at its end, where it has one, is set as code."""
    return COMMAND.sub(r"<code>\1</code>", html.escape(reason))


def places(document: dict) -> None:
    if not any(place["available"] for place in document["placements"]):
        return
    st.subheader(f"Where the cache can lie beside {document['placed_beside']}", anchor=False)
    rows = []
    for place in document["placements"]:
        here = place["available"]
        cells = [place["name"], "yes" if here else "no", size(place["hbm"]) if here else "–"]
        cells += [size(place["pool"]) if here else "–", milliseconds(place["ms_per_step"]) if here else "–"]
        cells.append(html.escape(place["why"]))
        rows.append(f"<tr>{tags(PLACES, cells, (2, 3, 4))}</tr>")
    st.html(
        f'<div class="k-ways"><table><thead><tr>{heads(PLACES, (2, 3, 4))}</tr></thead>{"".join(rows)}</table></div>'
    )
    gpu = document["gpu"]
    peak = f"{gpu['bandwidth'] / 1e9:,.0f} GB/s, PCIe {gpu['pcie'] / 1e9:.0f} GB/s" if gpu["bandwidth"] else "unknown"
    source = html.escape(gpu["source"])
    link = f' (<a href="{html.escape(gpu["url"], quote=True)}">source</a>)' if gpu["url"] else ""
    note(f"A step makes one token of every sequence. Peak bandwidths: {peak}; {source}{link}.")


def milliseconds(ms: float | None) -> str:
    return "unknown" if ms is None else f"{ms:,.0f} ms" if ms >= 100 else f"{ms:.3g} ms"


def layers(document: dict) -> None:
    """Node 1, weight by weight."""
    rows = pd.DataFrame(document["nodes"][0]["weights"])
    if rows.empty:
        return
    with st.expander(f"Question 1, weight by weight ({len(rows)})", key="k-layers"):
        rows = rows.drop(columns=["layer", "role"]).dropna(axis=1, how="all")
        settings = {
            "name": "Weight",
            "advice": "Advice",
            "chi": st.column_config.NumberColumn("χ at 30 %"),
            "error": st.column_config.NumberColumn("Error there", format="percent"),
            "needed": st.column_config.NumberColumn(f"χ for {document['nodes'][0]['tolerance']:.0%}"),
            "break_even": st.column_config.NumberColumn("χ that saves nothing", format="%.0f"),
            "planned": "Plan",
            "planned_error": st.column_config.NumberColumn("Error of the plan's χ", format="percent"),
        }
        st.dataframe(rows, column_config=settings, hide_index=True, key="deploy_layers", alt="Advice for each weight")
        head, button = st.columns([5, 1], vertical_alignment="center")
        with head:
            note("Error: relative squared error of the layer's outputs on calibration text, by the best map of rank χ.")
        with button.container(horizontal=True, horizontal_alignment="right"):
            common.csv_button(rows, "karipap-deploy-layers", "deploy_csv")


def model_words(view, instead: bool) -> str:
    """How a terminal names the model in view, or the config.json that stands in its place."""
    if instead:
        return "config.json"
    return "assets/demo_model" if view.alias == model.DEMO else view.alias


def command(words: str, load: Load, machine: Machine, plan: str | None, fixed: bool | None, smaller: bool) -> str:
    """The command that says the same in a terminal."""
    parts = [
        f"karipap deploy {words}",
        f"--plan workspace/plans/{plan}.json" if plan else "",
        f"--tokens {load.tokens} --batch {load.batch}",
        "" if machine.gpu == "auto" else f'--gpu "{machine.gpu}"',
        "" if load.kv_dtype == "fp16" else f"--kv-dtype {load.kv_dtype}",
        "" if math.isclose(load.keep, 1) else f"--kv-keep {load.keep:g}",
        "--sparse-attention" if load.sparse else "",
        "--fp8-benchmarked" if machine.fp8_benchmarked else "",
        "--fp4-validated" if machine.fp4_validated else "",
        f"--price {machine.price:g}" if machine.price else "",
        f"--throughput {machine.throughput:g}" if machine.throughput else "",
        {None: "", True: "--fixed-checkpoint", False: "--no-fixed-checkpoint"}[fixed],
        "--smaller smaller/config.json" if smaller else "",
    ]
    return " ".join(filter(None, parts))


with common.plain_errors("planning the deployment"):
    page()
