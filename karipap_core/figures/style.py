"""Colours, axes, ticks and frames that all figures share."""

import math

import numpy as np
from plotly.colors import get_colorscale

BLUE, ORANGE, GREEN, PURPLE, GOLD, GREY = "#2f86c6", "#d55e00", "#0f9a78", "#b866a0", "#cc8a00", "#8b9096"
SCALE = "Cividis"
FAINT = "rgba(128,134,140,0.22)"
POINTS = 512


def ends() -> tuple[str, str]:
    """The colours of the smallest and of the largest number on `SCALE`, as CSS has them."""
    scale = get_colorscale(SCALE)
    return scale[0][1], scale[-1][1]


# ---- how they all look ------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Names as text: Plotly reads a few HTML tags in labels."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def line(figure, x, y, name, color, dash="solid", form="%{y:.3g}") -> None:
    figure.add_scatter(
        x=np.asarray(x, np.float32),
        y=np.asarray(y, np.float32),
        name=name,
        mode="lines",
        line=dict(color=color, width=2, dash=dash),
        hovertemplate=f"{form}<extra>{name}</extra>",
    )


def log_ticks(low: float, high: float) -> dict:
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, or at the powers alone over three decades on."""
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
    values = [step * 10.0**decade for decade in decades for step in steps]
    return dict(tickvals=values, ticktext=[tick(value) for value in values])


def tick(value: float) -> str:
    """1234 → '1,234', 0.001 → '0.001', 1e-7 → '10⁻⁷', 2e-7 → '2·10⁻⁷'."""
    if 1e-4 < value < 1e7:
        return f"{value:,.6g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    head = round(value / 10.0**exponent)
    return power if head == 1 else f"{head}·{power}"


def quiet(figure, height: int, hovermode: str = "closest") -> None:
    """Quiet axes and the legend above the plot."""
    figure.update_layout(
        height=height,
        margin=dict(l=8, r=12, t=36, b=8),
        hovermode=hovermode,
        uirevision="keep",
        legend=dict(orientation="h", x=0, y=1.02, xanchor="left", yanchor="bottom", title_text=""),
    )
    figure.update_xaxes(gridcolor=FAINT, zeroline=False, automargin=True)
    figure.update_yaxes(gridcolor=FAINT, zeroline=False, automargin=True)


def frame(figure, x: str, y: str, height: int = 320) -> None:
    """`quiet`, with one hover label for all lines, and titles on the axes."""
    quiet(figure, height, "x unified")
    figure.update_xaxes(title_text=x)
    figure.update_yaxes(title_text=y)
