"""A figure is made again when what it shows changes, and only then."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import plotly.graph_objects as go
import pytest
import streamlit as st

from ders_core.analysis import Analysis
from ders_core.ui.plots import made


@dataclass(eq=False)
class Draws:
    """What was drawn, in order."""

    all: list[tuple[object, ...]] = field(default_factory=list)

    def __call__(self, analysis: Analysis, *choice: object, **options: object) -> go.Figure:
        self.all.append((analysis, *choice, *options.values()))
        return go.Figure(layout={"title": {"text": str(choice)}})


def test_a_figure_is_made_again_when_anything_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(st, "session_state", {})
    one, other = (cast(Analysis, [1.0]) for _ in range(2))  # equal, as two analyses may be
    draw, another = Draws(), Draws()
    first = made("map", draw, one, 3, kind="a")
    assert made("map", draw, one, 3, kind="a") is first
    assert draw.all == [(one, 3, "a")]
    for analysis, function, layer, kind in (
        (other, draw, 3, "a"),
        (other, draw, 4, "a"),
        (other, draw, 4, "b"),
        (other, another, 4, "b"),
        (one, draw, 3, "a"),  # the last one alone is kept
    ):
        before = len(function.all)
        figure = made("map", function, analysis, layer, kind=kind)
        assert figure.layout.title.text == f"({layer},)"
        assert len(function.all) == before + 1
        assert function.all[-1][0] is analysis
    made("another map", draw, one, 9)
    assert made("map", draw, one, 3, kind="a").layout.title.text == "(3,)"
    assert draw.all[-1] == (one, 9)
