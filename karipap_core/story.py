"""The story as functions: checkpoint → profile → plan → compressed model → evaluation. Verbs and notebooks call these.

`model` is always a folder, a .safetensors file, a hub id, an open `Checkpoint`, or a `Study`, which keeps in memory
what was found out about a model and is worth making where several plans are tried. Everything that takes long is kept
in the workspace and found there again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.plan.budget import Budget
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan
from karipap_core.plan.effort import plan_costs
from karipap_core.plan.kind import PREFIXES, ROUNDINGS
from karipap_core.plan.planner import Planner
from karipap_core.plan.study import Measure, Study
from karipap_core.profiles.document import Profile
from karipap_core.progress import Progress, announce, silent
from karipap_core.text import Text, divide, read_text, standard_library
from karipap_core.values import Compressed, Densified, Evaluation, Verdict

Model = str | Path | Checkpoint | Study
Folder = str | Path | Compressed


def profile(
    model: Model,
    text: str | Path | Text | None = None,
    metrics: Sequence[str] = ("weight", "functional", "loss"),
    network: str | None = None,
    device: str = "auto",
    out: str | Path | None = None,
    progress: Progress = silent,
) -> Profile:
    """The entropy and spectrum of every weight of a model.

    text : what the model reads for the metrics functional and loss, which look at activations (default: the standard
        library's calibration modules).
    metrics : some of weight (W itself; needs no text), functional (W C^½), loss (G^½ W C^½); docs/methods.md "Metrics".
    network : mpo, tree or peps: also the spectrum of every bond of that network.
    out : a folder for a copy of the profile.

    The profile comes from the workspace where it is there. Raises InputError for what does not exist or fit.
    """
    found = study_for(model, text, device, progress).profile(tuple(metrics), network)
    if out is not None:
        found.save(out)
    return found


def make_plan(  # noqa: PLR0913 (what a person types; inside they are one Choice)
    model: Model,
    budget: Budget | float,
    network: str = "lowrank",
    rule: str = "best",
    metric: str = "loss",
    text: str | Path | Text | None = None,
    quantize: str | None = None,
    embedding: str = "dense",
    structure: str | None = None,
    locks: Mapping[str, dict] | None = None,
    device: str = "auto",
    progress: Progress = silent,
    measure: Measure | None = None,
    rounding: str | None = None,
    prefix: str = PREFIXES[0],
) -> Plan:
    """The plan for a model at a budget: what each weight becomes, and what that is predicted to cost.

    budget : a `Budget`; a number stands for Budget(kept=number), the fraction of the model's parameters to keep.
    network, quantize, embedding, structure : what the weights may become, as in `Choice`.
    rule : uniform, entropy, functional, loss (from spectra alone), calibrated, refined (from measurements on the
        calibration text), or best: all of them tried, on text that was not calibrated on.
    metric : weight, functional or loss: what the cores are fitted to.
    text : what is calibrated on (default: the standard library's calibration modules).
    locks : pinned weights, {name: plan entry}.
    measure : how rules that measure find what cutting each weight does: estimated from "gradients" (the default), or
        "all" weights measured by forward passes.
    rounding : of numbers in few bits under the loss metric: errors made good "two-sided" (the default), by the columns
        still to come and the rows below, or "one-sided", by columns alone, as GPTQ does.
    prefix : what each weight is fitted behind when the plan is compressed: the "dense" model, or ("aligned") the
        weights that are cut before it, so that it makes good what these lose; "auto" (the default): aligned where
        numbers are stored in less than 8 bits.

    Raises InputError for a budget that the model cannot meet, and for names that do not exist.
    """
    study = study_for(model, text, device, progress, measure, rounding)
    budget = budget if isinstance(budget, Budget) else Budget(kept=budget)
    tables = study.tables if embedding != "dense" else ()
    if study.weights:
        budget.limit(study.checkpoint, tables)  # before anything is measured
    choice = Choice(network, quantize, embedding, structure)
    announce(progress, plan_costs(study, choice, metric, rule))
    return Planner(study, choice, metric, dict(locks or {}), progress, prefix).make(budget, rule)


def compress(
    model: Model,
    plan: Plan | str | Path,
    out: str | Path,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> Compressed:
    """Writes the compressed model of a plan as the Hugging Face folder `out`, and verifies it.

    plan : a `Plan` or its file. Activations come from the text that the plan names.
    force : use the plan although it was made for another checkpoint.

    A run that was killed goes on where it stopped, and a finished one is found again. Raises InputError where the plan
    is not this model's, its calibration text is not here as it was, or `out` holds something else.
    """
    from karipap_core.compressed.compress import compress as write

    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    return Compressed(write(study_of(model, plan, device, progress), plan, out, force, progress), Path(out))


def evaluate(  # noqa: PLR0913 (what a person types)
    model: Model | Compressed,
    against: str | Path | None = None,
    text: str | Path | Text | None = None,
    max_tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    conventions: Sequence[str] = (),
    tasks=None,
    device: str = "auto",
    progress: Progress = silent,
) -> Evaluation:
    """Measures a model, compressed or not, beside the dense model that it came from.

    against : the dense model (default: the one that a compressed folder names, where it is here unchanged).
    text : what is measured on (default: the standard library's held-out modules).
    max_tokens : tokens to score at most, in windows spread evenly over the text (default: 32768).
    window, stride : tokens that the model sees at once, and those of them that are scored (default: the model's own
        window, half of it).
    conventions : perplexities of the whole text as papers give them: non-overlapping, sliding, rolling.
    tasks : a `Suite` of benchmark tasks to measure besides.

    A compressed folder keeps the result as evaluation.json. Raises InputError for folders, texts and windows that do
    not fit, and for an encoder with nothing to compare with.
    """
    from karipap_core.compressed.records import keep_evaluation
    from karipap_core.evaluation.folder import DEFAULT_TOKENS, evaluate_folder
    from karipap_core.evaluation.scoring import Scoring
    from karipap_core.evaluation.tasks.suite import add_tasks

    folder = _folder(model)
    found = evaluate_folder(
        folder,
        against=against,
        text=text if isinstance(text, Text) or text is None else read_text(text),
        scoring=Scoring(window, stride, DEFAULT_TOKENS if max_tokens is None else max_tokens),
        conventions=conventions,
        device=device,
        progress=progress,
    )
    if tasks is not None:
        found = add_tasks(found, tasks, folder, device, progress)
    keep_evaluation(folder, found)
    return Evaluation(found)


def verify(
    folder: Folder,
    against: str | Path | Checkpoint | None = None,
    device: str = "auto",
    progress: Progress = silent,
) -> Verdict:
    """Whether a compressed folder is what its plan says and loads as that; the verdict stays in it as verify.json.

    against : the dense model (default: where the folder says it was). Raises InputError where `folder` is no compressed
    folder.
    """
    from karipap_core.compressed.verify import verify as check
    from karipap_core.spectra.spectrum import pick_device

    return Verdict(check(_folder(folder), against, device=pick_device(device), progress=progress))


def densify(folder: Folder, out: str | Path, progress: Progress = silent) -> Densified:
    """Writes an ordinary dense folder from a compressed one, for engines that know nothing of Karipap.

    Raises InputError where `folder` is no compressed folder or `out` exists.
    """
    from karipap_core.compressed.densify import densify as write

    return Densified(write(_folder(folder), Path(out), progress=progress))


def study_for(
    model: Model,
    text: str | Path | Text | None = None,
    device: str = "auto",
    progress: Progress = silent,
    measure: Measure | None = None,
    rounding: str | None = None,
) -> Study:
    """`model` if it is a Study, else a new one on `text`. InputError for a Study and a text, or another way of
    measuring, besides."""
    if not isinstance(model, Study):
        how = measure or "gradients", rounding or ROUNDINGS[0]
        return Study(model, text, None, device, None, progress, *how)
    if text is not None:
        raise InputError("A study has its own text: give the text to the study, or the model instead of the study.")
    for name, given, own in (("measure", measure, model.measure), ("rounding", rounding, model.rounding)):
        if given not in (None, own):
            raise InputError(f"A study has its own `{name}`, here {own}: give {given!r} to the study.")
    return model


def study_of(model: Model, plan: Plan, device: str = "auto", progress: Progress = silent) -> Study:
    """The study that a plan was made in: its model, calibration text and settings."""
    from karipap_core.profiles.activations import CalibrationSettings

    text = calibration_text(plan)
    known = {field.name for field in fields(CalibrationSettings)}
    settings = CalibrationSettings(**{key: value for key, value in (plan.calibration or {}).items() if key in known})
    measure: Measure = (plan.calibration or {}).get("measure", "gradients")
    if not isinstance(model, Study):
        return Study(model, text, settings, device, progress=progress, measure=measure)
    if text is None or (text.sha256 == model.text.sha256 and settings == model.settings and measure == model.measure):
        return model
    return Study(model.checkpoint, text, settings, device, progress=progress, measure=measure)


def calibration_text(plan: Plan) -> Text | None:
    """The text that a plan was calibrated on, found again: its path, the standard library, or a part of either.

    Raises InputError where the file is gone or its text is another one now.
    """
    entry = plan.calibration
    if entry is None or plan.metric == "weight":
        return None
    text = standard_library("calibration") if entry.get("path") is None else read_text(entry["path"])
    if images := entry.get("images"):
        text = text.with_images(images["path"])
    if text.sha256 != entry["sha256"] and divide(text)[0].sha256 == entry["sha256"]:
        text = divide(text)[0]
    if text.sha256 != entry["sha256"]:
        raise InputError(
            f"The plan was calibrated on {entry['text']} (SHA-256 {entry['sha256'][:12]}…), which is not "
            f"{text.name} as it is here ({text.sha256[:12]}…): make the plan again on this machine."
        )
    return text


def _folder(model: Model | Compressed) -> Path:
    """The path of a model that is measured as a whole."""
    if isinstance(model, Compressed):
        return model.folder
    if isinstance(model, Study):
        return model.checkpoint.path
    return model.path if isinstance(model, Checkpoint) else Path(model)
