"""What all checks share: the dense model in memory with some weights replaced, a few measures, and plain charts."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch

from karipap_core.checkpoint.model import Weight
from karipap_core.errors import InputError
from karipap_core.networks import NETWORKS
from karipap_core.networks.base import Spec
from karipap_core.networks.mpo import Mpo
from karipap_core.plan.study import Study
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.progress import Progress, silent
from karipap_core.quantization.rounding import quantize_rtn
from karipap_core.search import largest

# Enough to tell effects of a few percent apart on the models that run on a desk, in well under a minute for the demo.
SETTINGS = CalibrationSettings(tokens=6144, probe_windows=1, check_windows=8)
Network = TypeVar("Network", bound=Spec)
MPO_SITES = 3  # CompactifAI's only worked example: 216×216 as three sites of 6·6
NO_LOSS = "An encoder has no next-token loss: damage is the relative squared error of its output."


def study_of(model, text=None, device: str = "auto", progress: Progress = silent) -> Study:
    """The study that checks run in."""
    return Study(model, text, SETTINGS, device, progress=progress)


Series = tuple[str, Iterable[float], Iterable[float]]  # name, x, y


class Bench:
    """The dense model of a study on text that was not calibrated on; `cut` measures what replaced weights do to it."""

    def __init__(self, study: Study, progress: Progress) -> None:
        self.study, self.probe, self.progress = study, study.check, progress
        self.causal = study.checkpoint.predicts

    def cut(self, matrices: Iterable[tuple[str, torch.Tensor]]) -> dict[str, float]:
        """{"damage", "rise"} with these weights (name, Ŵ) in place of the dense ones; as before when it returns or
        raises."""
        names = []
        try:
            for name, matrix in matrices:
                self.probe.replace(name, matrix)
                names.append(name)
            return self.measure(names)
        finally:
            self.probe.restore()

    def measure(self, changed: Sequence[str] = ()) -> dict[str, float]:
        """The same for the model as it is now; `changed`: all weights that are not dense, if known."""
        found = self.probe.measure(changed)
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

    def by_bytes(self, rows: Iterable[dict], series: Sequence[Series]) -> tuple[dict, list[dict]]:
        """(the table of forms with their "label", "bytes_kept", "damage" and "rise", the chart of damage by bytes)."""
        return (
            grid(
                ["form", "bytes kept", self.unit, "rise in loss"],
                [[row["label"], row["bytes_kept"], row["damage"], row["rise"]] for row in rows],
            ),
            [lines("Damage by bytes", "Bytes kept of the block weights", self.unit, series, log=True, points=True)],
        )

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


def matrix_of(study: Study, name: str) -> torch.Tensor:
    """W (out, in), float64."""
    return study.checkpoint.read(name).double()


def kept_chi(shape: Sequence[int], kept: float) -> int:
    """χ of two factors that keep this share of a weight's parameters, at least 1."""
    n_out, n_in = shape
    return max(1, int(kept * n_out * n_in / (n_out + n_in)))


def fitting(spec: Network, limit: float, size: Callable[[Network], float]) -> Network:
    """The spec at the largest χ whose size stays within the limit; χ = 1 where none does."""
    return spec.with_chi(largest(lambda chi: size(spec.with_chi(chi)) <= limit, 1, spec.max_chi + 1))


def cut_alike(weights: Iterable[Weight], kept: float, network: str, **options: Any) -> dict[str, Spec]:
    """Name → the largest network of this kind that keeps at most this share of the weight's parameters."""
    return {
        weight.name: fitting(
            NETWORKS[network].for_shape(*weight.shape, 1, **options),
            kept * weight.parameters,
            lambda spec: spec.parameters,
        )
        for weight in weights
    }


def published_mpo(
    W: torch.Tensor,
    limit: float,
    size: Callable[[Spec], float],
    quantize: str | None = None,
    sites: int | None = MPO_SITES,
) -> torch.Tensor:
    """Ŵ by sequential SVDs within a size, on three balanced sites as CompactifAI describes (`sites` None: on this
    tool's own two); cores rounded to nearest in 8 bits where `quantize` is "int8"."""
    n_out, n_in = W.shape
    spec = fitting(Mpo.for_shape(n_out, n_in, 1, sites=sites, quantize=quantize), limit, size)
    cores = spec.start(W)
    if quantize:
        rounded = [
            quantize_rtn(core.reshape(spec.core_matrix(k)), 8, None).dense().reshape(core.shape)
            for k, core in enumerate(cores)
        ]
        cores = [core.double() for core in rounded]
    return spec.dense(cores)


def layers_of(study: Study) -> list[int]:
    return sorted({weight.layer for weight in study.measurable if weight.layer is not None})


def middle(study: Study) -> list[Weight]:
    """The attention weights of the layer in the middle; all weights of that layer where none is attention's."""
    layers = layers_of(study)
    if not layers:
        raise InputError(f"{study.checkpoint.name} has no layer whose weights can be compressed.")
    weights = [weight for weight in study.measurable if weight.layer == layers[len(layers) // 2]]
    return [weight for weight in weights if weight.role in ("q", "k", "v", "o", "qkv")] or weights


def correlation(pair: tuple[float | None, float | None], n: int) -> str:
    return "too few to say" if pair[0] is None else f"ρ = {pair[0]:+z.2f} (p = {pair[1]:.2g}, {n} points)"


def factor(of: float, over: float) -> str:
    """3.2 times, and words for what has no number."""
    return f"{of / over:.3g} times" if over > 0 else "no damage to compare with"


def lines(title: str, x: str, y: str, series: Sequence[Series], log: bool = False, points: bool = False) -> dict:
    """A chart: lines (or points) of (name, x, y)."""
    rows = [{"name": name, "x": list(xs), "y": [float(v) for v in ys]} for name, xs, ys in series]
    return {"kind": "points" if points else "lines", "title": title, "x": x, "y": y, "log": log, "series": rows}


def bars(title: str, y: str, names: list[str], values: list[float], log: bool = False) -> dict:
    series = [{"name": y, "x": names, "y": [float(v) for v in values]}]
    return {"kind": "bars", "title": title, "x": "", "y": y, "log": log, "series": series}


def grid(columns: list[str], rows: Iterable[Iterable]) -> dict:
    return {"columns": columns, "rows": [list(row) for row in rows]}
