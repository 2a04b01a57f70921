"""Forms that are closed until a person opens them."""

from __future__ import annotations

from typing import Any

import streamlit as st


def form_popover(label: str, *, key: str, icon: str | None = None) -> Any:
    """A popover to draw a form into; None while it is closed, when nothing is to be drawn.

    A browser shows no field of a closed popover, and forgets what it was told to start with if the
    page is drawn again before it opens. To close it, set `st.session_state[key]` to False before.
    """
    popover = st.popover(label, icon=icon, key=key, on_change="rerun")
    return popover if popover.open else None


def form_expander(label: str, *, key: str, icon: str | None = None) -> Any:
    """As `form_popover`, for a form that may stand at the end of a page: a popover has only the
    room below its button there, and the page grows with what an expander shows."""
    expander = st.expander(label, icon=icon, key=key, on_change="rerun")
    return expander if expander.open else None
