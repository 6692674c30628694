"""What a Planner asks of a study, from made-up measurements."""

import numpy as np

from karipap_core.plan.calibration import Calibration
from karipap_core.plan.curves import build_curves, save_curves
from karipap_core.plan.kind import Kind, prefix_of
from karipap_core.plan.seen import Seen
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from tests.helpers import made_up

TEXT = {"text": "made up", "path": None, "sha256": "0" * 64, "tokens": 900, "window": 16, "damping": 0.01}


class Study:
    """What the core's Planner asks of a study, from made-up measurements."""

    rounding = "two-sided"

    def __init__(self, checkpoint, calibrated: bool = True) -> None:
        self.checkpoint, self.seen = checkpoint, Seen()
        self.weights = [weight for weight in checkpoint.weights if weight.compressible]
        self.kept = made_up.profile(2, metrics=("weight", "functional", "loss"), fingerprint=checkpoint.fingerprint)
        rng = np.random.default_rng(6)
        levels = {}
        for weight in self.weights:
            curve = self.curves("lowrank", "loss")[weight.name]
            picks = np.unique(np.linspace(0, len(curve.chi) - 1, 4).round().astype(int))
            factor = rng.uniform(0.2, 2)
            levels[weight.name] = [
                [int(curve.chi[k]), float(curve.error[k]), float(factor * curve.error[k] ** 0.9)] for k in picks
            ]
        plans = [{"sum": x, "rise": 1.7 * x**0.8} for x in (1.0, 30.0, 900.0)]
        self.found = Calibration("loss", "kl", TEXT, 2.5, levels, plans, 900) if calibrated else None

    def curves(self, kind, metric, weights=None):
        kind = Kind(kind) if isinstance(kind, str) else kind
        return build_curves(self.weights, kind, metric, self.kept, None)

    def calibration(self, metric, tables=(), kind=None):
        return self.found

    def has_calibration(self, metric):
        return self.found is not None

    def entropies(self, metric):
        return {row["name"]: row["spectra"][metric]["entropy"] for row in self.kept.weights}

    def calibration_entry(self):
        return TEXT

    def expect(self, choices, metric):
        pass

    def prefix_of(self, wanted, weights):
        return prefix_of(wanted, weights, lambda: True)

    def save(self) -> None:
        """Into the workspace, where the page looks."""
        key = self.checkpoint.key
        home = Workspace().profile_dir(key, "made-up")
        self.kept.save(home)
        for metric in ("functional", "loss"):
            save_curves(
                home.parents[1] / "curves" / f"lowrank-{metric}-abc.safetensors", self.curves("lowrank", metric)
            )
        if self.found:
            write_json(Workspace().calibration_file(key, "loss-abc"), self.found.to_json())
