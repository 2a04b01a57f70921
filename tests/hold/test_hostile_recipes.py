"""Recipes of strangers on the Recipe page: one sentence of bearable length, in which nothing is
markup; the text can be mended there."""

from __future__ import annotations

import json
from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.hostile_workspace import LONG_NAME
from support.studio_pages import on, opened

from ders_core.errors import LONGEST
from ders_core.jobs import Workspace
from ders_core.ui.plain import plain

RECIPES = {
    "markup in a name": f"name: a\nothers: {{codec: lossless, names: [{json.dumps(LONG_NAME)}]}}\n",
    "controls": 'name: a\nothers: {codec: lossless, names: ["\\e[31m\\u202e\\0\\n"]}\n',
    "long layers": f"name: a\nothers: {{codec: lossless, layers: '{'7,' * 30_000}7'}}\n",
    "a long codec": f"name: a\nothers: {{codec: {'x' * 70_000}}}\n",
    "a calibration": "version: 2\nname: a\nbudget: {kl: 1}\ncalibration: '![x](evil.test/y)'\n",
}
SHOWN = {"markup in a name": LONG_NAME, "a calibration": "![x](evil.test/y)"}
"""What the sentence quotes."""


def test_hostile_recipes(app: AppTest, workspace: Workspace, moe: Path) -> None:
    """One after another, the recipe with a budget last: it becomes the current one."""
    opened(app.run(), moe)
    on(app, "recipe")
    for what, text in RECIPES.items():
        app.text_area(key="recipe_yaml").set_value(text)
        app.button(key="yaml_apply").click().run()
        if "budget" in text:
            app.button(key="budget_settle").click().run()
        assert not app.exception, what
        assert len(app.error) == 1, what
        error = app.error[0].value
        assert len(error) < 2 * LONGEST, what  # every character may be escaped
        assert "\n" not in error, what
        assert "http://" not in error, what
        assert plain(SHOWN.get(what, "")) in error, what
        assert app.text_area(key="recipe_yaml").value == text or "budget" in text, what
