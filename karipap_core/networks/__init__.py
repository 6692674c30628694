"""A weight as a tensor network: one file a network, each a subclass of `Spec` (base.py) that registers itself.

Adding a network is adding its file and its name in `listed.py`; `lowrank.py` is the shortest one to read first. What
this package gives by name is loaded, with every network and torch, when it is first asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from karipap_core.networks.all import EMBEDDING_NETWORKS, NETWORKS, Curve, Metric, Spec, register, spec_from_json

__all__ = ["EMBEDDING_NETWORKS", "NETWORKS", "Curve", "Metric", "Spec", "register", "spec_from_json"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"{__name__}.all"), name)
    return value
