"""What the docs strip and the claims share: their style and a table of words that folds into cards when narrow."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

import streamlit as st


def style() -> None:
    st.html(Path(__file__).with_name("docs.css"))


def table(head: Sequence[str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> None:
    """Rows of text, or of (text, class of docs.css). Everything is escaped."""
    heads = "".join(f"<th>{html.escape(label)}</th>" for label in head)
    body = []
    for row in rows:
        cells = [cell if isinstance(cell, tuple) else (cell, "") for cell in row]
        body += ["<tr>", *(_cell(label, *cell) for label, cell in zip(head, cells, strict=True)), "</tr>"]
    st.html(f'<table class="k-table"><thead><tr>{heads}</tr></thead><tbody>{"".join(body)}</tbody></table>')


def _cell(label: str, text: str, css: str) -> str:
    return f'<td data-label="{html.escape(label)}" class="{css}"><span>{html.escape(text)}</span></td>'
