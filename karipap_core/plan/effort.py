"""What making plans is going to take, told before it begins, so that a job knows its time left (see `progress`).

The unit is a pass of the model over the windows of the probe. What the pass over the blocks takes in it follows from
the shapes (profiles/estimate.py); the other figures were measured on models of 0.3 to 7 M parameters. What a job
measures of itself takes their place as it goes on.
"""

from typing import Any

from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.choice import Choice
from karipap_core.plan.kind import Kind
from karipap_core.plan.places import pass_file, whole_profile
from karipap_core.spectra.spectrum import METRICS

REFINE_ROUNDS = 5
ROUNDS = (1.0, 1.0, 0.7, 0.5, 0.3)  # how likely each round of `refined` is: it stops when nothing is gained
FITTED = 3.3  # the cores of one weight, in a network that is fitted anew for each size; so much is its curve, too
PLAN = 5.0  # a whole plan built, and measured on the check windows
BACKWARD = 4.0  # by which an operation of the pass over the blocks takes longer than one of a forward pass
TOGETHER = 0.5  # the spectra of the weights outside the blocks, and the profile put together
SLOPES = 13.0  # gradients at a plan: forwards and twice backwards, and what the change of each weight does
FEW = 16.0  # a handful of weights cut alone, on a third of the windows, and the dense model before
PLANS_FITTED = 3  # whole plans that a calibration measures
EVALUATION = 8.0  # a plan measured on the tokens that a sweep scores by default
NETWORKS = ("mpo", "tree", "peps", "disentangled", "qlr")  # whose curves are measured weight by weight
MEASURING = ("calibrated", "refined", "best")


def once(study: Any, metric: str, choice: Choice | None = None) -> dict[str, float]:
    """The stages that are made once for a model and that a study does not have yet. choice: what plans are made of, by
    rules that measure; None where nothing is calibrated."""
    shares: dict[str, float] = {}
    calibrates = choice is not None and not study.has_calibration(metric)
    estimates = calibrates and study.measure == "gradients"
    spectra = metric != "weight" and not whole_profile(study).exists()
    if (estimates or spectra) and not pass_file(study, metric).exists():
        shares |= {"activations": blocks(study, metric), "profile": TOGETHER}
    if choice is None:
        return shares
    if choice.network in NETWORKS and choice.quantize != "auto" and not (choice.structure or _nested(choice)):
        kind = Kind(choice.network, choice.quantize)
        if not study.curves_file(kind, metric).exists():
            shares[f"curves of {kind.label}"] = FITTED * len(study.weights)
    if calibrates:
        every = 1.0 * len(study.weights) * len(LEVELS)
        shares |= {"sensitivity": every if study.measure == "all" else FEW, "whole plans": PLANS_FITTED * PLAN}
    return shares


def blocks(study: Any, metric: str) -> float:
    """The pass over the blocks that gives spectra, cores and damages."""
    from karipap_core.profiles import estimate  # torch: seconds
    from karipap_core.profiles.blockpass import wanted

    settings = study.settings
    looked = wanted(study.checkpoint, settings, study.text, metrics=METRICS, cores=metric)
    forward = settings.probe_windows * settings.window * sum(estimate.forward(study.checkpoint, settings.window))
    return BACKWARD * estimate.of_pass(study.checkpoint, looked).seconds(estimate.USUAL) / forward


def rounds(study: Any) -> float:
    """The rule `refined`: every weight looked at again at the plan, several times."""
    return sum(ROUNDS) * ((len(study.weights) if study.measure == "all" else SLOPES) + PLAN)


def plan_costs(study: Any, choice: Choice, metric: str, rule: str) -> dict[str, float]:
    """The stages of a plan by a rule."""
    shares = once(study, metric, choice if rule in MEASURING else None)
    if rule == "best":
        shares["rules"] = item(study, choice, rule)
    elif rule == "refined":
        shares["rounds"] = rounds(study)
    return shares


def item(study: Any, choice: Choice, rule: str) -> float:
    """One plan by a rule, where all that is made once is there."""
    if rule == "refined":
        return rounds(study)
    one = PLAN if _nested(choice) else PLAN + FITTED * len(study.weights)
    if rule == "best":
        return 5 * one + rounds(study) if _nested(choice) else 3 * one
    return one


def _nested(choice: Choice) -> bool:
    """Whether the cores at one size give those at all others."""
    return choice.network == "lowrank" and choice.quantize is None
