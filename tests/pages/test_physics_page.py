"""The Physics check through Streamlit's AppTest, and its figures against the numbers they draw."""

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from karipap_core.figures import ising as figures_ising
from karipap_core.studies import ising
from karipap_core.studies.ising import CRITICAL, exact, solve
from tests.helpers import app_page
from tests.helpers.app_page import words

pytestmark = pytest.mark.usefixtures("no_models")


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What the page has had computed, as (method, χ, T)."""
    found, real = [], ising.solve

    def counted(temperature, chi, method, **more):
        found.append((method, chi, temperature))
        return real(temperature, chi, method, **more)

    monkeypatch.setattr(ising, "solve", counted)
    return found


def opened(**query) -> AppTest:
    app = AppTest.from_file(app_page.APP, default_timeout=60)
    app.run().switch_page("pages/physics.py")
    for name, value in ({"ising_chi": "4"} | query).items():
        app.query_params[name] = value
    app.run()
    assert not app.exception and not app.error, [error.value for error in app.error]
    return app


def test_it_shows_the_number_the_exact_one_and_the_error():
    app, known = opened(), solve(CRITICAL, 4, "trg")
    text = words(app)
    assert f"{known['ln_z_per_site']:.8f}" in text and "0.92969540" in text
    assert "2.9 · 10⁻⁴" in text and "<b>3 digits</b>" in text
    assert "1/8 and 1: numbers that nobody put in" in text and "One step of TRG" in text
    assert app.code[0].value == "karipap ising --method trg --chi 4"
    assert len(app.get("plotly_chart")) == 3


def test_the_sliders_choose_what_is_computed(asked):
    app = opened(ising_temperature="2.0", ising_chi="3")
    assert asked[0] == ("trg", 3, 2.0)
    assert "Below T<sub>c</sub>" in words(app) and "--temperature 2 --chi 3" in app.code[0].value
    app.segmented_control(key="ising_method").set_value("hotrg").run()
    app.select_slider(key="ising_temperature").set_value(3.0).run()
    app.select_slider(key="ising_chi").set_value(2).run()
    assert ("hotrg", 2, 3.0) in asked and "Above T<sub>c</sub>" in words(app) and "One step of HOTRG" in words(app)
    app.segmented_control(key="ising_curve").set_value("ln_z").run()
    assert "natural logarithm" in words(app)
    assert (app.query_params["ising_method"], app.query_params["ising_chi"]) == ("hotrg", "2")


def test_nothing_is_computed_twice(asked):
    app = opened()
    assert len(asked) == len(set(asked)) > 20
    before = len(asked)
    app.run()
    assert len(asked) == before
    app.select_slider(key="ising_chi").set_value(3).run()  # its error by χ is known already; the curve is not
    assert {entry[1] for entry in asked[before:]} == {3}


def test_the_table_holds_every_number():
    table = opened(ising_method="hotrg", ising_chi="2", ising_temperature="1.5").dataframe[0].value
    row = table[(table["temperature"] == 1.5) & (table["chi"] == 2) & (table["method"] == "HOTRG")]
    known = solve(1.5, 2, "hotrg")
    assert row["ln_z_per_site"].item() == pytest.approx(known["ln_z_per_site"], rel=1e-12)
    assert row["exact"].item() == exact(1.5)
    assert len(table) == len(table[["method", "temperature", "chi"]].drop_duplicates())


@pytest.mark.parametrize("name", ["ising_method", "ising_temperature", "ising_chi", "ising_curve"])
def test_foreign_values_in_the_url_are_dropped(name, asked, monkeypatch):
    quick = ising.solve
    monkeypatch.setattr(ising, "solve", lambda t, chi, method, **more: quick(t, chi, method, side=4) | {"chi": chi})
    opened(**{"ising_chi": "2", name: "<script>-1e999"})
    assert asked[0] == ("trg", 16 if name == "ising_chi" else 2, CRITICAL)


def test_a_failure_is_a_sentence(monkeypatch):
    def fails(*arguments, **more):
        raise RuntimeError("secret /path")

    monkeypatch.setattr(ising, "solve", fails)
    app = AppTest.from_file(app_page.APP, default_timeout=60)
    app.run().switch_page("pages/physics.py").run()
    assert not app.exception
    assert "Something went wrong while checking the physics" in app.error[0].value
    assert "secret" not in app.error[0].value


# ---- the figures --------------------------------------------------------------------------------------------------


def test_the_curve_draws_the_exact_line_the_points_and_their_errors():
    points = [solve(t, 4, "trg") for t in (3.0, 1.5, 2.0)]
    chosen = solve(2.0, 6, "trg")
    for quantity, factor in (("free", -2.0), ("ln_z", 1.0)):
        line, dots, errors, ring, ring_error = figures_ising.curve(points, chosen, quantity).data
        assert (line.x[0], line.x[-1]) == (1.5, 3.0)
        assert list(dots.x) == [1.5, 2.0, 3.0] and "χ = 4" in dots.name
        assert dots.y[1] == pytest.approx(factor * points[2]["ln_z_per_site"], rel=1e-6)
        assert np.interp(2.0, line.x, line.y) == pytest.approx(factor * exact(2.0), rel=1e-4)
        assert errors.y[1] == pytest.approx(points[2]["relative_error"], rel=1e-6)
        assert ring.y[0] == pytest.approx(factor * chosen["ln_z_per_site"], rel=1e-6) and "χ = 6" in ring.name
        assert ring_error.y[0] == pytest.approx(chosen["relative_error"], rel=1e-6)


def test_the_error_by_chi_has_a_line_a_method():
    documents = [solve(2.0, chi, method) for method in ("trg", "hotrg") for chi in (4, 1, 2)]
    figure = figures_ising.convergence(documents, documents[0])
    trg, hotrg, ring = figure.data
    assert list(trg.x) == list(hotrg.x) == [1, 2, 4] and (trg.name, hotrg.name) == ("TRG", "HOTRG")
    assert trg.y[2] == ring.y[0] == pytest.approx(documents[0]["relative_error"], rel=1e-6)
    low, high = figure.layout.yaxis.range
    assert low < np.log10(min(trg.y.min(), hotrg.y.min())) and high > np.log10(max(trg.y.max(), hotrg.y.max()))


@pytest.mark.parametrize("temperature, chi", [(CRITICAL, 8), (2.0, 8), (3.0, 8), (2.0, 1), (100.0, 4)])
def test_the_flow_draws_the_levels_it_can(temperature, chi):
    document = solve(temperature, chi, "hotrg")
    figure = figures_ising.flow(document)
    spin, energy, *dimensions = figure.data
    known = [(entry["block"], entry["levels"][0]) for entry in document["flow"]]
    known = [(block, level) for block, level in known if level is not None and level <= figures_ising.TOP]
    assert list(spin.x) == [block for block, _ in known]
    assert list(spin.y) == pytest.approx([level for _, level in known], rel=1e-6)
    assert [line.y[0] for line in dimensions] == [0.125, 1.0]


def test_errors_too_small_to_show_are_on_the_floor():
    document = solve(2.0, 2, "trg") | {"relative_error": 0.0}
    for figure in (figures_ising.curve([document], document), figures_ising.convergence([document], document)):
        heights = [y for trace in figure.data for y in trace.y if 0 < y < 1e-6]
        assert heights and min(heights) == pytest.approx(figures_ising.FLOOR, rel=1e-6)
