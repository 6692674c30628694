"""C and G of every weight that a plan can compress, kept on disk a block a file: for whoever needs them again after the
pass that found them, such as networks that are fitted anew for each size, and GPTQ."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.errors import InputError
from karipap_core.models.load import check
from karipap_core.profiles.activations import CalibrationSettings
from karipap_core.profiles.blockpass import look_over, wanted
from karipap_core.profiles.estimate import of_pass, tell
from karipap_core.profiles.watching import BlockSeen, NoFinder
from karipap_core.progress import Progress, silent
from karipap_core.spectra.metric import Metric
from karipap_core.text import Text
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, keep_tensors, kept_json, kept_note, kept_tensors
from karipap_core.workspace.locks import only_writer

INDEX = "index.json"


class Moments:
    """C and G of every compressible weight: in memory those of the block that was asked for last.

    `metric(name, which)` gives the Metric of a weight, from disk where it is kept; else all are found by one pass over
    the blocks and kept, 8 bytes a number. `small` says whether they may be kept unasked. Raises InputError for a weight
    that the model does not have, and for a checkpoint that cannot be run.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        text: Text,
        settings: CalibrationSettings,
        folder: Path,
        device: str = "cpu",
        progress: Progress = silent,
    ) -> None:
        self.checkpoint, self.text, self.settings = checkpoint, text, settings
        self.device, self.progress = device, progress
        key = {"fingerprint": checkpoint.fingerprint, "text": text.sha256, "settings": asdict(settings)}
        self.folder = Path(folder) / settings_key(key)
        self._files = self._kept()
        self._loaded: BlockSeen | None = None

    @property
    def bytes(self) -> int:
        """Of all moments on disk, at most."""
        sides = (side for weight in self.checkpoint.weights if weight.compressible for side in weight.shape)
        return sum(8 * side**2 for side in sides)

    def metric(self, name: str, which: str) -> Metric:
        """The Metric of a weight: `weight`, `functional` (C), `loss` (C and G). Weights that share an input share C."""
        return Metric("weight") if which == "weight" else self._of(name).metric(name, which)

    def borrowed(self, name: str) -> str | None:
        """One sentence where an expert saw too few tokens for moments of its own, None for any other weight."""
        return self._of(name).borrowed(name)

    def keep(self, seen: BlockSeen) -> None:
        """Keeps the moments of a block."""
        file = f"moments-{hashlib.sha256(str(seen.block).encode()).hexdigest()[:16]}.safetensors"
        note = {"keys": json.dumps(seen.keys), "few": json.dumps(seen.few), "block": json.dumps(seen.block)}
        keep_tensors(self.folder / file, seen.tensors, note)
        self._files |= self._kept() | {weight.name: file for weight in seen.weights}  # another pass may be under way
        keep_json(self.folder / INDEX, {"files": self._files})

    def _of(self, name: str) -> BlockSeen:
        if self._loaded is not None and name in self._loaded.keys:
            return self._loaded
        if not self.checkpoint.weight(name).compressible:
            raise InputError(f"Weight {name} has no activations: only compressible weights are looked at.")
        found = self._read(name)
        if found is None:
            check(self.checkpoint)  # before a folder is made for a model that cannot run
            scratch = self.folder.with_name(f"{self.folder.name}-pass")
            with only_writer(scratch, "a pass over the model", waiting=self.progress):
                self._files |= self._kept()  # by another process, while this one waited
                if (found := self._read(name)) is None:
                    self._pass(scratch)
                    found = self._read(name)
        if found is None:
            raise InputError(f"Weight {name} is nowhere in the model that runs: leave it dense.")
        self._loaded = found
        return found

    def _pass(self, scratch: Path) -> None:
        looked = replace(wanted(self.checkpoint, self.settings, self.text), probing=0, keep_moments=True)
        tell(scratch, of_pass(self.checkpoint, looked), self.device, self.progress)
        look_over(
            self.checkpoint,
            self.text,
            self.settings,
            scratch,
            _Keeper(self),
            self.device,
            probing=False,
            progress=self.progress,
        )

    def _kept(self) -> dict[str, str]:
        """The file of each weight whose moments are kept."""
        index = kept_json(self.folder / INDEX)
        return index["files"] if index else _of_groups(self.folder)

    def _read(self, name: str) -> BlockSeen | None:
        if name not in self._files or (kept := kept_tensors(self.folder / self._files[name])) is None:
            return None
        tensors, note = kept
        seen = BlockSeen(json.loads(note.get("block", "null")), [], self.settings.damping)
        seen.tensors, seen.few = tensors, json.loads(note.get("few", "{}"))
        seen.keys = {name: (c, g) for name, (c, g) in json.loads(note["keys"]).items()}
        return seen


def _of_groups(folder: Path) -> dict[str, str]:
    """Where each weight's moments were kept before there was an index: by groups of layers."""
    files = sorted(folder.glob("moments-[0-9][0-9][0-9][0-9].safetensors"))
    notes = {file.name: kept_note(file) for file in files}
    return {name: file for file, note in notes.items() if note for name in json.loads(note["keys"])}


class _Keeper(NoFinder):
    """Keeps all moments that a pass finds."""

    def __init__(self, moments: Moments) -> None:
        self._moments = moments

    def moments(self, seen: BlockSeen) -> None:
        self._moments.keep(seen)
