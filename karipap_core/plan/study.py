"""One model and one calibration text: everything that is found out about them, each thing once.

A `Study` opens the checkpoint and gives, when first asked and from the workspace ever after: moments, profiles, curves,
decompositions, the calibration, and probes on the dense model in memory. Verbs and pages work through it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.reach import know
from karipap_core.errors import InputError, unknown
from karipap_core.plan.calibration import ALL, Calibration
from karipap_core.plan.checks import WholePlan
from karipap_core.plan.choice import Choice
from karipap_core.plan.curves import Curves, build_curves, build_group_curves, load_curves, save_curves
from karipap_core.plan.kind import ROUNDINGS, WHOLE, Kind, curves_name, kinds_of, prefix_of
from karipap_core.plan.on_text import OnText
from karipap_core.plan.places import seen_file, whole_profile
from karipap_core.plan.seen import Seen, look, looked_at
from karipap_core.profiles.build import build_profile
from karipap_core.profiles.document import Profile, profile_key, profile_settings
from karipap_core.progress import Progress, silent
from karipap_core.text import Text
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:  # torch, seconds: a study that finds everything in the workspace needs none
    from karipap_core.plan.decompositions import Decompositions
    from karipap_core.plan.document import Plan
    from karipap_core.profiles.activations import CalibrationSettings
    from karipap_core.profiles.moments import Moments
    from karipap_core.spectra.metric import Metric

Measure = Literal["gradients", "all"]
WHOLE_PROFILE = ("weight", "functional", "loss")


class Study(OnText):
    """model: folder, file or hub id. text: path or Text to calibrate on (default: the standard library's calibration
    modules). settings: activations.CalibrationSettings. measure: how the damage of truncations is found: from
    "gradients" (plan/gradients.py), or of "all" weights by forward passes. rounding: of numbers in few bits under the
    loss metric, one of `ROUNDINGS`."""

    def __init__(
        self,
        model: str | Path | Checkpoint,
        text: str | Path | Text | None = None,
        settings: "CalibrationSettings | None" = None,
        device: str = "auto",
        workspace: Workspace | None = None,
        progress: Progress = silent,
        measure: Measure = "gradients",
        rounding: str = ROUNDINGS[0],
    ) -> None:
        if measure not in get_args(Measure):
            raise unknown("Measure", measure, get_args(Measure))
        if rounding not in ROUNDINGS:
            raise unknown("Rounding", rounding, ROUNDINGS)
        opened = open_checkpoint(model, progress=progress) if isinstance(model, str | Path) else model
        super().__init__(opened, text, settings, device, progress)
        self.measure, self.rounding = measure, rounding
        self.needs_moments = False  # whether a pass is to keep them, however large; see `expect`
        self.workspace = workspace or Workspace()
        self.workspace.adopt(self.checkpoint)
        self._curves: dict[tuple[Kind, str, str], Curves] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._decompositions: dict[tuple[str, str], Decompositions] = {}

    def __repr__(self) -> str:
        text = self._text.name if isinstance(self._text, Text) else self._text or "the standard library"
        return f"<Study of {self.checkpoint.name}, calibrated on {text}>"

    # What is kept where.

    @property
    def folder(self) -> Path:
        """This model's folder in the workspace."""
        return self.workspace.model_dir(self.checkpoint.key)

    @property
    def key(self) -> str:
        """Names model, text and settings: where what was measured on them is kept."""
        return settings_key({"text": self.text.sha256, "settings": asdict(self.settings)})

    def calibration_entry(self) -> dict[str, Any]:
        """The plan's `calibration` field: the text that its numbers and its cores come from."""
        images = {"images": self.text.images.facts()} if self.text.images else {}
        entry = {"text": self.text.name, "path": self.text.path, "sha256": self.text.sha256} | images
        return entry | asdict(self.settings) | ({"measure": "all"} if self.measure == "all" else {})

    @cached_property
    def moments(self) -> "Moments":
        from karipap_core.profiles.moments import Moments

        return Moments(
            self.checkpoint, self.text, self.settings, self.folder / "moments", self.device, progress=self.progress
        )

    @cached_property
    def weights(self) -> list[Weight]:
        """The weights that a plan can compress: the compressible ones that the live model holds as linear layers. From
        then on the checkpoint calls no other compressible.

        Raises InputError for an adapter's update, which is no model.
        """
        if self.checkpoint.missing:
            raise InputError(self.checkpoint.missing)
        if not know(self.checkpoint):
            from karipap_core.models.sites import find_reach  # transformers, seconds

            find_reach(self.checkpoint)
        return [weight for weight in self.checkpoint.weights if weight.compressible]

    @cached_property
    def tables(self) -> list[Weight]:
        """The tables of tokens (embedding, and a head that is not tied to it) that a plan can compress."""
        _ = self.weights
        names = set(self.checkpoint.reachable_tables)
        return [weight for weight in self.checkpoint.weights if weight.name in names]

    def table_metric(self, name: str) -> "Metric":
        """The metric of a table of tokens: each row weighs as often as its token comes in the calibration text."""
        import torch

        from karipap_core.networks.tt_embedding import frequency_metric

        rows = self.checkpoint.weight(name).shape[0]
        counts = torch.bincount(self.windows.moments.flatten(), minlength=rows)
        return frequency_metric(counts[:rows], damping=self.settings.damping)

    @cached_property
    def seen(self) -> Seen:
        """What each weight saw of the calibration text; of a model that cannot run on it nothing is known."""
        file = seen_file(self.folder, self.key)
        if (found := kept_json(file, "seen")) is None:
            if self.why_not_run is not None:
                return Seen()
            self.progress("what weights see", 0, 1)
            self.release()
            if self.apart:
                from karipap_core.plan.onepass import told_of

                counts, touched = told_of(self)
                seen = looked_at(self.gauge("probe"), self.checkpoint, self.weights, counts, touched)
            else:
                seen = look(self.probe, self.checkpoint, self.weights)
            keep_json(file, found := seen.to_json())
            self.progress("what weights see", 1, 1)
        return Seen.from_json(found)

    @property
    def measurable(self) -> list[Weight]:
        """The weights that a plan can compress and the text reaches: of others no measurement says anything."""
        return [weight for weight in self.weights if weight.name not in self.seen.unseen]

    def expect(self, choices: Iterable[Choice], metric: str) -> None:
        """Says which networks are going to be asked for: all but the low-rank cuts that a pass makes itself are fitted
        to moments, which would else take a second pass where they are too large to be kept unasked."""
        if metric != "weight" and not self.needs_moments:
            kinds = {kind for each in choices for kind in kinds_of(each.network, each.quantize, each.structure)}
            self.needs_moments = not kinds <= {Kind("lowrank"), WHOLE}

    # Spectra and curves.

    def profile(self, metrics=WHOLE_PROFILE, network: str | None = None) -> Profile:
        """The profile under these metrics, from the workspace where it is there; of an adapter's update under `weight`
        alone, since it is no model that could be run."""
        metrics = ("weight",) if self.checkpoint.missing else metrics
        wanted = self.moments if tuple(metrics) != ("weight",) else None
        settings = profile_settings(metrics, network, wanted and self.text, wanted and self.settings)
        folder = self.workspace.profile_dir(self.checkpoint.key, profile_key(settings))
        with suppress(InputError):  # of a model that cannot be built the spectra are there all the same
            _ = self.weights
        if wanted is not None and settings["network"] is None:
            from karipap_core.plan.onepass import one_pass  # torch

            one_pass(self, settings)
        return build_profile(self.checkpoint, metrics, network, wanted, self.device_name, self.progress, folder)

    def _spectra(self, metric: str) -> Profile:
        """A profile that has the spectra under a metric: under `weight` one for which nothing has to be run will do."""
        if metric == "weight" and not whole_profile(self).exists():
            return self.profile(("weight",))
        if not whole_profile(self).exists():
            from karipap_core.plan.onepass import one_pass  # torch

            one_pass(self, profile_settings(WHOLE_PROFILE, None, self.text, self.settings), metric)
        return self.profile()

    def curves(self, kind: Kind | str, metric: str, weights: list[Weight] | None = None) -> Curves:
        """The curves (curves.py) of a kind of network under a metric.

        weights : those of the blocks (the default) or `tables`, whose curves are kept in the workspace. Any others' are
        made anew each time, and kept under neither name.
        """
        kind = Kind(kind) if isinstance(kind, str) else kind
        if weights is None or weights == self.weights:
            return self._kept_curves(kind, metric, "", self.weights)
        if weights == self.tables:
            return self._kept_curves(kind, metric, "-tables", weights)
        return self._new_curves(kind, metric, weights)

    def _kept_curves(self, kind: Kind, metric: str, which: str, weights: list[Weight]) -> Curves:
        key = (kind, metric, which)
        if key not in self._curves:
            file = self.curves_file(kind, metric, which)
            found = load_curves(file)
            # Another version may have reached fewer weights.
            if found is None or not (kind.grouped or all(weight.name in found for weight in weights)):
                found = self._new_curves(kind, metric, weights)
                save_curves(file, found)
            self._curves[key] = found
        return self._curves[key]

    def curves_file(self, kind: Kind, metric: str, which: str = "") -> Path:
        """Where the curves of a kind of network are kept; `which`: "-tables" for those of the tables of tokens."""
        return self.folder / "curves" / curves_name(kind, metric, self.key, self.rounding, which)

    def _new_curves(self, kind: Kind, metric: str, weights: list[Weight]) -> Curves:
        decompositions = self.decompositions(metric)
        if kind.grouped:
            return build_group_curves(weights, kind, decompositions, self.progress)
        exact = kind == Kind("lowrank") and all(weight.compressible for weight in weights)
        profile = self._spectra(metric) if exact else None  # it has the spectra of the blocks' weights, not of tables
        return build_curves(weights, kind, metric, profile, decompositions, self.progress)

    def entropies(self, metric: str) -> dict[str, float]:
        rows = self._spectra(metric).weights
        return {row["name"]: row["spectra"].get(metric, row["spectra"]["weight"])["entropy"] for row in rows}

    def decompositions(self, metric: str, rounding: str | None = None) -> "Decompositions":
        """The cores of weights under a metric. rounding : default the study's own."""
        from karipap_core.plan.decompositions import Decompositions

        key = metric, rounding or self.rounding
        if key not in self._decompositions:
            moments = None if metric == "weight" else self.moments
            self._decompositions[key] = Decompositions(
                self.checkpoint, moments, *key, self.folder / "cores", table_metric=self.table_metric
            )
        return self._decompositions[key]

    def decompositions_of(self, plan: "Plan") -> "Decompositions":
        """Those that a plan asks for."""
        return self.decompositions(plan.metric, plan.rounding or "one-sided")

    # The calibration.

    def calibration_file(self, metric: str) -> Path:
        """Where a calibration is kept. One by forward passes for each weight serves both ways, one by gradients only
        where these are asked for."""
        file, other = (
            self.workspace.calibration_file(self.checkpoint.key, f"{metric}-{self.key}{end}") for end in ("", ALL)
        )
        return other if self.measure == "all" and (kept_json(file) or {}).get("gradients") else file

    def has_calibration(self, metric: str) -> bool:
        return metric in self._calibrations or self.calibration_file(metric).exists()

    def calibration(self, metric: str, tables: Sequence[Weight] = (), kind: Kind | None = None) -> Calibration:
        """The measured sensitivity of every weight (and of these tables in this kind of network) under a metric, and
        the fit through whole plans."""
        if metric not in self._calibrations:
            file = self.calibration_file(metric)
            if (measured := kept_json(file, "calibration")) is None:
                with only_writer(file, "calibration", waiting=self.progress):
                    measured = kept_json(file, "calibration") or self._calibrate(metric, file)
            self._calibrations[metric] = Calibration.from_json(measured)
        found = self._calibrations[metric]
        self._add_levels(found, self.measurable, Kind("lowrank"))  # some may have been out of reach of an older version
        self._add_levels(found, tables, kind or Kind("lowrank"))
        return found

    def _add_levels(self, found: Calibration, weights: Sequence[Weight], kind: Kind) -> None:
        """Measure what a calibration does not know yet of these weights in a kind of network, and keep it."""
        mark = "" if kind.network == "lowrank" else f"|{kind.network}"
        if missing := [weight for weight in weights if weight.name + mark not in found.levels]:
            from karipap_core.plan.damage import measure_levels

            levels = measure_levels(
                self.gauge("probe"), self.decompositions(found.metric), missing, {}, self.progress, kind
            )
            found.levels |= {name + mark: rows for name, rows in levels.items()}
            keep_json(self.calibration_file(found.metric), found.to_json())

    def _calibrate(self, metric: str, file: Path) -> dict:
        from karipap_core.plan.calibrate import levels_measured
        from karipap_core.plan.planner import Planner

        if self.why_not_run is not None:
            raise InputError(self.why_not_run)
        self._calibrations[metric] = calibration = levels_measured(self, metric, file)
        self._add_levels(calibration, self.measurable, Kind("lowrank"))  # that no gradient comes back to
        planner = Planner(self, "lowrank", metric)
        plans = planner.plans_to_fit(self.measurable)
        self.progress("whole plans", 0, len(plans))
        planner.measure_each(plans, learn=True)
        self.progress("whole plans", len(plans), len(plans))
        measured = calibration.to_json()
        keep_json(file, measured)
        file.with_suffix(".partial.json").unlink(missing_ok=True)
        return json.loads(json.dumps(measured))  # as it will be found

    def prefix_of(self, wanted: str, weights: Mapping[str, Mapping[str, Any]]) -> str | None:
        """The field `prefix` of a plan of this model with these entries; see `kind.prefix_of`."""
        from karipap_core.profiles.blockpass import runs_apart

        return prefix_of(wanted, weights, lambda: self.why_not_run is None and runs_apart(self.checkpoint, self.device))

    def check_prediction(self, plan: "Plan", measured: dict, text: str) -> None:
        """Hold the curve's prediction of an evaluated plan against what was measured; the calibration keeps both, and
        its fit gets a new version."""
        from karipap_core.plan.predictions import add_check

        # With images what is predicted is the rise over text and images together, and measured that on text alone.
        if self.text.images is not None or not self.has_calibration(plan.metric):
            return
        calibration = self._calibrations[plan.metric] = self._latest(plan.metric)
        label = measured.get("label") or "a plan"
        if add_check(calibration, plan, measured, text):
            calibration.note(f"checked on {text}: {label}")
            keep_json(self.calibration_file(plan.metric), calibration.to_json())

    def learn(self, metric: str, measured: dict) -> None:
        """Add a measured whole plan to the calibration's fit, which gets a new version, and keep it."""
        file = self.calibration_file(metric)
        calibration = self._calibrations[metric] = self._latest(metric)
        kept = {key: measured[key] for key in ("kept_blocks", "sum", "rise", "divergence", "network")}
        calibration.plans.append(cast(WholePlan, kept))
        if file.exists():
            calibration.note(f"learned: {measured['network']}, {measured['kept_blocks']:.0%} of the blocks kept")
            keep_json(file, calibration.to_json())

    def _latest(self, metric: str) -> Calibration:
        """The calibration as it is on disk, where another process may have added to it."""
        measured = kept_json(self.calibration_file(metric), "calibration")
        return self.calibration(metric) if measured is None else Calibration.from_json(measured)
