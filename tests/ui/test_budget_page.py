"""A recipe with a budget on the Recipe page: it becomes rules at the press of a button."""

from __future__ import annotations

from pathlib import Path

from streamlit.testing.v1 import AppTest
from support.gradient_calibrations import with_gradients
from support.recipe_pages import recipe_of
from support.studio_pages import on, opened, words

from ders_core.codecs import Entropy
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.budget import settle
from ders_core.recipe import Recipe


def test_a_budget_becomes_rules(app: AppTest, mixtral_dir: Path, workspace: Workspace) -> None:
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    with_gradients(source, path, others=["lm_head.weight"])
    asked = Recipe.from_yaml(
        f"version: 2\nname: whole\ncalibration: {path}\nbudget: {{knob: 0.01}}\n"
    )
    on(opened(app, mixtral_dir), "recipe")
    next(area for area in app.text_area if area.label == "YAML").set_value(asked.to_yaml()).run()
    app.button(key="yaml_apply").click().run()
    assert not app.exception
    assert recipe_of(app) == asked
    assert "knob 0.01" in words(app)
    app.button(key="budget_settle").click().run()
    assert not app.exception
    assert not app.error
    recipe = recipe_of(app)
    assert recipe == settle(asked, source)
    codec = recipe.codec(0, "up")
    assert isinstance(codec, Entropy)
    assert codec.rounding == "unbiased"
    assert "Weight files now" in {metric.label for metric in app.metric}
