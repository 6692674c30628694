"""The compressed model with the dense one behind a switch: what a server loads so that a step back needs no redeploy.

fallback = DenseFallback("compressed/")
model, tokenizer = fallback.load()     # the compressed model; with KARIPAP_FALLBACK=dense the dense one
fallback.switch("dense")               # or while it runs
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed.records import pinned, record, settings_of, source_of
from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent

SWITCH = "KARIPAP_FALLBACK"
SIDES = ("compressed", "dense")
PROBE_TOKENS = 8


class DenseFallback:
    """Loads one of two models, as the switch says: the argument `use` or `switch()`, else the environment variable
    KARIPAP_FALLBACK ("dense" or "compressed"), else compressed.

    folder: the compressed one; dense: the dense model (default: where the folder says that it was). dtype: a torch
    dtype, default each model's own. keep: both models stay in memory once loaded, so that a switch takes no time;
    else the other one is let go first. Safe to call from several threads. Raises InputError at once where the dense
    model is not here or is not the one that the plan pins: a fallback that does not work is found when the server
    starts, not when it is needed.
    """

    def __init__(
        self,
        folder: str | Path,
        dense: str | Path | None = None,
        use: str | None = None,
        device: str = "cpu",
        dtype=None,
        keep: bool = False,
    ) -> None:
        self.folder, self.device, self.dtype, self.keep = Path(folder), device, dtype, keep
        settings = settings_of(folder)
        source = source_of(folder, dense)
        if source.checkpoint is None:
            raise InputError(f"{source.why}.")
        self.dense, self.fingerprint = source.checkpoint.path, pinned(settings)
        self._check_dense()
        self._lock = threading.Lock()
        self._loaded: dict[str, tuple] = {}
        self.switch(use)

    @property
    def use(self) -> str:
        """Which model is served now."""
        side = self._chosen or os.environ.get(SWITCH) or SIDES[0]
        if side not in SIDES:
            raise InputError(f"{SWITCH}={side!r} is not one of {', '.join(SIDES)}.")
        return side

    def switch(self, use: str | None) -> None:
        """Serves the "dense" or the "compressed" model from the next `load` on; None: what the environment says."""
        if use is not None and use not in SIDES:
            raise InputError(f"Fallback {use!r} is not one of {', '.join(SIDES)}.")
        self._chosen = use

    def load(self) -> tuple:
        """(model in eval mode, tokenizer or None) of the side that the switch is on; loaded once."""
        with self._lock:
            side = self.use
            if side not in self._loaded:
                if not self.keep:
                    self._loaded.clear()
                self._loaded[side] = self._load(side)
            return self._loaded[side]

    def _load(self, side: str) -> tuple:
        import torch

        from karipap_core.models.load import load_model

        if side == "dense":
            self._check_dense()
        path = self.dense if side == "dense" else self.folder
        dtype = self.dtype
        if dtype is None:
            config = open_checkpoint(path, compressed=True).config
            dtype = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"))
        return load_model(path, dtype=dtype, device=self.device)

    def _check_dense(self) -> None:
        checkpoint = open_checkpoint(self.dense)
        if checkpoint.fingerprint != self.fingerprint:
            raise InputError(
                f"{self.dense} is {checkpoint.fingerprint[:12]}…, {self.folder.name} was made from "
                f"{self.fingerprint[:12]}…: it is no fallback for it."
            )


def rehearse(
    folder: str | Path, against: str | Path | None = None, device: str = "auto", progress: Progress = silent
) -> dict:
    """Goes through the switch once, and keeps what happened in the folder as fallback.json.

    Compressed, then dense by the environment variable, then back, in one process without a restart; then dense by the
    argument. Returns {"ok", "checks": [{"name", "ok", "detail"}], "seconds" (of the switch to dense)}. Raises
    InputError where there is no dense model to fall back to.
    """
    from karipap_core.spectra.spectrum import pick_device

    fallback = DenseFallback(folder, against, device=pick_device(device))
    checks = [_check("dense checkpoint", True, f"{fallback.fingerprint[:12]}… is the one that the plan pins")]
    steps = ("compressed serves", "switch to dense", "switch back", "dense by argument")

    def note(ok: bool, detail: str) -> None:
        checks.append(_check(steps[len(checks) - 1], ok, detail))
        progress("fallback", len(checks) - 1, len(steps), checks[-1]["name"])

    with _environment(None):
        first = _answer(fallback)
        note(first["networks"] > 0 and first["finite"], f"{first['networks']} tensor networks, writes finite logits")
    began = time.monotonic()
    with _environment("dense"):
        dense = _answer(fallback)
        seconds = round(time.monotonic() - began, 3)
        same = _is_checkpoint(fallback)
        note(
            dense["networks"] == 0 and dense["finite"] and same,
            f"{SWITCH}=dense: the dense checkpoint's own weights, {seconds:g} s to the first answer"
            if same
            else f"{SWITCH}=dense: the weights in memory are not the dense checkpoint's",
        )
    with _environment(None):
        again = _answer(fallback)
        note(again["ids"] == first["ids"] and again["networks"] == first["networks"], "the first answer again")
        argument = DenseFallback(folder, against, use="dense", device=fallback.device)
        note(_answer(argument)["ids"] == dense["ids"], 'use="dense": the dense answer')
    result = {"ok": all(check["ok"] for check in checks), "checks": checks, "seconds": seconds}
    record(folder, "fallback", result, fallback.fingerprint)
    return result


def _check(name: str, ok: bool, detail: str) -> dict:
    return {"name": name, "ok": bool(ok), "detail": detail}


@contextmanager
def _environment(value: str | None) -> Iterator[None]:
    """KARIPAP_FALLBACK as given (None: not set), then as before."""
    before = os.environ.pop(SWITCH, None)
    if value is not None:
        os.environ[SWITCH] = value
    try:
        yield
    finally:
        os.environ.pop(SWITCH, None)
        if before is not None:
            os.environ[SWITCH] = before


def _answer(fallback: DenseFallback) -> dict:
    """What the served model makes of fixed ids: its networks, whether its output is finite, and what it answers."""
    import torch

    from karipap_core.layers.cores import CoresModule
    from karipap_core.models import running

    model, _ = fallback.load()
    ids = (torch.arange(PROBE_TOKENS) * 7919 % model.config.get_text_config().vocab_size)[None].to(fallback.device)
    with torch.no_grad():
        out = running.output(model, ids)
    return {
        "networks": sum(isinstance(module, CoresModule) for module in model.modules()),
        "finite": bool(torch.isfinite(out).all()),
        "ids": out.argmax(-1).flatten().tolist(),
    }


def _is_checkpoint(fallback: DenseFallback) -> bool:
    """Whether the weights in memory are those on disk."""
    import torch

    from karipap_core.models.sites import sites

    model, _ = fallback.load()
    checkpoint = open_checkpoint(fallback.dense)
    return all(
        torch.equal(site.get().cpu(), checkpoint.read(name).to(site.get().dtype))
        for name, site in sites(model, checkpoint).items()
    )
