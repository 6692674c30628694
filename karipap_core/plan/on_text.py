"""A model on the text that a study calibrates on: the windows that it is run on, and what measures it there."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from karipap_core.checkpoint.kinds import positions_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.progress import Progress
from karipap_core.text import Text, read_text, standard_library

if TYPE_CHECKING:  # torch, seconds: a study that finds everything in the workspace needs none
    import torch

    from karipap_core.models.pictures import Shown
    from karipap_core.plan.probe import Probe
    from karipap_core.plan.streamed_probe import StreamedProbe
    from karipap_core.profiles.activations import CalibrationSettings, SeenImages, Windows

HELD = 512 << 20  # bytes of a model in float32, up to which it is held in memory to be measured
REFINED = 2 << 30  # bytes up to which `best` holds it in memory for the rule `refined`, which needs that
FEW_WINDOWS = 8  # on which a handful of weights are measured, to set the scale of what gradients say
Which = Literal["probe", "check", "few"]  # `few`: of those for probing


def is_large(checkpoint: Checkpoint) -> bool:
    """Whether a model is measured block by block, if its blocks can be run apart."""
    return 4 * checkpoint.parameters > HELD and checkpoint.kind not in (None, "encoder-decoder")


class OnText:
    """checkpoint: of the model. text, settings, device: see `Study`."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: str | Path | Text | None,
        settings: "CalibrationSettings | None",
        device: str,
        progress: Progress,
    ) -> None:
        self.checkpoint, self.device_name, self.progress = checkpoint, device, progress
        self._text, self._settings = text, settings
        self._probes: dict[str, Probe] = {}
        self._streamed: dict[str, StreamedProbe] = {}

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

    @cached_property
    def model(self):
        from karipap_core.models.load import load_model

        return load_model(self.checkpoint, device=self.device)

    @cached_property
    def windows(self) -> "Windows":
        from karipap_core.profiles.activations import calibration_windows

        model, tokenizer = self._built
        return calibration_windows(tokenizer, self.text, self.settings, model.config.get_text_config().vocab_size)

    @cached_property
    def images(self) -> "SeenImages":
        from karipap_core.profiles.activations import calibration_images

        return calibration_images(self._built[0], self.checkpoint, self.text)

    @property
    def _built(self):
        """The model and its tokenizer, without its weights where these are read block by block."""
        if not self.apart:
            return self.model
        from karipap_core.models.empty import empty_model
        from karipap_core.models.load import load_tokenizer

        return empty_model(self.checkpoint), load_tokenizer(self.checkpoint.home)

    @cached_property
    def apart(self) -> bool:
        """Whether changes are measured block by block (plan/streamed_probe.py), since the model is too large to be held
        for it."""
        if not is_large(self.checkpoint):
            return False
        from karipap_core.profiles.blockpass import runs_apart

        return runs_apart(self.checkpoint, self.device)

    @property
    def refines(self) -> bool:
        """Whether `best` tries the rule `refined`."""
        return not self.apart or 4 * self.checkpoint.parameters <= REFINED

    @property
    def probe(self) -> "Probe":
        """The dense model on the windows that sensitivities are measured on."""
        return self._probe("probe")

    @property
    def check(self) -> "Probe":
        """The dense model on the windows that whole plans are measured on."""
        return self._probe("check")

    def gauge(self, windows: Which) -> "Probe | StreamedProbe":
        """What measures changes of the model on these windows (`few`: of those for probing), in memory or block by
        block (`apart`)."""
        if not self.apart:
            return self._probe(windows)
        if windows not in self._streamed:
            from karipap_core.plan.streamed_probe import StreamedProbe

            ids, shown = self._shown(windows)
            self._streamed[windows] = StreamedProbe(self.checkpoint, ids, self.device, shown, self.progress)
        return self._streamed[windows]

    @property
    def dense_loss(self) -> float:
        """Of the dense model on the windows that whole plans are measured on, nats a token; 0 where it has none."""
        return self.gauge("check").dense.loss if self.checkpoint.predicts else 0.0

    @cached_property
    def why_not_run(self) -> str | None:
        """Why nothing can be measured by running the model on the text, None where it can: tried once."""
        if self.checkpoint.kind is None:
            return f"{self.checkpoint.name} has no config.json that names its architecture: it cannot run."
        try:
            if self.apart:
                from karipap_core.models.load import check

                check(self.checkpoint)
            else:
                _ = self.check
        except InputError as error:
            return str(error)
        return None

    def _probe(self, windows: Which) -> "Probe":
        if windows not in self._probes:
            from karipap_core.plan.probe import Probe

            self.release()  # what a probe measures first is its own dense self
            ids, shown = self._shown(windows)
            self._probes[windows] = Probe(self.model[0], self.checkpoint, ids, images=shown)
        return self._probes[windows]

    def _shown(self, windows: str) -> "tuple[torch.Tensor, Sequence[Shown]]":
        name, some = ("probe", slice(FEW_WINDOWS)) if windows == "few" else (windows, slice(None))
        return getattr(self.windows, name)[some], getattr(self.images, name)[some]

    def release(self) -> None:
        """Make the model in memory dense again, for whoever measures it besides; loads nothing."""
        for probe in self._probes.values():
            probe.restore()
