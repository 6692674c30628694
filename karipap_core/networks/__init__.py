"""The networks by name. Adding one is adding its file and its line here."""

from typing import Any

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.networks.dense import Dense
from karipap_core.networks.disentangled import Disentangled
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.peps.network import Peps
from karipap_core.networks.qlr import Qlr
from karipap_core.networks.structured import Structured
from karipap_core.networks.tree.network import Tree
from karipap_core.networks.tt_embedding import TtEmbedding
from karipap_core.spectra.metric import Metric

NETWORKS: dict[str, type[Spec]] = {
    network.network: network for network in (LowRank, Mpo, Qlr, Peps, Disentangled, Tree)
}
EMBEDDING_NETWORKS: dict[str, type[Spec]] = {network.network: network for network in (LowRank, TtEmbedding)}


def spec_from_json(entry: dict[str, Any]) -> Spec:
    """The `Spec` of a plan's entry {"network": …, "out": […], "in": […], "chi": […]}.

    Raises InputError naming the field that is missing or wrong. `dense` is the plan's word for no network at all and
    has a spec only where `quantize` says how the weight is stored. A field "structure" is put around the network
    (see structured.py).
    """
    name = entry.get("network") if isinstance(entry, dict) else None
    if name == Dense.network and entry.get("quantize") is not None:
        return Dense.from_json(entry)
    kinds = NETWORKS | EMBEDDING_NETWORKS
    if name not in kinds:
        raise InputError(f"Field 'network' is {name!r}: it must be one of {', '.join(kinds)}.")
    if entry.get("structure") is not None:
        return Structured.from_json(entry)
    return kinds[name].from_json(entry)


__all__ = ["EMBEDDING_NETWORKS", "NETWORKS", "Curve", "Metric", "Spec", "spec_from_json"]
