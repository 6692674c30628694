"""What was found out about a compressed folder, kept in the folder itself: verify.json, evaluation.json, shadow.json
and fallback.json beside karipap.json.

A record carries the state that it was made in: fingerprints of the folder's tensors and other files and of the dense
model. Where one of them has changed since, the record is stale.
"""

import hashlib
import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path

from karipap_core.checkpoint.beside import sub_folder_files
from karipap_core.checkpoint.files import files_of
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.checkpoint.tensorfile import chunks
from karipap_core.compressed.folder import RECORDS
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json

KINDS = ("verify", "evaluation", "shadow", "fallback")
REPORT = "karipap.json"


@dataclass(frozen=True)
class Source:
    """The dense model of a folder: `checkpoint` (None where it is not here), what to call it, and `why` it is not here
    as the start of a sentence."""

    checkpoint: Checkpoint | None
    name: str
    why: str = ""


def settings_of(folder: str | Path) -> dict:
    """The folder's quantization_config. Raises InputError where `folder` is no compressed folder."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name one that `compress` wrote.")
    config = read_json(folder / "config.json", lenient=True) if (folder / "config.json").is_file() else {}
    settings = config.get("quantization_config")
    if not isinstance(settings, dict) or settings.get("quant_method") != "karipap":
        raise InputError(f"{folder} is not a model compressed by Karipap.")
    if not isinstance(settings.get("plan"), dict):
        raise InputError(f"{folder / 'config.json'}, field quantization_config.plan: a plan is missing.")
    return settings


def report_of(folder: str | Path) -> dict:
    """karipap.json of a folder, {} where there is none or it is damaged."""
    return kept_json(Path(folder) / REPORT, "report") or {}


def written_for(plan: dict, fingerprint: str, source_identity: str | None) -> str:
    """Names what a folder is written for: a plan, and the dense checkpoint's fingerprint and identity (None in the
    reports of folders written before 0.3)."""
    what = {"plan": plan, "fingerprint": fingerprint}
    return settings_key(what if source_identity is None else what | {"source_identity": source_identity})


def pinned(settings: dict) -> str:
    """The fingerprint that the folder's plan names, "" where it names none."""
    entry = settings["plan"].get("model")
    return str(entry.get("fingerprint") or "") if isinstance(entry, dict) else ""


def source_of(folder: str | Path, against: str | Path | Checkpoint | None = None) -> Source:
    """The dense model that a folder was made from: `against`, else where the report says that it was, else by the name
    in the plan, which counts only where its fingerprint is the plan's. Raises InputError for an `against` that cannot
    be opened."""
    if isinstance(against, Checkpoint):
        return Source(against, str(against.path))
    if against is not None:
        return Source(open_checkpoint(against), str(against))
    settings = settings_of(folder)
    entry = settings["plan"].get("model") or {}
    where = report_of(folder).get("source")
    for place, is_it in ((where, True), (entry.get("name"), False)):
        if not isinstance(place, str):
            continue
        try:
            checkpoint = open_checkpoint(place)
            if is_it or checkpoint.fingerprint == pinned(settings):
                return Source(checkpoint, place)
        except (InputError, OSError):
            continue
    name = str(where or entry.get("name") or "the dense model")
    return Source(None, name, f"{name} is not here: name the dense model with --against")


def other_files(folder: str | Path) -> list[Path]:
    """The files of a model that hold none of its own tensors: config, tokenizer, generation settings, and those of
    sub-folders. Records are not of the model, hidden files are work in progress."""
    folder = Path(folder)
    own = {file.name for file in files_of(folder)} | RECORDS
    found = [file for file in folder.iterdir() if file.is_file() and file.name[0] != "." and file.name not in own]
    return sorted([*found, *sub_folder_files(folder).values()])


def file_sums(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each of `other_files`; of config.json without the plan, which has an identity of its own."""
    return {file.relative_to(folder).as_posix(): _sum(file) for file in other_files(folder)}


def tensor_sums(checkpoint: Checkpoint) -> dict[str, str]:
    """SHA-256 of the bytes of each tensor of a model."""
    sums = {}
    for name in sorted(checkpoint.tensors):
        digest = hashlib.sha256()
        for data in chunks(checkpoint.tensors[name]):
            digest.update(data)
        sums[name] = digest.hexdigest()
    return sums


def sums_of(folder: str | Path) -> dict[str, dict[str, str]]:
    """{"tensors", "files"}: what `compress` writes down, and `verify` holds the folder against."""
    return {"tensors": tensor_sums(open_checkpoint(folder, compressed=True)), "files": file_sums(folder)}


def _sum(file: Path) -> str:
    data = file.read_bytes()
    if file.name == "config.json":
        try:
            config = json.loads(data)
            config["quantization_config"].pop("plan")
            data = json.dumps(config, sort_keys=True).encode()
        except (ValueError, KeyError, TypeError, AttributeError):
            pass  # no config of ours: its bytes stand for it
    return hashlib.sha256(data).hexdigest()


def state_of(folder: str | Path) -> dict[str, str]:
    """{"tensors", "files"}: fingerprints of a folder's tensors (`Checkpoint.fingerprint`) and of all else in it."""
    checkpoint = open_checkpoint(folder, compressed=True)
    files = {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in other_files(folder)
    }
    return {
        "tensors": checkpoint.fingerprint,
        "files": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
    }


def record(folder: str | Path, kind: str, result: dict, dense: str | None, dated: bool = True) -> Path:
    """Writes `<kind>.json` into the folder: the result, the folder's state, the fingerprint of the dense model that was
    used (None: none was), and the time unless `dated` is False (then equal results are equal files)."""
    document = {"format": f"karipap-{kind}", "version": 1, "of": state_of(folder) | {"dense": dense}}
    if dated:
        document["created"] = round(time.time(), 3)
    file = Path(folder) / f"{kind}.json"
    try:
        keep_json(file, document | {"result": result})
    except InputError as error:  # a folder that this user may only read is looked at all the same
        logging.getLogger("karipap").warning("%s The result is not kept.", error)
    return file


def keep_evaluation(folder: str | Path, found: dict) -> None:
    """Keeps what `evaluate_folder` found in the folder, where that is a compressed one."""
    try:
        settings_of(folder)
    except InputError:
        return
    dense = found.get("against")
    record(folder, "evaluation", found, None if dense is None else open_checkpoint(dense).fingerprint)


def read(folder: str | Path, kind: str) -> dict | None:
    """The record of that kind in a folder, None where there is none or it is damaged."""
    return kept_json(Path(folder) / f"{kind}.json", kind)


def stale(document: dict, state: dict[str, str], dense: str | None) -> str | None:
    """What has changed since a record was made, in words, or None. dense: the fingerprint that it should be about."""
    of = document["of"]
    if of.get("tensors") != state["tensors"]:
        return "the folder's tensors have changed since"
    if of.get("files") != state["files"]:
        return "the folder's config or tokenizer has changed since"
    if dense is not None and of.get("dense") not in (None, dense):
        return "it was made beside another dense model"
    return None
