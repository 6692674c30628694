"""Compressed folders of small models, made once for tests that look at a folder."""

from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.compress import compress
from karipap_core.networks import NETWORKS
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.workspace import Workspace

NETWORK = {"down": ("mpo", "int4"), "up": ("lowrank", "int8"), "q": ("lowrank", None), "o": ("mpo", None)}


def plan_for(model: Path, roles=NETWORK, **more) -> Plan:
    """A plan made by hand: networks and formats by role, the rest dense."""
    checkpoint = open_checkpoint(model)
    weights = {}
    for weight in checkpoint.weights:
        if weight.compressible and weight.role in roles:
            network, form = roles[weight.role]
            weights[weight.name] = NETWORKS[network].for_shape(*weight.shape, 6, quantize=form).to_json()
    return Plan(model_entry(checkpoint), "weight", weights, **more)


def folder_of(model: Path, out: Path, plan: Plan | None = None, force: bool = False) -> Path:
    study = Study(model, device="cpu", workspace=Workspace(out.parent / "workspace"))
    compress(study, plan or plan_for(model), out, force)
    return out
