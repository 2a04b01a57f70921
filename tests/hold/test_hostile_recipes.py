"""Recipes of strangers on the Recipe page: one sentence of bearable length, in which nothing is
markup; the text can be mended there."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.hostile_workspace import LONG_NAME, RECIPES
from support.studio_pages import on, opened

from ders_core.errors import LONGEST
from ders_core.jobs import Workspace
from ders_core.ui.plain import plain

SHOWN = dict.fromkeys(("markup in a name", "markup in a key"), LONG_NAME)
SHOWN["a calibration"] = "![x](evil.test/y)"
"""What the sentence quotes."""


def test_hostile_recipes(app: AppTest, workspace: Workspace, moe: Path) -> None:
    """One after another. None of them becomes the current one: a calibration must lie in the
    allowed folders."""
    opened(app.run(), moe)
    on(app, "recipe")
    for what, text in RECIPES.items():
        app.text_area(key="recipe_yaml").set_value(text)
        app.button(key="yaml_apply").click().run()
        assert not app.exception, what
        assert len(app.error) == 1, what
        error = app.error[0].value
        assert len(error) < 2 * LONGEST, what  # every character may be escaped
        assert "\n" not in error, what
        assert "http://" not in error, what
        assert plain(SHOWN.get(what, "")) in error, what
        assert app.text_area(key="recipe_yaml").value == text, what
