"""Recipe: which codec, how strong, for which experts; predicted bytes at once."""

from pathlib import Path

import streamlit as st
from pydantic import ValidationError

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.files.missing import cleaned
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.forecast import Forecast
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.without_loss import lossless_note
from ders_core.recipe import Recipe, presets
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.base_row import base_row
from ders_core.ui.beside_section import beside_section
from ders_core.ui.budget_section import budget_section
from ders_core.ui.calibration_job import calibration_job, calibration_texts
from ders_core.ui.cliff_warnings import cliff_warnings
from ders_core.ui.foretold import forecast_button, forecast_cells, foretold
from ders_core.ui.linked_recipe import TOO_LONG, fits_address
from ders_core.ui.plain import plain, show_error
from ders_core.ui.predicted_size import PredictedSize
from ders_core.ui.preset_cards import preset_cards
from ders_core.ui.recipe_difference import difference
from ders_core.ui.recipe_files import SavedRecipes, read_recipe, save_recipe, saved_recipes
from ders_core.ui.recipe_groups import groups_section
from ders_core.ui.recipe_table import calibration_sentence, has_gains, table
from ders_core.units import bytes_text


def change(recipe: Recipe) -> None:
    """Make it the current recipe, and reset the editor. Raises RecipeError if it is too long."""
    session.set_recipe(recipe)
    fresh()


def fresh() -> None:
    """Draw the table's editor and the menu of saved recipes anew, without what was done in them."""
    st.session_state["recipe_round"] = st.session_state.get("recipe_round", 0) + 1


def choose_preset(name: str) -> None:
    change(presets()[name])


def totals(
    plan: Plan, size: PredictedSize, source: Checkpoint, told: Forecast | None, *, in_table: bool
) -> None:
    """What the recipe leaves, at the bottom of the window while the table scrolls; remarks on it
    where they are called for. in_table: whether the table has gains of what is replaced."""
    with st.bottom, st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        st.metric("Weight files now", bytes_text(plan.bytes_before), width="content")
        st.metric(
            size.label("After"),
            size.bytes_words,
            help="Bytes of the packed safetensors files, headers included. An upper bound where "
            "the data decide: coded positions, entropy-coded and lossless streams, ranks by "
            "energy, several means. Where that bound is no less than the original, *Predict* finds "
            "the size from a sample.",
            width="content",
        )
        st.metric(size.label("Of original"), size.share_words, width="content")
        st.metric(
            "Groups replaced",
            f"{sum(entry.packed for entry in plan.entries)} of {len(plan.entries)}",
            help="A group is one projection of one layer with all its experts.",
            width="content",
        )
        if told is not None:
            forecast_cells(told, plan.recipe, in_table=in_table)
        else:
            forecast_button(source, plan.recipe)
        st.page_link("pages/runs.py", label="Run it", icon=":material/play_arrow:")
    if told is not None and (note := lossless_note(plan, told)):
        st.info(plain(f"{note[0].upper()}{note[1:]}."), icon=":material/compress:")
    for remark in plan.remarks:
        st.caption(plain(remark))


def yaml_tab(recipe: Recipe) -> None:
    text = kept.field(
        st.text_area,
        "YAML",
        key="recipe_yaml",
        start=recipe.to_yaml(),
        draft_of=recipe.to_yaml(),
        height=320,
    )
    if st.button("Apply the text", key="yaml_apply"):
        try:
            parsed = read_recipe(text)
            if parsed.budget is None:
                reads.plan(frame.need_checkpoint(), parsed)
        except DersError as error:
            show_error(error)
        else:
            change(parsed)
            st.rerun()


def base_and_calibration(recipe: Recipe, source: Checkpoint) -> None:
    """What the deltas are taken against, and what is known of the experts' inputs."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        base_row(recipe, source, change)
        problem = calibration_path(recipe)
        calibration_job(source, lambda path: change(with_calibration(recipe, path)))
    if problem:
        show_error(problem)
    if recipe.calibration is not None:
        calibration_texts(recipe.calibration)


def calibration_path(recipe: Recipe) -> str | None:
    """The file with second moments, for codecs that use them. Returns why what was typed cannot
    be used."""
    known = str(recipe.calibration or "")
    path = kept.field(
        st.text_input,
        "Calibration",
        key="calibration",
        start=known,
        draft_of=known,
        placeholder="none: a file of ders calibrate",
        help="Second moments of the experts' inputs on a text of yours. With them, "
        f"{calibration_sentence()}.",
        width=300,
    )
    if path == known:
        return None
    try:
        if path:
            Calibration.open(session.workspace().check_allowed(Path(path)))
        change(with_calibration(recipe, path))
    except (DersError, ValueError) as error:
        return f"calibration: {one_line(error)}"
    st.rerun()


def with_calibration(recipe: Recipe, path: str) -> Recipe:
    """Raises ValidationError if a codec needs one and there is none."""
    return Recipe.model_validate({**recipe.model_dump(), "calibration": cleaned(path) or None})


def one_line(error: Exception) -> str:
    """The fault alone, without the lines that pydantic puts around it."""
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return str(error)


def file_row(recipe: Recipe, saved: SavedRecipes) -> None:
    """Name, save, load, download, undo, redo."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        name = kept.field(
            st.text_input,
            "Name",
            key="recipe_name",
            start=recipe.name,
            draft_of=recipe.name,
            width=220,
        )
        if st.button("Save", key="recipe_save", icon=":material/save:"):
            try:
                renamed = Recipe.model_validate({**recipe.model_dump(), "name": name})
                save_recipe(renamed)
            except (DersError, ValueError) as error:
                st.session_state["recipe_error"] = f"not saved: {error}"
            else:
                change(renamed)
                st.toast(f"Saved as {plain(name)}")
            st.rerun()
        chosen = st.selectbox(
            "Saved recipes",
            list(saved.recipes),
            index=None,
            placeholder="none yet" if not saved.recipes else "load one",
            key=f"recipe_load_{st.session_state.get('recipe_round', 0)}",
            width=180,
        )
        if chosen:
            change(saved.recipes[chosen])
            st.rerun()
        st.download_button(
            "YAML",
            recipe.to_yaml(),
            file_name=f"{recipe.name}.yaml",
            mime="application/yaml",
            icon=":material/download:",
            key="recipe_download",
            on_click="ignore",
        )
        if st.button(
            "Undo", key="recipe_undo", icon=":material/undo:", disabled=not session.can_undo()
        ):
            session.undo_recipe()
            fresh()
            st.rerun()
        if st.button(
            "Redo", key="recipe_redo", icon=":material/redo:", disabled=not session.can_redo()
        ):
            session.redo_recipe()
            fresh()
            st.rerun()
    for unusable in saved.unusable:
        place = f"{plain(unusable.file.name)} in {plain(unusable.file.parent)}"
        st.caption(f"Not among the saved recipes: {place}: {plain(unusable.why)}.")


frame.need_frame()
frame.head("Recipe", "Which codec each group of experts gets, and how many bytes that leaves.")
source = frame.need_checkpoint()
recipe = session.recipe()
preset_cards(source, choose_preset)
saved = saved_recipes()
file_row(recipe, saved)
if not fits_address(recipe):
    st.caption(f"This recipe is {TOO_LONG}.")
base_and_calibration(recipe, source)
problem = st.session_state.pop("recipe_error", None)
if problem:
    show_error(problem)
if recipe.budget is not None:
    budget_section(recipe, recipe.budget, source, change)
    yaml_tab(recipe)
    st.stop()
try:
    planned = reads.plan(source, recipe)
except DersError as error:
    show_error(f"This recipe does not fit the open checkpoint: {error}")
    yaml_tab(recipe)
    st.stop()
told = foretold(source, recipe)
rows = table(planned, reads.analysis(source), told)
size = PredictedSize.of(planned, told)
totals(planned, size, source, told, in_table=has_gains(rows, planned))
cliff_warnings(rows, planned, size, source)
as_table, around, as_yaml, changed = st.tabs(["Table", "Bases and others", "YAML", "Difference"])
with as_table:
    groups_section(planned, rows, source, change, fresh)
with around:
    beside_section(planned, source, change, fresh)
with as_yaml:
    yaml_tab(recipe)
with changed:
    difference(recipe, source, saved.recipes)
