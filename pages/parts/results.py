"""Where the result of a job is: the page that shows it, what that page has to be told, and the path on disk."""

from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.jobs import Job
from karipap_core.workspace import Workspace
from pages.parts import model

PAGES = {  # verb: the page that starts such jobs and follows them, and the name by which its address gives the job
    "profile": ("profile", "Profile", "profile_job"),
    "plan": ("plan", "Plan", "plan_job"),
    "run": ("run", "Run", "job"),
    "sweep": ("tradeoff", "Trade-off", "sweep_job"),
    "heal": ("heal", "Heal", "heal_job"),
    "autopilot": ("autopilot", "Autopilot", "autopilot_job"),
    "sensitivity": ("sensitivity", "Sensitivity", "sensitivity_job"),
    "claims": ("claims", "Claims", "claim_job"),
    "verify": ("checklist", "Production", "production_job"),
    "evaluate": ("checklist", "Production", "production_job"),
    "checklist": ("checklist", "Production", "production_job"),
    "shadow": ("checklist", "Production", "production_job"),
}


@dataclass(frozen=True)
class Place:
    """A page and what its address says; label: of the button that goes there."""

    file: str
    label: str
    query: dict[str, str]


def place(job: Job, brief: dict) -> Place | None:
    """The page to look at for a job: of one that is done the page that shows what came out, of any other the page that
    follows it. None where no page does."""
    argv = brief["argv"]
    known = PAGES.get(argv[0]) if argv else None
    if known is None:
        return None
    name, title, parameter = known
    query = _model(argv)
    if brief["state"] != "done":
        return Place(f"pages/{name}.py", f"Open {title}", query | {parameter: job.id})
    found = result(job)
    if argv[0] == "plan" and (stem := _plan(argv)):
        return Place("pages/plan.py", "Open the plan", query | {"plan": stem})
    if argv[0] == "run" and isinstance(found.get("id"), str):
        return Place("pages/tradeoff.py", "See its point", query | {"point": found["id"]})
    return Place(f"pages/{name}.py", "See the result", query | {parameter: job.id})


def path(job: Job, brief: dict) -> str | None:
    """What a finished job wrote, on disk: what its command was told to write, or what its result names."""
    argv = brief["argv"]
    told = argv[argv.index("--out") + 1] if "--out" in argv[:-1] else None
    if told is not None:
        folder = Path(job.document()["cwd"])
        return str(folder / told)
    found = result(job)
    named = found.get("folder") or found.get("path") or found.get("plan_file")
    return named if isinstance(named, str) else None


def result(job: Job) -> dict:
    """The document that it printed, nothing where that cannot be read."""
    try:
        return job.result()
    except InputError:
        return {}


def go(to: Place) -> None:
    """Leaves for that page. What this session has chosen there gives way to what the address says."""
    if to.query.get("model", st.session_state.get("model")) != st.session_state.get("model"):
        model.chosen_another()
    for name in to.query:
        st.session_state.pop(name, None)
        st.session_state.pop(f"{name}_closed", None)
    st.switch_page(to.file, query_params=to.query)


def _model(argv: list[str]) -> dict[str, str]:
    """{"model": alias} where the command names a model that the dashboard knows."""
    named = argv[1] if len(argv) > 1 else ""
    if "--against" in argv[:-1]:
        named = argv[argv.index("--against") + 1]
    alias = next((alias for alias, folder in model.listing().models.items() if folder == named), None)
    return {"model": alias} if alias else {}


def _plan(argv: list[str]) -> str | None:
    """The name of the workspace's plan that a command wrote."""
    told = Path(argv[argv.index("--out") + 1]) if "--out" in argv[:-1] else None
    return told.stem if told is not None and told.parent == Workspace().plans and told.is_file() else None
