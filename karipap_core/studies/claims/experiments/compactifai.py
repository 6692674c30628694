"""CompactifAI (arXiv:2401.14109): sensitivity of layers and roles, and the MPO at equal bytes."""

from collections.abc import Callable

import numpy as np

from karipap_core.errors import InputError
from karipap_core.networks.base import Spec
from karipap_core.networks.lowrank import LowRank
from karipap_core.networks.mpo import Mpo
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.quantization.rounding import quantize_gptq, quantize_rtn
from karipap_core.studies.claims.experiments.bench import (
    MPO_SITES,
    Bench,
    bars,
    factor,
    fitting,
    grid,
    layers_of,
    lines,
    matrix_of,
    published_mpo,
)
from karipap_core.studies.claims.experiments.registry import experiment


@experiment("sensitivity")
def sensitivity(study: Study, progress: Progress) -> dict:
    """Each layer alone at 50 % and 10 %, each role alone at 50 %, and the whole model with and without down."""
    bench, weights, layers = Bench(study, progress), study.measurable, layers_of(study)
    if not layers:
        raise InputError(f"{study.checkpoint.name} has no layers to compare.")
    last = "down" if any(weight.role == "down" for weight in weights) else "fc2"
    roles = list(dict.fromkeys(weight.role for weight in weights))
    steps, done = 2 * len(layers) + len(roles) + 2, 0

    def cut(chosen: list, kept: float, label: str) -> dict:
        nonlocal done
        progress("cuts", done, steps, label)
        done += 1
        spec = (
            (w.name, published_mpo(matrix_of(study, w.name), kept * w.parameters, lambda s: s.parameters))
            for w in chosen
        )
        return {"kept": kept, "parameters": sum(w.parameters for w in chosen)} | bench.cut(spec)

    by_layer = {
        kept: [cut([w for w in weights if w.layer == layer], kept, f"layer {layer} at {kept:.0%}") for layer in layers]
        for kept in (0.5, 0.1)
    }
    by_role = {role: cut([w for w in weights if w.role == role], 0.5, f"{role} at 50 %") for role in roles}
    for row in by_role.values():
        row["per_million"] = row["damage"] / (0.5 * row["parameters"]) * 1e6
    whole = _excluded(study, cut, last)
    progress("cuts", steps, steps)
    third = max(1, len(layers) // 3)
    mean = {
        kept: [float(np.mean([r["damage"] for r in rows[part]])) for part in (slice(third), slice(-third, None))]
        for kept, rows in by_layer.items()
    }
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
    rows = [
        [f"layer {layer}", kept, row["damage"], row["rise"]]
        for kept, of in by_layer.items()
        for layer, row in zip(layers, of, strict=True)
    ]
    rows += [[role, 0.5, row["damage"], row["rise"]] for role, row in by_role.items()]
    rows += [[label, row["kept"], row["damage"], row["rise"]] for label, row in whole["rows"].items()]
    return bench.document(
        verdict,
        measured,
        {
            "layers": layers,
            "by_layer": {str(k): v for k, v in by_layer.items()},
            "by_role": by_role,
            "whole": whole["rows"],
            "last": last,
        },
        grid(["cut alone", "kept", bench.unit, "rise in loss"], rows),
        [
            lines(
                "Each layer alone",
                "Layer",
                bench.unit,
                [(f"kept {kept:.0%}", layers, [r["damage"] for r in of]) for kept, of in by_layer.items()],
                log=True,
            ),
            bars(
                "Each role alone at 50 %, per million removed",
                bench.unit,
                order,
                [by_role[role]["per_million"] for role in order],
            ),
        ],
    )


def _excluded(study: Study, cut: Callable, last: str, kept: float = 0.7) -> dict:
    """All weights at `kept`, against `last` left dense and the others cut so deep that as much is kept."""
    total = sum(w.parameters for w in study.measurable)
    left = sum(w.parameters for w in study.measurable if w.role == last)
    others = [w for w in study.measurable if w.role != last]
    deeper = (kept * total - left) / (total - left) if others else 0
    rows = {"all alike": cut(study.measurable, kept, "all weights at 70 %")}
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


@experiment("bytes")
def per_byte(study: Study, progress: Progress) -> dict:
    """The MPO as published and its rivals at the bytes of 8 and of 4 bits; the block weights only."""
    bench, weights = Bench(study, progress), study.measurable

    def bytes16(spec: Spec) -> int:
        return spec.bytes(2)

    sizes: dict[str, dict[str, int]] = {}

    def integers(key: str, bits: int, group: int | None, calibrated: bool):
        for weight in weights:
            W = matrix_of(study, weight.name)
            if calibrated:
                C = study.moments.metric(weight.name, "functional").C
                assert C is not None  # it is what the functional metric is made of
                quantized = quantize_gptq(W, bits, group, C)
            else:
                quantized = quantize_rtn(W, bits, group)
            sizes.setdefault(key, {})[weight.name] = quantized.bytes
            yield weight.name, quantized.dense()

    def mpo(key: str, like: str, quantize: str | None = None, sites: int | None = MPO_SITES):
        for weight in weights:
            W, limit = matrix_of(study, weight.name), sizes[like][weight.name]
            spec = fitting(Mpo.for_shape(*weight.shape, 1, sites=sites, quantize=quantize), limit, bytes16)
            sizes.setdefault(key, {})[weight.name] = bytes16(spec)
            yield weight.name, published_mpo(W, limit, bytes16, quantize, sites)

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
        "mpo_two_half": ("MPO, two sites", lambda key: mpo(key, "int8", sites=None)),
        "mpo_quarter": ("MPO", lambda key: mpo(key, "int4")),
        "mpo_int8_quarter": ("MPO, 8-bit cores", lambda key: mpo(key, "int4", "int8")),
        "svd_half": ("whitened SVD", lambda key: svd(key, "int8")),
        "svd_quarter": ("whitened SVD", lambda key: svd(key, "int4")),
    }
    dense = 2 * sum(weight.parameters for weight in weights)
    rows: dict[str, dict] = {}
    for number, (key, (label, make)) in enumerate(forms.items()):
        progress("forms", number, len(forms), label)
        found = bench.cut(make(key))
        rows[key] = {"label": label, "bytes_kept": sum(sizes[key].values()) / dense} | found
    progress("forms", len(forms), len(forms))
    half, quarter = (
        rows[a]["damage"] / max(rows[b]["damage"], 1e-12)
        for a, b in (("mpo_half", "int8"), ("mpo_int8_quarter", "int4"))
    )
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
        verdict,
        measured,
        {"rows": rows},
        *bench.by_bytes(
            rows.values(), [(name, [x for x, _ in points], [y for _, y in points]) for name, points in series.items()]
        ),
    )


def _times(ratio: float) -> str:
    return f"{ratio:.2g} times" if ratio < 100 else f"{ratio:,.0f} times"
