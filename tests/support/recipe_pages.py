"""The Recipe page in a test: the recipe in its text field, and edits of its table."""

from __future__ import annotations

import json
from collections.abc import Mapping

from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Dataframe
from support.studio_pages import on

from ders_core.recipe import Recipe


def recipe_of(app: AppTest) -> Recipe:
    text = next(area for area in app.text_area if area.label == "YAML").value
    assert text is not None
    return Recipe.from_yaml(text)


def apply_text(app: AppTest, text: str) -> None:
    """Go to the page and apply a text there."""
    on(app, "recipe")
    next(area for area in app.text_area if area.label == "YAML").set_value(text)
    app.button(key="yaml_apply").click().run()
    assert not app.exception


def groups_editor(app: AppTest) -> Dataframe:
    """The table of groups."""
    return next(each for each in app.data_editor if "recipe_editor" in str(each.key))


def edit_groups(app: AppTest, edits: Mapping[int, Mapping[str, object]]) -> None:
    """Send edits of the table of groups, as a browser does: row -> {column: value}, all of them
    since the table was drawn anew."""
    states = app._tree.get_widget_states()
    edited = {"edited_rows": dict(edits), "added_rows": [], "deleted_rows": []}
    states.widgets.add(id=groups_editor(app).proto.id, string_value=json.dumps(edited))
    app._run(states)
    assert not app.exception
