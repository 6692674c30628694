"""What truncating each weight does to the model's outputs, measured: the sensitivity map and every predicted loss.

Each weight alone is cut to a few levels of its break-even χ and the divergence from the dense model is measured by
forward passes. That gives a curve metric error → damage for each weight, which holds for any network under the same
metric. The sum of single damages ranks plans well, but a whole plan loses more than that sum: so the rise in loss of a
few whole plans is measured too, and rise = a·sum^b runs through them, piece by piece (docs/methods.md, "Allocation" and
"Prediction"). Plans that are evaluated later are checks: the rise that was measured on a held-out text over the one
that the curve predicts gives a factor for that text and each network. Nothing here imports torch: the dashboard reads
it.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, cast

import numpy as np

from karipap_core import schemas
from karipap_core.plan.checks import Check, LeftOut, WholePlan, above_noise, beyond_checked, log_factor, off_by
from karipap_core.plan.foretold import CURVE

FORMAT, VERSION = "karipap-calibration", 2  # 1: no history of fits, and checks that do not say their plan
LEVELS = (0.9, 0.7, 0.45, 0.2)  # of the break-even χ
SLOPES = (0.3, 3.0)  # of log damage against log error; outside lies noise or saturation
ALL = "-all"  # ends the name of one that was measured of all weights, beside one from gradients
FLOOR = 1e-12
HELD = 0.8  # share of predictions that are off by no more than the error stated with them
FEWEST_CHECKS = 4  # for a network to have an error of its own, and for a text to have factors
KEPT_VERSIONS = 20
MIXED = "mixed"


@dataclass(frozen=True)
class Fit:
    """What the rise of one kind of plan is predicted with: the curve through `points` (sum of damages, rise on `text`),
    rising in both.

    factor : rise on `text` over the rise on the calibration text, in `points` already.  error : how far predictions
    were off, see `Calibration.fit`.  checked : checks behind it.  version : of the calibration.  measure, dense_loss :
    see `Calibration`.
    """

    points: list[tuple[float, float]]
    version: int
    text: str | None
    factor: float
    error: float | None
    checked: int
    measure: str
    dense_loss: float

    def rise(self, total: float) -> float:
        """Predicted rise in loss for a sum of damages: a·sum^b between neighbouring measured plans (log-log)."""
        return predicted_rise(self.points, total)

    def beyond(self, total: float, vocabulary: int | None = None) -> bool:
        """Whether the prediction for this sum of damages is past all that was measured (`checks.beyond_checked`)."""
        loss = self.dense_loss + self.rise(total) if self.measure == "kl" else None
        return beyond_checked(self.points, total, loss, vocabulary)

    def predicted(self, total: float, vocabulary: int | None = None) -> dict[str, Any]:
        """A plan's `predicted` fields for this sum of damages; `beyond` is there, and true, where that is past all that
        was measured."""
        rise = self.rise(total)
        beyond = {"beyond": True} if self.beyond(total, vocabulary) else {}
        return beyond | {
            "measure": self.measure,
            "sum": total,
            "rise": rise,
            "dense_loss": self.dense_loss,
            "loss": self.dense_loss + rise,
            "source": CURVE,
            "error": self.error,
            "fitted_plans": len(self.points),
            "fit": self.version,
            "checked": self.checked,
            "text": self.text,
            "factor": self.factor,
        }


def group_of(networks: Iterable[str], quantized: bool, embedding: bool, prefix: str | None) -> str:
    """The kind of plan that a factor is of: the one network that its weights are in, or "mixed": several, quantized
    ones, or with compressed tables of tokens; and what its weights are fitted behind, if not the dense model."""
    found = sorted(set(networks) - {"dense"})
    kind = found[0] if len(found) == 1 and not quantized and not embedding else MIXED
    return f"{kind}, {prefix}" if prefix else kind


def group_of_weights(weights: Mapping[str, dict[str, Any]], embedding: bool, prefix: str | None) -> str:
    """The same of a plan's entries."""
    formats = any(entry.get("quantize") for entry in weights.values())
    return group_of({entry["network"] for entry in weights.values()}, formats, embedding, prefix)


@dataclass
class Calibration:
    """What was measured of a model under one metric on one text, and what follows from it.

    measure : "kl" (nats a token), or "output error" (relative) of an encoder.  text : the plan's `calibration` field.
    dense_loss : of the dense model on the check windows, nats a token.  levels[name] : rows [χ, absolute error in the
    metric, damage] of a weight cut alone.  plans : measured whole plans.  tokens : that damages were measured on.
    checks : evaluated plans.  history : the last versions of the fit, {"version", "date", "plans", "checks", "error",
    "what" (changed)} each.  gradients : how levels that were estimated from gradients were scaled (calibrate.py); None
    where all were measured by forward passes.
    """

    metric: str
    measure: str
    text: dict[str, Any]
    dense_loss: float
    levels: dict[str, list[list[float]]]
    plans: list[WholePlan] = field(default_factory=list)
    tokens: int = 0
    checks: list[Check] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    gradients: dict[str, Any] | None = None

    def damage(self, name: str, error: "np.typing.ArrayLike", network: str = "lowrank") -> np.ndarray:
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

    def beyond(self, name: str, damage: float) -> bool:
        """Whether a damage is more than any that was measured of this weight alone."""
        return damage > (1 + 1e-6) * max(row[2] for row in self.levels[name])

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
        """Predicted rise in loss on the calibration text for a sum of damages: a·sum^b between neighbouring measured
        plans (log-log)."""
        return predicted_rise(self.points, total)

    @property
    def error(self) -> float | None:
        """How far predictions by the curve alone, without factors, were off: see `fit`."""
        return self._stated(self.left_out(False))

    def fit(self, group: str | None = None) -> Fit:
        """What plans of this kind (`group_of`) are predicted with, and how far such predictions were off.

        The curve through whole plans holds on the calibration text. Where at least `FEWEST_CHECKS` plans were evaluated
        on another text, and leaving each one out shows that factors predict it better, the rise is that on the text
        most were evaluated on: the curve's times a factor f for each network, by least squares on a log scale,
        ln f = (Σ ln(measured / curve) + w · m) / (n + w) over the network's n checks, with m the mean of ln(measured /
        curve) over all checks and w = `checks.COMMON_WEIGHT`.

        error: |predicted / measured − 1| that the share `HELD` of predictions does not exceed, each made without the
        plan it is of: the whole plans but the smallest and the largest, and the checks; of this kind's own checks
        alone where there are `FEWEST_CHECKS`. Never the error on what was fitted. None where there is nothing to go by.
        """
        text = self.scored_text
        factor = self._factor(group) if group else 1.0
        on_text = group is not None and bool(self.factors)
        rows = self.left_out(on_text)
        known = [c["dense_loss"] for c in self.checks if c["text"] == text and c.get("dense_loss")]
        dense = known[-1] if on_text and known else self.dense_loss
        return Fit(
            points=[(total, rise * factor) for total, rise in self.points],
            version=self.version,
            text=text if on_text else self.text.get("text") or self.text.get("name"),
            factor=factor,
            error=self._stated(rows, group),
            checked=len(self.checks),
            measure=self.measure,
            dense_loss=dense,
        )

    def _factor(self, group: str) -> float:
        """The factor of a kind of plan: of one behind a prefix that no check is of, that of the same behind the dense
        model; of one that no check is of at all, that of all others."""
        known = self.factors
        return next((known[each] for each in (group, group.split(", ")[0], None) if each in known), 1.0)

    @property
    def scored_text(self) -> str | None:
        """The text that most checks are on."""
        counts = Counter(check["text"] for check in self.checks if self._counts(check))
        return counts.most_common(1)[0][0] if counts else None

    @property
    def factors(self) -> dict[str | None, float]:
        """Factor of each network on `scored_text`, and of all others (None); empty where factors would not help."""
        if not self._factors_help():
            return {}
        rows = self._log_ratios()
        groups = {group for group, _ in rows} | {None}
        return {group: float(np.exp(log_factor(rows, group))) for group in groups}

    def _log_ratios(self) -> list[tuple[str | None, float]]:
        """(network, ln(measured / curve)) of the checks on `scored_text`."""
        text = self.scored_text
        return [
            (check.get("network"), float(np.log(check["measured"] / self._by_curve(check))))
            for check in self.checks
            if check["text"] == text and self._counts(check)
        ]

    def _counts(self, check: Check) -> bool:
        """Whether a check says anything of a factor."""
        return above_noise(check["measured"], check.get("error")) and self._by_curve(check) > 0

    def _by_curve(self, check: Check) -> float:
        """The rise that today's curve predicts for a check's plan, without a factor. Checks of version 1 do not say the
        sum of their plan: then it is what had been predicted when the plan was made."""
        total = check.get("sum")
        return self.rise(total) if total else check["predicted"]

    def _factors_help(self) -> bool:
        """Whether factors that are found without a check predict it better than none do, in the sum over all checks of
        the squares of ln(measured / predicted)."""
        rows = self._log_ratios()
        if len(rows) < FEWEST_CHECKS:
            return False
        left = [ratio - log_factor(rows[:i] + rows[i + 1 :], group) for i, (group, ratio) in enumerate(rows)]
        return sum(each**2 for each in left) < sum(ratio**2 for _, ratio in rows)

    def left_out(self, factors: bool = True) -> list[LeftOut]:
        """Predictions that are made without the plan they are of: the whole plans but the smallest and the largest,
        each by the curve through the others, and the checks by the curve, with `factors` times one from the other
        checks."""
        points = self.points
        found: list[LeftOut] = [
            {
                "id": None,
                "network": "lowrank",
                "text": None,
                "error": None,
                "sum": points[i][0],
                "measured": points[i][1],
                "predicted": predicted_rise(points[:i] + points[i + 1 :], points[i][0]),
            }
            for i in range(1, len(points) - 1)
        ]
        rows, text, use = self._log_ratios(), self.scored_text, factors and self._factors_help()
        number = 0
        for check in self.checks:
            predicted = self._by_curve(check)
            if check["text"] == text and self._counts(check):
                if use:
                    others = rows[:number] + rows[number + 1 :]
                    predicted *= float(np.exp(log_factor(others, check.get("network"))))
                number += 1
            elif use and check["text"] == text:
                predicted *= self.factors.get(check.get("network"), self.factors[None])
            found.append(
                {
                    "id": check.get("id"),
                    "network": check.get("network"),
                    "text": check["text"],
                    "error": check.get("error"),
                    "sum": check.get("sum"),
                    "measured": check["measured"],
                    "predicted": predicted,
                }
            )
        return found

    def _stated(self, rows: Sequence[LeftOut], group: str | None = None) -> float | None:
        """The error to state with predictions of a kind: the quantile `HELD` of how far these were off. A kind with few
        checks of its own has the error of all, and no less than any of its own was off."""
        rows = [row for row in rows if above_noise(row["measured"], row["error"])]
        own = [row for row in rows if group is not None and row["network"] == group and row["text"] is not None]
        used = own if len(own) >= FEWEST_CHECKS else rows
        if not used:
            return None
        stated = float(np.quantile([off_by(row["predicted"], row["measured"]) for row in used], HELD, method="higher"))
        return stated if used is own else max([stated, *(off_by(row["predicted"], row["measured"]) for row in own)])

    @property
    def version(self) -> int:
        """Of the fit: 1 as it was made, one more with each plan learned or checked since."""
        return self.history[-1]["version"] if self.history else 1

    def note(self, what: str) -> None:
        """Give the fit a new version, with the date and what changed."""
        if not self.history:  # what was before, so that a first change is seen to be one
            self.history = [{"version": 1, "date": None, "plans": None, "checks": None, "error": None, "what": "made"}]
        error = self._stated(self.left_out())
        self.history = [
            *self.history,
            {
                "version": self.version + 1,
                "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "plans": len(self.plans),
                "checks": len(self.checks),
                "error": error,
                "what": what,
            },
        ][-KEPT_VERSIONS:]

    def check(self, predicted: float, measured: float, text: str, **more: Any) -> bool:
        """Keep the rise that was predicted for an evaluated plan beside the one that was measured; `more` are further
        fields of `Check`, None for one that is not known. Returns whether anything of that was new: a plan that is
        known by its id or by these very figures counts once, and gains the fields that it had not."""
        entry: dict[str, Any] = {"predicted": predicted, "measured": measured, "text": text}
        more = {key: value for key, value in more.items() if value is not None}
        for known in cast(list[dict[str, Any]], self.checks):
            if known.get("id") == more.get("id", object()) or all(known[key] == value for key, value in entry.items()):
                added = {key: value for key, value in more.items() if key not in known}
                known |= added
                return bool(added)
        self.checks.append(cast(Check, entry | more))
        return True

    def to_json(self) -> dict[str, Any]:
        """The calibration's file."""
        return {"format": FORMAT, "version": VERSION} | self.__dict__

    @classmethod
    def load(cls, file: str | Path) -> "Calibration":
        """A calibration from its file. Raises InputError that names the file and what is wrong with it."""
        return cls._of(schemas.read(file, "calibration"))

    @classmethod
    def from_json(cls, document: dict[str, Any], source: str = "calibration") -> "Calibration":
        """A calibration from its JSON form, of this version of the file or an older one. Raises InputError for a newer
        one, and for what is none."""
        schemas.check(document, "calibration", source)
        return cls._of(document)

    @classmethod
    def _of(cls, document: dict[str, Any]) -> "Calibration":
        names = {each.name for each in fields(cls)}
        return cls(**{key: value for key, value in document.items() if key in names})


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
