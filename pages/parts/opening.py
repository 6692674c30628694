"""Opening a model from the screen: one box for a folder, a file in it or a hub id; what was found; what to permit.

What is typed is looked at only where the roots allow it. A folder outside them is asked about once, and opened by the
button alone: nothing in an address gets here.
"""

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import streamlit as st

from karipap_core.checkpoint import hub
from karipap_core.checkpoint.files import GGUF, PICKLES, unread
from karipap_core.errors import InputError, StorageError
from karipap_core.profiles import outline
from karipap_core.reading import parse_json
from pages.parts import common, opening_memory, roots, server

FILES = (".safetensors", ".json")  # of a model: the folder around one is meant
MOST_SHOWN = 40  # models, and folders, that are listed
MOST_RECENT = 6
# MB of a file that is dropped. Spectra have 8 bytes for each singular value: 7 MB for the weights of a 7 B model, 25
# with all three metrics, 110 for a 70 B one; more where every bond of a network is in it.
MOST_UPLOADED = 256
LONGEST = 4096  # signs of a path
REFUSAL = "This path is not inside the folders of KARIPAP_MODEL_ROOTS."
REMOTE = " Name it there and start the dashboard again (make app MODELS=…): from other machines nothing else is opened."


@dataclass(frozen=True)
class Found:
    """What the box's words lead to. `models`: places (folder or hub id) to choose, each with its name. `folders`: to
    look into. `ask`: a folder that has to be permitted first. `hub_id`: one that is not on this machine. `said`: why
    there is nothing."""

    models: dict[str, str] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)
    ask: Path | None = None
    hub_id: str | None = None
    said: str = ""


def look(typed: str, known: dict[str, str], hubs: Iterable[str]) -> Found:
    """What is meant by the box's words. known : alias → folder of the models that are listed. hubs : ids of the hub
    models on this machine. Nothing outside the roots is touched."""
    typed = typed.strip()
    allowed = roots.roots()
    if not typed:
        return Found(folders=[root for root in allowed if root.is_dir()])
    if len(typed) > LONGEST or not typed.isprintable() or typed.startswith(("\\\\", "//")):
        return Found(said="This cannot be the path of a folder on this machine.")
    if hub.HUB_ID.fullmatch(typed) and not typed.startswith((".", "~")):
        return Found(models={typed: typed}) if typed in hubs else Found(hub_id=typed)
    if not is_path(typed):
        near = {folder: alias for alias, folder in known.items() if typed.lower() in alias.lower()}
        near |= {name: name for name in hubs if typed.lower() in name.lower()}
        return Found(models=near, said="" if near else f"No model here is called {typed}. {hint()}")
    lexical = Path(os.path.abspath(os.path.expanduser(typed)))
    if (repository := hub.repository_of(lexical)) in hubs:
        return Found(models={repository: repository})
    if not any(lexical.is_relative_to(os.path.abspath(root)) for root in allowed):
        above = [root for root in allowed if str(root).startswith(str(lexical))]
        if server.remote_allowed():
            return Found(folders=above, said=REFUSAL + REMOTE)
        return Found(folders=above, ask=asked_for(lexical))
    return _inside(lexical, allowed)


def hint() -> str:
    return "Type the path of a folder (~/models), or a hub id such as owner/name."


def is_path(typed: str) -> bool:
    return typed.startswith(("~", ".")) or os.sep in typed or "/" in typed or Path(typed).is_absolute()


def asked_for(lexical: Path) -> Path:
    """The folder that has to be permitted for what was typed, by its letters alone: around a file, and of a repository
    in a hub cache the whole, since its files are links within it."""
    for folder in (lexical, *lexical.parents):
        if folder.name.startswith("models--"):
            return folder
    return lexical.parent if lexical.suffix in (*FILES, *PICKLES, GGUF) else lexical


def _inside(lexical: Path, allowed: list[Path]) -> Found:
    """Models and folders at a path within the roots; where it is none yet, those whose names begin so."""
    try:
        real = roots.confine(str(lexical), allowed)
    except InputError:
        begun = lexical.parent
        try:
            roots.confine(str(begun), allowed)
            folders = [f for f in roots.folders_in(begun, allowed) if f.name.lower().startswith(lexical.name.lower())]
        except (InputError, OSError):
            folders = []
        return Found(folders=folders, said="" if folders else f"There is no {lexical.name} in {lexical.parent}.")
    folder = lexical if real.is_dir() else lexical.parent
    if not real.is_dir() and real.suffix.lower() == GGUF:
        listing = roots.scan([str(folder)], allowed=allowed)
        if str(lexical) in listing.models.values():
            return Found(models={str(lexical): lexical.name})
        why = listing.left_out.get(roots.showable(lexical.name), "it is a part of another file, or none of a model.")
        return Found(said=f"{roots.showable(lexical.name)} cannot be opened: {why}")
    if not real.is_dir() and real.suffix not in FILES:
        if unread([lexical.name]):
            return _inside(lexical.parent, allowed)
        return Found(
            said=f"{lexical.name} is no file of a model: name its config.json, a .safetensors, a .gguf or its folder."
        )
    listing = roots.scan([str(folder)], allowed=allowed)
    models = {place: os.path.relpath(place, folder) for place in listing.models.values()}
    models = {place: folder.name if name == "." else name for place, name in models.items()}
    try:
        folders = [f for f in roots.folders_in(folder, allowed) if str(f) not in models]
    except OSError:
        folders = []
    own = roots.showable(folder.name)
    said = "" if models or (folders and own not in listing.left_out) else why_none(listing, folder)
    return Found(models, folders, said=said)


def why_none(listing: roots.Listing, folder: Path) -> str:
    """The sentence for a folder in which there is nothing to choose."""
    own = roots.showable(folder.name)
    if why := listing.left_out.get(own):
        return f"{own} cannot be opened: {why}"
    with suppress(OSError), os.scandir(folder) as entries:
        if other := unread([entry.name for entry in islice(entries, roots.MOST_IN_ONE)]):
            return f"{own} {other}"
    return f"No model (safetensors, GGUF) lies in {folder} or two levels below it."


def permit(folder: str) -> str:
    """Permits a folder that its owner pressed the button for, where there is a model in it; else says why not."""
    if server.remote_allowed():
        return REFUSAL + REMOTE
    real = Path(os.path.realpath(folder))
    if not real.is_dir():
        return f"There is no folder {folder}."
    if real == Path(real.anchor) or not str(real).isprintable():
        return f"{folder} is too much to open: name a folder nearer to the models."
    listing = roots.scan([str(real)])
    if not listing.models:
        return why_none(listing, real)
    opening_memory.permit(real)
    return ""


@dataclass(frozen=True)
class Box:
    """What the box's buttons do. take(place): makes the model of a folder or hub id the one in view, or says why it
    cannot be."""

    known: roots.Listing
    hubs: dict[str, str]
    take: Callable[[str], str]

    def meant(self) -> Found:
        """What the box says now: who presses a button right behind the last letter has seen it for the letters before,
        and another folder must not be permitted than the one that was typed."""
        return look(st.session_state.get(key("open_path"), ""), self.known.models, self.hubs)

    def chosen(self, place: str) -> None:
        st.session_state.open_said = self.take(place)

    def of_hub(self) -> None:
        if (hub_id := self.meant().hub_id) is not None:
            st.session_state.open_sized = hub_id
            self.chosen(hub_id)

    def allow(self) -> None:
        if (folder := self.meant().ask) is None:
            return
        try:
            said = st.session_state.open_said = permit(str(folder))
        except (InputError, StorageError, OSError) as error:
            said = st.session_state.open_said = str(error)
        if not said:
            models = list(roots.scan([os.path.realpath(folder)]).models.values())
            self.chosen(models[0]) if len(models) == 1 else browse(Path(os.path.realpath(folder)))


def panel(known: roots.Listing, hubs: dict[str, str], take: Callable[[str], str]) -> None:
    """The box and what it leads to; see `Box`."""
    box = Box(known, hubs, take)
    typed = st.text_input(
        "Open a model: folder, file or hub id", key=key("open_path"), placeholder="~/models  or  owner/name", live=True
    )
    found = look(typed, known.models, hubs)
    if said := st.session_state.pop("open_said", "") or found.said:
        st.error(common.plain(roots.printable(said)))
    if found.ask is not None:
        ask(found.ask, box.allow)
    if found.hub_id is not None:
        st.caption("Not on this machine yet.")
        label = f"Look for {common.plain(found.hub_id)} on the hub"
        st.button(label, key="open_hub", type="primary", on_click=box.of_hub)
    entries(found, box.chosen)
    if not typed:
        lately({*known.models.values(), *hubs}, box.chosen)
    drop()
    permissions()


def key(name: str) -> str:
    """The present name of a widget of the box (see `model.in_view`)."""
    return f"{name}_{turns}" if (turns := st.session_state.get("open_turns", 0)) else name


def turn() -> None:
    st.session_state.open_turns = st.session_state.get("open_turns", 0) + 1


def browse(folder: Path) -> None:
    st.session_state[key("open_path")] = str(folder) + os.sep


def lately(here: set[str], chosen: Callable[[str], None]) -> None:
    """The models that were opened last, the newest first; those that are no more say so."""
    if not (places := opening_memory.recent()[:MOST_RECENT]):
        return

    def again() -> None:
        if place := st.session_state.get(key("open_recent")):
            chosen(place)
            if st.session_state.open_said:  # the box stays open, with nothing chosen
                st.session_state[key("open_recent")] = None

    def say(place: str) -> str:
        return common.plain(name_of(place) + ("" if place in here else " (gone)"))

    st.pills("Opened lately", places, key=key("open_recent"), on_change=again, format_func=say)


@st.cache_data(ttl=300, show_spinner="Asking the hub …")
def asked_of_hub(hub_id: str) -> tuple[int, int]:
    """(files, bytes) that fetching a hub model would bring."""
    found = hub.offer(hub_id)
    return len(found.files), found.bytes


def offer(hub_id: str, fetch: Callable[[], None]) -> None:
    """What fetching a hub model would take, and the button that does. The hub is asked once somebody wants that: a link
    alone makes no connection."""
    st.info(f"{common.plain(hub_id)} is not on this machine yet.")
    if st.session_state.get("open_sized") != hub_id:
        if not st.button("How large is it?", key="fetch_size"):
            return
        st.session_state.open_sized = hub_id
    with common.plain_errors("asking the hub"):
        files, count = asked_of_hub(hub_id)
    free = shutil.disk_usage(next(folder for folder in (hub.cache(), *hub.cache().parents) if folder.exists())).free
    large = f"{common.size(count)} in {files} files" if count else f"{files} files, of a size that the hub does not say"
    st.markdown(f"{large}, into the cache {common.plain(str(hub.cache()))}; {common.size(free)} are free there.")
    if count > free:
        st.error("That is more than there is room for: free some, or set HF_HOME to a folder on a larger disk.")
    elif st.button(f"Fetch {common.size(count)}" if count else "Fetch it", type="primary", key="fetch"):
        fetch()
        st.rerun()


def found_under() -> str:
    """Where models are looked for, in a sentence."""
    named = os.environ.get("KARIPAP_MODEL_ROOTS", "")
    return (
        f"Looked for in KARIPAP_MODEL_ROOTS ({common.plain(roots.printable(named))})."
        if named
        else ("`make app MODELS=~/models` lists the models of a folder from the start.")
    )


def drop() -> None:
    """A place for a config.json or a profile: something to look at without weights."""
    files = st.file_uploader(
        "Or look without weights: drop a config.json, or a profile.json and its spectra.safetensors",
        type=["json", "safetensors"],
        accept_multiple_files=True,
        key=key("open_files"),  # an empty one after each choice
        max_upload_size=MOST_UPLOADED,
    )
    marks = [file.file_id for file in files or ()]
    if marks and st.session_state.get("open_marks") != marks:
        st.session_state.open_marks = marks
        try:
            with st.spinner("Reading …"):
                st.session_state.open_pending = kept({file.name: file.getvalue() for file in files})
        except (InputError, StorageError, OSError) as error:
            st.session_state.open_refused = str(error)
        else:
            st.session_state.pop("open_refused", None)
            st.rerun()
    if marks and (refused := st.session_state.get("open_refused")):
        st.error(common.plain(roots.printable(refused)))


def kept(files: dict[str, bytes]) -> str:
    """Keeps what was dropped; returns its key. Raises InputError for files that are none of these, or not of one
    thing."""
    spectra = [data for name, data in files.items() if name.lower().endswith(".safetensors")]
    profiles, configs = [], []
    for name, data in files.items():
        if name.lower().endswith(".safetensors"):
            continue
        shown = roots.showable(name)
        document = parse_json(data, shown, lenient=True)
        if isinstance(document, dict) and document.get("format") == "karipap-profile":
            profiles.append((parse_json(data, shown), shown))
        elif isinstance(document, dict) and "model_type" in document:
            configs.append((data, shown))
        else:
            raise InputError(f"{shown} is neither a config.json (field model_type) nor a profile.json (field format).")
    if len(profiles) > 1 or len(configs) > 1 or len(spectra) > 1 or (profiles and configs):
        raise InputError("These files are of several models: drop one config.json, or one profile.json with its file.")
    if profiles:
        return outline.keep_profile(profiles[0][0], spectra[0] if spectra else None, profiles[0][1])
    if spectra:
        raise InputError("A spectra.safetensors says nothing by itself: drop the profile.json beside it too.")
    return outline.keep_config(*configs[0])


def name_of(place: str) -> str:
    """What a folder or hub id is called in a list."""
    return roots.showable(Path(place).name if os.path.isabs(place) else place)


def ask(folder: Path, allow: Callable[[], None]) -> None:
    """The question, once, for a folder outside the roots."""
    with st.container(border=True, key="k-open-ask"):
        st.markdown("This folder is outside the folders that the dashboard may open so far. Open it?")
        st.code(str(folder), language=None, wrap_lines=True)
        st.button("Open it", key="open_permit", type="primary", on_click=allow)
        st.caption("It and what is below it may then be opened from this machine, until you take that back here.")


def entries(found: Found, chosen: Callable[[str], None]) -> None:
    """Models to choose and folders to look into, a button each."""
    if not found.models and not found.folders:
        return
    tops = roots.roots()
    with st.container(key="k-open-list", gap=None):
        for number, (place, name) in enumerate(list(found.models.items())[:MOST_SHOWN]):
            label, icon = common.plain(roots.showable(name)), ":material/deployed_code:"
            st.button(label, key=f"open_model_{number}", icon=icon, type="tertiary", on_click=chosen, args=(place,))
        for number, folder in enumerate(found.folders[:MOST_SHOWN]):
            shown = str(folder) if folder in tops else folder.name + "/"
            label, icon = common.plain(roots.showable(shown)), ":material/folder:"
            st.button(label, key=f"open_folder_{number}", icon=icon, type="tertiary", on_click=browse, args=(folder,))
        more = sum(max(len(each) - MOST_SHOWN, 0) for each in (found.models, found.folders))
        if more:
            st.caption(f"… and {more} more: type the beginning of a name.")


def permissions() -> None:
    """The folders that were permitted, each to be looked into or taken back."""
    permitted = [] if server.remote_allowed() else opening_memory.permitted()
    if not permitted:
        return
    with st.expander(f"Folders permitted on this screen ({len(permitted)})"):
        for number, folder in enumerate(permitted):
            left, right = st.columns([4, 1], vertical_alignment="center")
            left.code(str(folder), language=None, wrap_lines=True)
            right.button("Take back", key=f"open_forget_{number}", on_click=opening_memory.forget, args=(folder,))
