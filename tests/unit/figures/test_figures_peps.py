"""Figures of a `peps` against the rows they are drawn from."""

import subprocess
import sys

import pytest

from karipap_core.figures import peps as figures_peps

FLOW = [
    {"step": 0, "bond": None, "D": None, "kept": 0.6, "discarded": 0.0, "error": 0.01},
    {"step": 1, "bond": 2, "D": 5, "kept": 0.5, "discarded": 0.02, "error": 0.03},
    {"step": 2, "bond": 0, "D": 5, "kept": 0.4, "discarded": 0.05, "error": 0.06},
]


def row(bond, direction, entropy, null=2.0):
    return {"bond": bond, "direction": direction, "cut": [[0], [1]], "entropy": entropy, "null": null}


RING = [row(0, "horizontal", 1.0), row(1, "horizontal", 1.0), row(2, "vertical", 2.0), row(3, "vertical", 2.0)]


def test_the_flow_has_a_point_for_every_step_and_starts_with_an_error_only():
    figure = figures_peps.flow(FLOW)
    error, discarded = figure.data
    assert list(error.x) == pytest.approx([0.6, 0.5, 0.4]) and list(error.y) == pytest.approx([0.01, 0.03, 0.06])
    assert list(discarded.x) == pytest.approx([0.5, 0.4]) and list(discarded.y) == pytest.approx([0.02, 0.05])
    assert figure.layout.yaxis.type == "log" and figure.layout.xaxis.autorange == "reversed"
    assert "step 1: bond 3 to 5" in discarded.hovertext[0] and "before" in error.hovertext[0]
    assert "step 2: left to 5" in figures_peps.flow(FLOW, ["left", "b", "c"]).data[1].hovertext[1]


def test_a_flow_without_a_loss_or_without_a_step_is_drawn():
    exact = [FLOW[0] | {"error": 0.0}, FLOW[1] | {"discarded": 0.0, "error": 0.0}]
    assert min(figures_peps.flow(exact).data[0].y) == pytest.approx(figures_peps.FLOOR)
    assert len(figures_peps.flow(FLOW[:1]).data[1].x) == 0


def lines(figure):
    return [trace for trace in figure.data if trace.mode == "lines"]


def test_bonds_join_their_sites_and_are_as_thick_as_their_entropy():
    figure = figures_peps.lattice(RING, [2, 2], ["4·1", "64·1", "1·4", "1·64"])
    drawn = [(tuple(trace.x), tuple(trace.y)) for trace in lines(figure)]
    assert drawn == [((0, 1), (0, 0)), ((0, 1), (-1, -1)), ((0, 0), (0, -1)), ((1, 1), (0, -1))]
    widths = [trace.line.width for trace in lines(figure)]
    thin, thick = figures_peps.THINNEST, figures_peps.THICKEST
    assert widths == pytest.approx([(thin + thick) / 2] * 2 + [thick] * 2)
    assert figure.data[-1].text == ("4·1", "64·1", "1·4", "1·64") and figures_peps.lattice(RING, [2, 2]).data
    assert [trace.showlegend for trace in lines(figure)] == [True, False, True, False]
    assert "excess 1.000" in lines(figure)[0].hovertext


def test_the_ends_are_those_of_the_lattice_itself():
    from karipap_core.networks.peps.lattice import lattice

    for grid, periodic in (((2, 2), False), ((2, 3), False), ((3, 3), True), ((1, 3), True), ((4, 2), True)):
        bonds = lattice(*grid, periodic)
        for direction in ("horizontal", "vertical"):
            wanted = [(bond.site, bond.other) for bond in bonds if bond.direction == direction]
            assert figures_peps._ends([row(0, direction, 1.0)] * len(wanted), grid) == wanted


def test_a_bond_that_wraps_is_two_stubs():
    rows = [row(k, "horizontal", 1.0) for k in range(3)]
    drawn = lines(figures_peps.lattice(rows, [1, 3]))
    assert len(drawn) == 4 and drawn[2].x[1] > 2 and drawn[3].x[1] < 0


def test_no_torch_is_needed():
    code = "import sys; import karipap_core.figures.peps; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
