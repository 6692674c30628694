"""The experiments behind claims.py, one function a claim: `(study, progress) -> dict` of what was measured.

Each replaces weights of the dense model in memory and measures the outputs on windows of text that were not calibrated
on: the KL divergence from the dense model (nats a token) and the rise in loss; for an encoder, which predicts no token,
the relative squared error of its output. Nothing is retrained.
"""

from collections.abc import Callable

from karipap_core.plan.study import Study
from karipap_core.progress import Progress
from karipap_core.studies.claims.experiments import compactifai, disentanglers, karipap, spectra, tensorgpt
from karipap_core.studies.claims.experiments.bench import study_of

CHECKS: dict[str, Callable[[Study, Progress], dict]] = {
    "depth": karipap.depth,
    "headline": karipap.headline,
    "sensitivity": compactifai.sensitivity,
    "bytes": compactifai.per_byte,
    "embedding": tensorgpt.embedding,
    "disentanglers": disentanglers.disentanglers,
    "structure": spectra.structure,
    "whitening": spectra.whitening,
}

__all__ = ["CHECKS", "study_of"]
