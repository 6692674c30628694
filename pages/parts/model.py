"""The model in view: the demo, a folder under the roots, or a hub id. `opening` is the box by which others come in.

The URL carries an alias, never a path, and an alias opens only what a scan of the roots has found or what is
already in the hub's cache: a link from a stranger can neither read elsewhere nor start a download.
"""

import html
import inspect
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from itertools import islice
from pathlib import Path

import streamlit as st

from karipap_core.checkpoint import hub
from karipap_core.checkpoint.files import GGUF, SETTINGS, gguf_files
from karipap_core.checkpoint.hub import HUB_ID
from karipap_core.checkpoint.lora.open import JOIN, parted
from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.profiles.outline import FILE as OUTLINE
from karipap_core.profiles.outline import Outline, open_outline, outlines
from karipap_core.workspace import MODEL_KEY, Workspace
from pages.parts import common, job, opening, opening_memory
from pages.parts.roots import (
    DEMO,
    MOST_ENTRIES,
    MOST_FOLDERS,
    MOST_IN_ONE,
    Listing,
    confine,
    inside,
    roots,
    scan,
    showable,
)

HUB_SAYS = " (Hugging Face cache)"
LONGEST = 200  # signs of an alias
MOST_SAID = 5  # folders that the box leaves out, by name
# What is chosen of one model: keys of widgets and of the URL.
OF_MODEL = (
    *("weight", "profile", "plan", "folder", "heal_from", "a", "b", "deploy_plan", "measurement"),
    *("run", "point", "autopilot", "draft"),
)


@dataclass(frozen=True)
class Model:
    """The model in view: its alias (in the URL), where it lies, and the opened checkpoint."""

    alias: str
    place: str
    checkpoint: Checkpoint

    @property
    def source(self) -> str:
        """What a command line calls it. Raises InputError where its weights are not here: no command can run."""
        if isinstance(self.checkpoint, Outline):
            raise InputError(self.checkpoint.missing)
        return self.place

    @property
    def only(self) -> str | None:
        """What it is known by where its weights are not here, "profile" or "config"; "update" for an adapter alone."""
        if isinstance(self.checkpoint, Outline):
            return self.checkpoint.only
        return "update" if self.checkpoint.missing else None


class Gone(InputError):
    """A model that was asked for is not there."""


@st.cache_data(ttl=30, show_spinner=False)
def found(where: tuple[str, ...], also: tuple[str, ...] = ()) -> Listing:
    """The models that can be chosen: the demo first, then those under `where`, and `also` these (see `roots.scan`)."""
    demo = common.ROOT / "assets" / "demo_model"
    listing = scan(where, also)
    if (demo / "model.safetensors").is_file():
        listing.models = {DEMO: str(demo)} | listing.models
    return listing


def listing() -> Listing:
    """The models of the roots, those that were chosen deeper in them too."""
    return found(tuple(map(str, roots())), tuple(sorted(filter(os.path.isabs, opening_memory.recent()))))


@st.cache_data(ttl=30, show_spinner=False)
def hub_models(cache: str) -> dict[str, str]:
    """Hub id → folder of the models that are whole in the hub's cache."""
    return hub.cached()


def take(place: str) -> str:
    """Makes the model of a folder or hub id the one in view. Returns "", or why that cannot be."""
    alias: str | None = place
    if os.path.isabs(place):
        with suppress(InputError, OSError):
            if inside(place, roots()):
                opening_memory.remember(place)
        found.clear()
        real, known = os.path.realpath(place), listing()
        alias = next((each for each, folder in known.models.items() if os.path.realpath(folder) == real), None)
        if alias is None:
            why = known.left_out.get(showable(Path(place).name), "no folder that may be opened has it any more.")
            return f"{showable(Path(place).name)} cannot be opened: {why}"
    else:
        hub_models.clear()
        if hub.snapshot(place):
            with suppress(InputError, OSError):
                opening_memory.remember(place)
    in_view(alias)
    return ""


def in_view(alias: str) -> None:
    """Another model, chosen by other means than the list of the box.

    The box closes, and a browser tells a closed box's widgets nothing: it would send the values of before with its next
    request, and they would count as a choice. So these widgets get names that it has not seen, and what still comes of
    the names before is nobody's choice (`from_list`): a browser that was interrupted may send it minutes later.
    """
    st.session_state.model = alias
    opening.turn()
    chosen_another()


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


@st.cache_data(ttl=30, show_spinner=False)
def outline_models(workspace: str) -> dict[str, str]:
    """Key → name of the models that can be looked at without weights."""
    return {key: f"{name} ({kind} only)" for key, (name, kind) in outlines().items()}


def current(weights: bool = True) -> Model:
    """The model in view, for a page to use. Says why, and stops, where there is none, or where the page has to read
    weights (`weights`) that are not here."""
    common.inside_app()
    with common.plain_errors("opening the model"):
        view = find(st.session_state.get("model"))
        if view is None:
            offer_fetch(st.session_state.get("model"))
            st.stop()
        if view.only and weights:
            st.info(common.plain(view.checkpoint.missing))
            st.stop()
        return view


@st.cache_resource(max_entries=8, show_spinner=False)
def outlined(workspace: str, key: str, stamp: int) -> Checkpoint:
    return open_outline(key)


def find(alias: str | None) -> Model | None:
    """The model of an alias. None where none is asked for, or a hub id that is not on this machine. Raises InputError
    where it is gone or cannot be opened: nothing else ever comes in its place."""
    if not alias:
        return None
    if MODEL_KEY.fullmatch(alias):
        file = Workspace().model_dir(alias) / OUTLINE
        if not file.is_file():
            raise Gone(f"The model {alias} is gone: the workspace has it no more. Choose another model above.")
        return Model(alias, str(file.parent), outlined(str(Workspace().root), alias, file.stat().st_mtime_ns))
    known = listing()
    alias = known.long.get(alias, alias)
    folder = place_of(alias, known)
    if folder is None and HUB_ID.fullmatch(alias) and alias not in known.models:
        return None
    stamp = stamped(folder) if folder else ()
    if folder is None or not stamp:
        there = alias in known.left_out or alias in known.twins
        raise (InputError if there else Gone)(why_gone(alias, known))
    name = Path(known.models[alias]).name if alias in known.models else alias
    name = name.removesuffix(GGUF)
    return Model(alias, folder, opened(folder, name, stamp))


def place_of(alias: str, known: Listing) -> str | None:
    """Where the model of an alias lies: a folder, a file in GGUF, or "BASE+ADAPTER" of two; None where it does not."""
    folder = known.models.get(alias)
    if folder is None and JOIN in alias:
        base, _, adapter = alias.rpartition(JOIN)
        both = [place_of(known.long.get(each, each), known) for each in (base, adapter)]
        return JOIN.join(map(str, both)) if all(both) else None
    if folder is None:
        return str(kept) if (kept := hub.snapshot(alias)) else None
    if alias == DEMO:
        return folder
    try:
        return str(confine(folder, roots()))
    except InputError:  # gone since the list was made, or now a link that leads elsewhere
        return None


def stamped(place: str) -> tuple:
    """Sizes and times of the files that make up a model; () where its weights are not there."""
    if not os.path.exists(place) and (both := parted(place)) is not None:
        stamps = [stamped(each) for each in (both[0], str(both[1]))]
        return tuple(stamps) if all(stamps) else ()
    if place.lower().endswith(GGUF):
        with suppress(InputError, OSError):
            return tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in gguf_files(Path(place)))
        return ()
    found = []
    with suppress(OSError), os.scandir(place) as entries:
        for entry in islice(entries, MOST_IN_ONE):
            if entry.name.endswith((".safetensors", ".json", *SETTINGS)):
                with suppress(OSError):
                    status = entry.stat()
                    found.append((os.fsencode(entry.name), status.st_size, status.st_mtime_ns))
    return tuple(sorted(found)) if any(name.endswith(b".safetensors") for name, *_ in found) else ()


def why_gone(alias: str, known: Listing) -> str:
    """The sentence for a model that was asked for and cannot be had."""
    what = "demo model" if alias == DEMO else f"model {showable(alias)}"
    if JOIN in alias and alias not in known.models:
        return f"The {what} is gone: its base or its adapter is not where it was. Choose another model above."
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
    return now is not None and (now.place, now.checkpoint.identity) == (view.place, view.checkpoint.identity)


def offer_fetch(alias: str | None) -> None:
    """Says what is missing where no model is in view, and offers to fetch a hub model (never unasked)."""
    if alias and HUB_ID.fullmatch(alias):
        fetching = job.followed("fetch_job")
        if fetching is not None and fetching.status()["state"] == "done":  # it is whole, so that it would be in view
            job.forget("fetch_job")
            fetching = None
        if fetching is not None:
            job.panel(fetching, "fetch_job")
            return
        opening.offer(alias, lambda: job.start(["fetch", alias], f"Fetch {alias}", "fetch_job"))
    else:
        st.info(
            "No model here yet. Press the button above and type the folder of a Hugging Face model (safetensors), or a "
            "hub id. `make app MODELS=~/models` starts the dashboard with a folder of them."
        )


def chosen_another() -> None:
    """After another model was chosen: what was chosen of the one before is not asked of this one, the box closes, and
    the whole page is drawn anew, not the box alone."""
    st.session_state["k-model"] = False
    st.session_state.model_taken = True
    for key in OF_MODEL:
        st.session_state.pop(key, None)
        st.query_params.pop(key, None)


def from_list(box: str) -> None:
    if box == opening.key("models"):  # not one that is gone
        st.session_state.model = st.session_state[box]
        chosen_another()


def bar() -> None:
    """The line at the top of every page: which model, its size, and how to choose another."""
    if key := st.session_state.pop("open_pending", None):  # something to look at was dropped
        outline_models.clear()
        in_view(key)
    known, hubs = listing(), hub_models(str(hub.cache()))
    asked = str(st.session_state.get("model") or st.query_params.get("model", ""))[:LONGEST]
    asked = known.long.get(asked, asked)
    options = [*known.models, *hubs, *outline_models(str(Workspace().root))]
    if asked and asked not in options:
        options.append(asked)  # it keeps its name, wherever it is: no other model comes in its place
    if options:
        st.session_state.model = asked or options[0]
    else:
        st.session_state.pop("model", None)
    st.session_state.pop("model_taken", None)
    chosen = st.session_state.get("model")
    view, state = look(chosen)
    with st.container(key="k-bar", horizontal=True, vertical_alignment="center", gap="medium"):
        chooser(named(chosen) + (f" ({state})" if state else ""), options, known, hubs)
        if options:
            common.share("model")  # also the first one: whoever opens the link may have others
        if view is not None:
            summary(view)


@st.fragment
def chooser(label: str, options: list[str], known: Listing, hubs: dict[str, str]) -> None:
    """The button with the model's name, and behind it all by which another is opened. Typing re-runs only this."""
    if st.session_state.pop("model_taken", False):
        st.rerun()
    with st.popover(common.plain(label), icon=":material/deployed_code:", key="k-model", on_change="rerun"):
        opening.panel(known, hubs, take)
        if options:
            box = opening.key("models")
            st.session_state[box] = st.session_state.model
            st.selectbox(
                "Or a model that is here",
                options,
                key=box,
                format_func=lambda alias: named(alias, " (Python source)") + (HUB_SAYS if alias in hubs else ""),
                on_change=from_list,
                args=(box,),
            )
            say_left_out(known)
        st.caption(f"{opening.found_under()} Only safetensors, GGUF and JSON are ever read.")


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
    if alias == DEMO:
        return f"demo model{of_demo}"
    return showable(outline_models(str(Workspace().root)).get(alias or "", alias or "No model"))


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
        f"{view.only} only" if view.only else checkpoint.config.get("model_type", "no config.json"),
        f"{layers} layers",
        f"{checkpoint.parameters:,} parameters",
        f"{common.size(checkpoint.bytes)} in {', '.join(dtypes)}",
    ]
    if stored := checkpoint.as_stored:  # sizes and what is kept are of the opened model
        parts.append(f"{stored['form']}, {common.size(stored['bytes'])} in its files")
    st.html('<p class="k-summary">' + "<i>·</i>".join(html.escape(str(part)) for part in parts) + "</p>")
