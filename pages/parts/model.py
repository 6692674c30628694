"""Choosing a model: the demo, folders under KARIPAP_MODEL_ROOTS, or a hub id.

The URL carries an alias, never a path, and an alias opens only what a scan of the roots has found or what is
already in the hub's cache: a link from a stranger can neither read elsewhere nor start a download.
"""

import html
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from karipap_core.checkpoint.model import Checkpoint
from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.errors import InputError
from karipap_core.workspace import Workspace
from pages.parts import common, job

DEMO = "demo"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
SCAN_DEPTH, SCAN_LIMIT = 2, 2000


@dataclass(frozen=True)
class Model:
    """The model in view: its alias (in the URL), what a command line calls it, and the opened checkpoint."""

    alias: str
    source: str
    checkpoint: Checkpoint


def roots() -> list[Path]:
    """The folders whose models may be opened: KARIPAP_MODEL_ROOTS, separated as PATH is."""
    return [Path(part).expanduser() for part in os.environ.get("KARIPAP_MODEL_ROOTS", "").split(os.pathsep) if part]


def confine(path: str, allowed: list[Path]) -> Path:
    """`path` as a real path inside one of `allowed`; InputError otherwise, the same whether it exists or not.

    Checked as text before the disk is touched (a UNC path would make Windows call a server), then once more with
    every link followed.
    """
    refusal = InputError("This path is not inside the folders of KARIPAP_MODEL_ROOTS.")
    if "\0" in path or path.startswith(("\\\\", "//")):
        raise refusal
    lexical = Path(os.path.abspath(os.path.expanduser(path)))
    if not any(lexical.is_relative_to(os.path.abspath(root)) for root in allowed):
        raise refusal
    real = Path(os.path.realpath(lexical))
    if not any(real.is_relative_to(os.path.realpath(root)) for root in allowed) or not real.exists():
        raise refusal
    return real


def is_model(folder: Path) -> bool:
    """Whether a folder holds safetensors weights and is not one that Karipap has compressed."""
    if not any(folder.glob("*.safetensors")):
        return False
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return True
    quantized = config.get("quantization_config") if isinstance(config, dict) else None
    return not (isinstance(quantized, dict) and quantized.get("quant_method") == "karipap")


@st.cache_data(ttl=30, show_spinner=False)
def found(where: tuple[str, ...]) -> dict[str, str]:
    """Alias → folder of every model: the demo first, then those under `where`, two levels deep."""
    models = {}
    demo = common.ROOT / "assets" / "demo_model"
    if is_model(demo):
        models[DEMO] = str(demo)
    for root in map(Path, where):
        level, seen = [root], 0
        for _ in range(SCAN_DEPTH + 1):
            below = []
            for folder in level:
                seen += 1
                outside = not os.path.realpath(folder).startswith(os.path.realpath(root))
                if seen > SCAN_LIMIT or not folder.is_dir() or outside:  # a link that leads elsewhere is not followed
                    continue
                if is_model(folder):
                    alias, number = folder.name, 2
                    while alias in models:
                        alias, number = f"{folder.name}-{number}", number + 1
                    models[alias] = str(confine(str(folder), [root]))
                else:
                    below += sorted(child for child in folder.iterdir() if child.is_dir() and child.name[0] != ".")
            level = below
    return models


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
    Workspace().adopt(checkpoint)  # reads a model that it has not met before to its end: here, under the spinner
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
    """The model of an alias, or None where it is not on this machine. Raises InputError where it cannot be opened."""
    models = found(tuple(map(str, roots())))
    folder = models.get(alias) or cached_hub(alias or "")
    if folder is None:
        return None
    files = sorted(Path(folder).glob("*.safetensors")) + sorted(Path(folder).glob("*.json"))
    stamp = tuple((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    name = Path(folder).name if alias in models else alias
    return Model(alias, folder, opened(folder, name, stamp))


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
        st.session_state.pop("weight", None)
    elif typed:
        st.session_state.hub_wrong = typed


def bar() -> None:
    """The line at the top of every page: which model, its size, and how to choose another."""
    models = found(tuple(map(str, roots())))
    asked = st.session_state.get("model") or st.query_params.get("model", "")
    options = list(models)
    if asked not in models and HUB_ID.fullmatch(asked):
        options.append(asked)
    if not options:
        st.session_state.pop("model", None)
    else:
        common.setting("model", options, options[0])
    with st.container(key="k-bar", horizontal=True, vertical_alignment="center", gap="medium"):
        chosen = st.session_state.get("model")
        label = common.plain("demo model" if chosen == DEMO else chosen or "No model")
        with st.popover(label, icon=":material/deployed_code:", key="k-model"):
            if options:
                st.selectbox(
                    "Model",
                    options,
                    key="model",
                    persist_state="session",
                    format_func=lambda alias: "demo model (Python source)" if alias == DEMO else alias,
                    on_change=lambda: st.session_state.pop("weight", None),
                )
            st.text_input("Hub id", key="hub", placeholder="owner/name", on_change=_choose_hub)
            if wrong := st.session_state.pop("hub_wrong", None):
                st.error(f"{common.plain(wrong[:80])} is no hub id: it looks like owner/name.")
            st.caption("Folders are found under KARIPAP_MODEL_ROOTS. Only safetensors and JSON are ever read.")
            common.choose(st.segmented_control, "Figures are saved as", ["svg", "png"], "figures", "svg", required=True)
        if options:
            common.share("model")  # also the first one: whoever opens the link may have others
            summary()


def summary() -> None:
    """Family, layers, parameters and bytes of the model in one line; nothing where it cannot be opened."""
    try:
        view = find(st.session_state.get("model"))
    except (InputError, OSError):
        return
    if view is None:
        return
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
