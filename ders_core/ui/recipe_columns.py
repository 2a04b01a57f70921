"""How tables of recipes show codecs, strengths and sizes."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.later import pd
from ders_core.ui.number_columns import SHARE, number_column
from ders_core.ui.recipe_table import OTHER, menu, strengths_sentence


def table_columns(before: pd.Series, *more: str) -> dict[str, Any]:
    """How codecs, strengths and sizes are shown in a table, by their columns. before: the sizes in
    MB; formats depend on nothing that an edit changes. more: what a codec's cell may show beside
    the menu."""
    return {
        "codec": st.column_config.SelectboxColumn(
            "codec", options=[*menu(), OTHER, *more], required=True
        ),
        "strength": st.column_config.NumberColumn(
            "strength", help=strengths_sentence(), format="%g"
        ),
        "before": number_column("now, MB", before),
        "after": st.column_config.NumberColumn("after, MB", format="%.3g"),
        "share": st.column_config.ProgressColumn(
            "of original", format=SHARE, min_value=0.0, max_value=100.0
        ),
    }
