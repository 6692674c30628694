"""Claims: what papers say, what their public text allows to reproduce, and what this model shows when asked."""

import html
import shlex
import time

import pandas as pd
import streamlit as st

from karipap_core.checkpoint import hub
from karipap_core.figures import claims as figures_claims
from karipap_core.studies.claims.catalogue import CLAIMS
from karipap_core.studies.claims.check import results
from karipap_core.studies.claims.claim import Claim
from pages.parts import common, docs, job, model, texts

NOT_YET = "not checked yet"


def page() -> None:
    view = model.current()
    common.title(
        "Claims",
        "Headlines of the papers behind this tool, and one press that runs the nearest honest experiment on the model "
        "in view. Published figures are theirs, on their models; measured figures are from this machine.",
    )
    docs.style()
    with common.plain_errors("reading the results"):
        found = results(view.checkpoint.key)
    name = common.choose(
        st.segmented_control,
        "Claim",
        list(CLAIMS),
        "claim",
        next(iter(CLAIMS)),
        required=True,
        format_func=lambda each: f"{LABELS[each]} ✓" if each in found else LABELS[each],
        label_visibility="collapsed",
    )
    one(view, CLAIMS[name], found.get(name))
    overview(found)


LABELS = {
    "depth": "Deeper layers",
    "structure": "Trained or random",
    "whitening": "Whitening",
    "density": "Density by size",
    "sums": "Sums of errors",
    "sampling": "Sampled rows",
    "headline": "70 % gone",
    "speed": "Pace",
    "memory": "93 % less memory",
    "sensitivity": "Early layers, down",
    "bytes": "MPO per byte",
    "embedding": "Embedding",
    "disentanglers": "36 numbers",
    "tree": "18 times by a tree",
}


def one(view, claim: Claim, document: dict | None) -> None:
    """One claim: the paper's side, the button, and both columns."""
    st.subheader(claim.title, anchor=False)
    st.html(f'<p class="k-note"><a href="{html.escape(claim.address)}">{html.escape(claim.paper)}</a></p>')
    st.html(f'<p class="k-headline">{html.escape(together(claim.headline))}</p>')
    left, right = st.columns(2, gap="large")
    left.markdown(f"**What its public text allows**\n\n{common.plain(together(claim.allows))}")
    right.markdown(f"**What is run here**\n\n{common.plain(together(claim.check))}")
    press(view, claim, document)
    if document:
        st.html(f'<p class="k-verdict"><b>Measured here.</b> {html.escape(together(document["verdict"]))}</p>')
    beside(claim, document)
    if document:
        details(claim, document)


def together(text: str) -> str:
    """A text in which no line ends between a number and its sign."""
    return text.replace(" %", "\u00a0%").replace("+ ", "+\u00a0")


def press(view, claim: Claim, document: dict | None) -> None:
    """The button, the text, and the job while it runs."""
    running = job.followed("claim_job")
    busy = running is not None and running.status()["state"] not in job.ENDED
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        with st.popover("Text", icon=":material/article:", key="k-claim-text"):
            text = texts.choose("claim", "calibration")
        others = others_beside(view) if claim.beside else []
        argv = ["claims", view.source, "--claim", claim.name, *(text or []), *others]
        again = "Check it again" if document else "Check it here"
        pressed = st.button(
            texts.label(again, text),
            type="secondary" if document else "primary",
            key="check",
            icon=":material/science:",
            disabled=busy or text is None,
            help="Runs in a process of its own; a few minutes at most on the demo model.",
        )
        if document:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(document["created"]))
            words = f"{when}, {document['tokens']:,} tokens of {document['text']['name']}, {document['seconds']:.0f} s"
            st.html(f'<p class="k-note">{html.escape(words)}</p>')
    if pressed:
        job.start(argv, f"{claim.title}: {view.checkpoint.name}", "claim_job")
        st.rerun()
    if running is not None:
        job.panel(running, "claim_job")
    st.code(shlex.join(["karipap", *argv]), language="bash", wrap_lines=True)


def others_beside(view) -> list[str]:
    """Command-line arguments for the models that are looked at beside the one in view; [] where none is chosen."""
    known = model.listing()
    hubs = model.hub_models(str(hub.cache()))
    options = [alias for alias in (*known.models, *hubs) if alias != view.alias]
    held = [alias for alias in st.session_state.get("claim_beside", []) if alias in options]
    with st.popover(f"Other models ({len(held)})" if held else "Other models", icon=":material/deployed_code:"):
        chosen = st.multiselect(
            "Models beside this one",
            options,
            key="claim_beside",
            persist_state="session",
            format_func=model.named,
            placeholder="Sizes of one family, smaller and larger",
            help="What is said is said of sizes of one family; their weights are read, nothing of them is run.",
        )
    places = [place for alias in chosen if (place := model.place_of(alias, known))]
    return ["--beside", *places] if places else []


def beside(claim: Claim, document: dict | None) -> None:
    """Published and measured in columns of their own."""
    head = ("Figure", "Published", "Where", "Measured here")
    rows = []
    for row in claim.published:
        measured = (document or {}).get("measured", {}).get(row.key)
        published = row.value if row.value else ("not published", "k-none")
        mine = (measured, "k-measured") if measured else (NOT_YET, "k-none")
        rows.append([row.what, published, (row.source or "–", "k-source"), mine])
    docs.table(head, rows)


def details(claim: Claim, document: dict) -> None:
    """Charts, notes and every measured number."""
    charts = document["charts"]
    for number, (column, chart) in enumerate(zip(st.columns(len(charts), gap="large"), charts, strict=True)):
        with column:
            common.figure(
                figures_claims.chart(chart),
                f"claim_chart_{number}",
                f"{chart['title']}; the numbers are in the table below.",
                f"karipap-claim-{claim.name}-{number}",
                text=common.text_name(document),
            )
    for note in document["notes"]:
        st.html(f'<p class="k-note">{html.escape(note)}</p>')
    table = pd.DataFrame(document["table"]["rows"], columns=document["table"]["columns"])
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("Every number measured here", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(table, f"karipap-claim-{claim.name}", "claim_csv")
    st.dataframe(table, hide_index=True, key="claim_table", alt=f"What was measured for: {claim.title}")


def overview(found: dict[str, dict]) -> None:
    """All claims in a table, with what this model said."""
    st.subheader("All claims on this model", anchor=False)
    rows = [
        (claim.title, (claim.origin, "k-source"), found[name]["verdict"] if name in found else (NOT_YET, "k-none"))
        for name, claim in CLAIMS.items()
    ]
    docs.table(("Claim", "Paper", "Measured here"), rows)


with common.plain_errors("drawing the claims"):
    page()
