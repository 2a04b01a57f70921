"""Columns of numbers in tables: all numbers of a column have the same number of decimals."""

from __future__ import annotations

import streamlit as st
from streamlit.elements.lib.column_types import ColumnConfig

from ders_core.later import np, pd
from ders_core.pipeline.quality import Figure
from ders_core.units import for_column

SHARE = "%.1f %%"


def number_format(format: str, values: pd.Series) -> str:
    """As `units.for_column`, for browsers, which would drop zeros at the end of '%.3g'."""
    return for_column(format, values.to_numpy(dtype=float, na_value=np.nan).tolist())


def number_column(
    label: str, values: pd.Series, format: str = "%.3g", *, help: str | None = None
) -> ColumnConfig:
    """values: what the column shows."""
    return st.column_config.NumberColumn(label, format=number_format(format, values), help=help)


def figure_column(figure: Figure, shown: pd.DataFrame, note: str = "") -> ColumnConfig:
    """A column of a figure. shown: the table, whose values are multiplied by the figure's scale
    already. note: a sentence that its help ends with."""
    values = shown.get(figure.key, pd.Series(dtype=float))
    return number_column(figure.short, values, figure.format, help=f"{figure.help} {note}".rstrip())
