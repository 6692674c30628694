"""Choosing a text, and whether the model was trained for such text: said beside the choice before anything is measured.

The check loads the model (torch, seconds), so it is a job, `karipap text`, whose result lies in the workspace. For a
small model it starts by itself once the page stands and nothing else runs; for a large one a button starts it.
"""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import streamlit as st

from karipap_core import jobs
from karipap_core.checkpoint.files import has_tokenizer
from karipap_core.errors import InputError
from karipap_core.evaluation import suits
from karipap_core.evaluation.own_text import TOKENS
from karipap_core.evaluation.wrong_text import same_text, unsuited
from karipap_core.plan.budget import towers
from karipap_core.reading import PACKED, kind_of
from karipap_core.text import FIELD, HUB, hub_parts, read_text
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import whole_file
from pages.parts import common, job, model
from pages.parts.roots import confine, roots

LIBRARY, SAMPLES, FILE, UPLOAD, DATA_SET = "library", suits.SAMPLES, "file", "upload", "hub"
KINDS = {
    LIBRARY: "Python standard library",
    SAMPLES: "The model's own samples (generated)",
    FILE: "A file on this machine",
    UPLOAD: "An upload",
    DATA_SET: "A Hugging Face data set",
}
SIDES = {"calibration": "calibration", "held-out": "heldout", "train": "train"}
SUFFIXES = ["txt", "md", "raw", "json", "jsonl", "parquet", "gz"]
WITH_FIELDS = (".json", ".jsonl", ".parquet")
SMALL = 400_000_000  # bytes of a model that is checked unasked: seconds on any machine
WAIT = 2.0  # seconds after the page was drawn until that starts


def choose(key: str, side: str) -> list[str] | None:
    """Command-line arguments for the chosen text ([] for the standard library's `side`), None while none is given.

    side : calibration, held-out or train. What is known of the text for the model in view stands below the choice.
    """
    view, known_as = model.current(weights=False), SIDES[side]
    if view.only:  # nothing can be measured, on any text
        st.caption(common.plain(view.checkpoint.missing))
        return None
    looked = suits.known(view.checkpoint)
    default, why = preferred(view, looked, known_as)
    options = [*KINDS, *used_before(looked)] if can_write(view) else [kind for kind in KINDS if kind != SAMPLES]
    box, touched = f"{key}_text", st.session_state.setdefault("texts_touched", set())
    if (view.alias, key) not in touched or st.session_state.get(box) not in options:
        st.session_state[box] = default if default in options else LIBRARY
    kind = st.selectbox(
        "Text",
        options,
        key=box,
        persist_state="session",
        filter_mode=None,
        format_func=lambda each: KINDS.get(each) or common.plain(short(each)),
        on_change=lambda: touched.add((view.alias, key)),
        help=f"What is read ({side}). Figures mean something on text of the kind that the model was trained on.",
    )
    if why and kind == default:
        st.caption(common.plain(why))
    spec = given(kind, key, side)
    if spec is None:
        return None
    said = verdict(view, spec, known_as, key)
    st.session_state.setdefault("texts_said", {})[spec] = said
    return ["--text", spec] if spec else []


def given(kind: str, key: str, side: str) -> str | None:
    """What a command line calls the text of this kind; None while the reader has not said which."""
    if kind == LIBRARY:
        return ""
    if kind == SAMPLES:
        st.caption(
            f"{TOKENS:,} tokens that the dense model writes itself (seed {suits.SIDES.index(SIDES[side])}; other "
            "text for calibration than for measuring). Figures on them compare compressions with one another; as "
            "absolute figures they flatter."
        )
        return SAMPLES
    with common.plain_errors("reading the text"):
        if kind == FILE:
            return typed(key)
        if kind == UPLOAD:
            return uploaded(key)
        return data_set(key) if kind == DATA_SET else kind


def typed(key: str) -> str | None:
    """A file by its path: under the folders that may be opened, or in the workspace."""
    path = st.text_input(
        "Path",
        key=f"{key}_path",
        placeholder="/folder/text.txt",
        persist_state="session",
        help="In a folder of KARIPAP_MODEL_ROOTS, or one that was permitted here. Upload any other file.",
    ).strip()
    if not path:
        return None
    try:
        file = str(confine(path, [*roots(), Workspace().root]))
    except InputError as error:
        st.error(common.plain(error))
        return None
    return with_field(file, key)


def images(view, key: str) -> list[str]:
    """Arguments for a folder of images, asked for where the model sees; [] where none was named."""
    if "vision" not in towers(view.checkpoint):
        return []
    path = st.text_input(
        "Folder of images (optional)",
        key=f"{key}_images",
        placeholder="/folder/of/images",
        persist_state="session",
        help="What sees (vision) is measured only on images, and stays dense without. Captions: a .txt of the same "
        "name beside each. In a folder of KARIPAP_MODEL_ROOTS, or one that was permitted here.",
    ).strip()
    if not path:
        return []
    try:
        return ["--images", str(confine(path, [*roots(), Workspace().root]))]
    except InputError as error:
        st.error(common.plain(error))
        return []


def uploaded(key: str) -> str | None:
    label = "Text file (UTF-8 or Parquet, at most 8 MB)"
    file = st.file_uploader(label, type=SUFFIXES, key=f"{key}_file", max_upload_size=common.MOST_UPLOADED)
    if file is None:
        return None
    kept = keep(file.name, file.getvalue())
    spec = with_field(str(kept), key)
    try:
        read_text(spec)
    except InputError as error:  # in the name that the reader knows
        st.error(common.plain(str(error).replace(str(kept), file.name)))
        return None
    return spec


def with_field(file: str, key: str) -> str:
    """The file with the field that holds its text, where files of this kind have fields."""
    if kind_of(file) not in WITH_FIELDS:
        return file
    field = st.text_input("Field or column with the text", "text", key=f"{key}_field", max_chars=100).strip()
    return file if field in ("", "text") else f"{file}{FIELD}{field}"


def data_set(key: str) -> str | None:
    left, right = st.columns(2)
    parts = [
        left.text_input("Data set", key=f"{key}_hub", placeholder="Salesforce/wikitext", max_chars=200),
        right.text_input("Config", key=f"{key}_config", placeholder="wikitext-2-raw-v1", max_chars=100),
        left.text_input("Split", "train", key=f"{key}_split", max_chars=100),
        right.text_input("Field", "text", key=f"{key}_hub_field", max_chars=100),
    ]
    parts = [part.strip() for part in parts]
    if not parts[0]:
        st.caption("Its first rows, 8 MB at most, are fetched from huggingface.co when they are first needed.")
        return None
    spec = HUB + ",".join(part.replace(",", ",,,,") for part in parts)  # a comma would begin another part: refused
    try:
        hub_parts(spec)
    except InputError as error:
        st.error(common.plain(error))
        return None
    return spec


def keep(name: str, data: bytes) -> Path:
    """The upload as a file of the workspace, named by its content, so that resuming finds it again."""
    packed = PACKED if name.lower().endswith(PACKED) else ""
    own = name[: len(name) - len(packed)]
    stem = "".join(sign if sign.isalnum() else "-" for sign in Path(own).stem)[:40].strip("-") or "text"
    ending = f"{Path(own).suffix.lower()}{packed}"
    path = Workspace().root / "texts" / f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}{ending}"
    if not path.is_file():
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
    return path


# ---- which one is offered ---------------------------------------------------------------------------------------


def can_write(view) -> bool:
    """Whether a model has samples of its own: it predicts tokens, and its tokenizer makes text of them."""
    return view.checkpoint.kind == "causal" and has_tokenizer(view.checkpoint.home)


def used_before(looked: list[dict]) -> list[str]:
    """Files and data sets that this model was held against, those that may still be read here."""
    found = []
    for spec in dict.fromkeys(each["spec"] for each in looked):
        path, _, field = spec.rpartition(FIELD)
        path = path or field
        with suppress(InputError):
            if spec.startswith(HUB) or (os.path.isabs(path) and confine(path, [*roots(), Workspace().root])):
                found.append(spec)
    return found[:8]


def short(spec: str) -> str:
    return spec if spec.startswith(HUB) else os.path.basename(spec)


def offered(view, side: str) -> list[str]:
    """Command-line arguments for the text that `choose` offers first, for a button that asks for none."""
    spec, _ = preferred(view, suits.known(view.checkpoint), SIDES[side])
    return [] if spec == LIBRARY else ["--text", spec]


def preferred(view, looked: list[dict], side: str) -> tuple[str, str]:
    """(the text to offer first, why): the one that was last used with this model for this, if it suits; the library
    where the model knows Python; else what it writes itself."""
    used = [each for each in looked if side in each.get("used", {}) and not unsuited(each, looked)]
    if used:
        last = max(used, key=lambda each: each["used"][side])
        return last["spec"] or LIBRARY, ""
    sides = (side, *suits.SIDES)  # of one library: where none was looked at, another side tells
    library = next(filter(None, (suits.found_for(looked, "", each) for each in sides)), None)
    if library is not None and unsuited(library, looked) and can_write(view):
        return (
            SAMPLES,
            "This model was not trained on Python source, the bundled text, so its own samples are offered.",
        )
    return LIBRARY, ""


# ---- whether it suits -------------------------------------------------------------------------------------------


def verdict(view, spec: str, side: str, key: str) -> str | None:
    """Shows what is known of a text for a model; the warning, if there is one."""
    if not view.checkpoint.predicts:
        return None
    looked = suits.known(view.checkpoint)
    found = suits.found_for(looked, spec, side)
    if found is None:
        st.session_state.setdefault("texts_drawn", {})[view.alias, spec, side, key] = 0
        waiting = view.checkpoint.bytes <= SMALL or _job(view, spec, side) is not None
        st.fragment(_check, run_every=WAIT if waiting else None)(view, spec, side, key)
        return None
    said = unsuited(found, looked)
    if said:
        st.warning(common.plain(said))
    else:
        st.caption(
            f"{found['bits_per_byte']:.2f} bits for each byte of this text; a compressor that knows nothing beforehand "
            f"needs {found['compressor_bits_per_byte']:.2f}. "
            + ("" if found["generated"] else "The model knows such text.")
        )
    return said


def _argv(view, spec: str, side: str) -> list[str]:
    return ["text", view.source, *(["--text", spec] if spec else []), "--side", side]


def _job(view, spec: str, side: str):
    return job.latest(_argv(view, spec, side))


def _check(view, spec: str, side: str, key: str) -> None:
    """The check before it has a result: started, running, failed, or a button with what it takes."""
    if suits.found_for(suits.known(view.checkpoint), spec, side) is not None:
        st.rerun()
    running = _job(view, spec, side)
    status = running.status() if running is not None else None
    if status is not None and status["state"] in ("queued", "running"):
        waits = "waits for the running job" if status["state"] == "queued" else "some seconds"
        st.caption(f"Looking whether this text suits the model: {waits}.")
        return
    if status is not None and status["state"] == "failed":
        st.error(common.plain(status["reason"] or "The text could not be held against the model."))
    small = view.checkpoint.bytes <= SMALL
    drawn, mark = st.session_state.texts_drawn, (view.alias, spec, side, key)
    drawn[mark] += 1  # 1 with the page; more where the page stands and only this is drawn again
    pressed = st.button("Check this text", key=f"{key}_check", icon=":material/rule:", type="tertiary")
    what = "seconds" if small else f"all {common.size(view.checkpoint.bytes)} of its weights are read into memory"
    st.caption(f"Not checked yet whether the model was trained for such text ({what}).")
    unasked = (
        small
        and status is None
        and drawn[mark] > 1
        and not any(each.look()[1] not in jobs.ENDED for each in jobs.list_jobs())
    )
    if pressed or unasked:
        jobs.start(_argv(view, spec, side), f"Does the text suit {view.checkpoint.name}?", owner=job.me())
        st.rerun(scope="fragment" if not pressed else "app")


def label(words: str, text: list[str] | None) -> str:
    """The words of a button that starts long work: they say so where the text does not suit the model."""
    said = st.session_state.get("texts_said", {}).get(text[1] if text else "") if text is not None else None
    return f"{words} on this text all the same" if said else words


def warn_of_overlap(view, text: list[str] | None, calibration: dict | None) -> None:
    """Warns where a plan was calibrated (its field `calibration`) on what is chosen to be measured on."""
    if not text or not calibration:
        return
    found = suits.found_for(suits.known(view.checkpoint), text[1], "heldout")
    measured = {"name": short(text[1]), "sha256": None, "path": text[1]} | (found["text"] if found else {})
    if said := same_text(measured, calibration):
        st.warning(common.plain(said))
