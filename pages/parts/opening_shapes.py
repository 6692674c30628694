"""The Profile page of a model that is known by its config.json alone: what the shapes of its weights say."""

import html

import pandas as pd
import streamlit as st

from karipap_core.figures.shapes import SHAPES, shape_map
from karipap_core.profiles.outline import numbers_of_shapes
from pages.parts import common

COLUMNS = {
    "name": ("Weight", None),
    "layer": ("Layer", None),
    "role": ("Role", None),
    "out": ("Out", "localized"),
    "in": ("In", "localized"),
    "parameters": ("Parameters", "localized"),
    "bytes": ("Bytes", "bytes"),
    "null_entropy": ("S of noise", "%.3f"),
    "break_even": ("Break-even χ", "%.0f"),
}


def draw(view) -> None:
    """Facts, the map, and every weight in a row."""
    checkpoint = view.checkpoint
    rows = numbers_of_shapes(checkpoint.weights)
    st.info(common.plain(checkpoint.missing) + " Until then there is no spectrum to show, and these are its shapes.")
    inside = sum(weight.compressible for weight in checkpoint.weights)
    common.facts(
        [
            ("Parameters", common.count(checkpoint.parameters), f"{checkpoint.parameters:,}, tied tables once"),
            ("Bytes", common.size(checkpoint.bytes), "as the config says they are stored"),
            ("Weights", f"{len(rows):,}", f"{inside:,} of them in blocks: those can be compressed"),
            ("In the blocks", f"{checkpoint.block_parameters / checkpoint.parameters:.0%}", "of the parameters"),
        ]
    )
    quantity = common.choose(
        st.segmented_control,
        "Quantity",
        list(SHAPES),
        "shape",
        "null_entropy",
        required=True,
        format_func=lambda name: SHAPES[name][0],
    )
    alt = "Map of the model, layers down and roles across; the same numbers are in the table below."
    common.figure(shape_map(rows, quantity), "shapes", alt, "karipap-shapes")
    st.html(f'<p class="k-note">{html.escape(SHAPES[quantity][3])}</p>')
    table(rows)


def table(rows: list[dict]) -> None:
    frame = pd.DataFrame(rows)
    frame["out"], frame["in"] = [row["shape"][0] for row in rows], [row["shape"][1] for row in rows]
    frame = frame[list(COLUMNS)]
    head, button = st.columns([5, 1], vertical_alignment="bottom")
    head.subheader("All weights", anchor=False)
    with button.container(horizontal=True, horizontal_alignment="right"):
        common.csv_button(frame, "karipap-shapes", "shapes_csv")
    settings = common.columns(COLUMNS)
    settings["layer"] = st.column_config.NumberColumn("Layer", width="small")
    st.dataframe(
        frame,
        column_config=settings,
        hide_index=True,
        height=min(420, 38 + 35 * len(rows)),
        key="shapes_table",
        alt="All weights with what their shapes say",
    )
