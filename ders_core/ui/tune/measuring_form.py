"""What can be started from the size that is shown: a proof, a run of its recipe, or a series of
sizes."""

from __future__ import annotations

from typing import Any

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.jobs.kind import TextSpec
from ders_core.recipe import Recipe
from ders_core.ui import kept, session
from ders_core.ui.closed_forms import form_popover
from ders_core.ui.frame import demo_text
from ders_core.ui.job_progress import submit
from ders_core.ui.plain import show_error
from ders_core.ui.text_field import checked_texts
from ders_core.ui.trust import trust_switch
from ders_core.ui.tune.fields import NAMED_TEXTS, text_lines, token_count
from ders_core.ui.tune.known import Known
from ders_core.ui.tune.wish import Wish

HELDOUT = "heldout.txt"
POINTS = 6
_POPOVER = "tune_measure"
_STARTED = "tune_measure_started"


def measuring_popover(
    source: Checkpoint, known: Known, recipe: Recipe, percent: float, wish: Wish
) -> None:
    """A form behind a button. recipe: of the size that is shown, `percent` of the original."""
    if st.session_state.pop(_STARTED, False):
        st.session_state[_POPOVER] = False
    form = form_popover("Measure…", icon=":material/science:", key=_POPOVER)
    if form is None:
        return
    with form:
        typed, tokens = _texts(source)
        trusted = trust_switch(source, "tune_measure_trust")
        with st.container(horizontal=True):
            proves = st.button(
                f"Prove {percent:.1f} %",
                key="tune_prove",
                type="primary",
                icon=":material/verified:",
                help="Measures this size and the best uniform recipes that are no larger, and "
                "solves again by what came out. The best of all that was measured is kept.",
            )
            runs = st.button(
                "Start a run",
                key="tune_run",
                icon=":material/play_arrow:",
                help="Compresses, verifies and evaluates this recipe, and keeps what it wrote.",
            )
        points, sizes = _sizes()
    if not (proves or runs or sizes):
        return
    shared = {
        "checkpoint": str(source.path),
        "max_tokens": tokens,
        "trust_remote_code": trusted,
    }
    try:
        texts = checked_texts(typed)
        if proves:
            _measure("prove", known, texts, wish, shared | {"budget": f"{percent:.1f}%"})
        elif sizes:
            _measure("series", known, texts, wish, shared | {"points": points})
        else:
            name = session.job_store().free_name("run", recipe.name)
            submit("run", {**shared, "recipe": recipe.to_yaml(), "name": name, "text": texts})
    except DersError as error:
        show_error(error)
        return
    if runs:
        st.switch_page("pages/runs.py")
    if texts is not None:
        st.session_state[_STARTED] = True
        st.rerun()


def _texts(source: Checkpoint) -> tuple[str, int]:
    typed = text_lines(
        source,
        "Texts to measure on",
        "tune_heldout",
        start=str(demo_text(HELDOUT, source.path) or ""),
        placeholder=NAMED_TEXTS,
        help="Not those that were calibrated on: a proof refuses these. With names, each is "
        "measured apart too.",
    )
    return typed, token_count("Tokens", "tune_heldout_tokens", 8192)


def _sizes() -> tuple[int, bool]:
    """How many sizes a series has, and whether its button was pressed."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        points: int = kept.field(
            st.number_input,
            "Sizes",
            key="tune_points",
            start=POINTS,
            min_value=1,
            max_value=100,
            width=120,
            help="From the smallest file to one that loses nothing.",
        )
        pressed = st.button(
            "Measure a series",
            key="tune_series",
            icon=":material/show_chart:",
            help="Measures tuned recipes of so many sizes, with the best uniform recipe of each, "
            "and looks for cliffs between them. What was measured is kept: a series that is "
            "stopped goes on where it was.",
        )
    return int(points), pressed


def _measure(
    kind: str, known: Known, texts: TextSpec | None, wish: Wish, fields: dict[str, Any]
) -> None:
    """File a job that solves and measures."""
    if texts is None:
        st.error("Name a text to measure on: a file or a directory.")
        return
    submit(
        kind,
        {
            **fields,
            "calibration": str(known.calibration.path),
            "text": texts,
            **wish.fields,
        },
    )
