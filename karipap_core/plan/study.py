"""One model and one calibration text: everything that is found out about them, each thing once.

A `Study` opens the checkpoint and gives, when first asked and from the workspace ever after: moments, profiles, curves,
decompositions, the calibration, and probes on the dense model in memory. Verbs and pages work through it.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.checkpoint.model import Checkpoint, Weight
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.reach import know
from karipap_core.errors import InputError
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.checks import WholePlan
from karipap_core.plan.curves import Curves, build_curves, build_group_curves, load_curves, save_curves
from karipap_core.plan.kind import Kind
from karipap_core.plan.seen import Seen, look
from karipap_core.profiles.build import build_profile
from karipap_core.profiles.document import Profile, profile_key, profile_settings
from karipap_core.progress import Progress, silent
from karipap_core.text import Text, read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

if TYPE_CHECKING:  # torch, seconds: a study that finds everything in the workspace needs none
    from karipap_core.plan.decompositions import Decompositions
    from karipap_core.plan.document import Plan
    from karipap_core.plan.probe import Probe
    from karipap_core.profiles.activations import CalibrationSettings, Moments, SeenImages, Windows
    from karipap_core.spectra.metric import Metric

WHOLE_PROFILE = ("weight", "functional", "loss")


class Study:
    """model: folder, file or hub id. text: path or Text to calibrate on (default: the standard library's calibration
    modules). settings: activations.CalibrationSettings."""

    def __init__(
        self,
        model: str | Path | Checkpoint,
        text: str | Path | Text | None = None,
        settings: "CalibrationSettings | None" = None,
        device: str = "auto",
        workspace: Workspace | None = None,
        progress: Progress = silent,
    ) -> None:
        opened = open_checkpoint(model, progress=progress) if isinstance(model, str | Path) else model
        self.checkpoint: Checkpoint = opened
        self._text, self._settings = text, settings
        self.device_name, self.progress = device, progress
        self.workspace = workspace or Workspace()
        self.workspace.adopt(self.checkpoint)
        self._curves: dict[tuple[Kind, str, str], Curves] = {}
        self._probes: dict[str, Probe] = {}
        self._calibrations: dict[str, Calibration] = {}
        self._decompositions: dict[str, Decompositions] = {}

    def __repr__(self) -> str:
        text = self._text.name if isinstance(self._text, Text) else self._text or "the standard library"
        return f"<Study of {self.checkpoint.name}, calibrated on {text}>"

    # The text and what the model does on it.

    @cached_property
    def text(self) -> Text:
        if isinstance(self._text, Text):
            return self._text
        return standard_library("calibration") if self._text is None else read_text(self._text)

    @cached_property
    def settings(self) -> "CalibrationSettings":
        from karipap_core.profiles.activations import CalibrationSettings

        settings = self._settings or CalibrationSettings()
        positions = positions_of(self.checkpoint.config.get("text_config") or self.checkpoint.config)
        if positions is not None and positions < settings.window:
            settings = replace(settings, window=positions)
        return settings

    @property
    def device(self) -> str:
        from karipap_core.spectra.spectrum import pick_device

        return pick_device(self.device_name)

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
        return entry | asdict(self.settings)

    @cached_property
    def moments(self) -> "Moments":
        from karipap_core.profiles.activations import Moments

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
    def model(self):
        from karipap_core.models.load import load_model

        return load_model(self.checkpoint, device=self.device)

    @cached_property
    def windows(self) -> "Windows":
        from karipap_core.profiles.activations import calibration_windows

        model, tokenizer = self.model
        return calibration_windows(tokenizer, self.text, self.settings, model.config.get_text_config().vocab_size)

    @cached_property
    def images(self) -> "SeenImages":
        from karipap_core.profiles.activations import calibration_images

        return calibration_images(self.model[0], self.checkpoint, self.text)

    @cached_property
    def seen(self) -> Seen:
        """What each weight saw of the calibration text; of a model that cannot run on it nothing is known."""
        file = self.folder / "seen" / f"{self.key}.json"
        if (found := kept_json(file, "seen")) is None:
            if self.why_not_run is not None:
                return Seen()
            self.progress("what weights see", 0, 1)
            self.release()
            keep_json(file, found := look(self.probe, self.weights).to_json())
            self.progress("what weights see", 1, 1)
        return Seen.from_json(found)

    @property
    def measurable(self) -> list[Weight]:
        """The weights that a plan can compress and the text reaches: of others no measurement says anything."""
        return [weight for weight in self.weights if weight.name not in self.seen.unseen]

    @property
    def probe(self) -> "Probe":
        """The dense model on the windows that sensitivities are measured on."""
        return self._probe("probe")

    @property
    def check(self) -> "Probe":
        """The dense model on the windows that whole plans are measured on."""
        return self._probe("check")

    @cached_property
    def why_not_run(self) -> str | None:
        """Why nothing can be measured by running the model on the text, None where it can: tried once."""
        if self.checkpoint.kind is None:
            return f"{self.checkpoint.name} has no config.json that names its architecture: it cannot run."
        try:
            _ = self.check
        except InputError as error:
            return str(error)
        return None

    def _probe(self, windows: Literal["probe", "check"]) -> "Probe":
        if windows not in self._probes:
            from karipap_core.plan.probe import Probe

            self.release()  # what a probe measures first is its own dense self
            shown = getattr(self.images, windows)
            self._probes[windows] = Probe(self.model[0], self.checkpoint, getattr(self.windows, windows), images=shown)
        return self._probes[windows]

    def release(self) -> None:
        """Make the model in memory dense again: every weight that a probe has replaced is put back.

        For whoever measures `model` besides; loads nothing where nothing was loaded.
        """
        for probe in self._probes.values():
            probe.restore()

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
        return build_profile(self.checkpoint, metrics, network, wanted, self.device_name, self.progress, folder)

    def _spectra(self, metric: str) -> Profile:
        """A profile that has the spectra under a metric: under `weight` one for which nothing has to be run will do."""
        settings = profile_settings(WHOLE_PROFILE, None, self.text, self.settings)
        there = self.workspace.profile_dir(self.checkpoint.key, profile_key(settings)) / "profile.json"
        return self.profile() if metric != "weight" or there.exists() else self.profile(("weight",))

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
        source = "none" if metric == "weight" else self.key
        return self.folder / "curves" / f"{kind.label.replace(' ', '-')}{which}-{metric}-{source}.safetensors"

    def _new_curves(self, kind: Kind, metric: str, weights: list[Weight]) -> Curves:
        decompositions = self.decompositions(metric)
        if kind.grouped:
            return build_group_curves(self.checkpoint, weights, kind, decompositions, self.progress)
        exact = kind == Kind("lowrank") and all(weight.compressible for weight in weights)
        profile = self._spectra(metric) if exact else None  # it has the spectra of the blocks' weights, not of tables
        return build_curves(self.checkpoint, weights, kind, metric, profile, decompositions, self.progress)

    def entropies(self, metric: str) -> dict[str, float]:
        rows = self._spectra(metric).weights
        return {row["name"]: row["spectra"].get(metric, row["spectra"]["weight"])["entropy"] for row in rows}

    def decompositions(self, metric: str) -> "Decompositions":
        from karipap_core.plan.decompositions import Decompositions

        if metric not in self._decompositions:
            moments = None if metric == "weight" else self.moments
            self._decompositions[metric] = Decompositions(
                self.checkpoint, moments, metric, self.folder / "cores", table_metric=self.table_metric
            )
        return self._decompositions[metric]

    # The calibration.

    def calibration_file(self, metric: str) -> Path:
        return self.workspace.calibration_file(self.checkpoint.key, f"{metric}-{self.key}")

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

            levels = measure_levels(self.probe, self.decompositions(found.metric), missing, {}, self.progress, kind)
            found.levels |= {name + mark: rows for name, rows in levels.items()}
            keep_json(self.calibration_file(found.metric), found.to_json())

    def _calibrate(self, metric: str, file: Path) -> dict:
        from karipap_core.plan.damage import KeptOnDisk, measure_levels
        from karipap_core.plan.planner import Planner

        if self.why_not_run is not None:
            raise InputError(self.why_not_run)
        partial = KeptOnDisk(file.with_suffix(".partial.json"))
        levels = measure_levels(self.probe, self.decompositions(metric), self.measurable, partial, self.progress)
        causal = self.checkpoint.predicts
        self._calibrations[metric] = calibration = Calibration(
            metric=metric,
            measure="kl" if causal else "output error",
            text=self.calibration_entry(),
            dense_loss=self.check.dense.loss if causal else 0.0,
            levels=levels,
            tokens=self.probe.tokens,
        )
        planner = Planner(self, "lowrank", metric)
        for number, weights in enumerate(plans := planner.plans_to_fit(self.measurable)):
            self.progress("whole plans", number, len(plans))
            planner.measure(weights, learn=True)
        self.progress("whole plans", len(plans), len(plans))
        measured = calibration.to_json()
        keep_json(file, measured)
        partial.file.unlink(missing_ok=True)
        return json.loads(json.dumps(measured))  # as it will be found

    def check_prediction(self, plan: "Plan", measured: dict, text: str) -> None:
        """Hold the curve's prediction of an evaluated plan against what was measured; the calibration keeps both, and
        its fit gets a new version."""
        from karipap_core.plan.predictions import add_check

        if not self.calibration_file(plan.metric).exists() and not self.has_calibration(plan.metric):
            return
        if self.text.images is not None:
            return  # predicted is the rise over text and images together, measured that on text alone
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
