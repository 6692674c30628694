"""A model folder measured beside the dense model that it came from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from karipap_core.checkpoint.roles import towers_of
from karipap_core.errors import InputError
from karipap_core.evaluation.conventions import check_names, measure_conventions
from karipap_core.evaluation.fidelity import EncoderSample, measure, output_fidelity
from karipap_core.evaluation.perplexity import Sample
from karipap_core.evaluation.scoring import Scoring
from karipap_core.evaluation.speed import measure_memory, measure_speed, weights_bytes
from karipap_core.evaluation.spread import scored_elsewhere
from karipap_core.evaluation.tokens import tokenize
from karipap_core.models import running
from karipap_core.models.empty import explained
from karipap_core.progress import Progress, silent
from karipap_core.spectra.spectrum import pick_device
from karipap_core.text import Text, standard_library
from karipap_core.workspace.kept import kept_json
from karipap_core.workspace.runs import environment

QUALITY = ("loss", "perplexity", "bits_per_byte", "tokens", "text_bytes", "dense", "rise", "rise_error", "kl") + (
    "top1_agreement",
    "text_warning",
    "fidelity",
)
DEFAULT_TOKENS = 32768
DEFAULT_SCORING = Scoring(max_tokens=DEFAULT_TOKENS)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def evaluate_folder(
    folder: str | Path,
    against: str | Path | None = None,
    text: Text | None = None,
    scoring: Scoring = DEFAULT_SCORING,
    conventions: Sequence[str] = (),
    device: str = "auto",
    dtype: str = "float32",
    speed: bool = True,
    progress: Progress = silent,
) -> dict:
    """Evaluate the model in `folder`, compressed or not, against the dense model `against`.

    against: default the model that the folder's plan names, where it still opens with the plan's fingerprint; else
    nothing is compared and "notes" says so. text: default the standard library's held-out modules. conventions: names
    of `conventions.CONVENTIONS`, measured besides on the whole text whatever `scoring.max_tokens` is.

    Returns {"loss", "perplexity", "bits_per_byte", "tokens", "text_bytes", "dense": {the same} | None, "rise",
    "rise_error", "kl", "top1_agreement", "text_warning", "speed": {"compressed", "dense"} | None, "memory":
    {"compressed", "dense"}, "text", "window", "stride", "dtype", "device", "tokenizer", "kind", "notes",
    "environment"}, and "conventions", as `conventions.measure_conventions` has it, where some were asked for. Nats a
    token; see `fidelity.measure`, `speed.measure_speed` and `speed.measure_memory`. An encoder has no loss: those keys
    are None and "fidelity" holds `fidelity.output_fidelity`. With images in the text "images" holds what
    `pictured.measure_images` finds. Raises InputError for folders, texts and windows that do
    not fit.
    """
    from karipap_core.checkpoint.open import open_checkpoint
    from karipap_core.models.load import load_model, try_model

    folder = Path(folder)
    if dtype not in DTYPES:
        raise InputError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    check_names(conventions)
    device = pick_device(device)
    text = text or standard_library("heldout")
    notes: list[str] = []
    source = dense_model_of(folder, against, notes)
    progress("load", 0, 2, folder.name)
    model, tokenizer = load_model(folder, dtype=DTYPES[dtype], device=device, run=False)
    why = running.why_not(model)
    if why is None:
        try_model(model, folder.name)
    dense = None
    if source is not None:
        progress("load", 1, 2, str(source))
        dense, dense_tokenizer = load_model(source, dtype=DTYPES[dtype], device=device, run=why is None)
        tokenizer = tokenizer or dense_tokenizer
    progress("load", 2, 2)
    if tokenizer is None and why is None:
        notes.append("The model has no tokenizer: UTF-8 bytes stand for tokens, so losses only compare the two models.")
    check_names(conventions, running.predicts(model))
    if why is None:
        result = _quality((model, folder), (dense, source), tokenizer, text, scoring, progress, notes)
        if text.images is not None:
            from karipap_core.evaluation.pictured import in_words, measure_images

            homes = [open_checkpoint(each, compressed=True) for each in (folder, source) if each is not None]
            result["images"] = measure_images(model, dense, homes, text.images, progress)
            notes.append(in_words(result["images"]))
    else:
        notes.append(f"Neither quality nor speed is measured: {why}")
        result = dict.fromkeys(QUALITY) | {"kind": "encoder", "window": None, "stride": None}
    notes += filter(None, [not_run(folder, text)])
    models = {"compressed": model} | ({"dense": dense} if dense is not None else {})
    if conventions:
        args = (model, tokenizer, text, dense, conventions, scoring.window, scoring.stride, progress)
        result["conventions"] = measure_conventions(*args)
    result |= _cost(models, dict(zip(models, (folder, source), strict=False)), speed, why is None, progress, notes)
    return result | {
        "model": str(folder),
        "against": None if source is None else str(source),
        "text": {"name": text.name, "sha256": text.sha256},
        "dtype": dtype,
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        "tokenizer": tokenize(tokenizer, Text("", ("a",)), 256).tokenizer,
        "notes": notes,
        "environment": environment(),
    }


def folder_conventions(
    folder: str | Path,
    against: str | Path | None,
    text: Text,
    names,
    window=None,
    stride=None,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, dict]:
    """`conventions.measure_conventions` of a folder, beside `against`: for a run that was measured before without."""
    from karipap_core.models.load import load_model

    device = pick_device(device)
    model, tokenizer = load_model(folder, device=device)
    dense, other = (None, None) if against is None else load_model(against, device=device)
    return measure_conventions(model, tokenizer or other, text, dense, names, window, stride, progress)


def _is_healed(folder: Path) -> bool:
    """Whether the model in a folder is one that healing made better."""
    report = kept_json(folder / "karipap.json", "report") or {}
    healing = report.get("healing")
    result = healing.get("result") if isinstance(healing, dict) else None
    return isinstance(result, dict) and bool(result.get("improved"))


def _cost(
    models: dict, paths: dict[str, str | Path | None], speed: bool, runs: bool, progress: Progress, notes: list[str]
) -> dict:
    """{"speed", "memory"} of {name: model}; what cannot be measured is None, and `notes` says why."""
    memory: dict[str, dict] = {name: {"weights_bytes": weights_bytes(model)} for name, model in models.items()}
    found: dict[str, Any] = {"speed": None}
    try:
        with explained("Speed and peak memory are not measured"):
            found["speed"] = measure_speed(models, progress=progress) if speed and runs else None
            memory = {name: measure_memory(model) for name, model in models.items()} if runs else memory
    except InputError as error:
        notes.append(str(error))
    if found["speed"] and (why := running.without_cache(next(iter(models.values())))) and why != running.NO_TOKENS:
        notes.append(f"Decoding is not measured: {why}.")
    return found | {"memory": {name: each | {"disk_bytes": disk_bytes(paths[name])} for name, each in memory.items()}}


def _quality(
    ours: tuple[Any, Path],
    theirs: tuple[Any, str | Path | None],
    tokenizer,
    text: Text,
    scoring: Scoring,
    progress: Progress,
    notes: list[str],
) -> dict:
    """The part of the result that says how good the model is; every key is there for causal models and encoders. The
    models come with where they were loaded from."""
    (model, folder), (dense, source) = ours, theirs
    empty: dict[str, Any] = dict.fromkeys(QUALITY)
    if running.predicts(model):
        sample = Sample.of(model, tokenizer, text, scoring)
        found = scored_elsewhere(model, sample, folder, dense=source)
        measured = measure(model, sample, dense, progress, healed=_is_healed(folder), found=found)
        notes += filter(None, [running.words_of(model)])
        kind = "encoder-decoder" if running.two_parts(model) else "causal"
        return {**empty, **measured, "kind": kind, "window": sample.window, "stride": sample.stride}
    if dense is None:
        raise InputError("An encoder is measured by its output against the dense model's: name that with --against.")
    notes.append("An encoder has no next-token loss: it is measured by its output against the dense model's.")
    rows = EncoderSample.of(model, tokenizer, text, scoring)
    fidelity = output_fidelity(model, rows, dense, progress)
    shared = {"kind": "encoder", "tokens": rows.tokens, "window": rows.window, "stride": rows.window}
    return {**empty, **shared, "fidelity": fidelity}


def not_run(folder: Path, text: Text) -> str | None:
    """One sentence where weights of a compressed folder are cut that this text does not run, so that none of the
    figures says what that costs: those that see, without images, and those that hear."""
    from karipap_core.checkpoint.open import open_checkpoint

    plan = (open_checkpoint(folder, compressed=True).config.get("quantization_config") or {}).get("plan")
    weights = plan.get("weights", {}) if isinstance(plan, dict) else {}
    towers, blind = towers_of(weights), {"audio"} if text.images else {"audio", "vision"}
    cut = [towers[name] for name, entry in weights.items() if entry["network"] != "dense" and towers.get(name) in blind]
    if not cut:
        return None
    said = " and ".join(sorted(set(cut)))
    more = ": give images with --images" if "vision" in cut and text.images is None else ""
    return f"{len(cut):,} weights of {said} are compressed, which this text does not run{more}."


def dense_model_of(folder: Path, against: str | Path | None, notes: list[str]) -> str | Path | None:
    """What to compare with: `against`, or the model that the folder's plan names where it is still the same one.

    Adds a sentence to `notes` where nothing can be compared, or where `against` is not what the plan was made for.
    """
    from karipap_core.checkpoint.open import open_checkpoint

    config = open_checkpoint(folder, compressed=True).config
    plan = (config.get("quantization_config") or {}).get("plan")
    recorded = plan.get("model", {}) if isinstance(plan, dict) else {}
    report = kept_json(folder / "karipap.json", "report") or {}
    if against is not None:
        dense = open_checkpoint(against, compressed=True)
        if recorded and dense.fingerprint != recorded.get("fingerprint"):
            notes.append(f"{against} is not the checkpoint that {folder.name} was made from (fingerprints differ).")
        elif report.get("source_identity", dense.identity) != dense.identity:
            notes.append(f"config.json or the tokenizer of {against} has changed since {folder.name} was made from it.")
        return against
    if not recorded:
        notes.append("Nothing is compared: the folder names no dense model. Name one with --against.")
        return None
    for source in filter(None, (report.get("source"), recorded.get("name"))):
        try:
            dense = open_checkpoint(source)
            same = report.get("source_identity", dense.identity) == dense.identity
            if same and dense.fingerprint == recorded.get("fingerprint"):
                return source
        except (InputError, OSError):
            continue
    notes.append(
        f"Nothing is compared: {recorded.get('name')}, which the folder was made from, is not found here unchanged. "
        "Name it with --against."
    )
    return None


def disk_bytes(path: str | Path | None) -> int | None:
    """Bytes of the safetensors files of a model, None for a hub id or no path."""
    if path is None:
        return None
    path = Path(path)
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors")) or None
