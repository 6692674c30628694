"""Plotly figures from core objects alone, for the pages and for notebooks.

    from karipap_core import figures
    figures.heatmap(profile, "excess")

Of a profile: `heatmap`, `spectrum`, `cumulative`, `bonds`. Of a plan's rows: `chi_by_layer`. Of measured runs:
`tradeoff`, `add_published` (published points over it), `lost` (what each weight lost). Of one number a weight, wherever
it comes from: `weight_map` of `Numbers`. Of documents: `sensitivity_map`, `loss_curve` (healing), `memory` and `cache`
(deployment), `search` (the autopilot).

Each returns a new `plotly.graph_objects.Figure` whose backgrounds and text colours are left to the template. What is
named here is loaded when it is first asked for; further figures are in the modules.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "heatmap": "profile",
    "spectrum": "profile",
    "cumulative": "profile",
    "bonds": "profile",
    "weight_map": "map",
    "Numbers": "map",
    "chi_by_layer": "plan",
    "tradeoff": "runs",
    "lost": "runs",
    "add_published": "published",
    "sensitivity_map": "sensitivity",
    "loss_curve": "heal",
    "memory": "deploy",
    "cache": "deploy",
    "search": "autopilot",
}
__all__ = list(_PLACES)


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
