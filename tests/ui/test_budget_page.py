"""A recipe with a budget on the Recipe page: it becomes rules at the press of a button."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.gradient_calibrations import with_gradients
from support.recipe_pages import recipe_of
from support.studio_pages import on, opened, words

from ders_core.codecs import Entropy
from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.kinds.run import RunResult
from ders_core.packed.open import open_checkpoint
from ders_core.packed.reader import PackedCheckpoint
from ders_core.pipeline.budget import check_budget, settle, with_knob
from ders_core.pipeline.compress import compress
from ders_core.pipeline.quality import PREDICTED_KL
from ders_core.recipe import Recipe
from ders_core.units import bytes_text


def test_a_run_settles_its_budget(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    work: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Started from the page without *Find the knob*; a miss is told in the run's details."""
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    with_gradients(source, path, cost=10.0, others=["lm_head.weight"])
    asked = Recipe.from_yaml(
        f"version: 2\nname: whole\ncalibration: {path}\nbudget: {{share: 20%}}\n"
    )
    found = with_knob(asked, 2.0**-10, check_budget(asked, source))  # no search: too fine a knob
    monkeypatch.setattr("ders_core.pipeline.compress.settle", lambda *_, progress: found)
    on(opened(app, mixtral_dir), "recipe")
    next(area for area in app.text_area if area.label == "YAML").set_value(asked.to_yaml()).run()
    app.button(key="yaml_apply").click().run()
    assert recipe_of(app) == asked
    on(app, "runs")
    app.button(key="run_start").click().run()
    assert not app.exception
    assert not app.error
    work()
    job = JobStore(workspace.store_path).list(kind="run")[0]
    assert (job.state, job.error) == ("done", None)
    result = RunResult.of(job)
    assert result is not None
    assert result.report is not None
    manifest = PackedCheckpoint(result.packed).manifest
    assert manifest.recipe == found.public().model_dump(mode="json")
    assert "20.0 % of the original" in result.report.missed
    on(app, "runs")
    assert "budget" in " ".join(warning.value for warning in app.warning)


@pytest.mark.parametrize("budget", ["knob: 0.01", "kl: 0.02", "share: 30%"])
def test_a_budget_becomes_rules(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, tmp_path: Path, budget: str
) -> None:
    """Their bytes and KL are told at once, as a run will have them."""
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    with_gradients(source, path, others=["lm_head.weight"])
    asked = Recipe.from_yaml(
        f"version: 2\nname: whole\ncalibration: {path}\nbudget: {{{budget}}}\n"
    )
    assert asked.budget is not None
    on(opened(app, mixtral_dir), "recipe")
    next(area for area in app.text_area if area.label == "YAML").set_value(asked.to_yaml()).run()
    app.button(key="yaml_apply").click().run()
    assert not app.exception
    assert recipe_of(app) == asked
    assert asked.budget.label in words(app)
    app.button(key="budget_settle").click().run()
    assert not app.exception
    assert not app.error
    recipe = recipe_of(app)
    assert recipe == settle(asked, source)
    codec = recipe.codec(0, "up")
    assert isinstance(codec, Entropy)
    assert codec.rounding == "unbiased"
    report = compress(mixtral_dir, tmp_path / "out", recipe)
    assert report.predicted_kl is not None
    told = {metric.label: metric.value for metric in app.metric}
    assert told["After"] == bytes_text(report.bytes_after)
    assert told["Predicted KL"] == PREDICTED_KL.text(report.predicted_kl)
    assert recipe.shares_base_error
    assert "all experts have its error" in words(app)
    assert "predict" not in {button.key for button in app.button}  # there is nothing left to ask
