"""Verify: whether a compressed folder on disk is the model that its plan describes, and loads as that.

Each fault turns one check red, the one that names it. A check that cannot be made after such a fault has `ok` None,
and a verdict with such a check is not ok either.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.checks import (
    first_faults,
    not_finite,
    safetensors_only,
    same_source,
    sizes_in_words,
    unchanged,
    valid_plan,
    wrong_tensors,
)
from karipap_core.compressed.loader import loader
from karipap_core.compressed.logits import logits_agree
from karipap_core.compressed.records import record, report_of, settings_of, source_of
from karipap_core.compressed.saved_again import as_saved, saved_again
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent

ORDER = ("safetensors only", "plan", "fingerprint", "tensors", "finite", "unchanged", "logits")


def verify(
    folder: str | Path,
    against: str | Path | Checkpoint | None = None,
    report: dict | None = None,
    core_files: Mapping[str, Path] | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> dict:
    """Checks a compressed folder and writes the verdict into it as verify.json.

    - `safetensors only`: no file in the folder can execute code.
    - `plan`: the plan in config.json is valid, and is the one that the folder was written for.
    - `fingerprint`: the dense model is the one that the plan pins; where it is not here, that one is pinned at all.
    - `tensors`: each tensor that plan and dense model ask for is there and no other, in shape, type and bytes.
    - `finite`: no NaN, no infinity in any tensor.
    - `unchanged`: tensors and files have the SHA-256 that `compress` wrote down. A folder that another program saved
      again is not the one that was written: this check says so, the others look at what it is now.
    - `logits`: of the folder, loaded by transformers, against the dense model with Ŵ (formed in float64 from the
      cores) in place of its weights; without the dense model, against the same folder with each Ŵ formed. Largest
      relative error ‖a − b‖ / ‖b‖ 1e-3, float32, on fixed token ids. Layers that no token reaches (of images, or all
      of a model that reads no text) are held against Ŵ itself, by the same measure.

    against: the dense model (default: where the folder says it was). report: karipap.json, where it is not written yet.
    core_files: the cores as they were computed, by weight, to compare with in place of those in the folder. Returns
    {"ok", "checks": [{"name", "ok", "detail"}], "folder", "loader"}; `loader` is Python to paste. Raises InputError
    where `folder` is no compressed folder or `against` cannot be opened.
    """
    folder = Path(folder)
    settings = settings_of(folder)
    report = report_of(folder) if report is None else report
    source = source_of(folder, against)
    found: dict[str, tuple[bool | None, str]] = {}

    def note(name: str, ok: bool | None, detail: str) -> None:
        found[name] = (ok, detail)
        progress("verify", len(found), len(ORDER), name)

    note("safetensors only", *safetensors_only(folder))
    plan, detail = valid_plan(settings, report)
    note("plan", plan is not None, detail)
    same, detail = same_source(settings, report, source)
    note("fingerprint", same, detail)
    checkpoint = None
    try:
        checkpoint = open_checkpoint(folder, compressed=True)
    except InputError as error:
        note("tensors", False, str(error))
    if checkpoint is not None:
        again = saved_again(checkpoint, settings)
        now, beside = as_saved(checkpoint, settings), source if same else None
        wrong = wrong_tensors(checkpoint, plan, now, beside, report, again) if plan else None
        if wrong is None:
            note("tensors", None, "not checked: the plan does not say what should be there")
        else:
            note("tensors", not wrong, first_faults(wrong) or sizes_in_words(checkpoint, again))
        damaged = not_finite(checkpoint, progress)
        note("finite", not damaged, first_faults(damaged, "NaN or infinity in") or "no NaN or infinity in any tensor")
        note("unchanged", *unchanged(folder, checkpoint, report, {*damaged, *(wrong or ())}, again))
        if plan is not None and not wrong and not damaged:
            # Healed norms are not the dense model's, nor are numbers that were cast, or that nothing says were not
            # trained: then the folder is held against itself, made dense in memory.
            own_norms = (report.get("healing") or {}).get("settings", {}).get("norms")
            dense = source if same and report and not own_norms and again is None else None
            names = again.names if again else {}
            note("logits", *logits_agree(folder, plan, dense, core_files, checkpoint, device, names))
    for name in ORDER:
        if name not in found:
            note(name, None, "not checked: see what is red above")
    checks = [{"name": name, "ok": found[name][0], "detail": found[name][1]} for name in ORDER]
    verdict = {"ok": all(check["ok"] is True for check in checks), "checks": checks}
    if checkpoint is not None:
        # What is not in the file: the folder's own path, so that equal folders have equal records.
        record(folder, "verify", verdict, source.checkpoint.fingerprint if same and source.checkpoint else None, False)
    else:
        with suppress(OSError):
            (folder / "verify.json").unlink(missing_ok=True)
    return verdict | {"folder": str(folder), "loader": loader(folder)}


def not_verified(folder: str | Path, verdict: dict) -> str:
    """What is wrong with a folder whose verdict is not ok, in a sentence."""
    wrong = [f"{check['name']} ({check['detail']})" for check in verdict["checks"] if check["ok"] is False]
    return f"{folder} is NOT verified: {'; '.join(wrong)}. It stays there to be looked at: do not use it as a model."


def summary(verdict: dict) -> str:
    """A verdict in a line."""
    wrong = [check["name"] for check in verdict["checks"] if check["ok"] is False]
    return f"{len(verdict['checks'])} checks passed" if verdict["ok"] else f"NOT verified: {', '.join(wrong)}"
