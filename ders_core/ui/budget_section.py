"""The Recipe page, of a recipe with a budget: the button that makes rules of it."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st

from ders_core.checkpoint import Checkpoint
from ders_core.errors import DersError
from ders_core.recipe import Recipe
from ders_core.recipe.budget import Budget
from ders_core.ui.calculation_bar import with_bar
from ders_core.ui.calculations import rules_of_budget
from ders_core.ui.foretold import remember
from ders_core.ui.plain import show_error


def budget_section(
    recipe: Recipe, budget: Budget, source: Checkpoint, change: Callable[[Recipe], None]
) -> None:
    """Finds the knob, with a bar meanwhile; the rules that it gives become the current recipe, and
    what samples told of them is its forecast."""
    st.info(
        f"This recipe has a budget: {budget.label}. One knob decides how finely each matrix is "
        "coded; samples of all of them tell which knob meets it. A run finds it by itself; its "
        "rules, bytes and KL can be seen here before."
    )
    if not st.button("Find the knob", key="budget_settle", type="primary"):
        return
    found = with_bar(rules_of_budget, source, recipe, "encoding samples")
    if found is None:
        return
    text, told = found
    with_rules = Recipe.from_yaml(text)
    try:
        change(with_rules)
    except DersError as error:
        show_error(error)
    else:
        remember(source, with_rules, told)
        st.rerun()
