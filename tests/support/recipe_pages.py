"""The Recipe page in a test: the recipe in its text field."""

from __future__ import annotations

from streamlit.testing.v1 import AppTest

from ders_core.recipe import Recipe


def recipe_of(app: AppTest) -> Recipe:
    text = next(area for area in app.text_area if area.label == "YAML").value
    assert text is not None
    return Recipe.from_yaml(text)
