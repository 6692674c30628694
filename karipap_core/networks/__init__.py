"""The networks by name. Adding one is adding its file and its line here."""

from typing import Any

from karipap_core.errors import InputError
from karipap_core.networks.base import Curve, Metric, Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo

NETWORKS: dict[str, type[Spec]] = {network.network: network for network in (LowRank, Mpo)}


def spec_from_json(entry: dict[str, Any]) -> Spec:
    """The `Spec` of a plan's entry {"network": …, "out": […], "in": […], "chi": […]}.

    Raises InputError naming the field that is missing or wrong. `dense` is the plan's word for no network at all and
    has no spec.
    """
    name = entry.get("network") if isinstance(entry, dict) else None
    if name not in NETWORKS:
        raise InputError(f"Field 'network' is {name!r}: it must be one of {', '.join(NETWORKS)}.")
    return NETWORKS[name].from_json(entry)


__all__ = ["NETWORKS", "Curve", "Metric", "Spec", "spec_from_json"]
