"""A weight as a tensor network: one file a network, each a subclass of `Spec` (base.py) that registers itself.

Adding a network is adding its file and its import below; `lowrank.py` is the shortest one to read first.
"""

from typing import Any

from karipap_core.errors import InputError, unknown
from karipap_core.networks.base import Spec
from karipap_core.networks.curve import Curve
from karipap_core.networks.registry import EMBEDDING_NETWORKS, NETWORKS, register
from karipap_core.spectra.metric import Metric

# The order of the registry: networks are listed in it everywhere, and "auto" tries them in it.
# isort: off
from karipap_core.networks.dense import Dense as Dense
from karipap_core.networks.lowrank import LowRank as LowRank
from karipap_core.networks.mpo import Mpo as Mpo
from karipap_core.networks.qlr import Qlr as Qlr
from karipap_core.networks.peps.network import Peps as Peps
from karipap_core.networks.disentangled import Disentangled as Disentangled
from karipap_core.networks.tree.network import Tree as Tree
from karipap_core.networks.tt_embedding import TtEmbedding as TtEmbedding
from karipap_core.networks.structured import Structured as Structured
# isort: on


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
