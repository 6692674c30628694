"""Each weight, or each layer, compressed alone: what it loses on held-out text, and which measure foretells it.

The procedure of CompactifAI (arXiv:2401.14109): one part of the model is truncated, all else stays dense, the loss is
measured. Beside the measured rise stand the numbers that are said to foretell it (`MEASURES`), and Spearman's ρ between
the two with its interval: whether entropy predicts sensitivity is answered for the model at hand, never assumed.

A finished part is kept in the workspace at once (`models/<fingerprint>/sensitivity/<key>.json`), so a killed
measurement goes on where it stopped and a page can read what is there. Nothing imports torch until it measures.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from karipap_core.errors import InputError
from karipap_core.plan.document import model_entry
from karipap_core.progress import Progress, silent
from karipap_core.spectra.spectrum import METRICS
from karipap_core.statistics.bootstrap import LEVEL
from karipap_core.statistics.spearman import spearman
from karipap_core.workspace.files import read_json, settings_key, write_json
from karipap_core.workspace.runs import environment

FORMAT, VERSION = "karipap-sensitivity", 1
MAX_TOKENS = 8192
UNITS = ("weight", "layer")
WEAK = 0.3  # an interval of ρ that stays inside ±WEAK says that there is little to find
DENSE_FIGURES = ("loss", "perplexity", "bits_per_byte", "tokens")


@dataclass(frozen=True)
class Measure:
    """A number that may foretell what a part loses: its label, what it is, and the sign it is said to go with."""

    label: str
    says: str
    sign: int = 1


MEASURES = {
    "entropy": Measure("Entropy S", "S = −Σ p ln p, p = σ² / Σσ², of the weight's own singular values, nats"),
    "excess": Measure(
        "Excess over noise", "entropy of a Gaussian matrix of the same shape, minus S: structure, so less loss", -1
    ),
    "effective_rank": Measure("Effective rank", "exp S: ranks weights as S does"),
    "loss_entropy": Measure("Entropy, loss metric", "S of √G W √C, inputs and output gradients taken in"),
    "loss_excess": Measure("Excess, loss metric", "excess of √G W √C over a Gaussian matrix", -1),
    "weight_error": Measure("Weight error", "‖W − Ŵ‖² / ‖W‖²"),
    "functional_error": Measure("Output error", "‖(W − Ŵ) √C‖² / ‖W √C‖²: of the layer's outputs on text"),
    "loss_error": Measure("Loss metric error", "‖√G (W − Ŵ) √C‖²: twice what K-FAC takes for the rise in loss"),
    "predicted": Measure(
        "Predicted damage", "read from the calibration: divergence of low-rank cuts, measured on calibration text"
    ),
    "parameters": Measure("Parameters", "numbers in the dense weight"),
}
SUMMED = ("loss_error", "predicted", "parameters")  # over the weights of a part; the others are their mean


# Measuring.


def sensitivity(
    model, network: str = "lowrank", kept: float | None = None, chi: int | None = None, metric: str = "loss",
    by: str = "weight", quantize: str | None = None, text=None, calibration=None, max_tokens: int | None = MAX_TOKENS,
    window: int | None = None, stride: int | None = None, device: str = "auto", progress: Progress = silent,
) -> dict:  # fmt: skip
    """Every weight (`by` "weight") or every layer's weights together ("layer") in a network, all else dense.

    model: folder, file, hub id or Study. Give one of kept (fraction of each weight's numbers, a quantized one counting
    as its bits / 16; default 0.5) and chi (every bond at χ or the most it can be). The cores are fitted in `metric`.
    text: what is measured on, calibration: what the cores, predictions and moments come from, as in `tradeoff.sweep`;
    window, stride, max_tokens as in `perplexity.Sample`. In `tree` weights share cores, so a group of them is one part.

    Returns the document that is kept (see `described`): "weights" and "layers", rows of

        {"name", "layer", "role", "members", "network", "chi", "kept", "rise", "rise_low", "rise_high", "kl",
         "top1_agreement", "loss", "relative_error", "seconds", <the measures>}

    rise: loss minus the dense model's, nats a token, with its paired bootstrap interval over documents; kl: nats a
    token. Encoders have no loss: relative_error, of the last hidden states, takes the place of rise, which is None.
    Raises InputError for what does not fit together.
    """
    from karipap_core.tradeoff import study_and_text

    kept = 0.5 if kept is None and chi is None else kept
    kind = _checked(network, quantize, kept, chi, metric, by)
    study, text = study_and_text(model, text, calibration, device, progress)
    if study.checkpoint.kind is None:
        raise InputError(f"{study.checkpoint.name} has no config.json that names its architecture: it cannot run.")
    if not study.weights:
        raise InputError(f"{study.checkpoint.name} has no weight that can be compressed.")
    settings = {
        "network": network, "kept": kept, "chi": chi, "quantize": quantize, "metric": metric,
        "text": {"name": text.name, "sha256": text.sha256}, "window": window, "stride": stride,
        "max_tokens": max_tokens, "calibration": {"name": study.text.name, "key": study.key},
    }  # fmt: skip
    kept_file = file_of(study.folder, settings)
    parts, skipped = _parts(study, kind, settings, by)
    if not parts:
        raise InputError(f"No weight can be {network} at this size: {skipped[0]['why']}")
    document = _opened(kept_file, study, settings) | {"by": by, "skipped": skipped}
    document["total"] = document["total"] | {by: len(parts)}
    rows = {row["name"]: row for row in document[f"{by}s"]}
    bench = None
    for number, part in enumerate(parts):
        progress("layer sensitivity", number, len(parts), part.name)
        if part.name in rows:
            continue
        if bench is None:
            measures = _Measures(study, metric)
            bench = _bench(study, text, window, stride, max_tokens, progress)
            document |= {"dense": {k: bench.dense[k] for k in DENSE_FIGURES if k in bench.dense}} | bench.settings
        rows[part.name] = _measured(bench, study, metric, part, measures)
        document[f"{by}s"] = [rows[one.name] for one in parts if one.name in rows]
        _save(kept_file, document, by)
    progress("layer sensitivity", len(parts), len(parts))
    _save(kept_file, document, by)
    return described(read_json(kept_file), by)


@dataclass(frozen=True)
class Part:
    """What is compressed at once: a name for it, and the spec of each of its weights."""

    name: str
    layer: int | None
    role: str | None
    specs: dict


def _checked(network: str, quantize: str | None, kept, chi, metric: str, by: str):
    """The Kind (curves.py) that every weight becomes (of qlr the one with most bits, see `spec_at`); InputError for
    choices that do not fit together."""
    from karipap_core.plan.options import kinds_of

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
    if network == "auto" or quantize == "auto":
        raise InputError("`auto` chooses for each weight: name one network and one format, to measure all alike.")
    if network == "tree" and by == "layer":
        raise InputError("In a tree, layers share cores: no layer can be compressed alone. Measure it --by weight.")
    return kinds_of(network, quantize)[0]


def spec_at(kind, shape: tuple[int, int], kept: float | None, chi: int | None):
    """The spec of a weight (out, in): at χ, or the largest that keeps at most `kept` of its numbers (bytes at 16 bits
    a number over 2); None where even χ = 1 keeps more."""
    from karipap_core.plan.options import kinds_of

    if chi is not None:
        return kind.spec(shape, chi)
    room = kept * shape[0] * shape[1] * (1 + 1e-12)

    def cost(one, chi: int) -> float:
        return one.spec(shape, chi).bytes(2) / 2

    rivals = [one for one in kinds_of(kind.network, kind.quantize) if one.network == kind.network]
    for one in rivals:
        if cost(one, 1) > room:
            continue
        low, high = 1, one.spec(shape, 1).max_chi + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(one, middle) <= room else (low, middle)
        return one.spec(shape, low)
    return None


def _parts(study, kind, settings: dict, by: str) -> tuple[list[Part], list[dict]]:
    """(the parts in the model's order, weights that cannot be so small as {"name", "why"})."""
    if kind.network == "tree":
        return _groups(study, kind, settings)
    parts, skipped, layers = [], [], {}
    for weight in study.weights:
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
    from karipap_core.networks.tree.network import Tree, group_names

    specs: list[dict] = []
    if settings["chi"] is not None:
        for members in group_names(study.weights):
            shape = study.checkpoint.weight(members[0]).shape
            more = {"quantize": kind.quantize, "members": tuple(members) if len(members) > 1 else ()}
            made = (Tree.for_shape(*shape, settings["chi"], at=at, **more) for at in range(len(members)))
            specs.append(dict(zip(members, made, strict=True)))
    skipped = []
    for curve in study.curves(kind, settings["metric"]) if settings["chi"] is None else ():
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


def _bench(study, text, window, stride, max_tokens, progress: Progress):
    """The dense model in memory with its logits on `text`; probes that measured before put everything back."""
    from karipap_core.evaluation.inplace import InPlace

    for probe in ("probe", "check"):
        if probe in study.__dict__:
            getattr(study, probe).restore()
    model, tokenizer = study.model
    return InPlace(model, tokenizer, study.checkpoint, text, window, stride, max_tokens, progress)


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
            **{key: spectra["weight"][key] for key in ("entropy", "excess", "effective_rank")},
            **{f"loss_{key}": spectra["loss"][key] for key in ("entropy", "excess") if "loss" in spectra},
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
    each = [measures.of(name, spec, study.checkpoint.read(name).cpu(), matrices[name])
            for name, spec in part.specs.items()]  # fmt: skip
    together = {}
    for key in MEASURES:
        values = [row[key] for row in each if key in row]
        if values:
            together[key] = sum(values) if key in SUMMED else float(np.mean(values))
    first = next(iter(part.specs.values()))
    numbers = sum(spec.bytes(2) / 2 for spec in part.specs.values())
    keys = ("rise", "rise_low", "rise_high", "kl", "top1_agreement", "loss", "relative_error")
    return {
        "name": part.name, "layer": part.layer, "role": part.role, "members": list(part.specs),
        "network": first.network, "shape": [first.n_out, first.n_in] if len(part.specs) == 1 else None,
        "chi": max(first.chi) if len(part.specs) == 1 or first.network == "tree" else None,
        "kept": numbers / together["parameters"], **{key: found.get(key) for key in keys}, **together,
        "seconds": round(time.monotonic() - began, 3),
    }  # fmt: skip


# What is kept.


def file_of(folder: Path, settings: dict) -> Path:
    """Where the measurement of these settings is, in a model's folder of the workspace."""
    return Path(folder) / "sensitivity" / f"{settings['network']}-{settings_key(settings)}.json"


def _opened(file: Path, study, settings: dict) -> dict:
    if file.exists():
        return read_json(file)
    return {
        "format": FORMAT, "version": VERSION, "created": round(time.time(), 3), "model": model_entry(study.checkpoint),
        "settings": settings, "quality": "rise" if study.checkpoint.kind == "causal" else "relative_error",
        "total": {}, "weights": [], "layers": [], "environment": environment(),
    }  # fmt: skip


def _save(file: Path, document: dict, by: str) -> None:
    """Writes the file; what another process measured of the other unit meanwhile stays."""
    if file.exists():
        other = next(unit for unit in UNITS if unit != by)
        now = read_json(file)
        document[f"{other}s"], document["total"] = now[f"{other}s"], now["total"] | document["total"]
    write_json(file, document)


def read_all(folder: Path) -> list[dict]:
    """The readable measurements in a model's folder of the workspace, newest first, unfinished ones among them."""
    found = []
    for file in (Path(folder) / "sensitivity").glob("*.json"):
        try:
            document = read_json(file)
        except InputError:
            continue
        if document.get("format") == FORMAT and document.get("version") == VERSION and rows_of(document):
            found.append(document | {"path": str(file)})
    return sorted(found, key=lambda document: (-document["created"], document["path"]))


def rows_of(document: dict, by: str | None = None) -> list[dict]:
    """The rows of a unit; without one, of the weights, or where none was measured of the layers."""
    return document[f"{by}s"] if by else document["weights"] or document["layers"]


def described(document: dict, by: str = "weight") -> dict:
    """The document with what its rows say: "by", the unit that all of it is over; "spearman" {measure: see
    `correlations`}; "spearman_kl", the same with the KL divergence in place of the rise ({} for an encoder); "verdict",
    words.

    The divergence is measured by the same passes and has far less noise than the rise, whose ranks are chance where
    rises are within their intervals of 0.
    """
    rows, quality = rows_of(document, by), document["quality"]
    found = correlations(rows, quality)
    steadier = correlations(rows, "kl") if quality == "rise" else {}
    said = verdict(document, by, found, steadier)
    return document | {"by": by, "spearman": found, "spearman_kl": steadier, "verdict": said}


# Which measure foretells the rise.


def correlations(rows: Sequence[dict], quality: str = "rise") -> dict[str, dict]:
    """{measure: {"rho", "low", "high", "n", "within"}} between each of `MEASURES` and the measured quality.

    "within" is the same with ranks taken within each role of three weights or more, {"rho", "low", "high", "n",
    "roles"} or None: roles differ in shape and place, and a measure can follow those alone. A measure that the rows
    lack, or that is the same for all, is left out; so is everything below `FEWEST` rows.
    """
    found = {}
    for key in MEASURES:
        known = [row for row in rows if row.get(key) is not None and row.get(quality) is not None]
        x, y = ([row[column] for row in known] for column in (key, quality))
        whole = spearman(x, y)
        if whole is None:
            continue
        groups = [[i for i, row in enumerate(known) if row["role"] == role] for role in
                  dict.fromkeys(row["role"] for row in known) if role is not None]  # fmt: skip
        groups = [group for group in groups if len(group) >= 3]
        within = spearman(x, y, groups) if len(groups) > 1 else None
        found[key] = whole | {"within": within and within | {"roles": len(groups)}}
    return found


def answer(found: dict | None, sign: int = 1) -> str:
    """What an interval of ρ says: "yes", "the other way round", "no" (close to none, `WEAK`), "not told apart from
    none", or "too few to say"."""
    if found is None:
        return "too few to say"
    low, high = sorted((sign * found["low"], sign * found["high"]))
    if low > 0:
        return "yes"
    if high < 0:
        return "the other way round"
    return "no" if max(-low, high) < WEAK else "not told apart from none"


def verdict(document: dict, by: str, found: dict, steadier: dict) -> str:
    """What the measurement says, in a few sentences: entropy, the best measure, the most sensitive part. `found` and
    `steadier` are the correlations with the quality and with KL (see `described`)."""
    rows, quality = rows_of(document, by), document["quality"]
    if not rows:
        return "Nothing measured yet."
    many = "s" if len(rows) > 1 else ""
    parts, entropy = f"{len(rows)} {'part' if _grouped(rows) else by}{many}", found.get("entropy")
    said = [f"Does entropy predict sensitivity here? {_capital(answer(entropy))}"]
    said[0] += f": {in_words(entropy)} over {parts}." if entropy else f": {parts} measured."
    if entropy and entropy["within"]:
        inside = answer(entropy["within"])
        only = ": what it tells apart here are roles" if answer(entropy) == "yes" and inside != "yes" else ""
        said.append(f"Within roles: {inside}, {in_words(entropy['within'])}{only}.")
    if "entropy" in steadier:
        one = steadier["entropy"]
        said.append(f"With KL divergence in place of the rise: {answer(one)}, {in_words(one)}.")
    if found:
        best = max(found, key=lambda key: abs(found[key]["rho"]))
        if answer(found[best]) in ("yes", "the other way round"):
            said.append(f"Closest to what was measured: {MEASURES[best].label.lower()}, {in_words(found[best])}.")
        else:
            said.append("No measure is told apart from none.")
    most = max(rows, key=lambda row: row[quality])
    what = "rise in loss" if quality == "rise" else "output error"
    said.append(f"Most sensitive: {most['name']}, {what} {most[quality]:.4f}.")
    unmeasurable = sum(row["rise_low"] is not None and row["rise_low"] <= 0 <= row["rise_high"] for row in rows)
    if unmeasurable:
        said.append(f"{unmeasurable} of {len(rows)} lose nothing that can be measured on this text.")
    return " ".join(said)


def in_words(found: dict) -> str:
    """ "ρ = 0.62 (95 % interval 0.40 to 0.77)"."""
    return f"ρ = {found['rho']:.2f} ({LEVEL * 100:.0f} % interval {found['low']:.2f} to {found['high']:.2f})"


def _grouped(rows: Sequence[dict]) -> bool:
    return any(row["role"] is not None and len(row["members"]) > 1 for row in rows)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def say_settings(document: dict) -> str:
    """How it was measured, in a line."""
    kept = document["settings"]
    size = f"χ {kept['chi']}" if kept["chi"] is not None else f"kept {kept['kept']:g}"
    words = [
        f"{kept['network']}{' ' + kept['quantize'] if kept['quantize'] else ''}, {size}",
        f"metric {kept['metric']}",
    ]
    tokens = (document.get("dense") or {}).get("tokens")
    words.append(kept["text"]["name"] + (f", {tokens:,} tokens" if tokens else ""))
    return "; ".join(words)
