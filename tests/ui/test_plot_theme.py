"""Plots have the look of the page in themselves; a browser has no reason to draw them twice."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import plotly.graph_objects as go
import pytest
import streamlit as st

from ders_core.figures.style import EXPERT_COLOURS, finish
from ders_core.ui import plot_theme
from ders_core.ui.plot_theme import DARK, LIGHT, Ground, forget_theme, give_theme, theme_was_left


def switch(monkeypatch: pytest.MonkeyPatch, theme: str | None) -> None:
    """The visitor's browser shows this theme; None: it has not said yet."""
    monkeypatch.setattr(st, "context", SimpleNamespace(theme=SimpleNamespace(type=theme)))


@pytest.fixture(autouse=True)
def _session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st, "session_state", {})
    switch(monkeypatch, "light")


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_texts_have_contrast(ground: Ground) -> None:
    for colour in (ground.text, ground.title):
        low, high = sorted((luminance(colour), luminance(ground.ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_the_colours_are_those_of_the_page() -> None:
    settings = (Path(__file__).parents[2] / ".streamlit" / "config.toml").read_text(
        encoding="utf-8"
    )
    themes = tomllib.loads(settings)["theme"]
    for name, ground in (("light", LIGHT), ("dark", DARK)):
        assert (ground.ground, ground.title) == (
            themes[name]["backgroundColor"],
            themes[name]["textColor"],
        )
    assert list(EXPERT_COLOURS) == themes["chartCategoricalColors"]


@pytest.mark.parametrize(("theme", "ground"), [("light", LIGHT), ("dark", DARK), (None, LIGHT)])
def test_a_figure_has_the_colours_of_the_page(
    monkeypatch: pytest.MonkeyPatch, theme: str | None, ground: Ground
) -> None:
    switch(monkeypatch, theme)
    figure = finish(go.Figure(go.Scatter(x=[1, 2], y=[3, 4])), "Title")
    figure.update_layout(xaxis2={"showgrid": True, "title": {"text": "own"}})
    give_theme(figure, selectable=False)
    layout = json.loads(figure.to_json())["layout"]
    assert "template" not in layout
    assert (layout["font"]["color"], layout["title"]["font"]["color"]) == (
        ground.text,
        ground.title,
    )
    assert layout["title"]["text"] == "Title"
    assert {layout[axis]["gridcolor"] for axis in ("xaxis", "xaxis2", "yaxis")} == {ground.grid}
    assert [layout[axis].get("showgrid") for axis in ("xaxis", "xaxis2", "yaxis")] == [
        *(False, True, None)
    ]
    assert layout["xaxis2"]["title"]["text"] == "own"
    assert "clickmode" not in layout


def test_numbers_are_told_as_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plotly takes arrays in base64 for others each time that it hears of a figure; long ones are
    told so all the same."""
    monkeypatch.setattr(plot_theme, "MOST_LISTED", 4)
    x, z = np.array([0.5, np.nan, 2.0]), np.arange(6, dtype=np.float32).reshape(2, 3)
    figure = go.Figure(go.Scatter(x=x, y=x))
    figure.add_heatmap(z=z, customdata=z[:, :2])
    give_theme(figure, selectable=True)
    told = json.loads(figure.to_json())
    line, heat = told["data"]
    assert line["x"] == line["y"] == [0.5, None, 2.0]
    assert heat["customdata"] == [[0, 1], [3, 4]]
    assert "bdata" in heat["z"]
    assert (told["layout"]["clickmode"], told["layout"]["dragmode"]) == ("event+select", "pan")


def test_a_theme_given_twice_changes_nothing() -> None:
    figure = finish(go.Figure(go.Bar(x=["a"], y=np.array([1.0]))), "Title")
    give_theme(figure, selectable=True)
    before = figure.to_json()
    give_theme(figure, selectable=True)
    assert figure.to_json() == before


def test_a_theme_that_was_left_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page without plots would be drawn again and again."""
    assert not theme_was_left()  # there is no plot
    give_theme(go.Figure(), selectable=False)
    assert not theme_was_left()
    switch(monkeypatch, "dark")
    assert theme_was_left()
    forget_theme()  # the page begins again
    assert not theme_was_left()
    give_theme(go.Figure(), selectable=False)
    assert not theme_was_left()
    switch(monkeypatch, "light")
    assert theme_was_left()


def test_a_part_that_is_drawn_again_alone_hides_no_left_theme(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such a part refreshes itself; the plots outside of it have the look that was left."""
    give_theme(go.Figure(), selectable=False)
    switch(monkeypatch, "dark")
    give_theme(go.Figure(), selectable=False)
    assert theme_was_left()


def test_long_names_and_titles_have_room() -> None:
    def margins(names: list[str], title: str) -> tuple[int, bool | None, bool | None]:
        figure = finish(go.Figure(go.Bar(x=names, y=[1.0] * len(names))), "Title")
        figure.update_yaxes(title_text=title)
        give_theme(figure, selectable=False)
        layout = figure.layout
        return layout.margin.l, layout.xaxis.automargin, layout.yaxis.automargin

    assert margins(["E0", "layer 93"], "") == (60, None, None)
    assert margins(["E0", "a name that is long"], "share") == (plot_theme.WITH_TITLE, True, None)
