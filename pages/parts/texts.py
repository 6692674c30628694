"""Choosing a text: the standard library's own (nothing to fetch), or a file that the reader uploads."""

import hashlib
from pathlib import Path

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.text import read_text
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import whole_file
from pages.parts import common

LIBRARY = "Python standard library"
UPLOAD = "A text of yours"


def choose(key: str, side: str) -> list[str] | None:
    """Command-line arguments for the chosen text ([] for the standard library's `side`), None while none is given."""
    kind = st.radio(
        "Text",
        [LIBRARY, UPLOAD],
        key=f"{key}_text",
        horizontal=True,
        persist_state="session",
        help=f"The standard library's {side} modules are on every machine that runs Python.",
    )
    if kind == LIBRARY:
        return []
    kinds = ["txt", "md", "raw", "json", "jsonl", "parquet"]
    label = "Text file (UTF-8 or Parquet, at most 8 MB)"
    file = st.file_uploader(label, type=kinds, key=f"{key}_file", max_upload_size=common.MOST_UPLOADED)
    if file is None:
        return None
    with common.plain_errors("reading the text"):
        return ["--text", str(_keep(file.name, file.getvalue()))]


def _keep(name: str, data: bytes) -> Path:
    """The upload as a file of the workspace, named by its content, so that resuming finds it again."""
    stem = "".join(sign if sign.isalnum() else "-" for sign in Path(name).stem)[:40].strip("-") or "text"
    path = Workspace().root / "texts" / f"{stem}-{hashlib.sha256(data).hexdigest()[:12]}{Path(name).suffix.lower()}"
    if not path.is_file():
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
        try:
            read_text(path)
        except BaseException as error:  # whatever it is, what cannot be read is not kept
            path.unlink(missing_ok=True)
            if isinstance(error, InputError):  # in the name that the reader knows
                raise InputError(str(error).replace(str(path), name)) from None
            raise
    return path
