"""A figure is made again when what it shows changes, and only then."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import plotly.graph_objects as go
import pytest
import streamlit as st

from ders_core.analysis import Analysis
from ders_core.ui.plots import made, made_of


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


def test_each_session_has_its_own_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """It gets the colours of its visitor's theme."""
    sessions: list[dict[str, object]] = [{}, {}]
    figures = []
    for session in (*sessions, *sessions):
        monkeypatch.setattr(st, "session_state", session)
        figures.append(made_of("runs", go.Figure, "name,kl\na,\n"))
    assert figures[0] is figures[2]
    assert figures[1] is figures[3]
    assert figures[0] is not figures[1]
    assert made_of("runs", go.Figure, "name,kl\nb,\n") is not figures[3]


ROOT = Path(__file__).parents[2]
SHARED = ("cache_resource", "cache_data")


def shared_functions() -> Iterator[ast.FunctionDef]:
    """Functions whose results all sessions share."""
    for folder in ("ders_core/ui", "pages"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef) and any(
                    name in ast.unparse(each) for each in node.decorator_list for name in SHARED
                ):
                    yield node


def test_no_figure_is_shared_by_sessions() -> None:
    results = {node.name: ast.unparse(node.returns) for node in shared_functions() if node.returns}
    assert {"workspace", "_plan", "_summary"} <= results.keys()
    assert [name for name, result in results.items() if "Figure" in result] == []
