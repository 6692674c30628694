"""What every page shares: the look, values kept in the URL, numbers as words, figures, tables, and plain errors."""

import html
import io
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import streamlit as st
from streamlit.runtime.pages_manager import PagesManager

from karipap_core.errors import InputError
from karipap_core.workspace.logs import keep_log
from pages.parts import pictures, server
from pages.parts.roots import showable

ROOT = Path(__file__).resolve().parents[2]
REMOVED = ["toImage", "lasso2d", "autoScale2d", "zoomIn2d", "zoomOut2d"]  # buttons of Plotly's that no figure needs
MOST_UPLOADED = 8  # MB of a file that is uploaded: plans and texts
LONGEST_ASKED = 200  # signs of what a URL asks for
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
log = logging.getLogger("karipap.pages")


def refuse_strangers() -> None:
    """Stops unless the server listens on this machine alone: the dashboard has no passwords and starts programs.

    KARIPAP_ALLOW_REMOTE=1 lets it listen elsewhere, behind something that does authenticate.
    """
    address = st.get_option("server.address")
    if address in LOOPBACK or server.remote_allowed():
        return
    where = f"on {address}" if address else "on every network interface"
    st.error(
        f"This server listens {where}, and the dashboard has no authentication. Start it with "
        "--server.address 127.0.0.1, or set KARIPAP_ALLOW_REMOTE=1 if something in front of it checks who comes in."
    )
    st.stop()


def inside_app() -> None:
    """Starts over through app.py where Streamlit has run a page on its own.

    On a fresh server a link straight to a page makes Streamlit list the `pages` folder in its old way, until
    `st.navigation` has been called once (streamlit 1.67; the flag is its own).
    """
    if getattr(PagesManager, "uses_pages_directory", False):
        files = sorted((ROOT / "pages").glob("*.py"), key=lambda file: file.stem != "profile")  # the first has no path
        st.navigation([st.Page(file) for file in files], position="hidden")
        st.rerun()


def theme() -> None:
    """Adds the style sheet and the logo."""
    st.html(ROOT / "assets" / "theme" / "style.css")
    st.logo(str(ROOT / "assets" / "theme" / "logo.svg"), size="large")


# ---- values that live in the URL ------------------------------------------------------------------------------


def setting(name: str, options: Iterable, default):
    """Prepares the widget with key `name`: its value comes from this session, else from the URL, else `default`.

    A value that is not among `options` is dropped, so nothing from a URL is trusted further than a list.
    Call `share(name)` after the widget has been drawn. Returns the value the widget will start with.
    """
    allowed = {str(option): option for option in options}
    value = st.session_state.get(name, allowed.get(st.query_params.get(name, "")))
    if str(value) not in allowed:
        value = default
    st.session_state[name] = value
    return value


def share(name: str, default=None) -> None:
    """Writes the value of widget `name` to the URL, or takes it out where it is the default."""
    value = st.session_state.get(name)
    if value is None or value == default:
        st.query_params.pop(name, None)
    elif st.query_params.get(name) != str(value):
        st.query_params[name] = str(value)


def choose(draw: Callable, label: str, options: Sequence, name: str, default, **more):
    """A selectbox, segmented control or radio (`draw`) whose value is kept in the URL and across pages."""
    setting(name, options, default)
    value = draw(label, options, key=name, persist_state="session", **more)
    share(name, default)
    return value


def asked(draw: Callable, label: str, options: Sequence, name: str, default, what: str, **more) -> tuple:
    """As `choose`, for things that are looked for on disk: one that was asked for and is not there keeps its name in
    the box, and a sentence says that it is gone. Returns its value, and whether it is gone: then nothing may start."""
    gone = missing(name, options)
    if not gone:
        return choose(draw, label, options, name, default, **more), False
    form = more.pop("format_func", str)
    value = choose(
        draw,
        label,
        [*options, gone],
        name,
        default,
        format_func=lambda each: f"{showable(each)} (gone)" if each == gone else form(each),
        **more,
    )
    if value == gone:
        say_gone(what, gone)
    return value, value == gone


def missing(name: str, options: Iterable) -> str:
    """What this session or the URL asks for as `name` where it is not among `options`, else ""."""
    wanted = str(st.session_state.get(name) or st.query_params.get(name) or "")[:LONGEST_ASKED]
    return "" if wanted in map(str, options) else wanted


def say_gone(what: str, name: str) -> None:
    st.error(plain(f"The {what} {showable(name)} is gone: choose another."))


# ---- numbers as words -----------------------------------------------------------------------------------------


def count(n: float) -> str:
    """260032 → '260 k', 5312000 → '5.31 M'."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size:
            return f"{n / size:.3g} {unit}"
    return f"{n:.0f}"


def size(n: float) -> str:
    """Bytes in decimal units: 1044992 → '1.04 MB'."""
    return count(n).replace(" ", " ").rstrip() + "B" if abs(n) >= 1000 else f"{n:.0f} B"


def seconds(s: float | None) -> str:
    """75 → '1 min 15 s'; None → 'unknown'."""
    if s is None:
        return "unknown"
    s = int(round(s))
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60:02d} s"
    return f"{s // 3600} h {s % 3600 // 60:02d} min"


def plain(text: str) -> str:
    """`text` with Markdown's signs escaped: names from a checkpoint or a file are data, never formatting."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|$:~^])", r"\\\1", str(text))


# ---- pieces of a page -----------------------------------------------------------------------------------------


def title(text: str, sentence: str = "") -> None:
    """The page's name and one sentence that says what it shows."""
    st.html(f'<header class="k-title"><h1>{html.escape(text)}</h1><p>{html.escape(sentence)}</p></header>')


def facts(items: Iterable[tuple[str, str, str]]) -> None:
    """A line of figures: (label, value, definition); the definition stands in small print below its number."""
    items = list(items)
    rows = -(-len(items) // 7)
    cells = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd><dd>{html.escape(note)}</dd></div>"
        for label, value, note in items
    )
    st.html(f'<dl class="k-facts" style="--columns: {-(-len(items) // max(rows, 1))}">{cells}</dl>')


def listing(items: Iterable[tuple[str, ...]]) -> None:
    """Names and numbers in columns as the width allows; a third text of an item says below what it is."""
    cells = []
    for name, value, *said in items:
        note = f'<dd class="k-says">{html.escape(said[0])}</dd>' if said else ""
        cells.append(f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>{note}</div>")
    st.html(f'<dl class="k-list">{"".join(cells)}</dl>')


def figure(fig: go.Figure, key: str, alt: str, file: str, title: str = "", text: str = "", model=True, **more):
    """Draws a figure with an accessible name, and under it what saves it (`pictures`).

    title : what a saved picture is headed with; by default `alt` up to its first semicolon. text : what it was
    measured on, if on any. model : whether it tells of the model in view.
    """
    from pages.parts.model import named  # here, for that module draws with this one

    config = {"displaylogo": False, "modeBarButtonsToRemove": REMOVED}
    drawn = st.plotly_chart(fig, key=key, alt=alt, config=config, **more)
    alias = st.session_state.get("model") if model else None
    heading = title or alt.partition(";")[0].rstrip(".")
    pictures.strip(key, fig, heading, file, named(alias) if alias else "", text)
    return drawn


def text_name(document: dict) -> str:
    """The name of the text that a document was measured on, "" where it has none."""
    return str((document.get("text") or {}).get("name") or "")


def columns(named: Mapping[str, tuple[str, str | None]]) -> dict:
    """`st.dataframe`'s column_config of column → (heading, format of its numbers; None for a text)."""
    return {
        key: st.column_config.TextColumn(label) if form is None else st.column_config.NumberColumn(label, format=form)
        for key, (label, form) in named.items()
    }


def no_signed_zeros(table: pd.DataFrame, formats: Mapping[str, str | None]) -> pd.DataFrame:
    """The table with the numbers that are shown as "%.4f" (or other digits) at those digits: a browser would write a
    fall of 0.00001 as "-0.0000"."""
    digits = {key: int(form[2:-1]) for key, form in formats.items() if form and re.fullmatch(r"%\.\df", form)}
    shown = {key: table[key].astype(float).round(n) + 0.0 for key, n in digits.items() if key in table.columns}
    return table.assign(**shown)


def csv(table: pd.DataFrame) -> bytes:
    """The table as CSV; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    safe = table.copy()
    for column in safe.columns:
        if not pd.api.types.is_numeric_dtype(safe[column]):
            safe[column] = [f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@\t\r") else v for v in safe[column]]
    buffer = io.StringIO()
    safe.to_csv(buffer, index=False)
    return buffer.getvalue().encode()


def csv_button(table: pd.DataFrame, file: str, key: str) -> None:
    """A quiet button that downloads the table as CSV."""
    st.download_button(
        "CSV",
        lambda: csv(table),
        f"{file}.csv",
        "text/csv",
        key=key,
        on_click="ignore",
        icon=":material/download:",
        type="tertiary",
        help="Download this table",
    )


@contextmanager
def plain_errors(doing: str, again: bool = False):
    """One clear sentence instead of a traceback; what was unforeseen goes to a log in full (and is raised `again`)."""
    try:
        yield
    except InputError as error:
        st.error(plain(error))
        st.stop()
    except Exception as error:
        log.exception("while %s", doing)
        file = keep_log(error, ["dashboard", doing])
        rest = f"Please report it with the log {file}." if file else "The server's log has the rest."
        st.error(f"Something went wrong while {doing}: {plain(type(error).__name__)}. {plain(rest)}")
        if again:
            raise
        st.stop()
