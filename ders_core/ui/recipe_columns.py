"""How tables of recipes show codecs, strengths and sizes."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.ui.recipe_table import OTHER, menu, strengths_sentence


def table_columns(*more: str) -> dict[str, Any]:
    """How codecs, strengths and sizes are shown in a table, by their columns. more: what a codec's
    cell may show beside the menu."""
    return {
        "codec": st.column_config.SelectboxColumn(
            "codec", options=[*menu(), OTHER, *more], required=True
        ),
        "strength": st.column_config.NumberColumn(
            "strength", help=strengths_sentence(), format="%g"
        ),
        "before": st.column_config.NumberColumn("now, MB", format="%.3g"),
        "after": st.column_config.NumberColumn("after, MB", format="%.3g"),
        "share": st.column_config.ProgressColumn(
            "of original", format="%.3g %%", min_value=0.0, max_value=100.0
        ),
    }
