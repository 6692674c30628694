"""Heal: a short fine-tune of a compressed folder's cores, as a job with its loss curve while it runs."""

import html
import json
from pathlib import Path

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.figures import heal as figures_heal
from karipap_core.healing.launch import launch_commands
from karipap_core.healing.settings import ScaleSettings
from karipap_core.statistics.bootstrap import Interval, in_words
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import settings_key
from pages.parts import common, job, model, runs, texts
from pages.parts.roots import confine, roots

STEPS = [20, 50, 100, 200, 500, 1000, 2000, 5000]
WAYS = {"cores": "Whole cores, by its probabilities", "scales": "Scales and factors, block by block"}
WINDOWS = [16, 32, 64, 128, 256, 512]
OBJECTIVES = {"distill": "The dense model's probabilities", "next-token": "The text's own tokens"}
RATES = {"search": "Search for it", "3e-05": "3e-5", "0.0001": "1e-4", "0.0003": "3e-4", "0.001": "1e-3"}
OTHER = "Another folder"


def page() -> None:
    view = model.current()
    common.title(
        "Heal",
        "A short fine-tune of a compressed model's cores, or of their scales alone; everything else stays as it is. It "
        "never hands back a model worse than the one that came in.",
    )
    running = job.followed("heal_job")
    if running is not None:
        job.panel(running, "heal_job")
        live(running)
        outcome(view, running)
    new(view, running)
    past(view)


def live(running) -> None:
    """The loss curve of a job, drawn anew every two seconds while it runs."""
    if running.status()["state"] != "done":
        ended = running.status()["state"] in job.ENDED
        st.fragment(draw_live, run_every=None if ended else 2.0)(running)


def draw_live(running) -> None:
    log = running.folder / "job.log"
    lines = log.read_text("utf-8", "replace").splitlines() if log.is_file() else []
    for stage, name in (("heal", "compressed"), ("dense", "dense")):
        if curve := figures_heal.curve_of_log(lines, stage):
            common.figure(
                figures_heal.loss_curve(curve),
                f"live_{stage}",
                f"Loss of the {name} model over {len(curve)} steps of training",
                f"karipap-heal-{stage}",
            )


def outcome(view, running) -> None:
    """What came out of a job that is done: figures, curve, and the pair of points."""
    if running.status()["state"] != "done":
        return
    try:
        found = running.result()
    except InputError:
        return
    if not {"loss_before", "loss_after", "curve"} <= found.keys():
        return
    before, after, dense = (found[key] for key in ("loss_before", "loss_after", "dense_loss"))
    items = [
        ("Loss before", f"{before:.4f}", "nats a token of the validation text"),
        ("Loss after", f"{after:.4f}", "of the folder as stored"),
    ]
    if dense is not None:
        items.append(("Dense loss", f"{dense:.4f}", "the dense model on the same text"))
        if before > dense:
            items.append(("Taken back", f"{(before - after) / (before - dense):.0%}", "of the rise in loss"))
    if found["dense_trained"]:
        trained = found["dense_trained"]["loss"]
        items.append(("Dense, trained too", f"{trained:.4f}", "the same steps and text, next-token loss"))
    items.append(("Steps", f"{found['steps']:,}", f"in {common.seconds(found['seconds'])}"))
    if found["learning_rate"] is not None and not found.get("blocks"):
        items.append(("Step size", f"{found['learning_rate']:g}", "found by search" if found["search"] else "given"))
    common.facts(items)
    for note in found["notes"]:
        st.html(f'<p class="k-note">{html.escape(note)}</p>')
    if blocks := found.get("blocks"):
        better = sum(block["after"] < block["before"] for block in blocks)
        alt = (
            f"Error of each block's outputs before and after healing; {better} of {len(blocks)} blocks came out better"
        )
        common.figure(figures_heal.block_errors(blocks), "blocks", alt, "karipap-heal-blocks")
    else:
        figure = figures_heal.loss_curve(found["curve"], before, dense)
        common.figure(figure, "curve", "Loss over the steps of healing", "karipap-heal")
    if points := found.get("points"):
        pair(view, points)
        change = found.get("change")
        if change is not None:
            said = in_words(Interval(**change))
            st.html(f'<p class="k-note">After less before, the same tokens in pairs: {html.escape(said)} nats.</p>')
    with st.expander("Use the healed model", key="k-use"):
        load = f"import karipap_core\nfrom transformers import AutoModelForCausalLM\n\nfolder = {found['folder']!r}\n"
        st.code(f"{load}model = AutoModelForCausalLM.from_pretrained(folder)", language="python")


def pair(view, points: list[dict]) -> None:
    """The points before and after healing, among the other runs of this model that were measured alike."""
    known = {run["id"]: run for run in runs.of_model(view)}
    both = [known.get(point["id"]) for point in points]
    if None in both:
        return
    alike = [run for run in known.values() if runs.conditions(run) == runs.conditions(both[1])]
    st.markdown("**Before and after, on text that nothing learnt from**")
    alt = f"Rise in loss {both[0]['rise']:z.4f} before healing and {both[1]['rise']:z.4f} after"
    text = runs.say_conditions(both[1])
    common.figure(figures_heal.moved(*both, alike), "moved", alt, "karipap-heal-points", text=text)
    runs.warn_of_text(both[1])
    st.html(f'<p class="k-note">{html.escape(runs.say_conditions(both[1]))}.</p>')
    st.page_link(
        "pages/tradeoff.py",
        label="See it on the trade-off",
        icon=":material/show_chart:",
        query_params={"model": view.alias, "point": both[1]["id"]},
    )


def folders(view) -> dict[str, dict]:
    """Run by its id, one for each compressed folder of this model that is there: newest first, healed ones last."""
    found = {}
    for run in sorted(runs.with_folder(view), key=lambda run: "healing" in (run.get("settings") or {})):
        found.setdefault(run["folder"], run)
    return {run["id"]: run for run in found.values()}


def typed() -> str:
    """A folder by its path: the workspace's, or one under KARIPAP_MODEL_ROOTS; "" where it is none of these."""
    path = st.text_input("Folder", key="heal_folder", persist_state="session").strip()
    if not path:
        return ""
    try:
        return str(confine(path, [*roots(), Workspace().root]))
    except InputError as error:
        st.error(common.plain(error))
        return ""


def new(view, running) -> None:
    """Folder, text, what learns, its settings and the button."""
    st.subheader("Heal a compressed folder", anchor=False)
    found = folders(view)
    left, right = st.columns([3, 2], gap="large")
    with left:
        options = [*found, OTHER]
        chosen, gone = common.asked(
            st.selectbox,
            "Compressed folder",
            options,
            "heal_from",
            options[0],
            "compressed folder",
            format_func=lambda key: key if key == OTHER else found[key]["label"],
        )
        folder = typed() if chosen == OTHER else "" if gone else found[chosen]["folder"]
        text = texts.choose("heal", "train")
        way = common.choose(
            st.segmented_control,
            "What learns",
            list(WAYS),
            "way",
            "cores",
            required=True,
            format_func=WAYS.get,
            help="Cores that are stored as floats, all together; or, with the codes of numbers in few bits left as "
            "they are, their scales and the cores that are floats, one block after the other, from what the dense "
            "model's blocks put out.",
        )
        objective = of_cores() if way == "cores" else []
    with right:
        settings = how_cores() if way == "cores" else how_scales()
        beside = way == "cores" and st.checkbox(
            "Give the dense model the same training",
            key="heal_dense",
            persist_state="session",
            help="A fair comparison, at the dense model's price in time and memory.",
        )
        points = st.checkbox(
            "Measure before and after for the trade-off",
            value=True,
            key="heal_measure",
            persist_state="session",
            help="On the standard library's held-out modules.",
        )
    argv = command(folder or "FOLDER", text or [], [*objective, *settings], beside, points)
    busy = running is not None and running.status()["state"] not in job.ENDED
    if st.button(
        texts.label("Heal", text),
        type="primary",
        key="heal",
        icon=":material/healing:",
        disabled=not folder or text is None or busy,
    ):
        label = Path(folder).name if chosen == OTHER else found[chosen]["label"]
        job.start(argv, f"Heal {label}", "heal_job")
        st.rerun()
    if busy:
        st.caption("One healing at a time from this page; the running one is above.")
    if way == "scales":
        return
    with st.expander("On several GPUs", key="k-launch"):
        commands = launch_commands(argv)
        st.caption("The whole model on each GPU; steps stay as large as on one, dealt out to them.")
        st.code(commands["multi_gpu"], language="bash", wrap_lines=True)
        st.caption("Spread over the GPUs (FSDP), for a model that does not fit one.")
        st.code(commands["fsdp"], language="bash", wrap_lines=True)


def of_cores() -> list[str]:
    """What whole cores learn from, as options of the command."""
    objective = common.choose(
        st.segmented_control,
        "Learn from",
        list(OBJECTIVES),
        "objective",
        "distill",
        required=True,
        format_func=OBJECTIVES.get,
    )
    return ["--objective", objective]


def how_cores() -> list[str]:
    """How whole cores learn, as options of the command."""
    steps = common.choose(
        st.select_slider,
        "Steps",
        STEPS,
        "steps",
        200,
        format_func="{:,}".format,
        help="Each on 2,048 tokens. Two minutes on two cores are about 200 steps of a model of 7 M parameters.",
    )
    rate = common.choose(
        st.selectbox,
        "Step size",
        list(RATES),
        "rate",
        "search",
        format_func=RATES.get,
        help="The step size decides everything: too large does harm. A few steps of each candidate find it.",
    )
    norms = st.checkbox("The norms learn too", key="heal_norms", persist_state="session")
    again = st.checkbox(
        "Open cores in few bits and quantize them again",
        key="heal_requantize",
        persist_state="session",
        help="Without this their codes stay as they are, and of them only the scales learn.",
    )
    argv = ["--steps", str(steps), *([] if rate == "search" else ["--rate", rate])]
    return argv + [flag for flag, wanted in (("--norms", norms), ("--requantize", again)) if wanted]


def how_scales() -> list[str]:
    """How scales and factors learn, as options of the command."""
    windows = common.choose(
        st.select_slider,
        "Windows of text",
        WINDOWS,
        "windows",
        ScaleSettings.windows,
        help=f"That each block learns from, {ScaleSettings.passes} times each.",
    )
    return ["--scales", "--windows", str(windows)]


def command(folder: str, text: list[str], options: list[str], beside: bool, points: bool) -> list[str]:
    """The command of these choices; its folder is named by all of them, so that the same choices go on with it."""
    argv = ["heal", folder, *text, *options]
    out = Workspace().root / "healed" / f"heal-{settings_key({'argv': argv})}"
    argv += [flag for flag, wanted in (("--compare-dense", beside), ("--measure", points)) if wanted]
    return [*argv, "--out", str(out)]


def past(view) -> None:
    """Healed points of this model."""
    healed = [run for run in reversed(runs.of_model(view)) if (run.get("settings") or {}).get("healing")]
    st.subheader("Healed before", anchor=False)
    if not healed:
        st.caption("Nothing yet. Healings that were measured appear here and on the Trade-off page.")
        return
    for run in healed[:20]:
        said = f"{run['label']}: rise {run['rise']:+z.4f}, {run['bytes_kept']:.1%} of the bytes"
        st.page_link(
            "pages/tradeoff.py",
            label=common.plain(said),
            icon=":material/show_chart:",
            query_params={"model": view.alias, "point": run["id"]},
        )
    st.download_button(
        "JSON",
        lambda: json.dumps(healed, indent=1),
        "karipap-healed.json",
        "application/json",
        key="healed_json",
        on_click="ignore",
        type="tertiary",
        icon=":material/download:",
    )


with common.plain_errors("drawing the healing"):
    page()
