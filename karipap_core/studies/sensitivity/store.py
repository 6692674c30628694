"""Measured sensitivities on disk: where they are kept, opened, saved, listed."""

import time
from pathlib import Path

from karipap_core.plan.document import measured_model
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.runs import environment

FORMAT, VERSION = "karipap-sensitivity", 1
UNITS = ("weight", "layer")


# What is kept.


def file_of(folder: Path, settings: dict) -> Path:
    """Where the measurement of these settings is, in a model's folder of the workspace."""
    return Path(folder) / "sensitivity" / f"{settings['network']}-{settings_key(settings)}.json"


def opened(file: Path, study, settings: dict) -> dict:
    if (known := kept_json(file, "sensitivity")) is not None:
        return known
    return {
        "format": FORMAT,
        "version": VERSION,
        "created": round(time.time(), 3),
        "model": measured_model(study.checkpoint),
        "settings": settings,
        "quality": "rise" if study.checkpoint.predicts else "relative_error",
        "total": {},
        "weights": [],
        "layers": [],
        "environment": environment(),
    }


def save(file: Path, document: dict, by: str) -> None:
    """Writes the file; what another process measured of the other unit meanwhile stays."""
    if (now := kept_json(file, "sensitivity")) is not None:
        other = next(unit for unit in UNITS if unit != by)
        document[f"{other}s"], document["total"] = now[f"{other}s"], now["total"] | document["total"]
    keep_json(file, document)


def read_all(folder: Path) -> list[dict]:
    """The readable measurements in a model's folder of the workspace, newest first, unfinished ones among them."""
    found = []
    for file in (Path(folder) / "sensitivity").glob("*.json"):
        if (document := kept_json(file, "sensitivity")) and rows_of(document):
            found.append(document | {"path": str(file)})
    return sorted(found, key=lambda document: (-document["created"], document["path"]))


def rows_of(document: dict, by: str | None = None) -> list[dict]:
    """The rows of a unit; without one, of the weights, or where none was measured of the layers."""
    return document[f"{by}s"] if by else document["weights"] or document["layers"]
