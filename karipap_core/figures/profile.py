"""Plotly figures from the core's own objects: `figures.heatmap(profile)` draws in a notebook as on the dashboard.

Every function returns a new `go.Figure`. Arrays are float32 and no line has more than 512 points. Colours are Okabe
and Ito's, kept to tones that stand out on white and on near-black alike; nothing is told by colour alone. Backgrounds
and text colours are left to the template, so a figure follows the theme of whatever shows it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from karipap_core.figures.map import Numbers, weight_map
from karipap_core.figures.style import BLUE, GREY, ORANGE, POINTS, frame, line, log_ticks
from karipap_core.profiles.document import Profile
from karipap_core.spectra.null import bulk_deviation, bulk_edge, null_tail
from karipap_core.spectra.spectrum import chi_at_error, tail, thin


@dataclass(frozen=True)
class Quantity:
    """A number that a heatmap can show for a weight: how it is called, written, defined and found.

    `value(profile, weight, metric, error)` gives the number, or None where the profile does not have it. low, high:
    what small and large numbers mean for compression.
    """

    label: str
    unit: str
    form: str
    says: str
    value: Callable[[Profile, dict, str, float], float | None]
    low: str
    high: str
    limits: tuple[float, float] | None = None


def _stored(field: str) -> Callable[[Profile, dict, str, float], float | None]:
    """The value of a quantity that the profile holds under this name."""
    return lambda profile, weight, metric, error: weight["spectra"].get(metric, {}).get(field)


def _chi(profile: Profile, weight: dict, metric: str, error: float) -> int | None:
    if metric not in weight["spectra"]:
        return None
    return chi_at_error(profile.sigma(weight["name"], metric), error)


def _kept(profile: Profile, weight: dict, metric: str, error: float) -> float | None:
    chi = _chi(profile, weight, metric, error)
    return None if chi is None else chi / break_even(weight["shape"])


QUANTITIES: dict[str, Quantity] = {
    "entropy": Quantity(
        "Entropy S",
        "nats",
        ".2f",
        "S = −Σ p ln p with p = σ² / Σσ² over the singular values σ; natural logarithm.",
        _stored("entropy"),
        "a few singular values hold most of the weight: a small χ keeps it",
        "the singular values are alike, as in noise: every cut loses",
    ),
    "normalized_entropy": Quantity(
        "Normalized entropy",
        "",
        ".3f",
        "S divided by its largest possible value, ln min(out, in): 1 is a flat spectrum, 0 a rank-one matrix.",
        _stored("normalized_entropy"),
        "a few singular values hold most of the weight: a small χ keeps it",
        "the singular values are alike, as in noise: every cut loses",
        (0, 1),
    ),
    "excess": Quantity(
        "Excess over noise",
        "nats",
        ".3f",
        "Entropy of a Gaussian random matrix of the same shape, minus S. It is the "
        "structure that training put in; near 0 the weight looks like noise and will not compress.",
        _stored("excess"),
        "close to noise: nothing to cut away",
        "much structure: a small χ keeps most of it",
    ),
    "effective_rank": Quantity(
        "Effective rank",
        "",
        ".0f",
        "exp S: how many equal singular values would have this entropy.",
        _stored("effective_rank"),
        "few singular values matter: a small χ keeps the weight",
        "many matter: it takes a large χ",
    ),
    "stable_rank": Quantity(
        "Stable rank",
        "",
        ".1f",
        "Σσ² / σ₁²: how many times the largest singular value's weight there is in all.",
        _stored("stable_rank"),
        "the strongest singular values hold nearly everything",
        "the rest holds much too: it takes a large χ",
    ),
    "chi": Quantity(
        "χ at error",
        "",
        ".0f",
        "The smallest number χ of singular values whose left-out weight is at most the chosen part of Σσ².",
        _chi,
        "a small χ is enough at this error",
        "it takes a large χ to stay within this error",
    ),
    "kept": Quantity(
        "Kept at error",
        "",
        ".0%",
        "Parameters of two factors with that χ over the weight's own, χ (out + in) / "
        "(out · in). Above 100 % the weight is smaller dense.",
        _kept,
        "shrinks much at this error",
        "hardly shrinks; above 100 % it is smaller whole",
        (0, 1),
    ),
}


def break_even(shape: Sequence[int]) -> float:
    """The χ at which two factors (out × χ), (χ × in) have as many parameters as the weight: out·in / (out + in)."""
    n_out, n_in = shape
    return n_out * n_in / (n_out + n_in)


def numbers_of(
    profile: Profile, quantity: str = "entropy", metric: str = "weight", error: float = 0.01, fixed: bool = False
) -> Numbers:
    """A quantity of every weight of a profile, as a map shows it; see `heatmap`."""
    kind = QUANTITIES[quantity]
    found = {weight["name"]: kind.value(profile, weight, metric, error) for weight in profile.weights}
    return Numbers(
        {name: value for name, value in found.items() if value is not None},
        kind.label,
        kind.unit,
        kind.form,
        absent="not in this profile",
        limits=(kind.limits or (0.0, None)) if fixed else None,
    )


def heatmap(
    profile: Profile,
    quantity: str = "entropy",
    metric: str = "weight",
    error: float = 0.01,
    selected: str | None = None,
    fixed: bool = False,
) -> go.Figure:
    """The map of a profile: layers down, roles across, one of `QUANTITIES` a weight (see `map.weight_map`).

    metric : weight, functional or loss. error : of the quantities `chi` and `kept`, the part of Σσ² that is left out.
    selected : the weight with a frame round it. fixed : colour by the quantity's natural limits instead of the model's
    own, so that two models compare.
    """
    return weight_map(profile.weights, numbers_of(profile, quantity, metric, error, fixed), selected)


def spectrum(profile: Profile, name: str, metric: str = "weight", chi: int | None = None) -> go.Figure:
    """Singular values of one weight against their number, log-log, over those of a Gaussian matrix of its shape.

    In the metric `weight` the noise has the deviation that fits the bulk, and the line marks the bulk's edge: what
    stands above it is signal. In the other metrics the noise has the same Σσ², as the inputs have scales of their own.
    """
    weight = profile.weight(name)
    sigma, shape = np.asarray(profile.sigma(name, metric)), weight["shape"]
    m, n = sorted(shape)
    index, values = thin(sigma, POINTS)
    deviation = bulk_deviation(sigma, shape) if metric == "weight" else math.sqrt(float((sigma**2).sum()) / (m * n))
    noise = np.sqrt(np.maximum(-np.diff(null_tail(m, n)), 0) * m * n) * deviation
    noise_index, noise = thin(noise, POINTS)
    figure = go.Figure()
    line(figure, noise_index, noise, "Gaussian of this shape", GREY, dash="dot", form="σ %{y:.3g}")
    line(figure, index, values, "σ of this weight", BLUE, form="σ %{y:.4g}")
    if metric == "weight" and deviation > 0:
        edge = bulk_edge(sigma, shape)
        figure.add_hline(edge, line=dict(color=ORANGE, width=1.2, dash="dash"))
        figure.add_annotation(
            x=0.01,
            xref="paper",
            y=math.log10(edge),
            text="edge of the bulk",
            showarrow=False,
            xanchor="left",
            yanchor="bottom",
            font=dict(size=11, color=ORANGE),
        )
    _cut(figure, chi, shape, log=True)
    positive = values[values > 0]
    low = max(float(positive.min()), float(positive.max()) * 1e-4) if positive.size else 1e-3
    high = float(positive.max()) if positive.size else 1.0
    frame(figure, "number i of the singular value", "σ")
    figure.update_xaxes(type="log", **log_ticks(1, m))
    figure.update_yaxes(type="log", range=[math.log10(low / 1.3), math.log10(high * 1.4)], **log_ticks(low, high))
    return figure


def cumulative(profile: Profile, name: str, metric: str = "weight", chi: int | None = None) -> go.Figure:
    """The part of Σσ² that χ singular values keep, over what they would keep of a Gaussian matrix of that shape.

    One minus this is the relative squared error in the metric. The upright line is the break-even χ: beyond it two
    factors are larger than the weight.
    """
    weight = profile.weight(name)
    sigma, shape = np.asarray(profile.sigma(name, metric)), weight["shape"]
    left = tail(sigma)
    kept = 1 - left / left[0] if left[0] > 0 else np.ones_like(left)
    pick = np.unique(np.linspace(0, len(kept) - 1, min(POINTS, len(kept))).round().astype(int))
    noise = 1 - null_tail(*shape)
    figure = go.Figure()
    line(figure, pick, noise[pick], "Gaussian of this shape", GREY, dash="dot", form="%{y:.1%} kept")
    line(figure, pick, kept[pick], "this weight", BLUE, form="%{y:.2%} kept")
    _cut(figure, chi, shape)
    frame(figure, "χ, singular values kept", "weight kept")
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%")
    return figure


def bonds(profile: Profile, name: str, metric: str = "weight") -> go.Figure:
    """Entropy across each bond of a weight's matrix product operator, beside the Gaussian null of the same cut."""
    found = [bond for bond in profile.weight(name)["bonds"] if metric in bond["spectra"]]
    labels = [f"bond {bond['bond']}<br>{bond['dims'][0]:,} × {bond['dims'][1]:,}" for bond in found]
    figure = go.Figure()
    for field, color, label, pattern in (
        ("null_entropy", GREY, "Gaussian of this cut", "/"),
        ("entropy", BLUE, "this weight", ""),
    ):
        figure.add_bar(
            x=labels,
            y=np.array([bond["spectra"][metric][field] for bond in found], np.float32),
            name=label,
            marker_color=color,
            marker_pattern_shape=pattern,
            hovertemplate="%{x}: %{y:.3f} nats<extra>" + label + "</extra>",
        )
    frame(figure, "", "entropy (nats)")
    figure.update_layout(barmode="group", bargap=0.35, bargroupgap=0.08)
    return figure


def _cut(figure: go.Figure, chi: int | None, shape: Sequence[int], log: bool = False) -> None:
    """Upright lines: the break-even χ, and the chosen χ where there is one."""
    marks = [(break_even(shape), "break-even", GREY, "dash")]
    if chi:
        marks.append((chi, f"χ = {chi}", ORANGE, "solid"))
    for place, text, color, dash in marks:
        figure.add_vline(place, line=dict(color=color, width=1.2, dash=dash))
        figure.add_annotation(
            x=math.log10(place) if log else place,
            y=0.02,
            yref="paper",
            yanchor="bottom",
            xanchor="right",
            text=text,
            showarrow=False,
            textangle=-90,
            font=dict(size=11, color=color),
        )
