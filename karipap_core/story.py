"""The arrows of the story as functions: checkpoint → profile → plan → compressed model. Verbs call these."""

from dataclasses import fields
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Study
from karipap_core.profiles.document import Profile
from karipap_core.progress import Progress, silent
from karipap_core.text import divide, read_text, standard_library


def profile(
    model,
    text=None,
    metrics=("weight", "functional", "loss"),
    network=None,
    device="auto",
    out=None,
    progress: Progress = silent,
) -> Profile:
    """The profile of a model (see profile.py), from the workspace if it is there; with `out` a copy in that folder."""
    found = Study(model, text, device=device, progress=progress).profile(tuple(metrics), network)
    if out is not None:
        found.save(out)
    return found


def make_plan(
    model,
    budget=None,
    budget_bytes=None,
    scope="model",
    network="lowrank",
    rule="best",
    metric="loss",
    text=None,
    locks=None,
    quantize=None,
    embedding="dense",
    structure=None,
    device="auto",
    progress: Progress = silent,
) -> Plan:
    """A plan for a model at one budget (see plan/planner.py). `locks` pins weights: {name: plan entry}."""
    study = Study(model, text, device=device, progress=progress)
    limits = Budget(kept=budget, kept_bytes=budget_bytes, scope=scope)
    limits.limit(study.checkpoint, study.tables if embedding != "dense" else ())  # before anything is measured
    return Planner(study, Choice(network, quantize, embedding, structure), metric, locks, progress).make(limits, rule)


def compress(model, plan: Plan | str | Path, out, force=False, device="auto", progress: Progress = silent) -> dict:
    """Write the compressed model (see compress.py), with activations from the text that the plan names."""
    from karipap_core.compressed.compress import compress as write

    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    return write(study_of(model, plan, device, progress), plan, out, force, progress)


def study_of(model, plan: Plan, device="auto", progress: Progress = silent) -> Study:
    """The study that a plan was made in: its model, calibration text and settings."""
    from karipap_core.profiles.activations import CalibrationSettings

    known = {field.name for field in fields(CalibrationSettings)}
    settings = {key: value for key, value in (plan.calibration or {}).items() if key in known}
    return Study(model, calibration_text(plan), CalibrationSettings(**settings), device, progress=progress)


def calibration_text(plan: Plan):
    """The text that a plan was calibrated on, found again: its path, the standard library, or a part of either.

    Raises InputError where the file is gone or its text is another one now.
    """
    entry = plan.calibration
    if entry is None or plan.metric == "weight":
        return None
    text = standard_library("calibration") if entry.get("path") is None else read_text(entry["path"])
    if text.sha256 != entry["sha256"] and divide(text)[0].sha256 == entry["sha256"]:
        text = divide(text)[0]
    if text.sha256 != entry["sha256"]:
        raise InputError(
            f"The plan was calibrated on {entry['text']} (SHA-256 {entry['sha256'][:12]}…), which is not "
            f"{text.name} as it is here ({text.sha256[:12]}…): make the plan again on this machine."
        )
    return text
