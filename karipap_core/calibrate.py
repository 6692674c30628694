"""What truncating each weight does to the model's outputs, measured: the sensitivity map and every predicted loss.

Each weight alone is cut to a few levels of its break-even χ and the divergence from the dense model is measured by
forward passes. That gives a curve metric error → damage for each weight, which holds for any network under the same
metric. The sum of single damages ranks plans well but its size is off, since damages add coherently: so the rise in
loss of a few whole plans is measured too, and rise = a·sum^b runs through them, piece by piece (METHODS.md,
"Allocation" and "Prediction"). Nothing here imports torch: the dashboard reads it.
"""

from dataclasses import dataclass, field

import numpy as np

FORMAT, VERSION = "karipap-calibration", 1
LEVELS = (0.9, 0.7, 0.45, 0.2)  # of the break-even χ
SLOPES = (0.3, 3.0)  # of log damage against log error; outside lies noise or saturation
FLOOR = 1e-12
WORTH_CHECKING = 0.01  # rises below this are within the noise of a few thousand tokens


@dataclass
class Calibration:
    """measure: `kl` (nats a token) or `output error` (relative, encoders). levels[name]: rows [χ, error, damage] with
    error the absolute metric error. dense_loss: on the check windows. plans: measured whole plans, rows
    {"kept_blocks", "sum", "rise", "divergence"}. scale[name]: factor that `refined` found for a weight's curve."""

    metric: str
    measure: str
    text: dict
    dense_loss: float
    levels: dict[str, list[list[float]]]
    plans: list[dict] = field(default_factory=list)
    tokens: int = 0
    checks: list[dict] = field(default_factory=list)  # {"predicted", "measured", "text"} of evaluated plans

    def damage(self, name: str, error, network: str = "lowrank") -> np.ndarray:
        """Predicted divergence of truncating one weight alone to an absolute metric error (array in, array out).

        One curve serves every network; but a table of tokens has one for each network that was measured on it
        (`levels["<name>|<network>"]`), since what an error of rare tokens does depends on how it is spread.

        log damage runs piecewise linearly over log error through the measured levels, never falling, slopes clamped
        to `SLOPES`, carried on beyond the ends. Zero error is zero damage.
        """
        error = np.asarray(error, dtype=np.float64)
        rows = np.array(self.levels[self.key(name, network)], dtype=np.float64)
        x, y = np.log(np.maximum(rows[:, 1], FLOOR)), np.log(np.maximum(rows[:, 2], FLOOR))
        order = np.argsort(x)
        x, y = x[order], np.maximum.accumulate(y[order])
        keep = np.concatenate([[True], np.diff(x) > 1e-9])
        x, y = x[keep], y[keep]
        slopes = np.clip(np.diff(y) / np.diff(x), *SLOPES) if len(x) > 1 else np.ones(1)
        # Clamped slopes are anchored at the strongest measured truncation, where noise matters least.
        heights = y[-1] - np.concatenate([np.cumsum((slopes * np.diff(x))[::-1])[::-1], [0.0]]) if len(x) > 1 else y
        with np.errstate(divide="ignore"):
            point = np.log(np.maximum(error, FLOOR * 1e-12))
        inside = np.interp(point, x, heights)
        below = heights[0] + (point - x[0]) * slopes[0]
        above = heights[-1] + (point - x[-1]) * slopes[-1]
        value = np.exp(np.where(point < x[0], below, np.where(point > x[-1], above, inside)))
        return np.where(error <= 0, 0.0, value)

    def key(self, name: str, network: str) -> str:
        """Where the levels of a weight in a network are: under its name, or under both for a table measured so."""
        both = f"{name}|{network}"
        return both if both in self.levels else name

    @property
    def points(self) -> list[tuple[float, float]]:
        """(sum of predicted damages, measured rise) of the whole plans, rising in both: what predictions go through."""
        rows = sorted((p["sum"], p["rise"]) for p in self.plans if p["sum"] > 0 and p["rise"] > 0)
        points: list[tuple[float, float]] = []
        for total, rise in rows:
            if points and (total <= points[-1][0] * 1.02 or rise <= points[-1][1]):
                continue
            points.append((total, rise))
        return points

    def rise(self, total: float) -> float:
        """Predicted rise in loss for a sum of damages: a·sum^b between neighbouring measured plans (log-log)."""
        return predicted_rise(self.points, total)

    @property
    def error(self) -> float | None:
        """How far predictions were off, the largest |predicted / measured − 1|: over the inner measured plans, each
        predicted from the others, and over the plans that were evaluated since, on whatever text. None where there is
        nothing to go by."""
        points = self.points
        pairs = [
            (predicted_rise(points[:i] + points[i + 1 :], points[i][0]), points[i][1])
            for i in range(1, len(points) - 1)
        ]
        pairs += [(check["predicted"], check["measured"]) for check in self.checks]
        return max((abs(p / m - 1) for p, m in pairs if m >= WORTH_CHECKING), default=None)

    def check(self, predicted: float, measured: float, text: str) -> None:
        """Remember what an evaluated plan was predicted to cost and what it did cost; once for the same figures."""
        entry = {"predicted": predicted, "measured": measured, "text": text}
        if entry not in self.checks:
            self.checks.append(entry)

    def to_json(self) -> dict:
        return {"format": FORMAT, "version": VERSION} | self.__dict__

    @classmethod
    def from_json(cls, document: dict) -> "Calibration":
        return cls(**{k: v for k, v in document.items() if k not in ("format", "version")})


def predicted_rise(points: list[tuple[float, float]], total: float) -> float:
    """a·sum^b through the two nearest of `points` (sum, rise), sorted; one point: b = 1; none: the sum itself."""
    if total <= 0:
        return 0.0
    if not points:
        return total
    if len(points) == 1:
        return points[0][1] * total / points[0][0]
    upper = min(max(1, int(np.searchsorted([p[0] for p in points], total))), len(points) - 1)
    (x0, y0), (x1, y1) = points[upper - 1], points[upper]
    slope = np.log(y1 / y0) / np.log(x1 / x0)
    return float(y0 * (total / x0) ** slope)
