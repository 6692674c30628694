"""Measuring by forward passes what truncations do: for the calibration and the marginals of `refined`."""

from collections.abc import Mapping, MutableMapping, Sequence
from functools import partial as part
from pathlib import Path

import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.decompositions import Decompositions
from karipap_core.plan.kind import Kind
from karipap_core.plan.probe import Probe
from karipap_core.plan.streamed_probe import StreamedProbe
from karipap_core.progress import Progress, silent
from karipap_core.workspace.kept import keep_json, kept_json

LOWRANK = Kind("lowrank")


class KeptOnDisk(dict):
    """A dictionary that is written to a JSON file whenever an item is set."""

    def __init__(self, file: Path) -> None:
        super().__init__(kept_json(file) or {})
        self.file = file

    def __setitem__(self, key, value) -> None:
        super().__setitem__(key, value)
        keep_json(self.file, dict(self))


def measure_levels(
    probe: Probe | StreamedProbe,
    decompositions: Decompositions,
    weights: Sequence[Weight],
    partial: MutableMapping[str, list],
    progress: Progress = silent,
    kind: Kind = LOWRANK,
) -> dict[str, list]:
    """rows [χ, absolute metric error, divergence] for each of `weights` cut alone to `LEVELS` of its break-even in a
    kind of network.

    partial : the rows of finished weights, kept on disk by the caller so that a killed run goes on; filled.
    """
    missing = [weight for weight in weights if weight.name not in partial]
    decompositions.make((w.name, kind.spec(w.shape, chi)) for w in missing for chi in _chis(w, kind))
    errors: dict[tuple[str, int], float] = {}

    def cut(weight: Weight, chi: int) -> torch.Tensor:
        matrix = decompositions.matrix(weight.name, kind.spec(weight.shape, chi))
        dense, metric = decompositions.checkpoint.read(weight.name), decompositions.metric_of(weight.name)
        errors[weight.name, chi] = metric.absolute(dense.double() - matrix.double())
        return matrix

    for start in range(0, len(missing), probe.together):
        group = missing[start : start + probe.together]
        progress("sensitivity", start, len(missing), group[0].name)
        pairs = [(weight, chi) for weight in group for chi in _chis(weight, kind)]
        found = probe.measured([{weight.name: part(cut, weight, chi)} for weight, chi in pairs])
        measured = {(weight.name, chi): each.divergence for (weight, chi), each in zip(pairs, found, strict=True)}
        for weight in group:
            partial[weight.name] = [
                [chi, errors[weight.name, chi], measured[weight.name, chi]] for chi in _chis(weight, kind)
            ]
    progress("sensitivity", len(missing), len(missing))
    return {weight.name: partial[weight.name] for weight in weights}


def _chis(weight: Weight, kind: Kind) -> list[int]:
    return sorted({max(1, round(level * kind.break_even(weight.shape))) for level in LEVELS})


def apply_plan(probe: Probe, decompositions: Decompositions, plan: Mapping[str, Spec | None]) -> None:
    """Put every weight of a plan into the probe's model, and dense where the plan leaves it."""
    probe.restore()
    decompositions.make((name, spec) for name, spec in plan.items() if spec is not None)
    for name, spec in plan.items():
        if spec is not None:
            probe.replace(name, decompositions.matrix(name, spec))


def _cut(weight: Weight) -> LowRank:
    """What a weight that is dense at a plan is cut to."""
    return LowRank.for_shape(*weight.shape, max(1, round(0.7 * LOWRANK.break_even(weight.shape))))


def marginals(
    probe: Probe,
    decompositions: Decompositions,
    weights: Sequence[Weight],
    specs: Mapping[str, Spec | None],
    progress: Progress = silent,
) -> dict[str, tuple[Spec, float]]:
    """What each weight's truncation adds at a whole plan: {name: (its network, measured change of the divergence)}.

    A truncated weight is made dense again (the divergence that goes away); a dense one is cut to 0.7 of its break-even
    (the divergence that comes). The probe must hold the plan; it holds it again afterwards.
    """
    base = probe.record().divergence
    found: dict[str, tuple[Spec, float]] = {}
    for index, weight in enumerate(weights):
        progress("refining", index, len(weights), weight.name)
        spec = specs.get(weight.name)
        if spec is not None:
            probe.restore(weight.name)
            change = base - probe.measure([weight.name]).divergence
            probe.replace(weight.name, decompositions.matrix(weight.name, spec))
            found[weight.name] = (spec, change)
        else:
            cut = _cut(weight)
            probe.replace(weight.name, decompositions.matrix(weight.name, cut))
            change = probe.measure([weight.name]).divergence - base
            probe.restore(weight.name)
            found[weight.name] = (cut, change)
    progress("refining", len(weights), len(weights))
    return found


def marginals_from_gradients(
    probe: Probe,
    decompositions: Decompositions,
    weights: Sequence[Weight],
    specs: Mapping[str, Spec | None],
    progress: Progress = silent,
) -> dict[str, tuple[Spec, float]]:
    """The same from gradients at the plan, two passes backwards for all weights: for D what a weight changes by, and T
    tokens, the change of the divergence is

        (1 / T) Σ_t [g_tᵀ D x_t + ½ (h_tᵀ D x_t)²],

    g the gradient of the divergence at the weight's outputs and h that of labels drawn from the model: the first two
    terms of its expansion, the second with the Fisher matrix in the place of the Hessian."""
    found: dict[str, tuple[Spec, float]] = {}
    changes: dict[str, torch.Tensor] = {}
    for weight in weights:
        spec = specs.get(weight.name)
        dense = decompositions.checkpoint.read(weight.name).float()
        if spec is not None:
            change = dense - decompositions.matrix(weight.name, spec)
        else:
            spec = _cut(weight)
            change = decompositions.matrix(weight.name, spec) - dense
        changes[weight.name], found[weight.name] = change.to(torch.bfloat16), (spec, 0.0)
    sums = dict.fromkeys(found, 0.0)

    def tell(name: str, x: torch.Tensor, g: torch.Tensor, h: torch.Tensor) -> None:
        if name in changes:
            y = x.float() @ changes[name].float().T
            sums[name] += float((y * g).sum() + 0.5 * (y * h).sum(-1).square().sum())

    progress("refining", 0, 1)
    probe.slopes(tell)
    progress("refining", 1, 1)
    # Of a weight that becomes dense again, what goes away is told; of a dense one, what comes.
    signs = {name: -1.0 if specs.get(name) is not None else 1.0 for name in found}
    return {name: (spec, signs[name] * sums[name] / probe.tokens) for name, (spec, _) in found.items()}


def whole_plans(
    check: Probe | StreamedProbe, decompositions: Decompositions, plans: Sequence[Mapping[str, Spec | None]]
) -> list[dict[str, float]]:
    """Divergence and rise in loss of whole plans on the check windows."""
    cut = [[(name, spec) for name, spec in plan.items() if spec is not None] for plan in plans]
    decompositions.make(pair for pairs in cut for pair in pairs)
    changes = [{name: part(decompositions.matrix, name, spec) for name, spec in pairs} for pairs in cut]
    found = check.measured(changes)
    return [
        {
            "divergence": each.divergence,
            "rise": each.loss - check.dense.loss if check.predicts else each.divergence,
        }
        for each in found
    ]
