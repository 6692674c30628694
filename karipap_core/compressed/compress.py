"""A plan → a compressed Hugging Face folder, weight by weight.

Every finished weight is a file of its own in `<out>/.parts` (written whole, then renamed); the folder is assembled from
them at the end. A killed run goes on where it stopped and gives the same folder, byte for byte.
"""

import json
import shutil
import time
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from karipap_core.checkpoint.model import Weight
from karipap_core.compressed.records import REPORT, sums_of, written_for
from karipap_core.compressed.verify import verify
from karipap_core.errors import InputError
from karipap_core.networks import Spec
from karipap_core.networks.stored import values
from karipap_core.plan.document import Plan
from karipap_core.progress import Progress, silent
from karipap_core.workspace.files import whole_file, write_json


def compress(study, plan: Plan, out: str | Path, force: bool = False, progress: Progress = silent) -> dict:
    """Write the compressed model of `plan` for the study's checkpoint into the folder `out`.

    Returns {"kept", "bytes_kept", "parameters", "bytes", "weights": [{"name", "network", "chi", "quantize",
    "parameters", "weight_error", "functional_error"}], "verify": {"ok", "checks"}, "seconds"}; errors are relative
    squared: ‖W−Ŵ‖²/‖W‖² and, where the plan's metric has looked at activations, ‖(W−Ŵ)C^{1/2}‖²/‖WC^{1/2}‖². Cores are
    stored in the weight's own dtype or in the plan's format, and the errors are those of the stored cores. "verify" is
    the verdict on the folder (see verify.py), which stays in it as verify.json. Raises InputError where the plan is not
    this checkpoint's (`force` overrides a fingerprint that differs) or `out` holds something else.
    """
    from karipap_core.compressed.folder import write_compressed

    began, out, checkpoint = time.monotonic(), Path(out), study.checkpoint
    plan.check(checkpoint, force)
    document = plan.to_json()
    identity = written_for(document, checkpoint.fingerprint, checkpoint.identity)
    if _finished(out, identity):
        shutil.rmtree(out / ".parts", ignore_errors=True)  # of a run killed while it tidied up
        return json.loads((out / REPORT).read_text())["result"] | {"seconds": 0.0}
    parts = out / ".parts" / identity
    if out.exists() and not parts.exists() and any(path.name != ".parts" for path in out.iterdir()):
        raise InputError(f"Folder {out} is not empty and holds no model of this plan: name another one.")
    todo = [(weight, spec) for weight in checkpoint.weights if (spec := plan.spec(weight.name)) is not None]
    files: dict[str, Path] = {}
    rows = []
    for index, (weight, spec) in enumerate(todo):
        progress("compress", index, len(todo), weight.name)
        file = files[weight.name] = parts / f"{index:05d}.safetensors"
        if not file.exists():
            _decompose(study, plan, weight, spec, file)
        with safe_open(file, framework="pt") as handle:
            rows.append(json.loads(handle.metadata()["row"]))
    ledger = plan.ledger(checkpoint)
    result = {
        "kept": ledger.kept,
        "bytes_kept": ledger.bytes_kept,
        "parameters": ledger.parameters,
        "bytes": ledger.bytes,
        "kept_blocks": ledger.kept_blocks,
        "weights": rows,
    }
    # What is there already is our own, from a run killed after the folder and before its report were written.
    write_compressed(checkpoint, document, files, out, overwrite=True, progress=progress)
    report = {"format": "karipap-report", "version": 1, "identity": identity, "source": str(checkpoint.path.resolve())}
    report |= {"fingerprint": checkpoint.fingerprint, "source_identity": checkpoint.identity, "sums": sums_of(out)}
    verdict = verify(out, checkpoint, report | {"result": result}, files, progress=progress)
    result["verify"] = {"ok": verdict["ok"], "checks": verdict["checks"]}
    write_json(out / REPORT, report | {"result": result})
    shutil.rmtree(out / ".parts", ignore_errors=True)  # a plan that changes nothing has none
    return result | {"seconds": round(time.monotonic() - began, 3)}


def _finished(out: Path, identity: str) -> bool:
    """Whether `out` already holds this very plan's model: the report is the last file written."""
    report = out / REPORT
    found = json.loads(report.read_text()) if report.is_file() else {}
    return found.get("identity") == identity and "healing" not in found  # a healed folder is another model


def _decompose(study, plan: Plan, weight: Weight, spec: Spec, file: Path) -> None:
    """The cores of one weight as they are stored, with what they lose, as one file."""
    cores = study.decompositions(plan.metric).stored(weight.name, spec)
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
        if own and torch.is_tensor(core):
            tensors[f"cores.{index}"] = core.contiguous()
        elif own:
            tensors |= {f"cores.{index}.{key}": tensor.contiguous() for key, tensor in core.tensors().items()}
    with whole_file(file) as temporary:
        save_file(tensors, temporary, metadata={"row": json.dumps(row)})


def _relative(difference: torch.Tensor, whole: torch.Tensor) -> float:
    lost = difference.square().sum().item()
    return lost / whole.square().sum().item() if lost else 0.0
