"""A click on a measured point loads its recipe."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.errors import DersError
from ders_core.later import np, pd
from ders_core.recipe import Recipe
from ders_core.ui import session
from ders_core.ui.plain import plain, show_error

_LOADED, _TOLD = "tune_clicked", "tune_clicked_told"


def load_clicked(event: Any, measured: pd.DataFrame) -> None:
    """Make the recipe of the point that was clicked last the current one, once.

    event: of a selectable plot. measured: as of `ders_core.ui.tune.measured`."""
    if told := st.session_state.pop(_TOLD, ""):
        st.toast(told, icon=":material/edit:")
    row = clicked_row(event, measured)
    mark = None if row is None else (str(row["name"]), float(row["share"]))
    if mark == st.session_state.get(_LOADED):
        return
    st.session_state[_LOADED] = mark
    if row is None:
        return
    try:
        session.set_recipe(Recipe.from_yaml(str(row["recipe"])))
    except DersError as error:
        show_error(error)
        return
    st.session_state[_TOLD] = f"{plain(str(row['name']))} is the current recipe."
    st.rerun()  # the whole page, which names the recipe too


def clicked_row(event: Any, measured: pd.DataFrame) -> pd.Series | None:
    """The measured recipe at a clicked point; None where nothing, or no measured one, was."""
    selection = getattr(event, "selection", None)
    for point in getattr(selection, "points", None) or ():
        same = np.isclose(100 * measured["share"], point["x"], rtol=1e-6) & np.isclose(
            measured["kl"], point["y"], rtol=1e-6
        )
        if same.any():
            row: pd.Series = measured.loc[same].iloc[0]
            return row
    return None
