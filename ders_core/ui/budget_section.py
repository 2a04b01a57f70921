"""The Recipe page, of a recipe with a budget: the button that makes rules of it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.recipe import Recipe
from ders_core.recipe.budget import Budget
from ders_core.ui.calculations import rules_of_budget
from ders_core.ui.calculator import calculate
from ders_core.ui.plain import plain, show_error


def budget_section(
    recipe: Recipe, budget: Budget, source: Checkpoint, change: Callable[[Recipe], None]
) -> None:
    """Finds the knob, with a bar meanwhile; the rules that it gives become the current recipe."""
    st.info(
        f"This recipe has a budget: {budget.label}. One knob decides how finely each matrix is "
        "coded; samples of all of them tell which knob meets it."
    )
    if not st.button("Find the knob", key="budget_settle", type="primary"):
        return
    bar = st.progress(0.0, "encoding samples")

    def show(done: int, total: int, words: str) -> None:
        bar.progress(done / total if total else 0.0, plain(words))

    try:
        version = source.store.version
        text = calculate(rules_of_budget, source.place, version, recipe.to_yaml(), progress=show)
    except DersError as error:
        bar.empty()
        show_error(error)
        return
    change(Recipe.from_yaml(text))
    st.rerun()
