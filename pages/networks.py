"""Networks: the docs strip. For every tensor network its diagram, what χ means, its size, and when it pays."""

import base64
import html

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.search import largest
from pages.parts import common, docs, model
from pages.parts.network_docs import DOCS, Doc

DIAGRAMS = common.ROOT / "assets" / "diagrams"
LARGEST = 200_000
POINTS = 24  # χ of the calculator's curve
OTHER = "another shape"


def page() -> None:
    common.inside_app()
    common.title("Networks", "Every form a weight can take: drawn, counted, and with what was measured of it.")
    docs.style()
    names = {name: name.replace("_", " ") for name in DOCS}
    name = common.choose(
        st.segmented_control,
        "Network",
        list(DOCS),
        "network",
        "lowrank",
        required=True,
        format_func=names.get,
        label_visibility="collapsed",
    )
    doc = DOCS[name]
    st.subheader(doc.title, anchor=False)
    st.html(f'<p class="k-verdict">{html.escape(doc.sentence)}</p>')
    left, right = st.columns([7, 6], gap="large")
    with left:
        for file, says in doc.diagrams:
            diagram(file, says)
    with right:
        st.markdown(f"**What χ means.** {doc.chi}")
        st.markdown("**Parameters**" if name not in ("qlr", "trg", "auto") else SIZE_IS[name])
        st.latex(doc.formula)
        st.caption(doc.formula_says)
        if name == "trg":
            st.page_link("pages/physics.py", label="Physics check", icon=":material/experiment:")
    place = st.container()
    pays(doc)
    st.markdown(f"**Forward cost.** {doc.forward}")
    st.subheader("What was measured, and what was published", anchor=False)
    rows = [(what, value, (source, "k-source")) for what, value, source in doc.figures]
    docs.table(("Figure", "Value", "Source"), rows)
    links = "".join(f'<li><a href="{html.escape(url)}">{html.escape(words)}</a></li>' for words, url in doc.papers)
    st.html(f'<ul class="k-papers">{links}</ul>')
    with place:  # last: counting imports torch, and the words above need not wait for it
        calculator(name, doc)


SIZE_IS = {"qlr": "**Bytes**", "trg": "**Cost of a step**", "auto": "**What is minimized**"}


def diagram(file: str, says: str) -> None:
    """A drawing that follows the theme; as a picture, since Streamlit drops inline SVG."""
    source = base64.b64encode((DIAGRAMS / f"{file}.svg").read_bytes()).decode()
    alt = html.escape(says, quote=True)
    st.html(f'<img class="k-diagram" src="data:image/svg+xml;base64,{source}" alt="{alt}" style="max-width:640px">')
    st.html(f'<p class="k-note">{html.escape(says)}</p>')


def pays(doc: Doc) -> None:
    left, right = st.columns(2, gap="large")
    for column, head, lines in ((left, "It pays when", doc.pays), (right, "It does not when", doc.not_pays)):
        with column:
            st.markdown(f"**{head}**\n\n" + "\n".join(f"- {line}" for line in lines))


# ---- the calculator -----------------------------------------------------------------------------------------------


def registry() -> dict:
    """Name → class of every network that can be counted, embeddings' included."""
    from karipap_core import networks

    return networks.NETWORKS | getattr(networks, "EMBEDDING_NETWORKS", {})


def calculator(name: str, doc: Doc) -> None:
    """A shape and a χ → what the network's own class counts."""
    if name in ("trg", "auto") or name not in registry():
        return
    with st.container(border=True, key="k-calculator"):
        st.markdown("**Count it**")
        with st.container(horizontal=True, vertical_alignment="bottom", gap="medium"):
            shape = chosen_shape(name, doc)
            label = ""
            if doc.choices:
                label = common.choose(
                    st.selectbox, doc.choice, list(doc.choices), f"count_{name}", next(iter(doc.choices)), width=200
                )
        try:
            most, even = limits(name, *shape, label)
        except InputError as error:
            st.error(common.plain(error))
            return
        options = range(1, min(most, max(4, 2 * even)) + 1)  # beyond that nobody would want it
        chi = 1
        if len(options) > 1:
            chi = common.choose(
                slider,
                "χ",
                options,
                f"chi_{name}",
                max(1, round(0.6 * even)),
                help="The largest dimension of every bond; a bond that cannot be so large takes all that it can.",
            )
        outcome(name, shape, label, chi, counted(name, *shape, label, chi), even)
        curve(name, shape, label, options[-1], chi)


def chosen_shape(name: str, doc: Doc) -> tuple[int, int]:
    """(out, in) from the model in view, from a well-known model, or typed in."""
    shapes = {text: (out, in_) for text, out, in_ in model_shapes(name == "tt_embedding") + doc.shapes}
    default = doc.shapes[0][0]
    text = common.choose(st.selectbox, "Weight", [*shapes, OTHER], f"shape_{name}", default, width=330)
    if text != OTHER:
        return shapes[text]
    sides = []
    for side in ("out", "in"):
        key = f"{side}_{name}"
        common.setting(key, range(1, LARGEST + 1), 1024)
        sides.append(st.number_input(side, 1, LARGEST, key=key, width=130))
        common.share(key)
    return sides[0], sides[1]


def model_shapes(tables: bool) -> tuple[tuple[str, int, int], ...]:
    """The shapes of the model in view, each once with the roles that have it."""
    try:
        view = model.find(st.session_state.get("model"))
    except (InputError, OSError):
        return ()
    roles: dict[tuple[int, int], list[str]] = {}
    for weight in view.checkpoint.weights if view else ():
        if weight.role == "embed" if tables else weight.compressible:
            known = roles.setdefault(weight.shape, [])
            known += [weight.role] if weight.role not in known else []
    where = "this model"
    return tuple((f"{o} × {i} ({', '.join(of)}, {where})", o, i) for (o, i), of in roles.items())


def specs(name: str, out: int, in_: int, label: str, chi: int) -> list:
    """The weight's spec; for a group of layers that of each member, since shared cores are the first one's."""
    options = DOCS[name].choices.get(label, {})
    members = options.get("members")
    kind = registry()[name]
    if members:
        return [kind.for_shape(out, in_, chi, **options, at=at) for at in range(len(members))]
    return [kind.for_shape(out, in_, chi, **options)]


@st.cache_data(max_entries=512, show_spinner=False)
def counted(name: str, out: int, in_: int, label: str, chi: int) -> dict:
    """What the class counts: per weight, for a group the mean over its members."""
    found = specs(name, out, in_, label, chi)
    return {
        "parameters": sum(spec.parameters for spec in found),
        "kept": sum(spec.parameters for spec in found) / (len(found) * out * in_),
        "bytes_kept": sum(spec.bytes(2) for spec in found) / (2 * len(found) * out * in_),
        "multiply_adds": found[0].multiply_adds(1),
        "describe": found[0].describe(),
        "weights": len(found),
    }


@st.cache_data(max_entries=128, show_spinner=False)
def limits(name: str, out: int, in_: int, label: str) -> tuple[int, int]:
    """(the χ from which on nothing is truncated, the largest χ that takes fewer bytes than dense; at least 1)."""
    most = max(1, *(spec.max_chi for spec in specs(name, out, in_, label, 1)))

    def small(chi: int) -> bool:
        found = specs(name, out, in_, label, chi)
        return sum(spec.bytes(2) for spec in found) < 2 * len(found) * out * in_

    return most, largest(small, 1, most + 1)


def slider(label: str, options: range, **more):
    return st.slider(label, options[0], options[-1], **more)


@st.cache_data(max_entries=512, show_spinner="Measuring …")
def decoding(name: str, shape: tuple[int, int], label: str, chi: int) -> tuple[str, str]:
    """What a layer takes for one vector, over a dense one, measured on this machine; and how that is meant."""
    from karipap_core.layers.decode import decode_seconds

    found = decode_seconds(specs(name, *shape, label, chi)[0])
    if found is None:
        return "–", "not measured: the weight is too large for a look"
    ours, dense = found
    return f"{ours / dense:.2g} × dense", f"{1e3 * ours:.2g} ms for one vector, measured here in float32"


def outcome(name: str, shape: tuple[int, int], label: str, chi: int, now: dict, even: int) -> None:
    out, in_ = shape
    dense = out * in_
    of = f"in all; dense {now['weights']} × {dense:,}" if now["weights"] > 1 else f"dense {dense:,}"
    use = "a token, as a head" if name == "tt_embedding" else "a token"
    common.facts(
        [
            ("Parameters", f"{now['parameters']:,}", of),
            ("Kept", f"{now['kept']:.1%}", "of the parameters"),
            ("Bytes kept", f"{now['bytes_kept']:.1%}", "16 bits a number that is not quantized"),
            ("Multiply-adds", common.count(now["multiply_adds"]), f"{use}; dense {common.count(dense)}"),
            ("Decoding", *decoding(name, shape, label, chi)),
            ("Breaks even", f"χ = {even:,}", "the largest χ with fewer bytes than dense"),
        ]
    )
    first = "The first of the group: " if now["weights"] > 1 else ""
    st.html(f'<p class="k-note">{html.escape(first + now["describe"])}</p>')


def curve(name: str, shape: tuple[int, int], label: str, last: int, chi: int) -> None:
    """Bytes and multiply-adds over those of dense, by χ."""
    from karipap_core.figures.claims import size_curve

    shown = sorted({chi, *(round(last ** (k / (POINTS - 1))) for k in range(POINTS))})
    with st.spinner("Counting …"):
        rows = [counted(name, *shape, label, each) for each in shown]
    adds = [row["multiply_adds"] / (shape[0] * shape[1]) for row in rows]
    common.figure(
        size_curve(shown, [row["bytes_kept"] for row in rows], adds, chi),
        "networks_curve",
        "Bytes and multiply-adds over those of the dense weight, by χ; the figures above are for the chosen χ.",
        f"karipap-{name}-size",
        f"{name}: bytes and multiply-adds over those of the dense weight, by χ",
        model=False,
    )


with common.plain_errors("drawing the networks"):
    page()
