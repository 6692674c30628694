"""Plans in which every kind of weight stands, for tests of exports."""

from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.networks import NETWORKS
from karipap_core.networks.dense import Dense
from karipap_core.plan.document import Plan, model_entry

KINDS = {
    "q": ("dense", "int4"),
    "k": ("dense", "int8"),
    "v": ("qlr", None),
    "o": ("lowrank", None),
    "gate": ("mpo", None),
    "up": ("dense", "int3"),
    "down": ("lowrank", None),
}


def mixed(model: Path) -> Plan:
    """Every kind of weight in one model."""
    checkpoint = open_checkpoint(model)
    entries = {}
    for number, weight in enumerate(weight for weight in checkpoint.weights if weight.compressible):
        network, form = KINDS.get(weight.role) or [*KINDS.values()][number % len(KINDS)]
        kind = Dense if network == "dense" else NETWORKS[network]
        entries[weight.name] = kind.for_shape(*weight.shape, 8, quantize=form).to_json()
    return Plan(model_entry(checkpoint), "weight", entries)
