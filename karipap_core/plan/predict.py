"""What a plan costs and is predicted to do, from the curves of its networks and the calibration of its model."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.calibration import group_of_weights
from karipap_core.plan.curves import GroupCurve
from karipap_core.plan.document import Entry, Plan
from karipap_core.plan.kind import Kind, is_of, own_options
from karipap_core.plan.options import Candidates

if TYPE_CHECKING:  # torch: seconds
    from karipap_core.networks import Spec

COUNTED = ("parameters", "bytes", "kept", "bytes_kept", "block_parameters", "kept_blocks")


def spec_error(candidates: Candidates, name: str, spec: "Spec") -> float:
    """The metric's error of a weight in a network, read from the curve of its kind (measured now where it is not).

    Raises InputError for a spec whose group is none of this model's.
    """
    known = [*candidates.kinds, *candidates.table_kinds, Kind(spec.network, spec.quantize, own_options(spec))]
    kind = next(kind for kind in known if is_of(spec, kind))
    if kind.grouped:
        return _group_error(candidates, kind, name, spec)
    curve = candidates.curve(kind, name).of
    assert not isinstance(curve, GroupCurve)
    if not spec.chi:
        return float(curve.error[0])
    chi = max(spec.chi)
    if chi > curve.chi[-1] and curve.packed is None:
        sizes = np.append(curve.chi, max(spec.max_chi, chi))
        return float(np.interp(chi, sizes, np.append(curve.error, 0.0)))
    return curve.at(chi)


def _group_error(candidates: Candidates, kind: Kind, name: str, spec: "Spec") -> float:
    members = spec.members or (name,)
    found = [curve for curve in candidates.curves(kind) if isinstance(curve, GroupCurve)]
    group = next((group for group in found if set(group.members) == set(members)), None)
    if group is None:
        raise InputError(f"Plan, weight {name}: its group of {len(members)} is none of this model's groups.")
    return group.at(sum(mate.parameters for mate in spec.mates), name)


def damage_sum(candidates: Candidates, weights: Mapping[str, dict]) -> float:
    """Σ over weights of the calibrated damage of its entry alone, nats a token; weights that the text does not reach
    have none that is known, and add nothing."""
    calibration, unseen = candidates.calibration(), candidates.study.seen.unseen
    specs = {name: spec for name, entry in weights.items() if (spec := Entry.of(entry).spec) is not None}
    specs = {name: spec for name, spec in specs.items() if name not in unseen}
    return sum(float(calibration.damage(n, spec_error(candidates, n, s), s.network)) for n, s in specs.items())


def sizes_of(plan: Plan, checkpoint) -> dict[str, Any]:
    """The sizes in a plan's `predicted`, exact; see `document.Ledger`."""
    ledger = plan.ledger(checkpoint)
    sizes = {key: getattr(ledger, key) for key in COUNTED}
    if ledger.bytes_kept_blocks != ledger.kept_blocks:
        sizes["bytes_kept_blocks"] = ledger.bytes_kept_blocks
    return sizes


def predicted(candidates: Candidates, plan: Plan, measured: dict[str, Any] | None = None) -> dict[str, Any]:
    """A plan's `predicted`: its sizes and, where this model has been calibrated, the rise in loss by the curve through
    measured plans, with how far such predictions were off so far. `measured` takes the curve's place where this very
    plan was measured (see `Planner.predict`)."""
    found = sizes_of(plan, candidates.checkpoint)
    calibration = None
    if candidates.study.has_calibration(candidates.metric):
        calibration = candidates.study.calibration(candidates.metric)
        found["sum"] = damage_sum(candidates, plan.weights)
    if measured is not None:
        return found | measured
    if calibration is None:
        return found
    if blind := sum(plan.spec(name) is not None for name in candidates.study.seen.unseen):
        why = f"the calibration text does not reach {blind:,} of the weights that it cuts."
        return {key: value for key, value in found.items() if key != "sum"} | {"not_predicted": why}
    fit = calibration.fit(group_of_weights(plan.weights, bool(plan.embedding), plan.prefix))
    return found | fit.predicted(found["sum"], candidates.checkpoint.vocabulary)
