"""The Recipe page's row about the base: what deltas are taken against, and for which experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
from pydantic import ValidationError

from ders_core.checkpoint import Checkpoint
from ders_core.decompose.base import Base, kinds
from ders_core.errors import DersError
from ders_core.files.missing import cleaned
from ders_core.recipe import Recipe
from ders_core.ui import kept, session
from ders_core.ui.plain import show_error

Change = Callable[[Recipe], None]
"""What makes a recipe the current one."""


def base_row(recipe: Recipe, source: Checkpoint, change: Change) -> None:
    """Controls for the kind of base, its fields, and the shared expert; to be drawn in a row."""
    offered = {
        kind.label: kind
        for kind in kinds()
        if recipe.calibration is not None or not kind.needs_calibration
    }
    label = kept.field(
        st.segmented_control,
        "Base",
        key="base_kind",
        start=recipe.base.label,
        draft_of=recipe.base.label,
        options=list(offered),
        required=True,
        help=f"W_i = W_base + Δ_i. {' '.join(kind.summary for kind in kinds())}",
    )
    _shared_expert(recipe, source, change)
    kind = offered[label]
    start = kind.start()
    if start is None:
        _fields(recipe, kind, change)
    elif label != recipe.base.label:
        coded = recipe.base_codec if start.is_stored else ()
        _take(recipe.model_copy(update={"base": start, "base_codec": coded}), change)


def _shared_expert(recipe: Recipe, source: Checkpoint, change: Change) -> None:
    if recipe.extended or any(group.with_shared() is not group for group in source.groups()):
        extended = kept.field(
            st.toggle,
            "Shared expert too",
            key="extended",
            start=recipe.extended,
            draft_of=str(recipe.extended),
            help="Extended DeRS: the always-on expert is one more expert of the same base.",
        )
        if extended != recipe.extended:
            _take(recipe.model_copy(update={"extended": extended}), change)


def _fields(recipe: Recipe, kind: type[Base], change: Change) -> None:
    """A text field for each field that a base of this kind requires."""
    chosen = recipe.base.name == kind.name
    known: dict[str, Any] = recipe.base.model_dump(mode="json") if chosen else {}
    texts: dict[str, str] = {}
    for name, field in kind.model_fields.items():
        if field.is_required():
            start = str(known.get(name, ""))
            typed = kept.field(
                st.text_input,
                field.title or name,
                key=f"base_{name}",
                start=start,
                draft_of=start,
                placeholder=field.description,
            )
            texts[name] = cleaned(typed or "")
    if not all(texts.values()) or all(texts[name] == str(known.get(name, "")) for name in texts):
        return
    try:
        base = kind.model_validate({**known, **texts})
        for path in base.files:
            session.workspace().check_allowed(path)
        base.check_files()
    except ValidationError as error:
        show_error(error.errors()[0]["msg"])
    except DersError as error:
        show_error(error)
    else:
        _take(recipe.model_copy(update={"base": base}), change)


def _take(recipe: Recipe, change: Change) -> None:
    """Make it the current recipe and draw the page anew, or say why that cannot be."""
    try:
        change(recipe)
    except DersError as error:
        show_error(error)
    else:
        st.rerun()
