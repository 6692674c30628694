"""What the workspace knows of a checkpoint that a decision can rest on: functional spectra, and measured runs.

Nothing is computed here from weights or text; where nothing was measured, the answer says what to run.
"""

import math
from dataclasses import dataclass

import numpy as np

from karipap_core.errors import InputError
from karipap_core.profiles.document import Profile
from karipap_core.tradeoffs.point import runs_of_model
from karipap_core.workspace import Workspace

AGGRESSIVE = 0.3  # of a weight's parameters: what CompactifAI leaves of LLaMA-2-7B (2401.14109)
TOLERANCE = 0.05  # relative squared error of a layer's outputs that is still taken for small
ADVICE = ("tensor network", "higher rank", "dense")


@dataclass(frozen=True)
class Advice:
    """What the outputs on real activations say of one weight. error: ‖(W − Ŵ_χ) x‖² / ‖W x‖² at the aggressive `chi`;
    needed: the smallest χ within the tolerance; break_even: the χ at which nothing is saved; planned: what a plan does
    with the weight (None: no plan), planned_error: the error of its own χ where it is a lowrank one."""

    name: str
    layer: int | None
    role: str
    advice: str
    chi: int
    error: float
    needed: int
    break_even: float
    planned: str | None = None
    planned_error: float | None = None


def functional_profile(checkpoint, workspace: Workspace | None = None) -> Profile | None:
    """The newest profile of this checkpoint with functional spectra, the shipped one included; None where none is."""
    workspace = workspace or Workspace()
    workspace.adopt(checkpoint)
    folder = workspace.model_dir(checkpoint.key) / "profiles"
    for file in sorted(folder.glob("*/profile.json"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            profile = Profile.load(file)
        except InputError:
            continue
        if "functional" in profile.settings["metrics"]:
            return profile
    return None


def advise(profile: Profile, plan=None, tolerance: float = TOLERANCE, aggressive: float = AGGRESSIVE) -> list[Advice]:
    """One row for each compressible weight with a functional spectrum, in the profile's order.

    The tail of the spectrum of W C^{1/2} is the error of the outputs on the calibration text, exactly, for the best map
    of rank χ. `tensor network` where it is within the tolerance with `aggressive` of the parameters left; `higher rank`
    where some χ below the break-even is; `dense` where only a χ that saves nothing would be.
    """
    if not 0 < tolerance < 1 or not 0 < aggressive < 1:
        raise InputError(f"Tolerance {tolerance:g} and aggressive {aggressive:g} must lie between 0 and 1.")
    rows = []
    for row in profile.weights:
        if not row["compressible"] or "functional" not in row["spectra"]:
            continue
        n_out, n_in = row["shape"]
        squares = np.square(profile.sigma(row["name"], "functional"))
        total = squares.sum()
        # tail[χ] is what is lost with χ kept; the sum runs from the small end, where accuracy counts.
        tail = np.append(np.cumsum(squares[::-1])[::-1], 0.0) / (total if total > 0 else 1.0)
        break_even = n_out * n_in / (n_out + n_in)
        chi = max(1, int(aggressive * break_even))
        needed = int(np.argmax(tail <= tolerance))
        advice = ADVICE[0 if needed <= chi else 1 if needed < break_even else 2]
        planned, planned_error = _planned(plan, row["name"], tail)
        rows.append(
            Advice(
                row["name"],
                row["layer"],
                row["role"],
                advice,
                chi,
                float(tail[min(chi, len(tail) - 1)]),
                needed,
                break_even,
                planned,
                planned_error,
            )
        )
    return rows


def _planned(plan, name: str, tail: np.ndarray) -> tuple[str | None, float | None]:
    if plan is None:
        return None, None
    entry = plan.weights.get(name) or {"network": "dense"}
    words = " ".join(filter(None, (entry["network"], entry.get("quantize"))))
    if entry["network"] == "lowrank":
        return words, float(tail[min(entry["chi"][0], len(tail) - 1)])
    return words, None


def runs_of(checkpoint, workspace: Workspace | None = None) -> list[dict]:
    """Measured runs of this very checkpoint, the workspace's and those that ship with the model, oldest first; of runs
    on different texts, those on the text that most were measured on."""
    groups: dict = {}
    for run in runs_of_model(checkpoint, workspace):
        if run.get("bytes") is None:
            continue
        how = ((run.get("text") or {}).get("sha256"), run.get("window"), run.get("stride"), run.get("tokens"))
        groups.setdefault(how, []).append(run)
    return max(groups.values(), key=len, default=[])


def quality(run: dict) -> tuple[str, float] | None:
    """("rise", nats a token) of a run, or ("relative_error", …) of an encoder's; None where neither was measured."""
    for key in ("rise", "relative_error"):
        if run.get(key) is not None:
            return key, run[key]
    return None


def loss_added(run: dict) -> float:
    """The figure of `quality` to compare runs by, infinite where nothing was measured."""
    found = quality(run)
    return math.inf if found is None else found[1]


def quantization_alone(run: dict) -> bool:
    """Whether a run is of numbers in few bits and nothing else: such a baseline, or a plan without any network."""
    if run.get("kind") == "baseline":
        settings = run.get("settings") or {}
        return bool(settings.get("bits")) and not settings.get("rank")
    entries = _entries(run)
    return bool(entries) and all(entry["network"] == "dense" for entry in entries)


def of_quantization(runs: list[dict], format: str) -> dict | None:
    """The best measured run that stores every weight of the blocks in this format, which is one of ours, and changes
    nothing else: what another package made has other sizes."""
    bits = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}.get(format)

    def is_it(run: dict) -> bool:
        if run.get("kind") == "baseline":
            settings = run.get("settings") or {}
            return bits is not None and settings.get("bits") == bits and not settings.get("package")
        return all((entry.get("quantize") or "").split("g")[0] == format for entry in _entries(run))

    return _best([run for run in runs if quantization_alone(run) and is_it(run)])


def _entries(run: dict) -> list[dict]:
    return list(((run.get("plan") or {}).get("weights") or {}).values())


def of_plan(runs: list[dict], plan) -> dict | None:
    """The measured run of a plan with exactly these entries."""
    return _best([run for run in runs if (run.get("plan") or {}).get("weights") == plan.weights])


def pipelines(runs: list[dict]) -> list[dict]:
    """Measured runs of tensor-network plans."""
    return [run for run in runs if run.get("kind") == "network" and quality(run) and not quantization_alone(run)]


def cheaper(runs: list[dict], run: dict) -> dict | None:
    """A measured quantization alone that is no larger than `run` and loses no more: then the network is not needed."""
    rivals = [
        rival
        for rival in runs
        if quantization_alone(rival)
        and quality(rival)
        and quality(run)
        and rival["bytes"] <= run["bytes"]
        and loss_added(rival) <= loss_added(run)
    ]
    return _best(rivals)


def _best(runs: list[dict]) -> dict | None:
    return min((run for run in runs if quality(run)), key=loss_added, default=None)
