"""The experiments behind the claims, one function a claim: `(study, progress) -> dict` of what was measured.

Each replaces weights of the dense model in memory and measures the outputs on windows of text that were not calibrated
on: the KL divergence from the dense model (nats a token) and the rise in loss; for an encoder, which predicts no token,
the relative squared error of its output. Nothing is retrained.

Every file of this folder is imported here, so that a function with `@experiment("<claim>")` in any of them, or in a new
one, is found.
"""

import pkgutil
from importlib import import_module

from karipap_core.studies.claims.experiments.bench import study_of
from karipap_core.studies.claims.experiments.registry import CHECKS

for found in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{found.name}")

__all__ = ["CHECKS", "study_of"]
