"""Every network by its name. Nothing here imports a network: each network's file registers its own class.

Which files there are, and in which order, stands in `listed.py`; `all.py` loads them. Take the tables from
`karipap_core.networks`, which fills them first.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

from karipap_core.errors import unknown
from karipap_core.networks.base import Spec

NETWORKS: dict[str, type[Spec]] = {}  # for the weights of linear layers
EMBEDDING_NETWORKS: dict[str, type[Spec]] = {}  # for tables of tokens, which are looked up in row by row

Network = TypeVar("Network", bound=type[Spec])


@overload
def register(network: Network, *, linear: bool = True, embedding: bool = False) -> Network: ...
@overload
def register(*, linear: bool = True, embedding: bool = False) -> Callable[[Network], Network]: ...


def register(
    network: Network | None = None, *, linear: bool = True, embedding: bool = False
) -> Network | Callable[[Network], Network]:
    """Adds a subclass of `Spec` under its name `network.network`; a decorator, with or without options, or a call.

    linear : list it in `NETWORKS`.  embedding : list it in `EMBEDDING_NETWORKS`, which needs `Spec.rows`.
    Returns the class as it is. Raises ValueError where another class has the name already, and for an embedding's
    network without `rows`: mistakes of whoever writes a network, not of a user.
    """
    if network is None:
        return lambda given: register(given, linear=linear, embedding=embedding)
    name = network.network
    if name in NETWORKS or name in EMBEDDING_NETWORKS:
        there = (NETWORKS | EMBEDDING_NETWORKS)[name]
        raise ValueError(f"Network {name!r} is registered already, by {there.__module__}: choose another name.")
    if embedding and network.rows is Spec.rows:
        raise ValueError(f"Network {name!r} is no network for an embedding: {network.__name__} has no 'rows'.")
    if linear:
        NETWORKS[name] = network
    if embedding:
        EMBEDDING_NETWORKS[name] = network
    return network


def in_order(modules: Sequence[str]) -> None:
    """Sorts both tables as their networks' modules are listed; others, registered by whoever, follow as they came."""
    for table in (NETWORKS, EMBEDDING_NETWORKS):
        listed = {name: network.__module__ for name, network in table.items() if network.__module__ in modules}
        for name in [*sorted(listed, key=lambda name: modules.index(listed[name])), *(table.keys() - listed.keys())]:
            table[name] = table.pop(name)


def network_named(name: object, field: str = "Network") -> type[Spec]:
    """The class of that name in `NETWORKS`. Raises InputError naming `field` and the nearest name for any other."""
    if not isinstance(name, str) or name not in NETWORKS:
        raise unknown(field, name, NETWORKS)
    return NETWORKS[name]
