"""Where a study (study.py) keeps what one pass over the blocks finds, for whoever looks whether it is there."""

from pathlib import Path
from typing import Any

from karipap_core.checkpoint.reach import RULES as REACHED_BY
from karipap_core.profiles.document import profile_key, profile_settings
from karipap_core.spectra.spectrum import METRICS


def whole_profile(study: Any) -> Path:
    """The file of the profile under all metrics."""
    settings = profile_settings(METRICS, None, study.text, study.settings)
    return study.workspace.profile_dir(study.checkpoint.key, profile_key(settings)) / "profile.json"


def pass_file(study: Any, metric: str) -> Path:
    """The file of what truncations damage under a metric, from gradients."""
    return study.workspace.calibration_file(study.checkpoint.key, f"gradients-{metric}-{study.key}")


def seen_file(folder: Path, key: str) -> Path:
    """The file of what weights see (seen.py), below a model's folder; key: the study's, or a pattern of it."""
    return folder / "seen" / f"{key}-{REACHED_BY}.json"
