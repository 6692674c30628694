"""Glossary: every word of the screen, in plain sentences."""

import streamlit as st

from pages.parts import common, terms


def page() -> None:
    common.inside_app()
    common.title(
        "Glossary", "Every word of these pages in a plain sentence, with its formula or source where it has one."
    )
    for group, words in terms.GROUPS.items():
        st.subheader(group, anchor=False)
        terms.rows(words, more=True)


with common.plain_errors("drawing the glossary"):
    page()
