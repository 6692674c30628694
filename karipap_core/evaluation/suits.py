"""Whether a text suits a model, found before anything is measured: bits per byte on a few windows, in seconds.

The dense model's bits per byte are held against those of general compressors on the very same bytes
(`wrong_text.unsuited`). What was found is kept in the model's folder of the workspace, by the text's SHA-256.
"""

import bz2
import lzma
import os
import platform
import time
import zlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.evaluation.own_text import own_text
from karipap_core.evaluation.wrong_text import unsuited
from karipap_core.progress import Progress, silent
from karipap_core.text import FIELD, HUB, TEXT_FORMAT, Text, read_text, standard_library
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

if TYPE_CHECKING:
    from karipap_core.evaluation.perplexity import Sample

WINDOWS = 4  # spread evenly over the text
SIGNS_A_TOKEN = 8  # more than tokenizers make of nearly any text: so much of it is tokenized
SAMPLES = "samples"  # the text that the model writes itself; samples:SEED for another one
SIDES = ("calibration", "heldout", "train")  # as `text.SPLITS`; also the seeds of samples, so that no two are one text


def text_of(
    spec: str | Path | None,
    model: str | Path | Checkpoint,
    side: str,
    device: str = "auto",
    workspace: Workspace | None = None,
    progress: Progress = silent,
) -> Text:
    """The text that a command line names: what `read_text` reads, `samples[:SEED]` (the model's own, `own_text`), or,
    for None, the standard library's modules of this side.

    side : one of `SIDES`. A data set of the hub is kept in the workspace, so that its rows stay the same. Raises
    InputError for what is no text.
    """
    workspace = workspace or Workspace()
    name = "" if spec is None else str(spec)
    if not name:
        return standard_library(side)
    if name.partition(":")[0] == SAMPLES and not os.path.exists(name):
        seed = name.partition(":")[2] or str(SIDES.index(side))
        if not seed.isdecimal():
            raise InputError(f"--text {name[:80]}: a seed is a whole number, such as {SAMPLES}:7.")
        checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
        return own_text(checkpoint, int(seed), device=device, workspace=workspace, progress=progress)
    if name.startswith(HUB) and not os.path.exists(name):
        file = workspace.root / "texts" / f"hub-{settings_key({'name': name})}.json"
        if kept_json(file, "text") is None:
            progress("text", 0, 1, name)
            found = read_text(name)
            document = {"format": TEXT_FORMAT, "version": 1, "name": found.name, "documents": list(found.documents)}
            keep_json(file, document)
        return read_text(file)
    return read_text(name)


def stamp_of(spec: str, side: str) -> str:
    """What changes when the text behind a name does; cheap, since pages ask on every run."""
    if not spec:
        return f"{side}, Python {platform.python_version()}"
    if spec.partition(":")[0] == SAMPLES:
        return side
    try:
        status = os.stat(spec if os.path.exists(spec) else spec.rpartition(FIELD)[0] or spec)
    except (OSError, ValueError):
        return ""  # the hub's
    return f"{status.st_size}, {status.st_mtime_ns}"


def folder_of(model: Checkpoint, workspace: Workspace | None = None) -> Path:
    return (workspace or Workspace()).model_dir(model.key) / "texts"


def known(model: Checkpoint, workspace: Workspace | None = None) -> list[dict[str, Any]]:
    """What was found of a model's texts, the one that was used last first."""
    files = folder_of(model, workspace).glob("*.json")
    found = [document for file in files if (document := kept_json(file, "suits"))]
    return sorted(found, key=lambda each: max(each.get("used", {}).values(), default=0.0), reverse=True)


def said_of(point: dict, workspace: Workspace | None = None) -> str | None:
    """The warning (`wrong_text.unsuited`) about the text that a point was measured on, where that was looked at."""
    workspace = workspace or Workspace()
    key, sha256 = workspace.key_of(point.get("model") or {}), (point.get("text") or {}).get("sha256")
    if not key or not sha256:
        return None
    found = kept_json(workspace.model_dir(key) / "texts" / f"{sha256[:32]}.json", "suits")
    return unsuited(found) if found else None


def found_for(documents: list[dict], spec: str, side: str) -> dict | None:
    """Of these documents the one of the text that a name stands for now; None where it was not looked at yet."""
    stamp = stamp_of(spec, side)
    return next((each for each in documents if (each["spec"], each["stamp"]) == (spec, stamp)), None)


def suits(
    model: str | Path | Checkpoint,
    text: Text,
    spec: str | Path | None = None,
    side: str = "heldout",
    use: bool = False,
    device: str = "auto",
    workspace: Workspace | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """How well a causal model predicts `WINDOWS` windows of a text, from the workspace where that is known.

    spec : what the text was called (`text_of`), for those who look it up by that. use : the text is about to be used
    for this side, and is offered first next time. Returns {"loss", "bits_per_byte", "tokens", "text_bytes"} as
    `Sample.summary`; "guessing", ln(vocabulary); "compressor_bits_per_byte" (`compressed_bits`) and what names the
    text. Raises InputError for encoders and for what cannot be loaded or read.
    """
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    if not checkpoint.predicts:
        raise InputError(f"{checkpoint.name} does not predict tokens: it has no bits per byte.")
    name = "" if spec is None else str(spec)
    sha256 = text.sha256
    file = folder_of(checkpoint, workspace) / f"{sha256[:32]}.json"
    before = kept_json(file, "suits")
    found = before or _measured(checkpoint, text, device, progress)
    found = found | {"spec": name, "stamp": stamp_of(name, side), "text": {"name": text.name, "sha256": sha256}}
    if use:
        found["used"] = found.get("used", {}) | {side: round(time.time(), 3)}
    if found != before:
        keep_json(file, found)
    return found


def _measured(checkpoint: Checkpoint, text: Text, device: str, progress: Progress) -> dict[str, Any]:
    import math

    import torch

    from karipap_core.evaluation.perplexity import Sample, default_window, losses
    from karipap_core.evaluation.scoring import Scoring
    from karipap_core.models import abreast
    from karipap_core.models.load import load_model, load_tokenizer
    from karipap_core.models.streamed import Streamed
    from karipap_core.spectra.spectrum import pick_device

    began = time.monotonic()
    progress("text", 0, WINDOWS, text.name, "looking whether it suits the model")
    large = 4 * checkpoint.parameters > abreast.LARGE and checkpoint.kind != "encoder-decoder"
    if large:
        passes = abreast.Abreast(Streamed(checkpoint, device=pick_device(device)))
        model, tokenizer = passes.streamed.model, load_tokenizer(checkpoint.home)
    else:
        model, tokenizer = load_model(checkpoint, device=pick_device(device))
    config: Any = model.config.get_text_config()
    window = default_window(config)
    scoring = Scoring(window, window, window)
    samples = [Sample.of(model, tokenizer, part, scoring) for part in parts(text, WINDOWS, window * SIGNS_A_TOKEN)]
    scored = [partial(losses, sample=sample) for sample in samples]
    if large:
        every = passes.run(scored)
        progress("text", WINDOWS, WINDOWS, text.name)
    else:
        every = []
        for number, each in enumerate(scored):
            every.append(each(model))
            progress("text", number + 1, WINDOWS, text.name)
    summaries = [sample.summary(loss) for sample, loss in zip(samples, every, strict=True)]
    tokens, size = (sum(each[key] for each in summaries) for key in ("tokens", "text_bytes"))
    nats = sum(each["loss"] * each["tokens"] for each in summaries)
    seen = b"".join(_seen(sample, each) for sample, each in zip(samples, summaries, strict=True))
    if not torch.isfinite(torch.tensor(nats)):
        raise InputError(f"The loss of {checkpoint.name} on {text.name} is not finite.")
    return {
        "format": "karipap-suits",
        "version": 1,
        "generated": text.generated,
        "loss": nats / tokens,
        "guessing": math.log(config.vocab_size),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "compressor_bits_per_byte": compressed_bits(seen),
        "tokens": tokens,
        "text_bytes": size,
        "window": window,
        "seconds": round(time.monotonic() - began, 3),
    }


def _seen(sample: "Sample", summary: dict) -> bytes:
    """The bytes of the text that a sample's one window scored."""
    first = int(sample.tokens.bytes[: int(sample.positions[0])].sum())
    data = "".join(sample.text.documents).encode()
    return data[first : first + summary["text_bytes"]]


def parts(text: Text, count: int, signs: int) -> list[Text]:
    """`count` parts of a text that begin evenly over it, of at most `signs` characters each, none overlapping. A part
    begins with a document, as models are trained, unless the document is longer than that."""
    total = sum(map(len, text.documents))
    signs = max(1, min(signs, -(-total // count)))
    starts, place = [], 0
    for document in text.documents:
        starts.append(place)
        place += len(document)
    found, end = [], 0
    for number in range(count):
        begin = number * total // count
        at = max(index for index, start in enumerate(starts) if start <= begin)
        if len(text.documents[at]) <= signs:
            begin = starts[at]
        begin = max(begin, end)
        end = min(begin + signs, total)
        pieces = [
            text.documents[i][max(0, begin - start) : end - start]
            for i, start in enumerate(starts)
            if start < end and start + len(text.documents[i]) > begin
        ]
        if any(piece.strip() for piece in pieces):
            found.append(Text(text.name, tuple(pieces), text.path, text.generated))
    return found


def compressed_bits(data: bytes) -> float:
    """Bits per byte that the best of zlib, bz2 and xz needs for these bytes: what is there to be learnt from them alone
    by a program that begins knowing nothing."""
    xz = lzma.compress(data, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 9}])  # without its header
    return 8 * min(map(len, (zlib.compress(data, 9), bz2.compress(data, 9), xz))) / max(len(data), 1)
