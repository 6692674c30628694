"""All that one pass over a model's blocks gives, found and kept block by block: the spectra of every weight under every
metric, its cores up to the break-even χ, what truncations of it damage, and its moments where they are small.

So no weight is looked at twice, and memory holds no more than a block. A killed pass goes on at the block that it was
at; of what was kept before nothing is made again.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from karipap_core import cluster
from karipap_core.checkpoint.model import Weight
from karipap_core.models.load import check
from karipap_core.networks.lowrank import LowRank
from karipap_core.plan.calibration import LEVELS
from karipap_core.plan.gradients import LowRankDamages
from karipap_core.plan.kind import Kind
from karipap_core.plan.places import pass_file, seen_file
from karipap_core.plan.seen import FEW, Seen
from karipap_core.profiles.blockpass import look_over, wanted
from karipap_core.profiles.build import Parts
from karipap_core.profiles.document import profile_key, profile_settings
from karipap_core.profiles.estimate import of_pass, tell
from karipap_core.profiles.watching import BlockSeen
from karipap_core.spectra.metric import Metric
from karipap_core.spectra.spectrum import METRICS
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:
    from karipap_core.plan.decompositions import Decompositions
    from karipap_core.profiles.moments import Moments

KEPT_MOMENTS = 1 << 30  # bytes of moments that are kept without anybody having asked for them
LOWRANK = Kind("lowrank")


class OnePass:
    """A finder (blockpass.py) for one study: `parts` of its profile, and, with `decompositions` (of one metric), cores
    and `levels`: {weight: rows [χ, absolute metric error, damage]} at `LEVELS` of its break-even χ.

    moments : where those of each block are kept, None where they are not.
    file : where levels, and what weights saw, are kept.
    """

    def __init__(
        self, parts: Parts, moments: "Moments | None", decompositions: "Decompositions | None", file: Path | None
    ) -> None:
        self.parts, self.kept_moments, self.decompositions, self.file = parts, moments, decompositions, file
        kept = (kept_json(file) if file else None) or {}
        self.complete = bool(kept.get("complete"))
        self.levels: dict[str, list[list[float]]] = kept.get("levels", {})
        self.counts: dict[str, int] = kept.get("counts", {})  # tokens that each weight saw, of those for probing
        self.touched: set[str] = set(kept.get("touched", ()))  # weights that a gradient came back to
        self.scored: int = kept.get("tokens", 0)
        self._profiled = parts.finished
        self._damages: dict[str, LowRankDamages] = {}

    def keep(self, complete: bool = False) -> None:
        """Keeps what has been found; `complete`: that is all."""
        self.complete = complete
        if self.file is not None:
            found = {"levels": self.levels, "counts": self.counts, "touched": sorted(self.touched)}
            keep_json(self.file, found | {"tokens": self.scored, "complete": complete})

    def through_with(self, metric: str | None) -> bool:
        """Whether nothing is left to be found, of the profile and (given a metric) of the levels."""
        return self._profiled and (metric is None or self.complete)

    def moments(self, seen: BlockSeen) -> None:
        if self.kept_moments is not None:
            self.kept_moments.keep(seen)
        # One weight after the other, each with its moments and their factors gone before the next; or all at once on
        # the workers of a cluster.
        groups = [[weight] for weight in seen.weights] if cluster.crew() is None else [seen.weights]
        for weights in groups:
            if not self._profiled:
                self.parts.add_all([weight.name for weight in weights], seen)
            if self.decompositions is not None:
                self._cut(weights, seen, self.decompositions)
            for weight in weights:
                seen.forget(weight.name)

    def _cut(self, weights: Sequence[Weight], seen: BlockSeen, decompositions: "Decompositions") -> None:
        with decompositions.seeing(seen):
            decompositions.make((weight.name, _break_even(weight)) for weight in weights)
            for weight in weights:
                self._damages[weight.name] = self._damage(weight, seen, decompositions)

    def _damage(self, weight: Weight, seen: BlockSeen, decompositions: "Decompositions") -> LowRankDamages:
        cores = decompositions.cores(weight.name, _break_even(weight))
        metric = decompositions.metric_of(weight.name)
        W = decompositions.checkpoint.read(weight.name)
        chis = sorted({max(1, round(level * LOWRANK.break_even(weight.shape))) for level in LEVELS})
        errors = _errors(W, cores, metric)
        self.levels[weight.name] = [[chi, errors[chi - 1], 0.0] for chi in chis]
        return LowRankDamages(W, cores, chis, seen.scored)

    def tokens(self, name: str, x: torch.Tensor, g: torch.Tensor) -> None:
        self.counts[name] = self.counts.get(name, 0) + len(x)
        if name not in self.touched and bool(g.any()):
            self.touched.add(name)
        if name in self._damages:
            self._damages[name].add(x, g)

    def through(self, seen: BlockSeen) -> None:
        self.scored = seen.scored
        for name in [weight.name for weight in seen.weights if weight.name in self._damages]:
            damages = self._damages.pop(name).damages
            for row, damage in zip(self.levels[name], damages, strict=True):
                row[2] = float(damage)
        self.keep()

    def seen(self, weights: list[Weight]) -> Seen | None:
        """What each of these weights saw, where gradients came back to all; else that has to be looked at closer."""
        if any(weight.name not in self.touched for weight in weights):
            return None
        few = {w.name: self.counts[w.name] for w in weights if w.expert is not None and self.counts[w.name] < FEW}
        return Seen(few=few, tokens=self.scored)


def _errors(W: torch.Tensor, cores: Sequence[torch.Tensor], metric: Metric) -> list[float]:
    """‖A (W − L_χ R_χ) B‖² for χ = 1 … r of cores L (out, r) and R (r, in) that a decomposition under the metric gave:
    what all of them leave, and what each component behind χ brings, since A L_k R_k B are orthogonal to one another."""
    left, right = (core.double() for core in cores)
    G, C = metric.factor("G"), metric.factor("C")
    rest = metric.absolute(W.double() - left @ right)
    components = (left if G is None else G.T @ left).square().sum(0) * (right if C is None else right @ C).square().sum(
        1
    )
    behind = components.flip(0).cumsum(0).flip(0) - components
    return (rest + behind).tolist()


def _break_even(weight: Weight) -> LowRank:
    return LowRank.for_shape(*weight.shape, max(1, LOWRANK.break_even(weight.shape)))


def one_pass(study: Any, settings: dict[str, Any], metric: str | None = None) -> OnePass:
    """One pass over the model's blocks for all that is not there yet of a profile with these settings and, given a
    metric, of the cores under it and of what truncations damage."""
    folder = study.workspace.profile_dir(study.checkpoint.key, profile_key(settings))
    file = pass_file(study, metric) if metric else None
    decompositions = study.decompositions(metric) if metric else None
    keep = study.needs_moments or study.moments.bytes <= KEPT_MOMENTS

    def found() -> OnePass:
        parts = Parts(study.checkpoint, settings, folder, study.device)
        return OnePass(parts, study.moments if keep else None, decompositions, file)

    one, weights = found(), study.weights
    if not one.through_with(metric):
        check(study.checkpoint)  # before a folder is made for a model that cannot run
        scratch = study.folder / "pass" / f"{profile_key(settings)}-{metric}"
        with only_writer(scratch, "a pass over the model", waiting=study.progress):
            if not (one := found()).through_with(metric):
                looked = {"metrics": settings["metrics"], "cores": metric, "keep_moments": keep}
                takes = of_pass(study.checkpoint, wanted(study.checkpoint, study.settings, study.text, **looked))
                tell(scratch, takes, study.device, study.progress)
                look_over(
                    study.checkpoint,
                    study.text,
                    study.settings,
                    scratch,
                    one,
                    study.device,
                    probing=metric is not None,
                    progress=study.progress,
                )
                one.keep(complete=True)
    seen = seen_file(study.folder, study.key)
    # Whether the encoder of two parts was given anything, seen.py finds out.
    if metric and study.checkpoint.kind != "encoder-decoder" and not seen.exists() and (known := one.seen(weights)):
        keep_json(seen, known.to_json())
    return one


def told_of(study: Any) -> tuple[dict[str, int], set[str]]:
    """(tokens that each weight saw, of those for probing; the weights that a gradient came back to) by a pass, of those
    that were gone through with or a new one."""
    done = [metric for metric in METRICS if (kept_json(pass_file(study, metric)) or {}).get("complete")]
    settings = profile_settings(METRICS, None, study.text, study.settings)
    found = one_pass(study, settings, (done or ["loss"])[0])
    return found.counts, found.touched
