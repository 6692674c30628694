"""KARIPAP and CompactifAI: what a model takes on disk and while it runs, in each form, measured."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.dense import Dense
from karipap_core.networks.mpo import Mpo
from karipap_core.networks.stored import in_dtype, rounded_cores, values
from karipap_core.plan.document import Plan, model_entry
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.quantization.formats import Stored
from karipap_core.studies.claims.experiments.bench import MPO_SITES, Bench, bars, cut_alike, grid
from karipap_core.studies.claims.experiments.registry import experiment
from karipap_core.studies.claims.resident import resident
from karipap_core.terminal import size
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_tensors

KEPT, FEWER_BITS = 0.3, "int4"
LESS = 0.93  # what was published, against 32 bits
NETWORKS = ("peps", "mpo_rest4", "mpo8_rest4", "lowrank")


@dataclass(frozen=True)
class Form:
    """label: on screen; specs: name of a weight → what it becomes; random: whether cores hold random numbers."""

    label: str
    specs: Mapping[str, Spec]
    random: bool = False


@experiment("memory")
def memory(study: Study, progress: Progress) -> dict:
    """The model in every form, written to disk, then loaded and run in processes of their own."""
    bench = Bench(study, progress)
    if not study.weights:
        raise InputError(f"{study.checkpoint.name} has no weight that can be compressed.")
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        for form, dtype in (("dense32", torch.float32), ("dense16", torch.bfloat16)):
            progress("folders", len(rows), len(NETWORKS) + 3, form)
            folder = _saved(study, dtype, place / form)
            rows[form] = _row(f"dense, {dtype.itemsize * 8} bits", folder, str(dtype), study.device)
        whole = Study(place / "dense16", study.text, study.settings, study.device, Workspace(place / "workspace"))
        for form, made in forms(whole).items():
            progress("folders", len(rows), len(NETWORKS) + 3, made.label)
            folder = place / form
            matrices = write(whole.checkpoint, made, folder)
            rows[form] = _row(made.label, folder, "torch.bfloat16", study.device)
            known = matrices and all(name in bench.probe.sites for name in matrices)
            rows[form] |= bench.cut(matrices.items()) if known else {}
    progress("folders", len(rows), len(rows))
    for row in rows.values():
        for key in ("stored", "running"):
            row[f"{key}_less"] = 1 - row[key] / rows["dense32"][key]
            row[f"{key}_less_16"] = 1 - row[key] / rows["dense16"][key]
    labels = [row["label"] for row in rows.values()]
    return bench.document(
        verdict(rows),
        {form: _words(bench, row) for form, row in rows.items() if form != "dense32"},
        {"rows": rows},
        grid(
            ["form", "bytes of files", "bytes running", "bytes of its tensors", "peak bytes of a run", "rise in loss"],
            [
                [r["label"], *(r[key] for key in ("stored", "running", "tensors", "peak")), r.get("rise")]
                for r in rows.values()
            ],
        ),
        [
            bars("On disk", "Megabytes of files", labels, [row["stored"] / 1e6 for row in rows.values()]),
            bars("While it runs", "Megabytes of resident memory", labels, [r["running"] / 1e6 for r in rows.values()]),
        ],
        _notes(),
    )


def forms(study: Study) -> dict[str, Form]:
    """What is written beside the dense model: name → form, for the study of a model in 16 bits."""
    weights = study.weights
    mpo = cut_alike(weights, KEPT, "mpo", sites=MPO_SITES)
    tables = {table.name: Dense.for_shape(*table.shape, quantize=FEWER_BITS) for table in study.tables}
    eight = {name: replace(spec, quantize="int8") for name, spec in mpo.items()}
    four = {weight.name: Dense.for_shape(*weight.shape, quantize=FEWER_BITS) for weight in weights}
    return {
        "peps": Form("2×2 PEPS, 16 bits", cut_alike(weights, KEPT, "peps"), random=True),
        "mpo_rest4": Form("MPO, 16 bits; tables, 4 bits", mpo | tables),
        "mpo8_rest4": Form("MPO, 8 bits; tables, 4 bits", eight | tables),
        "lowrank": Form("low rank, 16 bits", cut_alike(weights, KEPT, "lowrank")),
        "int4": Form("4 bits, no network", four | tables),
    }


def write(checkpoint: Checkpoint, form: Form, folder: Path) -> dict[str, torch.Tensor]:
    """Writes the model in a form as a folder; returns the matrices that its weights in the blocks became, {} where they
    are random."""
    from karipap_core.compressed.folder import write_compressed

    weights = [checkpoint.weight(name) for name in form.specs]
    tables = any(not weight.compressible for weight in weights)
    files, matrices = {}, {}
    with tempfile.TemporaryDirectory(dir=folder.parent) as parts:
        for number, weight in enumerate(weights):
            spec = form.specs[weight.name]
            stored = in_dtype(spec, _cores(checkpoint, weight, spec, form.random), torch.bfloat16)
            if weight.compressible and not form.random:
                matrices[weight.name] = spec.dense(values(spec, stored))
            files[weight.name] = Path(parts) / f"{number}.safetensors"
            keep_tensors(files[weight.name], _tensors(stored), {})
        plan = Plan(
            model_entry(checkpoint),
            "weight",
            {name: spec.to_json() for name, spec in form.specs.items()},
            embedding={"kind": "dense", "tied": "contract"} if tables else None,
        )
        write_compressed(checkpoint, plan.to_json(), files, folder)
    return matrices


def _cores(checkpoint: Checkpoint, weight: Weight, spec: Spec, random: bool) -> Sequence[Stored]:
    if random:
        return spec.random_cores(0)
    W = checkpoint.read(weight.name).double()
    cores = spec.start(W) if isinstance(spec, Mpo) else spec.decompose(W)  # the MPO as published: sequential SVDs
    return rounded_cores(spec, cores)


def _tensors(stored: Sequence[Stored]) -> dict[str, torch.Tensor]:
    """Cores by the names that they have on disk."""
    found: dict[str, torch.Tensor] = {}
    for number, core in enumerate(stored):
        parts = {"": core} if isinstance(core, torch.Tensor) else core.tensors()
        found |= {f"cores.{number}.{name}".rstrip("."): part.contiguous() for name, part in parts.items()}
    return found


def _saved(study: Study, dtype: torch.dtype, folder: Path) -> Path:
    """The dense model as a folder in a dtype, with the tokenizer of its own folder."""
    from karipap_core.models.load import load_model

    model, tokenizer = load_model(study.checkpoint, dtype)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder


def _row(label: str, folder: Path, dtype: str, device: str) -> dict:
    found = resident(folder, dtype.removeprefix("torch."), device)
    stored = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    return {
        "label": label,
        "stored": stored,
        "running": found["resident_bytes"],
        "tensors": found["weights_bytes"],
        "peak": found["peak_bytes"],
    }


def _words(bench: Bench, row: Mapping) -> str:
    said = (
        f"files {size(row['stored'])}, {_less(row['stored_less'])} than 32 bits; running {size(row['running'])}, "
        f"{_less(row['running_less'])}"
    )
    return said + (f"; {bench.words(dict(row))}" if "rise" in row else "")


def _less(share: float) -> str:
    return f"{abs(share):.0%} {'less' if share >= 0 else 'more'}".replace("%", " %")


def verdict(rows: Mapping[str, Mapping]) -> str:
    """In words: whether a network takes 93 % less than 32 bits, stored and running, and what 4 bits alone do."""
    reached = [form for form in NETWORKS if min(rows[form]["stored_less"], rows[form]["running_less"]) >= LESS]
    peps, best, four = rows["peps"], rows["mpo8_rest4"], rows["int4"]
    fewer = "fewer" if four["stored"] < best["stored"] else "more"
    return (
        f"{'Seen here' if reached else 'Not seen here'}: the 2×2 PEPS takes {_less(peps['stored_less'])} than 32 bits "
        f"on disk and {_less(peps['running_less'])} running, the MPO with 8-bit cores and 4-bit tables "
        f"{_less(best['stored_less'])} and {_less(best['running_less'])} ({_less(best['stored_less_16'])} than 16 bits "
        f"on disk). Plain 4 bits without a network take {_less(four['stored_less'])} and "
        f"{_less(four['running_less'])}: {fewer} bytes on disk{_harm(best, four)}."
    )


def _harm(network: Mapping, four: Mapping) -> str:
    if "rise" not in network or "rise" not in four:
        return ""
    return f", and a rise in loss of {four['rise']:.3g} against the MPO's {network['rise']:.3g}"


def _notes() -> list[str]:
    return [
        "Running is what resident memory grows by with a second copy of the model in a process of its own, after both "
        "have read a prompt and written behind it. What a run takes and gives back (activations, weights formed for a "
        "moment) is in its peak."
    ]
