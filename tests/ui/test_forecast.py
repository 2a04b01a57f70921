"""Pages foretell a recipe from a sample: KL with gradients, else gain and noise."""

from __future__ import annotations

from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest
from support.gradient_calibrations import with_gradients
from support.recipe_pages import apply_text, groups_editor, recipe_of
from support.studio_pages import on, opened, words

from ders_core.analysis import Spectra, analyze
from ders_core.jobs import Workspace
from ders_core.packed.open import open_checkpoint
from ders_core.pipeline.forecast import forecast
from ders_core.pipeline.plan import resolve
from ders_core.recipe import FIRST_PRESET, Recipe, presets
from ders_core.ui import foretold
from ders_core.ui.opened import Open
from ders_core.ui.recipe_table import table
from ders_core.units import bytes_text, number_text


def shown(app: AppTest) -> dict[str, str]:
    return {metric.label: metric.value for metric in app.metric}


def sidebar_words(app: AppTest) -> str:
    """Of the first page, around which the studio draws its frame."""
    on_page = app.switch_page("app.py").run()
    assert not on_page.exception
    return " ".join(markdown.value for markdown in on_page.sidebar.markdown)


def test_gain_and_noise_without_a_calibration(app: AppTest, mixtral_dir: Path) -> None:
    source = open_checkpoint(mixtral_dir)
    on(opened(app, mixtral_dir), "recipe")
    assert recipe_of(app) == presets()[FIRST_PRESET]
    assert not {"Gain", "Noise", "Predicted KL"} & shown(app).keys()
    app.button(key="predict").click().run()
    assert not app.exception
    outlook = forecast(resolve(presets()[FIRST_PRESET], source), source).outlook
    assert outlook.gain is not None
    assert outlook.noise is not None
    cells = shown(app)
    assert (cells["Gain"], cells["Noise"]) == (
        number_text(outlook.gain),
        number_text(outlook.noise),
    )
    app.session_state["presets"] = True  # the row of cards is open
    app.run().button(key="preset_quantized-2bit").click().run()
    assert not {"Gain", "Noise"} & shown(app).keys()  # of another recipe


IN_TABLE, NOT_KNOWN = "Gain and noise: in the table", "Gain and noise: not known from a sample"


@pytest.mark.parametrize(
    ("spectra", "rule", "said"),
    [
        ("exact", "rank: 16", IN_TABLE),
        ("none", "rank: 16", NOT_KNOWN),
        (None, "rank: 16", NOT_KNOWN),
        ("exact", "bits: 2", NOT_KNOWN),
        ("exact", "bits: 2, layers: '0'", NOT_KNOWN),  # the layer that is kept has a gain
    ],
)
def test_what_a_sample_does_not_tell_is_pointed_to(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    spectra: Spectra | None,
    rule: str,
    said: str,
) -> None:
    """Beside a table with numbers, "unknown" would contradict it; an empty one has none to show."""
    source = open_checkpoint(mixtral_dir)
    if spectra is not None:
        analyze(source, spectra=spectra).save(workspace.analysis_dir(source.identity))
    predicted(app, mixtral_dir, f"{{codec: lowrank, {rule}}}")
    assert not {"Gain", "Noise"} & shown(app).keys()
    assert "unknown" not in shown(app).values()
    assert [words(app).count(words_of) for words_of in (IN_TABLE, NOT_KNOWN)] == [
        int(said == IN_TABLE),
        int(said == NOT_KNOWN),
    ]
    gains = groups_editor(app).value["gain"]
    assert gains.notna().any() == (said == IN_TABLE or "layers" in rule)
    assert "predict" not in [button.key for button in app.button]


def test_of_a_recipe_that_replaces_nothing_no_gain_is_told(app: AppTest, mixtral_dir: Path) -> None:
    predicted(app, mixtral_dir, "{codec: keep}")
    assert "Gain and noise" not in words(app)


def test_spectra_point_to_no_table(app: AppTest, mixtral_dir: Path, workspace: Workspace) -> None:
    source = open_checkpoint(mixtral_dir)
    analyze(source).save(workspace.analysis_dir(source.identity))
    predicted(app, mixtral_dir, "{codec: quantized, bits: 2}", "{codec: lowrank, rank: 8}")
    assert IN_TABLE in words(app)  # expected from the analysis
    on(app, "spectra")
    app.segmented_control(key="spec_codec").set_value("quantized").run()
    app.button(key="predict").click().run()
    assert not app.exception
    assert IN_TABLE not in words(app)
    assert {"Gain", "Noise"} <= shown(app).keys()  # of whole matrices: the base has a low rank


def predicted(app: AppTest, path: Path, rule: str, base_codec: str = "[]") -> None:
    """The recipe with one rule, and what a sample tells of it."""
    text = f"name: x\nrules: [{rule}]\nbase_codec: {base_codec}\n"
    apply_text(opened(app, path), text)
    assert not app.error
    app.button(key="predict").click().run()
    assert not app.exception


def test_bytes_are_about_where_they_are_not_exact(app: AppTest, mixtral_dir: Path) -> None:
    """Experts of the tests are small, so the sample is all of them; of `base: auto` the plan leaves
    open how many bases there are."""
    on(opened(app, mixtral_dir), "recipe")
    assert "After, at most" in shown(app)
    app.button(key="predict").click().run()
    source = open_checkpoint(mixtral_dir)
    told = forecast(resolve(recipe_of(app), source), source)
    assert told.exact
    assert shown(app)["After"] == bytes_text(told.bytes_after)
    base = next(item for item in app.segmented_control if item.label == "Base")
    base.set_value("least error").run()
    app.button(key="predict").click().run()
    assert not app.exception
    assert {"After, about", "Of original, about"} <= shown(app).keys()
    about = shown(app)["After, about"]
    assert f"→ about {about} (" in sidebar_words(app)


def test_kl_with_gradients(app: AppTest, mixtral_dir: Path, workspace: Workspace) -> None:
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    with_gradients(source, path)
    on(opened(app, mixtral_dir), "recipe")
    field = next(item for item in app.text_input if item.label == "Calibration")
    field.set_value(str(path)).run()
    app.selectbox(key="set_codec").set_value("unbiased by sensitivity").run()
    app.button(key="set_apply").click().run()
    assert not app.error
    app.button(key="predict").click().run()
    assert not app.exception
    recipe = recipe_of(app)
    assert recipe.codec(0, "up").needs_of_calibration == "inputs"
    kl = forecast(resolve(recipe, source), source).predicted_kl
    assert kl is not None
    assert shown(app)["Predicted KL"] == number_text(kl)
    assert "Gain" not in shown(app)


@pytest.mark.parametrize(
    "more", [{}, {"others": [{"codec": "quantized", "bits": 2}]}, {"budget": {"share": "20%"}}]
)
def test_one_group_on_the_spectra_page(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, more: dict[str, object]
) -> None:
    """With a calibration, KL and the error of outputs follow the slider; without, they are said to
    need one. What else the recipe codes is no part of them."""
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    analyze(source).save(workspace.analysis_dir(source.identity))
    matrices = [other.name for other in source.others.values() if len(other.shape) == 2]
    with_gradients(source, path, others=matrices)
    on(opened(app, mixtral_dir), "spectra")
    app.segmented_control(key="spec_codec").set_value("unbiased rounding").run()
    assert "predict" in [button.key for button in app.button]
    assert not {"Predicted KL", "Error of outputs"} & shown(app).keys()
    assert "The error of outputs needs a calibration" in words(app)
    asked = Recipe.model_validate({"name": "x", "version": 2, "calibration": path, **more})
    apply_text(app, asked.to_yaml())
    on(app, "spectra")
    seen = []
    for bits in (1.0, 2.0):
        app.slider(key="spec_unbiased rounding").set_value(bits).run()
        assert not app.exception
        assert "predict" not in [button.key for button in app.button]
        rule = {"layers": "0", "projections": ["gate"], "codec": "entropy", "bits": bits}
        rule |= {"rounding": "unbiased", "gain": "auto"}
        recipe = Recipe.model_validate({"name": "x", "calibration": path, "rules": [rule]})
        told = forecast(resolve(recipe, source), source)
        assert not app.error
        assert told.predicted_kl is not None
        (output,) = (each.rel_error_output for each in told.entries if each.noise)
        assert output is not None
        assert shown(app)["Predicted KL"] == number_text(told.predicted_kl)
        assert shown(app)["Error of outputs"] == number_text(output)
        seen.append(output)
    assert seen[1] < seen[0] / 1.5
    assert "needs a calibration" not in words(app)
    app.segmented_control(key="spec_codec").set_value("low rank").run()
    app.slider(key="spec_low rank").set_value(3).run()
    assert not app.exception
    rule = {"layers": "0", "projections": ["gate"], "codec": "lowrank", "rank": 3}
    recipe = Recipe.model_validate({"name": "x", "calibration": path, "rules": [rule]})
    told = forecast(resolve(recipe, source), source, whole=True)
    (output,) = (each.rel_error_output for each in told.entries if each.noise)
    assert output is not None
    assert shown(app)["Error of outputs"] == number_text(output)


def test_directions_of_large_matrices_are_found_on_request(
    app: AppTest, mixtral_dir: Path, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They take as long as a run takes for them."""
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    analyze(source).save(workspace.analysis_dir(source.identity))
    with_gradients(source, path)
    apply_text(opened(app, mixtral_dir), Recipe(name="x", calibration=path, rules=[]).to_yaml())
    monkeypatch.setattr(foretold, "WHOLE_AT_ONCE", 1)
    on(app, "spectra")
    assert app.segmented_control(key="spec_codec").value == "low rank"
    assert "Error of outputs" not in shown(app)
    assert "as long as a run" in app.button(key="predict").help
    app.button(key="predict").click().run()
    assert not app.exception
    assert "Error of outputs" in shown(app)
    hints = [cell.help for cell in app.metric if cell.label in ("Error of outputs", "Predicted KL")]
    assert len(hints) == 2
    assert all(hint.endswith(" From a sample of experts.") for hint in hints)


def test_what_a_base_from_a_file_leaves_untold_is_not_laid_to_a_low_rank(
    app: AppTest, mixtral_dir: Path, dense_parent_dir: Path
) -> None:
    opened(app, mixtral_dir)
    reasons = []
    for base in ("mean", {"dense": str(dense_parent_dir)}):
        asked = {"name": "x", "base": base, "rules": [{"codec": "lowrank", "bits": 2}]}
        apply_text(app, Recipe.model_validate(asked).to_yaml())
        app.button(key="predict").click().run()
        assert not app.error
        hint = next(caption.help for caption in app.caption if NOT_KNOWN in caption.value)
        reasons.append(hint[: hint.index(" An analysis")])
    assert reasons == [
        "A sample of rows does not tell those of a low rank.",
        "A sample does not tell those of deltas from a base that is read from a file.",
    ]


def test_a_forecast_goes_by_the_files_as_they_are(
    app: AppTest, mixtral_dir: Path, workspace: Workspace
) -> None:
    """One of a calibration that was written again at its path is not shown any more."""
    source, path = open_checkpoint(mixtral_dir), workspace.path / "gradients.safetensors"
    with_gradients(source, path)
    rule = {"codec": "entropy", "bits": 2, "rounding": "unbiased"}
    recipe = Recipe.model_validate({"name": "x", "calibration": path, "rules": [rule]})
    apply_text(opened(app, mixtral_dir), recipe.to_yaml())
    app.button(key="predict").click().run()
    before = shown(app)["Predicted KL"]
    with_gradients(source, path, cost=1.0)
    app.run()
    assert "Predicted KL" not in shown(app)
    app.button(key="predict").click().run()
    kl = forecast(resolve(recipe, source), source).predicted_kl
    assert kl is not None
    assert shown(app)["Predicted KL"] == number_text(kl) != before


@pytest.mark.parametrize("budget", [None, {"share": "20%"}])
def test_files_of_a_saved_recipe_are_read_in_the_allowed_folders_alone(
    app: AppTest,
    mixtral_dir: Path,
    workspace: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    budget: dict[str, str] | None,
) -> None:
    """A file that somebody put among the saved recipes may name any; nothing of it is told."""
    source, path = open_checkpoint(mixtral_dir), tmp_path / "elsewhere" / "c.safetensors"
    path.parent.mkdir()
    with_gradients(source, path)
    asked = {"name": "x", "version": 2, "calibration": path, "budget": budget}
    recipe = Recipe.model_validate(asked)
    Open(str(mixtral_dir), recipe.to_yaml()).save(workspace)
    monkeypatch.setattr(Workspace, "roots", (mixtral_dir, workspace.path, path.parent))
    on(app.run(), "recipe")
    assert recipe_of(app) == recipe
    assert "Calibrated on" in words(app)
    monkeypatch.setattr(Workspace, "roots", (mixtral_dir, workspace.path))
    app.run()
    assert not app.error
    assert "Calibrated on" not in words(app)
    app.button(key="predict" if budget is None else "budget_settle").click().run()
    assert not app.exception
    assert "lies outside the folders" in app.error[0].value
    assert recipe_of(app) == recipe


def test_a_forecast_that_is_shown_is_kept_while_others_are_made() -> None:
    """Each move of a slider makes one; the recipe's own is asked for on every page."""
    app = AppTest.from_function(many_forecasts).run()
    assert not app.exception
    assert [markdown.value for markdown in app.markdown] == ["recipe 1", "first 0", "last 1"]


def many_forecasts() -> None:
    from types import SimpleNamespace
    from typing import Any

    import streamlit as st

    from ders_core.pipeline.forecast import Forecast
    from ders_core.recipe import Recipe
    from ders_core.ui import foretold

    source: Any = SimpleNamespace(store=SimpleNamespace(version="v"))
    recipe, told = Recipe(name="recipe"), Forecast((), 1, None)
    foretold._keep(foretold._version(source, recipe), told)
    for number in range(50):
        foretold._keep(foretold._version(source, Recipe(name=f"slider {number}")), told)
        foretold.foretold(source, recipe)
    for label, asked in (("recipe", recipe.name), ("first", "slider 0"), ("last", "slider 49")):
        known = foretold.foretold(source, Recipe(name=asked))
        st.markdown(f"{label} {int(known is not None)}")


def test_the_table_takes_what_was_foretold(mixtral_dir: Path) -> None:
    """Where a sample does not tell, it keeps what the plan and the analysis say."""
    source = open_checkpoint(mixtral_dir)
    rules = [{"codec": "lowrank", "rank": 3}, {"layers": "0", "codec": "quantized", "bits": 2}]
    plan = resolve(Recipe.model_validate({"name": "x", "rules": rules}), source)
    told = forecast(plan, source)
    rows = table(plan, None, told)
    first = rows["layer"] == 0
    assert rows.loc[first, "gain"].tolist() == [
        entry.gain for entry in told.entries if entry.layer == 0
    ]
    assert rows.loc[~first, ["gain", "noise"]].isna().all(axis=None)
    assert told.outlook.gain is None
    assert rows["after"].sum() * 1e6 == pytest.approx(
        sum(entry.bytes_after for entry in told.entries)
    )
