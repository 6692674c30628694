"""Measuring by forward passes what truncations do: for the calibration and the marginals of `refined`."""

from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from karipap_core.checkpoint.model import Weight
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.decompositions import Decompositions
from karipap_core.plan.kind import Kind
from karipap_core.plan.probe import Probe
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
    probe: Probe,
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
    rows: dict[str, list] = {}
    for index, weight in enumerate(weights):
        progress("sensitivity", index, len(weights), weight.name)
        if weight.name in partial:
            rows[weight.name] = partial[weight.name]
            continue
        rows[weight.name] = _weight_levels(probe, decompositions, weight, kind)
        partial[weight.name] = rows[weight.name]
    progress("sensitivity", len(weights), len(weights))
    return rows


def _weight_levels(probe: Probe, decompositions: Decompositions, weight: Weight, kind: Kind) -> list[list[float]]:
    break_even = kind.break_even(weight.shape)
    chis = sorted({max(1, round(level * break_even)) for level in LEVELS})
    dense, metric = decompositions.checkpoint.read(weight.name), decompositions.metric_of(weight.name)
    rows: list[list[float]] = []
    for chi in chis:
        matrix = decompositions.matrix(weight.name, kind.spec(weight.shape, chi))
        probe.replace(weight.name, matrix)
        divergence = probe.measure([weight.name]).divergence
        probe.restore(weight.name)
        rows.append([chi, metric.absolute(dense.double() - matrix.double()), divergence])
    return rows


def apply_plan(probe: Probe, decompositions: Decompositions, plan: Mapping[str, Spec | None]) -> None:
    """Put every weight of a plan into the probe's model, and dense where the plan leaves it."""
    probe.restore()
    for name, spec in plan.items():
        if spec is not None:
            probe.replace(name, decompositions.matrix(name, spec))


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
            n_out, n_in = weight.shape
            cut = LowRank.for_shape(n_out, n_in, max(1, round(0.7 * LOWRANK.break_even((n_out, n_in)))))
            probe.replace(weight.name, decompositions.matrix(weight.name, cut))
            change = probe.measure([weight.name]).divergence - base
            probe.restore(weight.name)
            found[weight.name] = (cut, change)
    progress("refining", len(weights), len(weights))
    return found


def whole_plan(check: Probe, decompositions: Decompositions, specs: Mapping[str, Spec | None]) -> dict[str, float]:
    """Divergence and rise in loss of a whole plan on the check windows."""
    apply_plan(check, decompositions, specs)
    measured = check.measure()
    rise = measured.loss - check.dense.loss if check.predicts else measured.divergence
    return {"divergence": measured.divergence, "rise": rise}
