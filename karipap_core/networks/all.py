"""Every network loaded and registered, in the order of `listed.py`, and the `Spec` of a plan's entry."""

from importlib import import_module
from typing import Any

from karipap_core.errors import InputError, unknown
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.networks.dense import Dense
from karipap_core.networks.listed import FILES
from karipap_core.networks.registry import EMBEDDING_NETWORKS, NETWORKS, in_order, register
from karipap_core.networks.structured import Structured
from karipap_core.spectra.metric import Metric

for _file in FILES:
    import_module(f"karipap_core.networks.{_file}")
in_order([f"karipap_core.networks.{_file}" for _file in FILES])  # one of them may have been imported on its own before


def spec_from_json(entry: dict[str, Any]) -> Spec:
    """The `Spec` of a plan's entry {"network": …, "out": […], "in": […], "chi": […]}.

    `dense` is the plan's word for no network at all and has a spec only where `quantize` says how the weight is stored.
    A field "structure" is put around the network (see structured.py). Raises InputError naming the field that is
    missing or wrong, with the nearest name where a network is not known.
    """
    if not isinstance(entry, dict):
        raise InputError(f"An entry of a plan is {entry!r}: it must be an object with a field 'network'.")
    name = entry.get("network")
    if name == Dense.network and entry.get("quantize") is not None:
        return Dense.from_json(entry)
    known = NETWORKS | EMBEDDING_NETWORKS
    if not isinstance(name, str) or name not in known:
        raise InputError(f"Field 'network' is {name!r}. {unknown('Network', name, known)}")
    if entry.get("structure") is not None:
        return Structured.from_json(entry)
    return known[name].from_json(entry)


__all__ = ["EMBEDDING_NETWORKS", "NETWORKS", "Curve", "Metric", "Spec", "register", "spec_from_json"]
