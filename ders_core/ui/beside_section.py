"""The Recipe page's section on what lies beside the deltas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.later import pd
from ders_core.pipeline.plan import Plan
from ders_core.recipe import Recipe
from ders_core.ui import beside_table, session
from ders_core.ui.recipe_columns import table_columns

Change = Callable[[Recipe], None]
Fresh = Callable[[], None]


def beside_section(plan: Plan, source: Checkpoint, change: Change, fresh: Fresh) -> None:
    """Codecs of bases and of tensors outside the experts. change: makes a recipe the current one;
    fresh: draws the editors anew."""
    rows = beside_table.table(plan, source)
    key = f"beside_{st.session_state.get('recipe_round', 0)}"
    st.data_editor(
        rows.drop(columns="before_codec"),
        key=key,
        hide_index=True,
        placeholder="",
        disabled=["what", "before", "after", "share"],
        on_change=_take,
        args=(rows, key, change, fresh),
        column_config={
            "what": st.column_config.TextColumn("beside the deltas", width="medium"),
            **table_columns(rows["before"]),
        },
    )
    st.caption(
        f"What is not a delta. Bases are what experts have in common; {_error_of_bases(plan)}. "
        "Sizes of lossless and entropy-coded forms are upper bounds."
    )


def _error_of_bases(plan: Plan) -> str:
    """Who has what coded bases lose."""
    if plan.recipe.shares_base_error:
        return "deltas are taken against the base as it was, and all experts have its error"
    return "deltas are taken against what the coded base gives back"


def _take(rows: pd.DataFrame, key: str, change: Change, fresh: Fresh) -> None:
    """Turn the edited rows of bases and other tensors into rules; called when a cell changes."""
    edits: dict[int, dict[str, Any]] = st.session_state[key]["edited_rows"]
    try:
        change(beside_table.apply_edits(session.recipe(), rows, edits))
    except DersError as error:
        st.session_state["recipe_error"] = str(error)
        fresh()
