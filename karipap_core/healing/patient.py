"""The folder that is healed, the dense model that it was made from, and the folder that comes of it."""

import shutil
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.checks import as_written
from karipap_core.compressed.records import REPORT, read, report_of
from karipap_core.errors import InputError
from karipap_core.progress import Progress
from karipap_core.workspace.kept import keep_json

if TYPE_CHECKING:  # torch and transformers take seconds to import
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WORK = ".healing"


class Patient:
    """The folder to be healed, and the dense model that it was made from."""

    def __init__(self, folder: Path, distill: str | Path | None, taught: bool, instead: str = "") -> None:
        """taught: whether the dense model is learnt from; instead: what to say that there is to do where it is not
        here. Raises InputError for what cannot be healed."""
        from karipap_core.evaluation.folder import dense_model_of

        self.checkpoint = open_checkpoint(folder, compressed=True)
        method = self.checkpoint.config.get("quantization_config") or {}
        if method.get("quant_method") != "karipap":
            raise InputError(f"{folder} is not a model compressed by Karipap: there is nothing to heal.")
        if self.checkpoint.kind != "causal":
            raise InputError(f"{folder} is an {self.checkpoint.kind} model: only causal models are healed.")
        self.folder, self.plan = self.checkpoint.path, method["plan"]
        self.notes: list[str] = []
        self.source = dense_model_of(self.folder, distill, self.notes)
        if self.source is None and taught:
            raise InputError(
                f"The dense model that {folder} was made from is not found here unchanged: name it with "
                f"--distill{instead}."
            )
        self.teacher: str | None = None  # its identity
        if self.source is not None and taught:
            self.teacher = open_checkpoint(self.source).identity

    def load(self, device: "str | torch.device") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase | None]":
        """The compressed model and a tokenizer, the dense model's where the folder has none."""
        from karipap_core.models.load import load_model

        model, _ = load_model(self.checkpoint, device=str(device))
        return model, self.tokenizer

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase | None":
        """The folder's tokenizer, the dense model's where it has none."""
        from karipap_core.models.load import load_tokenizer

        found = load_tokenizer(self.checkpoint.home)
        if found is None and self.source is not None and Path(self.source).is_dir():
            found = load_tokenizer(self.source)
        return found

    def load_dense(self, device: "str | torch.device") -> "PreTrainedModel | None":
        """The dense model that the folder was made from, None where it is not here."""
        from karipap_core.models.load import load_model

        if self.source is None:
            return None
        model, _ = load_model(self.source, device=str(device))
        model.requires_grad_(False)
        return model

    # The folder that comes of it.

    def kept(self, key: str, out: Path) -> dict | None:
        """The result of the healing `key` where `out` holds it undamaged. Raises InputError where `out` holds something
        else."""
        report = report_of(out)
        healing = report.get("healing") or {}
        ours = healing.get("identity") == key
        if not ours and out.exists() and (not out.is_dir() or any(file.name[0] != "." for file in out.iterdir())):
            raise InputError(f"Folder {out} is not empty and holds no model healed like this: name another one.")
        return healing["result"] if ours and as_written(out, report) else None

    def write(
        self,
        key: str,
        settings: dict[str, Any],
        result: dict,
        tensors: "dict[str, torch.Tensor]",
        out: Path,
        progress: Progress,
    ) -> None:
        """Writes `out`: this folder with the numbers in `tensors` (name on disk → values) in the place of its own."""
        from karipap_core.healing.folder import write_healed

        report = {"format": "karipap-report", "version": 1} | report_of(self.folder)
        if self.source is not None and "source" not in report:
            report["source"] = str(self.source)
        healing = {
            "identity": key,
            "from": str(self.folder.resolve()),
            "from_fingerprint": self.checkpoint.fingerprint,
            "settings": settings,
            "result": result,
        }
        progress("write", 0, 1, out.name)
        write_healed(self.checkpoint, tensors, out, report | {"healing": healing})
        progress("write", 1, 1)

    def verified(self, found: dict, out: Path, progress: Progress) -> dict:
        """The result with the verdict on `out`, which is kept there; the work in progress is removed."""
        from karipap_core.compressed.verify import verify

        if read(out, "verify") is None or "verify" not in (report_of(out).get("result") or {}):
            verdict = verify(out, self.source, progress=progress)
            report = report_of(out)
            result = (report.get("result") or {}) | {"verify": {key: verdict[key] for key in ("ok", "checks")}}
            keep_json(out / REPORT, report | {"result": result})
        shutil.rmtree(out / WORK, ignore_errors=True)
        return found | {"verify": report_of(out)["result"]["verify"]}
