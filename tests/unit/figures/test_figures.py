"""Figures against the numbers they are drawn from."""

import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from plotly.colors import sample_colorscale

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


def test_the_spread_of_experts_is_said():
    profile = made_up.profile(experts=4)
    found = [w["spectra"]["weight"]["entropy"] for w in profile.weights if w["layer"] == 1 and w["role"] == "down"]
    said = [text for text in figures.heatmap(profile).data[1].hovertext if "4 experts" in text]
    low, mean, high = min(found), np.mean(found), max(found)
    assert any(f"mean {mean:.2f}, {low:.2f} to {high:.2f} nats" in text for text in said)
    alone = figures.heatmap(made_up.profile()).data[1].hovertext
    assert not any("mean" in text for text in alone)


def test_an_encoders_layers_stand_over_a_decoders_and_no_cell_holds_both():
    names = [f"{stack}.block.{i}.layer.0.SelfAttention.q" for stack in ("encoder", "decoder") for i in (0, 1)]
    names += [f"decoder.block.{i}.layer.1.EncDecAttention.q" for i in (0, 1)]
    rows = [{"name": n, "layer": int(n.split(".")[2]), "role": "q", "shape": (4, 4)} for n in names]
    rows.append({"name": "shared", "layer": None, "role": "embed", "shape": (4, 4)})
    values = {name: float(at) for at, name in enumerate(names)}
    figure = weight_map(rows, Numbers(values, "L"))
    assert figure.layout.yaxis.ticktext == ("encoder 0", "encoder 1", "decoder 0", "decoder 1")
    assert figure.layout.xaxis.ticktext == ("q", "cross q")
    z = figure.data[0].z
    assert z[:, 0].tolist() == [0, 1, 2, 3] and np.isnan(z[:2, 1]).all() and z[2:, 1].tolist() == [4, 5]


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio of two colours "#rrggbb", written out from its definition."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_numbers_stand_out_on_every_colour_of_the_scale():
    """Cells have no theme: the colours and the inks are the same in light and dark."""
    parts = np.linspace(0, 1, 2001)
    colors = sample_colorscale(style.SCALE, parts, colortype="tuple")
    hexes = ["#" + "".join(f"{round(255 * c):02x}" for c in color) for color in colors]
    inks = style.inks(parts)
    assert set(inks) == {style.DARK, style.LIGHT}
    assert min(contrast(ink, color) for ink, color in zip(inks, hexes, strict=True)) >= 4.5


def test_every_number_of_a_map_is_written_once_in_the_ink_of_its_colour(dense):
    figure = figures.heatmap(dense)
    heat, *layers = (each for each in figure.data if each.type == "heatmap")
    written = [[layer.textfont.color for layer in layers if layer.text[i][j]] for i in range(3) for j in range(7)]
    parts = (heat.z - heat.zmin) / (heat.zmax - heat.zmin)
    assert written == [[ink] for ink in style.inks(parts).ravel()]
    shown = [[next(layer.text[i][j] for layer in layers if layer.text[i][j]) for j in range(7)] for i in range(3)]
    assert shown == [[f"{value:.2f}" for value in line] for line in heat.z]
    assert figure.layout.meta["room"] > 7 * 20


@pytest.mark.parametrize("layers", [1, 6, 32, 80, 126, 400])
def test_a_maps_height_is_bounded_and_its_words_keep_apart(layers):
    rows = [
        {"name": f"h.{i}.{role}", "layer": i, "role": role, "shape": (4, 4)} for i in range(layers) for role in "qkv"
    ]
    figure = weight_map(rows, Numbers({row["name"]: row["layer"] + 1.0 for row in rows}, "L"))
    assert figure.layout.height <= 970
    each = (figure.layout.height - 98) / layers
    named = figure.layout.yaxis.tickvals
    assert min(np.diff(named), default=99) * each >= 14.5 or len(named) == 1
    written = any(each.texttemplate for each in figure.data if each.type == "heatmap")
    assert written == (each >= 17.9)


def test_a_colour_bar_says_what_it_shows_and_in_which_unit(dense):
    for key, kind in figures.QUANTITIES.items():
        said = figures.heatmap(dense, key).data[0].colorbar
        assert said.title.text == (f"{kind.label} ({kind.unit})" if kind.unit else kind.label)
        assert len(set(said.ticktext)) == len(said.ticktext) >= 2


@pytest.mark.parametrize("low, high", [(0, 1), (3.2, 3.9), (1e-7, 3e-7), (-2.5, 4e4), (0.70, 0.712)])
def test_even_ticks_lie_between_the_ends_and_are_told_apart(low, high):
    for percent in (False, True):
        ticks = style.even_ticks(low, high, percent)
        values, words = ticks["tickvals"], ticks["ticktext"]
        assert 2 <= len(values) <= 9 and all(low - 1e-9 <= value <= high + 1e-9 for value in values)
        assert len(set(words)) == len(words)
        for value, word in zip(values, words, strict=True):
            number = float(word.removesuffix(" %").replace(",", "")) / (100 if percent else 1)
            assert number == pytest.approx(value, abs=1e-3 * (high - low))


@pytest.mark.parametrize("low, high", [(-4, 0.5), (-1.7, -1.3), (-1.05, -1.01), (-12, 3)])
def test_a_bar_of_decades_has_ticks_between_its_ends(low, high):
    ticks = style.decade_ticks(low, high)
    assert 2 <= len(ticks["tickvals"]) <= 8 and len(set(ticks["ticktext"])) == len(ticks["ticktext"])
    assert all(low - 1e-6 <= value <= high + 1e-6 for value in ticks["tickvals"])


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
