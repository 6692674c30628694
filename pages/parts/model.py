"""Choosing a model: the demo, folders under KARIPAP_MODEL_ROOTS, or a hub id.

The URL carries an alias, never a path, and an alias opens only what a scan of the roots has found or what is
already in the hub's cache: a link from a stranger can neither read elsewhere nor start a download.
"""

import html
import inspect
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from pathlib import Path

import streamlit as st

from karipap_core.checkpoint.model import SETTINGS, Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.workspace import Workspace
from pages.parts import common, job
from pages.parts.roots import DEMO, MOST_ENTRIES, MOST_FOLDERS, MOST_IN_ONE, Listing, confine, roots, scan, showable

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
LONGEST = 200  # signs of an alias
MOST_SAID = 5  # folders that the box leaves out, by name
# What is chosen of one model: keys of widgets and of the URL.
OF_MODEL = (
    *("weight", "profile", "plan", "folder", "heal_from", "a", "b", "deploy_plan", "measurement"),
    *("run", "point", "autopilot", "draft"),
)


@dataclass(frozen=True)
class Model:
    """The model in view: its alias (in the URL), what a command line calls it, and the opened checkpoint."""

    alias: str
    source: str
    checkpoint: Checkpoint


class Gone(InputError):
    """A model that was asked for is not there."""


@st.cache_data(ttl=30, show_spinner=False)
def found(where: tuple[str, ...]) -> Listing:
    """The models that can be chosen: the demo first, then those under `where` (see `roots.scan`)."""
    demo = common.ROOT / "assets" / "demo_model"
    listing = scan(where)
    if (demo / "model.safetensors").is_file():
        listing.models = {DEMO: str(demo)} | listing.models
    return listing


def listing() -> Listing:
    return found(tuple(map(str, roots())))


def cached_hub(hub_id: str) -> str | None:
    """The folder of a hub model that is already on this disk, else None; never goes to the network."""
    if not HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(hub_id, "config.json")
    return str(Path(config).parent) if isinstance(config, str) else None


@st.cache_resource(max_entries=8, show_spinner="Opening the model …")
def opened(folder: str, name: str, stamp: tuple) -> Checkpoint:
    """The checkpoint in `folder`; `stamp` (its files' sizes and times) makes a changed model open anew.

    What was measured on the model and ships in its folder goes to the workspace, where all pages look.
    """
    checkpoint = open_checkpoint(folder)
    checkpoint.name = name
    checkpoint.identity  # noqa: B018  (reads a model it has not met before to its end: here, under the spinner)
    try:
        Workspace().adopt(checkpoint)
    except (InputError, OSError):  # the model is as good without
        common.log.exception("taking over what was measured on %s", name)
    return checkpoint


def current() -> Model:
    """The model in view, for a page to use. Says why, and stops, where there is none."""
    common.inside_app()
    with common.plain_errors("opening the model"):
        view = find(st.session_state.get("model"))
        if view is None:
            offer_fetch(st.session_state.get("model"))
            st.stop()
        return view


def find(alias: str | None) -> Model | None:
    """The model of an alias. None where none is asked for, or a hub id that is not on this machine. Raises InputError
    where it is gone or cannot be opened: nothing else ever comes in its place."""
    if not alias:
        return None
    known = listing()
    alias = known.long.get(alias, alias)
    folder = known.models.get(alias)
    if folder is None:
        folder = cached_hub(alias)
        if folder is None and HUB_ID.fullmatch(alias):
            return None
    elif alias != DEMO:
        try:
            folder = str(confine(folder, roots()))
        except InputError:  # gone since the list was made, or now a link that leads elsewhere
            folder = None
    stamp = stamped(folder) if folder else ()
    if folder is None or not stamp:
        there = alias in known.left_out or alias in known.twins
        raise (InputError if there else Gone)(why_gone(alias, known))
    name = Path(known.models[alias]).name if alias in known.models else alias
    return Model(alias, folder, opened(folder, name, stamp))


def stamped(folder: str) -> tuple:
    """Sizes and times of the files that make up a model; () where its weights are not there."""
    found = []
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in islice(entries, MOST_IN_ONE):
            if entry.name.endswith((".safetensors", ".json", *SETTINGS)):
                with suppress(OSError):
                    status = entry.stat()
                    found.append((os.fsencode(entry.name), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found)) if any(name.endswith(b".safetensors") for name, *_ in found) else ()


def why_gone(alias: str, known: Listing) -> str:
    """The sentence for a model that was asked for and cannot be had."""
    what = "demo model" if alias == DEMO else f"model {showable(alias)}"
    if alias in known.twins:
        return f"{len(known.twins[alias])} folders are called {alias}: choose one of {', '.join(known.twins[alias])}."
    if alias in known.left_out and alias != DEMO:
        return f"The {what} cannot be opened: {known.left_out[alias]} Choose another model above."
    where = "it does not lie in this installation" if alias == DEMO else "no folder of KARIPAP_MODEL_ROOTS has it"
    return f"The {what} is gone: {where}. Choose another model above."


def fragment(draw: Callable | None = None, **more) -> Callable:
    """`st.fragment` for what draws a model (an argument `view`) and has buttons: where that model is gone or changed
    since, the whole page is drawn anew, and says so."""
    if draw is None:
        return lambda draw: fragment(draw, **more)

    @wraps(draw)
    def drawn(*args, **named):
        view = inspect.signature(draw).bind(*args, **named).arguments["view"]
        if not still(view):
            st.rerun()
        draw(*args, **named)

    return st.fragment(drawn, **more)


def still(view: Model) -> bool:
    """Whether a model is there as it was when `view` was made."""
    try:
        now = find(view.alias)
    except Exception:  # the page, drawn anew, says which
        return False
    return now is not None and (now.source, now.checkpoint.identity) == (view.source, view.checkpoint.identity)


def offer_fetch(alias: str | None) -> None:
    """Says what is missing where no model is in view, and offers to fetch a hub model (never unasked)."""
    if alias and HUB_ID.fullmatch(alias):
        fetching = job.followed("profile_job")
        if fetching is not None:
            job.panel(fetching, "profile_job")
            return
        st.info(f"{common.plain(alias)} is not on this machine yet.")
        if st.button("Fetch and profile it", type="primary", key="fetch"):
            job.start(["profile", alias, "--metrics", "weight"], f"Profile {alias}", "profile_job")
            st.rerun()
    else:
        st.info(
            "No model here yet. Set KARIPAP_MODEL_ROOTS to a folder that holds Hugging Face models (safetensors) and "
            "start the dashboard again, or type a hub id above."
        )


def _choose_hub() -> None:
    typed = st.session_state.get("hub", "").strip()
    if HUB_ID.fullmatch(typed):
        st.session_state.model = typed
        chosen_another()
    elif typed:
        st.session_state.hub_wrong = typed


def chosen_another() -> None:
    """After another model was chosen: what was chosen of the one before is not asked of this one."""
    for key in OF_MODEL:
        st.session_state.pop(key, None)
        st.query_params.pop(key, None)


def bar() -> None:
    """The line at the top of every page: which model, its size, and how to choose another."""
    known = listing()
    asked = str(st.session_state.get("model") or st.query_params.get("model", ""))[:LONGEST]
    asked = known.long.get(asked, asked)
    options = list(known.models)
    if asked and asked not in options:
        options.append(asked)  # it keeps its name, wherever it is: no other model comes in its place
    if options:
        st.session_state.model = asked or options[0]
    else:
        st.session_state.pop("model", None)
    chosen = st.session_state.get("model")
    view, state = look(chosen)
    with st.container(key="k-bar", horizontal=True, vertical_alignment="center", gap="medium"):
        label = common.plain(named(chosen) + (f" ({state})" if state else ""))
        with st.popover(label, icon=":material/deployed_code:", key="k-model"):
            if options:
                st.selectbox(
                    "Model",
                    options,
                    key="model",
                    persist_state="session",
                    format_func=lambda alias: named(alias, " (Python source)"),
                    on_change=chosen_another,
                )
                say_left_out(known)
            st.text_input("Hub id", key="hub", placeholder="owner/name", on_change=_choose_hub)
            if wrong := st.session_state.pop("hub_wrong", None):
                st.error(f"{common.plain(wrong[:80])} is no hub id: it looks like owner/name.")
            st.caption("Folders are found under KARIPAP_MODEL_ROOTS. Only safetensors and JSON are ever read.")
        if options:
            common.share("model")  # also the first one: whoever opens the link may have others
        if view is not None:
            summary(view)


def look(alias: str | None) -> tuple[Model | None, str]:
    """The model of an alias, and in a word why there is none; the page below has the sentence (see `current`)."""
    try:
        return find(alias), ""
    except Gone:
        return None, "gone"
    except Exception:
        return None, "cannot be opened"


def named(alias: str | None, of_demo: str = "") -> str:
    """What the box calls a model."""
    return f"demo model{of_demo}" if alias == DEMO else showable(alias or "No model")


def say_left_out(known: Listing) -> None:
    """How many folders the box leaves out, and why."""
    if known.left_out:
        some = list(known.left_out.items())[:MOST_SAID]
        lines = [f"- {common.plain(f'{name}: {why}')}" for name, why in some]
        lines += [f"- … and {len(known.left_out) - MOST_SAID} more."] if len(known.left_out) > MOST_SAID else []
        st.caption("\n".join([f"{len(known.left_out)} left out:", *lines]))
    if known.cut:
        st.caption(
            f"There is more under KARIPAP_MODEL_ROOTS than is looked at ({MOST_FOLDERS:,} folders, {MOST_ENTRIES:,} "
            "entries): name a folder nearer to the models."
        )


def summary(view: Model) -> None:
    """Family, layers, parameters and bytes of the model in one line."""
    checkpoint = view.checkpoint
    layers = len({weight.layer for weight in checkpoint.weights if weight.layer is not None})
    dtypes = sorted({weight.dtype for weight in checkpoint.weights})
    parts = [
        checkpoint.config.get("model_type", "no config.json"),
        f"{layers} layers",
        f"{checkpoint.parameters:,} parameters",
        f"{common.size(checkpoint.bytes)} in {', '.join(dtypes)}",
    ]
    st.html('<p class="k-summary">' + "<i>·</i>".join(html.escape(str(part)) for part in parts) + "</p>")
