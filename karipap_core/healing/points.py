"""A healed folder and the one it was made from, as two points of the trade-off."""

import time
from dataclasses import asdict
from pathlib import Path

from karipap_core.compressed.verify import not_verified
from karipap_core.errors import InputError, NotVerified
from karipap_core.healing.heal import first_process, heal
from karipap_core.healing.settings import ScaleSettings, Settings
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress, silent
from karipap_core.statistics.bootstrap import difference
from karipap_core.text import Text, read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION

SHARED = 0.01  # of a text may have been learnt from: files that are empty or say next to nothing are alike everywhere


def heal_and_measure(
    folder: str | Path,
    out: str | Path,
    settings: Settings | ScaleSettings,
    measured_on: str | Path | Text | None = None,
    text: str | Path | Text | None = None,
    distill: str | Path | None = None,
    device: str = "auto",
    compare_dense: bool = False,
    progress: Progress = silent,
) -> dict:
    """`heal.heal`, and both folders measured against the dense model, each as a run.json in the workspace.

    measured_on: default the standard library's held-out modules; as many tokens of it as `run` takes by default. The
    folder that comes in is not measured again where `run` measured it on the same text and cut (its run.json lies
    beside it). Returns heal's result with "points": [{"id", "label", "loss", "rise", "text_warning", "text"}, the same
    after], and "change", the interval of the loss after less that before, paired token by token (its fields are those
    of `bootstrap.Interval`; None where nothing can be paired). Raises InputError, before anything
    is trained, where the text measured on is the one learnt from, and NotVerified where the healed folder is not what
    its plan says.
    """
    measured_on = measured_on if isinstance(measured_on, Text) else read_text(measured_on) if measured_on else None
    measured_on = measured_on or standard_library("heldout")
    text = text if isinstance(text, Text) else read_text(text) if text is not None else standard_library("train")
    learnt = set(text.documents)
    shared = sum(len(each) for each in measured_on.documents if each in learnt)
    if shared > SHARED * sum(map(len, measured_on.documents)):
        raise InputError(f"{text.name} and {measured_on.name} share documents: measure on text that was not learnt.")
    found = heal(folder, out, settings, text, distill, device, compare_dense, progress)
    if not first_process():
        return found
    if not found["verify"]["ok"]:
        raise NotVerified(not_verified(out, found["verify"]))
    pair = [
        measure(path, measured_on, distill, device, healed, progress)
        for path, healed in ((Path(folder), None), (Path(out), found))
    ]
    points = [{key: point.get(key) for key in ("id", "label", "loss", "rise", "text_warning")} for point in pair]
    change = difference(*pair)
    return found | {
        "points": [point | {"text": measured_on.name} for point in points],
        "change": change and asdict(change),
    }


def measure(
    folder: Path, text: Text, against: str | Path | None, device: str, healed: dict | None, progress: Progress
) -> dict:
    """The point of a compressed folder, as `run` writes it; `healed` is the result of the healing that made it."""
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.compressed.records import report_of
    from karipap_core.evaluation.folder import dense_model_of, evaluate_folder
    from karipap_core.evaluation.scoring import Scoring
    from karipap_core.tradeoffs.baselines import plan_sizes
    from karipap_core.tradeoffs.point import plan_settings
    from karipap_core.tradeoffs.run import plan_label
    from karipap_core.tradeoffs.sweep import MAX_TOKENS

    checkpoint = open_checkpoint(folder, compressed=True)
    plan = Plan.from_json(checkpoint.config["quantization_config"]["plan"], str(folder))
    beside = folder.resolve().parent / "run.json"
    if healed is None and (point := kept_json(beside, "run")) is not None:
        same = point.get("folder") and Path(point["folder"]).resolve() == folder.resolve()
        if same and point["text"]["sha256"] == text.sha256 and point["tokens"] == _scored(point, MAX_TOKENS):
            return point
    what = {"folder": checkpoint.identity, "sha256": text.sha256, "max_tokens": MAX_TOKENS, "plan": plan.to_json()}
    name = f"{'heal' if healed else 'run'}-{settings_key(what)}"
    file = Workspace().runs_dir / name / "run.json"
    if (known := kept_json(file, "run")) is not None:
        return known
    notes: list[str] = []
    source = dense_model_of(folder, against, notes)
    if source is None:
        raise InputError(f"{notes[-1]} Points of the trade-off need the dense model: name it with --distill.")
    began = time.monotonic()
    scoring = Scoring(max_tokens=MAX_TOKENS)
    found = evaluate_folder(folder, source, text, scoring, device=device, speed=False, progress=progress)
    dense = open_checkpoint(source)
    ledger = plan.ledger(dense)
    networks = " + ".join(sorted({plan_label(entry) for entry in plan.weights.values()} - {"dense"}) or ["dense"])
    settings = plan_settings(plan, networks)
    label = f"{networks}, {plan.rule}, kept {ledger.kept:.3g}"
    if healed:
        settings["healing"] = {key: healed[key] for key in ("steps", "objective", "learning_rate", "improved")}
        settings["healing"]["sha256"] = healed["text"]["sha256"]
        label += ", scales healed" if "blocks" in healed else f", healed {healed['steps']} steps"
    report = report_of(folder)
    compressed = report.get("result") or {}
    point = found | plan_sizes(dense, ledger)
    point |= {
        "format": RUN_FORMAT,
        "version": RUN_VERSION,
        "id": name,
        "created": round(time.time(), 3),
        "kind": "network",
        "method": f"{networks}, healed" if healed else networks,
        "label": label,
        "settings": settings,
        "model": plan.model,
        "plan": plan.to_json(),
        "predicted": None if healed else plan.predicted,
        "weights": [] if healed else compressed.get("weights", []),
        "folder": str(folder.resolve()),
        "disk": {key: compressed.get(key) for key in ("kept", "bytes_kept")},
        "seconds": {"heal": healed["seconds"] if healed else None, "measure": round(time.monotonic() - began, 3)},
    }
    keep_json(file, point)
    return point


def _scored(point: dict, tokens: int) -> int:
    """What a run that was cut to `tokens` scores: the cut of a run is known by the tokens that it scored at most."""
    return point["tokens"] if 0 <= tokens - point["tokens"] <= point["window"] else -1
