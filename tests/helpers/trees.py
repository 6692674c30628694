"""A compressed folder in which layers share cores."""

from pathlib import Path

from safetensors.torch import save_file

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.folder import write_compressed
from karipap_core.networks.tree.network import Tree, fit_group, group_specs
from karipap_core.plan.document import model_entry
from karipap_core.spectra.metric import Metric


def write_tree(dense: Path, out: Path, chi: int = 6) -> list[Tree]:
    """Every layer's `up` of a dense model as one tree, the rest as it is; returns the specs."""
    checkpoint = open_checkpoint(dense)
    members = [weight.name for weight in checkpoint.weights if weight.role == "up"]
    specs = group_specs(members, checkpoint.weight(members[0]).shape, chi)
    fitted = fit_group(specs, [checkpoint.read(name) for name in members], [Metric("weight") for _ in members])
    plan = {"format": "karipap-plan", "version": 1, "model": model_entry(checkpoint), "metric": "weight"}
    plan["weights"] = {name: spec.to_json() for name, spec in zip(members, specs, strict=True)}
    files = {}
    for name, spec, cores in zip(members, specs, fitted, strict=True):
        files[name] = out.parent / f"{name}.safetensors"
        save_file({f"cores.{k}": c.float().contiguous() for k, c in enumerate(cores) if spec.owned[k]}, files[name])
    write_compressed(checkpoint, plan, files, out)
    return specs
