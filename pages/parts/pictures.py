"""The line under every figure that saves it as PNG, SVG or a page of its own.

The browser makes the file from the chart that it already shows, when a button is pressed (`pictures.js`): always on
white and 1000 pixels wide, whatever the theme and the screen, with a title above and the model, the text, the day and
the version below.
"""

import re
from functools import cache
from pathlib import Path

import plotly
import plotly.graph_objects as go
import streamlit as st

from karipap_core import __version__

HERE = Path(__file__).parent
LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"  # what a saved page draws with
ADDRESS = "karipap/plotly.min.js"  # where the server gives it out (`server.Library`)
HEIGHT = 450  # Plotly's own, of a figure that says none
LONGEST = 120  # signs of a file's name
KINDS = ("png", "svg", "html")


@cache
def _component():
    buttons = "".join(f'<button type="button" value="{kind}">{kind.upper()}</button>' for kind in KINDS)
    return st.components.v2.component(
        "karipap_picture",
        html=f'<div class="picture"><span>Save as</span>{buttons}<span role="status"></span></div>',
        css=(HERE / "pictures.css").read_text(encoding="utf-8"),
        js=(HERE / "pictures.js").read_text(encoding="utf-8"),
    )


def strip(key: str, fig: go.Figure, title: str, file: str, model: str = "", text: str = "") -> None:
    """Draws the line for the chart of this key; `model` and `text` stand in the picture where there are any."""
    base = str(st.get_option("server.baseUrlPath")).strip("/")
    _component()(
        key=f"{key}_picture",
        data={
            "chart": key,
            "title": title,
            "file": re.sub(r"[^\w.-]+", "-", file)[:LONGEST],
            "height": fig.layout.height or HEIGHT,
            "room": (fig.layout.meta or {}).get("room"),
            "model": model,
            "text": text and f"on {text}",
            "version": f"Karipap {__version__}",
            "library": f"/{base}/{ADDRESS}" if base else f"/{ADDRESS}",
        },
        height="content",
    )
