"""Healing: a short fine-tune of a compressed folder's cores, which never hands back a worse model than it was given.

Only the cores move (and the norms, if asked). They learn the dense model's probabilities on a text (distillation) or
the text itself (next-token loss), by AdamW without weight decay, with a step size that is searched for first. A part of
the text is kept aside: it picks the step size, stops the training and judges the result. A killed run goes on from its
last checkpoint in `<out>/.healing` and takes the very steps that it would have taken.
"""

import math
import os
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.records import REPORT, report_of
from karipap_core.errors import InputError
from karipap_core.healing.patient import WORK, Patient
from karipap_core.healing.settings import ScaleSettings, Settings
from karipap_core.progress import Progress, silent
from karipap_core.text import Text, read_text, standard_library
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json
from karipap_core.workspace.locks import only_writer

DEVICES = ("auto", "cpu", "cuda")
NO_DENSE = ", or take --objective next-token"


def heal(
    folder: str | Path,
    out: str | Path,
    settings: Settings | ScaleSettings,
    text: str | Path | Text | None = None,
    distill: str | Path | None = None,
    device: str = "auto",
    compare_dense: bool = False,
    progress: Progress = silent,
) -> dict:
    """Heal the compressed model in `folder` and write it to `out`, a compressed folder of the same plan.

    text: what is learnt from (default: the standard library's train modules), an eighth of it kept aside for
    validation; distill: the dense model (default: the one that the folder was made from).
    `ScaleSettings` heal scales and factors alone, block by block: see `by_block.heal_scales`. With `Settings`
    float cores learn, and of those in few bits the scales; with `requantize` these are opened, learn as floats, and are
    quantized again at the end (calibrated in the plan's metric). compare_dense: the dense model's own weights
    get the same steps on the same text by next-token loss, a step size of their own, and the same early stop.

    Returns {"loss_before", "loss_after", "dense_loss", "steps", "seconds", "learning_rate", "curve": [{"step", "loss",
    "rate", "validation" at every look}], "improved", "best_step", "search", "trained", "trained_share", "objective",
    "text", "validation", "folder", "notes", "dense_trained": {"loss", "steps", "learning_rate", "trained"} | None,
    "verify"}; losses in nats a token of the validation text, of the models as stored; the curve's "loss" is that of the
    objective on each step's own tokens. Where healing did not lower the loss, `out` is the incoming model and
    "improved" False. Raises InputError for encoders, dense folders, texts that are too short, and where nothing can be
    trained.
    """
    text = text if isinstance(text, Text) else read_text(text) if text is not None else standard_library("train")
    if isinstance(settings, ScaleSettings):
        from karipap_core.healing.by_block import heal_scales

        if compare_dense:
            raise InputError("The dense model has no scales to train: heal them without --compare-dense.")
        return heal_scales(folder, out, settings, text, distill, device, progress)
    accelerator = _accelerator(settings, device)
    progress = progress if accelerator.is_main_process else silent
    patient = Patient(Path(folder), distill, settings.objective == "distill", NO_DENSE)
    key = settings_key(
        asdict(settings) | {"folder": patient.checkpoint.identity, "text": text.sha256} | {"teacher": patient.teacher}
    )
    out = Path(out).absolute()
    with only_writer(out, "heal") if accelerator.is_main_process else nullcontext():
        return _kept_or_healed(patient, text, settings, key, out, compare_dense, accelerator, progress)


def _kept_or_healed(
    patient: Patient,
    text: Text,
    settings: Settings,
    key: str,
    out: Path,
    compare_dense: bool,
    accelerator,
    progress: Progress,
) -> dict:
    """What `heal` returns: found in `out` where that holds this very healing, or made."""
    found = patient.kept(key, out)
    if found is None:
        found = _healed(patient, text, settings, key, out, accelerator, progress)
    if compare_dense and found["dense_trained"] is None:
        file = out / WORK / f"{key}-dense.safetensors"
        found |= {"dense_trained": _train_dense(patient, text, settings, file, accelerator, progress)}
        if accelerator.is_main_process:
            report = report_of(out)
            keep_json(out / REPORT, report | {"healing": report["healing"] | {"result": found}})
    if accelerator.is_main_process:
        found = patient.verified(found, out, progress)
    accelerator.wait_for_everyone()
    return found


def first_process() -> bool:
    """Whether this is the only process, or the first of those that a launcher started."""
    return os.environ.get("RANK", "0") == "0"


def _healed(
    patient: Patient, text: Text, settings: Settings, key: str, out: Path, accelerator, progress: Progress
) -> dict:
    from karipap_core.evaluation.wrong_text import text_warning
    from karipap_core.healing import folder as store
    from karipap_core.healing.data import rows_and_sample
    from karipap_core.healing.loop import Training, validation_loss
    from karipap_core.layers.cores import CoresModule

    checkpoint, device = patient.checkpoint, accelerator.device
    progress("load", 0, 2, checkpoint.name)
    model, tokenizer = patient.load(device)
    rows, validation = rows_and_sample(model, tokenizer, text, settings, accelerator.num_processes)
    progress("load", 1, 2, str(patient.source or ""))
    dense = patient.load_dense(device)
    progress("load", 2, 2)
    dense_loss = None if dense is None else validation_loss(dense, validation)
    teacher = dense if settings.objective == "distill" else None
    before = validation_loss(model, validation)
    packed: dict[str, list[int]] = {}
    weights: dict[str, str] = {}
    if settings.requantize:
        if accelerator.num_processes > 1:
            raise InputError("Quantizing again (--requantize) runs in one process: start it without a launcher.")
        weights = store.plan_names(model, checkpoint)  # before: a core that is open has another name than its file's
        packed = store.unpack_cores(model)
    trained = store.choose_trained(model, settings.norms)
    shared = any(module.cores.lenders for module in model.modules() if isinstance(module, CoresModule))
    if shared and str(accelerator.distributed_type) == "DistributedType.FSDP":
        raise InputError("Cores that several layers share cannot be spread by FSDP: launch with --multi_gpu instead.")
    if settings.gradient_checkpointing:
        new = hasattr(model, "activation_checkpointing_enable")  # its name from transformers 5.23 on
        enable = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
        model.train()  # transformers checkpoints in this mode alone
    file = out / WORK / f"{key}.safetensors"
    training = Training(model, rows, validation, _course(settings), accelerator, file, teacher, "heal", progress)
    state = training.run()
    bare = training.whole_precision()
    values = training.values()
    if packed:
        progress("quantize", 0, 1)
        store.pack_cores(bare, packed, _metrics(patient, weights, device, progress))
        progress("quantize", 1, 1)
        values = {name: value for name, value in bare.state_dict().items() if ".cores." in name or name in values}
    tensors = store.new_tensors(bare, checkpoint, values)
    store.round_as_stored(bare, checkpoint, tensors)
    after = validation_loss(bare, validation)
    improved = after < before
    notes = [*patient.notes, *filter(None, [state.stopped])]
    if not improved:
        notes.append("Healing did not lower the loss on the validation text: the folder holds the incoming model.")
    if dense_loss is not None:
        losses = {"loss": after, "dense": {"loss": dense_loss}}
        vocabulary = bare.config.get_text_config().vocab_size
        notes += filter(None, [text_warning(losses, vocabulary, healed=True)])
    total = sum(math.prod(info.shape) for info in checkpoint.tensors.values())
    result = {
        "loss_before": before,
        "loss_after": after if improved else before,
        "dense_loss": dense_loss,
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "learning_rate": state.rate,
        "curve": state.curve,
        "improved": improved,
        "best_step": state.best_step if improved else 0,
        "search": state.search,
        "trained": trained,
        "trained_share": trained / max(total, trained),
        "objective": settings.objective,
        "text": {"name": text.name, "sha256": text.sha256, "path": text.path},
        "validation": {
            "name": validation.text.name,
            "sha256": validation.text.sha256,
            "tokens": len(validation.positions),
        },
        "folder": str(out),
        "notes": notes,
        "dense_trained": None,
    }
    if accelerator.is_main_process:
        patient.write(key, asdict(settings), result, tensors if improved else {}, out, progress)
    accelerator.wait_for_everyone()
    return result


def _train_dense(patient: Patient, text: Text, settings: Settings, file: Path, accelerator, progress: Progress) -> dict:
    """The dense model's own weights, those that the plan compresses, given the same training by next-token loss."""
    from karipap_core.healing.data import rows_and_sample
    from karipap_core.healing.loop import Training, validation_loss
    from karipap_core.models.sites import sites

    if patient.source is None or (model := patient.load_dense(accelerator.device)) is None:
        raise InputError("There is no dense model to compare with: name it with --distill.")
    tokenizer = patient.load("cpu")[1]
    rows, validation = rows_and_sample(model, tokenizer, text, settings, accelerator.num_processes)
    compressed = {name for name, entry in patient.plan["weights"].items() if entry["network"] != "dense"}
    compressed |= {name for name, entry in patient.plan["weights"].items() if entry.get("quantize")}
    for name, site in sites(model, open_checkpoint(patient.source), tables=True).items():
        site.module.weight.requires_grad_(name in compressed)
    if settings.norms:
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                module.requires_grad_(True)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    before = validation_loss(model, validation)
    training = Training(model, rows, validation, _course(settings), accelerator, file, None, "dense", progress)
    state = training.run()
    loss = validation_loss(training.whole_precision(), validation)
    return {
        "loss": loss,
        "loss_before": before,
        "steps": state.step,
        "learning_rate": state.rate,
        "search": state.search,
        "trained": trained,
        "seconds": round(state.seconds, 3),
    }


def _course(settings: Settings):
    from karipap_core.healing.loop import Course

    return Course(
        settings.steps, settings.rate, settings.look_every, settings.patience, settings.accumulate, settings.seed
    )


def _metrics(patient: Patient, weights: dict[str, str], device, progress: Progress):
    """Path of a module → the metric that its plan was made in, to round its cores in. The moments are the workspace's,
    or are measured again; without the dense model cores are rounded in the weights' own metric."""
    from karipap_core import story as pipeline
    from karipap_core.plan.document import Plan

    plan = Plan.from_json(patient.plan)
    if patient.source is None or plan.metric == "weight":
        return lambda path: None
    source = pipeline.study_of(patient.source, plan, str(device), progress).decompositions_of(plan)
    return torch.enable_grad()(lambda path: source.metric_of(weights[path]))  # moments of gradients are measured


def _accelerator(settings: Settings, device: str):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs

    if device not in DEVICES:
        raise InputError(f"device {device!r} is not one of {', '.join(DEVICES)}: healing picks the GPUs by launcher.")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no CUDA device here: take --device cpu.")
    if settings.mixed_precision == "fp16" and (device == "cpu" or not torch.cuda.is_available()):
        raise InputError("fp16 needs a GPU: take --mixed-precision bf16.")
    alone = "RANK" not in os.environ
    AcceleratorState._reset_state(reset_partial_state=alone)  # of an earlier healing in this process
    return Accelerator(
        cpu=device == "cpu",
        mixed_precision=settings.mixed_precision,
        gradient_accumulation_steps=settings.accumulate,
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
