"""The Recipe page's table of groups, and the fields that set many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.codecs.gain import Gain
from ders_core.errors import DersError
from ders_core.later import pd
from ders_core.pipeline.plan import Plan
from ders_core.pipeline.quality import GAIN, NOISE
from ders_core.recipe import Recipe
from ders_core.recipe.summarise import with_codecs
from ders_core.ui import kept, session
from ders_core.ui.recipe_columns import table_columns
from ders_core.ui.recipe_rows import (
    OPEN,
    SEVERAL,
    TICK,
    Edits,
    Row,
    entry_edits,
    folded,
    open_at_first,
    rows_of,
    shows_other_ticks,
    ticks_after,
)
from ders_core.ui.recipe_table import FIRST_CHOICE, apply_edits, codec_from, codecs_of, menu

ESTIMATED = "From the sample of *Predict*, else expected from the analysis. A run measures it."
USUAL = "usual"
GAINS: Mapping[str, Gain] = {
    "auto": "auto",
    "unbiased": "unbiased",
    "least squares": "least_squares",
}
_OPENED, _TICKED = "recipe_opened", "recipe_ticked"
"""By the checkpoint's place: layers, changed in place; keys of entries."""

Change = Callable[[Recipe], None]
Fresh = Callable[[], None]


@dataclass(frozen=True)
class _Table:
    """What is drawn. place: of the checkpoint. key: of the editor, which is another one after every
    change of the recipe."""

    place: str
    plan: Plan
    rows: Sequence[Row]
    shown: pd.DataFrame
    key: str

    @property
    def edits(self) -> Edits:
        edits: Edits = st.session_state.get(self.key, {}).get("edited_rows", {})
        return edits

    @property
    def ticked(self) -> set[int]:
        """Numbers of the plan's entries."""
        return _ticked(self.place, self.plan)

    def keep_ticks(self) -> None:
        """Store the ticks after the edits, those of rows that are not shown included."""
        ticked = ticks_after(self.rows, self.ticked, self.edits)
        keys = {self.plan.entries[number].key for number in ticked}
        st.session_state.setdefault(_TICKED, {})[self.place] = keys


def _ticked(place: str, plan: Plan) -> set[int]:
    """Numbers of the plan's entries."""
    keys = st.session_state.get(_TICKED, {}).get(place, set())
    return {number for number, entry in enumerate(plan.entries) if entry.key in keys}


def groups_section(
    plan: Plan, table: pd.DataFrame, source: Checkpoint, change: Change, fresh: Fresh
) -> None:
    """Draw both. table: as of `ders_core.ui.recipe_table.table`. change: makes a recipe the current
    one; fresh: draws the editor anew."""
    place = str(source.path)
    by_place: dict[str, set[int]] = st.session_state.setdefault(_OPENED, {})
    opened = by_place.setdefault(place, open_at_first(plan))
    rows = rows_of(plan, opened)
    ticked = _ticked(place, plan)
    key = f"recipe_editor_{st.session_state.get('recipe_round', 0)}"
    drawn = _Table(place, plan, rows, folded(table, rows, opened, ticked), key)
    _set_many(plan, ticked, source, change)
    _editor(drawn, opened, change, fresh)


def _editor(drawn: _Table, opened: set[int], change: Change, fresh: Fresh) -> None:
    has_layers = any(row.is_layer for row in drawn.rows)
    st.data_editor(
        drawn.shown if has_layers else drawn.shown.drop(columns=OPEN),
        key=drawn.key,
        hide_index=True,
        disabled=["layer", "projection", "before", "after", "share", GAIN.key, NOISE.key],
        on_change=_take_edits,
        args=(drawn, change, fresh),
        alt="Groups of experts with their codec, strength and size",
        placeholder="",
        column_config={
            **table_columns(drawn.shown["before"], SEVERAL),
            TICK: st.column_config.CheckboxColumn(
                "", width=40, pinned=True, help="Rows that the button above sets at once."
            ),
            OPEN: st.column_config.ButtonColumn(
                "",
                width=40,
                pinned=True,
                type="tertiary",
                help="Shows the projections of a layer, or hides them.",
                key=f"{drawn.key}_open",
                on_click=_turn,
                args=(drawn, opened, fresh),
            ),
            GAIN.key: st.column_config.ProgressColumn(
                GAIN.short,
                width="small",
                help=f"{ESTIMATED} Of a layer: the mean. {GAIN.help}",
                format="%.3f",
                min_value=0.0,
                max_value=1.0,
            ),
            NOISE.key: st.column_config.NumberColumn(
                NOISE.short,
                width="small",
                help=f"{ESTIMATED} Of a layer: the mean. {NOISE.help}",
                format=NOISE.format,
            ),
        },
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        st.caption(
            "Edit in the table, or tick rows and set them above; a layer's row is all its "
            "projections. What no rule selects is kept."
        )
        if has_layers:
            layers = {row.layer for row in drawn.rows if row.is_layer}
            is_open = layers <= opened
            st.button(
                "Close all layers" if is_open else "Open all layers",
                key="recipe_open_all",
                type="tertiary",
                on_click=_turn_all,
                args=(opened, set() if is_open else layers, fresh),
            )


def _take_edits(drawn: _Table, change: Change, fresh: Fresh) -> None:
    """Keep the ticks, and turn the edited rows into rules; called when a cell changes."""
    drawn.keep_ticks()
    try:
        entries = entry_edits(drawn.shown, drawn.rows, drawn.edits)
        if entries:
            change(with_codecs(session.recipe(), apply_edits(drawn.plan, entries)))
        elif any(set(edit) - {TICK} for edit in drawn.edits.values()):
            fresh()  # a cell that stays as it was
        elif shows_other_ticks(drawn.rows, drawn.ticked, drawn.edits):
            fresh()  # as ticked by a later edit of the layer or of a projection
    except DersError as error:
        st.session_state["recipe_error"] = str(error)
        fresh()


def _turn(drawn: _Table, opened: set[int], fresh: Fresh) -> None:
    """Open or close the layer whose button was pressed."""
    click = st.session_state[f"{drawn.key}_open"]
    opened ^= {drawn.rows[click["row"]].layer}
    fresh()


def _turn_all(opened: set[int], layers: set[int], fresh: Fresh) -> None:
    opened.clear()
    opened |= layers
    fresh()


def _set_many(plan: Plan, ticked: set[int], source: Checkpoint, change: Change) -> None:
    """One codec for many groups at once: those that are ticked, or of some layers and projections.
    ticked: numbers of the plan's entries."""
    with st.container(border=True), st.container(horizontal=True, vertical_alignment="bottom"):
        chosen = ticked or _chosen_groups(plan, source)
        label = kept.field(
            st.selectbox,
            "Codec",
            key="set_codec",
            start=FIRST_CHOICE,
            options=list(menu()),
            width=185,
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
                width=135,
            )
        gain = _gain_choice() if menu()[label].has_gain else None
        groups = f"{'ticked ' if ticked else ''}group{'' if len(chosen) == 1 else 's'}"
        if st.button(
            f"Set {len(chosen)} {groups}", key="set_apply", type="primary", disabled=not chosen
        ):
            codecs = codecs_of(plan)
            try:
                for each in chosen:
                    key = plan.entries[each].key
                    codecs[key] = codec_from(label, value, codecs[key], gain)
                change(with_codecs(session.recipe(), codecs))
            except DersError as error:
                st.session_state["recipe_error"] = str(error)
            st.rerun()


def _chosen_groups(plan: Plan, source: Checkpoint) -> set[int]:
    """Numbers of the plan's entries, of fields for layers and projections."""
    layers: list[int] = kept.field(
        st.multiselect,
        "Layers",
        key="set_layers",
        start=[],
        of=source.path,
        options=sorted({entry.layer for entry in plan.entries}),
        placeholder="all",
        help="Or tick rows of the table.",
        width=105,
    )
    projections: list[str] = kept.field(
        st.multiselect,
        "Projections",
        key="set_projections",
        start=[],
        of=source.path,
        options=list(dict.fromkeys(entry.projection for entry in plan.entries)),
        placeholder="all",
        width=112,
    )
    return {
        number
        for number, entry in enumerate(plan.entries)
        if (not layers or entry.layer in layers)
        and (not projections or entry.projection in projections)
    }


def _gain_choice() -> Gain | None:
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
        width=108,
    )
    return GAINS.get(chosen)
