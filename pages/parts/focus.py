"""The keyboard's place on the page, which Streamlit loses where a box opens or what has the focus goes (`focus.js`)."""

from functools import cache
from pathlib import Path

import streamlit as st


@cache
def _component():
    script = Path(__file__).with_name("focus.js").read_text(encoding="utf-8")
    return st.components.v2.component("karipap_focus", html="<span></span>", js=script)


def keep() -> None:
    """Watches over it, from the first page of a tab on."""
    with st.container(key="k-focus"):  # style.css shows nothing of it
        _component()(key="focus")
