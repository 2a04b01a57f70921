"""Recipe: which codec, how strong, for which experts; predicted bytes at once."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import streamlit as st
from pydantic import ValidationError

from ders_core.checkpoint import Checkpoint
from ders_core.codecs.gain import Gain
from ders_core.errors import DersError
from ders_core.files.missing import cleaned
from ders_core.later import pd
from ders_core.pipeline.calibration import Calibration
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.quality import GAIN, NOISE
from ders_core.pipeline.without_loss import lossless_note
from ders_core.recipe import Recipe, presets
from ders_core.recipe.summarise import with_codecs
from ders_core.ui import frame, kept, reads, session
from ders_core.ui.base_row import base_row
from ders_core.ui.beside_section import beside_section
from ders_core.ui.budget_section import budget_section
from ders_core.ui.calibration_job import calibration_job, calibration_texts
from ders_core.ui.foretold import forecast_button, forecast_cells, foretold
from ders_core.ui.plain import plain, show_error
from ders_core.ui.preset_cards import preset_cards
from ders_core.ui.recipe_columns import table_columns
from ders_core.ui.recipe_difference import difference
from ders_core.ui.recipe_files import save_recipe, saved_recipes
from ders_core.ui.recipe_table import (
    FIRST_CHOICE,
    apply_edits,
    calibration_sentence,
    cliff_sentence,
    codec_from,
    codecs_of,
    menu,
    table,
)
from ders_core.units import bytes_text, share_text

EDITOR = "recipe_editor"
USUAL = "usual"
GAINS: Mapping[str, Gain] = {
    "auto": "auto",
    "unbiased": "unbiased",
    "least squares": "least_squares",
}
ESTIMATED = "From the sample of *Predict*, else expected from the analysis. A run measures it."


def change(recipe: Recipe) -> None:
    """Make it the current recipe, and reset the editor."""
    session.set_recipe(recipe)
    fresh()


def fresh() -> None:
    """Draw the table's editor and the menu of saved recipes anew, without what was done in them."""
    st.session_state["recipe_round"] = st.session_state.get("recipe_round", 0) + 1


def choose_preset(name: str) -> None:
    change(presets()[name])


def take_edits(plan: Plan, key: str) -> None:
    """Turn the edited rows into rules; called when a cell changes."""
    edits: dict[int, dict[str, Any]] = st.session_state[key]["edited_rows"]
    try:
        change(with_codecs(session.recipe(), apply_edits(plan, edits)))
    except DersError as error:
        st.session_state["recipe_error"] = str(error)
        fresh()


def totals(plan: Plan, recipe: Recipe, source: Checkpoint) -> None:
    """What the recipe leaves, at the bottom of the window while the table scrolls; remarks on it
    where they are called for."""
    told = foretold(source, recipe)
    after = plan.bytes_after if told is None else told.bytes_after
    bound = "" if plan.exact else ", at most" if told is None else ", about"
    with st.bottom, st.container(horizontal=True, gap="medium", vertical_alignment="center"):
        st.metric("Weight files now", bytes_text(plan.bytes_before), width="content")
        st.metric(
            f"After{bound}",
            bytes_text(after),
            help="Bytes of the packed safetensors files, headers included. An upper bound where "
            "the data decide: coded positions, entropy-coded and lossless streams, ranks by "
            "energy, several means.",
            width="content",
        )
        st.metric(f"Of original{bound}", share_text(after / plan.bytes_before), width="content")
        st.metric(
            "Groups replaced",
            f"{sum(entry.packed for entry in plan.entries)} of {len(plan.entries)}",
            help="A group is one projection of one layer with all its experts.",
            width="content",
        )
        if told is not None:
            forecast_cells(told)
        else:
            forecast_button(source, recipe)
        st.page_link("pages/runs.py", label="Run it", icon=":material/play_arrow:")
    if told is not None and (note := lossless_note(plan, told)):
        st.info(plain(f"{note[0].upper()}{note[1:]}."), icon=":material/compress:")
    for remark in plan.remarks:
        st.caption(plain(remark))


def set_many(plan: Plan, source: Checkpoint) -> None:
    """One codec for many groups at once."""
    with st.container(border=True), st.container(horizontal=True, vertical_alignment="bottom"):
        layers: list[int] = kept.field(
            st.multiselect,
            "Layers",
            key="set_layers",
            start=[],
            of=source.path,
            options=sorted({entry.layer for entry in plan.entries}),
            placeholder="all",
            width=130,
        )
        projections: list[str] = kept.field(
            st.multiselect,
            "Projections",
            key="set_projections",
            start=[],
            of=source.path,
            options=list(dict.fromkeys(entry.projection for entry in plan.entries)),
            placeholder="all",
            width=130,
        )
        label = kept.field(
            st.selectbox,
            "Codec",
            key="set_codec",
            start=FIRST_CHOICE,
            options=list(menu()),
            width=200,
        )
        strength = menu()[label].strength
        value: float | None = None
        if strength is not None:
            number = strength.number
            value = kept.field(
                st.number_input,
                strength.unit.capitalize(),
                key=f"set_{label}",
                start=number(strength.start),
                min_value=number(strength.least),
                max_value=number(strength.most),
                step=number(strength.step),
                width=160,
            )
        gain = gain_choice() if menu()[label].has_gain else None
        if st.button("Apply", key="set_apply", type="primary"):
            codecs = codecs_of(plan)
            try:
                for key, before in codecs.items():
                    if (not layers or key[0] in layers) and (
                        not projections or key[1] in projections
                    ):
                        codecs[key] = codec_from(label, value, before, gain)
                change(with_codecs(session.recipe(), codecs))
            except DersError as error:
                st.session_state["recipe_error"] = str(error)
            st.rerun()


def gain_choice() -> Gain | None:
    """None where the codec's own is to stay."""
    chosen = kept.field(
        st.selectbox,
        "Gain",
        key="set_gain",
        start=USUAL,
        options=[USUAL, *GAINS],
        help=f"{GAIN.help} *{USUAL}*: as the codec has it. *unbiased*: 1. *auto*: the best one, "
        "from what shrunken deltas and noise cost. *least squares*: the least error of weights. "
        "A number is written in YAML, for instance `gain: 0.9`.",
        width=120,
    )
    return GAINS.get(chosen)


def group_table(plan: Plan, rows: pd.DataFrame) -> None:
    key = f"{EDITOR}_{st.session_state.get('recipe_round', 0)}"
    st.data_editor(
        rows,
        key=key,
        hide_index=True,
        disabled=["layer", "projection", "before", "after", "share", GAIN.key, NOISE.key],
        on_change=take_edits,
        args=(plan, key),
        column_config={
            **table_columns(),
            GAIN.key: st.column_config.ProgressColumn(
                GAIN.short,
                width="small",
                help=f"{ESTIMATED} {GAIN.help}",
                format="%.3g",
                min_value=0.0,
                max_value=1.0,
            ),
            NOISE.key: st.column_config.NumberColumn(
                NOISE.short, width="small", help=f"{ESTIMATED} {NOISE.help}", format="%.3g"
            ),
        },
    )
    st.caption(
        "Edit codec and strength in the table; groups that no rule selects are kept as they are."
    )


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
            parsed = Recipe.from_yaml(text)
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


def file_row(recipe: Recipe) -> None:
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
        stored = saved_recipes()
        chosen = st.selectbox(
            "Saved recipes",
            list(stored),
            index=None,
            placeholder="none yet" if not stored else "load one",
            key=f"recipe_load_{st.session_state.get('recipe_round', 0)}",
            width=180,
        )
        if chosen:
            change(stored[chosen])
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


frame.need_frame()
frame.head("Recipe", "Which codec each group of experts gets, and how many bytes that leaves.")
source = frame.need_checkpoint()
recipe = session.recipe()
preset_cards(source, choose_preset)
file_row(recipe)
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
totals(planned, recipe, source)
rows = table(planned, reads.analysis(source), foretold(source, recipe))
if (danger := cliff_sentence(rows)) is not None:
    st.warning(danger)
as_table, around, as_yaml, changed = st.tabs(["Table", "Bases and others", "YAML", "Difference"])
with as_table:
    set_many(planned, source)
    group_table(planned, rows)
with around:
    beside_section(planned, source, change, fresh)
with as_yaml:
    yaml_tab(recipe)
with changed:
    difference(recipe, source)
