"""KARIPAP and CompactifAI: how fast a model trains and runs whose weights are networks at 30 % of their parameters."""

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from karipap_core.errors import InputError
from karipap_core.evaluation.speed import Took, measure_speed, took
from karipap_core.healing.folder import choose_trained
from karipap_core.healing.loop import distillation_loss, next_token_loss
from karipap_core.models import running
from karipap_core.networks.base import Spec
from karipap_core.plan.study import Study
from karipap_core.progress import Progress, silent
from karipap_core.studies.claims.experiments.bench import MPO_SITES, Bench, bars, cut_alike, grid
from karipap_core.studies.claims.experiments.registry import experiment

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel

KEPT = 0.3
FORMS = {"dense": "dense", "peps": "2×2 PEPS", "mpo": "MPO", "lowrank": "low rank"}
TRAINED_ON = 2048  # tokens of one training step
ROUNDS, SECONDS = 5, 60.0
RATE = 1e-5  # of AdamW: whatever it is, a step takes as long
FASTER_TRAINING, FASTER_INFERENCE = 1.5, 1.25  # what was published, as a multiple of the dense model's pace
Paces = dict[str, float | None]  # form → its pace over the dense model's, None where that is not measured


@experiment("speed")
def speed(study: Study, progress: Progress) -> dict:
    """Steps a second of training and tokens a second of reading and writing, each over the dense model's."""
    bench, weights = Bench(study, progress), study.weights
    if not weights:
        raise InputError(f"{study.checkpoint.name} has no weight that can be compressed.")
    specs: dict[str, dict[str, Spec]] = {
        form: cut_alike(weights, KEPT, form, **({"sites": MPO_SITES} if form == "mpo" else {}))
        for form in FORMS
        if form != "dense"
    }
    models = {form: with_networks(study, specs.get(form, {})) for form in FORMS}
    run = measure_speed(models, seconds=SECONDS, progress=progress)
    steps: dict[str, Took] = {}
    distilled: dict[str, Took] = {}
    if bench.causal:
        steps, distilled = trained(study, models, progress)
    rows = {form: _row(form, run[form], steps.get(form), distilled.get(form)) for form in FORMS}
    dense_work = sum(weight.parameters for weight in weights)
    for form, row in rows.items():
        mine = specs.get(form)
        row["kept"] = 1.0 if mine is None else sum(spec.parameters for spec in mine.values()) / dense_work
        row["work"] = 1.0 if mine is None else sum(spec.multiply_adds() for spec in mine.values()) / dense_work
    paces = {what: _paces(rows, what) for what in ("train", "write", "read")}
    measured = {
        f"{what}_{form}": _words(what, rows, form, paces) for what in paces for form in FORMS if form != "dense"
    }
    window = run["dense"]
    shown = [("train", "Training steps a second"), ("write", "Tokens written a second")] if bench.causal else []
    charts = [
        bars(title, title, list(FORMS.values()), [rows[form][what] for form in FORMS])
        for what, title in [*shown, ("read", "Tokens read a second")]
        if all(rows[form][what] is not None for form in FORMS)
    ]
    return bench.document(
        verdict(paces),
        measured,
        {"rows": rows, "paces": paces, "threads": window["threads"], "prompt": window["prompt"]},
        grid(
            [
                "form",
                "parameters kept",
                "multiply-adds a token over dense (counted)",
                "training steps a second",
                "CPU seconds a step",
                "distilling steps a second",
                "tokens read a second",
                "CPU ms a token read",
                "tokens written a second",
                "CPU ms a token written",
            ],
            [[FORMS[form], *(row[key] for key in COLUMNS)] for form, row in rows.items()],
        ),
        charts,
        _notes(bench, window),
    )


COLUMNS = ("kept", "work", "train", "train_cpu", "distil", "read", "read_cpu", "write", "write_cpu")


def with_networks(study: Study, specs: Mapping[str, Spec]) -> "PreTrainedModel":
    """The study's model loaded anew in float32, each weight in `specs` (name → spec) a network of random cores."""
    from karipap_core.models.load import load_model
    from karipap_core.models.sites import place, sites

    model, _ = load_model(study.checkpoint, device=study.device)
    found = sites(model, study.checkpoint)
    for name, spec in specs.items():
        bias = getattr(found[name].module, "bias", None)
        network = place(model, found[name].path, spec, {})
        network.set_cores([core.to(study.device) for core in spec.random_cores(0)])
        if bias is not None:
            network.get_parameter("bias").data.copy_(bias.detach())
    return model


def trained(
    study: Study, models: "Mapping[str, PreTrainedModel]", progress: Progress = silent
) -> tuple[dict[str, Took], dict[str, Took]]:
    """What one training step of each model takes on the text's own tokens, and of those with networks also by
    distillation, in which the dense model runs as well; the median of turns."""
    from karipap_core.models.sites import sites

    window = study.windows.moments
    rows = window[: max(1, TRAINED_ON // window.shape[1])].to(study.device)
    steps: dict[str, Callable[[], object]] = {}
    for form, model in models.items():
        if form == "dense":
            model.requires_grad_(False)
            for site in sites(model, study.checkpoint).values():
                site.module.weight.requires_grad_(True)
        else:
            choose_trained(model)
        steps[form] = _step(model, rows)
    teacher = models["dense"]
    distilling = {form: _step(model, rows, teacher) for form, model in models.items() if form != "dense"}
    every = [*steps.items(), *((f"{form}, distilled", step) for form, step in distilling.items())]
    for number, (form, step) in enumerate(every):
        progress("warming up", number, len(every), form)
        step()
    found: dict[str, list[Took]] = {form: [] for form, _ in every}
    began, device = time.monotonic(), torch.device(study.device)
    for turn in range(ROUNDS):
        for form, step in every:
            progress("training steps", turn, ROUNDS, form)
            found[form].append(took(device, step))
        if time.monotonic() - began > SECONDS:
            break
    progress("training steps", ROUNDS, ROUNDS)
    middle = {form: Took.median(several) for form, several in found.items()}
    return {form: middle[form] for form in steps}, {form: middle[f"{form}, distilled"] for form in distilling}


def _step(
    model: "PreTrainedModel", rows: torch.Tensor, teacher: "PreTrainedModel | None" = None
) -> Callable[[], object]:
    """One step of AdamW over all that the model has with requires_grad."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=RATE)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if teacher is None:
            loss = next_token_loss(running.logits(model, rows)[:, :-1], rows[:, 1:])
        else:
            with torch.no_grad():
                wanted = running.logits(teacher, rows)
            loss = distillation_loss(running.logits(model, rows), wanted)
        loss.backward()
        optimizer.step()

    return step


def _row(form: str, run: Mapping, step: Took | None, distilled: Took | None) -> dict:
    written, written_cpu = run["decode_ms_per_token"], run["decode_cpu_ms_per_token"]
    return {
        "label": FORMS[form],
        "train": step and 1 / step.wall,
        "train_cpu": step and step.cpu,
        "distil": distilled and 1 / distilled.wall,
        "read": run["prefill_tokens_per_second"],
        "read_cpu": 1e3 * run["prefill_cpu_seconds"] / run["prompt"],
        "write": written and 1e3 / written,
        "write_cpu": written_cpu,
    }


def _paces(rows: Mapping[str, Mapping], what: str) -> Paces:
    dense = rows["dense"][what]
    return {form: None if dense is None else rows[form][what] / dense for form in FORMS if form != "dense"}


UNITS = {"train": "steps a second", "write": "tokens a second", "read": "tokens a second"}
CPU_UNITS = {"train": "CPU s a step", "write": "CPU ms a token", "read": "CPU ms a token"}


def _words(what: str, rows: Mapping[str, Mapping], form: str, paces: Mapping[str, Paces]) -> str:
    pace, dense, mine = paces[what][form], rows["dense"], rows[form]
    if pace is None:
        return "not measured: the model predicts no token after the other"
    return (
        f"{pace:.2f} times ({_number(mine[what])} {UNITS[what]} against {_number(dense[what])}; "
        f"{_number(mine[f'{what}_cpu'])} {CPU_UNITS[what]} against {_number(dense[f'{what}_cpu'])})"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def verdict(paces: Mapping[str, Paces]) -> str:
    """In words, from the paces over the dense model's: {"train", "write", "read"} → {"peps", "mpo", "lowrank"}. Of an
    inference that writes nothing the pace of reading counts."""
    inference, verb = (paces["read"], "read") if paces["write"]["mpo"] is None else (paces["write"], "write")
    networks = ("peps", "mpo")
    fast = {
        "training": [form for form in networks if (paces["train"][form] or 0) >= FASTER_TRAINING],
        "inference": [form for form in networks if (inference[form] or 0) >= FASTER_INFERENCE],
    }
    if paces["train"]["mpo"] is None:
        fast.pop("training")
    reached = [what for what, forms in fast.items() if forms]
    says = "Seen here" if len(reached) == len(fast) else f"Only {reached[0]} seen here" if reached else "Not seen here"
    parts = []
    for form, name in (("peps", "the PEPS"), ("mpo", "the MPO"), ("lowrank", "low rank")):
        trains = "" if paces["train"][form] is None else f"trains at {paces['train'][form]:.2f} and "
        parts.append(f"{name} {trains}{verb}s at {inference[form]:.2f}")
    return f"{says}: at 30 % of the parameters {', '.join(parts)} times the dense model's pace on this machine."


def _notes(bench: Bench, window: Mapping) -> list[str]:
    notes = [
        f"Medians of turns, {window['threads']} thread{'s' if window['threads'] > 1 else ''}, prompts of "
        f"{window['prompt']} tokens, float32. Where others use the machine too, CPU times are the steadier ones.",
        "Where forming the dense matrix for a pass is quicker than contracting with the cores, the layers do that: "
        "many tokens at once then take what the dense layer takes and a little more, whatever multiply-adds are "
        "counted.",
    ]
    if bench.causal:
        return [*notes, "Healing by distillation runs the dense model in every step as well: its pace is in the table."]
    return [*notes, "Training was not measured: this model predicts no token, and only causal models are healed."]
