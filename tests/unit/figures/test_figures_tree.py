"""Figures of trees against the rows and arrays they are drawn from."""

import subprocess
import sys

import numpy as np
import pytest

from karipap_core.figures.style import FAINT, ORANGE
from karipap_core.figures.tree import WIDEST, against_lowrank, tree


def rows(layers=4):
    names = [f"model.layers.{k}.self_attn.q_proj" for k in range(layers)]
    shared = [("in", 3.0, 5.0), ("out", 4.4, 4.5), ("layer", 1.3, 1.39)]
    own = [{"edge": "own", "entropy": 2.0 + k / 10, "null": 4.0, "members": [name]} for k, name in enumerate(names)]
    return [{"edge": edge, "entropy": s, "null": null, "members": names} for edge, s, null in shared] + own


def test_edges_are_as_thick_as_their_entropy_over_the_band_of_their_null():
    figure = tree(rows(), share="in")
    lines = [line for line in figure.data if line.mode == "lines"]
    assert len(lines) == 2 * 7
    for row, band, edge in zip(rows(), lines[:7], lines[7:], strict=True):
        assert band.line.width == pytest.approx(WIDEST * row["null"] / 5) and band.line.color == FAINT
        assert edge.line.width == pytest.approx(WIDEST * row["entropy"] / 5)
        assert (edge.line.color == ORANGE) == (row["edge"] == "in")
        assert list(edge.x) == list(band.x) and list(edge.y) == list(band.y)
    assert len({line.line.color for line in tree(rows()).data if line.mode == "lines"}) == 2  # nothing is shared


def test_every_edge_says_its_numbers_and_every_layer_has_its_leaf():
    figure = tree(rows(), share="in")
    said = next(line for line in figure.data if line.mode == "markers").hovertext
    assert len(said) == 7 and "stored once" in said[0] and not any("stored once" in text for text in said[1:])
    assert "S 3.000 nats, Gaussian 5.000, excess 2.000" in said[0]
    assert "model.layers.2.self_attn.q_proj" in said[5] and "S 2.200" in said[5]
    labels = " ".join(note.text for note in figure.layout.annotations)
    assert "inputs, stored once" in labels and "layer 0<br>2.00" in labels and "layer 3<br>2.30" in labels


@pytest.mark.parametrize("layers", [1, 40])
def test_one_layer_and_many_are_drawn(layers):
    figure = tree(rows(layers))
    assert len([line for line in figure.data if line.mode == "lines"]) == 2 * (3 + layers)
    assert len(figure.layout.annotations) <= 3 + 20


def test_the_curves_are_relative_to_total_and_dense():
    line, bar = np.arange(0, 1200, 10), 8.0 * np.exp(-np.arange(120) / 20)
    error = np.array([[1.0, 3.0], [0.5, 0.5]])
    figure = against_lowrank([100, 400], error, np.array([3.0, 5.0]), line, bar, dense=1000)
    lowrank, of_tree = figure.data
    assert np.asarray(of_tree.x) == pytest.approx([0.1, 0.4]) and np.asarray(of_tree.y) == pytest.approx([0.5, 0.125])
    assert max(lowrank.x) < 1 and min(lowrank.x) > 0
    assert lowrank.y[0] == pytest.approx(bar[1] / 8)
    assert figure.layout.yaxis.type == "log" and "tree" in of_tree.name and "low rank" in lowrank.name


def test_long_lines_are_thinned():
    n = 30_000
    figure = against_lowrank([10], [1.0], 2.0, np.arange(n), np.linspace(2, 1e-3, n), dense=2 * n)
    assert len(figure.data[0].x) <= 512 and figure.data[0].x.dtype == np.float32


def test_figures_need_no_torch():
    code = "import sys, karipap_core.figures.tree; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
