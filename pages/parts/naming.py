"""What runs and plans are called: the box that renames one, and names of files to download."""

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.workspace.names import LONGEST, Names, clean
from pages.parts import common

HELP = "Letters, digits, '.', '_', '+' and '-'; all else becomes '-'. Lists, charts and files have this name."


def file_name(*parts: str) -> str:
    """A file's name of several words, such as the model's and what is in it; an ending stays at the end."""
    return clean("-".join(clean(part, otherwise="") for part in parts if part), otherwise="karipap")


def box(label: str, key: str, start: str, **more) -> str:
    """A box with a name to begin with; what it holds, made one that files can have, or the beginning for nothing."""
    typed = st.text_input(label, key=key, placeholder=start, max_chars=LONGEST, help=HELP, **more)
    return clean(typed or "", otherwise=start)


def rename(what: str, now: str, where: str) -> None:
    """A button that calls a run (its id) or a plan (its key) something else; the documents stay as they are."""
    with st.popover("Rename", icon=":material/edit:", type="tertiary", key=f"k-rename-{where}"):
        typed = st.text_input("Name", now, key=f"{where}_name_{what}", max_chars=LONGEST, help=HELP)
        if st.button("Save the name", key=f"{where}_rename"):
            try:
                Names().give(what, typed)
            except InputError as error:
                st.error(common.plain(error))
            else:
                st.rerun()
