"""Compress and evaluate in one go: a plan → a compressed folder, its figures, and a point of the trade-off."""

import time
from collections.abc import Sequence
from pathlib import Path

from karipap_core.compressed.records import keep_evaluation
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress, silent
from karipap_core.text import Text, read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import read_json, settings_key, write_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION


def run(
    model,
    plan: Plan | str | Path,
    text: str | Path | Text | None = None,
    max_tokens: int | None = None,
    window: int | None = None,
    stride: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    tasks=None,
    conventions: Sequence[str] = (),
) -> dict:
    """Compress `model` by `plan` into `<out>/model` and measure that folder beside the dense model.

    text: what is measured on (default: the standard library's held-out modules), as `evaluate_folder` does it with
    `max_tokens` (default: as `sweep`), window and stride. out: default a folder of the workspace's runs that is named
    by all of this, so that the same command goes on where it stopped. tasks: benchmark tasks (`tasks.Suite`) to measure
    besides, and conventions: perplexities as papers give them (`conventions.CONVENTIONS`); a finished run gets those
    that it lacks. Returns, and writes to `<out>/run.json`, a point as `points.Points` describes it, with "speed",
    "memory", "folder" and "weights" (the rows of `compress`) besides.
    """
    from karipap_core import story as pipeline
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.evaluation.conventions import check_names
    from karipap_core.evaluation.folder import evaluate_folder, folder_conventions
    from karipap_core.evaluation.tasks.suite import add_tasks, causal
    from karipap_core.tradeoffs.baselines import plan_sizes
    from karipap_core.tradeoffs.sweep import MAX_TOKENS

    began = time.monotonic()
    plan = plan if isinstance(plan, Plan) else Plan.load(plan)
    checkpoint = open_checkpoint(model)
    plan.check(checkpoint, force)
    check_names(conventions, checkpoint.kind == "causal")
    if tasks is not None:
        causal(checkpoint)
    text = text if isinstance(text, Text) else read_text(text) if text is not None else standard_library("heldout")
    cut = {"window": window, "stride": stride, "max_tokens": max_tokens or MAX_TOKENS}
    what = {"plan": plan.to_json(), "fingerprint": checkpoint.fingerprint, "sha256": text.sha256}
    name = f"run-{settings_key(what | cut)}"
    folder = Path(out) if out is not None else Workspace().runs_dir / name
    if (folder / "run.json").is_file() and read_json(folder / "run.json").get("id") == name:
        point = read_json(folder / "run.json")
        if tasks is not None and tasks.missing(point):
            point = add_tasks(point, tasks, folder / "model", device, progress)
            write_json(folder / "run.json", point)
        had = {name: entry for name, entry in point.get("conventions", {}).items() if "missing" not in entry}
        if lacking := [each for each in conventions if each not in had]:
            args = (folder / "model", model, text, lacking, window, stride, device, progress)
            point["conventions"] = had | folder_conventions(*args)
            write_json(folder / "run.json", point)
        return point
    report = pipeline.compress(model, plan, folder / "model", force, device, progress).to_json()
    compressed = time.monotonic()
    how = {"text": text, "device": device, "progress": progress, "conventions": conventions}
    found = evaluate_folder(folder / "model", against=model, **how, **cut)
    if tasks is not None:
        found = add_tasks(found, tasks, folder / "model", device, progress)
    keep_evaluation(folder / "model", found)
    networks = sorted({plan_label(entry) for entry in plan.weights.values()} - {"dense"}) or ["dense"]
    ledger = plan.ledger(checkpoint)
    point = found | plan_sizes(checkpoint, ledger)
    point |= {
        "format": RUN_FORMAT,
        "version": RUN_VERSION,
        "id": name,
        "created": round(time.time(), 3),
        "kind": "network",
        "method": " + ".join(networks),
        "label": f"{' + '.join(networks)}, {plan.rule}, kept {ledger.kept:.3g}",
        "settings": {
            "network": " + ".join(networks),
            "rule": plan.rule,
            "chosen_rule": plan.chosen_rule,
            "metric": plan.metric,
            "budget": plan.budget,
            "scope": plan.scope,
        },
        "model": plan.model,
        "plan": plan.to_json(),
        "predicted": plan.predicted,
        "weights": report["weights"],
        "folder": str(folder / "model"),
        "disk": {"kept": report["kept"], "bytes_kept": report["bytes_kept"]},
        "seconds": {"compress": round(compressed - began, 3), "measure": round(time.monotonic() - compressed, 3)},
    }
    write_json(folder / "run.json", point)
    pipeline.study_of(model, plan, device, progress).check_prediction(plan, point, text.name)
    return point


def plan_label(entry: dict) -> str:
    return " ".join(filter(None, (entry["network"], entry.get("quantize"))))
