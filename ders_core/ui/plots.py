"""A plot with what belongs to it: its data as CSV, its picture, a description in words."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st


def plot(
    figure: go.Figure, key: str, data: pd.DataFrame, *, alt: str, selectable: bool = False
) -> Any:
    """Show a figure; with `selectable`, clicks on points come back. The camera saves it."""
    config = {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
        "toImageButtonOptions": {"filename": key, "scale": 2},
    }
    event: Any
    if selectable:
        event = st.plotly_chart(
            figure, key=key, config=config, alt=alt, on_select="rerun", selection_mode="points"
        )
    else:
        event = st.plotly_chart(figure, key=key, config=config, alt=alt)
    st.download_button(
        "CSV",
        data=lambda: data.to_csv(index=False),
        file_name=f"{key}.csv",
        mime="text/csv",
        key=f"{key}_csv",
        type="tertiary",
        icon=":material/download:",
        on_click="ignore",
        help="The numbers behind this plot.",
    )
    return event
