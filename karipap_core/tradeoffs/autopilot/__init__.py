"""A quality line or a size → the plan: screened by prediction, then measured step by step until it holds.

The search looks at one half of the documents (search.py); what is said in the end comes from the other half, which no
decision but a step back was made on (verdict.py). Every plan tried is a point of the trade-off (`tradeoffs.points`).
"""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

from karipap_core.errors import InputError
from karipap_core.evaluation.scoring import Scoring
from karipap_core.plan import effort
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.choice import Choice
from karipap_core.plan.document import Plan, measured_model
from karipap_core.plan.study import Study
from karipap_core.progress import Progress, announce, silent
from karipap_core.text import Text
from karipap_core.tradeoffs.autopilot.aim import Aim, Criterion
from karipap_core.tradeoffs.autopilot.log import Log
from karipap_core.tradeoffs.autopilot.search import Limits, Search
from karipap_core.tradeoffs.autopilot.trail import Trails
from karipap_core.tradeoffs.autopilot.verdict import Verdict
from karipap_core.tradeoffs.points import Points
from karipap_core.tradeoffs.sweep import DEFAULT_SCORING, check_held_out, every
from karipap_core.workspace.files import settings_key
from karipap_core.workspace.kept import keep_json, kept_json
from karipap_core.workspace.locks import only_writer

FORMAT, VERSION = "karipap-autopilot", 1
LIMITS = Limits()
RIVALS = 5  # that a verdict measures, about


def autopilot(
    study: Study,
    text: Text,
    aim: Aim,
    choices: Sequence[Choice | str] = ("lowrank",),
    limits: Limits = LIMITS,
    scoring: Scoring = DEFAULT_SCORING,
    out: str | Path | None = None,
    progress: Progress = silent,
) -> dict:
    """The plan with the fewest bytes that meets a line, or with the least rise at a size.

    text : held out (see `tradeoffs.sweep.study_and_text`), dealt by documents to search and verdict.
    choices : the networks to try, as for a sweep, all with the same format and tables. A search measures at most
        `limits.max_evaluations` plans, the verdict the plan again, up to 3 steps back, and its rivals.
    out : a folder for points, plan.json and autopilot.json (default: the workspace, and a folder of its own in it).

    Returns, and writes after each step to autopilot.json, {"plan", "bytes_kept", "rise", "rise_low", "rise_high",
    "met", "outside_uncertainty", "tried": [...], "rivals": [...], "verdict": [sentences], "log": [{"step", "did",
    "why", "predicted", "measured", "bytes_kept", "decision", "says"}], "line", "evaluations", "seconds", …}. Raises
    InputError for what does not fit.
    """
    check_held_out(study, text)
    settings = _settings(every(choices), aim, limits, scoring)
    networks = {choice.network: choice for choice in every(choices)}
    wanted = {"max_rise": aim.max_rise} if aim.max_rise is not None else {"budget": aim.budget}
    identity = {"study": study.key, "model": study.checkpoint.identity, "sha256": text.sha256, "version": 1}
    identity |= {"measure": "all"} if study.measure == "all" else {}
    identity |= {"rounding": study.rounding} if any(choice.rounds for choice in networks.values()) else {}
    key = settings_key(settings | wanted | identity)
    home = Path(out) if out is not None else study.workspace.root / "autopilot" / key
    known = kept_json(home / "autopilot.json", "autopilot") or {}
    if known.get("key") == key and known.get("state") == "done":
        if not (home / "plan.json").is_file():
            Plan.from_json(known["plan"]).save(home / "plan.json")
        return known

    with only_writer(home / "autopilot.json", "autopilot"):
        criterion = Criterion(aim, study.checkpoint.predicts)
        texts = halves(text)
        log = Log(criterion, home / "autopilot.json", _head(key, criterion, settings, study, texts))
        points_in = Path(out) if out is not None else study.workspace.root
        for choice in networks.values():
            announce(progress, effort.once(study, "loss", choice))
        each = effort.EVALUATION
        searched = limits.max_evaluations * each + effort.rounds(study)
        announce(progress, {"search": searched, "verdict": each, "rivals": RIVALS * each})
        searching, judging = (Points(study, half, points_in, scoring, progress=progress) for half in texts)
        study.expect(networks.values(), "loss")
        trails = Trails(study, networks, aim.scope, _frozen_calibration(study, home, key), progress)
        log.write("running")
        refined_file = home / "plans" / f"refined-{key}.json"
        found = Search(trails, searching, criterion, limits, log, refined_file, progress).run()
        progress("search", limits.max_evaluations, limits.max_evaluations)
        searching.release()  # its logits of the dense model make room for the verdict's
        verdict = Verdict(study, judging, criterion, log, progress)
        final = verdict.judge(found)
        final.plan.save(home / "plan.json")
        return log.write("done", verdict.document(final, str(home / "plan.json")))


def halves(text: Text) -> tuple[Text, Text]:
    """(to search on, for the verdict): whole documents, dealt so that both sides are about as long. A document that is
    longer than all others together is cut in two."""
    documents = list(text.documents)
    largest = max(range(len(documents)), key=lambda index: len(documents[index]))
    if 2 * len(documents[largest]) > sum(map(len, documents)):
        long = documents[largest]
        documents[largest : largest + 1] = [long[: len(long) // 2], long[len(long) // 2 :]]
    sides: tuple[list[int], list[int]] = ([], [])
    for index in sorted(range(len(documents)), key=lambda index: (-len(documents[index]), index)):
        min(sides, key=lambda side: sum(len(documents[each]) for each in side)).append(index)
    first, second = (tuple(documents[index] for index in sorted(side)) for side in sides)
    return (
        Text(f"{text.name}, half to search on", first, text.path),
        Text(f"{text.name}, half for the verdict", second, text.path),
    )


def _settings(choices: list[Choice], aim: Aim, limits: Limits, scoring: Scoring) -> dict:
    """The "settings" of the document. InputError where the choices differ in more than their network."""
    shared = {(choice.quantize, choice.embedding) for choice in choices}
    if len(shared) > 1:
        raise InputError("One search is for one format and one kind of tables: give all networks the same.")
    quantize, embedding = shared.pop()
    settings = {"networks": [choice.network for choice in choices], "quantize": quantize, "embedding": embedding}
    structures = {choice.structure for choice in choices if choice.structure}
    settings |= {"structure": sorted(structures)} if structures else {}
    limited = {"keep_ends": limits.keep_ends, "max_evaluations": limits.max_evaluations}
    return settings | {"scope": aim.scope, **limited, **scoring.to_json()}


def _frozen_calibration(study: Study, home: Path, key: str) -> Calibration:
    """What plans were predicted from when this search began: predictions learn from every point that is measured, and a
    search that goes on must decide as it did before."""
    file = home / "calibration.json"
    frozen = kept_json(file) or {}
    if frozen.get("key") != key:
        frozen = {"key": key, "calibration": study.calibration("loss").to_json()}
        keep_json(file, frozen)
    # A copy of its own: the study's calibration goes on learning.
    return Calibration.from_json(deepcopy(frozen.get("calibration") or {}), f"File {file}, field calibration")


def _head(key: str, criterion: Criterion, settings: dict, study: Study, texts: tuple[Text, Text]) -> dict:
    """The fields of the document that are known before anything is measured."""
    roles = zip(("search", "verdict", "calibration"), (*texts, study.text), strict=True)
    return {
        "format": FORMAT,
        "version": VERSION,
        "key": key,
        "state": "running",
        "model": measured_model(study.checkpoint),
        "line": criterion.line_entry(),
        "settings": settings,
        "quality": criterion.quality,
        "criterion": criterion.sentence(),
        "texts": {
            role: {"name": text.name, "sha256": text.sha256, "documents": len(text.documents)} for role, text in roles
        },
    }
