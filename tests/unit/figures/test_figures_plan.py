"""The figure of a plan's χ, against rows written by hand."""

from karipap_core.figures.plan import chi_by_layer


def test_chi_by_layer_is_a_line_a_role():
    weights = [{"layer": layer, "role": role, "chi": [layer + 3]} for layer in (2, 0) for role in ("q", "up")]
    figure = chi_by_layer([*weights, {"layer": 1, "role": "q", "chi": []}])
    assert [(trace.name, list(trace.x), list(trace.y)) for trace in figure.data] == [
        ("q", [0, 2], [3, 5]),
        ("up", [0, 2], [3, 5]),
    ]
