"""A measured point of the trade-off: what was measured, how large it is, and what it lost."""

from dataclasses import dataclass, field
from typing import Any, Literal

from karipap_core.plan.document import Plan, is_of
from karipap_core.schemas import SEAL
from karipap_core.workspace import Workspace, shipped
from karipap_core.workspace.names import Names, apart
from karipap_core.workspace.runs import RUN_FORMAT, RUN_VERSION, read_runs

_NAMED = ("id", "created", "kind", "method", "label", "settings", "model", "plan", "predicted")
_LAST = ("measurement", "environment", "seconds")
_NEVER = ("format", "version", "path", SEAL)  # `path` is added by `read_runs` and not in the file


@dataclass(frozen=True)
class Point:
    """One run.json of the workspace.

    id : its name among the runs. created : seconds since 1970.
    kind : "network", or "baseline" for what networks are held against.
    method : the network or the baseline, by name. label : what it is called on screen.
    settings : what was asked for: the network, rule, budget and so on, or the bits of a baseline.
    model : the checkpoint as a plan names it. plan : the plan's JSON, None for a baseline that is none.
    predicted : what the plan was predicted to lose.
    figures : everything that was counted or measured, and whatever else the file holds: the sizes of `baselines.sizes`,
        the figures of `fidelity.measure` or `fidelity.output_fidelity`, "text", "window", "stride", "tasks" …
    measurement : names what was measured under which conditions: equal for equal weights on equal tokens.
    environment : versions and machine. seconds : what planning and measuring took.
    """

    id: str
    created: float
    kind: Literal["network", "baseline"]
    method: str
    label: str
    settings: dict[str, Any]
    model: dict[str, Any]
    plan: dict[str, Any] | None
    predicted: dict[str, Any] | None
    figures: dict[str, Any]
    measurement: str | None = None
    environment: dict[str, Any] | None = None
    seconds: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The document of run.json; `from_json` of it is this point again."""
        document = {"format": RUN_FORMAT, "version": RUN_VERSION}
        document |= {name: getattr(self, name) for name in _NAMED} | self.figures
        return document | {name: value for name in _LAST if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> "Point":
        """The point of a run.json. Fields that it does not name stay among the figures."""
        named = {name: document.get(name) for name in (*_NAMED, *_LAST)}
        figures = {key: value for key, value in document.items() if key not in (*named, *_NEVER)}
        return cls(**named | {"seconds": named["seconds"] or {}}, figures=figures)


def plan_settings(plan: Plan, network: str) -> dict[str, Any]:
    """The settings of a point that is a plan: what was asked for when the plan was made."""
    return {
        "network": network,
        "rule": plan.rule,
        "chosen_rule": plan.chosen_rule,
        "metric": plan.metric,
        "budget": plan.budget,
        "scope": plan.scope,
    } | ({"prefix": plan.prefix} if plan.prefix else {})


def runs_of_model(checkpoint, workspace: Workspace | None = None) -> list[dict[str, Any]]:
    """The documents of all runs of this very checkpoint, oldest first, networks and baselines: the workspace's, and
    what ships with the model as `karipap/runs` (see `Workspace.adopt`); each as it is `called`."""
    beside = shipped(checkpoint)
    found = {run["id"]: run for run in (read_runs(beside / "runs") if beside else [])}
    found |= {run["id"]: run for run in (workspace or Workspace()).runs}
    mine = called([run for run in found.values() if is_of(run["model"], checkpoint)], workspace)
    return sorted(mine, key=lambda run: run.get("created", 0))


def called(runs: list[dict[str, Any]], workspace: Workspace | None = None) -> list[dict[str, Any]]:
    """The same documents; those that somebody named in the workspace have that "name", as their "label" too, and what
    they were labelled as "described"."""
    names = Names(workspace).all()
    labels = apart({run["id"]: names[run["id"]] for run in runs if run["id"] in names})
    return [
        run | {"name": names[run["id"]], "label": labels[run["id"]], "described": run["label"]}
        if run["id"] in labels
        else run
        for run in runs
    ]
