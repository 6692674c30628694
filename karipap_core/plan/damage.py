"""Measuring by forward passes what truncations do: for the calibration and the marginals of `refined`."""

from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.kind import Kind
from karipap_core.progress import Progress, silent

LOWRANK = Kind("lowrank")


def measure_levels(
    probe, decompositions, weights, partial, progress: Progress = silent, kind: Kind = LOWRANK
) -> dict[str, list]:
    """rows [χ, absolute metric error, divergence] for each of `weights` cut alone to `LEVELS` of its break-even in a
    kind of network.

    `partial` is a dictionary-like of finished weights (kept on disk by the caller, so that a killed run goes on).
    """
    rows = {}
    for index, weight in enumerate(weights):
        progress("sensitivity", index, len(weights), weight.name)
        if weight.name in partial:
            rows[weight.name] = partial[weight.name]
            continue
        rows[weight.name] = _weight_levels(probe, decompositions, weight, kind)
        partial[weight.name] = rows[weight.name]
    progress("sensitivity", len(weights), len(weights))
    return rows


def _weight_levels(probe, decompositions, weight, kind: Kind) -> list[list[float]]:
    break_even = kind.break_even(weight.shape)
    chis = sorted({max(1, round(level * break_even)) for level in LEVELS})
    dense, metric = decompositions.checkpoint.read(weight.name), decompositions.metric_of(weight.name)
    rows = []
    for chi in chis:
        matrix = decompositions.matrix(weight.name, kind.spec(weight.shape, chi))
        probe.replace(weight.name, matrix)
        divergence = probe.measure(weight.layer).divergence
        probe.restore(weight.name)
        rows.append([chi, metric.absolute(dense.double() - matrix.double()), divergence])
    return rows


def apply_plan(probe, decompositions, plan) -> None:
    """Put every weight of a plan into the probe's model, and dense where the plan leaves it."""
    probe.restore()
    for name, spec in plan.items():
        if spec is not None:
            probe.replace(name, decompositions.matrix(name, spec))


def marginals(probe, decompositions, weights, specs: dict, progress: Progress = silent) -> dict[str, tuple]:
    """What each weight's truncation adds at a whole plan: {name: (χ it stands for, measured ΔKL)}.

    A truncated weight is made dense again (the divergence that goes away); a dense one is cut to 0.7 of its break-even
    (the divergence that comes). The probe must hold the plan; it holds it again afterwards.
    """
    base = probe.record().divergence
    found = {}
    for index, weight in enumerate(weights):
        progress("refining", index, len(weights), weight.name)
        spec = specs.get(weight.name)
        if spec is not None:
            probe.restore(weight.name)
            change = base - probe.measure(weight.layer).divergence
            probe.replace(weight.name, decompositions.matrix(weight.name, spec))
            found[weight.name] = (spec, change)
        else:
            cut = LowRank.for_shape(*weight.shape, 1)
            cut = cut.with_chi(max(1, round(0.7 * cut.break_even_chi)))
            probe.replace(weight.name, decompositions.matrix(weight.name, cut))
            change = probe.measure(weight.layer).divergence - base
            probe.restore(weight.name)
            found[weight.name] = (cut, change)
    progress("refining", len(weights), len(weights))
    return found


def whole_plan(check, decompositions, specs: dict) -> dict[str, float]:
    """Divergence and rise in loss of a whole plan on the check windows."""
    apply_plan(check, decompositions, specs)
    measured = check.measure()
    rise = measured.loss - check.dense.loss if check.kind == "causal" else measured.divergence
    return {"divergence": measured.divergence, "rise": rise}
