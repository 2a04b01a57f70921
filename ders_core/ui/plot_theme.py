"""The look of plots on the page: its fonts and the colours of its theme, in the figures themselves.

Streamlit can put its theme into figures, but does that in the browser after a plot was drawn: the
plot is drawn again, and once more with the margins that fit its labels. A figure that says all of
this itself is drawn once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from ders_core.figures.style import EXPERT_COLOURS
from ders_core.later import np

FAMILY = '"Source Sans", sans-serif'
"""Of all texts of the page."""

PAD, STANDOFF, WITH_TITLE = 5, 8, 76
"""Px between a vertical axis and its labels, and between these and its title; and from the left
edge to an axis with both."""

LONGEST = 10
"""Characters of a name that has room beside an axis. For longer ones plotly finds the room, and
draws twice."""

ARRAYS = ("x", "y", "z", "customdata", "width", "text")
"""Attributes of traces that hold a value for each point."""

MOST_LISTED = 4096
"""Values of an array beyond which writing them as text takes longer than drawing them again."""


@dataclass(frozen=True)
class Ground:
    """The colours of one theme: of its ground, of texts on it, of titles and of grids."""

    ground: str
    text: str
    title: str
    grid: str
    edge: str


LIGHT = Ground("#ffffff", "#55606b", "#0b1218", "#e6eaf1", "#c9d0d6")
DARK = Ground("#11161c", "#c6cdd4", "#e4e9ee", "#31333f", "#3b4650")
"""Their texts have a contrast of 4.5 and more."""

_GROUND = "plots_ground"
"""That of the first plots which were shown since the whole page was drawn: others of them may have
got a later one, but not all."""


def _ground() -> Ground:
    """That of the theme that the visitor's browser shows."""
    return DARK if st.context.theme.type == "dark" else LIGHT


def forget_theme() -> None:
    """Forget the theme of plots; to be called when a whole page begins, which may have no plot."""
    st.session_state.pop(_GROUND, None)


def theme_was_left() -> bool:
    """Whether plots of the page have the look of a theme that the visitor has left since."""
    ground = _ground()
    return bool(st.session_state.get(_GROUND, ground) != ground)


def give_theme(figure: go.Figure, *, selectable: bool) -> None:
    """Give a figure the look of the page. selectable: it reports clicks on points; Streamlit asks
    for that in the browser, and would draw the plot again for it."""
    ground = _ground()
    st.session_state.setdefault(_GROUND, ground)  # parts of a page may be drawn again alone
    font = {"family": FAMILY, "size": 12, "color": ground.text}
    layout = figure.layout
    layout.template = None
    layout.font = font
    layout.title.font.color = ground.title
    layout.title.font.weight = 700
    layout.margin.pad = PAD
    if layout.yaxis.title.text:
        layout.margin.l, layout.yaxis.title.standoff = WITH_TITLE, STANDOFF
    layout.hoverlabel.bgcolor = ground.ground
    layout.hoverlabel.bordercolor = ground.edge
    layout.hoverlabel.font = font
    layout.colorway = EXPERT_COLOURS
    layout.datarevision = 0  # a figure's data never change while it is on the page
    for trace in figure.data:
        _listed(trace)
    if selectable:
        layout.clickmode, layout.hovermode, layout.dragmode = "event+select", "closest", "pan"
    for name in {"xaxis", "yaxis", *layout}:
        if name.startswith(("xaxis", "yaxis")):
            _theme_axis(layout[name], ground, is_across=name.startswith("x"))
    for letter in "xy":
        if any(_has_long_names(getattr(trace, letter, None)) for trace in figure.data):
            layout[f"{letter}axis"].automargin = True


def _listed(trace: Any) -> None:
    """Say numbers as numbers. Streamlit tells plotly each figure twice, and plotly takes arrays in
    base64 for others each time: then it draws again."""
    for name in ARRAYS:
        values = getattr(trace, name, None)
        if isinstance(values, np.ndarray) and values.size <= MOST_LISTED:
            trace[name] = None  # plotly keeps what it has for what is equal to it
            trace[name] = values.tolist()


def _has_long_names(values: Any) -> bool:
    return values is not None and any(
        isinstance(value, str) and len(value) > LONGEST for value in values
    )


def _theme_axis(axis: Any, ground: Ground, *, is_across: bool) -> None:
    axis.gridcolor = axis.zerolinecolor = axis.tickcolor = ground.grid
    if is_across:
        axis.showgrid = bool(axis.showgrid)
        axis.zeroline = bool(axis.zeroline)
