"""Cores fitted behind a compressed prefix: each weight makes good what the weights before it have lost.

A weight (see behind.py) is fitted to W′ = (W E[x x̂ᵀ] + E[(s − ŝ) x̂ᵀ]) E[x̂ x̂ᵀ]⁻¹, the best linear answer to x̂ for what
the dense weight gives for x (GPTAQ, arXiv:2504.02692; AA-SVD, arXiv:2604.02119) and for what is missing of what the
block adds it to (residual.py), and its errors are weighed by the moment of x̂. The plan, its bytes and the moments of
gradients stay as they are.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from karipap_core.errors import InputError
from karipap_core.networks import Spec
from karipap_core.networks.stored import in_dtype, quantize_cores, values
from karipap_core.plan.behind import Behind, InTurn
from karipap_core.plan.document import Plan
from karipap_core.profiles.blockpass import runs_apart
from karipap_core.progress import Progress, silent
from karipap_core.quantization.formats import Stored
from karipap_core.spectra.metric import Metric

DAMPING = 0.01  # of the moment of x̂, toward W′ = W

Keep = Callable[[str, Spec, list[Stored]], None]
Known = Callable[[str], list[torch.Tensor] | None]


def fit_aligned(study, plan: Plan, keep: Keep, known: Known = lambda name: None, progress: Progress = silent) -> None:
    """Hands the cores of every weight that a plan cuts, as they are stored, to keep(name, spec, cores): those outside
    the blocks first, then block by block. Not fitted behind others but as `Decompositions` has them are weights outside
    the blocks, experts, and those that share their cores with other layers.

    known(name): the values (float32) of cores that an earlier run has fitted and kept: with them it goes on where that
    one stopped, and ends with the same cores. Raises InputError where the model does not run block by block.
    """
    if (why := study.why_not_run) is not None:
        raise InputError(f"A compressed prefix has to be run: {why}")
    if not runs_apart(study.checkpoint, study.device):
        raise InputError(
            f"{study.checkpoint.name} does not run block by block: make the plan without an aligned prefix."
        )
    study.release()
    _Aligned(study, plan, keep, known, progress).go()


def aligned_matrices(study, plan: Plan, progress: Progress = silent) -> dict[str, torch.Tensor]:
    """Ŵ (out, in), float32, of every weight that a plan cuts, by `fit_aligned`."""
    found: dict[str, torch.Tensor] = {}

    def keep(name: str, spec: Spec, cores: list[Stored]) -> None:
        found[name] = spec.dense(values(spec, cores))

    fit_aligned(study, plan, keep, progress=progress)
    return found


class _Aligned(InTurn):
    def __init__(self, study, plan: Plan, keep: Keep, known: Known, progress: Progress) -> None:
        self.specs = {weight.name: spec for weight in study.checkpoint.weights if (spec := plan.spec(weight.name))}
        super().__init__(study, self.specs, progress)
        self.keep, self.known = keep, known
        self.decompositions = study.decompositions_of(plan)

    def ready(self, name: str) -> torch.Tensor | None:
        cores = self.known(name)
        return None if cores is None else self.specs[name].dense(cores)

    def reaches(self, name: str) -> bool:
        return super().reaches(name) and not self.specs[name].members  # which share their cores with other layers

    def cut(self, name: str, behind: Behind | None) -> torch.Tensor:
        spec = self.specs[name]
        stored = None if behind is None else self._aligned(name, spec, behind)
        if stored is None:
            stored = self.decompositions.stored(name, spec)
        self.keep(name, spec, stored)
        return spec.dense(values(spec, stored))

    def _aligned(self, name: str, spec: Spec, behind: Behind) -> list[Stored] | None:
        """Cores of W′ = (W (E[x x̂ᵀ] + λ) + E[(s − ŝ) x̂ᵀ]) (E[x̂ x̂ᵀ] + λ)⁻¹ under the moment of x̂ and the plan's own of
        gradients; None where that inverse does not exist."""
        weight = self.study.checkpoint.weight(name)
        W = self.study.checkpoint.read(name).double()
        damped, cross = behind.own.clone(), behind.cross.clone()
        for each in (damped, cross):
            each.diagonal().add_(DAMPING * behind.own.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            return None
        wanted = W @ cross if behind.lost is None else W @ cross + behind.lost
        W = torch.cholesky_solve(wanted.T, factor).T
        metric = self.decompositions.metric_of(name)
        if metric.C is not None:
            metric = Metric(metric.name, behind.own, metric.G, metric.damping, metric.rounds_under_G)
        cores = replace(spec, quantize=None).decompose(W, metric)
        return in_dtype(spec, quantize_cores(spec, cores, W, metric), getattr(torch, weight.dtype))
