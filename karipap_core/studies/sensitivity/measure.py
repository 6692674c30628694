"""Each weight, or each layer, compressed alone: what it loses on held-out text, and which measure foretells it.

The procedure of CompactifAI (arXiv:2401.14109): one part of the model is truncated, all else stays dense, the loss is
measured. Beside the measured rise stand the numbers that are said to foretell it (`MEASURES`), and Spearman's ρ between
the two with its interval: whether entropy predicts sensitivity is answered for the model at hand, never assumed.

A finished part is kept in the workspace at once (`models/<fingerprint>/sensitivity/<key>.json`), so a killed
measurement goes on where it stopped and a page can read what is there. Nothing imports torch until it measures.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan import effort
from karipap_core.plan.calibration import ALL
from karipap_core.plan.choice import Choice
from karipap_core.plan.kind import counting
from karipap_core.plan.seen import NOTHING
from karipap_core.progress import Progress, announce, silent
from karipap_core.search import largest
from karipap_core.spectra.spectrum import METRICS
from karipap_core.studies.sensitivity.foretell import MEASURES, SUMMED, described
from karipap_core.studies.sensitivity.store import UNITS, file_of, opened, save
from karipap_core.text import Text

if TYPE_CHECKING:
    from karipap_core.evaluation.inplace import InPlace
    from karipap_core.networks.base import Spec
    from karipap_core.plan.kind import Kind
    from karipap_core.plan.study import Study

MAX_TOKENS = 8192
DEFAULT_SCORING = Scoring(max_tokens=MAX_TOKENS)
DENSE_FIGURES = ("loss", "perplexity", "bits_per_byte", "tokens")


# Measuring.


def sensitivity(
    study: "Study",
    text: Text,
    choice: Choice | str = "lowrank",
    kept: float | None = None,
    chi: int | None = None,
    metric: str = "loss",
    by: str = "weight",
    scoring: Scoring = DEFAULT_SCORING,
    progress: Progress = silent,
) -> dict:
    """Every weight (`by` "weight") or every layer's weights together ("layer") in a network, all else dense.

    text : what is measured on (see `tradeoffs.sweep.study_and_text`); cores, predictions and moments come from the text
        of the study.
    choice : one network and one format. In `tree` weights share cores, so a group of them is one part.
    kept, chi : one of the two: the fraction of each weight's numbers, a quantized one counting as its bits / 16
        (default 0.5); or every bond at χ or the most it can be.
    metric : what the cores are fitted in.

    Returns the document that is kept (see `described`): "weights" and "layers", rows of

        {"name", "layer", "role", "members", "network", "chi", "kept", "rise", "rise_low", "rise_high", "kl",
         "top1_agreement", "loss", "relative_error", "seconds", <the measures>}

    rise: loss minus the dense model's, nats a token, with its paired bootstrap interval over documents; kl: nats a
    token. Encoders have no loss: relative_error, of the last hidden states, takes the place of rise, which is None.
    Raises InputError for what does not fit together.
    """
    from karipap_core.tradeoffs.sweep import check_held_out

    choice = Choice.of(choice)
    kept = 0.5 if kept is None and chi is None else kept
    kind = _checked(choice, kept, chi, metric, by)
    check_held_out(study, text)
    if study.checkpoint.kind is None:
        raise InputError(f"{study.checkpoint.name} has no config.json that names its architecture: it cannot run.")
    if not study.weights:
        raise InputError(f"{study.checkpoint.name} has no weight that can be compressed.")
    told = counting(study.rounding, metric, choice.rounds)
    key = study.key + (ALL if study.measure == "all" else "") + (f"-{told}" if told else "")
    settings = {
        "network": choice.network,
        "kept": kept,
        "chi": chi,
        "quantize": choice.quantize,
        "metric": metric,
        "text": {"name": text.name, "sha256": text.sha256},
        **scoring.to_json(),
        "calibration": {"name": study.text.name, "key": key},
    }
    kept_file = file_of(study.folder, settings)
    parts, skipped = _parts(study, kind, settings, by)
    skipped += [{"name": name, "why": NOTHING} for name in sorted(study.seen.unseen)]
    if not parts:
        raise InputError(f"No weight can be {choice.network} at this size: {skipped[0]['why']}")
    document = opened(kept_file, study, settings) | {"by": by, "skipped": skipped}
    document["total"] = document["total"] | {by: len(parts)}
    rows = {row["name"]: row for row in document[f"{by}s"]}
    announce(progress, effort.once(study, metric))
    announce(progress, {"layer sensitivity": len(parts) * effort.EVALUATION})
    todo = (item for part in parts if part.name not in rows for item in part.specs.items())
    study.decompositions(metric).make(todo, progress)
    bench = None
    for number, part in enumerate(parts):
        progress("layer sensitivity", number, len(parts), part.name)
        if part.name in rows:
            continue
        if bench is None:
            measures = _Measures(study, metric)
            bench = _bench(study, text, scoring, progress)
            document |= {"dense": {k: bench.dense[k] for k in DENSE_FIGURES if k in bench.dense}} | bench.settings
        rows[part.name] = _measured(bench, study, metric, part, measures)
        document[f"{by}s"] = [rows[one.name] for one in parts if one.name in rows]
        save(kept_file, document, by)
    progress("layer sensitivity", len(parts), len(parts))
    save(kept_file, document, by)
    return described(opened(kept_file, study, settings), by)


@dataclass(frozen=True)
class Part:
    """What is compressed at once: a name for it, and the spec of each of its weights."""

    name: str
    layer: int | None
    role: str | None
    specs: dict


def _checked(choice: Choice, kept: float | None, chi: int | None, metric: str, by: str) -> "Kind":
    """The `Kind` that every weight becomes (of qlr the one with most bits, see `spec_at`); InputError for
    choices that do not fit together."""
    from karipap_core.plan.kind import kinds_of

    if by not in UNITS:
        raise InputError(f"--by {by}: it must be one of {', '.join(UNITS)}.")
    if metric not in METRICS:
        raise InputError(f"--metric {metric}: it must be one of {', '.join(METRICS)}.")
    if kept is not None and chi is not None:
        raise InputError("Give --kept or --chi, not both.")
    if kept is not None and not 0 < kept <= 1:
        raise InputError(f"--kept {kept}: a fraction above 0 and at most 1.")
    if chi is not None and chi < 1:
        raise InputError(f"--chi {chi}: a whole number of at least 1.")
    if "auto" in (choice.network, choice.quantize):
        raise InputError("`auto` chooses for each weight: name one network and one format, to measure all alike.")
    if choice.structure or choice.embedding != "dense":
        raise InputError("Weights are measured alone: give no structure around them and leave the tables dense.")
    kind = kinds_of(choice.network, choice.quantize)[0]
    if kind.grouped and by == "layer":
        shared = f"In a {choice.network}, layers share cores"
        raise InputError(f"{shared}: no layer can be compressed alone. Measure it --by weight.")
    return kind


def spec_at(kind: "Kind", shape: tuple[int, int], kept: float | None, chi: int | None) -> "Spec | None":
    """The spec of a weight (out, in): at χ, or the largest that keeps at most `kept` of its numbers (bytes at 16 bits
    a number over 2); None where even χ = 1 keeps more."""
    from karipap_core.plan.kind import kinds_of

    if chi is not None:
        return kind.spec(shape, chi)
    room = (kept or 0.0) * shape[0] * shape[1] * (1 + 1e-12)

    def fits(one: "Kind", chi: int) -> bool:
        return one.spec(shape, chi).bytes(2) / 2 <= room

    rivals = [one for one in kinds_of(kind.network, kind.quantize) if one.network == kind.network]
    for one in rivals:
        if fits(one, 1):
            return one.spec(shape, largest(partial(fits, one), 1, one.spec(shape, 1).max_chi + 1))
    return None


def _parts(study, kind, settings: dict, by: str) -> tuple[list[Part], list[dict]]:
    """(the parts in the model's order, weights that cannot be so small as {"name", "why"})."""
    if kind.grouped:
        return _groups(study, kind, settings)
    parts: list[Part] = []
    skipped: list[dict] = []
    layers: dict[int | None, dict[str, Spec]] = {}
    for weight in study.measurable:
        spec = spec_at(kind, weight.shape, settings["kept"], settings["chi"])
        if spec is None:
            why = f"no {kind.label} of {weight.shape[0]} × {weight.shape[1]} keeps so little as {settings['kept']:g}."
            skipped.append({"name": weight.name, "why": why})
            continue
        parts.append(Part(weight.name, weight.layer, weight.role, {weight.name: spec}))
        layers.setdefault(weight.layer, {})[weight.name] = spec
    if by == "weight":
        return parts, skipped
    return [Part(f"layer {layer}", layer, None, specs) for layer, specs in layers.items()], skipped


def _groups(study, kind, settings: dict) -> tuple[list[Part], list[dict]]:
    """The parts of `tree`: groups of weights that share cores, each as one."""
    from karipap_core.networks import spec_from_json
    from karipap_core.networks.tree.groups import group_names
    from karipap_core.networks.tree.network import Tree

    specs: list[dict] = []
    if settings["chi"] is not None:
        for members in group_names(study.measurable):
            n_out, n_in = study.checkpoint.weight(members[0]).shape
            more = {"quantize": kind.quantize, "members": tuple(members) if len(members) > 1 else ()}
            made = (Tree.for_shape(n_out, n_in, settings["chi"], at=at, **more) for at in range(len(members)))
            specs.append(dict(zip(members, made, strict=True)))
    skipped = []
    for curve in study.curves(kind, settings["metric"]) if settings["chi"] is None else ():
        if not study.seen.unseen.isdisjoint(curve.members):
            continue
        numbers = sum(study.checkpoint.weight(name).parameters for name in curve.members)
        fitting = np.flatnonzero(curve.bytes(2) / 2 <= settings["kept"] * numbers * (1 + 1e-12))
        if not len(fitting):
            skipped.append({"name": curve.members[0], "why": f"no tree keeps so little as {settings['kept']:g}."})
            continue
        specs.append({name: spec_from_json(entry) for name, entry in curve.entries[fitting[-1]].items()})
    parts = []
    for group in specs:
        first = study.checkpoint.weight(next(iter(group)))
        name = first.name if len(group) == 1 else f"{first.name} and {len(group) - 1} more"
        parts.append(Part(name, first.layer if len(group) == 1 else None, first.role, group))
    return parts, skipped


def _bench(study: "Study", text: Text, scoring: Scoring, progress: Progress) -> "InPlace":
    """The dense model in memory with its logits on `text`; probes that measured before put everything back."""
    from karipap_core.evaluation.inplace import InPlace

    study.release()
    model, tokenizer = study.model
    return InPlace(model, tokenizer, study.checkpoint, text, scoring, progress=progress)


class _Measures:
    """The measures of a weight: from the profile, the calibration and the moments of a study."""

    def __init__(self, study, metric: str) -> None:
        self.study, self.metric = study, metric
        self.calibration = study.calibration(metric)
        self.rows = {row["name"]: row["spectra"] for row in study.profile().weights}
        self.decompositions = {name: study.decompositions(name) for name in ("weight", "functional", "loss")}

    def of(self, name: str, spec, W, W_hat) -> dict[str, float]:
        """W, W_hat: (out, in) tensors."""
        difference = W.double() - W_hat.double()
        metrics = {key: found.metric_of(name) for key, found in self.decompositions.items()}
        errors = {key: metric.absolute(difference) for key, metric in metrics.items()}
        whole = {key: metrics[key].absolute(W.double()) for key in ("weight", "functional")}
        spectra = self.rows[name]
        return {
            # The excess of a zero weight is None: nothing of it can be lost, as of noise.
            **{key: spectra["weight"][key] or 0.0 for key in ("entropy", "excess", "effective_rank")},
            **{f"loss_{key}": spectra["loss"][key] or 0.0 for key in ("entropy", "excess") if "loss" in spectra},
            "weight_error": errors["weight"] / whole["weight"] if whole["weight"] else 0.0,
            "functional_error": errors["functional"] / whole["functional"] if whole["functional"] else 0.0,
            "loss_error": errors["loss"],
            "predicted": float(self.calibration.damage(name, errors[self.metric], spec.network)),
            "parameters": W.numel(),
        }


def _measured(bench, study, metric: str, part: Part, measures: _Measures) -> dict:
    """The row of one part."""
    began = time.monotonic()
    source = study.decompositions(metric)
    matrices = {name: source.matrix(name, spec) for name, spec in part.specs.items()}
    found = bench.measure(matrices.items())
    each = [
        measures.of(name, spec, study.checkpoint.read(name).cpu(), matrices[name]) for name, spec in part.specs.items()
    ]
    together = {}
    for key in MEASURES:
        values = [row[key] for row in each if key in row]
        if values:
            together[key] = sum(values) if key in SUMMED else float(np.mean(values))
    first = next(iter(part.specs.values()))
    numbers = sum(spec.bytes(2) / 2 for spec in part.specs.values())
    keys = ("rise", "rise_low", "rise_high", "kl", "top1_agreement", "loss", "relative_error")
    return {
        "name": part.name,
        "layer": part.layer,
        "role": part.role,
        "members": list(part.specs),
        "network": first.network,
        "shape": [first.n_out, first.n_in] if len(part.specs) == 1 else None,
        "chi": max(first.chi) if len(part.specs) == 1 or first.grouped else None,
        "kept": numbers / together["parameters"],
        **{key: found.get(key) for key in keys},
        **together,
        "seconds": round(time.monotonic() - began, 3),
    }
