"""Runs and plans of the model in view: found in the workspace, put in words, and opened on the board."""

import math
import re
from pathlib import Path

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.figures_runs import QUALITIES, SIZES
from karipap_core.pareto import known
from karipap_core.plan import Plan
from karipap_core.workspace import Workspace, read_runs
from pages.parts import common

STRANGE_TEXT = 3.0  # bits per byte of the dense model; xz needs about 2 on most text


def of_model(view) -> list[dict]:
    """Runs of this very checkpoint, oldest first, networks and baselines: the workspace's, and what ships with the
    model as `karipap/runs` (see Workspace.adopt)."""
    fingerprint = view.checkpoint.fingerprint
    found = {run["id"]: run for run in read_runs(Path(view.source) / "karipap" / "runs") if "id" in run}
    found |= {run["id"]: run for run in Workspace().runs if "id" in run}
    mine = [run for run in found.values() if run.get("model", {}).get("fingerprint") == fingerprint]
    return sorted(mine, key=lambda run: run.get("created", 0))


def conditions(run: dict) -> tuple:
    """What must be equal for two runs to stand on one chart: text, window, stride and tokens."""
    text = run.get("text") or {}
    return text.get("sha256"), run.get("window"), run.get("stride"), run.get("tokens")


def say_conditions(run: dict) -> str:
    """The same in words."""
    text = (run.get("text") or {}).get("name", "an unnamed text")
    return f"{text}, {run.get('tokens') or 0:,} tokens in windows of {run.get('window')}, stride {run.get('stride')}"


def plans(view) -> dict[str, Plan]:
    """Name → plan of the workspace's plans for this checkpoint, newest first."""
    found = {}
    files = sorted(Workspace().plans.glob("*.json"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in files:
        try:
            plan = Plan.load(file)
        except InputError:
            continue
        if plan.model.get("fingerprint") == view.checkpoint.fingerprint:
            found[file.stem] = plan
    return found


def keep_plan(plan: Plan, name: str) -> str:
    """Saves a plan in the workspace under a name made of `name`; returns that name."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:100] or "plan"
    plan.save(Workspace().plan_file(stem))
    return stem


def open_on_board(run: dict) -> None:
    """Leaves for the Plan page with this run's plan."""
    name = keep_plan(Plan.from_json(run["plan"], run["label"]), run["id"])
    st.session_state.pop("plan", None)
    st.switch_page("pages/plan.py", query_params={"model": st.session_state.model, "plan": name})


def describe(plan: Plan) -> str:
    """A plan in a line: network, rule, size, prediction."""
    networks = sorted({entry["network"] for entry in plan.weights.values()} - {"dense"}) or ["all dense"]
    words = [" + ".join(networks), f"{plan.rule}{f' ({plan.chosen_rule})' if plan.chosen_rule else ''}"]
    predicted = plan.predicted or {}
    if predicted.get("kept") is not None:
        words.append(f"{predicted['kept']:.1%} kept")
    if predicted.get("rise") is not None:
        words.append(f"predicted rise {predicted['rise']:.3f}")
    return ", ".join(words)


# ---- what the numbers support -----------------------------------------------------------------------------------


def verdict(points: list[dict], x: str = "bytes_kept", y: str = "rise") -> str:
    """Who is better at which size, in sentences that the points support.

    At every measured size the best network that is no larger stands against the best baseline that is no larger;
    differences within the standard errors of both count as a tie.
    """
    quality, size = QUALITIES[y], SIZES[x].label.lower()
    measured = [point for point in points if known(point, x) and known(point, y)]
    networks = [point for point in measured if point["kind"] == "network"]
    rivals = [point for point in measured if point["kind"] == "baseline"]
    if not networks:
        return "No network has been measured on this text yet."
    if not rivals:
        return "No baseline has been measured on this text yet, so nothing can be said about who wins."
    rounds = []
    for at in sorted({point[x] for point in measured}):
        ours, theirs = (_best([p for p in side if p[x] <= at + 1e-9], y) for side in (networks, rivals))
        if ours and theirs:
            rounds.append((_winner(ours, theirs, y), at, ours, theirs))
    if not rounds:
        return "No network is as small as a baseline here, or the other way round: sizes do not overlap."
    spans: list[list] = []
    for entry in rounds:
        if spans and spans[-1][-1][0] == entry[0]:
            spans[-1].append(entry)
        else:
            spans.append([entry])
    single = len(spans) == 1
    sentences = [_sentence(span, single, i == 0, i == len(spans) - 1, size, x, y) for i, span in enumerate(spans)]
    smallest = min(point[x] for point in networks), min(point[x] for point in rivals)
    if smallest[0] < smallest[1] - 1e-9:
        sentences.append(f"Below {smallest[1]:.1%} no baseline was measured.")
    return f"By {quality.label.lower()}, {sentences[0][0].lower()}{sentences[0][1:]} {' '.join(sentences[1:5])}".strip()


def _sentence(span: list, single: bool, first: bool, last: bool, size: str, x: str, y: str) -> str:
    winner, _, ours, theirs = max(span, key=lambda entry: abs(entry[2][y] - entry[3][y]))
    low, high = span[0][1], span[-1][1]
    if single:
        where = f"at every size that both reach ({size} {low:.1%} to {high:.1%})"
    elif last:
        where = f"from {low:.1%} {size} on"
    elif first:
        where = f"up to {high:.1%} {size}" if high > low else f"at {low:.1%} {size}"
    else:
        where = f"from {low:.1%} to {high:.1%}" if high > low else f"at {low:.1%}"
    best, other = (ours, theirs) if winner != "baseline" else (theirs, ours)
    form = QUALITIES[y].form
    numbers = f"{best['label']}: {best[y]:{form}}; {other['label']}: {other[y]:{form}}"
    if winner == "tie":
        return f"{where[0].upper()}{where[1:]} they tie within the error of measuring ({numbers})."
    who = "a network" if winner == "network" else "a baseline"
    return f"{where[0].upper()}{where[1:]} {who} is better ({numbers})."


def _winner(ours: dict, theirs: dict, y: str) -> str:
    better = ours[y] - theirs[y] if QUALITIES[y].more else theirs[y] - ours[y]
    noise = 0.0
    if y in ("rise", "loss"):
        noise = math.hypot(*(point.get("rise_error") or 0.0 for point in (ours, theirs)))
    if abs(better) <= noise:
        return "tie"
    return "network" if better > 0 else "baseline"


def _best(points: list[dict], y: str) -> dict | None:
    pick = max if QUALITIES[y].more else min
    return pick(points, key=lambda point: point[y], default=None)


def warn_of_text(run: dict) -> None:
    """Says so where the dense model itself knows nothing of the text: then no figure measured on it means much."""
    dense = (run.get("dense") or {}).get("bits_per_byte")
    if dense is not None and dense > STRANGE_TEXT:
        st.warning(
            f"The dense model itself needs {dense:.1f} bits for each byte of this text: it was not made for it, and "
            "what is lost on it says little. Measure on a text of the model's own kind."
        )


# ---- one point in words -----------------------------------------------------------------------------------------


def facts(run: dict) -> None:
    """The figures of one run, each with its definition, dense beside compressed."""
    dense = run.get("dense") or {}
    items = [
        ("Parameters kept", f"{run['kept']:.1%}", f"{1 - run['kept']:.1%} removed; embedding and head counted"),
        ("Bytes kept", f"{run['bytes_kept']:.1%}", "16 bits a number where nothing is quantized"),
    ]
    if run.get("rise") is not None:
        error = f" ± {run['rise_error']:.2g}" if run.get("rise_error") else ""
        predicted = (run.get("predicted") or {}).get("rise")
        told = f"{predicted:.4f} was predicted" if predicted is not None else "nothing was predicted"
        items.append(("Rise in loss", f"{run['rise']:+.4f}{error}", f"nats a token; {told}"))
        items.append(("Perplexity", f"{run['perplexity']:.3f}", f"dense {dense.get('perplexity', math.nan):.3f}"))
        items.append(
            ("Bits per byte", f"{run['bits_per_byte']:.3f}", f"dense {dense.get('bits_per_byte', math.nan):.3f}")
        )
        items.append(("KL divergence", f"{run['kl']:.4f}", "nats a token, dense ‖ compressed"))
        items.append(("Top-1 agreement", f"{run['top1_agreement']:.1%}", "tokens that both put first"))
    if run.get("relative_error") is not None or run.get("fidelity"):
        found = run.get("fidelity") or run
        items.append(("Output error", f"{found['relative_error']:.4f}", "Σ‖h − h_dense‖² / Σ‖h_dense‖²"))
        items.append(("Cosine", f"{found['cosine']:.4f}", "of the hidden states, mean over tokens"))
    for label, group, key, form, note in (
        ("Prefill", "speed", "prefill_tokens_per_second", ",.0f", "tokens a second"),
        ("Decode", "speed", "decode_ms_per_token", ".2f", "milliseconds a token"),
    ):
        both = [((run.get(group) or {}).get(who) or {}).get(key) for who in ("compressed", "dense")]
        if all(value is not None for value in both):
            items.append((label, f"{both[0]:{form}}", f"{note}; dense {both[1]:{form}}"))
    memory = run.get("memory") or {}
    if memory.get("compressed"):
        ours, theirs = memory["compressed"], memory.get("dense") or {}
        disk = theirs.get("disk_bytes")
        note = f"dense {common.size(disk)}" if disk else "safetensors files"
        items.append(("On disk", common.size(ours.get("disk_bytes") or 0), note))
    common.facts(items)
