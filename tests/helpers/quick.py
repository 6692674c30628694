"""Fits that end early, for tests of what is done with cores and not of how good they are."""

from contextlib import contextmanager

import pytest

from karipap_core.networks import curve, disentangled, qlr, refine
from karipap_core.quantization import rounding


@contextmanager
def quick_fits():
    """Few steps and sweeps, few χ on a curve, few ranges tried for a scale; every rule of the fits stays as it is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refine, "EVALUATIONS", 4)
        patch.setattr(curve, "LEVELS", 3)
        patch.setattr(disentangled, "GAIN", 0.2)
        patch.setattr(qlr, "LADDER", (16, 4))
        patch.setattr(qlr, "TURNS", 1)
        patch.setattr(qlr, "STORED_TURNS", 1)
        patch.setattr(qlr, "STORED_LADDER", (16, 4))
        patch.setattr(rounding, "SHRINKS", 5)
        yield
