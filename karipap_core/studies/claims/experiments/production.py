"""The production article: errors of parts against the error of the whole, and where they cancel."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError
from karipap_core.models.pictures import Shown
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.outputs import put_out
from karipap_core.plan.probe import Probe
from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.studies.claims.experiments.bench import Bench, factor, grid, kept_chi, layers_of, lines
from karipap_core.studies.claims.experiments.registry import experiment

LEVELS = (0.7, 0.4)  # of each weight's parameters that are kept
ALIKE = 0.1  # a sum that misses the whole by less than this adds up


@experiment("sums")
def sums(study: Study, progress: Progress) -> dict:
    """Damages of weights and of layers alone against the whole's, and the layers' changes where the head reads."""
    bench, weights = Bench(study, progress), [weight for weight in study.measurable if weight.layer is not None]
    layers = layers_of(study)
    if len(layers) < 2:
        raise InputError(f"{study.checkpoint.name} has fewer than two layers: there is nothing to add up.")
    decompositions = study.decompositions("functional")
    total, done = len(LEVELS) * (len(weights) + 2 * len(layers) + 2), 0

    def cut(chosen: Sequence[Weight], kept: float) -> list[tuple[str, torch.Tensor]]:
        nonlocal done
        progress("cuts", done, total, chosen[0].name if len(chosen) == 1 else f"kept {kept:.0%}")
        done += 1
        return [
            (w.name, decompositions.matrix(w.name, LowRank.for_shape(*w.shape, kept_chi(w.shape, kept))))
            for w in chosen
        ]

    of_layer = {layer: [weight for weight in weights if weight.layer == layer] for layer in layers}
    rows: dict[str, dict] = {}
    for kept in LEVELS:
        singles = {w.name: bench.cut(cut([w], kept)) for w in weights}
        of_layers = [bench.cut(cut(of, kept)) for of in of_layer.values()]
        changes = Changes(bench.probe)
        parts = torch.stack([changes.of(cut(of, kept)) for of in of_layer.values()])
        whole = bench.cut(cut(weights, kept))
        rows[str(kept)] = {
            "whole": whole,
            "weights": sum(row["damage"] for row in singles.values()),
            "rises": sum(row["rise"] for row in singles.values()),
            "by_weight": {name: row["damage"] for name, row in singles.items()},
            "by_layer": [row["damage"] for row in of_layers],
            "within": [sum(singles[w.name]["damage"] for w in of) for of in of_layer.values()],
        } | together(parts, changes.of(cut(weights, kept)))
    progress("cuts", total, total)
    return bench.document(
        verdict(rows),
        _measured(rows, layers),
        {"rows": rows, "layers": layers},
        grid(
            ["part", "kept", bench.unit, "sum over its weights", "damage over that sum"],
            _table(rows, layers),
        ),
        [
            lines(
                "Damage of a layer over the sum over its weights",
                "Layer",
                "Over the sum",
                [
                    (
                        f"kept {float(kept):.0%}",
                        layers,
                        [_over(a, b) for a, b in zip(r["by_layer"], r["within"], strict=True)],
                    )
                    for kept, r in rows.items()
                ],
            ),
            lines(
                "How far a layer's change points the way of all others' together",
                "Layer",
                "Cosine",
                [(f"kept {float(kept):.0%}", layers, r["with_others"]) for kept, r in rows.items()],
            ),
        ],
        [
            "Changes are those of what the head reads (of an encoder: of its output), over all tokens; where the "
            "squared length of their sum is the sum of their squares, they are independent."
        ],
    )


class Changes:
    """What the head of a dense model reads on the probe's windows, and how that changes with replaced weights."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.dense = self._read()

    def of(self, matrices: Sequence[tuple[str, torch.Tensor]]) -> torch.Tensor:
        """The change (numbers,) with these weights in place of the dense ones; the model is dense again after."""
        try:
            for name, matrix in matrices:
                self.probe.replace(name, matrix)
            return self._read() - self.dense
        finally:
            self.probe.restore()

    @torch.no_grad()
    def _read(self) -> torch.Tensor:
        probe, found = self.probe, []
        with _seen(probe.model) as seen:
            for batch in probe.batches:
                if isinstance(batch, Shown):
                    continue  # of images only the text's places are scored
                seen.clear()
                output = put_out(probe.model, batch, probe.device)
                found.append((seen[-1] if seen else output).detach().float().cpu().flatten())
        return torch.cat(found)


@contextmanager
def _seen(model):
    """Within, a list of what the head is given; it stays empty where the model has none."""
    seen: list[torch.Tensor] = []
    try:
        head = model.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # how transformers says that there is none
        head = None
    handle = None if head is None else head.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def together(parts: torch.Tensor, whole: torch.Tensor) -> dict:
    """How changes e_k (parts, n) go together, and how their sum goes with the change `whole` (n,) of all at once.

    "aligned": ‖Σ e_k‖² / Σ ‖e_k‖², 1 where they are independent, the number of parts where they are equal, 0 where
    they cancel; "linear": ‖whole‖² / ‖Σ e_k‖², 1 where the model answers linearly (None where the sum is 0); "cosines":
    of each pair; "with_others": of each part with the sum of all others.
    """
    gram = (parts.double() @ parts.double().T).numpy()
    lengths = np.sqrt(np.maximum(np.diag(gram), 0))
    squares, summed = float((lengths**2).sum()), float(max(gram.sum(), 0))
    scale = np.maximum(np.outer(lengths, lengths), np.finfo(float).tiny)
    others = gram.sum(1) - np.diag(gram)
    rest = np.sqrt(np.maximum(gram.sum() - 2 * gram.sum(1) + np.diag(gram), 0))
    return {
        "aligned": summed / squares if squares else 0.0,
        "linear": float(whole.double().square().sum()) / summed if summed > 1e-12 * squares else None,
        "cosines": np.clip(gram / scale, -1, 1).tolist(),
        "with_others": np.clip(others / np.maximum(lengths * rest, np.finfo(float).tiny), -1, 1).tolist(),
    }


def opposite(cosines: Sequence[Sequence[float]]) -> tuple[int, int, float]:
    """(i, j, cosine) of the pair i < j whose changes point most against each other."""
    found = np.array(cosines)
    found[np.tril_indices(len(found))] = np.inf
    i, j = np.unravel_index(found.argmin(), found.shape)
    return int(i), int(j), float(found[i, j])


def _over(of: float, over: float) -> float:
    return of / over if over > 0 else 0.0


def _each(rows: Mapping[str, Mapping], words: Callable[[Mapping], str]) -> str:
    return " / ".join(words(row) for row in rows.values())


def _measured(rows: Mapping[str, Mapping], layers: Sequence[int]) -> dict[str, str]:
    def cancelling(row: Mapping) -> str:
        first, second, cosine = opposite(row["cosines"])
        said = f"layers {layers[first]} and {layers[second]} (cosine {cosine:+z.2f})"
        return said if cosine < 0 else f"none do; least alike {said}"

    def linear(row: Mapping) -> str:
        return "" if row["linear"] is None else f" (the whole's own change has {row['linear']:.2f} of that sum's)"

    return {
        "whole": _each(rows, lambda row: factor(row["whole"]["damage"], row["weights"])),
        "rises": _each(rows, lambda row: f"{row['whole']['rise']:.3g} against {row['rises']:.3g}"),
        "layers": _each(rows, lambda row: factor(row["whole"]["damage"], sum(row["by_layer"]))),
        "within": _each(
            rows,
            lambda row: f"{sum(a < b for a, b in zip(row['by_layer'], row['within'], strict=True))} of {len(layers)}",
        ),
        "aligned": _each(rows, lambda row: f"{row['aligned']:.2f}{linear(row)}"),
        "cancel": _each(rows, cancelling),
    }


def _table(rows: Mapping[str, Mapping], layers: Sequence[int]) -> list[list]:
    found: list[list] = []
    for kept, row in rows.items():
        damage = row["whole"]["damage"]
        found.append(["the whole model", float(kept), damage, row["weights"], _over(damage, row["weights"])])
        for layer, mine, its in zip(layers, row["by_layer"], row["within"], strict=True):
            found.append([f"layer {layer}", float(kept), mine, its, _over(mine, its)])
        found += [[name, float(kept), each, each, 1.0] for name, each in row["by_weight"].items()]
    return found


def verdict(rows: Mapping[str, Mapping]) -> str:
    """In words, from {"whole": {"damage"}, "weights", "by_layer", "aligned"} at each level kept."""
    ratios = {kept: _over(row["whole"]["damage"], row["weights"]) for kept, row in rows.items()}
    missed = [kept for kept, ratio in ratios.items() if not 1 - ALIKE <= ratio <= 1 + ALIKE]
    says = "Seen here" if len(missed) == len(ratios) else "Seen at some sizes" if missed else "Not seen here"
    parts = [f"{ratio:.2f} times (kept {float(kept):.0%})" for kept, ratio in ratios.items()]
    aligned = [row["aligned"] for row in rows.values()]
    way = (
        "the layers' changes strengthen one another"
        if min(aligned) > 1 + ALIKE
        else "the layers' changes cancel in part"
        if max(aligned) < 1 - ALIKE
        else "the layers' changes are nearly independent"
        if all(abs(each - 1) <= ALIKE for each in aligned)
        else "the layers' changes strengthen one another at one size and not at the other"
    )
    numbers = " and ".join(f"{each:.2f}" for each in aligned)
    return (
        f"{says}: the whole loses {' and '.join(parts)} what its weights, each cut alone, lose in sum. Where the head "
        f"reads, {way} (squared length of their sum over the sum of squares {numbers})."
    ).replace("%", " %")
