"""Compressed folders whose weights are of several kinds."""

from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from tests.helpers.folders import folder_of

EVERY = ("int4", "int3", "qlr int4 5", "int8", "lowrank 6", "qlr int3 3 int4")
ROLES = {
    "q": "int4",
    "k": "int8",
    "v": "qlr int4 8",
    "o": "lowrank 8",
    "gate": "mpo 8",
    "up": "int3",
    "down": "lowrank 8",
}


def spec(kind: str, n_out: int, n_in: int) -> Spec:
    """ "int4g32", "qlr int3 5" (Q in int3, χ = 5), "qlr int3 5 int8" (and factors in int8), "lowrank 7", "mpo 7"."""
    network, *more = kind.split()
    if network == "qlr":
        bits, chi, *quantize = more
        return NETWORKS["qlr"].for_shape(n_out, n_in, int(chi), quantize=quantize[0] if quantize else None, bits=bits)
    if network in NETWORKS:
        return NETWORKS[network].for_shape(n_out, n_in, int(more[0]))
    return Dense.for_shape(n_out, n_in, 1, quantize=network)


def in_turn(model: Path, out: Path, *kinds: str, most: int | None = None) -> Path:
    """The folder of `model` with its weights in `kinds`, one after another; "-" leaves one dense. Experts of a layer
    are in one. most : how many weights, from the first on; all where None."""
    checkpoint, entries, turns = open_checkpoint(model), {}, {}
    for weight in [each for each in checkpoint.weights if each.compressible and each.role != "other"][:most]:
        alike = weight.name if weight.expert is None else f"{weight.layer} {weight.role}"
        kind = kinds[turns.setdefault(alike, len(turns)) % len(kinds)]
        if kind != "-":
            entries[weight.name] = spec(kind, *weight.shape).to_json()
    return folder_of(model, out, Plan(model_entry(checkpoint), "weight", entries))


def by_role(model: Path, out: Path) -> Path:
    """The folder of `model` with its weights in ROLES; those of other roles in all of them, in turn."""
    checkpoint, entries = open_checkpoint(model), {}
    for number, weight in enumerate(each for each in checkpoint.weights if each.compressible):
        kind = ROLES.get(weight.role) or [*ROLES.values()][number % len(ROLES)]
        entries[weight.name] = spec(kind, *weight.shape).to_json()
    return folder_of(model, out, Plan(model_entry(checkpoint), "weight", entries))
