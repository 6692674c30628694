"""What a path holds: the document of Karipap in a file or folder."""

from pathlib import Path

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from karipap_core.workspace.runs import read_run, read_runs

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
    if not path.is_dir():
        document = read_json(path)
        if (form := document.get("format")) not in FORMATS:
            raise InputError(f"File {path} is no profile, plan, run or report of Karipap (field 'format').")
        return read_run(path) if form == "karipap-run" else schemas.read(path, form.removeprefix("karipap-"))
    for name in ("profile.json", "run.json", "sweep.json", "autopilot.json", "plan.json"):
        if (path / name).is_file():
            return find(path / name)
    if (path / "config.json").is_file():
        method = read_json(path / "config.json", lenient=True).get("quantization_config")
        if isinstance(method, dict) and method.get("quant_method") == "karipap":
            if (path / "karipap.json").is_file():
                return find(path / "karipap.json")
            schemas.check(method.get("plan"), "plan", f"File {path / 'config.json'}, field quantization_config.plan")
            return method["plan"]
        raise InputError(f"Folder {path} holds an ordinary model: see it with the verb `profile`.")
    bad: list[str] = []
    if runs := read_runs(path, bad):
        return {"format": "karipap-sweep", "version": 1, "runs": runs}
    raise InputError(bad[0] if bad else f"Folder {path} holds no profile, run, sweep or compressed model of Karipap.")
