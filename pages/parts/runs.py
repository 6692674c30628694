"""Runs and plans of the model in view: found in the workspace, put in words, and opened on the board."""

import html
import math
import re
from functools import lru_cache
from pathlib import Path

import pandas as pd
import streamlit as st

from karipap_core import terminal as show
from karipap_core.errors import InputError
from karipap_core.evaluation import scores, suits
from karipap_core.evaluation.wrong_text import warnings_of
from karipap_core.plan.checks import rise_in_words
from karipap_core.plan.document import Plan
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.tradeoffs.point import runs_of_model
from karipap_core.workspace import Workspace
from karipap_core.workspace.names import Names, apart, plan_key
from karipap_core.workspace.runs import read_runs, stamp
from pages.parts import common
from pages.parts.roots import inside, roots

MOST_SAID = 20


def of_model(view) -> list[dict]:
    """`runs_of_model` of the model in view."""
    return runs_of_model(view.checkpoint)


def passed_over() -> list[str]:
    """Why each run and plan of the workspace that cannot be read is not on the pages, a sentence each."""
    bad: list[str] = []
    read_runs(Workspace().runs_dir, bad)
    found = (plan_at(str(file), stamp(file)) for file in sorted(Workspace().plans.glob("*.json")))
    return bad + [plan for plan in found if isinstance(plan, str)]


@lru_cache(maxsize=500)
def plan_at(file: str, stamp: tuple[int, ...]) -> Plan | str:
    """The plan in a file of this stamp, or the sentence that says why it cannot be read: every rerun lists all plans.
    Nobody may change it."""
    try:
        return Plan.load(file)
    except InputError as error:
        return str(error)


def say_passed_over(bad: list[str]) -> None:
    """A note of files that were passed over, closed until somebody asks."""
    if not bad:
        return
    many = "1 file" if len(bad) == 1 else f"{len(bad):,} files"
    with st.expander(f"{many} of the workspace cannot be read", key="k-passed-over"):
        for sentence in bad[:MOST_SAID]:
            st.html(f'<p class="k-note">{html.escape(sentence)}</p>')
        if len(bad) > MOST_SAID:
            st.caption(f"And {len(bad) - MOST_SAID:,} more.")


def with_folder(view) -> list[dict]:
    """Those whose compressed folder is there, newest first. The workspace's own runs say where theirs are; what ships
    with a model is a stranger's, and names none outside KARIPAP_MODEL_ROOTS."""
    own = {run["id"] for run in Workspace().runs}
    found = []
    for run in reversed(of_model(view)):
        folder = run.get("folder")
        if not folder or not (Path(folder) / "config.json").is_file():
            continue
        if run["id"] in own or inside(folder, roots()):
            found.append(run)
    return found


def own(points: list[dict]) -> set[str]:
    """Ids of those that went through *Compress & evaluate*, or `run`, on this machine: each with a folder of its own
    beside it. Points of curves have none, and what ships with a model lies elsewhere."""
    mine = Workspace().runs_dir
    return {run["id"] for run in points if run.get("folder") and Path(run["path"]).is_relative_to(mine)}


def conditions(run: dict) -> tuple:
    """What must be equal for two runs to stand on one chart: text, window, stride and tokens."""
    text = run.get("text") or {}
    return text.get("sha256"), run.get("window"), run.get("stride"), run.get("tokens")


def say_conditions(run: dict) -> str:
    """The same in words."""
    if run.get("tokens") is None:
        return "nothing"
    text = (run.get("text") or {}).get("name", "an unnamed text")
    return f"{text}, {run.get('tokens') or 0:,} tokens in windows of {run.get('window')}, stride {run.get('stride')}"


def plans(view) -> dict[str, Plan]:
    """Name → plan of the workspace's plans for this checkpoint, newest first."""
    found = {}
    files = sorted(Workspace().plans.glob("*.json"), key=lambda file: file.lstat().st_mtime, reverse=True)
    for file in files:
        plan = plan_at(str(file), stamp(file))
        if isinstance(plan, Plan) and plan.model.get("fingerprint") == view.checkpoint.fingerprint:
            found[file.stem] = plan
    return found


def shown(name: str, names: dict[str, str] | None = None) -> str:
    """A stored plan as people read it: the name that it was given, or that of its file, with six digits of its
    content's key (`Workspace.keep_plan`) where it has no other, or several have it. names: `Names.all`, for who shows
    many."""
    stem, _, key = name.rpartition("-")
    names = Names().all() if names is None else names
    if given := names.get(key):
        return apart({each: called for each, called in names.items() if "-" not in each}).get(key, given)
    return re.sub(r"(-[0-9a-f]{6})[0-9a-f]{10}$", r"\1", name)


def keep(plan: Plan, name: str) -> str:
    """Stores a plan in the workspace under a name, which it then is called by, and returns its file's stem."""
    stem = Workspace().keep_plan(plan.to_json(), name)
    Names().give(plan_key(plan.to_json()), name)
    return stem


def open_on_board(run: dict) -> None:
    """Leaves for the Plan page with this run's plan."""
    plan = Plan.from_json(run["plan"], run["label"])
    name = keep(plan, run["name"]) if run.get("name") else Workspace().keep_plan(plan.to_json(), run["id"])
    st.session_state.pop("plan", None)
    st.switch_page("pages/plan.py", query_params={"model": st.session_state.model, "plan": name})


def describe(plan: Plan) -> str:
    """A plan in a line: network, rule, size, prediction."""
    networks = sorted({entry["network"] for entry in plan.weights.values()} - {"dense"})
    formats = sorted({entry.get("quantize") or "" for entry in plan.weights.values()} - {""})
    made = " + ".join(networks) or ("whole weights" if formats else "all dense")
    words = [
        made + (f" in {', '.join(formats)}" if formats else ""),
        f"{plan.rule}{f' ({plan.chosen_rule})' if plan.chosen_rule else ''}",
    ]
    predicted = plan.predicted or {}
    if predicted.get("kept") is not None:
        words.append(f"{predicted['kept']:.1%} kept")
    if rise := rise_in_words(predicted, 3):
        words.append(f"predicted rise {rise}")
    return ", ".join(words)


# ---- one run in words -------------------------------------------------------------------------------------------


def warn_of_text(*points: dict) -> None:
    """A warning where figures of points on one text do not say what was lost, or the model was not trained for the
    text: then no figure measured on it means much."""
    said = [*warnings_of(points), suits.said_of(points[0])][0]
    if said:
        st.warning(common.plain(said))


def is_main(run: dict, key: str) -> bool:
    """Whether a score is its task's main metric."""
    task, metric = scores.of(run, key)
    return metric == task.get("metric")


def task_fact(run: dict, key: str) -> tuple[str, str, str]:
    """The main score of a task: the dense model's and chance beside it, and how sure the difference is."""
    (task, metric), dense, chance = scores.of(run, key), scores.dense([run], key), scores.chance([run], key)
    form = ".1%" if scores.more_is_better(task, metric) else ".4f"
    notes = [f"dense {dense:{form}}"] if dense is not None else []
    notes += [f"chance {chance:{form}}"] if chance is not None else []
    found = scores.to_dense(run, key)
    if found is not None:
        notes.append(uncertainty.in_words(found, "+z.3f"))
    elif (error := scores.error_of(task, metric)) is not None:
        notes.append(f"± {scores.NORMAL * error:{form}}")
    return key, f"{task[metric]:{form}}", "; ".join(notes)


def facts(run: dict) -> None:
    """The figures of one run, each with its definition, dense beside compressed."""
    dense = run.get("dense") or {}
    items = [
        ("Parameters kept", f"{run['kept']:.1%}", f"{1 - run['kept']:.1%} removed; embedding and head counted"),
        ("Bytes kept", f"{run['bytes_kept']:.1%}", "16 bits a number where nothing is quantized"),
    ]
    if (stored := (run.get("model") or {}).get("stored")) and run.get("bytes"):
        items.append(("Beside the files", f"{run['bytes'] / stored['bytes']:.0%}", f"of the files as {stored['form']}"))
    if run.get("rise") is not None:
        error = f"± {run['rise_error']:.2g} " if run.get("rise_error") else ""
        interval = uncertainty.rise_of(run)
        if interval is not None:
            error = f"{uncertainty.in_words(interval).removeprefix(f'{interval.mean:+z.4f} ')} "
        predicted = run.get("predicted") or {}
        told = "nothing was predicted"
        if rise := rise_in_words(predicted):
            told = f"predicted: {rise}"
            told += (
                f", usually within ±{predicted['error']:.0%}"
                if predicted.get("error") and not predicted.get("beyond")
                else ""
            )
        items.append(("Rise in loss", f"{run['rise']:+z.4f}", f"{error}nats a token; {told}"))
        items.append(("Perplexity", f"{run['perplexity']:.3f}", f"dense {dense.get('perplexity', math.nan):.3f}"))
        items.append(
            ("Bits per byte", f"{run['bits_per_byte']:.3f}", f"dense {dense.get('bits_per_byte', math.nan):.3f}")
        )
        items.append(("KL divergence", f"{run['kl']:.4f}", "nats a token, dense ‖ compressed"))
        items.append(("Top-1 agreement", f"{run['top1_agreement']:.1%}", "tokens that both put first"))
    items += [task_fact(run, key) for key in scores.keys([run]) if is_main(run, key)]
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
    conventions(run)


def conventions(run: dict) -> None:
    """Perplexities as papers and harnesses give them, compressed beside dense, where the run has them."""
    found = run.get("conventions") or {}
    if not found:
        return
    st.markdown("**Perplexity as papers give it**")
    measured = {name: entry for name, entry in found.items() if not entry.get("missing")}
    if measured:
        rows = pd.DataFrame(
            {
                "convention": name,
                "perplexity": entry["perplexity"],
                "dense": (entry.get("dense") or {}).get("perplexity"),
                "difference": show.perplexity_rise(entry),
                "bits": entry["bits_per_byte"],
                "word": entry["word_perplexity"],
            }
            for name, entry in measured.items()
        )
        number = st.column_config.NumberColumn
        st.dataframe(
            rows,
            hide_index=True,
            key=f"conventions_{run['id']}",
            placeholder="–",
            alt="Perplexity by convention",
            column_config={
                "convention": "Convention",
                "perplexity": number("Perplexity", format="%.4f", help="of a token"),
                "dense": number("Dense", format="%.4f"),
                "difference": st.column_config.TextColumn("Difference", help="of the perplexities, 95 % interval"),
                "bits": number("Bits per byte", format="%.4f"),
                "word": number("Word perplexity", format="localized", help="words are separated by white space"),
            },
        )
    notes = [f"{name}: {entry.get('missing') or show.convention_note(entry)}" for name, entry in found.items()]
    st.html("".join(f'<p class="k-note">{html.escape(note)}</p>' for note in notes))
