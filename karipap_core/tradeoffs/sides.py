"""One side of a comparison: a plan, run, compressed folder or model, and what is known of it."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from karipap_core.compressed import records
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan, model_entry
from karipap_core.schemas import checked_name
from karipap_core.workspace import Workspace
from karipap_core.workspace.documents import find
from karipap_core.workspace.runs import read_run


@dataclass
class Side:
    """One of the two that are compared, with what is known of it.

    kind : "plan", "run", "compressed" or "model". point : its predicted and measured figures, flat. rows : by weight,
    what `compress` said of it. shadow : the result of its shadow run. model : the checkpoint as a plan names it.
    shapes : weight → (out, in), of a dense checkpoint alone.
    """

    name: str
    kind: str
    plan: Plan | None = None
    point: dict = field(default_factory=dict)
    rows: dict[str, dict] = field(default_factory=dict)
    shadow: dict | None = None
    model: dict = field(default_factory=dict)
    shapes: dict[str, tuple[int, int]] = field(default_factory=dict)


def read(what: str | Path) -> Side:
    """A side from a path (plan, run.json, a folder of a run, compressed model or dense model), or from the name of a
    plan or run of the workspace. Raises InputError that says what is looked for."""
    path = Path(what)
    if not path.exists():
        path = _of_workspace(str(what))
    if path.suffix == ".safetensors" or _is_model(path):
        return _of_folder(path)
    document = find(path)
    if document.get("format") == "karipap-plan":
        return of_plan(path.stem, Plan.from_json(document, str(path)))
    if document.get("format") == "karipap-run":
        return of_run(document)
    raise InputError(f"{path} is a {document.get('format')}: compare plans, runs, compressed folders or models.")


def _is_model(path: Path) -> bool:
    """Whether a path is a folder that holds a model, and no plan, run or profile."""
    if not path.is_dir() or any((path / name).is_file() for name in ("run.json", "plan.json", "profile.json")):
        return False
    return (path / "config.json").is_file() or any(path.glob("*.safetensors"))


def of_plan(name: str, plan: Plan) -> Side:
    """The side of a plan: what it is predicted to do is all that is known of it."""
    return Side(name, "plan", plan, _predicted(plan.predicted), model=plan.model)


def of_checkpoint(checkpoint) -> Side:
    """The side of a dense model as it is."""
    shapes = {weight.name: tuple(weight.shape) for weight in checkpoint.weights if weight.compressible}
    unchanged = {"kept": 1.0, "bytes_kept": 1.0, "rise": 0.0, "kl": 0.0, "top1_agreement": 1.0}
    return Side(checkpoint.name, "model", None, unchanged, model=model_entry(checkpoint), shapes=shapes)


def of_run(run: dict) -> Side:
    """The side of a run.json, with the shadow run of its folder where that is still there."""
    plan = Plan.from_json(run["plan"], str(run.get("id"))) if run.get("plan") else None
    rows = {row["name"]: row for row in run.get("weights") or () if isinstance(row, dict) and "name" in row}
    shadow = records.read(run["folder"], "shadow") if run.get("folder") else None
    point = _predicted(run.get("predicted")) | _measured(run)
    name = str(run.get("label") or run.get("id"))
    return Side(name, "run", plan, point, rows, shadow and shadow["result"], run.get("model") or {})


def _of_folder(path: Path) -> Side:
    """A compressed folder with its records, or a dense model."""
    from karipap_core.checkpoint.open import open_checkpoint

    try:
        settings = records.settings_of(path)
    except InputError:
        return of_checkpoint(open_checkpoint(path))
    plan = Plan.from_json(settings["plan"], str(path / "config.json"))
    report = records.report_of(path)
    found = {kind: (records.read(path, kind) or {}).get("result") for kind in ("evaluation", "shadow")}
    beside = path.resolve().parent / "run.json"
    if found["evaluation"] is None and beside.is_file():
        run = read_run(beside)
        if run.get("folder") and Path(run["folder"]).resolve() == path.resolve():
            found["evaluation"] = run
    result = report.get("result") or report
    rows = {row["name"]: row for row in result.get("weights") or ()}
    sizes = {key: result[key] for key in ("kept", "bytes_kept") if result.get(key) is not None}
    point = _predicted(plan.predicted) | sizes | _measured(found["evaluation"] or {})
    return Side(path.name, "compressed", plan, point, rows, found["shadow"], plan.model)


def _of_workspace(name: str) -> Path:
    workspace = Workspace()
    places: list[Path] = []
    with suppress(InputError):  # no name that a run can have
        places = [workspace.runs_dir / checked_name(name) / "run.json"]
    with suppress(InputError):
        places = [workspace.find_plan(name), *places]
    if (there := next((place for place in places if place.is_file()), None)) is not None:
        return there
    raise InputError(f"{name} is no file or folder, and the workspace has no plan or run of that name.")


def _predicted(predicted: dict | None) -> dict:
    predicted = predicted or {}
    found = {key: predicted[key] for key in ("kept", "bytes_kept") if predicted.get(key) is not None}
    return found | ({"predicted_rise": predicted["rise"]} if predicted.get("rise") is not None else {})


def _measured(run: dict) -> dict:
    """A run's or evaluation's figures with speed and memory flat beside them."""
    speed = (run.get("speed") or {}).get("compressed") or {}
    memory = (run.get("memory") or {}).get("compressed") or {}
    flat = {"decode_ms": speed.get("decode_ms_per_token"), "prefill": speed.get("prefill_tokens_per_second")}
    flat |= {
        "disk_bytes": memory.get("disk_bytes"),
        "relative_error": (run.get("fidelity") or run).get("relative_error"),
    }
    return {key: value for key, value in (run | flat).items() if value is not None}
