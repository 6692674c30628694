"""Physics check: the renormalization engine on a lattice whose exact answer is known, computed while one looks on."""

import base64
import html
import math

import pandas as pd
import streamlit as st

from karipap_core.figures import ising as figures_ising
from karipap_core.studies import ising
from pages.parts import common

STEPS = {
    "trg": "One step of TRG: four sites; each split in two by SVD, χ states kept; the inner four halves contracted.",
    "hotrg": "One step of HOTRG: two neighbours; projectors keep χ states of their doubled bonds; one tensor. Then "
    "the same sideways.",
}
DIAGRAMS = common.ROOT / "assets" / "diagrams"
CHIS = [1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24]
TEMPERATURES = sorted([round(1 + 0.05 * k, 2) for k in range(61)] + [ising.CRITICAL])  # 1 to 4, and T_c between
CURVE = [1.0, 1.25, 1.5, 1.75, 1.9, 2.0, 2.1, 2.2, ising.CRITICAL, 2.35, 2.45, 2.6, 2.8, 3.0, 3.25, 3.5, 4.0]
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
QUICK_CURVE, QUICK_RIVAL = 8, 12  # χ up to which the curve, and the other method, take a second or two in all


@st.cache_resource(show_spinner=False)
def computed() -> dict:
    """(method, χ, T) → document, for all who look; at most as many as the sliders have places."""
    return {}


def page() -> None:
    common.inside_app()
    common.title(
        "Physics check",
        "Tensor renormalization, the engine behind the norms of PEPS networks, on a problem whose exact answer has "
        "been known since 1944: a magnet of 2³⁰ spins. No model is involved.",
    )
    method, temperature, chi, quantity = controls()
    wait = st.empty()
    document = solved(method, chi, temperature, wait)
    st.html(f'<p class="k-verdict">{verdict(document)}</p>')
    figures(document)
    left, right = st.columns(2, gap="large")
    with left:
        curve_chi = min(chi, QUICK_CURVE)
        points = [solved(method, curve_chi, t, wait) for t in CURVE]
        wait.empty()
        common.figure(
            figures_ising.curve(points, document, quantity),
            "physics_curve",
            "Exact curve and computed points over temperature, with their relative errors; the numbers are in the "
            "table below.",
            "karipap-ising-curve",
            "Ising model: exact curve and computed points over temperature",
            model=False,
        )
        note(f"Points: {figures_ising.NAMES[method]} at χ = {curve_chi}. " + SAYS[quantity])
    with right:
        others = [(name, c) for name in figures_ising.NAMES for c in CHIS if c <= limit(name, method, chi)]
        documents = [solved(name, c, temperature, wait) for name, c in others]
        wait.empty()
        common.figure(
            figures_ising.convergence(documents, document),
            "physics_convergence",
            "Relative error by bond dimension for TRG and HOTRG; the numbers are in the table below.",
            "karipap-ising-error",
            "Ising model: relative error by bond dimension",
            model=False,
        )
        note(
            f"At T = {temperature:.4g}, up to the χ above, the other method up to {QUICK_RIVAL}. Both fall by orders "
            "of magnitude; HOTRG takes longer at equal χ and is mostly more exact."
        )
    flow_and_why(document)
    table(points + documents, document)


SAYS = {
    "free": "f = −T ln Z / N in units of the coupling J, N spins; T in J/k<sub>B</sub>.",
    "ln_z": "ln Z / N, natural logarithm, N spins; T in J/k<sub>B</sub>.",
}


def controls() -> tuple[str, float, int, str]:
    with st.container(horizontal=True, vertical_alignment="bottom", gap="medium", key="k-controls"):
        method = common.choose(
            st.segmented_control,
            "Method",
            list(figures_ising.NAMES),
            "ising_method",
            "trg",
            required=True,
            format_func=figures_ising.NAMES.get,
            help="**TRG** Levin and Nave 2007: tensors are split by SVD and rejoined, cost χ⁶.\n\n"
            "**HOTRG** Xie et al. 2012: neighbours are merged and projected, cost χ⁷.",
        )
        temperature = common.choose(
            st.select_slider,
            "Temperature T",
            TEMPERATURES,
            "ising_temperature",
            ising.CRITICAL,
            width=320,
            format_func=lambda t: "2.269 (critical)" if t == ising.CRITICAL else f"{t:.2f}",
        )
        chi = common.choose(
            st.select_slider,
            "Bond dimension χ",
            CHIS,
            "ising_chi",
            16,
            width=260,
            help="How many states every bond keeps. On one core χ = 16 takes seconds, χ = 24 up to half a minute.",
        )
        quantity = common.choose(
            st.segmented_control,
            "Curve of",
            list(SAYS),
            "ising_curve",
            "free",
            required=True,
            format_func={"free": "free energy", "ln_z": "ln Z"}.get,
        )
    return method, temperature, chi, quantity


def limit(name: str, method: str, chi: int) -> int:
    """Up to which χ the error is shown: the other method's too, as far as that is quick."""
    return chi if name == method else min(chi, QUICK_RIVAL)


def solved(method: str, chi: int, temperature: float, wait) -> dict:
    """The document of `ising.solve`, computed once; `wait` shows how far it is when it takes long."""
    key, kept = (method, chi, temperature), computed()
    if key not in kept:
        name = f"{figures_ising.NAMES[method]} at χ = {chi}, T = {temperature:.4g}"

        def told(stage: str, done: int, total: int) -> None:
            wait.progress(done / total, f"Computing {name}: round {done} of {total}")

        kept[key] = ising.solve(temperature, chi, method, progress=told)
    return kept[key]


def verdict(document: dict) -> str:
    """The outcome in a sentence, as HTML."""
    name, chi, error = figures_ising.NAMES[document["method"]], document["chi"], document["relative_error"]
    digits = min(15, int(-math.log10(max(error, 1e-16))))
    agrees = (
        f"agrees with the exact answer to <b>{digits} digits</b>"
        if digits > 1
        else f"is {error:.1%} off the exact answer"
    )
    return (
        f"{name} with χ = {chi} {agrees}, after {document['seconds']:.2g} s; the sum that this replaces has "
        "2<sup>1,073,741,824</sup> terms."
    )


def figures(document: dict) -> None:
    common.facts(
        [
            ("ln Z per site", f"{document['ln_z_per_site']:.8f}", "computed in float64, 32,768 × 32,768 sites"),
            ("Exact", f"{document['exact']:.8f}", "Onsager's integral, infinite lattice"),
            ("Relative error", power(document["relative_error"]), "|computed − exact| / exact"),
            ("Discarded weight", power(document["discarded_weight"]), "part of Σσ² cut off, largest step"),
            ("Time", f"{document['seconds']:.2g} s", "on this machine, when it was computed"),
        ]
    )


def power(number: float) -> str:
    """4.6e-06 → 4.6 · 10⁻⁶"""
    if number == 0:
        return "0"
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits} · 10{str(int(exponent)).translate(SUPERSCRIPT)}"


def flow_and_why(document: dict) -> None:
    left, right = st.columns(2, gap="large")
    with left:
        st.subheader("What flows out of it", anchor=False)
        common.figure(
            figures_ising.flow(document),
            "physics_flow",
            "Levels of the transfer matrix by the size of the block that one tensor stands for.",
            "karipap-ising-flow",
            "Ising model: levels of the transfer matrix by the size of the block",
            model=False,
        )
        note(flow_says(document["temperature"]))
    with right:
        st.subheader("Why this proves the engine", anchor=False)
        st.markdown(WHY)
        diagram(document["method"])
        st.code(command(document), language="bash", wrap_lines=True)


def flow_says(temperature: float) -> str:
    """What the flow at this temperature shows, as HTML."""
    if temperature == ising.CRITICAL:
        says = (
            "At T<sub>c</sub> the magnet looks alike at every scale, and the levels settle on its scaling dimensions "
            "1/8 and 1: numbers that nobody put in. Large blocks drift away, because a finite χ acts like a small "
            "distance from T<sub>c</sub>; a larger χ stays longer."
        )
    elif temperature < ising.CRITICAL:
        says = (
            "Below T<sub>c</sub> the first level flows to 0: two states, all spins up and all spins down, become "
            "equally likely. The magnet is ordered."
        )
    else:
        says = (
            "Above T<sub>c</sub> the levels grow with the block, by its side over the correlation length: distant "
            "spins forget each other, and one state is left."
        )
    return f"{says} λ are the eigenvalues of a block closed to a ring."


WHY = """
A network without open legs is a number. For the magnet it is the partition function Z, the sum over all
configurations; for a PEPS it is the norm ⟨Ŵ|Ŵ⟩ that its fit divides by. One function computes both, and here the right
answer is known from elsewhere:

1. **The number is exact.** Onsager's integral knows nothing of tensors; the engine sees one tensor of
   sixteen numbers.
2. **It converges.** The error falls by orders of magnitude as χ grows. It is largest near $T_c$, where correlations
   reach across the whole lattice, as theory says it must be.
3. **It renormalizes.** The tensors on the way carry the physics of each scale, as the flow shows.
"""


def diagram(method: str) -> None:
    """One step of the method, in colours for light and dark alike; as a picture, since Streamlit drops inline SVG."""
    source = base64.b64encode((DIAGRAMS / f"{method}.svg").read_bytes()).decode()
    alt = html.escape(STEPS[method], quote=True)
    st.html(f'<img src="data:image/svg+xml;base64,{source}" alt="{alt}" style="width:100%;max-width:570px">')
    note(STEPS[method])


def note(text: str) -> None:
    """Small print below a figure, as HTML."""
    st.html(f'<p class="k-note">{text}</p>')


def table(documents: list[dict], chosen: dict) -> None:
    columns = [
        "method",
        "temperature",
        "chi",
        "ln_z_per_site",
        "exact",
        "relative_error",
        "discarded_weight",
        "seconds",
    ]
    unique = {(d["method"], d["temperature"], d["chi"]): d for d in [*documents, chosen]}
    rows = pd.DataFrame([{key: unique[at][key] for key in columns} for at in sorted(unique)])
    rows["method"] = rows["method"].map(figures_ising.NAMES)
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("All numbers", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(rows, "karipap-ising", "ising_csv")
    settings = {
        "method": "Method",
        "temperature": st.column_config.NumberColumn("T", format="%.4f"),
        "chi": "χ",
        "ln_z_per_site": st.column_config.NumberColumn("ln Z per site", format="%.10f"),
        "exact": st.column_config.NumberColumn("Exact", format="%.10f"),
        "relative_error": st.column_config.NumberColumn("Relative error", format="%.1e"),
        "discarded_weight": st.column_config.NumberColumn("Discarded weight", format="%.1e"),
        "seconds": st.column_config.NumberColumn("Seconds", format="%.2f"),
    }
    st.dataframe(rows, column_config=settings, hide_index=True, key="ising_table", alt="Every computed number")


def command(document: dict) -> str:
    """The same from a terminal; the critical temperature is the verb's own default, to the last digit."""
    critical = document["temperature"] == ising.CRITICAL
    temperature = "" if critical else f" --temperature {document['temperature']:g}"
    return f"karipap ising --method {document['method']}{temperature} --chi {document['chi']}"


with common.plain_errors("checking the physics"):
    page()
