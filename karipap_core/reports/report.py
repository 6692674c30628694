"""A report to send: measured runs as one HTML file that needs no network, with everything as CSV and JSON beside it."""

import hashlib
import json
import shlex
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.evaluation import scores
from karipap_core.plan.document import Plan
from karipap_core.profiles.document import Profile
from karipap_core.progress import Progress, silent
from karipap_core.reports.rows import rows, table_csv, text_of
from karipap_core.schemas import checked_name
from karipap_core.statistics import bootstrap
from karipap_core.statistics.pareto import known, pareto
from karipap_core.terminal import argument
from karipap_core.tradeoffs.point import called
from karipap_core.version import __version__
from karipap_core.workspace import Workspace, documents
from karipap_core.workspace.files import whole_file, write_json
from karipap_core.workspace.runs import read_run, read_runs

FORMAT, VERSION = "karipap-run-report", 1
PRIVATE = ("path", "folder", "against")  # where things lie on the writer's machine


def report(what: Sequence[str | Path], out: str | Path = "report.html", progress: Progress = silent) -> dict:
    """Write the report of these runs to `out`; beside it the same name with .csv, .json and -plans/ (a file a plan).

    what : run.json files, folders of runs, sweeps, or names of runs of the workspace, all of one model.

    Returns {"html", "csv", "json", "plans": paths, "bytes": of the HTML, "runs", "baselines": how many, "front": ids of
    the points on the Pareto front, "model": its name, "profile": whether the workspace had one}. Raises InputError for
    what is no run, and for runs of several models.
    """
    from karipap_core.reports.html import page

    out = Path(out)
    if out.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--out {out}: a report is written to a file that ends in .html.")
    progress("report", 0, 3, "reading")
    points = collect(what)
    profile = profile_of(points[0]["model"])
    document = describe(points, out.stem)
    progress("report", 1, 3, "drawing")
    text = page(document, profile)
    plans = out.with_name(f"{out.stem}-plans")
    for point in document["runs"]:
        if point.get("plan"):
            Plan.from_json(point["plan"], point["id"]).save(plans / f"{checked_name(point['id'])}.json")
    write_json(out.with_suffix(".json"), document)
    _write(out.with_suffix(".csv"), table_csv(rows(document)))
    _write(out, text)
    progress("report", 3, 3)
    return {
        "html": str(out),
        "csv": str(out.with_suffix(".csv")),
        "json": str(out.with_suffix(".json")),
        "plans": str(plans) if plans.is_dir() else None,
        "bytes": len(text.encode()),
        "model": document["model"]["name"],
        "runs": len(document["runs"]),
        "baselines": len(document["baselines"]),
        "profile": profile is not None,
        "front": [name for group in document["groups"] for name in group["front"]],
    }


def collect(what: Iterable[str | Path]) -> list[dict]:
    """The points that these paths and names hold, each once, oldest first."""
    found: dict[str, dict] = {}
    for each in what:
        path = Path(each)
        if not path.exists():
            path = _of_workspace(str(each))
        document = _beside(path) or documents.find(path)
        if document.get("format") == "karipap-run":
            points = [document]
        elif document.get("format") == "karipap-sweep":
            points = [*document["runs"], *document.get("baselines", ())]
        else:
            raise InputError(f"{path} is a {document.get('format')}: a report is made of runs and sweeps.")
        for point in points:
            found.setdefault(point["id"], point)
    if not found:
        raise InputError("A report needs at least one run.")
    models = {point["model"].get("fingerprint"): point["model"].get("name") for point in found.values()}
    if len(models) > 1:
        raise InputError(f"A report is about one model; these runs are of {len(models)}: {', '.join(models.values())}.")
    return called(sorted(found.values(), key=lambda point: point.get("created", 0)))


def _of_workspace(name: str) -> Path:
    try:
        path = Workspace().runs_dir / checked_name(name) / "run.json"
    except InputError:
        raise InputError(f"{name} does not exist.") from None
    if not path.is_file():
        raise InputError(f"{name} is no file or folder, and the workspace has no run of that name.")
    return path


def _beside(path: Path) -> dict | None:
    """The run.json beside a compressed folder, or the runs in a workspace or a `runs` folder; None for all else."""
    if not path.is_dir() or any((path / name).is_file() for name in ("run.json", "sweep.json")):
        return None
    if (path / "config.json").is_file() and (path.resolve().parent / "run.json").is_file():
        return read_run(path.resolve().parent / "run.json")
    if runs := read_runs(path / "runs"):
        return {"format": "karipap-sweep", "runs": runs}
    return None


def profile_of(model: dict) -> Profile | None:
    """The profile with most metrics that the workspace holds for a run's `model`."""
    workspace = Workspace()
    key = workspace.key_of(model)
    found = []
    for file in sorted((workspace.model_dir(key) / "profiles").glob("*/profile.json")) if key else ():
        try:
            found.append(Profile.load(file))
        except InputError:
            continue
    return max(found, key=lambda profile: len(profile.settings.get("metrics") or ()), default=None)


def describe(points: list[dict], stem: str = "report") -> dict:
    """Everything that the report says, as one JSON document.

    {"format", "version", "karipap", "created", "model", "runs" and "baselines": the points as they were measured, less
    where they lie on this machine, "groups": [{"conditions" {"text", "sha256", "window", "stride", "tokens"},
    "quality", "points" (ids), "front" (ids)}] of the points measured in one way, "summary": sentences, "plans": {id:
    rows}, "tasks": {score: whether more is better}, "predictions": {"figures", "pairs"} of `predictions.as_predicted`,
    "environments": [..], "data": [{"what", "name", "sha256"}], "commands", "anchors": published points, "notes"}.
    """
    from karipap_core.plan import predictions
    from karipap_core.tradeoffs import published as anchors

    points = [{key: value for key, value in point.items() if key not in PRIVATE} for point in points]
    groups = _groups(points)
    plans = {point["id"]: plan_rows(point) for point in points if point.get("plan")}
    environments: list[dict] = []
    for point in points:
        if point.get("environment") and point["environment"] not in environments:
            environments.append(point["environment"])
    notes = []
    if len(groups) > 1:
        notes.append(
            "The runs were measured in several ways: each way has a chart of its own, and they do not compare."
        )
    if any(known(point, "rise") and point.get("rise_low") is None for point in points):
        notes.append("Some runs were measured before intervals were kept: their rise has a standard error alone.")
    pairs = predictions.as_predicted(points)
    curve = [pair for pair in pairs if pair.source == predictions.CURVE]
    return {
        "format": FORMAT,
        "version": VERSION,
        "karipap": __version__,
        "created": round(time.time(), 3),
        "model": points[0]["model"],
        "runs": [point for point in points if point.get("kind") == "network"],
        "baselines": [point for point in points if point.get("kind") != "network"],
        "groups": groups,
        "summary": [line for group in groups for line in summary(points, group)],
        "plans": plans,
        "tasks": scores.keys(points),
        "predictions": {"figures": predictions.figures(curve), "pairs": [asdict(pair) for pair in pairs]},
        "environments": environments,
        "data": data(points),
        "commands": commands(points, stem),
        "anchors": {"label": anchors.LABEL, "points": anchors.table()},
        "notes": notes,
    }


def _groups(points: list[dict]) -> list[dict]:
    found: dict = {}
    for point in points:
        text = text_of(point)
        key = (text.get("sha256"), text.get("name"), point.get("window"), point.get("stride"), point.get("tokens"))
        found.setdefault(key, []).append(point)
    groups = []
    for (sha256, name, window, stride, tokens), members in sorted(found.items(), key=lambda item: -len(item[1])):
        quality = "loss" if any(known(point, "loss") for point in members) else "relative_error"
        conditions = {"text": name, "sha256": sha256, "window": window, "stride": stride, "tokens": tokens}
        front = [point["id"] for point in pareto(members, "bytes_kept", quality)]
        groups.append(
            {"conditions": conditions, "quality": quality, "points": [p["id"] for p in members], "front": front}
        )
    return groups


def summary(points: list[dict], group: dict) -> list[str]:
    """What the points of a group come to, in sentences; differences within the intervals are not called differences."""
    members = [point for point in points if point["id"] in group["points"]]
    networks = [point for point in members if point.get("kind") == "network"]
    front = {point["id"]: point for point in members if point["id"] in group["front"]}
    ours = sum(point.get("kind") == "network" for point in front.values())
    lines = [
        f"{_count(networks, 'network')} and {_count([p for p in members if p.get('kind') != 'network'], 'baseline')} "
        f"measured on {group['conditions']['text']}; of {_count(front, 'point')} on the Pareto front "
        f"{ours} {'is a network' if ours == 1 else 'are networks'}."
    ]
    free = [point for point in members if (found := bootstrap.rise_of(point)) and not found.measurable]
    if free:
        best = min(free, key=lambda point: point["bytes_kept"])
        lines.append(
            f"The smallest model with no measurable difference to the dense one keeps {best['bytes_kept']:.1%} of the "
            f"bytes: {best['label']}."
        )
    near = [point for point in networks if known(point, "rise") and point["rise"] <= 0.0296]
    if near:
        best = min(near, key=lambda point: point["bytes_kept"])
        lines.append(
            f"The smallest network within 3 % of the dense perplexity keeps {best['bytes_kept']:.1%} of the bytes: "
            f"{best['label']} ({best['rise']:+z.4f} nats a token)."
        )
    elif any(known(point, "rise") for point in networks):
        lines.append("No network measured here stays within 3 % of the dense perplexity.")
    return lines


def _count(items, word: str) -> str:
    return f"{len(items)} {word}{'' if len(items) == 1 else 's'}"


def plan_rows(point: dict) -> list[dict]:
    """A row a weight of a run's plan: name, layer, role, network, chi, quantize, parameters, kept, and what `compress`
    found it to lose where the run says so."""
    from karipap_core.checkpoint.roles import place, role_of

    plan = Plan.from_json(point["plan"], point["id"])
    mixture = any(".experts." in name for name in plan.weights)
    lost = {row["name"]: row for row in point.get("weights") or () if isinstance(row, dict) and "name" in row}
    found = []
    for name, entry in plan.weights.items():
        spec = plan.spec(name)
        row = {"name": name, "layer": place(name)[0], "role": role_of(name, mixture), "network": entry["network"]}
        row |= {"chi": list(spec.chi) if spec else [], "quantize": entry.get("quantize")}
        row |= {"parameters": spec.parameters if spec else None}
        row |= {"kept": spec.parameters / (spec.n_out * spec.n_in) if spec else 1.0}
        row |= {key: (lost.get(name) or {}).get(key) for key in ("weight_error", "functional_error")}
        found.append(row)
    return found


def data(points: list[dict]) -> list[dict]:
    """The hashes of all that went in: model, texts, plans."""
    model = points[0]["model"]
    rows = [
        {"what": "model, fingerprint of its tensors", "name": model.get("name"), "sha256": model.get("fingerprint")}
    ]
    for point in points:
        text, plan = point.get("text"), point.get("plan") or {}
        if isinstance(text, dict):
            rows.append({"what": "text measured on", "name": text.get("name"), "sha256": text.get("sha256")})
        if entry := plan.get("calibration"):
            rows.append({"what": "text calibrated on", "name": entry.get("text"), "sha256": entry.get("sha256")})
        for name, task in (point.get("tasks") or {}).items():
            rows.append({"what": "task, its settings and items", "name": name, "sha256": task.get("task_hash")})
    for point in points:
        if point.get("plan"):
            canonical = json.dumps(point["plan"], sort_keys=True, separators=(",", ":")).encode()
            rows.append(
                {
                    "what": "plan, its JSON with sorted keys",
                    "name": point["label"],
                    "sha256": hashlib.sha256(canonical).hexdigest(),
                }
            )
    return [row for index, row in enumerate(rows) if row not in rows[:index]]


def commands(points: list[dict], stem: str = "report") -> list[dict]:
    """[{"what", "command"}]: lines of a shell that measure these points again, from the plans beside the report."""
    model = argument(str(points[0]["model"].get("name") or "MODEL"))
    found = []
    for point in points:
        if point.get("kind") == "network" and point.get("plan"):
            plan = shlex.quote(f"{stem}-plans/{point['id']}.json")
            line = f"karipap run {model} --plan {plan}{_scoring(point)}"
            found.append({"what": point["label"], "command": line})
    rivals = [point for point in points if point.get("kind") != "network"]
    if rivals:
        settings = [point.get("settings") or {} for point in points if point.get("kind") == "network"]
        networks = sorted({str(each["network"]) for each in settings if each.get("network")} or {"lowrank"})
        budgets = sorted({each["budget"] for each in settings if each.get("budget")}, reverse=True)
        rules = sorted({str(each["rule"]) for each in settings if each.get("rule")})
        scopes = {str(each["scope"]) for each in settings if each.get("scope")}
        words = [f"karipap sweep {model} --networks {shlex.quote(','.join(networks))}"]
        words += [f"--budgets {','.join(f'{budget:g}' for budget in budgets)}"] if budgets else []
        words += [f"--rules {shlex.quote(','.join(rules))}"] if rules else []
        words += [f"--scope {shlex.quote(scopes.pop())}"] if len(scopes) == 1 else []
        what = f"{_count(rivals, 'baseline')}, and networks at the same budgets"
        found.append({"what": what, "command": " ".join(words) + f"{_scoring(rivals[0])} --out sweep"})
    return found


def _scoring(point: dict) -> str:
    """The options that cut the text as it was. So many tokens that as many windows fit: openers are not counted in
    `tokens`, and are fewer than a stride."""
    name = str(text_of(point).get("name") or "")
    parts = [] if not name or name.startswith("Python standard library") else [f"--text {argument(name)}"]
    parts += [f"--{key} {point[key]}" for key in ("window", "stride") if point.get(key)]
    if point.get("tokens"):
        parts.append(f"--max-tokens {point['tokens'] + (point.get('stride') or 1) - 1}")
    tasks = point.get("tasks") or {}
    if tasks:
        parts.append(f"--tasks {shlex.quote(','.join(tasks))}")
        for key in ("limit", "shots"):
            values = {task.get(key) for task in tasks.values()}
            if len(values) == 1 and (value := values.pop()) is not None:
                parts.append(f"--{key} {value}")
    return "".join(f" {part}" for part in parts)


def _write(path: Path, text: str) -> None:
    with whole_file(path) as temporary:
        temporary.write_text(text, "utf-8", newline="\n")
