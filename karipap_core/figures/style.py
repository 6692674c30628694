"""Colours, axes, ticks and frames that all figures share."""

import math
import textwrap

import numpy as np
from plotly.colors import hex_to_rgb, sequential

BLUE, ORANGE, GREEN, PURPLE, GOLD, GREY = "#2f86c6", "#d55e00", "#0f9a78", "#b866a0", "#cc8a00", "#8b9096"
SCALE = [[i / (len(sequential.Cividis) - 1), color] for i, color in enumerate(sequential.Cividis)]
DARK, LIGHT = "#000000", "#ffffff"  # inks: of these two, one has a contrast of 4.58 or more on any colour there is
FAINT = "rgba(128,134,140,0.22)"
POINTS = 512
# A legend at the foot of its figure: Plotly keeps as much room for it as it takes, however narrow the page.
BELOW = dict(orientation="h", x=0, xanchor="left", yref="container", y=0, yanchor="bottom", title_text="")
LINE = 44  # signs of a figure's title in a line, on the narrowest page


def ends() -> tuple[str, str]:
    """The colours of the smallest and of the largest number on `SCALE`, as CSS has them."""
    return SCALE[0][1], SCALE[-1][1]


# ---- how they all look ------------------------------------------------------------------------------------------


def escape(text: str) -> str:
    """Names as text: Plotly reads a few HTML tags in labels."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def wrapped(text: str) -> str:
    """A title in as many lines as the narrowest page needs."""
    return "<br>".join(escape(line) for line in textwrap.wrap(text, LINE))


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
    """Ticks of a logarithmic axis at 1, 2 and 5 times powers of ten, or at the powers alone over three decades on, and
    at every second or third … of them over many."""
    steps = (1, 2, 5) if high / low < 1e3 else (1,)
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high))
    every = max(1, round((last - first) / 8))
    decades = range(first - first % every, last + 1, every)  # 1 is among them where they reach it
    values = [step * 10.0**decade for decade in decades for step in steps]
    return dict(tickvals=values, ticktext=[tick(value) for value in values])


def even_ticks(low: float, high: float, percent: bool = False, most: int = 7) -> dict:
    """Two to about `most` round ticks between the ends, written with as many digits as tell them apart."""
    times = 100 if percent else 1
    low, high = low * times, high * times
    if not high > low:
        return dict(tickvals=[], ticktext=[])
    raw = (high - low) / most
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * part for part in (1, 2, 5, 10) if size * part >= raw * (1 - 1e-9))
    values = [step * k for k in range(math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6) + 1)]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    sign = " %" if percent else ""
    return dict(tickvals=[value / times for value in values], ticktext=[f"{v:z,.{digits}f}{sign}" for v in values])


def decade_ticks(low: float, high: float, most: int = 7) -> dict:
    """Ticks of a colour bar of logarithms to base ten, from `low` to `high`: those of `log_ticks` that lie between and
    are not too many; where there are fewer than two, the ends."""
    steps = (1, 2, 5) if high - low < 3 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    values = [math.log10(step) + decade for decade in decades for step in steps]
    values = [value for value in values if low - 1e-6 <= value <= high + 1e-6]
    values = values[:: -(-len(values) // most)] if values else []
    if len(values) < 2:
        return dict(tickvals=[low, high], ticktext=[short(10.0**low), short(10.0**high)])
    return dict(tickvals=values, ticktext=[tick(10.0**value) for value in values])


def short(value: float) -> str:
    """Two digits in few signs, for a cell: 0.014, 5.1e-4."""
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:.2g}"
    digits, power = f"{value:.1e}".split("e")
    return f"{digits}e{int(power)}"


def inks(parts: np.ndarray) -> np.ndarray:
    """`DARK` or `LIGHT` for text on the colours of `SCALE` at these parts of it (0 to 1), whichever has the greater
    contrast as WCAG 2 defines it, from relative luminances: (brighter + 0.05) / (darker + 0.05)."""
    nodes = np.array([hex_to_rgb(color) for _, color in SCALE], np.float64)
    at = [place for place, _ in SCALE]
    rgb = np.stack([np.interp(np.clip(parts, 0, 1), at, channel) for channel in nodes.T]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = np.tensordot([0.2126, 0.7152, 0.0722], linear, 1)
    return np.where((luminance + 0.05) ** 2 > 1.05 * 0.05, DARK, LIGHT)


def tick(value: float) -> str:
    """1234 → '1,234', 0.001 → '0.001', 1e-7 → '10⁻⁷', 2e-7 → '2·10⁻⁷'."""
    if 1e-4 < value < 1e6:
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
