"""The docs strip through Streamlit's AppTest: every network has its page, and the calculator counts as classes do."""

import re
import xml.etree.ElementTree as ET

import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.figures import claims as figures_claims
from karipap_core.networks import EMBEDDING_NETWORKS, NETWORKS
from pages.parts import common
from pages.parts.network_docs import DOCS
from tests.helpers import app_page
from tests.helpers.paths import REPOSITORY

pytestmark = pytest.mark.usefixtures("no_models")


def opened(**query) -> AppTest:
    app = AppTest.from_file(app_page.APP, default_timeout=60)
    app.run().switch_page("pages/networks.py")
    for name, value in query.items():
        app.query_params[name] = value
    app.run()
    assert not app.exception and not app.error, [error.value for error in app.error]
    return app


def words(app: AppTest) -> str:
    parts = [each.value for kind in ("markdown", "caption", "subheader", "latex") for each in getattr(app, kind)]
    return "\n".join([*parts, *(each.proto.body for each in app.get("html"))])


def test_every_network_of_the_registry_has_a_page():
    assert set(NETWORKS) | set(EMBEDDING_NETWORKS) <= set(DOCS)
    assert {"trg", "auto"} <= set(DOCS)


@pytest.mark.parametrize("name", DOCS)
def test_a_network_is_drawn_explained_counted_and_sourced(name):
    app, doc = opened(network=name), DOCS[name]
    text = words(app)
    assert text.count('<img class="k-diagram"') == len(doc.diagrams)
    assert doc.formula.replace(" ", "") in text.replace(" ", "") and "What χ means" in text
    assert "It pays when" in text and "It does not when" in text and "Forward cost." in text
    for what, value, source in doc.figures:
        assert common.html.escape(what) in text and common.html.escape(value) in text
        assert source.startswith(("measured for this project", "published"))
    assert all(url.startswith("https://") for _, url in doc.papers) and doc.papers
    counts = name in NETWORKS | EMBEDDING_NETWORKS
    assert bool(app.get("plotly_chart")) == counts == ("Breaks even" in text)


@pytest.mark.parametrize("file", sorted((REPOSITORY / "assets" / "diagrams").glob("*.svg")), ids=lambda file: file.stem)
def test_a_diagram_is_a_drawing_that_says_what_it_shows(file):
    root = ET.parse(file).getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.find(f"{space}title").text) > 40
    _, _, width, height = map(float, root.get("viewBox").split())
    for circle in root.iter(f"{space}circle"):
        x, y, r = (float(circle.get(key)) for key in ("cx", "cy", "r"))
        assert r <= x <= width - r + 20 and r <= y <= height
    for line in root.iter(f"{space}text"):
        if "transform" not in line.attrib:
            assert 0 <= float(line.get("x")) <= width and 0 < float(line.get("y")) <= height
    assert not list(root.iter(f"{space}script")) and "http" not in re.sub(r'xmlns="[^"]+"', "", file.read_text())
    used = {picture for doc in DOCS.values() for picture, _ in doc.diagrams}
    assert file.stem in used


def facts(app: AppTest) -> dict[str, str]:
    found = {}
    for each in app.get("html"):
        for label, value in re.findall(r"<dt>([^<]*)</dt><dd>([^<]*)</dd>", each.proto.body):
            found[label] = value
    return found


def test_the_calculator_counts_as_the_class_does():
    app = opened(network="mpo", shape_mpo="another shape", out_mpo="24", in_mpo="36")
    app.selectbox(key="count_mpo").select("3, balanced").run()
    app.slider(key="chi_mpo").set_value(7).run()
    spec = NETWORKS["mpo"].for_shape(24, 36, 7, sites=3)
    shown = facts(app)
    assert shown["Parameters"] == f"{spec.parameters:,}" and shown["Kept"] == f"{spec.parameters / 864:.1%}"
    assert shown["Multiply-adds"] == common.count(spec.multiply_adds(1))
    even = int(shown["Breaks even"].removeprefix("χ = ").replace(",", ""))
    assert spec.with_chi(even).parameters < 864 <= spec.with_chi(even + 1).parameters
    assert spec.describe() in words(app)
    assert app.query_params["chi_mpo"] == "7" and app.query_params["network"] == "mpo"


def test_a_group_counts_its_shared_basis_once():
    shown = facts(
        opened(
            network="tree",
            count_tree="3, inputs shared",
            shape_tree="another shape",
            out_tree="64",
            in_tree="48",
            chi_tree="12",
        )
    )
    assert shown["Parameters"] == f"{12 * 48 + 3 * 64 * 12:,}"
    assert shown["Kept"] == f"{(12 * 48 + 3 * 64 * 12) / (3 * 64 * 48):.1%}"
    assert shown["Breaks even"] == f"χ = {(3 * 64 * 48 - 1) // (48 + 3 * 64)}"


def test_a_quantized_network_is_judged_by_bytes():
    app = opened(network="qlr")
    shown = facts(app)
    assert float(shown["Kept"].rstrip("%")) > 100 > float(shown["Bytes kept"].rstrip("%"))
    assert "**Bytes**" in words(app)


SHAPES = [(name, (7, 13)) for name in NETWORKS] + [(name, (1, n)) for name in ("lowrank", "peps") for n in (1, 50)]


@pytest.mark.parametrize(("network", "shape"), SHAPES)
def test_any_shape_can_be_counted(network, shape):
    query = {f"shape_{network}": "another shape", f"out_{network}": str(shape[0]), f"in_{network}": str(shape[1])}
    assert "Parameters" in facts(opened(network=network, **query))


def test_strange_links_fall_back():
    app = opened(network="<script>", chi_lowrank="-3", shape_lowrank="../../etc")
    assert app.session_state.network == "lowrank" and "network" not in app.query_params
    app = opened(network="lowrank", shape_lowrank="another shape", out_lowrank="99999999999", in_lowrank="x")
    assert (app.session_state.out_lowrank, app.session_state.in_lowrank) == (1024, 1024)


def test_the_strip_changes_the_page_and_the_link():
    app = opened()
    app.segmented_control(key="network").set_value("trg").run()
    assert "The engine, not a network" in words(app) and app.query_params["network"] == "trg"
    assert not app.get("plotly_chart")


def test_the_curve_draws_what_it_is_given():
    figure = figures_claims.size_curve([1, 2, 4], [0.1, 0.2, 0.4], [1, 2, 3], 2)
    assert [trace.name for trace in figure.data] == ["bytes", "multiply-adds a token"]
    assert list(figure.data[0].y) == pytest.approx([0.1, 0.2, 0.4])
    assert figure.layout.xaxis.type == figure.layout.yaxis.type == "log"
