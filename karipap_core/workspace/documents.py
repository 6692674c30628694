"""What a path holds: the document of Karipap in a file or folder."""

from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.kept import SEAL, intact
from karipap_core.workspace.runs import read_runs

FORMATS = (
    "karipap-profile",
    "karipap-plan",
    "karipap-report",
    "karipap-run",
    "karipap-sweep",
    "karipap-autopilot",
    "karipap-sensitivity",
)


def find(path: str | Path) -> dict:
    """The document at `path`: a JSON file of ours, or the folder of a profile, a run, a sweep or a compressed model.

    Raises InputError that says what is looked for where there is none of these.
    """
    path = Path(path)
    if path.is_file():
        document = read_json(path)
        if not intact(document):
            raise InputError(f"File {path} is damaged (its SHA-256 differs): make it again.")
        document.pop(SEAL, None)
        if document.get("format") in FORMATS:
            return document
        raise InputError(f"File {path} is no profile, plan, run or report of Karipap (field 'format').")
    if not path.is_dir():
        raise InputError(f"{path} does not exist.")
    for name in ("profile.json", "run.json", "sweep.json", "autopilot.json", "plan.json"):
        if (path / name).is_file():
            return find(path / name)
    if (path / "config.json").is_file():
        method = read_json(path / "config.json", lenient=True).get("quantization_config") or {}
        if method.get("quant_method") == "karipap":
            return find(path / "karipap.json") if (path / "karipap.json").is_file() else method["plan"]
        raise InputError(f"Folder {path} holds an ordinary model: see it with the verb `profile`.")
    if runs := read_runs(path):
        return {"format": "karipap-sweep", "version": 1, "runs": runs}
    raise InputError(f"Folder {path} holds no profile, run, sweep or compressed model of Karipap.")
