"""Predicted against measured, for every run of a model: how far to trust a prediction, and the refit from runs."""

import html

import pandas as pd
import streamlit as st

from karipap_core.figures import predictions as figures_predictions
from karipap_core.plan import predictions
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.foretold import CURVE
from pages.parts import common, naming, runs

SIDES = {"told": "As predicted when planned", "now": "By today's calibration, each left out"}


def page(view) -> None:
    """The scatter of all runs of this model, its figures, and the versions of the calibration behind it."""
    points = runs.of_model(view)
    told = predictions.as_predicted(points)
    if not told:
        st.info("No run of this model was predicted yet. Measure the model on the Plan page, make a plan, and run it.")
        return
    files = predictions.calibrations(points)
    file, mine = next(iter(files.items()), (None, []))
    calibration = Calibration.load(file) if file else None
    pairs = {"told": told}
    if calibration:
        pairs["now"] = predictions.left_out(calibration, points)
    found = {side: predictions.figures([p for p in rows if p.source == CURVE]) for side, rows in pairs.items()}
    st.html(f'<p class="k-verdict">{html.escape(verdict(found, calibration))}</p>')
    shown = "told"
    if len(pairs) > 1:
        shown = common.choose(
            st.segmented_control,
            "Prediction",
            list(pairs),
            "prediction",
            "told",
            format_func=SIDES.get,
            required=True,
            help="The prediction that was made with the plan, or the one that today's fit makes without that plan.",
        )
    error = stated(pairs[shown], calibration)
    scatter(pairs[shown], error)
    figures(view, pairs, shown)
    if calibration:
        fits(calibration)
        refit(file, calibration, mine)


def verdict(found: dict, calibration: Calibration | None) -> str:
    """What predictions were worth, in sentences."""
    told, now = found["told"], found.get("now")
    parts = []
    if told:
        parts.append(
            f"Over {told['plans']} plans, predictions by the curve were off by {told['median']:.0%} in the "
            f"median and {told['largest']:.0%} at most"
        )
        if told["inside"] is not None:
            parts[-1] += f"; {told['inside']:.0%} were inside the error that was stated with them"
        parts[-1] += "."
    if now and calibration:
        parts.append(
            f"Calibration v{calibration.version} does it with {now['median']:.0%} in the median, each plan "
            "left out of the fit that predicts it."
        )
    return " ".join(parts) or "No measured rise stands far enough above its own error to judge predictions by."


def stated(pairs: list, calibration: Calibration | None) -> float | None:
    """The error that the band shows: the middle one of those stated with these predictions."""
    errors = sorted(pair.stated for pair in pairs if pair.stated is not None)
    return errors[len(errors) // 2] if errors else calibration and calibration.error


def scatter(pairs: list, error: float | None) -> None:
    fig = figures_predictions.scatter(pairs, error, st.session_state.get("point"))
    common.figure(
        fig,
        "predicted",
        "Predicted against measured rise in loss of every run; the figures are in the table below.",
        "karipap-predictions",
    )
    outside = len(pairs) - len(figures_predictions.drawn(pairs))
    band = f" The band is ±{error:.0%}, the middle one of the errors stated with these predictions." if error else ""
    st.html(
        f'<p class="k-note">On the line, what was predicted came.{band} Bars: 1.96 standard errors of the measured '
        "rise. Pale points lie within their own noise (less than 4 standard errors above 0) and are not counted"
        + (f"; {outside} below {figures_predictions.FLOOR:g} are not drawn" if outside else "")
        + ". Open squares are whole plans of the calibration, measured on its own text; diamonds are plans that were "
        "themselves measured on that text, and show how much two texts differ.</p>"
    )


def figures(view, pairs: dict, shown: str) -> None:
    """The figures of all predictions and of each network."""
    rows = []
    for side, members in pairs.items():
        members = [pair for pair in members if pair.source == CURVE]
        methods = sorted({pair.method for pair in members})
        for name in ["all", *(methods if side == shown else ())]:
            found = predictions.figures([pair for pair in members if name in ("all", pair.method)])
            if found:
                rows.append({"of": SIDES[side], "network": name, **found})
    if found := predictions.figures([pair for pair in pairs["told"] if pair.source != CURVE]):
        rows.append({"of": "Plans measured themselves on the calibration text", "network": "all", **found})
    if not rows:
        return
    frame = pd.DataFrame(rows)
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("How far off", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame, naming.file_name(view.checkpoint.name, "predictions"), "predictions_csv")
    st.dataframe(
        frame,
        hide_index=True,
        height=min(460, 38 + 35 * len(frame)),
        key="how_far_off",
        placeholder="",
        alt="How far predictions were off, by network",
        column_order=["of", "network", "plans", "median", "largest", "bias", "stated", "inside", "below"],
        column_config={
            "of": "Prediction",
            "network": "Network",
            "plans": st.column_config.NumberColumn("Plans"),
            "median": st.column_config.NumberColumn("Median off", format="percent", help="|predicted/measured − 1|"),
            "largest": st.column_config.NumberColumn("Largest", format="percent"),
            "bias": st.column_config.NumberColumn(
                "Bias", format="percent", help="Geometric mean of predicted / measured, minus 1; above 0: too gloomy"
            ),
            "stated": st.column_config.NumberColumn("With an error", help="Predictions that stated one"),
            "inside": st.column_config.NumberColumn("Inside it", format="percent", help="Share of these"),
            "below": st.column_config.NumberColumn("Within noise", help="Not counted"),
        },
    )


def fits(calibration: Calibration) -> None:
    """What predictions are made with now, and the versions before."""
    st.subheader(f"Calibration, version {calibration.version}", anchor=False)
    fit = calibration.fit("")
    text = html.escape(fit.text or "the calibration text")
    said = f"The curve runs through {len(calibration.points)} whole plans measured on the calibration text; "
    if calibration.factors:
        listed = ", ".join(
            f"{html.escape(name)} {factor:.2f}" for name, factor in sorted(calibration.factors.items(), key=str) if name
        )
        said += (
            f"{fit.checked} plans were checked on {text}. Predictions are for that text: the curve's times a "
            f"factor (least squares on a log scale) for each network, {listed}, "
            f"others {calibration.factors[None]:.2f}. Leaving each check out shows that this helps; where it does not, "
            "no factor is used."
        )
    else:
        said += f"{fit.checked} plans were checked. No factor is used: too few checks, or it would not help."
    st.html(f'<p class="k-note">{said}</p>')
    if calibration.history:
        rows = pd.DataFrame(list(reversed(calibration.history)))
        st.dataframe(
            rows,
            hide_index=True,
            key="fit_versions",
            height=min(300, 38 + 35 * len(rows)),
            placeholder="–",
            alt="Versions of the calibration",
            column_order=["version", "date", "what", "plans", "checks", "error"],
            column_config={
                "version": st.column_config.NumberColumn("Version"),
                "date": "Date",
                "what": "What changed",
                "plans": st.column_config.NumberColumn("Whole plans"),
                "checks": st.column_config.NumberColumn("Checks"),
                "error": st.column_config.NumberColumn(
                    "Usually within ±", format="percent", help="What four of five left-out predictions do not exceed"
                ),
            },
        )


def refit(file, calibration: Calibration, points: list[dict]) -> None:
    """The button that adds measured runs which the calibration does not know yet."""
    new = predictions.unchecked(calibration, points)
    if not new:
        st.caption("Every measured run is in this fit. Each plan measured from now on gives it a new version.")
        return
    many = f"{len(new)} measured run{'' if len(new) == 1 else 's'}"
    if st.button(f"Refit from {many}", key="refit", icon=":material/model_training:", type="primary"):
        with common.plain_errors("refitting the calibration"):
            predictions.refit(file, points)
        st.rerun()
    st.caption(f"{many} of this model were predicted by this calibration and are not among its checks yet.")
