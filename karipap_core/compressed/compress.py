"""A plan → a compressed Hugging Face folder, weight by weight.

Every finished weight is a file of its own in `<out>/.parts` (written whole, then renamed); the folder is assembled from
them at the end. A killed run goes on where it stopped and gives the same folder, byte for byte.
"""

import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.compressed.card import write_card
from karipap_core.compressed.checks import as_written
from karipap_core.compressed.records import REPORT, read, report_of, sums_of, written_for
from karipap_core.compressed.verify import verify
from karipap_core.errors import InputError
from karipap_core.layers.cores import read_cores
from karipap_core.networks import Spec
from karipap_core.networks.stored import values
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Stored
from karipap_core.workspace.kept import keep_json, keep_tensors, kept_note, kept_tensors
from karipap_core.workspace.locks import only_writer


def compress(study, plan: Plan, out: str | Path, force: bool = False, progress: Progress = silent) -> dict:
    """Write the compressed model of `plan` for the study's checkpoint into the folder `out`.

    Returns {"kept", "bytes_kept", "parameters", "bytes", "weights": [{"name", "network", "chi", "quantize",
    "parameters", "weight_error", "functional_error"}], "left_out": [{"name", "why"}], "verify": {"ok", "checks"},
    "seconds"}; errors are relative squared: ‖W−Ŵ‖²/‖W‖² and, where the plan's metric has looked at activations,
    ‖(W−Ŵ)C^{1/2}‖²/‖WC^{1/2}‖². Cores are stored in the weight's own dtype or in the plan's format, and the errors are
    those of the stored cores. "left_out" names what lies beside the model and was not taken along. "verify" is the
    verdict on the folder (see verify.py), which stays in it as verify.json. Raises InputError where the plan is not
    this checkpoint's (`force` overrides a fingerprint that differs) or `out` holds something else.
    """
    out = Path(out)
    plan.check(study.checkpoint, force)
    with only_writer(out, "compress"):
        return _written(study, plan, out, progress)


def _written(study, plan: Plan, out: Path, progress: Progress) -> dict:
    """What `compress` returns: found in `out` where that holds this very model, or made."""
    from karipap_core.compressed.folder import side_files, write_compressed
    from karipap_core.models.load import check

    began, checkpoint = time.monotonic(), study.checkpoint
    _ = study.weights  # what can be reached is what is counted
    document = plan.to_json()
    identity = written_for(document, checkpoint.fingerprint, checkpoint.identity)
    report = report_of(out)
    ours = report.get("identity") == identity and "healing" not in report  # a healed folder is another model
    if ours and as_written(out, report):
        shutil.rmtree(out / ".parts", ignore_errors=True)  # of a run killed while it tidied up
        if read(out, "verify") is None:
            verify(out, checkpoint, progress=progress)
        return report["result"] | {"seconds": 0.0}
    check(checkpoint)  # before anything is written that would not load
    parts = out / ".parts" / identity
    if out.exists() and not ours and not parts.exists() and any(path.name[0] != "." for path in _entries(out)):
        raise InputError(f"Folder {out} is not empty and holds no model of this plan: name another one.")
    todo = [(weight, spec) for weight in checkpoint.weights if (spec := plan.spec(weight.name)) is not None]
    files = {weight.name: parts / f"{index:05d}.safetensors" for index, (weight, _) in enumerate(todo)}
    missing = [(weight.name, spec) for weight, spec in todo if kept_note(files[weight.name]) is None]
    if plan.prefix is None:
        study.decompositions_of(plan).make(missing, progress)
    elif missing:
        _fit_aligned(study, plan, files, progress)
    rows = []
    for index, (weight, spec) in enumerate(todo):
        progress("compress", index, len(todo), weight.name)
        file = files[weight.name]
        if (note := kept_note(file)) is None:
            note = _keep(study, plan, spec, study.decompositions_of(plan).stored(weight.name, spec), weight, file)
        rows.append(json.loads(note["row"]))
    progress("compress", len(todo), len(todo))
    ledger = plan.ledger(checkpoint)
    result = {
        "kept": ledger.kept,
        "bytes_kept": ledger.bytes_kept,
        "parameters": ledger.parameters,
        "bytes": ledger.bytes,
        "kept_blocks": ledger.kept_blocks,
        "weights": rows,
        "left_out": [{"name": name, "why": why} for name, why in side_files(checkpoint).left_out.items()],
    }
    result |= {"stored": checkpoint.as_stored} if checkpoint.as_stored else {}
    # What is there already is our own: damaged since, or from a run killed before its report was written.
    write_compressed(checkpoint, document, files, out, overwrite=True, progress=progress, mend=True)
    write_card(out, checkpoint, document, result)
    sums = sums_of(out)
    if ours and "sums" in report:  # somebody may have put files of their own beside ours
        sums["files"] = {name: each for name, each in sums["files"].items() if name in report["sums"]["files"]}
    report = {"format": "karipap-report", "version": 1, "identity": identity, "source": str(checkpoint.path.resolve())}
    report |= {"fingerprint": checkpoint.fingerprint, "source_identity": checkpoint.identity, "sums": sums}
    verdict = verify(out, checkpoint, report | {"result": result}, files, progress=progress)
    result["verify"] = {"ok": verdict["ok"], "checks": verdict["checks"]}
    keep_json(out / REPORT, report | {"result": result})
    shutil.rmtree(out / ".parts", ignore_errors=True)  # a plan that changes nothing has none
    return result | {"seconds": round(time.monotonic() - began, 3)}


def _entries(out: Path) -> list[Path]:
    if not out.is_dir():
        raise InputError(f"{out} is a file: name a folder.")
    return list(out.iterdir())


def _fit_aligned(study, plan: Plan, files: dict[str, Path], progress: Progress) -> None:
    """Fits and keeps the weights that are not there yet, each behind those before it."""
    from karipap_core.plan.aligned import fit_aligned

    def known(name: str) -> list[torch.Tensor] | None:
        spec = plan.spec(name)
        if spec is None or not all(spec.owned) or (found := kept_tensors(files[name])) is None:
            return None
        cores = read_cores(spec, name, lambda _, tensor: found[0][tensor])
        return [core.float() if core.is_floating_point() else core for core in cores]

    def keep(name: str, spec: Spec, cores: list[Stored]) -> None:
        if kept_note(files[name]) is None:
            _keep(study, plan, spec, cores, study.checkpoint.weight(name), files[name])

    fit_aligned(study, plan, keep, known, progress)


def _keep(study, plan: Plan, spec: Spec, cores: Sequence[Stored], weight: Weight, file: Path) -> dict[str, str]:
    """The cores of one weight as they are stored, as one file; returns what it says of them: what they lose."""
    dense = study.checkpoint.read(weight.name).double()
    stored = spec.dense(values(spec, cores)).double()
    row = {
        "name": weight.name,
        "network": spec.network,
        "chi": list(spec.chi),
        "quantize": spec.quantize,
        "parameters": spec.parameters,
        "weight_error": _relative((dense - stored), dense),
        "functional_error": None,
    }
    if plan.metric != "weight" and weight.compressible:
        row["functional_error"] = study.moments.metric(weight.name, "functional").error(dense, stored)
    tensors = {}
    for index, (core, own) in enumerate(zip(cores, spec.owned, strict=True)):
        if not own:
            continue
        if isinstance(core, torch.Tensor):
            tensors[f"cores.{index}"] = core.contiguous()
        else:
            tensors |= {f"cores.{index}.{key}": tensor.contiguous() for key, tensor in core.tensors().items()}
    note = {"row": json.dumps(row)}
    keep_tensors(file, tensors, note)
    return note


def _relative(difference: torch.Tensor, whole: torch.Tensor) -> float:
    lost = difference.square().sum().item()
    return lost / whole.square().sum().item() if lost else 0.0
