"""Compress and evaluate in one go: a plan → a compressed folder, its figures, and a point of the trade-off."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.errors import NotVerified
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan.document import Plan, measured_model
from karipap_core.progress import Progress, silent
from karipap_core.text import Text, read_text, standard_library
from karipap_core.tradeoffs.point import Point, plan_settings
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:
    from karipap_core.evaluation.tasks.suite import Suite


@dataclass(frozen=True)
class Extras:
    """What is measured besides the loss.

    suite : benchmark tasks. conventions : perplexities as papers give them, names of `conventions.CONVENTIONS`.
    """

    suite: "Suite | None" = None
    conventions: Sequence[str] = ()


NO_EXTRAS = Extras()


def run(
    model: str | Path,
    plan: Plan | str | Path,
    text: str | Path | Text | None = None,
    scoring: Scoring | None = None,
    extras: Extras = NO_EXTRAS,
    out: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> dict:
    """Compress `model` by `plan` into `<out>/model` and measure that folder beside the dense model.

    text : what is measured on (default: the standard library's held-out modules), as `evaluate_folder` does it.
    scoring : default as of `sweep`, whose number of tokens stands for no number too.
    extras : a finished run gets those that it lacks.
    out : default a folder of the workspace's runs that is named by all of this, so that the same command goes on where
        it stopped.
    force : use the plan although it was made for another checkpoint.

    Returns, and writes to `<out>/run.json`, a point as `tradeoffs.Points` describes it, with "speed", "memory",
    "folder" and "weights" (the rows of `compress`) besides. Raises InputError for what does not fit, and NotVerified
    where the folder that was written is not what the plan says: nothing is measured on it then.
    """
    from karipap_core import story
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.compressed.checks import as_written
    from karipap_core.compressed.folder import stayed_behind
    from karipap_core.compressed.records import report_of
    from karipap_core.evaluation.conventions import check_names
    from karipap_core.evaluation.tasks.suite import causal
    from karipap_core.models.load import check
    from karipap_core.tradeoffs.baselines import plan_sizes
    from karipap_core.tradeoffs.sweep import DEFAULT_SCORING

    scoring = scoring or DEFAULT_SCORING
    if scoring.max_tokens is None:
        scoring = replace(scoring, max_tokens=DEFAULT_SCORING.max_tokens)
    began = time.monotonic()
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    checkpoint = open_checkpoint(model, progress=progress)
    plan.check(checkpoint, force)
    check_names(extras.conventions, checkpoint.predicts)
    if extras.suite is not None:
        causal(checkpoint)
    text = text if isinstance(text, Text) else read_text(text) if text is not None else standard_library("heldout")
    what = {"plan": plan.to_json(), "model": checkpoint.identity, "sha256": text.sha256}
    name = f"run-{settings_key(what | scoring.to_json())}"
    folder = Path(out) if out is not None else Workspace().runs_dir / name
    known = kept_json(folder / "run.json", "run")
    if known is not None and known.get("id") == name:
        if (folder / "model").exists() and not as_written(folder / "model", report_of(folder / "model")):
            _compress(model, plan, folder / "model", force, device, progress)
        return _with_extras(known, folder, model, text, scoring, extras, device, progress)
    check(checkpoint)  # before a folder is made
    with only_writer(folder, "run"):
        report = _compress(model, plan, folder / "model", force, device, progress)
        compressed = time.monotonic()
        found = story.evaluate(
            folder / "model",
            model,
            text,
            **scoring.to_json(),
            conventions=extras.conventions,
            tasks=extras.suite,
            device=device,
            progress=progress,
        ).to_json()
        network = " + ".join(sorted({plan_label(entry) for entry in plan.weights.values()} - {"dense"}) or ["dense"])
        ledger = plan.ledger(checkpoint)
        figures = found | plan_sizes(checkpoint, ledger)
        figures |= {"weights": report["weights"], "folder": str(folder / "model")}
        figures["notes"] = [*figures.get("notes", ()), *filter(None, [stayed_behind(report)])]
        figures["disk"] = {key: report[key] for key in ("kept", "bytes_kept")}
        point = Point(
            name,
            round(time.time(), 3),
            "network",
            network,
            f"{network}, {plan.rule}, kept {ledger.kept:.3g}",
            plan_settings(plan, network),
            measured_model(checkpoint),
            plan.to_json(),
            plan.predicted,
            {key: value for key, value in figures.items() if key not in ("kind", "model", "environment")},
            environment=found["environment"],
            seconds={"compress": round(compressed - began, 3), "measure": round(time.monotonic() - compressed, 3)},
        ).to_json()
        # Before the point, which says that all is done: what is checked twice counts once.
        story.study_of(model, plan, device, progress).check_prediction(plan, point, text.name)
        keep_json(folder / "run.json", point)
        return point


def _compress(
    model: str | Path, plan: Plan, folder: Path, force: bool, device: str, progress: Progress
) -> dict[str, Any]:
    """The report of the compressed folder. Raises NotVerified."""
    from karipap_core import story
    from karipap_core.compressed.verify import not_verified

    written = story.compress(model, plan, folder, force, device, progress)
    if not written.verified:
        raise NotVerified(not_verified(folder, written.document["verify"]))
    return written.to_json()


def _with_extras(
    point: dict,
    folder: Path,
    model: str | Path,
    text: Text,
    scoring: Scoring,
    extras: Extras,
    device: str,
    progress: Progress,
) -> dict:
    """The point of a finished run, with the extras that it lacked measured on its folder and written at once."""
    from karipap_core.evaluation.folder import folder_conventions
    from karipap_core.evaluation.tasks.suite import add_tasks

    if extras.suite is not None and extras.suite.missing(point):
        point = add_tasks(point, extras.suite, folder / "model", device, progress)
        keep_json(folder / "run.json", point)
    had = {name: entry for name, entry in point.get("conventions", {}).items() if "missing" not in entry}
    if lacking := [each for each in extras.conventions if each not in had]:
        args = (folder / "model", model, text, lacking, scoring.window, scoring.stride, device, progress)
        point["conventions"] = had | folder_conventions(*args)
        keep_json(folder / "run.json", point)
    return point


def plan_label(entry: dict) -> str:
    return " ".join(filter(None, (entry["network"], entry.get("quantize"))))
