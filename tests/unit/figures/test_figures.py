"""Figures against the numbers they are drawn from."""

import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest

from karipap_core.figures import profile as figures
from karipap_core.figures import style
from karipap_core.figures.map import Numbers, cells, weight_map
from karipap_core.spectra.null import bulk_edge
from karipap_core.spectra.spectrum import chi_at_error, entropy
from tests.helpers import made_up


@pytest.fixture(scope="module")
def dense():
    return made_up.profile(metrics=("weight", "functional"), bonds=True)


def trace(figure: go.Figure, name: str):
    return next(line for line in figure.data if line.name == name)


def test_the_map_has_every_block_weight_at_its_place_and_no_other(dense):
    figure = figures.heatmap(dense)
    heat = figure.data[0]
    roles, layers = figure.layout.xaxis.ticktext, figure.layout.yaxis.ticktext
    assert roles == ("q", "k", "v", "o", "gate", "up", "down") and layers == ("layer 0", "layer 1", "layer 2")
    for row in dense.weights:
        if row["layer"] is not None:
            value = heat.z[row["layer"]][roles.index(row["role"])]
            assert value == pytest.approx(entropy(dense.sigma(row["name"])), rel=1e-6)


@pytest.mark.parametrize("quantity", figures.QUANTITIES)
def test_every_quantity_is_drawn_from_the_metric_that_was_asked_for(dense, quantity):
    one, other = (figures.heatmap(dense, quantity, metric, 0.1).data[0].z for metric in ("weight", "functional"))
    assert np.isfinite(one).all() and not np.allclose(one, other)


def test_chi_and_kept_are_those_of_the_spectrum(dense):
    name = "model.layers.1.gate_proj"
    grid = cells(dense.weights, figures.numbers_of(dense, "chi", "weight", 0.2).values)
    chi = chi_at_error(dense.sigma(name), 0.2)
    assert grid[1, "gate"].value == chi
    kept = cells(dense.weights, figures.numbers_of(dense, "kept", "weight", 0.2).values)[1, "gate"].value
    assert kept == pytest.approx(chi * (40 + 24) / (40 * 24))


def test_experts_fold_into_their_mean():
    profile = made_up.profile(experts=4)
    cell = cells(profile.weights, figures.numbers_of(profile).values)[2, "up"]
    assert len(cell.weights) == 4
    assert cell.value == pytest.approx(np.mean([w["spectra"]["weight"]["entropy"] for w in cell.weights]))
    assert "4 experts" in " ".join(figures.heatmap(profile).data[1].hovertext)


def test_a_click_carries_the_weights_name_and_the_chosen_cell_is_framed(dense):
    name = "model.layers.2.v_proj"
    figure = figures.heatmap(dense, selected=name)
    marks = figure.data[1]
    point = [entry[0] for entry in marks.customdata].index(name)
    assert (marks.x[point], marks.y[point]) == (2, 2)
    assert list(marks.selectedpoints) == [point]
    assert all(shape.x0 < 2 < shape.x1 and shape.y0 < 2 < shape.y1 for shape in figure.layout.shapes)


def test_a_metric_that_is_missing_leaves_a_hole_and_says_so(dense):
    figure = figures.heatmap(dense, metric="loss")
    assert np.isnan(figure.data[0].z).all()
    assert "not in this profile" in figure.data[1].hovertext[0]


def test_measured_values_are_coloured_by_decades(dense):
    values = {row["name"]: 10.0 ** -(row["layer"] or 0) for row in dense.weights}
    heat = weight_map(dense.weights, Numbers(values, "ΔKL", log=True)).data[0]
    assert np.allclose(heat.z[:, 0], [0, -1, -2]) and heat.text[1][0] == "0.1"


def test_fixed_colours_are_the_quantitys_own_limits(dense):
    heat = figures.heatmap(dense, "normalized_entropy", fixed=True).data[0]
    assert (heat.zmin, heat.zmax) == (0, 1)
    assert figures.heatmap(dense, "normalized_entropy").data[0].zmin > 0


def test_names_are_text_never_markup():
    profile = made_up.profile(layers=1)
    profile.weights[1]["name"] = "<img src=x>"
    assert "<img" not in " ".join(figures.heatmap(profile).data[1].hovertext)


def test_the_spectrum_shows_sigma_and_the_edge_of_the_bulk(dense):
    name = "model.layers.0.k_proj"
    figure = figures.spectrum(dense, name, chi=5)
    sigma = dense.sigma(name)
    assert np.allclose(trace(figure, "σ of this weight").y, sigma, rtol=1e-6)
    edge = bulk_edge(sigma, (12, 24))
    assert any(shape.y0 == pytest.approx(edge) for shape in figure.layout.shapes)
    assert (sigma > edge).sum() == 3  # the three directions that were put in
    assert any(shape.x0 == 5 for shape in figure.layout.shapes)


def test_noise_lies_on_its_null(dense):
    figure = figures.spectrum(dense, "model.layers.0.o_proj")
    seen, null = (trace(figure, name).y for name in ("σ of this weight", "Gaussian of this shape"))
    assert np.abs(seen[:12] / null[:12] - 1).max() < 0.15


def test_the_kept_weight_rises_to_one_above_its_null(dense):
    figure = figures.cumulative(dense, "model.layers.0.k_proj")
    kept, null = trace(figure, "this weight"), trace(figure, "Gaussian of this shape")
    sigma = dense.sigma("model.layers.0.k_proj")
    assert kept.y[0] == 0 and kept.y[-1] == 1 and (np.diff(kept.y) >= 0).all()
    assert kept.y[3] == pytest.approx((sigma[:3] ** 2).sum() / (sigma**2).sum(), rel=1e-6)
    assert (kept.y[1:-1] > null.y[1:-1]).all()
    assert figures.break_even((12, 24)) == 8


def test_bonds_show_their_entropy_beside_the_null(dense):
    figure = figures.bonds(dense, "model.layers.0.q_proj")
    bond = dense.weight("model.layers.0.q_proj")["bonds"][0]["spectra"]["weight"]
    assert trace(figure, "this weight").y[0] == pytest.approx(bond["entropy"], rel=1e-6)
    assert trace(figure, "Gaussian of this cut").y[0] == pytest.approx(bond["null_entropy"], rel=1e-6)


def test_a_wide_spectrum_is_thinned_and_small():
    profile = made_up.profile(layers=1)
    row = profile.weights[1] | {"name": "wide", "shape": [4096, 11008]}
    profile.weights.append(row)
    profile._spectra["wide|weight"] = np.linspace(300, 1, 4096)
    for figure in (figures.spectrum(profile, "wide"), figures.cumulative(profile, "wide")):
        assert all(len(line.x) <= 512 and line.y.dtype == np.float32 for line in figure.data)
        assert len(figure.to_json()) < 25_000
    assert trace(figures.spectrum(profile, "wide"), "σ of this weight").x[[0, -1]].tolist() == [1, 4096]


@pytest.mark.parametrize("sigma", [np.zeros(12), np.array([1.0] + [0.0] * 11), np.full(12, 1e-30)])
def test_strange_spectra_are_drawn(sigma):
    profile = made_up.profile(layers=1)
    profile._spectra["model.layers.0.k_proj|weight"] = sigma
    for draw in (figures.spectrum, figures.cumulative):
        assert draw(profile, "model.layers.0.k_proj").to_json()


def test_ticks_are_short_words():
    words = {1234: "1,234", 0.5: "0.5", 0.001: "0.001", 1e-4: "10⁻⁴", 2e-7: "2·10⁻⁷", 5e8: "5·10⁸"}
    assert {value: style.tick(value) for value in words} == words


def test_drawing_needs_neither_torch_nor_streamlit():
    code = "import sys, karipap_core.figures as f; print(sorted({'torch', 'streamlit'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
