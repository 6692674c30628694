"""What papers on tensor networks for language models claim, and the nearest honest experiment on the model at hand.

A `Claim` holds a paper's headline, its published figures with their source, and what its public text allows to
reproduce. `check` runs its experiment (experiments/) and keeps the result in the workspace. Published and measured
figures never mix: the first stand in `Claim.published`, the second in the document under the same keys.
Nothing here imports torch: the dashboard reads it.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.progress import Progress, silent
from karipap_core.studies.claims.catalogue import CLAIMS, named
from karipap_core.workspace import Workspace
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.runs import environment

FORMAT, VERSION = "karipap-claim", 1


def check(
    model, claim: str, text=None, device: str = "auto", progress: Progress = silent, beside: Sequence[str] = ()
) -> dict:
    """Run the experiment of a claim on a model and keep its document (see `result_file`), which is returned:

    {"format", "version", "claim", "model", "text", "tokens", "measure" ("kl" or "output error"), "dense_loss",
    "verdict" (a sentence), "measured" {key of `Claim.published`: in words}, "figures" (the raw numbers),
    "table" {"columns", "rows"}, "charts" (`figures/claims.py`), "notes", "seconds", "created", "environment"}.

    model: folder, file, hub id or open checkpoint; text: file to calibrate and measure on (default: the standard
    library's calibration modules); beside: other models, for a claim about several (`Claim.beside`). InputError for a
    claim that is not there, models beside one that is not about several, and a model that cannot run.
    """
    wanted = named(claim)
    if beside and not wanted.beside:
        several = ", ".join(each.name for each in CLAIMS.values() if each.beside)
        raise InputError(f"Claim {claim!r} is about one model; others can be given beside it for: {several}.")
    from karipap_core.plan.document import measured_model
    from karipap_core.studies.claims import experiments as claim_checks

    began = time.monotonic()
    study = claim_checks.study_of(model, text, device, progress)
    if study.checkpoint.kind is None:
        raise InputError(f"{study.checkpoint.name} has no config.json that names its architecture: it cannot run.")
    found = claim_checks.CHECKS[claim](study, progress, *([list(beside)] if wanted.beside else []))
    document = {
        "format": FORMAT,
        "version": VERSION,
        "claim": claim,
        "model": measured_model(study.checkpoint),
        "seconds": round(time.monotonic() - began, 1),
        "created": round(time.time(), 3),
        "environment": environment(),
    } | found
    keep_json(result_file(study.checkpoint.key, claim), document)
    return document


def result_file(model_key: str, claim: str, workspace: Workspace | None = None) -> Path:
    """Where the newest result of a claim on a model (`Checkpoint.key`) is kept."""
    return (workspace or Workspace()).model_dir(model_key) / "claims" / f"{named(claim).name}.json"


def results(model_key: str, workspace: Workspace | None = None) -> dict[str, dict]:
    """Name → document of every claim that has been checked on a model; a damaged file counts as not there."""
    found = {}
    for name in CLAIMS:
        if (document := kept_json(result_file(model_key, name, workspace), "claim")) is not None:
            found[name] = document
    return found


def listing() -> dict:
    """The claims without results: the document of the verb where no claim is named."""
    return {
        "format": "karipap-claims",
        "version": 1,
        "claims": [
            {"name": claim.name, "title": claim.title, "paper": claim.paper, "origin": claim.origin}
            for claim in CLAIMS.values()
        ],
    }
