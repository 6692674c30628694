"""An adapter in view: said to be one, and opened with the model that it belongs to."""

import os

import streamlit as st

from karipap_core.checkpoint.files import ADAPTER
from karipap_core.checkpoint.lora.open import ALONE, JOIN
from karipap_core.errors import InputError
from karipap_core.reading import read_json
from pages.parts import common, model

MOST_SHOWN = 120  # signs of what an adapter calls its base


def offer(view) -> None:
    """Says that the weights in view are an update and no model, and asks which model to put it on: the one that the
    adapter names where that is among those here."""
    named, kind = base_of(view), view.checkpoint.form.words.removesuffix(ALONE)
    st.info(
        f"This is an adapter ({common.plain(kind)}), and what the page shows is "
        f"its update s B A alone, not a model. It belongs to {common.plain(named or 'a model that it does not name')}."
    )
    known = model.listing().models | model.hub_models(str(model.hub.cache()))
    bases = [alias for alias in known if alias != view.alias]
    if not bases:
        st.caption("No other model is here: open its base above first.")
        return
    with st.container(horizontal=True, vertical_alignment="bottom"):
        place = next((alias for alias in bases if alias == named or _same(known[alias], view.place, named)), None)
        base = st.selectbox(
            "Its base",
            bases,
            index=bases.index(place) if place else None,
            format_func=model.named,
            placeholder="Choose the model that it was trained on",
            key="adapter_base",
        )
        st.button(
            "Open the model with it",
            key="adapter_merge",
            disabled=base is None,
            on_click=lambda: model.in_view(f"{base}{JOIN}{view.alias}"),
        )


def base_of(view) -> str | None:
    """What an adapter's config calls its base: only ever compared and shown."""
    try:
        named = read_json(view.checkpoint.path / ADAPTER, lenient=True).get("base_model_name_or_path")
    except InputError:
        return None
    return named[:MOST_SHOWN] if isinstance(named, str) and named else None


def _same(place: str, adapter: str, named: str | None) -> bool:
    """Whether a place that is listed is the one that an adapter names, by its letters."""
    return named is not None and place in {os.path.abspath(os.path.join(adapter, named)), os.path.abspath(named)}
