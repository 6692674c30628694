"""Compressed folders whose weights are of several kinds, in turn."""

from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry
from tests.helpers.folders import folder_of


def spec(kind: str, n_out: int, n_in: int) -> Spec:
    """ "int4g32", "qlr int3 5" (Q in int3, χ = 5), "lowrank 7"."""
    network, *more = kind.split()
    if network == "qlr":
        return NETWORKS["qlr"].for_shape(n_out, n_in, int(more[1]), bits=more[0])
    if network == "lowrank":
        return NETWORKS["lowrank"].for_shape(n_out, n_in, int(more[0]))
    return Dense.for_shape(n_out, n_in, 1, quantize=network)


def in_turn(model: Path, out: Path, *kinds: str) -> Path:
    """The folder of `model` with its weights in `kinds`, one after another; "-" leaves one dense."""
    checkpoint, entries = open_checkpoint(model), {}
    for number, weight in enumerate(each for each in checkpoint.weights if each.compressible and each.role != "other"):
        if (kind := kinds[number % len(kinds)]) != "-":
            entries[weight.name] = spec(kind, *weight.shape).to_json()
    return folder_of(model, out, Plan(model_entry(checkpoint), "weight", entries))
