"""The experiments behind claims.py: one function a claim, `(study, progress) -> dict` of what was measured.

Each replaces weights of the dense model in memory and measures the outputs on windows of text that were not calibrated
on: the KL divergence from the dense model (nats a token) and the rise in loss; for an encoder, which predicts no token,
the relative squared error of its output. Nothing is retrained.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import permutations

import numpy as np
import torch

from karipap_core.activations import CalibrationSettings
from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.progress import Progress, silent
from karipap_core.quantize import quantize_gptq, quantize_rtn
from karipap_core.spectrum import entropy, null_deviation, null_entropy, singular_values, tail
from karipap_core.study import Study

# Enough to tell effects of a few percent apart on the models that run on a desk, in well under a minute for the demo.
SETTINGS = CalibrationSettings(tokens=8192, probe_windows=1, check_windows=8)
TWIN_SEED = 0
MPO_SITES = 3  # CompactifAI's only worked example: 216×216 as three sites of 6·6
EXACT_PERMUTATIONS, DRAWS = 7, 20_000
NO_LOSS = "An encoder has no next-token loss: damage is the relative squared error of its output."


def study_of(model, text=None, device: str = "auto", progress: Progress = silent) -> Study:
    """The study that checks run in."""
    return Study(model, text, SETTINGS, device, progress=progress)


class Bench:
    """The dense model of a study on text that was not calibrated on; `cut` measures what replaced weights do to it."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self.study, self.probe, self.progress = study, study.check, progress
        self.causal = study.checkpoint.kind == "causal"

    def cut(self, matrices: Iterable[tuple[str, torch.Tensor]], layer: int | None = None) -> dict[str, float]:
        """{"damage", "rise"} with these weights (name, Ŵ) in place; as before when it returns or raises. `layer`: none
        before it is touched."""
        try:
            for name, matrix in matrices:
                self.probe.replace(name, matrix)
            return self.measure(layer)
        finally:
            self.probe.restore()

    def measure(self, layer: int | None = None) -> dict[str, float]:
        """The same for the model as it is now."""
        found = self.probe.measure(layer)
        rise = found.loss - self.probe.dense.loss if self.causal else found.divergence
        return {"damage": found.divergence, "rise": rise}

    def words(self, found: dict[str, float]) -> str:
        """A measured change in words."""
        if not self.causal:
            return f"output error {found['damage']:.3g}"
        before = self.probe.dense.loss
        after = [f"{math.exp(min(loss, 700)):,.2f}" for loss in (before, before + found["rise"])]
        return f"perplexity {after[0]} → {after[1]}, KL {found['damage']:.3g}"

    @property
    def unit(self) -> str:
        return "KL divergence, nats a token" if self.causal else "relative squared error of the output"

    def document(self, verdict: str, measured: dict, figures: dict, table: dict, charts: list[dict], notes=()) -> dict:
        """The part of a claim's document that its experiment fills."""
        text = self.study.text
        return {
            "text": {"name": text.name, "sha256": text.sha256},
            "tokens": self.probe.tokens,
            "measure": "kl" if self.causal else "output error",
            "dense_loss": self.probe.dense.loss if self.causal else None,
            "verdict": verdict,
            "measured": measured,
            "figures": figures,
            "table": table,
            "charts": charts,
            "notes": [*notes, *([] if self.causal else [NO_LOSS])],
        }


# ---- what checks share --------------------------------------------------------------------------------------------


def matrix_of(study: Study, name: str) -> torch.Tensor:
    """W (out, in), float64."""
    return study.checkpoint.read(name).double()


def kept_chi(shape: Sequence[int], kept: float) -> int:
    """χ of two factors that keep this share of a weight's parameters, at least 1."""
    n_out, n_in = shape
    return max(1, int(kept * n_out * n_in / (n_out + n_in)))


def fitting(spec: Spec, limit: float, size: Callable[[Spec], float]) -> Spec:
    """The spec at the largest χ whose size stays within the limit; χ = 1 where none does."""
    low, high = 1, spec.max_chi + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(spec.with_chi(middle)) <= limit else (low, middle)
    return spec.with_chi(low)


def published_mpo(W: torch.Tensor, limit: float, size: Callable[[Spec], float], quantize=None) -> torch.Tensor:
    """Ŵ by sequential SVDs on three balanced sites, as CompactifAI describes, within a size; cores rounded to nearest
    where `quantize` names a format of whole rows."""
    spec = fitting(Mpo.for_shape(*W.shape, 1, sites=MPO_SITES, quantize=quantize), limit, size)
    cores = spec.start(W)
    if quantize:
        rounded = [
            quantize_rtn(core.reshape(spec.core_matrix(k)), 8, None).dense().reshape(core.shape)
            for k, core in enumerate(cores)
        ]
        cores = [core.double() for core in rounded]
    return spec.dense(cores)


def layers_of(study: Study) -> list[int]:
    return sorted({weight.layer for weight in study.weights if weight.layer is not None})


def middle(study: Study) -> list:
    """The attention weights of the layer in the middle; all weights of that layer where none is attention's."""
    layers = layers_of(study)
    if not layers:
        raise InputError(f"{study.checkpoint.name} has no layer whose weights can be compressed.")
    weights = [weight for weight in study.weights if weight.layer == layers[len(layers) // 2]]
    return [weight for weight in weights if weight.role in ("q", "k", "v", "o", "qkv")] or weights


def ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean."""
    values = np.asarray(values, dtype=np.float64)
    below = (values[:, None] > values).sum(1)
    equal = (values[:, None] == values).sum(1)
    return below + (equal + 1) / 2


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, float | None]:
    """(ρ, two-sided p by permutation): Pearson's correlation of the ranks. (None, None) for fewer than three pairs or
    where one side does not vary. All permutations up to seven pairs, else 20,000 draws with a fixed seed."""
    x, y = (ranks(values) - (len(values) + 1) / 2 for values in (a, b))
    scale = math.sqrt((x @ x) * (y @ y))
    if len(x) < 3 or scale == 0:
        return None, None
    rho = float(x @ y / scale)
    if len(x) <= EXACT_PERMUTATIONS:
        shuffled = np.array(list(permutations(y)))
    else:
        rng = np.random.default_rng(0)
        shuffled = np.array([rng.permutation(y) for _ in range(DRAWS)])
    p = float((np.abs(shuffled @ x) / scale >= abs(rho) - 1e-12).mean())
    return rho, max(p, 1 / len(shuffled))


def correlation(pair: tuple[float | None, float | None], n: int) -> str:
    return "too few to say" if pair[0] is None else f"ρ = {pair[0]:+.2f} (p = {pair[1]:.2g}, {n} points)"


def factor(of: float, over: float) -> str:
    """3.2 times, and words for what has no number."""
    return f"{of / over:.3g} times" if over > 0 else "no damage to compare with"


def lines(title: str, x: str, y: str, series: list[tuple[str, list, list]], log: bool = False, points=False) -> dict:
    """A chart: lines (or points) of (name, x, y)."""
    rows = [{"name": name, "x": list(xs), "y": [float(v) for v in ys]} for name, xs, ys in series]
    return {"kind": "points" if points else "lines", "title": title, "x": x, "y": y, "log": log, "series": rows}


def bars(title: str, y: str, names: list[str], values: list[float], log: bool = False) -> dict:
    series = [{"name": y, "x": names, "y": [float(v) for v in values]}]
    return {"kind": "bars", "title": title, "x": "", "y": y, "log": log, "series": series}


def grid(columns: list[str], rows: Iterable[Iterable]) -> dict:
    return {"columns": columns, "rows": [list(row) for row in rows]}


# ---- KARIPAP ------------------------------------------------------------------------------------------------------


def depth(study: Study, progress: Progress) -> dict:
    """Excess, and damage at half the parameters, of every weight alone; by layer against depth."""
    bench, weights = Bench(study, progress), [weight for weight in study.weights if weight.layer is not None]
    if not weights:
        raise InputError(f"{study.checkpoint.name} has no layers to compare.")
    profile = study.profile(("weight",))
    decompositions = study.decompositions("weight")
    rows = []
    for number, weight in enumerate(weights):
        progress("weights, each alone at half", number, len(weights), weight.name)
        numbers = profile.weight(weight.name)["spectra"]["weight"]
        spec = LowRank.for_shape(*weight.shape, kept_chi(weight.shape, 0.5))
        found = bench.cut([(weight.name, decompositions.matrix(weight.name, spec))], weight.layer)
        rows.append({"name": weight.name, "layer": weight.layer, "role": weight.role, "parameters": weight.parameters,
                     "entropy": numbers["entropy"], "normalized_entropy": numbers["normalized_entropy"],
                     "excess": numbers["excess"]} | found)  # fmt: skip
    progress("weights, each alone at half", len(weights), len(weights))
    layers = layers_of(study)
    by_layer = {layer: [row for row in rows if row["layer"] == layer] for layer in layers}
    excess = [np.average([r["excess"] for r in of], weights=[r["parameters"] for r in of]) for of in by_layer.values()]
    damage = [sum(r["damage"] for r in of) for of in by_layer.values()]
    half = len(layers) // 2
    early, late = sum(damage[:half]), sum(damage[len(layers) - half :])
    found = {
        "layers": spearman(layers, damage),
        "excess": spearman(layers, excess),
        "weights": spearman([r["normalized_entropy"] for r in rows], [r["damage"] for r in rows]),
    }
    sizes = {"layers": len(layers), "excess": len(layers), "weights": len(rows)}
    measured = {key: correlation(pair, sizes[key]) for key, pair in found.items()}
    measured["deepest"] = factor(late, early) if half else "one layer only"
    return bench.document(
        _depth_verdict(found["layers"], found["excess"]), measured,
        {"layers": layers, "excess": [float(v) for v in excess], "damage": damage, "weights": rows}
        | {f"rho_{key}": pair for key, pair in found.items()},
        grid(["weight", "layer", "role", "excess, nats", "entropy / ln rank", bench.unit],
             [[r["name"], r["layer"], r["role"], r["excess"], r["normalized_entropy"], r["damage"]] for r in rows]),
        [lines("Damage of half the parameters, by layer", "Layer", bench.unit,
               _by_role(rows, "damage"), log=True),
         lines("Excess over noise, by layer", "Layer", "Excess, nats", _by_role(rows, "excess"))],
    )  # fmt: skip


def _by_role(rows: list[dict], key: str) -> list[tuple[str, list, list]]:
    """A line a role; experts of one layer and role are summed (damage) or averaged."""
    series = []
    for role in dict.fromkeys(row["role"] for row in rows):
        mine = [row for row in rows if row["role"] == role]
        layers = sorted({row["layer"] for row in mine})
        merge = sum if key == "damage" else np.mean
        series.append((role, layers, [merge([r[key] for r in mine if r["layer"] == layer]) for layer in layers]))
    return series


def _depth_verdict(damage: tuple, excess: tuple) -> str:
    if damage[0] is None:
        return "This model has too few layers to speak of depth."
    if damage[1] > 0.05:
        return (
            f"Not seen here: damage does not go with depth (ρ = {damage[0]:+.2f}, p = {damage[1]:.2g}); "
            f"excess against depth has ρ = {excess[0] or 0:+.2f}."
        )
    if damage[0] < 0:
        return f"Seen here: deeper layers lose less (ρ = {damage[0]:+.2f}, p = {damage[1]:.2g})."
    return f"The opposite is seen here: deeper layers lose more (ρ = {damage[0]:+.2f}, p = {damage[1]:.2g})."


def headline(study: Study, progress: Progress) -> dict:
    """One layer's attention at 30 % of its parameters in four forms, not healed."""
    bench, weights, kept = Bench(study, progress), middle(study), 0.3

    def limit(weight) -> float:
        return kept * weight.parameters

    def parameters(spec: Spec) -> int:
        return spec.parameters

    def peps(weight):
        spec = fitting(NETWORKS["peps"].for_shape(*weight.shape, 1), limit(weight), parameters)
        return spec.dense([core.double() for core in spec.decompose(matrix_of(study, weight.name))])

    def svd(metric: str):
        spec_of = {w.name: LowRank.for_shape(*w.shape, kept_chi(w.shape, kept)) for w in weights}
        return lambda weight: study.decompositions(metric).matrix(weight.name, spec_of[weight.name])

    forms = {
        "accuracy": ("2×2 PEPS", peps),
        "mpo": ("MPO", lambda weight: published_mpo(matrix_of(study, weight.name), limit(weight), parameters)),
        "svd": ("SVD", svd("weight")),
        "whitened": ("SVD, fitted to outputs", svd("functional")),
    }
    if "peps" not in NETWORKS:
        del forms["accuracy"]
    rows, total = {}, len(forms) * len(weights)
    for key, (label, make) in forms.items():
        matrices, error = [], []
        for weight in weights:
            progress("networks at 30 %", len(rows) * len(weights) + len(matrices), total, f"{label}: {weight.name}")
            W = matrix_of(study, weight.name)
            matrices.append((weight.name, make(weight)))
            error.append(float((W - matrices[-1][1]).square().sum() / W.square().sum()))
        rows[key] = {"label": label, "error": float(np.mean(error))} | bench.cut(matrices, weights[0].layer)
    progress("networks at 30 %", total, total)
    best = min(rows, key=lambda key: rows[key]["damage"])
    share = sum(weight.parameters for weight in weights) / study.checkpoint.block_parameters
    verdict = (
        f"Without healing, the least damage at 30 % comes from: {rows[best]['label']} "
        f"({bench.unit.split(',')[0]} {rows[best]['damage']:.3g}). Only {share:.1%} of the block parameters were cut."
    )
    measured = {key: f"{bench.words(row)}; {row['error']:.1%} of ‖W‖² lost" for key, row in rows.items()}
    names = [row["label"] for row in rows.values()]
    return bench.document(
        verdict, measured, {"rows": rows, "weights": [weight.name for weight in weights], "share": share},
        grid(["network", "squared error of W", bench.unit, "rise in loss"],
             [[r["label"], r["error"], r["damage"], r["rise"]] for r in rows.values()]),
        [bars("Damage at 30 % of the parameters of one attention", bench.unit, names,
              [r["damage"] for r in rows.values()]),
         bars("Squared error of the weights", "Part of ‖W‖² lost", names, [r["error"] for r in rows.values()])],
    )  # fmt: skip


# ---- CompactifAI --------------------------------------------------------------------------------------------------


def sensitivity(study: Study, progress: Progress) -> dict:
    """Each layer alone at 50 % and 10 %, each role alone at 50 %, and the whole model with and without down."""
    bench, weights, layers = Bench(study, progress), study.weights, layers_of(study)
    if not layers:
        raise InputError(f"{study.checkpoint.name} has no layers to compare.")
    last = "down" if any(weight.role == "down" for weight in weights) else "fc2"
    roles = list(dict.fromkeys(weight.role for weight in weights))
    steps, done = 2 * len(layers) + len(roles) + 2, 0

    def cut(chosen: list, kept: float, label: str, layer: int | None = None) -> dict:
        nonlocal done
        progress("cuts", done, steps, label)
        done += 1
        spec = ((w.name, published_mpo(matrix_of(study, w.name), kept * w.parameters, lambda s: s.parameters))
                for w in chosen)  # fmt: skip
        return {"kept": kept, "parameters": sum(w.parameters for w in chosen)} | bench.cut(spec, layer)

    by_layer = {
        kept: [
            cut([w for w in weights if w.layer == layer], kept, f"layer {layer} at {kept:.0%}", layer)
            for layer in layers
        ]
        for kept in (0.5, 0.1)
    }
    by_role = {role: cut([w for w in weights if w.role == role], 0.5, f"{role} at 50 %") for role in roles}
    for row in by_role.values():
        row["per_million"] = row["damage"] / (0.5 * row["parameters"]) * 1e6
    whole = _excluded(study, cut, last)
    progress("cuts", steps, steps)
    third = max(1, len(layers) // 3)
    mean = {kept: [float(np.mean([r["damage"] for r in rows[part]])) for part in (slice(third), slice(-third, None))]
            for kept, rows in by_layer.items()}  # fmt: skip
    order = sorted(by_role, key=lambda role: -by_role[role]["per_million"])
    early, late = mean[0.5]
    name = bench.unit.split(",")[0]
    measured = {
        "early": f"{name} {early:.3g} a layer",
        "late": f"{name} {late:.3g} a layer, {factor(late, early)} the first third's",
        "late_10": f"{name} {mean[0.1][1]:.3g} a layer (first third {mean[0.1][0]:.3g})",
        "down": f"{order.index(last) + 1} of {len(order)}; first is {order[0]}" if last in order else "no such role",
        "excluded": whole["words"],
    }
    more = "more" if early > late else "less"
    verdict = f"Early layers suffer {more} than late ones at 50 % ({early:.3g} against {late:.3g}). {whole['verdict']}"
    rows = [[f"layer {layer}", kept, row["damage"], row["rise"]] for kept, of in by_layer.items()
            for layer, row in zip(layers, of, strict=True)]  # fmt: skip
    rows += [[role, 0.5, row["damage"], row["rise"]] for role, row in by_role.items()]
    rows += [[label, row["kept"], row["damage"], row["rise"]] for label, row in whole["rows"].items()]
    return bench.document(
        verdict, measured,
        {"layers": layers, "by_layer": {str(k): v for k, v in by_layer.items()}, "by_role": by_role,
         "whole": whole["rows"], "last": last},
        grid(["cut alone", "kept", bench.unit, "rise in loss"], rows),
        [lines("Each layer alone", "Layer", bench.unit,
               [(f"kept {kept:.0%}", layers, [r["damage"] for r in of]) for kept, of in by_layer.items()], log=True),
         bars("Each role alone at 50 %, per million parameters removed", bench.unit, order,
              [by_role[role]["per_million"] for role in order])],
    )  # fmt: skip


def _excluded(study: Study, cut: Callable, last: str, kept: float = 0.7) -> dict:
    """All weights at `kept`, against `last` left dense and the others cut so deep that as much is kept."""
    total = sum(w.parameters for w in study.weights)
    left = sum(w.parameters for w in study.weights if w.role == last)
    others = [w for w in study.weights if w.role != last]
    deeper = (kept * total - left) / (total - left) if others else 0
    rows = {"all alike": cut(study.weights, kept, "all weights at 70 %")}
    if not left or deeper <= 0.05:
        reason = f"{last} alone is {left / total:.0%} of the weights" if left else "the model has no such role"
        return {"rows": rows, "words": f"cannot be tried: {reason}", "verdict": f"The rule cannot be tried: {reason}."}
    rows[f"{last} left dense"] = cut(others, deeper, f"all but {last} at {deeper:.0%}")
    alike, without = (row["damage"] for row in rows.values())
    pays = without < alike
    return {
        "rows": rows,
        "words": f"{without:.3g} against {alike:.3g}: it {'pays' if pays else 'does not pay'} here",
        "verdict": f"Leaving {last} out {'pays' if pays else 'does not pay'}: {without:.3g} against {alike:.3g} at "
        f"{kept:.0%} of the block parameters.",
    }


def per_byte(study: Study, progress: Progress) -> dict:
    """The MPO as published and its rivals at the bytes of 8 and of 4 bits; the block weights only."""
    bench, weights = Bench(study, progress), study.weights

    def bytes16(spec: Spec) -> int:
        return spec.bytes(2)

    sizes: dict[str, dict[str, int]] = {}

    def integers(key: str, bits: int, group: int | None, calibrated: bool):
        for weight in weights:
            W = matrix_of(study, weight.name)
            if calibrated:
                quantized = quantize_gptq(W, bits, group, study.moments.metric(weight.name, "functional").C)
            else:
                quantized = quantize_rtn(W, bits, group)
            sizes.setdefault(key, {})[weight.name] = quantized.bytes
            yield weight.name, quantized.dense()

    def mpo(key: str, like: str, quantize=None):
        for weight in weights:
            W, limit = matrix_of(study, weight.name), sizes[like][weight.name]
            spec = fitting(Mpo.for_shape(*W.shape, 1, sites=MPO_SITES, quantize=quantize), limit, bytes16)
            sizes.setdefault(key, {})[weight.name] = bytes16(spec)
            yield weight.name, published_mpo(W, limit, bytes16, quantize)

    def svd(key: str, like: str):
        for weight in weights:
            spec = fitting(LowRank.for_shape(*weight.shape, 1), sizes[like][weight.name], bytes16)
            sizes.setdefault(key, {})[weight.name] = bytes16(spec)
            yield weight.name, study.decompositions("functional").matrix(weight.name, spec)

    forms = {
        "int8": ("8 bits, rounded", lambda key: integers(key, 8, None, False)),
        "int4": ("4 bits, GPTQ", lambda key: integers(key, 4, 64, True)),
        "int4_rounded": ("4 bits, rounded", lambda key: integers(key, 4, 64, False)),
        "int3": ("3 bits, GPTQ", lambda key: integers(key, 3, 64, True)),
        "mpo_half": ("MPO", lambda key: mpo(key, "int8")),
        "mpo_quarter": ("MPO", lambda key: mpo(key, "int4")),
        "mpo_int8_quarter": ("MPO, 8-bit cores", lambda key: mpo(key, "int4", "int8")),
        "svd_half": ("SVD, fitted to outputs", lambda key: svd(key, "int8")),
        "svd_quarter": ("SVD, fitted to outputs", lambda key: svd(key, "int4")),
    }
    dense, rows = 2 * sum(weight.parameters for weight in weights), {}
    for number, (key, (label, make)) in enumerate(forms.items()):
        progress("forms", number, len(forms), label)
        found = bench.cut(make(key))
        rows[key] = {"label": label, "bytes_kept": sum(sizes[key].values()) / dense} | found
    progress("forms", len(forms), len(forms))
    half, quarter = (rows[a]["damage"] / max(rows[b]["damage"], 1e-12)
                     for a, b in (("mpo_half", "int8"), ("mpo_int8_quarter", "int4")))  # fmt: skip
    verdict = (
        f"Not per byte, without healing: in the bytes of 8 bits the MPO does {_times(half)} the damage, in those of 4 "
        f"bits, its cores in 8, {_times(quarter)}."
        if min(half, quarter) > 1
        else f"Damage of the MPO over that of plain integers in the same bytes: {half:.3g} at 8 bits, {quarter:.3g} "
        "at 4 bits."
    )
    measured = {key: f"{row['bytes_kept']:.1%} of the bytes: {bench.words(row)}" for key, row in rows.items()}
    series: dict[str, list] = {}
    for row in sorted(rows.values(), key=lambda row: row["bytes_kept"]):
        series.setdefault(row["label"], []).append((row["bytes_kept"], row["damage"]))
    return bench.document(
        verdict, measured, {"rows": rows},
        grid(["form", "bytes kept", bench.unit, "rise in loss"],
             [[r["label"], r["bytes_kept"], r["damage"], r["rise"]] for r in rows.values()]),
        [lines("Damage by bytes", "Bytes kept of the block weights", bench.unit,
               [(name, *zip(*points, strict=True)) for name, points in series.items()], log=True, points=True)],
    )  # fmt: skip


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:,.0f} times"


# ---- TensorGPT ----------------------------------------------------------------------------------------------------


def embedding(study: Study, progress: Progress) -> dict:
    """The look-up table as one tensor train a token, at rank 1 and more, beside SVD and integers at equal bytes."""
    from karipap_core.networks.tt_embedding import TtEmbedding

    bench, model = Bench(study, progress), study.model[0]
    table = model.get_input_embeddings().weight.detach().double().cpu()
    rows_, width = table.shape
    legs = prime_factors(width)
    dense = 2 * table.numel()
    trains = []
    for chi in range(1, 65):
        spec = TtEmbedding.for_shape(rows_, width, chi, in_=legs, form="token")
        if spec.parameters >= table.numel() or (trains and spec.chi == trains[-1].chi):
            break
        trains.append(spec)
    if not trains:
        raise InputError(f"{study.checkpoint.name} has {width} numbers a token: too few to split into smaller vectors.")
    # Rank 1, the largest rank at least 3.31 times smaller (the paper's other figure), and those between.
    trains = [s for s in trains if s.chi == trains[0].chi or s.parameters * 3.31 <= table.numel()]
    found = []

    def add(method: str, label: str, size: int, made: torch.Tensor, **more) -> None:
        with lookup(model, made):
            harm = bench.measure()
        error = float((table - made.double()).square().sum() / table.square().sum())
        found.append({"method": method, "label": label, "bytes": size, "smaller": dense / size, "error": error}
                     | harm | more)  # fmt: skip

    jobs = 2 * len(trains) + 2
    for spec in trains:
        rank = max(spec.chi)
        progress("tables", len(found), jobs, f"tensor trains of rank {rank}")
        cores = [core.double() for core in spec.decompose(table)]
        add("token", f"a train a token, rank {rank}", spec.bytes(2), spec.dense(cores), rank=rank)
        progress("tables", len(found), jobs, "SVD in the same bytes")
        flat = fitting(LowRank.for_shape(rows_, width, 1), spec.bytes(2), lambda s: s.bytes(2))
        add("svd", f"SVD, χ = {flat.chi[0]}", flat.bytes(2), flat.dense(flat.decompose(table)), rank=rank)
    for bits, group in ((4, 64), (8, None)):
        progress("tables", len(found), jobs, f"{bits} bits")
        quantized = quantize_rtn(table, bits, group)
        add(f"int{bits}", f"{bits} bits", quantized.bytes, quantized.dense())
    progress("tables", jobs, jobs)
    token, svd = ([row for row in found if row["method"] == method] for method in ("token", "svd"))
    int4 = next(row for row in found if row["method"] == "int4")
    several = trains[-1].parameters * 3.31 <= table.numel()
    measured = {
        "rank1_factor": f"{token[0]['smaller']:.2f} ({width} numbers a token as {'·'.join(map(str, legs))})",
        "rank1": bench.words(token[0]),
        "rank1_svd": bench.words(svd[0]),
        "three": f"rank {token[-1]['rank']}, {token[-1]['smaller']:.2f} times: {bench.words(token[-1])}"
        if several else "no rank is that small here",
        "three_svd": bench.words(svd[-1]) if several else "–",
        "int4": f"{int4['smaller']:.2f} times: {bench.words(int4)}",
    }  # fmt: skip
    wins = "less" if token[0]["damage"] < svd[0]["damage"] else "more"
    near = "less" if token[-1]["damage"] < int4["damage"] else "more"
    verdict = (
        f"Rank 1 is {token[0]['smaller']:.1f} times smaller and loses {token[0]['error']:.0%} of the table; it does "
        f"{wins} damage than an SVD of the same size ({token[0]['damage']:.3g} against {svd[0]['damage']:.3g}). At "
        f"{token[-1]['smaller']:.1f} times, {near} damage than 4 bits at {int4['smaller']:.1f} times "
        f"({token[-1]['damage']:.3g} against {int4['damage']:.3g})."
    )
    tied = model.get_output_embeddings() if bench.causal else None
    notes = ["The head shares the table here; it was left dense, so that only the look-up is judged, and then the "
             "table must be stored once more for it."] if tied is not None and (
        tied.weight is model.get_input_embeddings().weight) else []  # fmt: skip
    series = [(name, [r["smaller"] for r in of], [r["damage"] for r in of])
              for name, of in (("a train a token", token), ("SVD of the table", svd),
                               ("4 and 8 bits", [r for r in found if r["method"].startswith("int")]))]  # fmt: skip
    return bench.document(
        verdict, measured, {"rows": found, "shape": [rows_, width], "legs": list(legs)},
        grid(["table as", "times smaller", "squared error", bench.unit, "rise in loss"],
             [[r["label"], r["smaller"], r["error"], r["damage"], r["rise"]] for r in found]),
        [lines("Damage by size of the table", "Times smaller", bench.unit, series, log=True, points=True)], notes,
    )  # fmt: skip


def prime_factors(n: int) -> tuple[int, ...]:
    """The prime factors of n, descending; at least two (a prime gets a 1): what makes a product state smallest."""
    found, rest, divisor = [], n, 2
    while divisor * divisor <= rest:
        if rest % divisor:
            divisor += 1
        else:
            found.append(divisor)
            rest //= divisor
    found.append(rest)
    found.sort(reverse=True)
    return tuple(found + [1] * (2 - len(found)))


@contextmanager
def lookup(model, table: torch.Tensor) -> Iterator[None]:
    """Within the context tokens are looked up in `table`; a head that is tied to the model's own table keeps that."""
    module = model.get_input_embeddings()
    kept = module.weight
    module.weight = torch.nn.Parameter(table.to(kept), requires_grad=False)
    try:
        yield
    finally:
        module.weight = kept


# ---- disentanglers ------------------------------------------------------------------------------------------------


def padded_mpo(n_out: int, n_in: int, chi: int) -> tuple[Mpo, tuple[int, int]]:
    """The paper's MPO: both sides padded to powers of two (returned), one site for each pair of qubits, the surplus
    qubits of the longer side on sites of their own at the left."""
    qubits = [max(1, math.ceil(math.log2(n))) for n in (n_out, n_in)]
    sites = max(*qubits, 2)
    sides = [(1,) * (sites - q) + (2,) * q for q in qubits]
    padded = 2 ** qubits[0], 2 ** qubits[1]
    return Mpo.for_shape(*padded, chi, out=sides[0], in_=sides[1]), padded


def angles(size: int) -> int:
    """Free parameters of an orthogonal matrix."""
    return size * (size - 1) // 2


def product_spectrum(sigma: np.ndarray) -> np.ndarray:
    """The singular values s ⊗ s′ ⊗ … (each of two numbers) nearest to `sigma`, descending, 2ⁿ ≥ len(sigma) of them.

    Orthogonal circuits on whole registers can bring χ′ = 1 to any spectrum of that form and none other, and for given
    values the best they do is to align singular vectors (von Neumann's trace inequality): what is left is
    ‖σ − s ⊗ s′ …‖. From geometric series, in turns: sort the product to pair it with σ, best rank-1 tensor for that
    pairing; both never lose.
    """
    n = max(1, math.ceil(math.log2(max(len(sigma), 2))))
    target = np.zeros(2**n)
    target[: len(sigma)] = np.sort(sigma)[::-1]
    best, score = np.zeros(2**n), -1.0
    for decay in (0.0, 0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0):
        sides = [np.array([1.0, decay ** (2**k)]) for k in range(n)]
        for _ in range(30):
            place = np.argsort(-_product(sides), kind="stable")
            paired = np.empty(2**n)
            paired[place] = target
            tensor = paired.reshape((2,) * n)
            for k in range(n):
                rest = tensor
                for other in reversed([j for j in range(n) if j != k]):
                    rest = np.tensordot(rest, sides[other] / max(np.linalg.norm(sides[other]), 1e-300), (other, 0))
                sides[k] = rest  # carries the scale; the others count as unit vectors
                scale = np.linalg.norm(rest)
                sides = [side if j == k else side / max(np.linalg.norm(side), 1e-300) for j, side in enumerate(sides)]
            if scale <= score * (1 + 1e-9):
                break
            best, score = -np.sort(-_product(sides)), scale
    return best


def _product(sides: list[np.ndarray]) -> np.ndarray:
    product = np.ones(1)
    for side in sides:
        product = np.kron(product, side)
    return product


def disentanglers(study: Study, progress: Progress) -> dict:
    """χ′ = 1 between ideal circuits, χ = 1 without, and an SVD with the circuits' parameters, on one weight."""
    bench, steps = Bench(study, progress), 4
    weight = middle(study)[0]
    n_out, n_in = weight.shape
    progress("forms", 0, steps, "counting")
    counted = {str(chi): padded_mpo(576, 192, chi)[0].parameters for chi in (1, 2, 5, 10, 50, 256)}
    of_paper = angles(1024) + angles(256)
    W = matrix_of(study, weight.name)
    spec, padded = padded_mpo(n_out, n_in, 1)
    circuits = angles(padded[0]) + angles(padded[1])
    progress("forms", 1, steps, "circuits and χ′ = 1")
    U, sigma, V = torch.linalg.svd(W, full_matrices=False)
    product = torch.as_tensor(product_spectrum(sigma.numpy())[: len(sigma)])
    matrices = {"with": (U * product) @ V}
    progress("forms", 2, steps, "χ = 1 without circuits")
    wide = torch.zeros(padded, dtype=W.dtype)
    wide[:n_out, :n_in] = W
    matrices["without"] = spec.dense(spec.start(wide))[:n_out, :n_in]
    progress("forms", 3, steps, "SVD")
    low = fitting(LowRank.for_shape(n_out, n_in, 1), circuits, lambda s: s.parameters)
    matrices["svd"] = low.dense([core.double() for core in low.decompose(W)])
    parameters = {"with": spec.parameters + circuits, "without": spec.parameters, "svd": low.parameters}
    rows = {
        key: {
            "parameters": parameters[key],
            "error": float((W - matrix).square().sum() / W.square().sum()),
        }
        | bench.cut([(weight.name, matrix)], weight.layer)
        for key, matrix in matrices.items()
    }
    progress("forms", steps, steps)
    measured = {
        "chi1": ", ".join(f"{count:,}" for count in counted.values()),
        "circuits": f"{of_paper:,}",
        "total": f"{(counted['1'] + of_paper) / (576 * 192):.2f} (circuits counted)",
        "here": f"{spec.parameters:,} MPO + {circuits:,} circuits, "
        f"{(spec.parameters + circuits) / weight.parameters:.0%} of the weight's {weight.parameters:,}",
    } | {key: f"{_percent(bench, row)}; {row['error']:.1%} of ‖W‖² lost" for key, row in rows.items()}  # fmt: skip
    measured["svd"] += f" (χ = {low.chi[0]})"
    verdict = (
        f"The published counts are met to the last digit. With the circuits counted, χ′ = 1 needs "
        f"{rows['with']['parameters']:,} numbers for a weight of {weight.parameters:,}; an SVD with no more does "
        f"{_less(rows['svd']['damage'], rows['with']['damage'])} damage ({rows['svd']['damage']:.3g} against "
        f"{rows['with']['damage']:.3g})."
    )
    names = ["MPO, χ′ = 1", "its circuits", "the weight itself"]
    return bench.document(
        verdict, measured,
        {"counted": counted, "circuits_of_paper": of_paper, "weight": weight.name, "shape": list(weight.shape),
         "padded": list(padded), "circuits": circuits, "rows": rows},
        grid(["form", "parameters, all counted", "squared error of W", bench.unit, "rise in loss"],
             [[label, rows[key]["parameters"], rows[key]["error"], rows[key]["damage"], rows[key]["rise"]]
              for key, label in (("with", "χ′ = 1 with circuits"), ("without", "χ = 1 without circuits"),
                                 ("svd", f"SVD, χ = {low.chi[0]}"))]),
        [bars(f"Numbers for {weight.name}", "Parameters", names,
              [spec.parameters, circuits, weight.parameters], log=True)],
        [f"Measured on {weight.name}, {n_out} × {n_in}, padded to {padded[0]} × {padded[1]}."],
    )  # fmt: skip


def _percent(bench: Bench, row: dict) -> str:
    if not bench.causal:
        return bench.words(row)
    return f"{math.expm1(min(row['rise'], 700)):+.2%} perplexity, KL {row['damage']:.3g}"


def _less(ours: float, theirs: float) -> str:
    return "less" if ours < theirs else "more"


# ---- structure, whitening -----------------------------------------------------------------------------------------


def structure(study: Study, progress: Progress) -> dict:
    """Excess of the trained weights and of a freshly initialized twin's, and what half the parameters leave out."""
    from karipap_core.hf import sites

    bench = Bench(study, progress)
    profile, weights = study.profile(("weight",)), study.weights
    progress("twin", 0, len(weights), "initializing")
    found = sites(twin(study), study.checkpoint)
    rows = []
    for number, weight in enumerate(weights):
        progress("twin", number, len(weights), weight.name)
        row = {"name": weight.name, "layer": weight.layer, "role": weight.role, "parameters": weight.parameters}
        chi, null = kept_chi(weight.shape, 0.5), null_entropy(*weight.shape)
        row["deviation"] = null_deviation(*weight.shape)
        both = {"trained": profile.sigma(weight.name), "twin": singular_values(found[weight.name].get(), "cpu")}
        for who, sigma in both.items():
            left = tail(sigma)
            row[f"{who}_excess"] = null - entropy(sigma) if left[0] > 0 else None
            row[f"{who}_error"] = float(left[chi] / left[0]) if left[0] > 0 else 0.0
        rows.append(row)
    progress("twin", len(weights), len(weights))
    kept = [row for row in rows if row["trained_excess"] is not None and row["twin_excess"] is not None]
    if not kept:
        raise InputError(f"{study.checkpoint.name} or its fresh twin has only weights that are zero.")
    mean = {key: float(np.mean([row[key] for row in kept]))
            for key in ("trained_excess", "twin_excess", "trained_error", "twin_error")}  # fmt: skip
    above = {who: sum(row[f"{who}_excess"] > 3 * row["deviation"] for row in kept) for who in ("trained", "twin")}
    measured = {
        "trained": f"{mean['trained_excess']:.4f} nats",
        "twin": f"{mean['twin_excess']:+.4f} nats",
        "above": f"{above['trained']} of {len(kept)} trained, {above['twin']} of {len(kept)} of the twin",
        "error": f"{mean['trained_error']:.1%} / {mean['twin_error']:.1%}",
    }
    seen = above["trained"] > above["twin"] and mean["trained_excess"] > mean["twin_excess"]
    verdict = (
        f"{'Seen here' if seen else 'Not seen here'}: {measured['above']} stand out of the noise. Half the parameters "
        f"leave {mean['trained_error']:.1%} of a trained weight's ‖W‖² out, {mean['twin_error']:.1%} of a fresh one's."
    )
    skipped = len(rows) - len(kept)
    return bench.document(
        verdict, measured, {"rows": rows, "mean": mean, "above": above, "seed": TWIN_SEED},
        grid(["weight", "excess, trained", "excess, twin", "one sd of noise", "error at half, trained", "twin"],
             [[r["name"], r["trained_excess"], r["twin_excess"], r["deviation"], r["trained_error"], r["twin_error"]]
              for r in rows]),
        [lines("Excess over noise", "Weight, by size of its trained excess", "Excess, nats",
               [(who, range(1, len(kept) + 1), [row[f"{key}_excess"] for row in sorted(
                   kept, key=lambda row: -row["trained_excess"])]) for who, key in
                (("trained", "trained"), ("fresh twin", "twin"))], points=True)],
        [f"{skipped} weights are all zeros and were left out."] if skipped else (),
    )  # fmt: skip


def twin(study: Study):
    """The same architecture freshly initialized by transformers, float32, with a fixed seed."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from karipap_core.hf import _explained, _quiet

    checkpoint = study.checkpoint
    folder = checkpoint.path.parent if checkpoint.path.is_file() else checkpoint.path
    auto = AutoModelForCausalLM if checkpoint.kind == "causal" else AutoModel
    with _quiet(), _explained(checkpoint.name), torch.random.fork_rng():
        torch.manual_seed(TWIN_SEED)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return auto.from_config(config, dtype=torch.float32)


def whitening(study: Study, progress: Progress) -> dict:
    """Plain and whitened SVD, uniform, at 80, 60 and 40 % of the block parameters."""
    bench, rows, cases = Bench(study, progress), {}, [(m, k) for k in (80, 60, 40) for m in ("plain", "white")]
    for method, kept in cases:
        progress("plans", len(rows), len(cases), f"{method}, kept {kept} %")
        decompositions = study.decompositions("weight" if method == "plain" else "functional")
        cut = ((w.name, decompositions.matrix(w.name, LowRank.for_shape(*w.shape, kept_chi(w.shape, kept / 100))))
               for w in study.weights)  # fmt: skip
        rows[f"{method}_{kept}"] = {"method": method, "kept": kept / 100} | bench.cut(cut)
    progress("plans", len(cases), len(cases))
    wins = [kept for kept in (80, 60, 40) if rows[f"white_{kept}"]["damage"] < rows[f"plain_{kept}"]["damage"]]
    ratio = rows["plain_80"]["damage"] / max(rows["white_80"]["damage"], 1e-12)
    verdict = (
        f"Whitening does less damage at {len(wins)} of 3 sizes; with 20 % removed the plain SVD does {ratio:.3g} times "
        "the damage."
    )
    series = [(name, [1 - rows[f"{m}_{k}"]["kept"] for k in (80, 60, 40)],
               [rows[f"{m}_{k}"]["damage"] for k in (80, 60, 40)]) for m, name in
              (("plain", "plain SVD"), ("white", "whitened"))]  # fmt: skip
    return bench.document(
        verdict, {key: bench.words(row) for key, row in rows.items()}, {"rows": rows, "wins": wins},
        grid(["method", "kept", bench.unit, "rise in loss"],
             [[r["method"], r["kept"], r["damage"], r["rise"]] for r in rows.values()]),
        [lines("Damage by what is removed", "Removed of the block parameters", bench.unit, series, log=True)],
    )  # fmt: skip


CHECKS: dict[str, Callable[[Study, Progress], dict]] = {
    "depth": depth,
    "headline": headline,
    "sensitivity": sensitivity,
    "bytes": per_byte,
    "embedding": embedding,
    "disentanglers": disentanglers,
    "structure": structure,
    "whitening": whitening,
}
