"""A plot with its data as CSV, its picture as PNG and SVG, and a description in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import plotly.graph_objects as go
import streamlit as st

from ders_core.analysis import Analysis
from ders_core.later import pd
from ders_core.ui.guard import pictures
from ders_core.ui.plot_theme import give_theme

Click = Callable[[Mapping[str, Any]], None]
"""What is told of a point that was clicked: among else its `x` and `y`."""


def made(
    key: str, draw: Callable[..., go.Figure], analysis: Analysis, *choice: object, **options: object
) -> go.Figure:
    """draw(analysis, *choice, **options); or, while all of these are the same, the figure that this
    gave the last time, as of `made_of`."""
    wanted = draw, choice, options
    return made_of(key, partial(draw, analysis, *choice, **options), wanted, analysis)


def made_of(
    key: str, draw: Callable[[], go.Figure], shows: object, analysis: Analysis | None = None
) -> go.Figure:
    """draw(); or, while what it shows is equal and the analysis the same, the figure that this gave
    the last time in this session for the plot of that key. Nothing but its theme may be changed;
    that is why sessions, whose themes differ, share no figure."""
    place = f"{key}_made"
    known: tuple[Analysis | None, object, go.Figure] | None = st.session_state.get(place)
    if known is None or known[0] is not analysis or known[1] != shows:
        known = analysis, shows, draw()
        st.session_state[place] = known
    return known[2]


def plot(
    figure: go.Figure,
    key: str,
    data: pd.DataFrame,
    *,
    alt: str,
    selectable: bool = False,
    tree: pd.DataFrame | None = None,
) -> Any:
    """Show a figure and its CSV button. selectable: return the clicks on points. alt: a description
    for screen readers. tree: what a second button downloads, of a tree in the figure."""
    give_theme(figure, selectable=selectable)
    event = _chart(figure, key, _config(key), alt, selectable=selectable)
    with _downloads(data, key, key):
        if tree is not None:
            csv_button(tree, f"{key}_tree", "The joins of the tree.", label="CSV of the tree")
    return event


def _downloads(data: pd.DataFrame, key: str, chart: str) -> Any:
    """A row with buttons for the numbers behind a plot, and for its picture as SVG. chart: the key
    of the plot that is shown. Returns the row."""
    row = st.container(horizontal=True, vertical_alignment="center")
    with row:
        csv_button(data, key)
        st.html(pictures.button(chart), width="content")
    return row


def _chart(
    figure: go.Figure,
    key: str,
    config: dict[str, Any],
    alt: str,
    *,
    selectable: bool,
    on_click: Click | None = None,
) -> Any:
    if not (selectable or on_click):
        return st.plotly_chart(figure, key=key, config=config, alt=alt, theme=None)

    def clicked() -> None:
        points = st.session_state[key]["selection"]["points"]
        if on_click is not None and points:
            on_click(points[0])

    on_select: Any = "rerun" if on_click is None else clicked
    return st.plotly_chart(
        figure,
        key=key,
        config=config,
        alt=alt,
        theme=None,
        on_select=on_select,
        selection_mode="points",
    )


def live_plot(
    figure: go.Figure,
    key: str,
    data: pd.DataFrame,
    *,
    alt: str,
    selectable: bool = False,
    on_click: Click | None = None,
    of: object = None,
) -> Any:
    """As `plot`, for a figure that changes while it is on the page.

    Streamlit rebuilds a plot when its figure changes, and shows a gap meanwhile. So two plots
    overlap: the previous figure stays visible until the new one is drawn.

    on_click: called with the point that was clicked, before the page is drawn again. of: what the
    figure shows; one of something else is not shown while the new one is drawn.
    """
    shown: list[tuple[int, go.Figure]]
    shown_of, shown = st.session_state.setdefault(f"{key}_shown", (of, [(0, figure)]))
    for each in (figure, *(version for _, version in shown)):
        give_theme(each, selectable=selectable or on_click is not None)
    number, latest_figure = shown[-1]
    if shown_of != of:
        shown = [(number + 1, figure)]
    elif figure is not latest_figure and figure != latest_figure:
        shown = [shown[-1], (number + 1, figure)]
    st.session_state[f"{key}_shown"] = of, shown
    slots: list[Any] = []
    event: Any = None
    with st.container(key=f"{key}_live"):
        slots += [st.container(key=f"{key}_place{number}") for number in range(2)]
    for number, version in shown:
        with slots[number % 2]:
            event = _chart(
                version,
                f"{key}_{number}",
                _config(key),
                alt,
                selectable=selectable,
                on_click=on_click,
            )
    latest = shown[-1][0]
    both, new = f".st-key-{key}_live", f".st-key-{key}_{latest}"
    before = f".st-key-{key}_place{(latest + 1) % 2}"
    st.html(
        f"<style>{both}{{display:grid;grid-template-columns:minmax(0,1fr)}}"
        f"{both}>*{{grid-area:1/1}}"
        f"{both}:has({new} svg.main-svg) {before}{{visibility:hidden}}</style>"
    )
    _downloads(data, key, f"{key}_{latest}")
    return event


def _config(key: str) -> dict[str, Any]:
    return {
        "displaylogo": False,
        "modeBarButtonsToRemove": ["lasso2d", "select2d", "autoScale2d"],
        "toImageButtonOptions": {"filename": key, "scale": 2},
    }


def csv_button(
    data: pd.DataFrame,
    key: str,
    help: str = "The numbers behind this plot.",
    label: str = "CSV",
) -> None:
    """A button that downloads a table, as `key`.csv. help: what it has."""
    st.download_button(
        label,
        data=lambda: data.to_csv(index=False),
        file_name=f"{key}.csv",
        mime="text/csv",
        key=f"{key}_csv",
        type="tertiary",
        icon=":material/download:",
        on_click="ignore",
        help=help,
    )
